from dataclasses import replace
from pathlib import Path

import pytest

from simulations.faces import FACIAL_TERMS
from simulations.populations import set_aside
from simulations.scenarios import patient_of, populations_of
from tests.simulations.small import small_population, small_settings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


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


def test_whoever_is_set_aside_is_in_one_part_alone_and_the_test_stays_as_it_was() -> None:
    population = small_population()
    aside = set_aside(population, 0.3, 5, patient_of)
    for site, before in population.sites.items():
        after = aside.sites[site]
        train, kept = ({r.patient_id for r in part} for part in (before.train, after.train))
        moved = {r.patient_id for r in after.calibration}
        assert moved | kept == train and not moved & kept and moved
        assert after.test == before.test
    share = sum(len(s.calibration) for s in aside.sites.values()) / sum(
        len(s.train) for s in population.sites.values()
    )
    assert 0.15 < share < 0.45
    assert set_aside(population, 0.0, 5, patient_of) is population


def test_a_patient_of_two_tracks_is_set_aside_in_both() -> None:
    settings = small_settings(["data=four_hospitals", "data.calibration_share=0.3"])
    populations = populations_of(settings)
    both = 0
    for site in populations["rare_disease"].sites:
        parts = [
            {r.patient_id: part for part in ("train", "calibration") for r in getattr(one.sites[site], part)}
            for one in populations.values()
        ]
        shared = parts[0].keys() & parts[1].keys()
        assert all(parts[0][patient] == parts[1][patient] for patient in shared)
        both += len(shared)
    assert both


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="real data are not beside the repository")
def test_every_seed_holds_out_the_same_publications_and_the_base_knows_nothing_of_them() -> None:
    settings = small_settings(
        ["data=known_diseases", f"data.root={DATA}", "data.most_cases=1500", "data.min_cases=40"]
    )
    settings = replace(settings, other_diseases=3, models_seed=0)
    found = [populations_of(replace(settings, seed=seed))["rare_disease"] for seed in (0, 1)]
    new = [{r.case_id for r in one.new_publications} for one in found]
    assert new[0] == new[1] and new[0]
    assert found[0].text is not None and found[1].text is not None
    assert found[0].text.digest() == found[1].text.digest()
    assert {r.case_id for r in found[0].test} != {r.case_id for r in found[1].test}
    held = {r.group for r in found[0].new_publications}
    assert not held & {r.group for s in found[0].sites.values() for r in (*s.train, *s.test, *s.calibration)}


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="real data are not beside the repository")
def test_cases_that_are_dealt_out_one_by_one_give_every_site_much_the_same_diseases() -> None:
    overrides = ["data=known_diseases", f"data.root={DATA}", "data.most_cases=1500", "data.min_cases=40"]
    known = []
    for split in ("publication", "patient"):
        settings = replace(small_settings([*overrides, f"data.split={split}"]), other_diseases=3)
        population = populations_of(settings)["rare_disease"]
        answers = [{r.label["rare_disease"] for r in site.train} for site in population.sites.values()]
        known.append(sum(map(len, answers)) / len(answers))
    assert known[1] > 1.2 * known[0]
