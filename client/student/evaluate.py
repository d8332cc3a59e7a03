"""What a student answers for many cases, and the counts that may leave a site.

The order of a case's answers is that of the constrained beam's summed log-probabilities; the confidence of
an answer is the softmax of these over the answers the beam kept. Only ``MetricCounts`` are ever sent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from client.patients.photos import SlideRef
from client.preferences.answers import parse_answers
from client.student.decode import TrieNode, decode_freely, rank_by_beam, shared_prefix
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.metrics import MetricCounts, count_case
from common.tracks import AnswerList

CASES_AT_ONCE = 32
SPARE_BEAMS = 6
"""Partial answers a case keeps beyond the answers wanted: names that begin alike push others off the beam."""


@dataclass(frozen=True, kw_only=True)
class RankedCase:
    """A student's answers to one case.

    Attributes:
        answers: Indices into the plan's answers, best first.
        confidence: Of each, positive, together at most 1.
    """

    answers: tuple[int, ...]
    confidence: tuple[float, ...]


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
    scores = np.array([score for _, score in found])
    weights = np.exp(scores - scores.max())
    confidence = weights / weights.sum()
    return RankedCase(
        answers=tuple(answer for answer, _ in found[:top]),
        confidence=tuple(float(value) for value in confidence[:top]),
    )


def free_answers(
    student: Student,
    prompts: Sequence[StudentPrompt],
    header: str,
    answers: AnswerList,
    *,
    max_prompt_tokens: int,
    max_answer_tokens: int,
) -> list[list[bool]]:
    """For each prompt, whether each freely decoded answer names an answer of the plan."""
    encoded = _encode(student, prompts, max_prompt_tokens)
    valid: list[list[bool]] = [[] for _ in prompts]
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
            valid[row] = [answer is not None for answer in parse_answers(text, header, answers)]
    return valid


def count_cases(
    ranked: Sequence[RankedCase],
    truths: Sequence[str],
    answers: AnswerList,
    *,
    valid: Sequence[Sequence[bool]] | None = None,
    teacher_tops: Sequence[Sequence[str]] | None = None,
    teacher_bottoms: Sequence[Sequence[str]] | None = None,
) -> MetricCounts:
    """The pooled counts of many cases; ``valid`` may cover the first of them only."""
    total = MetricCounts()
    for row, (case, truth) in enumerate(zip(ranked, truths, strict=True)):
        total += count_case(
            [answers.answers[index].id for index in case.answers],
            truth,
            teacher_top=None if teacher_tops is None else teacher_tops[row],
            teacher_bottom=None if teacher_bottoms is None else teacher_bottoms[row],
            free_answers_valid=None if valid is None or row >= len(valid) else valid[row],
        )
    return total
