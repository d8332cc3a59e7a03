"""A site's own question to a student or to the search: a method by its name, ready to answer notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from client.retrieval.index import DocumentKind, OntologyIndex
from client.retrieval.judging import Answerer
from client.retrieval.methods import METHODS, Answered, Method, Routed, search_alone
from client.retrieval.questions import student_task
from client.retrieval.readers import StudentReader
from client.retrieval.retrievers import Bm25Retriever, Hit, Retriever
from client.student.predict import load_answers, load_student
from client.student.predictions import Prediction, RankedAnswer, ReadDocument
from common.tracks import AnswerList

Predict = Callable[[str, str], Prediction]
"""Answers a case: its id and its note."""


class _Nowhere:
    """The search of a method that needs none."""

    def search(self, query: str, k: int, kind: DocumentKind | None = None) -> list[Hit]:
        """Nothing."""
        return []


def open_method(
    name: str,
    folder: Path,
    track: str,
    *,
    base_model: str | None,
    index: Path | None,
    documents: int,
    long_note: int,
    top: int,
) -> Predict:
    """A method over a student's answers: the student is held to them, and the search ranks no others.

    Args:
        name: ``search``, ``router``, or one of ``METHODS``.
        folder: Of the student; the search reads its answers alone.
        track: Of the student.
        base_model: Another place of the student's base.
        index: Of a method that searches; None for one that does not.
        documents: That are found for a note.
        long_note: From how many words on the router takes a note for long.
        top: Answers wanted.

    Raises:
        BadFileError, UnsupportedSchemaError, DigestMismatchError: The index or the student is not as it was
            written.
    """
    answers = load_answers(folder, track)
    retriever: Retriever = _Nowhere() if index is None else Bm25Retriever(OntologyIndex.load(index))
    if name == "search":
        return partial(_by_search, retriever, answers, documents, top)
    method: Method = Routed(long_note) if name == "router" else METHODS[name]
    loaded = load_student(folder, base_model)
    reader = StudentReader(loaded.student, constrained=True, lists=loaded.card.chosen_length > 1)
    task = replace(student_task(answers), wanted=top, documents=documents)
    return partial(_by_method, partial(method, reader=reader, retriever=retriever, task=task), answers)


def _by_search(
    retriever: Retriever, answers: AnswerList, documents: int, top: int, case_id: str, note: str
) -> Prediction:
    found = search_alone(retriever, note, answers, documents)
    return _prediction(case_id, replace(found, ranked=found.ranked[:top]), answers)


def _by_method(answer: Answerer, answers: AnswerList, case_id: str, note: str) -> Prediction:
    return _prediction(case_id, answer(note), answers)


def _prediction(case_id: str, answered: Answered, answers: AnswerList) -> Prediction:
    names = dict(zip(answers.ids, answers.names, strict=True))
    claimed = answered.confidence or [None] * len(answered.ids)
    return Prediction(
        case_id=case_id,
        answers=tuple(
            RankedAnswer(id=one, name=names[one], confidence=confidence)
            for one, confidence in zip(answered.ids, claimed, strict=True)
        ),
        documents=tuple(ReadDocument(id=one.id, title=one.title) for one in answered.documents),
    )
