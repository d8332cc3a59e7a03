"""How a method does on cases whose answer is known: hits, ranks, form, abstentions, and what a note costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.retrieval.methods import Answered

Answerer = Callable[[str], Answered]
"""A method with its reader, retriever and task: ``functools.partial(rag, reader=..., ...)``."""


@dataclass(frozen=True, kw_only=True)
class JudgedNote:
    """A method on one note.

    Attributes:
        answered: What it made of it.
        truth: Id of the right answer.
        seconds: That it took.
    """

    answered: Answered
    truth: str
    seconds: float

    @property
    def rank(self) -> int | None:
        """The place of the right answer in the list, from 1; None if it is not in it."""
        ranked = self.answered.ranked
        return ranked.index(self.truth) + 1 if self.truth in ranked else None

    @property
    def hit(self) -> bool | None:
        """Whether a document that was found tells of the right answer; None where nothing was searched."""
        if not self.answered.searched:
            return None
        return any(document.tells_of(self.truth) for document in self.answered.documents)


@dataclass(frozen=True, kw_only=True)
class MethodReport:
    """A method on many notes.

    Guarantee: ``notes`` has one entry for each note, in order, also where nothing was answered.
    """

    notes: tuple[JudgedNote, ...]

    def top(self, k: int) -> float:
        """The share of notes whose right answer is among the first ``k``."""
        return self._mean([note.rank is not None and note.rank <= k for note in self.notes])

    @property
    def hit_rate(self) -> float | None:
        """The share of notes for which a document on the right answer was found; None without a search."""
        hits = [note.hit for note in self.notes if note.hit is not None]
        return self._mean(hits) if hits else None

    @property
    def compliance(self) -> float:
        """The share of lists in the form that was asked for."""
        return self._mean([note.answered.format_ok for note in self.notes])

    @property
    def abstained(self) -> float:
        """The share of notes without any answer."""
        return self._mean([note.answered.abstained for note in self.notes])

    @property
    def tokens(self) -> float:
        """Read and written a note, on average."""
        return self._mean([note.answered.tokens_in + note.answered.tokens_out for note in self.notes])

    @property
    def tokens_cut(self) -> float:
        """That prompts lost a note, on average."""
        return self._mean([note.answered.tokens_cut for note in self.notes])

    @property
    def seconds(self) -> float:
        """A note, on average."""
        return self._mean([note.seconds for note in self.notes])

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)


def evaluate_method(
    answer: Answerer,
    notes: Sequence[str],
    truths: Sequence[str],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> MethodReport:
    """Let a method answer notes whose truths are known.

    Args:
        answer: The method.
        notes: At least one.
        truths: Id of the right answer to each.
        on_progress: Called with 1 after each note.

    Raises:
        ValueError: There is no note, or not one truth for each.
    """
    if not notes or len(notes) != len(truths):
        raise ValueError(f"Expected a truth for each of {len(notes)} notes, at least one; got {len(truths)}")
    judged: list[JudgedNote] = []
    for note, truth in zip(notes, truths, strict=True):
        start = time.perf_counter()
        answered = answer(note)
        judged.append(JudgedNote(answered=answered, truth=truth, seconds=time.perf_counter() - start))
        if on_progress is not None:
            on_progress(1)
    return MethodReport(notes=tuple(judged))
