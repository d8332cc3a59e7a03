"""What a site imported, batch by batch."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest

from client.patients.importers import batches
from client.patients.importers.batches import (
    LOCK_FILE,
    add_batch,
    batches_of,
    key_mark,
    read_batches,
    read_marker,
)
from client.patients.importers.sources import is_empty, kind_of, read_patients
from client.patients.photos import ImageRef, encode_png
from client.patients.records import PatientRecord, PatientSet, Place, Problem, pseudonym
from common.errors import BadFileError, ImportRefusedError, UnclearSourceError, UnsupportedSchemaError

KEY, OTHER = bytes(range(32)), bytes(32)
TODAY = date(2026, 6, 30)
BAD = Problem(file="patients.jsonl", line=9, reason="not UTF-8")


def record(name: str, **more: Any) -> PatientRecord:
    patient_id = pseudonym(KEY, name)
    return PatientRecord(**{"patient_id": patient_id, "case_id": patient_id, "note": f"Note {name}.", **more})


def patients(*names: str, problems: tuple[Problem, ...] = ()) -> PatientSet:
    places = tuple(Place(file="patients.jsonl", line=line) for line in range(1, len(names) + 1))
    return PatientSet(records=tuple(record(name) for name in names), problems=problems, places=places)


def add(folder: Path, found: PatientSet, key: bytes = KEY) -> tuple[Path, PatientSet]:
    return add_batch(folder, found, kind="folder", key=key, today=TODAY)


def test_what_was_imported_is_read_back_without_hashing_again(tmp_path: Path) -> None:
    image = ImageRef(array=np.full((4, 4, 3), 7, dtype=np.uint8))
    whole = record("a", photo=image, slides=(image,), label={"rare_disease": "OMIM:1"})
    found = PatientSet(records=(whole,), places=(Place(file="p", line=1),))
    place, _ = add(tmp_path / "data", found)
    assert place == tmp_path / "data" / "batch-0001"
    assert kind_of(tmp_path / "data") == "imported"
    for key in (KEY, None):
        (back,) = read_patients(tmp_path / "data", key=key).records
        assert (back.patient_id, back.note, back.label) == (whole.patient_id, whole.note, whole.label)
        assert back.photo is not None
        assert np.array_equal(back.photo.pixels(), image.pixels())
    assert oct(place.stat().st_mode & 0o777) == "0o700"


def test_a_batch_says_what_it_is_and_nothing_of_its_key(tmp_path: Path) -> None:
    place, _ = add(tmp_path, patients("a", "b", problems=(BAD,)))
    marker = json.loads((place / "imported.json").read_text())
    assert marker == {
        "schema": 1, "kind": "folder", "day": "2026-06-30", "patients": 2, "refused": 1, "key": key_mark(KEY)
    }  # fmt: skip
    assert read_marker(place).patients == 2
    assert marker["key"] not in (KEY.hex(), pseudonym(KEY, "a"))


def test_another_import_adds_a_batch_with_the_patients_that_are_new(tmp_path: Path) -> None:
    add(tmp_path, patients("a", "b"))
    before = (tmp_path / "batch-0001/patients.jsonl").read_bytes()
    place, fresh = add(tmp_path, patients("b", "c"))
    assert place.name == "batch-0002"
    assert [one.patient_id for one in fresh.records] == [pseudonym(KEY, "c")]
    assert [str(one) for one in fresh.problems] == [
        "patients.jsonl:1: patient_id: imported before, as part of batch-0001"
    ]
    assert (tmp_path / "batch-0001/patients.jsonl").read_bytes() == before
    assert len(read_batches(tmp_path, key=KEY).records) == 3


def test_an_import_of_nothing_new_is_refused(tmp_path: Path) -> None:
    add(tmp_path, patients("a"))
    for found in (patients("a"), patients(problems=(BAD,))):
        with pytest.raises(ImportRefusedError, match="nothing was imported: no patient of the source"):
            add(tmp_path, found)
    assert len(batches_of(tmp_path)) == 1


def test_a_folder_of_the_sites_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "patients.jsonl").write_text("")
    with pytest.raises(ImportRefusedError, match=r"it holds the site's own patients\.jsonl"):
        add(tmp_path, patients("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["patients.jsonl"]


def test_an_import_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encode_png(np.zeros((4, 4, 3), dtype=np.uint8)))
    gone = record("b", photo=ImageRef(path=tmp_path / "1.png"))
    (tmp_path / "1.png").unlink()
    found = PatientSet(records=(record("a"), gone), places=(Place(file="p", line=1), Place(file="p", line=2)))
    with pytest.raises(BadFileError, match="missing"):
        add(tmp_path / "data", found)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [LOCK_FILE]


def test_what_a_killed_import_left_is_removed_by_the_next_and_read_by_nobody(tmp_path: Path) -> None:
    left = tmp_path / ".batch-0001.0a1b2c3d.partial"
    left.mkdir()
    (left / "imported.json").write_text("{}")
    (left / "patients.partial").write_text("A note.")
    assert is_empty(tmp_path)
    with pytest.raises(UnclearSourceError, match="found none of them"):
        kind_of(tmp_path)
    add(tmp_path, patients("a"))
    assert not left.exists()
    left.mkdir()
    # Also where nothing is imported then.
    with pytest.raises(ImportRefusedError):
        add(tmp_path, patients("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, "batch-0001"]


def test_an_import_does_not_remove_what_another_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, write = Barrier(2), batches.write_folder

    def meet(folder: Path, records: Any) -> None:
        # Who is writing waits for another one who is, who must not come.
        with suppress(BrokenBarrierError):
            meeting.wait(timeout=0.5)
        write(folder, records)

    monkeypatch.setattr(batches, "write_folder", meet)
    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(lambda name: add(tmp_path, patients(name))[0].name, ("a", "b")))
    assert sorted(places) == ["batch-0001", "batch-0002"]
    assert len(read_batches(tmp_path, key=KEY).records) == 2


def test_a_batch_that_is_there_is_whole_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = ImageRef(array=np.full((4, 4, 3), 7, dtype=np.uint8))
    synced: set[str] = set()
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    def check(path: Path, target: Path) -> Path:
        names = {str(one.relative_to(path)) for one in path.rglob("*")}
        assert names == {"imported.json", "patients.jsonl", "photos", "photos/000001.png"}
        # Under the names that they were written by.
        files = {*names - {"patients.jsonl", "imported.json"}, "patients.partial"}
        assert {str(path), *(str(path / name) for name in files)} <= synced
        assert any(f"{path}/.imported.json." in one for one in synced)
        synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", check)
    add(tmp_path, PatientSet(records=(record("a", photo=image),), places=(Place(file="p", line=1),)))
    assert synced == {str(tmp_path)}


def test_another_import_at_the_same_time_keeps_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(folder: Path, records: Any) -> None:
        (tmp_path / "batch-0001").mkdir()
        (tmp_path / "batch-0001" / "imported.json").write_text("theirs")
        folder.joinpath("patients.jsonl").touch()

    monkeypatch.setattr(batches, "write_folder", meanwhile)
    with pytest.raises(OSError, match="not empty"):
        add(tmp_path, patients("a"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, "batch-0001"]
    assert (tmp_path / "batch-0001" / "imported.json").read_text() == "theirs"


def test_pseudonyms_of_another_key_are_refused(tmp_path: Path) -> None:
    add(tmp_path, patients("a"))
    with pytest.raises(BadFileError, match="another key for pseudonyms"):
        read_batches(tmp_path, key=OTHER)
    with pytest.raises(BadFileError, match="another key for pseudonyms"):
        add(tmp_path, patients("b"), key=OTHER)


def test_a_batch_that_lost_patients_since_it_was_written_has_a_problem(tmp_path: Path) -> None:
    place, _ = add(tmp_path, patients("a", "b"))
    lines = (place / "patients.jsonl").read_text().splitlines()
    (place / "patients.jsonl").write_text(lines[0] + "\n")
    found = read_batches(tmp_path, key=KEY)
    assert [str(one) for one in found.problems] == ["batch-0001/patients.jsonl: expected 2 patients, got 1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, r"imported\.json: schema 2 is newer than 1"),
        ({"schema": None}, "expected a number from 1 to 1"),
        ({"patients": "2"}, "expected a whole number as patients"),
        ({"patients": True}, "expected a whole number as patients"),
        ({"day": "yesterday"}, "expected a day as YYYY-MM-DD"),
        ({"more": 1}, "expected kind, day, key, patients and refused, nothing else"),
    ],
)
def test_a_marker_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    place, _ = add(tmp_path, patients("a"))
    marker = json.loads((place / "imported.json").read_text())
    (place / "imported.json").write_text(json.dumps({**marker, **change}))
    with pytest.raises((BadFileError, UnsupportedSchemaError), match=reason):
        read_patients(tmp_path, key=KEY)


def test_a_batch_that_no_import_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "batch-0001").mkdir()
    with pytest.raises(BadFileError, match="no import wrote this batch"):
        read_patients(tmp_path, key=KEY)
