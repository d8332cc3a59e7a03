"""How good a student's answers are, from counts, so that sites add up.

A site counts its own cases and sends the counts only, inside a sum; every rate below is a quotient of
two pooled counts. Coverage and avoidance (MINT) are taken on the *model's* answer:

    coverage  =     |first k answers of the model  ∩  teacher's top|    / k
    avoidance = 1 - |first k answers of the model  ∩  teacher's bottom| / k
    CAR       = (1 + w) * coverage * avoidance / (w * coverage + avoidance)

What a student writes without any constraint is counted apart: by answers, whether a name is the plan's,
and by cases, whether the truth is named, by any of its names or by the very name of the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from common.fixedpoint import Words, decode_counts, encode_counts


@dataclass(frozen=True, kw_only=True)
class FreeAnswer:
    """What a text without any constraint lists, one entry an answer in its order.

    Attributes:
        valid: Whether it names an answer of the plan.
        ids: The id of that answer, by its name or a synonym that no other answer shares; None for no answer.
        exact: Whether it is named by its own name; case and white space are ignored.
        abstained: The text says that it does not know, and names no answer of the plan. A text that lists
            nothing at all abstains whatever this says.
    """

    valid: tuple[bool, ...] = ()
    ids: tuple[str | None, ...] = ()
    exact: tuple[bool, ...] = ()
    abstained: bool = False

    def __post_init__(self) -> None:
        if not len(self.valid) == len(self.ids) == len(self.exact):
            got = f"{len(self.valid)}, {len(self.ids)}, {len(self.exact)}"
            raise ValueError(f"Expected as many valid, ids and exact, got {got}")
        for valid, found, exact in zip(self.valid, self.ids, self.exact, strict=True):
            if valid != (found is not None) or (exact and not valid):
                raise ValueError(f"Expected an id of valid answers only, got {found!r}, {valid}, {exact}")
        if self.abstained and any(self.valid):
            raise ValueError("Expected no valid answer of a text that abstains")

    def names(self, truth: str, among: int, *, exact: bool = False) -> bool:
        """Whether one of the first ``among`` answers is the truth; with ``exact`` by its own name."""
        first = zip(self.ids[:among], self.exact[:among], strict=True)
        return any(found == truth and (own or not exact) for found, own in first)


@dataclass(frozen=True, kw_only=True)
class MetricCounts:
    """Counts over cases; all of them add up.

    Attributes:
        n: Cases counted.
        top1: Cases whose truth is the first answer; ``top5`` and ``top10`` likewise among the first 5, 10.
        invalid: Freely decoded answers that name no answer of the plan.
        free: Freely decoded answers.
        free_cases: Cases that were decoded freely.
        free_top1: Those whose first free answer is the truth, by any of its names; ``free_top10`` likewise
            among the first 10, ``free_top1_exact`` and ``free_top10_exact`` by the plan's own name alone.
        abstained: Those whose free text lists nothing or says that it does not know.
        coverage_hits: Answers among the first k that are in the teacher's top.
        coverage_total: The k of all cases counted for coverage.
        avoidance_hits: Answers among the first k that are not in the teacher's bottom, missing ones included.
        avoidance_total: The k of all cases counted for avoidance.
    """

    n: int = 0
    top1: int = 0
    top5: int = 0
    top10: int = 0
    invalid: int = 0
    free: int = 0
    free_cases: int = 0
    free_top1: int = 0
    free_top10: int = 0
    free_top1_exact: int = 0
    free_top10_exact: int = 0
    abstained: int = 0
    coverage_hits: int = 0
    coverage_total: int = 0
    avoidance_hits: int = 0
    avoidance_total: int = 0

    # Each rate by the count above and the count below the line.
    RATES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "top1": ("top1", "n"),
        "top5": ("top5", "n"),
        "top10": ("top10", "n"),
        "invalid_rate": ("invalid", "free"),
        "free_top1": ("free_top1", "free_cases"),
        "free_top10": ("free_top10", "free_cases"),
        "free_top1_exact": ("free_top1_exact", "free_cases"),
        "free_top10_exact": ("free_top10_exact", "free_cases"),
        "abstained": ("abstained", "free_cases"),
        "coverage": ("coverage_hits", "coverage_total"),
        "avoidance": ("avoidance_hits", "avoidance_total"),
    }

    def __post_init__(self) -> None:
        if not 0 <= self.top1 <= self.top5 <= self.top10 <= self.n:
            got = f"{self.top1}, {self.top5}, {self.top10}, {self.n}"
            raise ValueError(f"Expected 0 <= top1 <= top5 <= top10 <= n, got {got}")
        for part, whole in self.RATES.values():
            if not 0 <= getattr(self, part) <= getattr(self, whole):
                got = f"{getattr(self, part)} of {getattr(self, whole)}"
                raise ValueError(f"Expected 0 <= {part} <= {whole}, got {got}")
        for less, more in _NESTED:
            if getattr(self, less) > getattr(self, more):
                raise ValueError(
                    f"Expected {less} <= {more}, got {getattr(self, less)} and {getattr(self, more)}"
                )
        if self.free_top10 + self.abstained > self.free_cases:
            got = f"{self.free_top10} + {self.abstained} of {self.free_cases}"
            raise ValueError(f"Expected free_top10 + abstained <= free_cases, got {got}")

    def __add__(self, other: MetricCounts) -> MetricCounts:
        """The counts of both together."""
        return MetricCounts(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def rate(self, name: str) -> float | None:
        """One of ``RATES`` or ``car``; None where nothing was counted, which is not the same as zero."""
        if name == CAR:
            return self.car()
        if name not in self.RATES:
            raise ValueError(f"Expected one of {', '.join(self.RATES)}, got {name!r}")
        part, whole = self.RATES[name]
        return getattr(self, part) / getattr(self, whole) if getattr(self, whole) else None

    def car(self, weight: float = 1.0) -> float | None:
        """Coverage-avoidance ratio (MINT): one number of the pooled coverage and avoidance.

        Their harmonic mean at weight 1; near coverage at weight 0, near avoidance at a large one. 0 where
        both are 0; None where one of them was not counted.
        """
        coverage, avoidance = self.rate("coverage"), self.rate("avoidance")
        if coverage is None or avoidance is None:
            return None
        below = weight * coverage + avoidance
        return (1 + weight) * coverage * avoidance / below if below else 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """``n`` and every rate by name, CAR last."""
        return {"n": self.n, **{name: self.rate(name) for name in (*self.RATES, CAR)}}

    def to_words(self) -> Words:
        """The counts as uint32 words of ``WORD_COUNT``, in the order of the fields."""
        return encode_counts([getattr(self, name) for name in _NAMES])

    @classmethod
    def from_words(cls, words: Words) -> MetricCounts:
        """The counts of words, or of their sum. ValueError where they cannot be counts of cases."""
        if words.shape != (WORD_COUNT,):
            raise ValueError(f"Expected {WORD_COUNT} words of counts, got {words.shape}")
        return cls(**dict(zip(_NAMES, decode_counts(words), strict=True)))


CAR = "car"
FREE_TOP = 10
# What holds beside each rate being at most 1.
_NESTED = (
    ("free_top1_exact", "free_top1"),
    ("free_top1_exact", "free_top10_exact"),
    ("free_top1", "free_top10"),
    ("free_top10_exact", "free_top10"),
    ("free_cases", "n"),
    ("free_cases", "free"),  # a text without any answer counts as one invalid answer
    ("abstained", "invalid"),
)
_NAMES = tuple(field.name for field in fields(MetricCounts))
WORD_COUNT = len(_NAMES)


def count_case(
    ranked: Sequence[str],
    truth: str,
    *,
    teacher_top: Collection[str] | None = None,
    teacher_bottom: Collection[str] | None = None,
    k: int | None = None,
    free: FreeAnswer | None = None,
) -> MetricCounts:
    """The counts of one case.

    Args:
        ranked: Ids of the model's answers, best first.
        truth: Id of the right answer.
        teacher_top: Ids of the teacher's first answers; None where there is no teacher.
        teacher_bottom: Ids of the teacher's last answers.
        k: How many of the model's answers coverage and avoidance look at; as many as ``teacher_top``
            holds, or else ``teacher_bottom``, if not given.
        free: What free decoding wrote; None where the case was not decoded freely. A text that lists no
            answer at all counts as one invalid answer.
    """
    place = ranked.index(truth) if truth in ranked else len(ranked) + 10
    k = len(teacher_top or teacher_bottom or ()) if k is None else k
    if (teacher_top is not None or teacher_bottom is not None) and k < 1:
        raise ValueError(f"Expected k >= 1, got {k}")
    shown = set(ranked[:k])
    return MetricCounts(
        n=1,
        top1=int(place < 1),
        top5=int(place < 5),
        top10=int(place < 10),
        coverage_hits=0 if teacher_top is None else len(shown & set(teacher_top)),
        coverage_total=0 if teacher_top is None else k,
        avoidance_hits=0 if teacher_bottom is None else k - len(shown & set(teacher_bottom)),
        avoidance_total=0 if teacher_bottom is None else k,
        **_count_free(truth, free),
    )


def _count_free(truth: str, free: FreeAnswer | None) -> dict[str, int]:
    if free is None:
        return {}
    valid = free.valid or (False,)
    return {
        "invalid": valid.count(False),
        "free": len(valid),
        "free_cases": 1,
        "free_top1": int(free.names(truth, 1)),
        "free_top10": int(free.names(truth, FREE_TOP)),
        "free_top1_exact": int(free.names(truth, 1, exact=True)),
        "free_top10_exact": int(free.names(truth, FREE_TOP, exact=True)),
        "abstained": int(free.abstained or not free.valid),
    }


def bootstrap_interval(
    correct: NDArray[np.bool_], rng: np.random.Generator, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of an accuracy over cases.

    A resample with replacement of n right-or-wrong cases has a binomial number of right ones, so that
    number is drawn and no case is copied.
    """
    if correct.size == 0:
        raise ValueError("Expected at least one case, got none")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"Expected 0 < level < 1 and draws >= 1, got {level} and {draws}")
    rates = rng.binomial(correct.size, np.count_nonzero(correct) / correct.size, size=draws) / correct.size
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
