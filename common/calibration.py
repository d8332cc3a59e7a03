"""Whether a confidence means what it says: reliability bins and the expected calibration error.

The bins are whole numbers, confidence sums included, so that the bins of sites add up exactly and can
travel inside a secure sum: 10 x 3 numbers a site.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.fixedpoint import Words, decode_counts, encode_counts

BINS = 10
# Steps of a confidence of 1. A bin's sum fits a word up to 65,535 cases; a case is off by 2**-17 at most.
CONFIDENCE_STEPS = 2**16


@dataclass(frozen=True, kw_only=True)
class ReliabilityBins:
    """Ten bins of equal width: [0, 0.1), [0.1, 0.2), ... [0.9, 1].

    Guarantee: the ECE of added bins is the ECE of all their cases in one set of bins.

    Attributes:
        n: Cases in each bin.
        correct: Those of them that were right.
        confidence_sum: Sum of their confidences, in steps of ``1 / CONFIDENCE_STEPS``.
    """

    n: tuple[int, ...] = (0,) * BINS
    correct: tuple[int, ...] = (0,) * BINS
    confidence_sum: tuple[int, ...] = (0,) * BINS

    def __post_init__(self) -> None:
        for name in ("n", "correct", "confidence_sum"):
            if len(getattr(self, name)) != BINS:
                raise ValueError(f"Expected {BINS} bins of {name}, got {len(getattr(self, name))}")
        for i, (n, correct, total) in enumerate(zip(self.n, self.correct, self.confidence_sum, strict=True)):
            if not (0 <= correct <= n and 0 <= total <= n * CONFIDENCE_STEPS):
                raise ValueError(f"Expected no more than {n} cases in bin {i}, got {correct}, sum {total}")

    @classmethod
    def from_cases(cls, confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> ReliabilityBins:
        """The bins of cases; both arrays (n,), confidences between 0 and 1."""
        if confidence.ndim != 1 or confidence.shape != correct.shape:
            raise ValueError(f"Expected one confidence a case, got {confidence.shape}, {correct.shape}")
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("Expected confidences between 0 and 1")
        steps = np.rint(confidence.astype(np.float64) * CONFIDENCE_STEPS).astype(np.int64)
        # The bin is that of the rounded confidence: a bin's mean then never lies outside the bin.
        place = np.minimum(steps * BINS // CONFIDENCE_STEPS, BINS - 1)
        return cls(
            n=_by_bin(place, np.ones_like(steps)),
            correct=_by_bin(place, correct.astype(np.int64)),
            confidence_sum=_by_bin(place, steps),
        )

    def __add__(self, other: ReliabilityBins) -> ReliabilityBins:
        """The bins of both together."""
        return ReliabilityBins(
            n=_sums(self.n, other.n),
            correct=_sums(self.correct, other.correct),
            confidence_sum=_sums(self.confidence_sum, other.confidence_sum),
        )

    def ece(self) -> float | None:
        """Expected calibration error: mean over cases of |accuracy - confidence| of their bin.

        Empty bins weigh nothing; None where no case was counted.
        """
        gap = np.abs(np.array(self.correct) - np.array(self.confidence_sum) / CONFIDENCE_STEPS)
        return float(gap.sum() / sum(self.n)) if sum(self.n) else None

    def noise_floor(self, rng: np.random.Generator, draws: int = 1000) -> float | None:
        """The ECE that a perfectly calibrated model would show on average at these bins.

        Right answers are drawn at the bins' own mean confidences. An ECE near this figure is no sign
        of miscalibration. None where no case was counted.
        """
        if not sum(self.n):
            return None
        n = np.array(self.n)
        expected = np.array(self.confidence_sum) / CONFIDENCE_STEPS
        mean = np.divide(expected, n, out=np.zeros(BINS), where=n > 0)
        drawn = rng.binomial(n, mean, size=(draws, BINS))
        return float(np.abs(drawn - expected).sum(axis=1).mean() / n.sum())

    def to_words(self) -> Words:
        """The 30 numbers as uint32 words: n, then correct, then confidence sums."""
        return encode_counts([*self.n, *self.correct, *self.confidence_sum])

    @classmethod
    def from_words(cls, words: Words) -> ReliabilityBins:
        """The bins of words, or of their sum. ValueError where they cannot be bins of cases."""
        if words.shape != (3 * BINS,):
            raise ValueError(f"Expected {3 * BINS} words of bins, got {words.shape}")
        numbers = decode_counts(words)
        return cls(n=numbers[:BINS], correct=numbers[BINS : 2 * BINS], confidence_sum=numbers[2 * BINS :])


def _by_bin(place: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[int, ...]:
    sums = np.zeros(BINS, dtype=np.int64)
    np.add.at(sums, place, values)
    return tuple(int(value) for value in sums)


def _sums(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
