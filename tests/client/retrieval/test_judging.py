"""Tests of judging a method."""

from functools import partial

import pytest

from client.retrieval.index import OntologyIndex
from client.retrieval.judging import evaluate_method
from client.retrieval.methods import base, cot_driven_rag, rag, search_alone
from client.retrieval.questions import disease_task
from client.retrieval.retrievers import Bm25Retriever
from common.tracks import Answer, AnswerList
from tests.client.retrieval.tiny import PLANTED, ToldReader, numbered

ANSWERS = AnswerList(answers=tuple(Answer(id=f"OMIM:{i}", name=f"Disease {i}") for i in (1, 2, 3)))
NOTES = [f"A boy with {PLANTED}.", "A girl with seizure.", "Nobody.", "Cleft palate."]
TRUTHS = ["OMIM:2", "OMIM:1", "OMIM:1", "OMIM:3"]
HEADER = "POTENTIAL_DISEASES:"


def test_an_empty_answer_stays_with_its_case(index: OntologyIndex) -> None:
    reader = ToldReader("", f"{HEADER}\n1. Disease 2\n2. Disease 1", "", f"{HEADER}\n1. Disease 3")
    report = evaluate_method(
        partial(rag, reader=reader, retriever=Bm25Retriever(index), task=disease_task(ANSWERS)), NOTES, TRUTHS
    )
    assert [note.truth for note in report.notes] == TRUTHS
    assert [note.rank for note in report.notes] == [None, 2, None, 1]
    # For "seizure" the shorter document of OMIM:2 is found; for "Nobody." none.
    assert [note.hit for note in report.notes] == [True, False, False, True]
    assert (report.top(1), report.top(10)) == (0.25, 0.5)
    assert (report.hit_rate, report.abstained, report.compliance) == (0.5, 0.5, 0.0)
    assert report.tokens * 4 == sum(map(reader.count, reader.prompts)) + 7 + 4
    assert report.seconds >= 0


def test_a_list_of_ten_complies_and_a_method_without_a_search_has_no_hit_rate(index: OntologyIndex) -> None:
    names = [*ANSWERS.names, *(f"Other {i}" for i in range(7))]
    reader = ToldReader(numbered(HEADER, names), numbered(HEADER, names[:9]))
    done: list[int] = []
    report = evaluate_method(
        partial(base, reader=reader, retriever=Bm25Retriever(index), task=disease_task(ANSWERS)),
        NOTES[:2],
        TRUTHS[:2],
        on_progress=done.append,
    )
    assert (report.compliance, report.hit_rate, done) == (0.5, None, [1, 1])


def test_a_search_that_finds_nothing_has_a_hit_rate_of_nothing(index: OntologyIndex) -> None:
    reader = ToldReader("", "", "", "", "")
    method = partial(
        cot_driven_rag, reader=reader, retriever=Bm25Retriever(index), task=disease_task(ANSWERS)
    )
    assert evaluate_method(method, NOTES[:1], TRUTHS[:1]).hit_rate == 0.0


def test_a_document_of_a_gene_is_a_hit_for_its_disease(index: OntologyIndex) -> None:
    reader = ToldReader(f"{HEADER}\n1. GENB")
    task = disease_task(index.genes())
    report = evaluate_method(
        partial(rag, reader=reader, retriever=Bm25Retriever(index), task=task), NOTES[:1], ["GENB"]
    )
    assert report.notes[0].hit is True


def test_the_search_alone_is_judged_like_any_method(index: OntologyIndex) -> None:
    search = Bm25Retriever(index)
    report = evaluate_method(lambda note: search_alone(search, note, ANSWERS), NOTES, TRUTHS)
    assert [note.rank for note in report.notes] == [1, 2, None, 1]
    assert (report.hit_rate, report.abstained, report.tokens) == (0.5, 0.25, 0.0)


def test_a_truth_is_needed_for_each_note() -> None:
    with pytest.raises(ValueError, match="a truth for each of 4 notes"):
        evaluate_method(lambda note: None, NOTES, TRUTHS[:3])
    with pytest.raises(ValueError, match="at least one"):
        evaluate_method(lambda note: None, [], [])
