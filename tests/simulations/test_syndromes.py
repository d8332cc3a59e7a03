import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.patients.records import Finding
from common.errors import BadFileError
from simulations.faces import is_visible
from simulations.syndromes import (
    CASEBOOK,
    Syndrome,
    TypicalFinding,
    frequency_word,
    load_casebook,
    load_syndromes,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "hpo"
SAME_DELETION = {"OMIM:188400": ("OMIM:192430",)}  # DiGeorge and velocardiofacial: one deletion of 22q11.2
BOOK = load_casebook()

SMALL_BOOK = """
ontology: OMIM test
male_only: []
broader: [[HP:0001629, HP:0001627, Abnormal heart morphology]]
background: [[HP:0002019, Constipation]]
syndromes:
  - id: OMIM:1
    name: Wide-eye syndrome
    synonyms: [WES]
    inheritance: Autosomal dominant
    source: A review
    face: [[HP:0000316, Hypertelorism, 0.9]]
    other: [[HP:0001629, Ventricular septal defect, 0.2]]
"""


def test_the_casebook_has_many_syndromes_of_some_facial_and_other_findings_and_a_source() -> None:
    assert len(BOOK.syndromes) >= 28
    for syndrome in BOOK.syndromes:
        facial = sum(typical.facial for typical in syndrome.findings)
        assert 4 <= facial <= 9, syndrome.name
        assert 10 <= len(syndrome.findings) <= 22, syndrome.name
        assert syndrome.source
        assert syndrome.synonyms


def test_a_finding_stands_under_face_if_and_only_if_the_renderer_draws_it() -> None:
    for syndrome in BOOK.syndromes:
        for typical in syndrome.findings:
            assert typical.facial == is_visible(typical.finding.id)
    assert all(not is_visible(finding.id) for finding in BOOK.background)
    assert all(not is_visible(finding.id) for finding in BOOK.broader.values())
    assert {finding.id for finding in BOOK.facial} == {
        typical.finding.id for syndrome in BOOK.syndromes for typical in syndrome.findings if typical.facial
    }


def test_answers_are_the_syndromes_with_their_synonyms_and_the_ontologys_version() -> None:
    answers = BOOK.answers
    assert answers.ids == tuple(syndrome.id for syndrome in BOOK.syndromes)
    assert answers.names == tuple(sorted(answers.names, key=str.lower))
    found = answers.find("trisomy 21")
    assert found is not None
    assert found.name == "Down syndrome"
    assert "2023-01-27" in found.ontology


def test_loading_returns_the_same_syndromes() -> None:
    assert load_syndromes() == BOOK.syndromes


def test_the_file_names_the_ontologys_version_as_its_licence_asks() -> None:
    text = CASEBOOK.read_text(encoding="utf-8")
    assert "This service/product uses the Human Phenotype Ontology (version 2024-08-13)." in text


def write(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in SMALL_BOOK
    path = tmp_path / "book.yaml"
    path.write_text(SMALL_BOOK.replace(old, new), encoding="utf-8")
    return path


def test_a_casebook_of_one_syndrome_is_read(tmp_path: Path) -> None:
    (syndrome,) = load_casebook(write(tmp_path)).syndromes
    assert syndrome.frequency_table() == (
        (Finding(id="HP:0000316", label="Hypertelorism"), 0.9),
        (Finding(id="HP:0001629", label="Ventricular septal defect"), 0.2),
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0.9", "1.9", "frequency above 0 and at most 1, got 1.9"),
        ("0.9", "0", "frequency above 0"),
        ("HP:0000316, Hyper", "HP:0000218, High palate hyper", "wrong one of face and other"),
        ("HP:0001629, Ventricular", "HP:0000316, Ventricular", "wrong one of face and other"),
        ("HP:0000316, Hyper", "HP:316, Hyper", "not a casebook"),
        ("    source: A review", "    sauce: A review", "sauce"),
        ("background:", "foreground:", "background"),
        ("[WES]", "3", "not a casebook"),
    ],
)
def test_a_casebook_with_a_mistake_is_refused_by_file_and_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    with pytest.raises(BadFileError, match=reason) as refused:
        load_casebook(write(tmp_path, old, new))
    assert "book.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_syndrome_without_findings_or_with_one_twice_is_refused() -> None:
    wide = TypicalFinding(finding=Finding(id="HP:0000316", label="Hypertelorism"), frequency=0.5, facial=True)
    with pytest.raises(ValueError, match="one or more findings of OMIM:1"):
        Syndrome(id="OMIM:1", name="X", findings=())
    with pytest.raises(ValueError, match="none named twice"):
        Syndrome(id="OMIM:1", name="X", findings=(wide, wide))


@pytest.mark.parametrize(
    ("frequency", "word"),
    [(1.0, "always"), (0.8, "very often"), (0.79, "often"), (0.29, "sometimes"), (0.01, "rarely")],
)
def test_frequencies_have_words(frequency: float, word: str) -> None:
    assert frequency_word(frequency) == word


def test_a_description_names_the_syndrome_and_all_its_findings() -> None:
    for syndrome in BOOK.syndromes:
        text = syndrome.description()
        assert text.startswith(syndrome.name)
        assert all(synonym in text for synonym in syndrome.synonyms)
        lowered = text.lower()
        assert all(typical.finding.label.lower() in lowered for typical in syndrome.findings)
        assert "\n" not in text


def test_public_sentences_are_as_many_as_asked_for_varied_and_repeatable() -> None:
    syndrome = BOOK.syndromes[0]
    sentences = syndrome.public_sentences(np.random.default_rng(1), 60)
    assert sentences == syndrome.public_sentences(np.random.default_rng(1), 60)
    assert len(sentences) == 60
    assert len(set(sentences)) > 40
    names = (syndrome.name, *syndrome.synonyms)
    assert all(sentence.endswith(".") and any(name in sentence for name in names) for sentence in sentences)


def read_rows(name: str) -> list[dict[str, Any]]:
    if not (DATA / name).exists():
        pytest.skip("needs ../shared/data/hpo")
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def terms() -> dict[str, dict[str, Any]]:
    return {term["id"]: term for term in read_rows("hp_terms.jsonl.gz")}


def ancestors(hp_id: str, terms: dict[str, dict[str, Any]]) -> set[str]:
    above: set[str] = set()
    todo = [hp_id]
    while todo:
        parents = set(terms.get(todo.pop(), {}).get("parents", [])) - above
        above |= parents
        todo.extend(parents)
    return above


@pytest.mark.data
def test_every_finding_is_a_live_term_of_the_ontology_under_its_label(
    terms: dict[str, dict[str, Any]],
) -> None:
    typical = [one.finding for syndrome in BOOK.syndromes for one in syndrome.findings]
    for finding in (*typical, *BOOK.background, *BOOK.broader.values()):
        assert terms[finding.id]["label"] == finding.label
        assert not terms[finding.id].get("obsolete")


@pytest.mark.data
def test_broader_words_are_ancestors_in_the_ontology(terms: dict[str, dict[str, Any]]) -> None:
    for narrow, broad in BOOK.broader.items():
        assert broad.id in ancestors(narrow, terms), terms[narrow]["label"]


@pytest.mark.data
def test_most_findings_and_frequencies_agree_with_the_published_annotations(
    terms: dict[str, dict[str, Any]], record_testsuite_property: Callable[[str, object], None]
) -> None:
    annotated = {row["disease_id"]: row for row in read_rows("disease_annotations.jsonl.gz")}
    agreeing, all_findings, close, with_figure = 0, 0, 0, 0
    for syndrome in BOOK.syndromes:
        rows = [annotated[disease] for disease in (syndrome.id, *SAME_DELETION.get(syndrome.id, ()))]
        figures: dict[str, list[float]] = {hp_id: [] for row in rows for hp_id in row.get("hpo_2025", [])}
        for phenotype in (one for row in rows for one in row.get("phenotypes", [])):
            if phenotype.get("qualifier") != "NOT":
                figures.setdefault(phenotype["id"], []).extend(
                    [phenotype["freq"]] if "freq" in phenotype else []
                )
        above = {term for hp_id in figures for term in ancestors(hp_id, terms)}
        for typical in syndrome.findings:
            hp_id = typical.finding.id
            all_findings += 1
            agreeing += hp_id in figures or hp_id in above or bool(ancestors(hp_id, terms) & figures.keys())
            if known := figures.get(hp_id):
                with_figure += 1
                close += min(abs(figure - typical.frequency) for figure in known) <= 0.25
    record_testsuite_property("annotated", agreeing / all_findings)
    record_testsuite_property("frequency_within_a_quarter", close / with_figure)
    assert agreeing / all_findings >= 0.8
    assert close / with_figure >= 0.8
