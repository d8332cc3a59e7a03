import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.ages import ONSET_LABELS, onset_class
from client.patients.notes import (
    NO_FINDINGS,
    NOBODY_KNOWN,
    ModelView,
    hide_findings,
    model_view,
    read_facial_ids,
    write_note,
)
from client.patients.records import SEXES, Finding, PatientRecord, PatientSet, PhotoRef
from common.errors import BadFileError

LONG_FACE = Finding(id="HP:0000276", label="Long face")
ROUND_FACE = Finding(id="HP:0000311", label="Round face")
SEIZURE = Finding(id="HP:0001250", label="Seizure")
EEG = Finding(id="HP:0002353", label="EEG abnormality")
WALK = Finding(id="HP:0031936", label="Delayed ability to walk", onset="P1Y6M")
FACIAL = frozenset({LONG_FACE.id, ROUND_FACE.id})


def patient(**fields: Any) -> PatientRecord:
    return PatientRecord(**{"patient_id": "p", "case_id": "c", "observed": (SEIZURE,), **fields})


def test_a_note_says_who_what_when_and_what_not() -> None:
    record = patient(
        sex="female",
        age="P6Y2M",
        onset="HP:0003593 Infantile onset",
        deceased=True,
        observed=(SEIZURE, WALK, EEG, LONG_FACE),
        excluded=(ROUND_FACE,),
    )
    assert write_note(record) == (
        "The patient was a 6-year-old girl who presented with seizure, EEG abnormality and long face. "
        "Disease onset was in infancy. The following were looked for and not found: round face. "
        "At the age of 1 year and 6 months, delayed ability to walk was noted. The patient has died."
    )


@pytest.mark.parametrize(
    ("sex", "age", "who"),
    [
        ("male", "P17Y11M", "was a 17-year-old boy who "),
        ("male", "P18Y", "was an 18-year-old man who "),
        ("female", "P80Y", "was an 80-year-old woman who "),
        ("female", "P23M", "was a 23-month-old girl who "),
        ("male", "P1Y12M", "was a 2-year-old boy who "),
        ("male", "P1M21D", "was a 2-month-old boy who "),
        ("female", "P11D", "was an 11-day-old girl who "),
        ("unknown", "P30Y", "was a 30-year-old individual who "),
        ("other", "P3Y", "was a 3-year-old child who "),
        ("male", "GA20w0d", "was male who "),
        ("female", None, "was female who "),
        ("unknown", None, ""),
    ],
)
def test_a_note_says_who_in_the_words_of_the_age(sex: str, age: str | None, who: str) -> None:
    assert write_note(patient(sex=sex, age=age)) == f"The patient {who}presented with seizure."


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Seizure", "seizure"),
        ("EEG abnormality", "EEG abnormality"),
        ("T-wave inversion", "T-wave inversion"),
        ("Chiari malformation", "Chiari malformation"),
        ("Non-Hodgkin lymphoma", "non-Hodgkin lymphoma"),
        ("3-Methylglutaconic aciduria", "3-Methylglutaconic aciduria"),
    ],
)
def test_abbreviations_and_proper_names_keep_their_capital(label: str, words: str) -> None:
    finding = Finding(id="HP:0000001", label=label)
    assert write_note(patient(observed=(finding,))) == f"The patient presented with {words}."


def test_findings_of_one_age_share_a_sentence_and_ages_come_in_order() -> None:
    late = Finding(id="HP:0000002", label="Gout", onset="P9Y")
    born = Finding(id="HP:0000003", label="Cough", onset=onset_class("HP:0003577"))
    walk = Finding(id="HP:0000004", label="Rash", onset="P1Y6M")
    note = write_note(patient(observed=(late, WALK, born, walk), sex="male"))
    assert note == (
        "The patient was male. At birth, cough was noted. At the age of 1 year and 6 months, delayed ability "
        "to walk and rash were noted. At the age of 9 years, gout was noted."
    )


def test_with_hide_no_facial_finding_is_named_neither_as_observed_nor_as_excluded() -> None:
    record = patient(observed=(LONG_FACE, SEIZURE), excluded=(ROUND_FACE, EEG))
    assert write_note(record, facial="hide", facial_ids=FACIAL) == (
        "The patient presented with seizure. The following were looked for and not found: EEG abnormality."
    )


def test_keep_names_facial_findings_whatever_the_ids() -> None:
    record = patient(observed=(LONG_FACE,))
    assert write_note(record, facial_ids=FACIAL) == "The patient presented with long face."


@pytest.mark.parametrize(
    ("sex", "age", "who"),
    [
        ("female", "P6Y", "The patient was a 6-year-old girl."),
        ("male", None, "The patient was male."),
        ("unknown", None, NOBODY_KNOWN),
    ],
)
def test_a_patient_whose_only_findings_are_facial_keeps_a_note_that_says_who(
    sex: str, age: str | None, who: str
) -> None:
    record = patient(sex=sex, age=age, observed=(LONG_FACE,), excluded=(ROUND_FACE,))
    assert write_note(record, facial="hide", facial_ids=FACIAL) == f"{who} {NO_FINDINGS}"


def test_hiding_without_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="ids of the facial findings"):
        write_note(patient(), facial="hide")
    with pytest.raises(ValueError, match="ids of the facial findings"):
        model_view(patient(), facial="hide")


def test_another_word_for_facial_is_refused() -> None:
    with pytest.raises(ValueError, match="keep or hide"):
        write_note(patient(), facial="drop")  # type: ignore[arg-type]


def test_hide_findings_leaves_the_others_in_order() -> None:
    assert hide_findings((LONG_FACE, SEIZURE, ROUND_FACE, EEG), FACIAL) == (SEIZURE, EEG)


findings = st.lists(
    st.builds(
        lambda number, onset: Finding(id=f"HP:{number:07d}", label=f"Sign {number}", onset=onset),
        st.integers(0, 40),
        st.one_of(st.none(), st.sampled_from(["P1Y", "GA20w0d", *map(onset_class, ONSET_LABELS)])),
    ),
    max_size=6,
).map(tuple)


@settings(deadline=None)
@given(
    observed=findings,
    excluded=findings,
    hidden=st.sets(st.integers(0, 40), min_size=1),
    sex=st.sampled_from(SEXES),
    age=st.sampled_from([None, "P3Y", "P40Y", "P3M", "GA12w1d", onset_class("HP:0003581")]),
)
def test_hidden_findings_are_nowhere_in_the_view_and_every_other_is_in_the_note(
    observed: tuple[Finding, ...], excluded: tuple[Finding, ...], hidden: set[int], sex: str, age: str | None
) -> None:
    record = PatientRecord(
        patient_id="p", case_id="c", note="A note.", observed=observed, excluded=excluded, sex=sex, age=age
    )
    ids = frozenset(f"HP:{number:07d}" for number in hidden)
    if not observed + excluded:
        return
    view = model_view(record, facial="hide", facial_ids=ids)
    assert view.note
    named = {int(number) for number in re.findall(r"sign (\d+)", view.note)}
    assert named == {int(finding.id[3:]) for finding in observed + excluded} - hidden
    assert not ids & {finding.id for finding in view.observed + view.excluded}


def test_the_view_keeps_a_hospitals_own_note() -> None:
    assert model_view(patient(note="As dictated.")).note == "As dictated."


def test_the_view_of_a_patient_without_a_note_has_one_from_the_findings() -> None:
    assert model_view(patient()).note == "The patient presented with seizure."


def test_the_view_of_a_photo_alone_has_no_note() -> None:
    photo = PhotoRef(array=np.zeros((2, 2, 3), dtype=np.uint8))
    view = model_view(patient(observed=(), photo=photo), facial="hide", facial_ids=FACIAL)
    assert (view.note, view.photo) == (None, photo)


def test_hiding_in_free_text_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be hidden in free text"):
        model_view(patient(note="Long face.", observed=()), facial="hide", facial_ids=FACIAL)


def test_no_label_group_id_consent_or_other_field_is_in_the_view() -> None:
    allowed = {"note", "sex", "age", "observed", "excluded", "photo", "slides"}
    assert {field.name for field in fields(ModelView)} == allowed
    one = patient(sex="male", age="P3Y", note="A note.")
    other = patient(
        sex="male",
        age="P3Y",
        note="A note.",
        patient_id="q",
        case_id="d",
        onset="P1Y",
        deceased=True,
        label={"rare_disease": "OMIM:1"},
        consent=frozenset({"research"}),
        withdrawn=True,
        group="PMID:1",
    )
    assert model_view(one) == model_view(other)
    assert "A note." not in repr(model_view(one))


def test_facial_ids_come_from_a_table(tmp_path: Path) -> None:
    table = tmp_path / "terms.csv"
    table.write_text('id,label\nHP:0000276,Long face\nHP:0000311,"Round\nface"\n')
    assert read_facial_ids(table) == FACIAL


@pytest.mark.parametrize(
    "text", ["", "id,label\n", "code,label\nHP:0000276,Long face\n", "id,label\n,Long face\n"]
)
def test_a_table_without_ids_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "terms.csv").write_text(text)
    with pytest.raises(BadFileError, match="an id in each row"):
        read_facial_ids(tmp_path / "terms.csv")


@pytest.mark.data
def test_all_notes_of_the_real_cases_are_reproduced_exactly(real_set: PatientSet) -> None:
    reproduced = sum(write_note(record) == record.note for record in real_set.records)
    assert (reproduced, len(real_set.records)) == (8433, 8433)


@pytest.mark.data
def test_hiding_facial_findings_leaves_every_real_case_a_note_without_them(
    real_set: PatientSet, data_root: Path
) -> None:
    facial_ids = read_facial_ids(data_root / "faces" / "face_terms.csv")
    assert len(facial_ids) == 554
    only_facial = 0
    for record in real_set.records:
        view = model_view(record, facial="hide", facial_ids=facial_ids)
        assert view.note
        assert not facial_ids & {finding.id for finding in view.observed + view.excluded}
        assert len(view.note) <= len(record.note or "") + len(f" {NOBODY_KNOWN} {NO_FINDINGS}")
        only_facial += NO_FINDINGS in view.note
    assert only_facial == 46
