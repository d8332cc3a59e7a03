"""Which importer reads a folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from client.patients.importers.sources import Kind, is_empty, kind_of, read_patients, read_source
from client.patients.photos import encode_png
from client.patients.records import pseudonym
from common.errors import BadFileError, UnclearSourceError
from common.tracks import Answer, AnswerList

KEY = bytes(range(32))
PACKET = {
    "id": "packet-1",
    "subject": {"id": "17", "sex": "FEMALE"},
    "phenotypicFeatures": [{"type": {"id": "HP:0001166", "label": "Arachnodactyly"}}],
    "metaData": {"created": "2024-01-01T00:00:00Z", "phenopacketSchemaVersion": "2.0"},
}
ORGANS = AnswerList(answers=(Answer(id="organ:breast", name="breast"),))


def write(folder: Path, name: str, text: str = "") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def tiles(folder: Path) -> Path:
    image = encode_png(np.zeros((4, 4, 3), dtype=np.uint8))
    (folder / "1.png").write_bytes(image)
    import hashlib

    row = f"1.png,s,g,tumor,breast,,,{hashlib.sha256(image).hexdigest()}"
    return write(folder, "manifest.csv", f"file,source,group,tissue,organ,slide,patient,sha256\n{row}\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("patients.jsonl", "folder"),
        ("manifest.csv", "tiles"),
        ("manifest.csv.gz", "tiles"),
        ("Patient.ndjson", "fhir"),
        ("1.Condition.ndjson.gz", "fhir"),
        ("cohort/1.json", "phenopackets"),
        ("batch-0001/imported.json", "imported"),
    ],
)
def test_the_kind_is_found_from_what_lies_in_the_folder(tmp_path: Path, name: str, kind: Kind) -> None:
    assert kind_of(write(tmp_path, name)) == kind


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "found none of them"),
        (("notes.txt",), "found none of them"),
        (("patients.jsonl", "manifest.csv"), "found both folder and tiles, say with --as which is meant"),
    ],
)
def test_a_folder_of_no_kind_or_of_several_is_refused(
    tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    for name in names:
        write(tmp_path, name)
    with pytest.raises(UnclearSourceError, match=found):
        kind_of(tmp_path)


def test_hidden_folders_hold_no_packets(tmp_path: Path) -> None:
    write(tmp_path, ".git/1.json", json.dumps(PACKET))
    with pytest.raises(UnclearSourceError, match="found none of them"):
        kind_of(tmp_path)
    assert is_empty(tmp_path)
    write(tmp_path, "cohort/1.json", json.dumps(PACKET))
    assert [place.file for place in read_patients(tmp_path, key=KEY).places] == ["cohort/1.json"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="expected a folder of patients"):
        kind_of(tmp_path / "none")


def test_a_named_kind_is_taken(tmp_path: Path) -> None:
    write(tiles(tmp_path), "patients.jsonl", '{"schema": 1, "patient_id": "17", "note": "Tall."}\n')
    assert read_source(tmp_path, key=KEY, kind="folder").patients.records[0].note == "Tall."
    assert read_source(tmp_path, key=KEY, kind="tiles").patients.records[0].slides


def test_a_hospitals_own_ids_are_never_read_without_a_key(tmp_path: Path) -> None:
    write(tmp_path, "patients.jsonl", '{"schema": 1, "patient_id": "17", "note": "Tall."}\n')
    (record,) = read_patients(tmp_path, key=KEY).records
    assert record.patient_id == pseudonym(KEY, "17")
    with pytest.raises(ValueError, match="Expected a key"):
        read_patients(tmp_path, key=None)


def test_the_site_says_what_phenopackets_and_tiles_do_not_say_of_consent(tmp_path: Path) -> None:
    write(tmp_path / "packets", "17.json", json.dumps(PACKET))
    (tmp_path / "tiles").mkdir()
    for folder in (tmp_path / "packets", tiles(tmp_path / "tiles")):
        (agreed,) = read_source(folder, key=KEY, consent=frozenset({"research"})).patients.records
        (silent,) = read_source(folder, key=KEY).patients.records
        assert (agreed.consent, silent.consent) == ({"research"}, frozenset())


def test_a_folder_that_says_it_for_each_patient_takes_no_consent_for_all(tmp_path: Path) -> None:
    write(tmp_path, "patients.jsonl", '{"schema": 1, "patient_id": "17", "note": "Tall."}\n')
    with pytest.raises(BadFileError, match="each patient's own consent is in the folder"):
        read_source(tmp_path, key=KEY, consent=frozenset({"research"}))


def test_tiles_are_labeled_at_the_level_of_the_plans_answers(tmp_path: Path) -> None:
    folder = tiles(tmp_path)
    (tissue,) = read_patients(folder, key=KEY).records
    (organ,) = read_patients(folder, key=KEY, answers={"tissue_type": ORGANS}).records
    assert (tissue.label, organ.label) == ({"tissue_type": "tissue:tumor"}, {"tissue_type": "organ:breast"})
