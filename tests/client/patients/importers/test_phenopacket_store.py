import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.patients.ages import onset_class
from client.patients.importers.phenopacket_store import ONTOLOGY, UNREAD_KEYS, read_answers, read_cases
from client.patients.notes import ModelView, model_view
from client.patients.records import Finding, PatientRecord, PatientSet, eligible, pseudonym
from common.errors import BadFileError
from common.tracks import Answer, AnswerList

KEY = bytes(range(32))
CASE = {
    "case_id": "PMID_1_P1",
    "cohort": "FBN1",
    "disease_id": "OMIM:154700",
    "disease": "Marfan syndrome",
    "gene": "FBN1",
    "hgnc": "HGNC:3603",
    "sex": "female",
    "age_last": "P6Y",
    "onset": "HP:0003577 Congenital onset",
    "vital_status": "DECEASED",
    "hpo": [{"id": "HP:0001166", "label": "Arachnodactyly", "onset": "P2Y", "severity": "Mild"}],
    "excluded": [{"id": "HP:0001083", "label": "Ectopia lentis"}],
    "variants": [{"hgvs_c": "NM_000138.5:c.1A>G"}],
    "subject": "proband",
    "pmid": "PMID:1",
    "title": "A case of Marfan syndrome",
    "hpo_version": "2024-08-13",
    "n_measurements": 0,
    "note": "The patient was a 6-year-old girl.",
}


BAD_ID = "hpo: [0]: expected a finding's id as HP: and seven digits"


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def read(folder: Path, *rows: Any, answers: AnswerList | None = None) -> PatientSet:
    return read_cases(write(folder / "cases.jsonl.gz", *rows), key=KEY, answers=answers)


def test_a_case_is_read(tmp_path: Path) -> None:
    result = read(tmp_path, CASE)
    assert result.problems == ()
    assert result.records == (
        PatientRecord(
            patient_id=pseudonym(KEY, "PMID_1_P1"),
            case_id="PMID_1_P1",
            sex="female",
            age="P6Y",
            onset=onset_class("HP:0003577"),
            deceased=True,
            observed=(Finding(id="HP:0001166", label="Arachnodactyly", onset="P2Y"),),
            excluded=(Finding(id="HP:0001083", label="Ectopia lentis"),),
            note="The patient was a 6-year-old girl.",
            label={"rare_disease": "OMIM:154700"},
            consent=frozenset({"research"}),
            group="PMID:1",
        ),
    )


def test_a_case_may_lack_what_its_paper_does_not_say(tmp_path: Path) -> None:
    needed = {key: CASE[key] for key in ("case_id", "disease_id", "hpo", "note", "pmid")}
    (record,) = read(tmp_path, needed).records
    assert (record.sex, record.age, record.onset, record.deceased) == ("unknown", None, None, False)


def views(folder: Path, row: Any) -> list[ModelView]:
    return [model_view(record) for record in read(folder, row).records]


@pytest.mark.parametrize("key", sorted(UNREAD_KEYS))
def test_changing_what_implies_the_diagnosis_changes_nothing_in_the_view(tmp_path: Path, key: str) -> None:
    expected = views(tmp_path, CASE)
    assert len(expected) == 1
    for value in ("Marfan syndrome", ["FBN1"], {"a": 1}, None):
        assert views(tmp_path, {**CASE, key: value}) == expected
    assert views(tmp_path, {name: CASE[name] for name in CASE if name != key}) == expected


def test_ids_label_and_group_do_not_reach_the_view(tmp_path: Path) -> None:
    changed = {**CASE, "case_id": "PMID_2_P2", "disease_id": "OMIM:2", "pmid": "PMID:2"}
    assert views(tmp_path, changed) == views(tmp_path, CASE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"case_id": None}, "case_id: missing"),
        ({"hpo": None}, "hpo: missing"),
        ({"disease_id": "OMIM:3"}, "disease_id: not among the plan's 1 answers"),
        (
            {"hpo": [{"id": "HP:1", "label": "x"}]},
            BAD_ID,
        ),
        ({"sex": "f", "name": "x"}, "sex: expected one of male, female, other, unknown; unknown keys: name"),
        ({"vital_status": "GONE"}, "vital_status: expected ALIVE, DECEASED or UNKNOWN_STATUS"),
        ({"vital_status": ["DECEASED"]}, "vital_status: expected ALIVE, DECEASED or UNKNOWN_STATUS"),
        ({"note": ""}, "note: expected text that is not empty"),
    ],
)
def test_a_bad_case_is_one_clear_line(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    answers = AnswerList(answers=(Answer(id="OMIM:154700", name="Marfan syndrome"),))
    result = read(tmp_path, {**CASE, **change}, answers=answers)
    assert [str(problem) for problem in result.problems] == [f"cases.jsonl.gz:1: {reason}"]
    assert result.records == ()


def test_every_line_of_the_file_is_a_record_or_a_problem(tmp_path: Path) -> None:
    result = read(tmp_path, CASE, "{", CASE, {**CASE, "case_id": "PMID_1_P2"})
    assert [record.case_id for record in result.records] == ["PMID_1_P1", "PMID_1_P2"]
    assert [str(problem) for problem in result.problems] == [
        "cases.jsonl.gz:2: expected JSON",
        "cases.jsonl.gz:3: patient_id: the same as line 1",
    ]


@pytest.mark.parametrize("size", [0, 5, 60])
def test_a_damaged_file_keeps_what_was_read_and_says_so(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "cases.jsonl.gz", CASE)
    path.write_bytes(path.read_bytes()[:-size] if size else b"no gzip")
    result = read_cases(path, key=KEY)
    assert str(result.problems[-1]) == "cases.jsonl.gz: damaged gzip data, the rest could not be read"


def test_a_missing_file_and_a_short_key_are_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_cases(tmp_path / "none.gz", key=KEY)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        read_cases(write(tmp_path / "cases.jsonl.gz", CASE), key=b"short")


DISEASES = """disease_id,disease,genes,n_cases,n_publications
OMIM:2,Beta disease,B,10,1
OMIM:1,"Alpha  disease, type 1",A,30,2
OMIM:3,Gamma disease,C,9,1
"""


def table(folder: Path, text: str = DISEASES) -> Path:
    (folder / "diseases.csv").write_text(text)
    return folder / "diseases.csv"


def test_answers_are_the_frequent_diseases_by_id(tmp_path: Path) -> None:
    answers = read_answers(table(tmp_path), min_cases=10)
    assert answers == AnswerList(
        answers=(
            Answer(id="OMIM:1", name="Alpha disease, type 1", ontology=ONTOLOGY),
            Answer(id="OMIM:2", name="Beta disease", ontology=ONTOLOGY),
        )
    )


def test_no_synonym_names_two_answers_nor_the_name_of_another(tmp_path: Path) -> None:
    rows = [
        {"disease_id": "OMIM:1", "name": "ALPHA", "name_2025": "Alpha Disease, type 1"},
        {"disease_id": "OMIM:2", "name": "Gamma disease", "name_2025": "Alpha"},
        {"disease_id": "OMIM:3", "name": "Cee", "name_2025": "cee"},
        {"disease_id": "OMIM:9", "name": "Unknown"},
    ]
    annotations = write(tmp_path / "annotations.jsonl.gz", *rows)
    answers = read_answers(table(tmp_path), min_cases=1, annotations=annotations)
    assert [answer.synonyms for answer in answers.answers] == [(), (), ("Cee",)]
    answers = read_answers(table(tmp_path), min_cases=10, annotations=annotations)
    assert [answer.synonyms for answer in answers.answers] == [(), ("Gamma disease",)]


@pytest.mark.parametrize(
    "text",
    [
        "disease_id,disease,n_cases\nOMIM:1,Alpha,many\n",
        "disease_id,disease,n_cases\nOMIM:1,,3\n",
        "disease_id,n_cases\nOMIM:1,3\n",
        "disease_id,disease,n_cases\nOMIM:1,Alpha,3\nOMIM:1,Beta,3\n",
    ],
)
def test_a_bad_row_of_diseases_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadFileError, match="row of OMIM:1: expected a new id, a name and a count"):
        read_answers(table(tmp_path, text), min_cases=1)


@pytest.mark.parametrize("line", ["{", "[1]", '{"name": "x"}', '{"disease_id": "OMIM:1", "name": 3}'])
def test_a_bad_line_of_annotations_is_refused(tmp_path: Path, line: str) -> None:
    annotations = write(tmp_path / "annotations.jsonl.gz", {"disease_id": "OMIM:1"}, line)
    with pytest.raises(BadFileError, match="line 2: expected an object with disease_id and names"):
        read_answers(table(tmp_path), min_cases=1, annotations=annotations)


def test_answers_need_a_positive_number_of_cases_and_a_disease_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_cases >= 1, got 0"):
        read_answers(table(tmp_path), min_cases=0)
    with pytest.raises(ValueError, match="a disease with 31 cases"):
        read_answers(table(tmp_path), min_cases=31)


@pytest.mark.data
def test_all_real_cases_are_read_without_a_problem(real_set: PatientSet) -> None:
    assert (len(real_set.records), real_set.problems) == (8433, ())
    assert len({record.patient_id for record in real_set.records}) == 8433
    assert len(eligible(real_set.records, "research").kept) == 8433
    assert eligible(real_set.records, "marketing").kept == ()


@pytest.mark.data
def test_the_real_answers_are_217_diseases_with_ten_cases(real_set: PatientSet, data_root: Path) -> None:
    answers = read_answers(
        data_root / "phenopackets" / "diseases.csv",
        min_cases=10,
        annotations=data_root / "hpo" / "disease_annotations.jsonl.gz",
    )
    assert len(answers) == 217
    assert sum(record.label["rare_disease"] in answers.ids for record in real_set.records) == 6395
    found = answers.find("neurofibromatosis, TYPE I")
    assert found is not None
    assert found.id == "OMIM:162200"


_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def seen(view: ModelView) -> str:
    """All text of a view."""
    findings = view.observed + view.excluded
    parts = [view.note, view.sex, view.age]
    parts += [text for finding in findings for text in (finding.id, finding.label, finding.onset)]
    return "\n".join(part for part in parts if part)


def leaks(row: dict[str, Any], text: str) -> list[str]:
    """What of a case's title, cohort, gene, variants, disease name and ids stands in a text."""
    ids = [row["case_id"], row["disease_id"], row["pmid"], row.get("hgnc")]
    keys = ("hgvs_c", "hgvs_p", "hgvs_g", "label", "structural")
    ids += [str(variant[key]) for variant in row["variants"] for key in keys if variant.get(key)]
    # Gene symbols are words in capitals; with case folded, CAT and REST would be found in many a note.
    symbols = [row["cohort"], row.get("gene")]
    folded = words(text)
    standing = [symbol for symbol in symbols if symbol and symbol in text]
    return (
        [name for name in ids if name and name in text]
        + [symbol for symbol in standing if re.search(rf"\b{re.escape(symbol)}\b", text)]
        + [name for name in (row["title"], row["disease"]) if words(name) in folded]
    )


def test_each_leak_would_be_noticed() -> None:
    texts = ["see PMID_1_P1", "OMIM:154700", "PMID:1", "HGNC:3603", "has NM_000138.5:c.1A>G", "FBN1-like"]
    assert all(leaks(CASE, text) for text in texts)
    assert leaks(CASE, "a CASE of MARFAN syndrome!") == ["A case of Marfan syndrome", "Marfan syndrome"]
    assert leaks(CASE, "Arachnodactyly, HP:0001166") == []


@pytest.mark.data
def test_no_title_cohort_gene_variant_disease_name_or_id_of_a_real_case_reaches_the_view(
    real_set: PatientSet, real_rows: list[dict[str, Any]]
) -> None:
    inside_a_word = []
    for record, row in zip(real_set.records, real_rows, strict=True):
        text = seen(model_view(record))
        assert record.case_id == row["case_id"]
        assert leaks(row, text) == [], record.case_id
        if row["disease"].casefold() in text.casefold():
            inside_a_word.append(record.case_id)
    # The one known case: its finding "hypergalactosemia" holds the name of its disease, galactosemia.
    assert inside_a_word == ["PMID_25681079_proband_FKT118"]


@pytest.mark.data
def test_what_implies_the_diagnosis_changes_no_real_view(
    real_set: PatientSet, real_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    marked = [{**row, **dict.fromkeys(UNREAD_KEYS, "MARKER")} for row in real_rows[::50]]
    for number, row in enumerate(marked):
        row.update(case_id=f"MARKER {number}", disease_id="MARKER", pmid="MARKER")
    changed = [model_view(record) for record in read(tmp_path, *marked).records]
    assert changed == [model_view(record) for record in real_set.records[::50]]
    assert not any("MARKER" in seen(view) for view in changed)
    assert "MARKER" in seen(replace(changed[0], note="MARKER"))
