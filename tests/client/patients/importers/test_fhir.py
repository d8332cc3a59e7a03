"""FHIR bulk exports."""

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.patients.ages import onset_class
from client.patients.importers.fhir import FhirRead, read_fhir
from client.patients.records import Finding, PatientRecord, pseudonym
from client.patients.slides import Tiling
from common.errors import BadFileError
from common.tracks import Answer, AnswerList
from tests.client.patients.importers.fhir_rows import (
    LENS,
    LOINC,
    LONG,
    MARFAN,
    ORPHA_MARFAN,
    PIXELS,
    PNG,
    Row,
    about,
    attachment,
    code,
    concept,
    condition,
    consent,
    document,
    encounter,
    endpoint,
    export,
    imaging,
    media,
    observation,
    patient,
    permit,
    write_lines,
)
from tests.client.patients.slide_files import patches, write_tiff

KEY = bytes(range(32))
TODAY = date(2026, 6, 30)
LESS = "the manifest says 9 resources, the file has 1"
ANSWERS = AnswerList(answers=(Answer(id="OMIM:154700", name="Marfan"), Answer(id="ORPHA:1", name="One")))
NOTE = document(attachment(b"A tall girl."))


def read(
    folder: Path, *rows: Row | str, answers: AnswerList | None = None, **files: list[Row | str]
) -> FhirRead:
    return read_fhir(export(folder, *rows, **files), key=KEY, answers=answers, today=TODAY)


def one(folder: Path, *rows: Row | str, **more: Any) -> PatientRecord:
    found = read(folder, *rows, **more)
    assert found.patients.problems == ()
    (record,) = found.patients.records
    return record


def refusal(folder: Path, *rows: Row | str, **more: Any) -> str:
    """The one problem of the one patient, who is left out for it."""
    found = read(folder, *rows, **more)
    assert found.patients.records == ()
    *own, left_out = found.patients.problems
    assert "left out: 1 resources of this patient were refused" in left_out.reason
    (problem,) = own
    assert "Smith" not in str(problem)
    return str(problem)


def test_a_patient_with_everything_is_read(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "slide 1.png")
    record = one(
        tmp_path,
        patient(deceasedDateTime="2020-01"),
        encounter(period={"start": "2016-11", "end": "2016-11-20T09:00:00-05:00"}),
        condition(MARFAN, ORPHA_MARFAN, onsetDateTime="2012-05-20"),
        condition(
            LONG, onsetAge={"value": 2, "unit": "years", "system": "http://unitsofmeasure.org", "code": "a"}
        ),
        observation(LENS, valueBoolean=False),
        document(attachment(b"<p>no</p>", "text/html"), attachment("Größer.\r\n".encode())),
        document(attachment(b"First."), date="2012-01-01T00:00:00Z"),
        media(attachment(PNG, "image/png"), createdDateTime="2013-01-01"),
        imaging("slide%201.png"),
        consent(permit("HRESCH")),
    )
    assert record == PatientRecord(
        patient_id=pseudonym(KEY, "p1"),
        case_id=pseudonym(KEY, "p1"),
        sex="female",
        age="P6Y6M",
        onset="P2Y",
        deceased=True,
        observed=(Finding(id="HP:0001166", label="Arachnodactyly", onset="P2Y"),),
        excluded=(Finding(id="HP:0001083", label="Ectopia lentis"),),
        note="First.\n\nGrößer.",
        photo=record.photo,
        slides=record.slides,
        label={"rare_disease": "OMIM:154700"},
        consent=frozenset({"research"}),
    )
    assert record.photo is not None
    assert np.array_equal(record.photo.pixels(), PIXELS)
    assert np.array_equal(record.slides[0].pixels(), PIXELS)


def test_no_name_number_address_or_date_is_in_a_record(tmp_path: Path) -> None:
    record = one(tmp_path, patient(), NOTE)
    text = json.dumps({key: str(value) for key, value in vars(record).items()})
    for word in ("Smith", "Jane", "MRN", "Main", "02114", "2010", "555", "2016", "'p1'"):
        assert word not in text


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1", "Patient/p1/_history/2", "https://ehr.example/fhir/R4/Patient/p1",
        "http://x/Patient/p1/_history/1",
    ],
)  # fmt: skip
def test_a_reference_may_be_relative_or_an_address(tmp_path: Path, reference: str) -> None:
    assert one(tmp_path, {**NOTE, "subject": {"reference": reference}}).note == "A tall girl."


def test_a_reference_may_be_a_uuid(tmp_path: Path) -> None:
    name = "b426b062-8273-4b93-a907-de3176c0567d"
    note = {**NOTE, "subject": {"reference": f"urn:uuid:{name}"}}
    assert one(tmp_path, patient(name), note).patient_id == pseudonym(KEY, name)


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (about("p2"), "subject: no such patient in the export"),
        ({"reference": "Group/1"}, "subject: expected Patient/ID, an address that ends so, or urn:uuid:ID"),
        ({"reference": "#Smith"}, "subject: expected Patient/ID, an address that ends so, or urn:uuid:ID"),
        ({"display": "Smith"}, "subject: expected a reference to a patient"),
    ],
)
def test_a_resource_of_nobody_known_is_a_problem(tmp_path: Path, subject: Row, reason: str) -> None:
    found = read(tmp_path, NOTE, {**NOTE, "subject": subject})
    assert [str(problem) for problem in found.patients.problems] == [f"DocumentReference.ndjson:2: {reason}"]
    assert len(found.patients.records) == 1


def test_files_of_a_type_may_be_many_and_packed_and_named_by_a_manifest(tmp_path: Path) -> None:
    write_lines(tmp_path / "1.Patient.ndjson", patient("p1"))
    write_lines(tmp_path / "2.Patient.ndjson.gz", patient("p2"), "")
    write_lines(tmp_path / "part-0.ndjson", document(attachment(b"One."), of="p1"))
    write_lines(tmp_path / "7.ndjson", document(attachment(b"Two."), of="p2"))
    output = [
        {"type": "Patient", "url": "https://ehr.example/bulk/1.Patient.ndjson", "count": 1},
        {"type": "Patient", "url": "https://ehr.example/bulk/2.Patient.ndjson"},
        {"type": "DocumentReference", "url": "https://ehr.example/bulk/part-0.ndjson?token=x", "count": 1},
    ]
    (tmp_path / "output.json").write_text(json.dumps({"transactionTime": "2026-01-01", "output": output}))
    found = read_fhir(tmp_path, key=KEY, today=TODAY).patients
    assert found.problems == ()
    assert [record.note for record in found.records] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([{"type": "Patient", "url": "x/Patient.ndjson", "count": 9}], LESS),
        ([{"type": "Media", "url": "x/Media_2.ndjson"}], "output[0]: a file that is not in the folder"),
        ([{"url": "x"}], "output[0]: expected a type and a url"),
        ("Smith", "output: expected a list of files"),
    ],
)  # fmt: skip
def test_an_export_that_lacks_a_part_says_so(tmp_path: Path, output: Any, reason: str) -> None:
    (tmp_path / "output.json").write_text(json.dumps({"output": output}))
    assert [problem.reason for problem in read(tmp_path, NOTE).patients.problems] == [reason]


def test_every_resource_is_used_listed_or_counted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        patient("p1"),
        patient("p2", Smith="Smith"),
        NOTE,
        document(attachment(b"x"), of="p2"),
        document(attachment(b"%PDF", "application/pdf")),
        {**NOTE, "status": "superseded"},
        {**NOTE, "docStatus": "preliminary"},
        observation(code("8480-6", LOINC), valueQuantity={"value": 120}),
        observation(LONG, status="entered-in-error"),
        observation(LONG, dataAbsentReason=concept(code("asked-unknown"))),
        condition(code("38341003")),
        condition(MARFAN, status="provisional"),
        condition(MARFAN, status="entered-in-error"),
        condition(MARFAN, status=None),
        encounter(status="planned", start="2030-01-01"),
        {**encounter(), "period": None},
        media(attachment(b"x", "video/mp4")),
        media(attachment(PNG, "image/png"), bodySite=concept(code("7569003"))),
        media(attachment(PNG, "image/png"), createdDateTime="2012"),
        media(attachment(PNG, "image/png"), createdDateTime="2013"),
        imaging("x", modality="CT"),
        {**imaging("x"), "endpoint": []},
        consent(permit("HRESCH"), status="draft"),
        Procedure=[{"resourceType": "Procedure"}] * 3,
        Binary=["not even JSON"],
    )
    assert [str(problem) for problem in found.patients.problems] == [
        "Patient.ndjson:2: resource: a key that FHIR R4B does not have"
    ]
    assert len(found.patients.records) == 1
    assert found.unread == {
        "Binary": 1,
        "Condition: not confirmed": 3,
        "Condition: without a code of OMIM, ORPHA, MONDO or HPO": 1,
        "Consent: a draft, or entered in error": 1,
        "DocumentReference: not current": 1,
        "DocumentReference: not final": 1,
        "DocumentReference: of a patient who was refused": 1,
        "DocumentReference: without plain text": 1,
        "Encounter: not held": 1,
        "Encounter: without a time": 1,
        "ImagingStudy: of another modality than microscopy": 1,
        "ImagingStudy: without an endpoint": 1,
        "Media: an older photo of the same patient": 1,
        "Media: no image": 1,
        "Media: of another part of the body than the face": 1,
        "Observation: not final": 1,
        "Observation: without a code of HPO": 1,
        "Observation: without a value, for a reason": 1,
        "Procedure": 3,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Smith", "expected JSON"),
        (patient(birthDate="2030-01-01"), "birthDate: a date in the future"),
        (patient(birthDate="Smith"), "birthDate: not what FHIR R4B expects"),
        (patient(birthDate=20100520), "birthDate: "),
        (patient(deceasedDateTime="2026-07"), "deceasedDateTime: a date in the future"),
        (patient(gender="Smith"), "gender: expected one of male, female, other, unknown"),
        (patient(name=[{"Smith": 1}]), "name.0: a key that FHIR R4B does not have"),
        (patient(contained=[{"resourceType": "Smith"}]), "not what FHIR R4B expects"),
        (
            patient(modifierExtension=[{"url": "http://x", "valueBoolean": True}]),
            "modifierExtension: changes",
        ),
        (patient(implicitRules="http://x"), "implicitRules: changes what the resource means"),
        (patient(""), "id: "),
        ({**patient(), "id": None}, "id: missing"),
        ({**patient(), "resourceType": "Smith"}, "resourceType: expected Patient"),
        (patient(link=[{"other": about("p9"), "type": "replaced-by"}]), "link: replaced by another patient"),
    ],
)
def test_a_patient_that_is_no_patient_is_a_problem(tmp_path: Path, row: Row | str, reason: str) -> None:
    write_lines(tmp_path / "Patient.ndjson", patient("p0", identifier=[]), row)
    write_lines(tmp_path / "DocumentReference.ndjson", document(attachment(b"x"), of="p0"))
    found = read_fhir(tmp_path, key=KEY, today=TODAY).patients
    (problem,) = found.problems
    assert str(problem).startswith(f"Patient.ndjson:2: {reason}")
    assert "Smith" not in str(problem)
    assert len(found.records) == 1


def test_a_patient_met_again_is_a_problem_and_the_first_is_kept(tmp_path: Path) -> None:
    found = read(tmp_path, patient(), patient(), NOTE).patients
    assert [str(problem) for problem in found.problems] == [
        "Patient.ndjson:2: id: the same as in Patient.ndjson, line 1"
    ]
    assert len(found.records) == 1


def test_one_person_under_two_ids_is_left_out_whole(tmp_path: Path) -> None:
    identifier = patient("p1")["identifier"]
    found = read(tmp_path, patient("p1"), patient("p2", identifier=identifier), NOTE).patients
    assert [str(problem) for problem in found.problems] == [
        "Patient.ndjson:2: identifier: the medical record of Patient.ndjson, line 1",
        "Patient.ndjson:1: left out: 1 resources of this patient were refused, "
        "the first in Patient.ndjson, line 2",
    ]
    assert found.records == ()


def test_a_patient_who_replaces_another_is_left_out_until_they_are_merged(tmp_path: Path) -> None:
    old = patient("p0", link=[{"other": about("p1"), "type": "replaced-by"}])
    found = read(tmp_path, patient("p1"), old, NOTE).patients
    assert (found.records, len(found.problems)) == ((), 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (condition(MARFAN, {**MARFAN, "code": "1"}), "code: expected one diagnosis, got 2 of one system"),
        (condition({**MARFAN, "code": "Smith"}), "code: expected a number of OMIM"),
        (condition({**LONG, "display": ""}), "code.coding.0.display: not what FHIR R4B expects"),
        (condition({"system": LONG["system"], "code": "HP:0001166"}), "code: expected the term's name"),
        (condition(MARFAN, onsetDateTime="2030"), "onsetDateTime: a date in the future"),
        (condition(MARFAN, onsetAge={"value": 400, "code": "a"}), "onsetAge: expected at most 130 years"),
        (condition(MARFAN, onsetDateTime="2012", onsetString="Smith"), "resource: not what FHIR R4B expects"),
        (observation(LONG, valueString="Smith"), "value: expected present or absent, yes or no"),
        (observation(LONG, valueCodeableConcept=concept(code("Y"), code("N"))), "value: expected present"),
        (observation(LONG, effectiveDateTime="2030-01-01"), "effectiveDateTime: a date in the future"),
        (encounter("2030-01-01"), "start: a date in the future"),
        (document(attachment(b" \n")), "content.attachment: expected text that is not empty"),
        (document(attachment("größer".encode("latin-1"))), "content.attachment: not UTF-8"),
        (document(attachment(b"x", "text/plain; charset=smith")), "content.attachment: charset: expected"),
        (document(attachment(b"\x81", "text/plain;charset=windows-1252")), "content.attachment: not WIND"),
        (document(attachment(b"x" * (2**20 + 1))), "content.attachment: larger than 1048576 bytes"),
        (document(attachment(b"x", size=2)), "content.attachment: size: 2 in the resource, 1 in the content"),
        (document(attachment(b"x", hash="c21pdGg=")), "content.attachment: hash: not that of the content"),
        (document({"contentType": "text/plain", "data": "U2!g="}), "content.attachment: data: expected"),
        (document({"contentType": "text/plain"}), "content.attachment: expected data or a url, got neither"),
        (document(attachment(b"x"), attachment(b"y")), "content: expected one plain text, got 2"),
        (document(attachment(b"x"), date="2030-01-01T00:00:00Z"), "date: a date in the future"),
        (media(attachment(b"Smith", "image/png")), "content: no image of the formats"),
        (media(attachment(PNG[:45], "image/png")), "content: damaged image data"),
        (media(attachment(PNG, "image/png"), createdDateTime="2030"), "createdDateTime: a date in the"),
        (media({"contentType": "image/png"}), "content: expected data or a url, got neither"),
        (imaging("https://pacs.example/Smith"), "endpoint: url: expected a path inside the folder"),
        ({**imaging("x"), "endpoint": [{"reference": "Endpoint/Smith"}]}, "endpoint: expected a contained"),
        (imaging("Smith.svs"), "endpoint: "),
        (consent(status=None), "status: not what FHIR R4B expects"),
        (consent(dateTime="2030-01-01"), "dateTime: a date in the future"),
        (consent(modifierExtension=[{"url": "http://x", "valueString": "Smith"}]), "modifierExtension: "),
    ],
)  # fmt: skip
def test_a_resource_with_a_problem_is_named_and_its_patient_left_out(
    tmp_path: Path, row: Row, reason: str
) -> None:
    kind = row["resourceType"]
    rows = {key: value for key, value in row.items() if value is not None}
    assert refusal(tmp_path, *([] if kind == "DocumentReference" else [NOTE]), rows).startswith(
        f"{kind}.ndjson:1: {reason}"
    )


@pytest.mark.parametrize(
    "url",
    ["https://ehr/Binary/1", "http://x", "file:///etc/passwd", "//x/y", "urn:uuid:1", "C:\\smith.txt"],
)  # fmt: skip
def test_nothing_is_fetched(tmp_path: Path, url: str) -> None:
    row = document({"contentType": "text/plain", "url": url})
    assert refusal(tmp_path, row).endswith("url: expected a path inside the folder, since nothing is fetched")


@pytest.mark.parametrize("url", ["../secret.txt", "notes/%2e%2e/%2e%2e/secret.txt", "/etc/passwd", "out.txt"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "export"
    (folder / "notes").mkdir(parents=True)
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    row = document({"contentType": "text/plain", "url": url})
    assert refusal(folder, row).endswith("expected a relative path inside the folder")


def test_notes_and_photos_may_be_files_beside_the_export(tmp_path: Path) -> None:
    (tmp_path / "attachments").mkdir()
    (tmp_path / "attachments/a b.txt").write_bytes("Größer.".encode("windows-1252"))
    (tmp_path / "attachments/1.png").write_bytes(PNG)
    text = {"contentType": "text/plain;charset=windows-1252", "url": "attachments/a%20b.txt"}
    photo = {"contentType": "image/png", "url": "attachments/1.png"}
    record = one(tmp_path, document(text), media(photo))
    assert record.note == "Größer."
    assert record.photo is not None
    assert np.array_equal(record.photo.pixels(), PIXELS)


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (8_000, 8_000)).save(tmp_path / "bomb.png")
    assert "a decompression bomb" in refusal(tmp_path, media({"contentType": "image/png", "url": "bomb.png"}))


def test_the_newest_photo_is_taken(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "new.png")
    new = media({"contentType": "image/png", "url": "new.png"}, createdDateTime="2016-01-01")
    record = one(tmp_path, new, media(attachment(PNG, "image/png"), createdDateTime="2012"))
    assert record.photo is not None
    assert record.photo.pixels().shape == (2, 2, 3)


def test_a_whole_slide_of_a_study_or_a_medium_is_cut_into_tiles(tmp_path: Path) -> None:
    write_tiff(tmp_path / "17.svs", [(1024, 1024)], patches([(1, 1), (1, 2), (1, 3)]))
    slide = {"contentType": "application/octet-stream", "url": "17.svs"}
    rows = [imaging("17.svs"), media(slide, modality=concept(code("SM")))]
    export(tmp_path, *rows)
    (record,) = read_fhir(tmp_path, key=KEY, today=TODAY, tiling=Tiling(size=256)).patients.records
    assert len(record.slides) == 6


def test_slides_of_a_series_are_read_too(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "1.png")
    study = {
        **imaging("x", modality="OT"),
        "contained": [endpoint("1.png", "e2")],
        "endpoint": [],
        "series": [{"uid": "2.16.124.1", "modality": code("SM"), "endpoint": [{"reference": "#e2"}]}],
    }
    assert len(one(tmp_path, study).slides) == 1


@pytest.mark.parametrize(
    ("more", "present"),
    [
        ({}, True),
        ({"valueBoolean": True}, True),
        ({"valueBoolean": False}, False),
        ({"valueCodeableConcept": concept(code("52101004"))}, True),
        ({"valueCodeableConcept": concept(code("2667000"))}, False),
        ({"valueCodeableConcept": concept(code("LA33-6", LOINC))}, True),
        ({"valueCodeableConcept": concept(code("373067005"))}, False),
        ({"interpretation": [concept(code("NEG"))]}, False),
        ({"interpretation": [concept(code("POS"))]}, True),
    ],
)
def test_a_finding_is_there_or_not(tmp_path: Path, more: Row, present: bool) -> None:
    record = one(tmp_path, observation(LONG, **more))
    assert (len(record.observed), len(record.excluded)) == ((1, 0) if present else (0, 1))


def test_a_finding_may_be_the_value_of_an_observation(tmp_path: Path) -> None:
    phenotype = code("75321-0", LOINC)
    record = one(
        tmp_path,
        observation(phenotype, valueCodeableConcept=concept(LONG)),
        observation(phenotype, valueCodeableConcept=concept(LENS), interpretation=[concept(code("NEG"))]),
    )
    assert [finding.id for finding in record.observed] == ["HP:0001166"]
    assert [finding.id for finding in record.excluded] == ["HP:0001083"]


def test_a_refuted_condition_of_hpo_is_a_finding_that_was_not_found(tmp_path: Path) -> None:
    assert one(tmp_path, condition(LENS, status="refuted")).excluded[0].id == "HP:0001083"


def test_a_finding_found_and_not_found_is_a_problem(tmp_path: Path) -> None:
    rows = [observation(LONG), observation(LONG, valueBoolean=False)]
    assert refusal(tmp_path, *rows).endswith(":2: code: found in one resource and not found in another")


def test_an_onset_before_birth_is_antenatal(tmp_path: Path) -> None:
    record = one(tmp_path, NOTE, condition(MARFAN, onsetDateTime="2010-01-20"))
    assert record.onset == onset_class("HP:0030674")


def test_two_diagnoses_of_one_track_are_a_problem(tmp_path: Path) -> None:
    rows = [condition(MARFAN), condition(MARFAN), condition({**MARFAN, "code": "100800"})]
    assert refusal(tmp_path, NOTE, *rows) == (
        "Condition.ndjson:3: code: another diagnosis than in Condition.ndjson, line 1; expected one a patient"
    )


def test_the_plans_answers_decide_between_the_codes_of_one_concept(tmp_path: Path) -> None:
    both = condition(MARFAN, {**ORPHA_MARFAN, "code": "1"})
    plan = AnswerList(answers=(Answer(id="ORPHA:1", name="One"),))
    assert one(tmp_path, NOTE, both).label == {"rare_disease": "OMIM:154700"}
    assert one(tmp_path, NOTE, both, answers=plan).label == {"rare_disease": "ORPHA:1"}


def test_a_diagnosis_that_is_none_of_the_plans_answers_is_a_problem(tmp_path: Path) -> None:
    row = condition({**MARFAN, "code": "100800"})
    assert refusal(tmp_path, NOTE, row, answers=ANSWERS) == (
        "Condition.ndjson:1: code: not among the plan's 2 answers"
    )


@pytest.mark.parametrize(
    ("birth", "seen", "age"),
    [
        ("2010-05-20", "2016-11-20", "P6Y6M"),
        ("2010-05", "2016-11-20", "P6Y6M"),
        ("2010", "2016-11-20", "P6Y"),
        ("2010-05-20", "2016", "P6Y"),
        ("2016-11-10", "2016-11-20", "P10D"),
    ],
)
def test_an_age_is_as_exact_as_its_dates(tmp_path: Path, birth: str, seen: str, age: str) -> None:
    assert one(tmp_path, patient(birthDate=birth), encounter(seen), observation(LONG)).age == age


@pytest.mark.parametrize(
    ("birth", "reason"),
    [
        ("2020-01-01", "birthDate: after the last day that the patient was seen"),
        ("1850", "birthDate: more than 130 years before the patient was seen"),
    ],
)
def test_dates_that_cannot_be_are_a_problem(tmp_path: Path, birth: str, reason: str) -> None:
    (problem,) = read(tmp_path, patient(birthDate=birth), NOTE).patients.problems
    assert str(problem) == f"Patient.ndjson:1: {reason}"


def test_a_patient_with_nothing_to_learn_from_is_a_problem(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, patient(), encounter()).patients.problems
    assert (
        str(problem) == "Patient.ndjson:1: expected a note, a photo, a slide or a finding, got none of them"
    )


def test_all_notes_of_a_patient_together_have_the_size_of_one(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, *[document(attachment(b"x" * 2**19))] * 2).patients.problems
    assert problem.reason == "all notes together: larger than 1048576 bytes"


def test_where_a_consent_was_lost_nobody_has_agreed_to_anything(tmp_path: Path) -> None:
    good, nobody = consent(permit("HRESCH")), consent(permit("HRESCH"), patient={"display": "Smith"})
    for number, lost in enumerate(("Smith", nobody, {**good, "resourceType": "Smith", "patient": None})):
        found = read(tmp_path / str(number), NOTE, Consent=[good, lost]).patients
        assert [record.consent for record in found.records] == [frozenset()]
        assert found.problems[-1].reason.startswith("no consent counts in this export")
        assert "Smith" not in str(found.problems)


def test_a_consent_among_other_resources_is_not_overlooked(tmp_path: Path) -> None:
    good = consent(permit("HRESCH"))
    found = read(tmp_path, Consent=[good], DocumentReference=[NOTE, good]).patients
    assert [record.consent for record in found.records] == [frozenset()]
    assert str(found.problems[0]) == "DocumentReference.ndjson:2: resourceType: expected DocumentReference"


def test_a_cut_file_of_consents_takes_all_consents_away(tmp_path: Path) -> None:
    write_lines(tmp_path / "Consent.ndjson.gz", *[consent(permit("HRESCH"))] * 50)
    whole = (tmp_path / "Consent.ndjson.gz").read_bytes()
    (tmp_path / "Consent.ndjson.gz").write_bytes(whole[:-20])
    found = read(tmp_path, NOTE).patients
    assert [record.consent for record in found.records] == [frozenset()]
    assert found.problems[0].reason == "damaged gzip data, the rest could not be read"


def test_a_missing_file_of_consents_takes_all_consents_away(tmp_path: Path) -> None:
    output = [{"type": "Consent", "url": "x/Consent_2.ndjson"}]
    (tmp_path / "output.json").write_text(json.dumps({"output": output}))
    found = read(tmp_path, NOTE, consent(permit("HRESCH"))).patients
    assert [record.consent for record in found.records] == [frozenset()]


def test_the_site_may_say_what_everybody_agreed_to_where_the_export_does_not(tmp_path: Path) -> None:
    export(tmp_path, NOTE)
    (record,) = read_fhir(tmp_path, key=KEY, consent=frozenset({"research"})).patients.records
    assert record.consent == {"research"}
    export(tmp_path, consent(permit("HRESCH")))
    with pytest.raises(BadFileError, match="each patient's own consent is in the folder"):
        read_fhir(tmp_path, key=KEY, consent=frozenset({"research"}))


def test_an_export_without_patients_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "Condition.ndjson", condition(MARFAN))
    with pytest.raises(BadFileError, match="expected Patient resources"):
        read_fhir(tmp_path, key=KEY)


def test_a_file_of_nothing_known_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "1.ndjson").write_text("Smith\n")
    (problem, lost) = read(tmp_path, NOTE).patients.problems
    assert str(problem) == "1.ndjson: expected resources of FHIR, one JSON object a line"
    assert lost.file == "Consent"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "Procedure.ndjson.gz").write_bytes(gzip.compress(b"{}\n" * 99)[:-9])
    (tmp_path / "Condition.ndjson.gz").write_bytes(b"Smith")
    (tmp_path / "Media.ndjson").mkdir()
    assert [str(problem) for problem in read(tmp_path, NOTE).patients.problems] == [
        "Condition.ndjson.gz: damaged gzip data, the rest could not be read",
        "Media.ndjson: not readable",
        "Procedure.ndjson.gz: damaged gzip data",
    ]


def test_no_shape_of_json_ends_the_reading(tmp_path: Path) -> None:
    for kind in (
        "Consent",
        "Encounter",
        "Condition",
        "Observation",
        "DocumentReference",
        "Media",
        "ImagingStudy",
    ):
        rows: list[Any] = [
            {
                "resourceType": kind,
                **dict.fromkeys(("status", "code", "content", "subject", "patient"), value),
            }
            for value in (
                None,
                1,
                "Smith",
                [],
                [None],
                [[]],
                {},
                {"coding": 1},
                {"coding": [1, {"code": []}]},
            )
        ]
        rows += [{**row, "status": "current", "verificationStatus": row["status"]} for row in rows]
        found = read(tmp_path / kind, NOTE, **{f"x.{kind}": rows})
        assert len(found.patients.records) == 1
        listed = [problem for problem in found.patients.problems if problem.file.startswith("x.")]
        assert len(listed) + sum(found.unread.values()) == len(rows)
        assert "Smith" not in str(listed)
