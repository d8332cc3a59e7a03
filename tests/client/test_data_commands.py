"""Tests of consilium-site check-data, import and withdraw."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import data_commands
from client.cli import main
from client.home import SiteHome
from client.keys import Keyring
from client.patients.importers.files import MAX_NOTE_BYTES
from client.patients.importers.phenopacket_store import read_cases
from client.patients.importers.sources import read_patients
from client.patients.photos import encode_png
from client.patients.records import PatientRecord, pseudonym
from client.settings import read_settings
from common.plan_package import PlanPackage, write_package
from common.tracks import Answer, AnswerList
from tests.client.patients.importers.fhir_rows import (
    MARFAN,
    attachment,
    condition,
    consent,
    document,
    export,
    patient,
    permit,
)
from tests.fakes import tiny_plan

Run = Callable[..., tuple[int, dict[str, Any]]]

CASES = Path(__file__).parents[3] / "shared/data/phenopackets/cases.jsonl.gz"
ANSWERS = AnswerList(answers=(Answer(id="OMIM:154700", name="Marfan syndrome"),))
GOOD = {
    "schema": 1, "patient_id": "good", "note": "Tall.", "label": {"rare_disease": "OMIM:154700"},
    "consent": ["research"],
}  # fmt: skip
PACKET = {
    "id": "packet-1",
    "subject": {"id": "17", "sex": "FEMALE"},
    "phenotypicFeatures": [{"type": {"id": "HP:0001166", "label": "Arachnodactyly"}}],
    "metaData": {"created": "2024-01-01T00:00:00Z", "phenopacketSchemaVersion": "2.0"},
}


def package(folder: Path, answers: AnswerList = ANSWERS) -> Path:
    plan = tiny_plan(tracks=("rare_disease",))
    track = replace(plan.tracks[0], answers_digest=answers.digest())
    return write_package(
        PlanPackage(plan=replace(plan, tracks=(track,)), answers={"rare_disease": answers}), folder
    )


def write_patients(folder: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    (folder / "patients.jsonl").write_bytes(data + b"\n")
    return folder


def packets(folder: Path, *ids: str) -> Path:
    folder.mkdir()
    for name in ids:
        (folder / f"{name}.json").write_text(json.dumps({**PACKET, "subject": {"id": name}}))
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json; its exit status and what it says."""

    def command(*words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = main([*map(str, words), "--json"])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else {"error": printed.err}

    return command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A new home, its data folder empty."""
    (tmp_path / "data").mkdir()
    root = tmp_path / "home"
    assert main(["init", "--home", str(root), "--site", "site-a", "--data", str(tmp_path / "data")]) == 0
    return root


def key_of(home: Path) -> bytes:
    with Keyring.open(SiteHome(home), read_settings(home / "site.yaml")) as keyring:
        return keyring.pseudonym_key


def imported(home: Path) -> tuple[PatientRecord, ...]:
    found = read_patients(read_settings(home / "site.yaml").data, key=key_of(home))
    assert found.problems == ()
    return found.records


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every bad input that a hospital brings."""
    folder = tmp_path_factory.mktemp("bad")
    (tmp := folder.parent / "outside.txt").write_text("outside")
    (folder / "out.txt").symlink_to(tmp)
    (folder / "latin.txt").write_bytes("größer".encode("latin-1"))
    (folder / "empty.txt").write_text(" \n")
    (folder / "long.txt").write_text("x" * (MAX_NOTE_BYTES + 1))
    (folder / "no.png").write_text("no image")
    (folder / "cut.png").write_bytes(encode_png(np.zeros((64, 64, 3), dtype=np.uint8))[:-30])
    Image.new("1", (8_000, 8_000)).save(folder / "bomb.png")
    rows = [{**GOOD, "patient_id": f"p{number}", **change} for number, (change, _) in enumerate(BAD)]
    return write_patients(folder, GOOD, *({k: v for k, v in row.items() if v is not None} for row in rows))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"patient_id": "good"}, "patient_id: the same as line 1"),
    ({"birth_date": "2020-01-01", "seen_on": "2999-01-01"}, "a date in the future"),
    ({"photo": "no.png"}, "photo: no image of the formats"),
    ({"photo": "cut.png"}, "photo: damaged image data"),
    ({"photo": "bomb.png"}, "a decompression bomb"),
    ({"note": None, "note_file": "latin.txt"}, "note_file: not UTF-8"),
    ({"note": None, "note_file": "empty.txt"}, "note_file: expected text that is not empty"),
    ({"note": None, "note_file": "long.txt"}, f"note_file: larger than {MAX_NOTE_BYTES} bytes"),
    ({"note": None, "note_file": "out.txt"}, "note_file: expected a relative path inside the folder"),
    ({"photo": "../outside.txt"}, "photo: expected a relative path inside the folder"),
    ({"label": {"rare_disease": "OMIM:1"}}, "label: not among the 1 answers of rare_disease"),
    ({"note": None}, "expected a note, a photo, a slide or a finding, got none of them"),
    ({"surname": "Smith"}, "unknown keys: surname"),
    ({"schema": 2}, "patient: schema 2 is newer than 1"),
    ({"consent": ["treatment"]}, "consent: none for the plan's purpose, research"),
    ({"withdrawn": True}, "withdrawn: the consent was taken back"),
    ({"label": None}, "label: no answer for rare_disease"),
]


@pytest.mark.parametrize(("number", "reason"), list(enumerate(reason for _, reason in BAD)))
def test_every_bad_input_has_its_line(bad: Path, run: Run, tmp_path: Path, number: int, reason: str) -> None:
    before = snapshot(bad)
    status, report = run("check-data", bad, "--plan", package(tmp_path))
    assert (status, report["accepted"]["patients"]) == (3, 1)
    found = [one["reason"] for one in report["refused"] if one["line"] == number + 2]
    assert len(found) == 1
    assert reason in found[0]
    assert len(report["refused"]) == len(BAD)
    assert snapshot(bad) == before


def test_identifiers_left_in_notes_are_warnings_and_no_refusals(tmp_path: Path, run: Run) -> None:
    note = "Mr Smith, born 1998-03-12, tel. 0221 123456."
    status, report = run(
        "check-data", write_patients(tmp_path / "s", GOOD, {**GOOD, "patient_id": "b", "note": note})
    )
    assert (status, report["accepted"]["patients"], report["refused"]) == (0, 2, [])
    (warning,) = report["warnings"]
    assert warning == {
        "file": "patients.jsonl",
        "line": 2,
        "reason": "note: identifiers seem to be left: "
        "1 date of birth, 1 telephone number, 1 name with a title",
    }


def test_the_report_says_what_was_read_and_what_was_not(tmp_path: Path, run: Run) -> None:
    rows = [document(attachment(b"Tall.")), condition(MARFAN), condition({"system": "http://x", "code": "1"})]
    status, report = run("check-data", export(tmp_path / "fhir", *rows, consent(permit("HRESCH"))))
    assert (status, report["schema"], report["source"]) == (0, 2, "fhir")
    assert report["unread"] == {"Condition: without a code of OMIM, ORPHA, MONDO or HPO": 1}
    assert report["accepted"]["with an answer for rare_disease"] == 1


def test_tables_for_people_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [document(attachment(b"Mr Smith.")), condition({"system": "http://x", "code": "1"})]
    folder = export(tmp_path / "fhir", patient(), patient("p2"), *rows)
    assert main(["check-data", str(folder), "--consent", "research"]) == 3
    said = capsys.readouterr().out
    assert f"{folder}, fhir: 1 patients accepted, 1 refusals, 1 warnings" in said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "Patient.ndjson 2 expected a note, a photo, a slide or a finding, got none of them" in lines
    assert "Patient.ndjson 1 note: identifiers seem to be left: 1 name with a title" in lines
    assert "Condition: without a code of OMIM, ORPHA, MONDO or HPO 1" in lines
    assert "Smith" not in said


def test_a_source_that_is_unclear_is_named_by_a_person(tmp_path: Path, run: Run) -> None:
    folder = write_patients(packets(tmp_path / "s", "17"), GOOD)
    (folder / "manifest.csv").write_text("")
    status, report = run("check-data", folder)
    assert (status, "say with --as" in report["error"]) == (1, True)
    assert run("check-data", folder, "--as", "folder")[1]["source"] == "folder"
    assert run("check-data", folder, "--as", "phenopackets")[1]["source"] == "phenopackets"


@pytest.mark.parametrize(
    "words",
    [
        ["check-data", "{there}", "--as", "horoscope"],
        ["check-data", "{there}", "--as", "imported"],
        ["check-data", "{there}", "--consent", " "],
        ["import", "{there}/none", "--home", "{there}"],
        ["import", "{there}"],
        ["withdraw", "--home", "{there}"],
        ["withdraw", "a", "--list", "--home", "{there}"],
    ],
)
def test_a_command_that_makes_no_sense_is_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word.format(there=tmp_path) for word in words])
    assert ended.value.code == 2


def test_a_plan_that_is_none_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert run("check-data", write_patients(tmp_path, GOOD), "--plan", tmp_path / "plan.json")[0] == 1


def test_an_import_brings_patients_under_pseudonyms_and_leaves_the_source(
    home: Path, tmp_path: Path, run: Run
) -> None:
    folder = write_patients(tmp_path / "source", GOOD, {**GOOD, "patient_id": "b", "note": ""})
    before = snapshot(folder)
    status, report = run("import", folder, "--home", home)
    assert (status, report["accepted"]["patients"], len(report["refused"])) == (3, 1, 1)
    assert report["batch"] == str(tmp_path / "data" / "batch-0001")
    (record,) = imported(home)
    assert record.patient_id == record.case_id == pseudonym(key_of(home), "good")
    assert (record.note, record.label, record.consent) == ("Tall.", GOOD["label"], {"research"})
    assert snapshot(folder) == before
    assert b"good" not in b"".join(snapshot(tmp_path / "data").values())


def test_no_id_of_a_case_or_a_family_goes_with_a_patient(home: Path, tmp_path: Path, run: Run) -> None:
    rows = [
        {**GOOD, "patient_id": name, "case_id": f"Smith {name}", "group": "first"}
        for name in ("first", "second")
    ]
    run("import", write_patients(tmp_path / "source", *rows), "--home", home)
    one, other = imported(home)
    assert (one.case_id, other.case_id) == (one.patient_id, other.patient_id)
    assert one.group == other.group
    assert not any(
        word in data for data in snapshot(tmp_path / "data").values() for word in (b"Smith", b"first")
    )
    assert run("withdraw", "first", "--home", home)[1]["known"] == 1
    assert SiteHome(home).withdrawn_file("patients").read_text().split() == [one.patient_id]


def test_a_later_import_adds_who_is_new_and_says_who_is_there(home: Path, tmp_path: Path, run: Run) -> None:
    run("import", packets(tmp_path / "one", "17"), "--home", home, "--consent", "research")
    status, report = run(
        "import", packets(tmp_path / "two", "17", "18"), "--home", home, "--consent", "research"
    )
    assert (status, report["accepted"]["patients"]) == (3, 1)
    assert report["refused"][0]["reason"] == "patient_id: imported before, as part of batch-0001"
    assert len(imported(home)) == 2
    assert run("import", packets(tmp_path / "three", "18"), "--home", home)[0] == 1
    assert run("check-data", tmp_path / "data")[1]["accepted"]["patients"] == 2
    assert len(list((tmp_path / "data").glob("batch-*"))) == 2


def test_what_an_export_says_of_consent_comes_along(home: Path, tmp_path: Path, run: Run) -> None:
    rows = [
        patient("p1"),
        patient("p2"),
        document(attachment(b"One.")),
        document(attachment(b"Two."), of="p2"),
    ]
    folder = export(tmp_path / "fhir", *rows, consent(permit("HRESCH")), consent(of="p2", status="inactive"))
    status, report = run("import", folder, "--home", home)
    assert (status, report["left"]) == (3, 0)
    assert [one["reason"] for one in report["refused"]] == ["withdrawn: the consent was taken back"]
    assert [(one.consent, one.withdrawn) for one in imported(home)] == [({"research"}, False)]
    assert b"Two." not in b"".join(snapshot(tmp_path / "data").values())
    assert not SiteHome(home).withdrawn_file("patients").exists()
    status, report = run("import", folder, "--home", home, "--consent", "research")
    assert (status, "each patient's own consent" in report["error"]) == (1, True)


LATER: list[tuple[dict[str, Any], str]] = [
    ({"withdrawn": True}, "withdrawn: the consent was taken back at this site"),
    ({"consent": []}, "withdrawn: the consent was taken back at this site"),
    ({"consent": ["care"]}, "withdrawn: the consent was taken back at this site"),
    ({"withdrawn": True, "note": None}, "expected a note, a photo, a slide or a finding, got none of them"),
    ({"consent": None, "surname": "Smith"}, "unknown keys: surname"),
]


@pytest.mark.parametrize(("change", "reason"), LATER)
def test_whose_consent_has_ended_by_a_later_source_takes_part_no_more(
    home: Path, tmp_path: Path, run: Run, change: dict[str, Any], reason: str
) -> None:
    rows = [GOOD, {**GOOD, "patient_id": "b"}]
    run("import", write_patients(tmp_path / "one", *rows), "--home", home)
    rows[0] = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    source = write_patients(tmp_path / "two", *rows, {**GOOD, "patient_id": "c"})
    status, report = run("import", source, "--home", home)
    assert (status, report["left"], report["accepted"]["patients"]) == (3, 1, 1)
    assert [one["reason"] for one in report["refused"] if one["line"] == 1] == [reason]
    listed = SiteHome(home).withdrawn_file("patients").read_text()
    assert listed == f"{pseudonym(key_of(home), 'good')}\n"
    # Again: nobody more, and nothing new.
    assert run("import", source, "--home", home)[0] == 1
    assert SiteHome(home).withdrawn_file("patients").read_text() == listed


def test_a_later_export_that_brings_nobody_is_no_failure_where_somebody_has_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--home", str(home))
    main(["import", str(write_patients(tmp_path / "one", GOOD)), *words])
    source = write_patients(tmp_path / "two", {**GOOD, "withdrawn": True})
    capsys.readouterr()
    assert main(["import", str(source), *words]) == 3
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "left, of earlier batches 1" in said
    assert "imported nobody: no patient of the source is new" in said
    assert len(list((tmp_path / "data").glob("batch-*"))) == 1


FIRST = (patient("p1"), patient("p2"), document(attachment(b"One.")), document(attachment(b"Two."), of="p2"))
AGREED = (consent(permit("HRESCH")), consent(permit("HRESCH"), of="p2"))


@pytest.mark.parametrize(
    ("later", "left"),
    [
        ((*FIRST, AGREED[0], consent(of="p2", status="inactive")), {"p2"}),
        ((*FIRST, AGREED[0], consent({"type": "deny"}, of="p2")), {"p2"}),
        # No Consent at all, beside one of another patient.
        ((*FIRST, AGREED[0]), {"p2"}),
        # Nothing is left of the patient but the consent that was ended; then not even the patient.
        ((*FIRST[:3], AGREED[0], consent(of="p2", status="inactive")), {"p2"}),
        ((FIRST[0], FIRST[2], AGREED[0], consent(of="p2", status="inactive")), {"p2"}),
        ((*FIRST, AGREED[0], consent(of="p2", status="inactive"), {**FIRST[1], "gender": 1}), {"p2"}),
        (FIRST, set()),
        ((*FIRST, *AGREED), set()),
        # Of consents that cannot be read nobody says that they were taken back.
        ((*FIRST, AGREED[0], {"resourceType": "Consent", "id": "broken"}), set()),
    ],
)
def test_a_later_export_takes_back_what_it_says_and_silence_takes_back_nothing(
    home: Path, tmp_path: Path, run: Run, later: tuple[dict[str, Any], ...], left: set[str]
) -> None:
    assert run("import", export(tmp_path / "one", *FIRST, *AGREED), "--home", home)[0] == 0
    run("import", export(tmp_path / "two", *later), "--home", home)
    listed = SiteHome(home).withdrawn_file("patients")
    found = set(listed.read_text().split()) if listed.exists() else set()
    assert found == {pseudonym(key_of(home), one) for one in left}


def test_a_source_that_says_nothing_of_consent_takes_none_back(home: Path, tmp_path: Path, run: Run) -> None:
    run("import", packets(tmp_path / "one", "17"), "--home", home, "--consent", "research")
    assert run("import", packets(tmp_path / "two", "17", "18"), "--home", home)[1]["left"] == 0
    assert not SiteHome(home).withdrawn_file("patients").exists()


MONDO = {"system": "http://purl.obolibrary.org/obo/mondo.owl", "code": "MONDO:0007947"}


def test_an_import_for_a_plan_takes_the_answers_that_the_plan_has(
    home: Path, tmp_path: Path, run: Run
) -> None:
    of_mondo = AnswerList(answers=(Answer(id="MONDO:0007947", name="Marfan syndrome"),))
    both = condition(MARFAN)
    both["code"]["coding"].append(MONDO)
    rows = [*FIRST, *AGREED, both, condition(MARFAN, of="p2")]
    words = ("--home", home, "--plan", package(tmp_path, of_mondo))
    status, report = run("import", export(tmp_path / "fhir", *rows), *words)
    assert (status, report["accepted"]["patients"]) == (3, 1)
    assert "code: not among the plan's 1 answers" in [one["reason"] for one in report["refused"]]
    assert [one.label for one in imported(home)] == [{"rare_disease": "MONDO:0007947"}]
    (tmp_path / "plan.json").write_text("{}")
    words = ("--home", home, "--plan", tmp_path / "plan.json")
    assert run("import", tmp_path / "fhir", *words)[0] == 1


@pytest.mark.parametrize("name", ["patients.jsonl", "manifest.csv", "Patient.ndjson", "1.json"])
def test_a_data_folder_with_patients_of_its_own_is_left_alone(
    home: Path, tmp_path: Path, run: Run, name: str
) -> None:
    (tmp_path / "data" / name).write_text("")
    status, report = run("import", write_patients(tmp_path / "source", GOOD), "--home", home)
    assert (status, "it holds patients of its own" in report["error"]) == (1, True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]


def test_a_folder_is_not_imported_into_itself_nor_twice_over(home: Path, tmp_path: Path, run: Run) -> None:
    run("import", write_patients(tmp_path / "source", GOOD), "--home", home)
    assert "it is the source, too" in run("import", tmp_path / "data", "--home", home)[1]["error"]
    (tmp_path / "copy").mkdir()
    (tmp_path / "data" / "batch-0001").rename(tmp_path / "copy" / "batch-0001")
    assert "written by an import itself" in run("import", tmp_path / "copy", "--home", home)[1]["error"]


def test_an_import_for_people_says_where_it_went(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(write_patients(tmp_path / "source", GOOD)), "--home", str(home)]) == 0
    assert f"1 patients into {tmp_path / 'data' / 'batch-0001'}" in capsys.readouterr().out


def test_who_withdrew_is_listed_once_under_a_pseudonym(home: Path, tmp_path: Path, run: Run) -> None:
    run("import", write_patients(tmp_path / "source", GOOD), "--home", home)
    status, report = run("withdraw", "good", "--home", home)
    assert (status, report) == (0, {"schema": 1, "cohort": "patients", "new": 1, "known": 1, "unknown": 0})
    listed = pseudonym(key_of(home), "good")
    assert SiteHome(home).withdrawn_file("patients").read_text() == f"{listed}\n"
    for again in (["good"], [listed], ["good", listed]):
        report = run("withdraw", *again, "--home", home)[1]
        assert (report["new"], report["known"], report["unknown"]) == (0, 1, 0)
    report = run("withdraw", "--list", "--home", home)[1]
    assert report == {"schema": 1, "cohort": "patients", "withdrawn": 1, "known": 1}


def test_whoever_is_not_known_is_listed_all_the_same(home: Path, tmp_path: Path, run: Run) -> None:
    status, report = run("withdraw", "someone", "--home", home)
    assert (status, report["new"], report["known"], report["unknown"]) == (3, 1, 0, 1)
    run("withdraw", "good", "--home", home)
    rows = [GOOD, {**GOOD, "patient_id": "b"}]
    status, report = run("import", write_patients(tmp_path / "source", *rows), "--home", home)
    assert (status, report["refused"][0]["reason"]) == (
        3,
        "withdrawn: the consent was taken back at this site",
    )
    assert [one.patient_id for one in imported(home)] == [pseudonym(key_of(home), "b")]


def test_ids_may_come_by_standard_input(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_commands.sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert run("withdraw", "-", "--home", home)[1]["new"] == 2


def test_a_patient_of_several_images_withdraws_all_of_them(home: Path, tmp_path: Path, run: Run) -> None:
    key = key_of(home)
    family = pseudonym(key, "source/p1")
    rows = [{**GOOD, "patient_id": name, "group": family} for name in ("image 1", "image 2")]
    run("import", write_patients(tmp_path / "source", *rows, GOOD), "--home", home)
    run("withdraw", "source/p1", "--home", home)
    listed = SiteHome(home).withdrawn_file("patients").read_text().split()
    assert set(listed) == {family, pseudonym(key, "image 1"), pseudonym(key, "image 2")}


def test_an_id_that_looks_like_a_pseudonym_withdraws_whoever_has_it(
    home: Path, tmp_path: Path, run: Run
) -> None:
    name = "ab" * 32
    run("import", write_patients(tmp_path / "source", {**GOOD, "patient_id": name}), "--home", home)
    report = run("withdraw", name, "--home", home)[1]
    assert (report["new"], report["known"], report["unknown"]) == (1, 1, 0)
    assert run("withdraw", "--list", "--home", home)[1]["known"] == 1
    source = write_patients(tmp_path / "again", {**GOOD, "patient_id": name}, {**GOOD, "patient_id": "b"})
    assert run("import", source, "--home", home)[1]["accepted"]["patients"] == 1


def test_people_are_told_how_many_and_never_who(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["withdraw", "Smith", "--home", str(home)]) == 3
    assert main(["withdraw", "--list", "--home", str(home)]) == 0
    said = capsys.readouterr()
    assert "1 patients more; 0 of those named are in" in said.out
    assert "nobody is known: " in said.err
    assert "Smith" not in said.out + said.err
    assert pseudonym(key_of(home), "Smith") not in said.out + said.err


def test_an_id_that_is_none_is_refused_before_anything_is_written(home: Path, run: Run) -> None:
    assert run("withdraw", "good", "# bad", "--home", home)[0] == 1
    assert not SiteHome(home).withdrawn_file("patients").exists()


@pytest.mark.data
def test_real_cases_are_checked_and_imported_whole(home: Path, tmp_path: Path, run: Run) -> None:
    if not CASES.exists():
        pytest.skip(f"no {CASES}")
    records = read_cases(CASES, key=bytes(16)).records[:300]
    folder = tmp_path / "packets"
    folder.mkdir()
    for number, record in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(packet(record)))
    words = ("--consent", "research")
    status, report = run("check-data", folder, *words)
    assert (status, report["source"], report["refused"], report["warnings"]) == (0, "phenopackets", [], [])
    assert run("import", folder, "--home", home, *words)[0] == 0
    for read, record in zip(sorted(imported(home), key=note), sorted(records, key=note), strict=True):
        assert (read.label, read.sex, read.age) == (record.label, record.sex, record.age)
        assert set(read.observed) == set(record.observed)


def note(record: PatientRecord) -> str:
    return repr(
        (sorted(record.label.items()), record.sex, record.age, sorted(one.id for one in record.observed))
    )


def packet(record: PatientRecord) -> dict[str, Any]:
    """A published case, as a hospital would export it."""
    (disease,) = record.label.values()
    features = [
        {"type": {"id": one.id, "label": one.label}, "excluded": excluded, **onset(one.onset)}
        for findings, excluded in ((record.observed, False), (record.excluded, True))
        for one in findings
    ]
    seen = {"timeAtLastEncounter": age(record.age)} if record.age else {}
    sex = record.sex.upper() + ("_SEX" if record.sex in ("other", "unknown") else "")
    return {
        "id": record.case_id,
        "subject": {"id": record.case_id, "sex": sex, **seen},
        "phenotypicFeatures": features,
        "diseases": [{"term": {"id": disease, "label": "as published"}}],
        "metaData": PACKET["metaData"],
    }


def onset(text: str | None) -> dict[str, Any]:
    return {} if text is None else {"onset": age(text)}


def age(text: str) -> dict[str, Any]:
    if text.startswith("HP:"):
        return {"ontologyClass": {"id": text.partition(" ")[0], "label": text.partition(" ")[2]}}
    if text.startswith("GA"):
        weeks, _, days = text[2:-1].partition("w")
        return {"gestationalAge": {"weeks": int(weeks), "days": int(days)}}
    return {"age": {"iso8601duration": text}}
