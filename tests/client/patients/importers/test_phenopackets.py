import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.patients.ages import onset_class
from client.patients.importers.phenopackets import MAX_FILE_BYTES, PacketRules, read_phenopackets
from client.patients.records import Finding, PatientRecord, PatientSet, pseudonym
from common.tracks import Answer, AnswerList

KEY = bytes(range(32))
TODAY = date(2026, 6, 30)
RULES = PacketRules(key=KEY, consent=frozenset({"research"}), today=TODAY)
MARFAN = {"id": "OMIM:154700", "label": "Marfan syndrome"}
LONG = {"id": "HP:0001166", "label": "Arachnodactyly"}
LENS = {"id": "HP:0001083", "label": "Ectopia lentis"}
META = {
    "created": "2024-01-01T00:00:00Z",
    "createdBy": "somebody",
    "resources": [{"id": "hp", "name": "HPO", "version": "2024-08-13"}],
    "phenopacketSchemaVersion": "2.0",
    "externalReferences": [{"id": "DOI:1"}, {"id": "PMID:1", "description": "A case of Marfan syndrome"}],
}
PACKET = {
    "id": "packet-1",
    "subject": {
        "id": "17",
        "sex": "FEMALE",
        "timeAtLastEncounter": {"age": {"iso8601duration": "P6Y"}},
        "vitalStatus": {"status": "DECEASED"},
    },
    "phenotypicFeatures": [
        {
            "type": LONG,
            "onset": {"age": {"iso8601duration": "P2Y"}},
            "severity": {"id": "HP:0012825", "label": "Mild"},
        },
        {"type": LENS, "excluded": True},
    ],
    "interpretations": [
        {"id": "i", "progressStatus": "SOLVED", "diagnosis": {"disease": MARFAN}},
        {
            "id": "j",
            "progressStatus": "IN_PROGRESS",
            "diagnosis": {"disease": {"id": "OMIM:2", "label": "Two"}},
        },
    ],
    "diseases": [
        {"term": MARFAN, "onset": {"ontologyClass": {"id": "HP:0003577", "label": "Congenital onset"}}},
        {"term": {"id": "OMIM:3", "label": "Three"}, "excluded": True},
    ],
    "metaData": META,
}
NOTE = (
    "The patient was a 6-year-old girl. Disease onset was at birth. The following were looked for and not "
    "found: ectopia lentis. At the age of 2 years, arachnodactyly was noted. The patient has died."
)


def change(**fields: Any) -> dict[str, Any]:
    return {**PACKET, **fields}


def subject(**fields: Any) -> dict[str, Any]:
    return change(subject={**PACKET["subject"], **fields})  # type: ignore[dict-item]


def read(folder: Path, content: Any, rules: PacketRules = RULES) -> PatientSet:
    (folder / "p.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_phenopackets(folder, rules)


def test_a_packet_is_read(tmp_path: Path) -> None:
    result = read(tmp_path, PACKET)
    assert result.problems == ()
    assert result.records == (
        PatientRecord(
            patient_id=pseudonym(KEY, "17"),
            case_id=pseudonym(KEY, "17"),
            sex="female",
            age="P6Y",
            onset=onset_class("HP:0003577"),
            deceased=True,
            observed=(Finding(id="HP:0001166", label="Arachnodactyly", onset="P2Y"),),
            excluded=(Finding(id="HP:0001083", label="Ectopia lentis"),),
            note=NOTE,
            label={"rare_disease": "OMIM:154700"},
            consent=frozenset({"research"}),
            group="PMID:1",
        ),
    )


def test_a_public_collection_may_name_patients_by_packet_and_show_it(tmp_path: Path) -> None:
    rules = PacketRules(key=KEY, consent=frozenset(), identity="packet", shows_ids=True, today=TODAY)
    (record,) = read(tmp_path, PACKET, rules).records
    assert (record.patient_id, record.case_id) == (pseudonym(KEY, "packet-1"), "packet-1")


@pytest.mark.parametrize(
    ("element", "age"),
    [
        ({"age": {"iso8601duration": "P3Y6M"}}, "P3Y6M"),
        ({"gestationalAge": {"weeks": 19, "days": 3}}, "GA19w3d"),
        ({"ontologyClass": {"id": "HP:0003593", "label": "any"}}, "HP:0003593 Infantile onset"),
        ({"timestamp": "2013-11-20T12:00:00Z"}, "P3Y6M"),
        ({}, None),
    ],
)
def test_ages_are_read_in_every_form_that_names_one(tmp_path: Path, element: Any, age: str | None) -> None:
    packet = subject(timeAtLastEncounter=element, dateOfBirth="2010-05-20T00:00:00Z")
    assert read(tmp_path, packet).records[0].age == age


def test_a_packet_without_a_diagnosis_has_no_label(tmp_path: Path) -> None:
    (record,) = read(tmp_path, change(diseases=[], interpretations=[])).records
    assert (record.label, record.onset) == ({}, None)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected a JSON object"),
        ('{"id": "a", "id": "b"}', "expected every key once in an object"),
        (change(metaData={}), "metaData.phenopacketSchemaVersion: expected 2.x"),
        (change(metaData=3), "metaData.phenopacketSchemaVersion: expected 2.x"),
        (
            change(metaData={**META, "phenopacketSchemaVersion": "1.0.0"}),
            "metaData.phenopacketSchemaVersion: expected 2.x",
        ),
        (
            change(metaData={**META, "phenopacketSchemaVersion": "3.0"}),
            "phenopacket: schema 3 is newer than 2, the newest this version reads; upgrade Consilium here",
        ),
        (
            change(metaData={**META, "created": "2026-07-01T00:00:00Z"}),
            "metaData.created: a date in the future",
        ),
        (change(gene="FBN1"), "packet: unknown keys: gene"),
        (subject(name="Smith"), "subject: unknown keys: name"),
        (subject(sex="Smith"), "subject.sex: not what the schema expects"),
        (subject(sex=9), "subject.sex: not what the schema expects"),
        (subject(vitalStatus={"status": 9}), "subject.vitalStatus: not what the schema expects"),
        (
            change(interpretations=[{"progressStatus": 9}]),
            "interpretations.progressStatus: not what the schema expects",
        ),
        (subject(id=""), "subject.id: missing"),
        (subject(id=" 17"), "subject.id: expected one line of text, not padded"),
        (subject(dateOfBirth="2026-07-01T00:00:00Z"), "subject.dateOfBirth: a date in the future"),
        (
            subject(timeAtLastEncounter={"timestamp": "2026-07-01T00:00:00Z"}),
            "subject.timeAtLastEncounter: a date in the future",
        ),
        (
            subject(timeAtLastEncounter={"timestamp": "2020-07-01T00:00:00Z"}),
            "subject.timeAtLastEncounter: a timestamp needs subject.dateOfBirth",
        ),
        (
            subject(timeAtLastEncounter={"ageRange": {"start": {"iso8601duration": "P1Y"}}}),
            "subject.timeAtLastEncounter: expected an age, a gestational age, an onset class or a timestamp, "
            "got age_range",
        ),
        (
            subject(timeAtLastEncounter={"age": {"iso8601duration": "Smith"}}),
            "subject.timeAtLastEncounter: expected a duration of at most 130 years, or weeks of gestation",
        ),
        (
            subject(timeAtLastEncounter={"ontologyClass": {"id": "HP:0001166"}}),
            "subject.timeAtLastEncounter: expected the id of an HPO onset class, got another",
        ),
        (
            change(phenotypicFeatures=[{"type": {"id": "MP:1", "label": "x"}}]),
            "phenotypicFeatures[0]: expected a finding's id as HP: and seven digits",
        ),
        (
            change(phenotypicFeatures=[{"type": LENS}, {}]),
            "phenotypicFeatures[1]: expected a finding's id as HP: and seven digits",
        ),
        (change(phenotypicFeatures=[]), "expected a note, a photo, a slide or a finding, got none of them"),
        (change(diseases=[{"term": MARFAN}, {"term": {"id": "OMIM:2"}}]), "diseases: expected one, got 2"),
        (change(diseases=[{"term": {"id": ""}}], interpretations=[]), "diseases: id: missing"),
    ],
)
def test_a_bad_packet_is_one_clear_line_that_quotes_nothing(tmp_path: Path, packet: Any, reason: str) -> None:
    result = read(tmp_path, packet)
    assert [str(problem) for problem in result.problems] == [f"p.json: {reason}"]
    assert result.records == ()


def test_a_disease_that_is_no_answer_of_the_plan_is_refused(tmp_path: Path) -> None:
    answers = AnswerList(answers=(Answer(id="OMIM:2", name="Two"),))
    rules = PacketRules(key=KEY, consent=frozenset(), answers=answers, today=TODAY)
    assert (
        str(read(tmp_path, PACKET, rules).problems[0]) == "p.json: diseases: not among the plan's 1 answers"
    )


def test_every_file_is_a_record_or_a_problem(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.json").write_text(json.dumps(PACKET))
    (tmp_path / "b.json").write_bytes(b"\xff")
    (tmp_path / "c.json").mkdir()
    with (tmp_path / "d.json").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    (tmp_path / "read.me").write_text("no packet")
    result = read(tmp_path, PACKET)
    assert [record.patient_id for record in result.records] == [pseudonym(KEY, "17")]
    assert [str(problem) for problem in result.problems] == [
        "b.json: not UTF-8",
        "c.json: not a file",
        f"d.json: larger than {MAX_FILE_BYTES} bytes",
        "sub/a.json: patient_id: the same as p.json",
    ]


def test_a_folder_without_packets_is_a_problem_and_no_folder_a_mistake(tmp_path: Path) -> None:
    (problem,) = read_phenopackets(tmp_path, RULES).problems
    assert problem.reason == "expected files that end in .json, found none"
    with pytest.raises(NotADirectoryError):
        read_phenopackets(tmp_path / "none", RULES)


def test_rules_with_a_short_key_or_another_identity_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        PacketRules(key=b"short", consent=frozenset())
    with pytest.raises(ValueError, match="subject or packet"):
        PacketRules(key=KEY, consent=frozenset(), identity="name")  # type: ignore[arg-type]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "age", "term"]), inner)
    ),
    max_leaves=5,
)
places = st.sampled_from(
    [
        ("subject",),
        ("subject", "sex"),
        ("subject", "timeAtLastEncounter"),
        ("subject", "vitalStatus"),
        ("phenotypicFeatures",),
        ("diseases",),
        ("interpretations",),
        ("metaData", "created"),
        ("metaData", "externalReferences"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=places, value=values)
def test_any_json_in_the_place_of_a_field_gives_a_record_or_a_problem(
    tmp_path: Path, place: tuple[str, ...], value: Any
) -> None:
    packet = json.loads(json.dumps(PACKET))
    target = packet
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    result = read(tmp_path, packet)
    assert len(result.records) + len(result.problems) == 1


def time_element(age: str) -> dict[str, Any]:
    if age.startswith("HP:"):
        hpo_id, _, label = age.partition(" ")
        return {"ontologyClass": {"id": hpo_id, "label": label}}
    gestation = re.fullmatch(r"GA(\d+)w(\d+)d", age)
    if gestation:
        return {"gestationalAge": {"weeks": int(gestation[1]), "days": int(gestation[2])}}
    return {"age": {"iso8601duration": age}}


def packet_of(row: dict[str, Any]) -> dict[str, Any]:
    """A case of the tidied store as the packet it was made from."""
    features = [(finding, False) for finding in row["hpo"]] + [(finding, True) for finding in row["excluded"]]
    return {
        "id": row["case_id"],
        "subject": {
            "id": row["subject"],
            "sex": {"male": "MALE", "female": "FEMALE", "other": "OTHER_SEX"}.get(row["sex"], "UNKNOWN_SEX"),
            "timeAtLastEncounter": time_element(row["age_last"]) if "age_last" in row else {},
            "vitalStatus": {"status": row.get("vital_status", "UNKNOWN_STATUS")},
        },
        "phenotypicFeatures": [
            {
                "type": {"id": finding["id"], "label": finding["label"]},
                "excluded": excluded,
                "onset": time_element(finding["onset"]) if "onset" in finding else {},
            }
            for finding, excluded in features
        ],
        "diseases": [
            {
                "term": {"id": row["disease_id"], "label": row["disease"]},
                "onset": time_element(row["onset"]) if "onset" in row else {},
            }
        ],
        "metaData": {**META, "externalReferences": [{"id": row["pmid"]}]},
    }


@pytest.mark.data
def test_real_cases_written_as_packets_are_the_records_of_the_store(
    real_set: PatientSet, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = real_rows[::80]
    for row in rows:
        (tmp_path / f"{row['case_id']}.json").write_text(json.dumps(packet_of(row)))
    rules = PacketRules(
        key=KEY, consent=frozenset({"research"}), identity="packet", shows_ids=True, today=TODAY
    )
    result = read_phenopackets(tmp_path, rules)
    assert result.problems == ()
    expected = {record.case_id: record for record in real_set.records[::80]}
    assert {record.case_id: record for record in result.records} == expected
    assert len(expected) == 106
