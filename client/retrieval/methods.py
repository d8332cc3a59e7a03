"""Five ways from a note to ten answers, and the search engine alone (arXiv 2503.12286).

``base`` asks for the list. ``chain_of_thought`` asks five questions in one prompt. ``rag`` searches with the
note and asks for the list with what was found. ``rag_driven_cot`` does both in one prompt.
``cot_driven_rag`` asks four questions one after the other, searches with the answer to the first, and asks
for the list with what was found. ``routed`` takes one of the last two by the note's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from client.retrieval.index import Document
from client.retrieval.lists import ListRead, before_list, read_list
from client.retrieval.questions import (
    Gives,
    Part,
    Task,
    base_prompt,
    chain_prompt,
    fit,
    held_to_reference,
    turn_prompt,
    with_reference,
)
from client.retrieval.readers import Reader
from client.retrieval.retrievers import Retriever
from common.tracks import AnswerList

ALL = 1_000_000_000
"""More documents than any index has."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a method made of one note.

    Attributes:
        steps: What the reader wrote, turn by turn.
        searched: Whether the index was searched, which may find nothing.
        documents: What was found for it and given to the reader.
        ranked: Ids of its answers, best first; None keeps the place of a name that is no answer.
        confidence: Of each of ``ranked``, where the list was held to the plan's answers; empty otherwise.
        tokens_in, tokens_out: Read and written, over all turns.
        tokens_cut: That its prompts lost because they were too long for the reader.
        format_ok: Whether the list has the form that was asked for.
        abstained: Whether there is no list, or it says that nothing is known.
    """

    steps: tuple[str, ...] = ()
    searched: bool = False
    documents: tuple[Document, ...] = ()
    ranked: tuple[str | None, ...] = ()
    confidence: tuple[float, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cut: int = 0
    format_ok: bool
    abstained: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """The answers without the places of names that are none."""
        return tuple(one for one in self.ranked if one is not None)


class Method(Protocol):
    """A way from a note to answers."""

    def __call__(self, note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
        """Answer for one note."""
        ...


def base(note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
    """The reader alone."""
    return _Talk(reader, task).list(base_prompt(note, task))


def chain_of_thought(note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
    """The reader alone, led by the five questions in one prompt."""
    return _Talk(reader, task).reasoned(chain_prompt(note, task))


def rag(note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
    """The reader with what the search finds for the note."""
    documents = _found(retriever, note, task)
    return _Talk(reader, task).list(with_reference(base_prompt(note, task), documents, 0), documents)


def rag_driven_cot(note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
    """The reader with what the search finds for the note, led by the five questions in one prompt."""
    documents = _found(retriever, note, task)
    return _Talk(reader, task).reasoned(held_to_reference(chain_prompt(note, task), documents), documents)


def cot_driven_rag(note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
    """The reader, led turn by turn; the search reads its answer to the first question, not the note."""
    talk = _Talk(reader, task)
    turns: list[str] = []
    for question in task.questions:
        turns.append(f"{question} {talk.ask(turn_prompt(note, turns, question), task.step_tokens)}")
    documents = _found(retriever, talk.steps[0], task)
    parts = turn_prompt(note, turns, task.final)
    return talk.list(with_reference(parts, documents, len(parts) - 1), documents)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "base": base,
        "cot": chain_of_thought,
        "rag": rag,
        "rag_cot": rag_driven_cot,
        "cot_rag": cot_driven_rag,
    }
)


def note_length(note: str) -> int:
    """In words."""
    return len(note.split())


def router(length: int, threshold: int) -> Method:
    """The method for a note of ``length`` words: led by the search if it is short, by questions if long."""
    return rag_driven_cot if length < threshold else cot_driven_rag


@dataclass(frozen=True)
class Routed:
    """The method that takes one of two by the note's length.

    Attributes:
        threshold: From how many words on a note is long.
    """

    threshold: int

    def __call__(self, note: str, reader: Reader, retriever: Retriever, task: Task) -> Answered:
        """Answer for one note."""
        return router(note_length(note), self.threshold)(note, reader, retriever, task)


def learn_threshold(lengths: Sequence[int], short_right: Sequence[bool], long_right: Sequence[bool]) -> int:
    """The threshold of ``router`` with most right answers on validation notes; of equals the smallest.

    Args:
        lengths: Of the notes, in words.
        short_right: Whether the method for short notes was right on each of them.
        long_right: The same for the method for long notes.
    """
    notes = list(zip(lengths, short_right, long_right, strict=True))
    if not notes:
        raise ValueError("Expected at least one validation note, got none")
    candidates = [*sorted(set(lengths)), max(lengths) + 1]

    def right(threshold: int) -> int:
        return sum(short if length < threshold else long for length, short, long in notes)

    # The first of the largest: max keeps the earliest, and candidates ascend.
    return max(candidates, key=right)


def search_alone(retriever: Retriever, note: str, answers: AnswerList, documents: int = 1) -> Answered:
    """The search engine as a method: the plan's answers in the order of their documents' scores.

    Answers without a document, or without any word of the note in it, are not ranked; nothing else of the
    index is. ``documents`` are those of the first answers.
    """
    wanted = set(answers.ids)
    own = [hit.document for hit in retriever.search(note, ALL) if hit.document.id in wanted]
    return Answered(
        searched=True,
        documents=tuple(own[:documents]),
        ranked=tuple(document.id for document in own),
        format_ok=True,
        abstained=not own,
    )


def _found(retriever: Retriever, query: str, task: Task) -> tuple[Document, ...]:
    return tuple(hit.document for hit in retriever.search(query, task.documents, task.kind))


class _Talk:
    """The turns with one reader about one note, and what they cost."""

    def __init__(self, reader: Reader, task: Task) -> None:
        self._reader, self._task = reader, task
        self.steps: list[str] = []
        self._read = self._written = self._cut = 0

    def ask(self, parts: Sequence[Part], longest: int) -> str:
        """What the reader writes, without white space around it."""
        prompt, cut = fit(parts, self._reader.longest_prompt, self._reader.count)
        written = self._reader.generate(prompt, longest)
        self._cut += cut
        self._read += written.tokens_in
        self._written += written.tokens_out
        self.steps.append(written.text.strip())
        return self.steps[-1]

    def list(self, parts: Sequence[Part], documents: Sequence[Document] | None = None) -> Answered:
        """The list that the reader is held to, or else writes."""
        return self._held(parts, documents) or self._own(self.ask(parts, self._task.step_tokens), documents)

    def reasoned(self, parts: Sequence[Part], documents: Sequence[Document] | None = None) -> Answered:
        """The same of a reader that reasons before it lists, in one answer."""
        text = self.ask(parts, self._task.chain_tokens)
        # Where the list is held to the answers, what was written before a list is read with the question.
        reasoning = Part(before_list(text, self._task.header), Gives.TURN)
        return self._held([*parts[:-1], reasoning, parts[-1]], documents) or self._own(text, documents)

    def _held(self, parts: Sequence[Part], documents: Sequence[Document] | None) -> Answered | None:
        prompt, cut = fit(parts, self._reader.longest_prompt, self._reader.count)
        ranked = self._reader.rank(prompt, self._task)
        if ranked is None:
            return None
        self._read += self._reader.count(prompt)
        self._cut += cut
        read = ListRead(ranked=tuple(one for one, _ in ranked), format_ok=True, abstained=not ranked)
        return self._answered(read, documents, tuple(confidence for _, confidence in ranked))

    def _own(self, text: str, documents: Sequence[Document] | None) -> Answered:
        read = read_list(text, self._task.header, self._task.answers, self._task.wanted)
        return self._answered(read, documents)

    def _answered(
        self, read: ListRead, documents: Sequence[Document] | None, confidence: tuple[float, ...] = ()
    ) -> Answered:
        return Answered(
            steps=tuple(self.steps),
            searched=documents is not None,
            documents=tuple(documents or ()),
            ranked=read.ranked,
            confidence=confidence,
            tokens_in=self._read,
            tokens_out=self._written,
            tokens_cut=self._cut,
            format_ok=read.format_ok,
            abstained=read.abstained,
        )
