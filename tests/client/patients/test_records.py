from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.records import (
    Eligibility,
    Exclusion,
    Finding,
    PatientRecord,
    PatientSet,
    Problem,
    eligible,
    is_line,
    pseudonym,
)

SEIZURE = Finding(id="HP:0001250", label="Seizure")


def patient(name: str = "a", **fields: Any) -> PatientRecord:
    return PatientRecord(**{"patient_id": name, "case_id": name, "note": "A note.", **fields})


def test_a_finding_has_an_hpo_id_and_a_label() -> None:
    assert Finding(id="HP:0001250", label="Seizure", onset="P2Y").onset == "P2Y"


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "HP:125", "label": "Seizure"},
        {"id": "hp:0001250", "label": "Seizure"},
        {"id": "HP:0001250 ", "label": "Seizure"},
        {"id": "HP:0001250", "label": ""},
        {"id": "HP:0001250", "label": "Seizure\nand more"},
        {"id": "HP:0001250", "label": "Seizure", "onset": "early"},
    ],
)
def test_a_finding_of_another_form_is_refused(fields: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="Expected a finding"):
        Finding(**fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"patient_id": ""}, "patient_id"),
        ({"case_id": "two\nlines"}, "case_id"),
        ({"group": " padded"}, "group"),
        ({"sex": "f"}, "sex"),
        ({"age": "old"}, "age"),
        ({"onset": "P200Y"}, "onset"),
        ({"note": "  \n"}, "note"),
        ({"note": "\ud800"}, "note"),
        ({"note": None}, "a photo, a slide or a finding"),
    ],
)
def test_a_record_with_a_bad_field_is_refused(fields: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        patient(**fields)


def test_findings_alone_make_a_patient() -> None:
    assert patient(note=None, excluded=(SEIZURE,)).note is None


def test_a_label_given_as_mapping_cannot_be_changed_from_outside() -> None:
    label = {"rare_disease": "OMIM:1"}
    record = patient(label=label)
    label["rare_disease"] = "OMIM:2"
    assert record.label == {"rare_disease": "OMIM:1"}


def test_printing_a_record_shows_its_pseudonym_only() -> None:
    record = patient("p1", case_id="c1", note="secret", group="PMID:1", label={"rare_disease": "OMIM:1"})
    assert repr(record) == "PatientRecord(patient_id='p1')"


def test_pseudonyms_are_hmac_sha256_of_rfc4231() -> None:
    expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    assert pseudonym(b"\x0b" * 20, "Hi There") == expected


@settings(deadline=None)
@given(source=st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_without_the_key_a_pseudonym_cannot_be_tried_two_sites_give_two(source: str) -> None:
    assert pseudonym(bytes(16), source) != pseudonym(bytes(15) + b"\x01", source)
    assert is_line(pseudonym(bytes(16), source))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes, got 15"):
        pseudonym(bytes(15), "patient")


def test_a_pseudonym_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="source id"):
        pseudonym(bytes(16), "")


records = st.lists(
    st.builds(
        lambda consent, withdrawn: (frozenset(consent), withdrawn),
        st.sets(st.sampled_from(["research", "care"])),
        st.booleans(),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(choices=records)
def test_every_patient_is_kept_or_left_out_and_in_one_of_them_only(
    choices: list[tuple[frozenset[str], bool]],
) -> None:
    patients = [
        patient(f"p{index}", consent=consent, withdrawn=withdrawn)
        for index, (consent, withdrawn) in enumerate(choices)
    ]
    result = eligible(patients, "research")
    kept = [record.patient_id for record in result.kept]
    left = [out.patient_id for out in result.left_out]
    assert sorted(kept + left) == sorted(record.patient_id for record in patients)
    assert kept == [r.patient_id for r in patients if "research" in r.consent and not r.withdrawn]
    assert sum(result.counts.values()) == len(left)


def test_who_is_left_out_is_counted_by_reason() -> None:
    result = eligible(
        [
            patient("a", consent=frozenset({"research"})),
            patient("b", consent=frozenset({"research"}), withdrawn=True),
            patient("c", consent=frozenset({"care"})),
            patient("d"),
        ],
        "research",
    )
    assert isinstance(result, Eligibility)
    assert result.counts == {Exclusion.WITHDRAWN: 1, Exclusion.NO_CONSENT: 2}
    assert [(out.patient_id, out.reason.value) for out in result.left_out] == [
        ("b", "consent withdrawn"),
        ("c", "no consent for this purpose"),
        ("d", "no consent for this purpose"),
    ]


def test_eligibility_for_no_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="purpose"):
        eligible([], "")


def test_a_problem_is_one_line_of_file_line_and_reason() -> None:
    assert (
        str(Problem(file="patients.jsonl", line=3, reason="sex: bad\nvalue"))
        == "patients.jsonl:3: sex: bad value"
    )
    assert str(Problem(file="a\nb.json", reason="not UTF-8")) == "a b.json: not UTF-8"


def test_a_patient_set_without_problems_has_none() -> None:
    assert PatientSet(records=(patient(),)).problems == ()
