"""What of a source a plan could use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.patients.data_check import check_source, counts
from client.patients.importers.sources import Source, read_source
from client.patients.importers.tiles import tile_answers
from client.patients.photos import ImageRef
from client.patients.records import Finding, PatientRecord, PatientSet, Place, Problem
from common.plan import RunPlan
from tests.fakes import tiny_plan

TILE = ImageRef(array=np.zeros((2, 2, 3), dtype=np.uint8))
FINDING = Finding(id="HP:0001166", label="Arachnodactyly")
YES: dict[str, Any] = {
    "consent": frozenset({"research"}),
    "label": {"rare_disease": "OMIM:1"},
    "note": "Tall.",
}
HISTOLOGY = Path(__file__).parents[4] / "shared/data/histology"


def plan() -> RunPlan:
    """Of the track rare_disease, for research."""
    return replace(tiny_plan(), purpose="research")


def source(*rows: dict[str, Any], problems: tuple[Problem, ...] = ()) -> Source:
    records = tuple(
        PatientRecord(patient_id=f"p{number}", case_id=f"p{number}", **row) for number, row in enumerate(rows)
    )
    places = tuple(Place(file="patients.jsonl", line=number + 1) for number in range(len(rows)))
    return Source(kind="folder", patients=PatientSet(records=records, problems=problems, places=places))


def test_without_a_plan_all_that_was_read_is_accepted() -> None:
    check = check_source(source(YES, {"slides": (TILE,)}, problems=(Problem(file="p", reason="bad"),)))
    assert (len(check.accepted), [str(one) for one in check.refused]) == (2, ["p: bad"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"consent": frozenset()}, "consent: none for the plan's purpose, research"),
        ({"consent": frozenset({"treatment"})}, "consent: none for the plan's purpose, research"),
        ({"withdrawn": True}, "withdrawn: the consent was taken back"),
        ({"label": {}}, "label: no answer for rare_disease, so that there is nothing to learn from"),
        (
            {"label": {"tissue_type": "tissue:a"}},
            "label: no answer for rare_disease, so that there is nothing to learn from",
        ),
        ({"note": None, "photo": TILE}, "nothing to learn from: no note and no finding"),
    ],
)
def test_a_patient_whom_the_plan_has_no_use_for_has_a_line(change: dict[str, Any], reason: str) -> None:
    check = check_source(source(YES, {**YES, **change}), plan())
    assert len(check.accepted) == 1
    assert [str(one) for one in check.refused] == [f"patients.jsonl:2: {reason}"]


def test_every_patient_is_accepted_or_has_a_line_and_none_quotes_the_source() -> None:
    rows = [YES, {**YES, "label": {}, "note": "Smith"}, {**YES, "consent": frozenset(), "note": "Mr Smith"}]
    problem = Problem(file="patients.jsonl", line=9, reason="not UTF-8")
    check = check_source(source(*rows, problems=(problem,)), plan())
    assert len(check.accepted) + len(check.refused) == 4
    assert "Smith" not in str([*check.refused, *check.warnings])


def test_findings_are_something_to_read() -> None:
    check = check_source(source({**YES, "note": None, "observed": (FINDING,)}), plan())
    assert (len(check.accepted), check.refused) == (1, ())


def test_identifiers_in_a_note_are_a_warning_that_quotes_nothing() -> None:
    check = check_source(source(YES, {**YES, "note": "Mr Smith, born 1998-03-12."}), plan())
    assert len(check.accepted) == 2
    assert [str(one) for one in check.warnings] == [
        "patients.jsonl:2: note: identifiers seem to be left: 1 date of birth, 1 name with a title"
    ]


def test_what_is_accepted_is_counted() -> None:
    found = dict(counts(source(YES, {"slides": (TILE, TILE), "withdrawn": True}).patients.records))
    assert found == {
        "patients": 2, "with a note": 1, "with a photo": 0, "with slides": 1, "tiles of slides": 2,
        "with findings": 0, "without any consent": 1, "withdrawn": 1, "with an answer for rare_disease": 1,
    }  # fmt: skip


@pytest.mark.data
def test_real_tiles_are_all_accepted() -> None:
    if not HISTOLOGY.is_dir():
        pytest.skip(f"no {HISTOLOGY}")
    assert tile_answers([HISTOLOGY])
    check = check_source(read_source(HISTOLOGY, key=bytes(16), consent=frozenset({"research"})))
    assert (check.kind, check.refused, check.warnings) == ("tiles", (), ())
    assert len(check.accepted) > 100
