"""Tests of what is known of the cases of a run."""

import json
from pathlib import Path

import pytest

from common.errors import BadFileError, UnsupportedSchemaError
from simulations.cases import Case, cases_path, known_cases, read_cases, write_cases
from simulations.comparisons import test_cases as cases_of
from tests.simulations.made_up import TRACK, made_cases
from tests.simulations.small import small_population


def test_cases_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_cases(tmp_path, TRACK, made_cases())
    assert read_cases(tmp_path, TRACK) == made_cases()
    assert cases_path(tmp_path, TRACK).stat().st_mode & 0o077 == 0


def test_cases_are_in_the_order_of_predictions_and_name_the_sites_that_know_the_answer() -> None:
    population = small_population()
    found = known_cases(population)
    union = cases_of(population.test, population)
    assert [case.case_id for case in found] == [case.case_id for case in union]
    track = population.track.name
    for case, own in zip(union, found, strict=True):
        assert case.record.patient_id in {r.patient_id for r in population.sites[own.site].test}
        knowing = {
            site
            for site, patients in population.sites.items()
            if case.record.label[track] in {record.label[track] for record in patients.train}
        }
        assert set(own.own_sites) == knowing
    assert any(len(case.own_sites) < len(population.sites) for case in found)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": 99}, UnsupportedSchemaError),
        ({"cases": [{"case_id": "a"}]}, BadFileError),
        ({"cases": [{"case_id": "a", "part": "both", "patient": "a", "own_sites": []}]}, BadFileError),
        ({"cases": [{"case_id": "a", "part": "new", "patient": "a", "own_sites": []}] * 2}, BadFileError),
    ],
)
def test_damaged_cases_are_refused(tmp_path: Path, change: dict[str, object], error: type[Exception]) -> None:
    write_cases(tmp_path, TRACK, [Case(case_id="a", part="new", patient="a")])
    path = cases_path(tmp_path, TRACK)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error):
        read_cases(tmp_path, TRACK)
