"""What a student answers for many cases, and the counts that may leave a site.

The order of a case's answers is that of the constrained beam's summed log-probabilities; the confidence of
an answer is the softmax of these, divided by a temperature, over the answers the beam kept. Only
``EvaluationCounts`` are ever sent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.patients.photos import SlideRef
from client.preferences.answers import answer_lines, names_exactly, says_unknown
from client.student.decode import TrieNode, decode_freely, rank_by_beam, shared_prefix
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.calibration import confidence_of
from common.evaluation_counts import EvaluationCounts
from common.metrics import FreeAnswer, MetricCounts, count_case
from common.tracks import AnswerList

TOP = 10
"""Answers of a case that a student's list has."""
CASES_AT_ONCE = 32
SPARE_BEAMS = 6
"""Partial answers a case keeps beyond the answers wanted: names that begin alike push others off the beam."""


@dataclass(frozen=True, kw_only=True)
class RankedCase:
    """A student's answers to one case.

    Attributes:
        answers: Indices into the plan's answers, best first: as many as were wanted.
        confidence: Of each, positive, together at most 1.
        scores: Summed log-probability of every answer the beam kept, best first, those not wanted included:
            as the student gave them, whatever the temperature.
        kept: The indices of all of these; where there are none, ``answers`` are all that was kept.
        temperature: What the scores were divided by before they became confidences.
    """

    answers: tuple[int, ...]
    confidence: tuple[float, ...]
    scores: tuple[float, ...]
    kept: tuple[int, ...] = ()
    temperature: float = 1.0

    def __post_init__(self) -> None:
        shown = len(self.answers)
        if len(self.confidence) != shown or self.everything[:shown] != self.answers:
            raise ValueError(f"Expected {shown} answers, the first of those kept, each with a confidence")
        if len(self.scores) != len(self.everything):
            raise ValueError(f"Expected {len(self.everything)} scores, got {len(self.scores)}")

    @classmethod
    def of(cls, kept: Sequence[int], scores: Sequence[float], top: int) -> RankedCase:
        """The first ``top`` of the answers kept, which are best first with a score each."""
        confidence = confidence_of(np.array(scores))[:top]
        return cls(
            answers=tuple(kept[:top]),
            confidence=tuple(float(value) for value in confidence),
            scores=tuple(scores),
            kept=tuple(kept),
        )

    @property
    def everything(self) -> tuple[int, ...]:
        """The indices of all answers that have a score."""
        return self.kept or self.answers

    def tempered(self, temperature: float) -> RankedCase:
        """The same answers with the confidences of another temperature; the order never changes."""
        confidence = confidence_of(np.array(self.scores), temperature)[: len(self.answers)]
        claimed = tuple(float(value) for value in confidence)
        return replace(self, confidence=claimed, temperature=temperature)

    def all_confidences(self) -> NDArray[np.float64]:
        """The confidence of each of ``everything``; they sum to 1."""
        return confidence_of(np.array(self.scores), self.temperature)

    def place_of(self, index: int) -> int | None:
        """Where an answer of the plan is among ``everything``; None where the beam lost it."""
        return self.everything.index(index) if index in self.everything else None


def rank_cases(
    student: Student,
    prompts: Sequence[StudentPrompt],
    trie: TrieNode,
    *,
    top: int,
    max_prompt_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[RankedCase]:
    """Rank the plan's answers for every prompt, at most ``top`` each, in the order of the prompts.

    Args:
        student: With its adapter loaded.
        prompts: With images for an image student, without for a text student.
        trie: From ``student.answer_trie``.
        top: Answers wanted.
        max_prompt_tokens: The plan's.
        on_progress: Called with the number of cases just finished.
    """
    # The header is the beginning of every answer: read with the prompt it costs no step of its own.
    prefix, branch = shared_prefix(trie)
    encoded = [(*ids, *prefix) for ids in _encode(student, prompts, max_prompt_tokens)]
    ranked: list[RankedCase | None] = [None] * len(prompts)
    for rows in batches_by_length(encoded, _shapes(student, prompts)):
        beams = rank_by_beam(
            student.model,
            [encoded[row] for row in rows],
            branch,
            beams=top + SPARE_BEAMS,
            pad_id=student.pad_id,
            vision=student.vision,
            images=_images(prompts, rows),
        )
        for row, found in zip(rows, beams, strict=True):
            ranked[row] = _ranked(found, top)
        if on_progress is not None:
            on_progress(len(rows))
    return [case for case in ranked if case is not None]


def batches_by_length(
    encoded: Sequence[Sequence[int]], shapes: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Row numbers in batches of cases of like length, so that little of a batch is padding.

    Guarantee: a batch holds only images whose tensors can be joined, which are those of equal ``shapes``.
    """
    alike: dict[Hashable, list[int]] = {}
    for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row])):
        alike.setdefault(None if shapes is None else shapes[row], []).append(row)
    return [
        rows[i : i + CASES_AT_ONCE] for rows in alike.values() for i in range(0, len(rows), CASES_AT_ONCE)
    ]


def _encode(student: Student, prompts: Sequence[StudentPrompt], longest: int) -> list[tuple[int, ...]]:
    return [student.prompt_ids(prompt.text, longest, prompt.image) for prompt in prompts]


def _shapes(student: Student, prompts: Sequence[StudentPrompt]) -> list[Hashable]:
    return [
        None if student.vision is None or prompt.image is None else student.vision.shapes(prompt.image)
        for prompt in prompts
    ]


def _images(prompts: Sequence[StudentPrompt], rows: Sequence[int]) -> list[SlideRef]:
    return [image for row in rows if (image := prompts[row].image) is not None]


def _ranked(found: Sequence[tuple[int, float]], top: int) -> RankedCase:
    return RankedCase.of([answer for answer, _ in found], [score for _, score in found], top)


def free_answers(
    student: Student,
    prompts: Sequence[StudentPrompt],
    header: str,
    answers: AnswerList,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
) -> list[FreeAnswer]:
    """What the student writes for each prompt without any constraint, read as a list of answers."""
    encoded = _encode(student, prompts, max_prompt_tokens)
    found = [FreeAnswer()] * len(prompts)
    for rows in batches_by_length(encoded, _shapes(student, prompts)):
        decoded = decode_freely(
            student.model,
            [encoded[row] for row in rows],
            pad_id=student.pad_id,
            end_id=student.end_id,
            longest=max_answer_tokens,
            vision=student.vision,
            images=_images(prompts, rows),
        )
        for row, ids in zip(rows, decoded, strict=True):
            text = student.tokenizer.decode(ids, skip_special_tokens=True)
            found[row] = read_free_answer(text, header, answers)
    return found


def read_free_answer(text: str, header: str, answers: AnswerList) -> FreeAnswer:
    """What a text lists: which answers of the plan, and whether by their own names.

    It abstains where it names no answer of the plan and either lists nothing or says that it does not know.
    """
    lines = answer_lines(text, header, answers)
    named = [answer for _, answer in lines]
    return FreeAnswer(
        valid=tuple(answer is not None for answer in named),
        ids=tuple(None if answer is None else answer.id for answer in named),
        exact=tuple(answer is not None and names_exactly(line, answer) for line, answer in lines),
        abstained=not any(named) and (not lines or any(says_unknown(line) for line, _ in lines)),
    )


def count_cases(
    ranked: Sequence[RankedCase],
    truths: Sequence[str],
    answers: AnswerList,
    *,
    free: Sequence[FreeAnswer] | None = None,
    teacher_tops: Sequence[Sequence[str]] | None = None,
    teacher_bottoms: Sequence[Sequence[str]] | None = None,
) -> EvaluationCounts:
    """The pooled counts of many cases, read at the temperature they have.

    Args:
        ranked: All at one temperature.
        truths: Id of the right answer of each.
        answers: The plan's.
        free: Of the first cases, those that were also decoded freely.
        teacher_tops: Of each case, ids of the teacher's first answers; ``teacher_bottoms`` of its last.
    """
    temperatures = {case.temperature for case in ranked} or {1.0}
    if len(temperatures) > 1:
        raise ValueError(f"Expected cases at one temperature, got {sorted(temperatures)}")
    total = MetricCounts()
    for row, (case, truth) in enumerate(zip(ranked, truths, strict=True)):
        total += count_case(
            [answers.answers[index].id for index in case.answers],
            truth,
            teacher_top=None if teacher_tops is None else teacher_tops[row],
            teacher_bottom=None if teacher_bottoms is None else teacher_bottoms[row],
            free=None if free is None or row >= len(free) else free[row],
        )
    # A site may know a label that is no answer of the plan: no place, as for an answer the beam lost.
    index = {answer.id: i for i, answer in enumerate(answers.answers)}
    return EvaluationCounts.from_cases(
        total,
        [np.array(case.scores) for case in ranked],
        [case.place_of(index.get(truth, -1)) for case, truth in zip(ranked, truths, strict=True)],
        temperatures.pop(),
    )
