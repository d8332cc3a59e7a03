from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.notes import NO_FINDINGS, model_view
from client.patients.photos import PhotoRef
from client.patients.readings import write_readings
from client.patients.records import Finding, PatientRecord
from common.learning_plan import TrainingPlan

few = settings(max_examples=30, deadline=None)

NAMES = ("Seizure", "Short stature", "Cleft palate", "Broad thumb", "Ataxia", "Anemia")
OBSERVED = tuple(Finding(id=f"HP:000000{i}", label=name) for i, name in enumerate(NAMES))
EXCLUDED = tuple(Finding(id=f"HP:000009{i}", label=name) for i, name in enumerate(("Deafness", "Obesity")))
FACIAL = frozenset({"HP:0000002", "HP:0000091"})
RECORD = PatientRecord(
    patient_id="p1",
    case_id="p1",
    sex="female",
    age="P6Y",
    onset="P2Y",
    observed=(*OBSERVED[:4], *(replace(one, onset="P3Y") for one in OBSERVED[4:])),
    excluded=EXCLUDED,
)
LOOKED_FOR = "looked for and not found"


def readings_of(
    record: PatientRecord = RECORD, *, seed: int = 0, hidden: frozenset[str] = frozenset(), **training: Any
) -> tuple[str, ...]:
    plan = TrainingPlan(
        rounds=1,
        local_steps=1,
        patients_per_step=1,
        learning_rate=1.0,
        max_prompt_tokens=64,
        **{"readings": 50, **training},
    )
    view = model_view(record, facial="hide" if hidden else "keep", facial_ids=hidden)
    return write_readings(record, view, plan, seed=seed)


def named(note: str, findings: tuple[Finding, ...] = OBSERVED) -> list[str]:
    """Labels that a note mentions, in the order of the note."""
    lower = note.lower()
    places = {one.label: lower.find(one.label.lower()) for one in findings}
    return sorted((label for label, place in places.items() if place >= 0), key=lambda name: places[name])


def test_the_first_reading_is_the_note_itself() -> None:
    for hidden in (frozenset[str](), FACIAL):
        view = model_view(RECORD, facial="hide" if hidden else "keep", facial_ids=hidden)
        assert readings_of(hidden=hidden)[0] == view.note
    free = replace(RECORD, note="As the doctor wrote it.")
    first, *others = readings_of(free)
    assert first == "As the doctor wrote it."
    assert all("girl" in other for other in others)


def test_one_reading_is_the_note_alone() -> None:
    assert readings_of(readings=1) == (model_view(RECORD).note,)


def test_readings_have_the_same_findings_in_other_orders() -> None:
    note, *others = readings_of()
    assert len(others) == 49
    assert all(sorted(named(other)) == sorted(named(note)) for other in others)
    # Four findings without an age can stand in 24 orders, the two that have one in two.
    assert len({tuple(named(other)) for other in others}) > 20
    assert all(LOOKED_FOR in other and "deafness" in other and "obesity" in other for other in others)


def test_sex_ages_and_what_was_found_when_are_in_each_reading() -> None:
    for reading in readings_of(dropped=0.5, with_exclusions=0.5):
        assert "was a 6-year-old girl" in reading
        assert "Disease onset was" in reading
        dated = reading.partition("3 years")[2]
        assert set(named(dated)) == set(named(reading)) & {"Ataxia", "Anemia"}


def test_findings_are_left_out_with_the_chance_of_the_plan() -> None:
    _, *others = readings_of(readings=2001, dropped=0.25)
    kept = [len(named(other)) for other in others]
    # 12,000 lots: the standard deviation of the share is 0.004.
    assert sum(kept) / (6 * len(kept)) == pytest.approx(0.75, abs=0.016)
    excluded = [len(named(other, EXCLUDED)) for other in others]
    # Of two excluded findings one stays even if both would go: 0.75 + 0.25**2 / 2.
    assert sum(excluded) / (2 * len(excluded)) == pytest.approx(0.75 + 0.25**2 / 2, abs=0.03)


def test_at_least_one_finding_stays() -> None:
    for reading in readings_of(dropped=0.99):
        assert named(reading)
        assert NO_FINDINGS not in reading
    only = replace(RECORD, observed=OBSERVED[:1])
    assert all(named(reading) == ["Seizure"] for reading in readings_of(only, dropped=0.99))


def test_exclusions_are_listed_in_the_share_of_the_plan() -> None:
    _, *others = readings_of(readings=1001, with_exclusions=0.3)
    share = sum(LOOKED_FOR in other for other in others) / len(others)
    assert share == pytest.approx(0.3, abs=0.06)
    first, *others = readings_of(with_exclusions=0.0)
    assert LOOKED_FOR in first
    assert not any(LOOKED_FOR in other for other in others)
    assert all(named(other, EXCLUDED) == [] for other in others)


def test_a_hidden_finding_stays_hidden_and_is_not_the_one_that_stays() -> None:
    for reading in readings_of(hidden=FACIAL, dropped=0.9):
        assert "cleft palate" not in reading
        assert "obesity" not in reading
        assert named(reading)


def test_a_patient_without_coded_findings_has_one_reading() -> None:
    free = PatientRecord(patient_id="p2", case_id="p2", note="A note, and nothing that is coded.")
    assert readings_of(free) == ("A note, and nothing that is coded.",)
    looked_for = replace(RECORD, observed=())
    assert readings_of(looked_for) == (model_view(looked_for).note,)
    all_hidden = replace(RECORD, observed=OBSERVED[2:3])
    assert len(readings_of(all_hidden, hidden=FACIAL)) == 1


def test_a_patient_without_a_note_has_no_reading() -> None:
    face = PhotoRef(array=np.zeros((4, 4, 3), dtype=np.uint8))
    assert readings_of(replace(RECORD, observed=(), excluded=(), photo=face)) == ()


@few
@given(seed=st.integers(0, 2**63 - 1))
def test_the_same_seed_and_pseudonym_give_the_same_readings(seed: int) -> None:
    assert readings_of(seed=seed, dropped=0.3) == readings_of(seed=seed, dropped=0.3)


def test_another_seed_or_pseudonym_gives_other_readings() -> None:
    other = replace(RECORD, patient_id="p2")
    assert len({readings_of(), readings_of(seed=1), readings_of(other)}) == 3
