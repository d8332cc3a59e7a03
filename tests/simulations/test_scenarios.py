from simulations.faces import FACIAL_TERMS
from tests.simulations.small import small_population


def test_no_model_sees_a_facial_finding_of_a_synthetic_patient_but_in_the_photo() -> None:
    population = small_population()
    records = [record for site in population.sites.values() for record in (*site.train, *site.test)]
    hidden = 0
    for record in records:
        view = population.views.view(record)
        assert not any(finding.id in FACIAL_TERMS for finding in (*view.observed, *view.excluded))
        hidden += len(record.observed) - len(view.observed)
        # Written anew from what is left, the note is the one that the patient came with.
        assert view.note == record.note
    assert hidden > len(records)
