"""A site's patients as a plan loads them; the rest of it is looked at in test_hosting.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client.loaded_plan import read_site
from client.patients.importers.batches import add_batch
from client.patients.importers.folder import write_folder
from client.patients.records import PatientRecord, PatientSet, Place, pseudonym
from client.patients.splits import split_by_patient
from client.site_patients import SitePatients
from common.calibration_plan import CalibrationPlan
from tests.client.homes import ANSWERS, packaged, site_settings
from tests.fakes import tiny_plan

KEY = bytes(range(32))
PACKAGE = packaged(tiny_plan())


def records(*numbers: int) -> tuple[PatientRecord, ...]:
    return tuple(
        PatientRecord(
            patient_id=(name := pseudonym(KEY, f"p{number}")),
            case_id=name,
            note="Tall.",
            label={"rare_disease": ANSWERS.answers[number % 2].id},
        )
        for number in numbers
    )


def bring_in(data: Path, *numbers: int) -> None:
    places = tuple(Place(file="patients.jsonl", line=line) for line in numbers)
    add_batch(data, PatientSet(records=records(*numbers), places=places), kind="folder", key=KEY)


def sides(site: SitePatients) -> dict[str, str]:
    return {
        record.patient_id: side
        for side, part in (("train", site.train), ("test", site.test))
        for record in part
    }


def test_nobody_moves_from_one_side_to_the_other_when_another_batch_is_imported(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, test_share=0.25)
    before: dict[str, str] = {}
    for batch in (range(40), range(40, 43), range(43, 80)):
        bring_in(settings.data, *batch)
        now = sides(read_site(settings, PACKAGE, key=KEY))
        assert before.items() <= now.items()
        before = now
    assert list(before.values()).count("test") == 20
    # All at once they are split in another way: without the batches somebody would have moved.
    whole = split_by_patient(records(*range(80)), {"train": 0.75, "test": 0.25}, PACKAGE.plan.seed)
    assert {record.patient_id for record in whole["test"]} != {
        one for one, side in before.items() if side == "test"
    }


def test_one_batch_and_a_folder_of_the_sites_own_are_split_like_a_simulations_patients(
    tmp_path: Path,
) -> None:
    settings = site_settings(tmp_path, test_share=0.25)
    bring_in(settings.data, *range(30))
    parts = split_by_patient(records(*range(30)), {"train": 0.75, "test": 0.25}, PACKAGE.plan.seed)
    found = read_site(settings, PACKAGE, key=KEY)
    assert [one.patient_id for one in found.test] == [one.patient_id for one in parts["test"]]
    own = site_settings(tmp_path, data=tmp_path / "own", test_share=0.25)
    write_folder(own.data, records(*range(30)))
    hashed = [
        PatientRecord(patient_id=pseudonym(KEY, one.patient_id), case_id="c", note="n", label=one.label)
        for one in records(*range(30))
    ]
    parts = split_by_patient(hashed, {"train": 0.75, "test": 0.25}, PACKAGE.plan.seed)
    found = read_site(own, PACKAGE, key=KEY)
    assert [one.patient_id for one in found.test] == [one.patient_id for one in parts["test"]]


def test_what_a_plan_sets_aside_comes_from_training_alone_and_moves_nobody(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, test_share=0.25)
    cft = CalibrationPlan(method="cft", share=0.3, rounds=1)
    calibrated = packaged(tiny_plan(calibration=cft))
    aside: set[str] = set()
    for batch in (range(60), range(60, 120)):
        bring_in(settings.data, *batch)
        plain, found = (read_site(settings, package, key=KEY) for package in (PACKAGE, calibrated))
        assert found.test == plain.test
        assert sorted((*found.train, *found.calibration), key=plain.train.index) == list(plain.train)
        assert plain.calibration == ()
        now = {record.patient_id for record in found.calibration}
        assert aside < now
        aside = now
    assert 0.1 < len(aside) / 90 < 0.5


def test_who_has_no_answer_for_a_calibrated_track_is_not_set_aside(tmp_path: Path) -> None:
    settings = site_settings(tmp_path, test_share=0.25)
    bring_in(settings.data, *range(40))
    both = tiny_plan(tracks=("rare_disease", "tissue_type"))
    cft = CalibrationPlan(method="cft", share=0.5, rounds=1)
    other = replace(both, tracks=(both.tracks[0], replace(both.tracks[1], calibration=cft)))
    assert read_site(settings, packaged(other), key=KEY).calibration == ()
