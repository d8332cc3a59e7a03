"""Whether a confidence means what it says: bins, calibration errors, proper scores, temperatures.

Everything is a sum of whole numbers, so that the sums of sites add up exactly and can travel inside a
secure sum. The calibration errors are those of calibration-aware fine-tuning (arXiv 2505.01997), with every
bin counted, the last one too:

    ECE            = sum over bins of |right - sum of confidences| / cases  (of the first answer's confidence)
    class-wise ECE = mean over classes of the same, a class's own confidence against "it is the truth"

Both look at one rounding and one split into bins. The Brier score and the log loss look at none, and cannot
be made small by always claiming the base rate: report them beside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from common.fixedpoint import Words, decode_counts, encode_counts

BINS = 10
# Steps of a confidence of 1. A bin's sum fits a word up to 65,535 cases; a case is off by 2**-17 at most.
CONFIDENCE_STEPS = 2**16
# Steps of a log loss or a Brier score of 1; as many cases fit, and one is off by 2**-13 at most.
SCORE_STEPS = 2**12
LEAST_CONFIDENCE = 1e-4
"""What a log loss takes for anything less: one truth that the beam lost would be an infinite loss."""
MOST_LOSS_STEPS = round(-math.log(LEAST_CONFIDENCE) * SCORE_STEPS)
TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (i / 8 - 2) for i in range(41))
"""From 0.25 to 8 in equal steps of the logarithm; 1 is one of them."""

Scores = NDArray[np.floating]
"""Summed log-probabilities of one case's answers, best first, (answers,)."""


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


@dataclass(frozen=True, kw_only=True)
class ClassBins:
    """Reliability bins of every class of an answer list: K x 10 x 3 numbers.

    A case is counted once for each class, at the confidence given to that class; it is "correct" where the
    class is the truth. So the bins tell how often each class was the truth: they are for a simulation and
    for the site itself, and no message carries them.

    Guarantee: the class-wise ECE of added bins is that of all their cases in one set of bins.
    """

    classes: tuple[ReliabilityBins, ...]

    @classmethod
    def from_cases(
        cls,
        answers: Sequence[Sequence[int]],
        confidence: Sequence[Scores],
        truths: Sequence[int],
        classes: int,
    ) -> ClassBins:
        """The bins of cases; a class that a case's ``answers`` do not name has confidence 0 there.

        Args:
            answers: Of each case, the classes that have a confidence, from 0 to ``classes - 1``.
            confidence: Of each of these.
            truths: Of each case, its class.
            classes: How many there are.
        """
        dense = np.zeros((len(truths), classes))
        for row, (own, claimed) in enumerate(zip(answers, confidence, strict=True)):
            dense[row, list(own)] = claimed
        is_truth = np.array(truths, dtype=np.int64)[:, None] == np.arange(classes)
        return cls(
            classes=tuple(ReliabilityBins.from_cases(dense[:, i], is_truth[:, i]) for i in range(classes))
        )

    def __add__(self, other: ClassBins) -> ClassBins:
        """The bins of both together; ValueError where they are not of as many classes."""
        if len(self.classes) != len(other.classes):
            raise ValueError(f"Expected bins of {len(self.classes)} classes, got {len(other.classes)}")
        return ClassBins(classes=tuple(a + b for a, b in zip(self.classes, other.classes, strict=True)))

    def ece(self) -> float | None:
        """Class-wise ECE: the mean over classes of their ECE; None where no case was counted.

        A class that is never the truth and never claimed counts as a class without error, so that figures
        of lists of different lengths cannot be compared.
        """
        return _mean([bins.ece() for bins in self.classes])

    def noise_floor(self, rng: np.random.Generator, draws: int = 200) -> float | None:
        """The class-wise ECE that a perfectly calibrated model would show on average at these bins."""
        return _mean([bins.noise_floor(rng, draws) for bins in self.classes])


@dataclass(frozen=True, kw_only=True)
class ProperScores:
    """Log loss and Brier score over cases; each is least in expectation for the true probabilities.

    Attributes:
        n: Cases.
        nll_steps: Sum of -log(confidence of the truth), in steps of ``1 / SCORE_STEPS``. A confidence below
            ``LEAST_CONFIDENCE``, as that of a truth that was not kept, counts as ``LEAST_CONFIDENCE``.
        brier_steps: Sum over cases of the squared distance of the answers' confidences from 1 for the truth
            and 0 for the others, from 0 to 2, in the same steps. A truth that was not kept adds 1.
    """

    n: int = 0
    nll_steps: int = 0
    brier_steps: int = 0

    def __post_init__(self) -> None:
        _require_steps("log loss", self.nll_steps, self.n * MOST_LOSS_STEPS)
        _require_steps("Brier score", self.brier_steps, self.n * 2 * SCORE_STEPS)

    @classmethod
    def from_cases(cls, confidence: Sequence[Scores], places: Sequence[int | None]) -> ProperScores:
        """The scores of cases.

        Args:
            confidence: Of each case's answers, (answers,).
            places: Where in them the truth is; None where it is none of them.
        """
        nll = brier = 0
        for own, place in zip(confidence, places, strict=True):
            truth = 0.0 if place is None else float(own[place])
            nll += round(-math.log(min(1.0, max(truth, LEAST_CONFIDENCE))) * SCORE_STEPS)
            # Rounding may have carried the sum of squares over 1 by a hair.
            squares = min(1.0, float(np.square(own, dtype=np.float64).sum()))
            brier += round(min(2.0, squares + 1 - 2 * truth) * SCORE_STEPS)
        return cls(n=len(places), nll_steps=nll, brier_steps=brier)

    def __add__(self, other: ProperScores) -> ProperScores:
        """The scores of both together."""
        return ProperScores(
            n=self.n + other.n,
            nll_steps=self.nll_steps + other.nll_steps,
            brier_steps=self.brier_steps + other.brier_steps,
        )

    def nll(self) -> float | None:
        """Mean log loss in nats, from 0 to 9.21; None where no case was counted."""
        return self.nll_steps / SCORE_STEPS / self.n if self.n else None

    def brier(self) -> float | None:
        """Mean Brier score, from 0 to 2; None where no case was counted."""
        return self.brier_steps / SCORE_STEPS / self.n if self.n else None


@dataclass(frozen=True, kw_only=True)
class TemperatureSums:
    """How well each of ``TEMPERATURES`` would do, so that sites find one together: 1 + 41 numbers.

    Attributes:
        n: Cases.
        nll_steps: For each temperature, the sum over cases of the log loss of "the first answer is right" at
            the first answer's tempered confidence, in steps of ``1 / SCORE_STEPS``.
    """

    n: int = 0
    nll_steps: tuple[int, ...] = (0,) * len(TEMPERATURES)

    def __post_init__(self) -> None:
        if len(self.nll_steps) != len(TEMPERATURES):
            raise ValueError(f"Expected {len(TEMPERATURES)} sums, got {len(self.nll_steps)}")
        for temperature, steps in zip(TEMPERATURES, self.nll_steps, strict=True):
            _require_steps(f"log loss at temperature {temperature:.3g}", steps, self.n * MOST_LOSS_STEPS)

    @classmethod
    def from_cases(cls, scores: Sequence[Scores], correct: NDArray[np.bool_]) -> TemperatureSums:
        """The sums of cases; ``correct`` (n,) says whether the first answer is right."""
        gaps = _gaps(scores)
        steps = [np.rint(_losses(gaps, correct, t) * SCORE_STEPS).sum() for t in TEMPERATURES]
        return cls(n=len(scores), nll_steps=tuple(int(value) for value in steps))

    def __add__(self, other: TemperatureSums) -> TemperatureSums:
        """The sums of both together."""
        return TemperatureSums(n=self.n + other.n, nll_steps=_sums(self.nll_steps, other.nll_steps))

    def best(self) -> float:
        """The temperature of the least log loss, between the grid's points by a parabola in log T.

        1 where all are alike, as without any case; an end of the grid where the loss still falls there.
        """
        i = _least(self.nll_steps)
        if i in (0, len(TEMPERATURES) - 1):
            return TEMPERATURES[i]
        before, here, after = self.nll_steps[i - 1 : i + 2]
        bend = before - 2 * here + after
        shift = (before - after) / (2 * bend) if bend else 0.0
        return TEMPERATURES[i] * math.pow(TEMPERATURES[i + 1] / TEMPERATURES[i], shift)


def confidence_of(scores: Scores, temperature: float = 1.0) -> NDArray[np.float64]:
    """The confidence of each answer of a case: softmax of ``scores / temperature``; same shape."""
    _require_temperature(temperature)
    if not len(scores):
        return np.zeros(0)
    weights = np.exp((np.asarray(scores, dtype=np.float64) - np.max(scores)) / temperature)
    return np.asarray(weights / weights.sum())


def fit_temperature(scores: Sequence[Scores], correct: NDArray[np.bool_]) -> float:
    """The temperature of the least log loss of "the first answer is right", between the ends of the grid.

    Every case counts, also one whose truth is none of its answers: its first answer is wrong. The loss may
    have several valleys, so that the search starts at the best of ``TEMPERATURES``.

    Args:
        scores: Of each case.
        correct: (n,), whether the first answer is right.

    Returns:
        1 where all temperatures are alike, as without any case.
    """
    gaps = _gaps(scores)

    def loss(log_temperature: float) -> float:
        return float(_losses(gaps, correct, math.exp(log_temperature)).sum())

    grid = [loss(math.log(t)) for t in TEMPERATURES]
    if max(grid) - min(grid) <= 1e-9 * len(scores):
        return 1.0
    i = _least(grid)
    ends = math.log(TEMPERATURES[max(0, i - 1)]), math.log(TEMPERATURES[min(i + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x)) if float(found.fun) < grid[i] else TEMPERATURES[i]


def _gaps(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """How far each answer is behind its case's first, (cases, most answers); -inf where there is none."""
    gaps = np.full((len(scores), max((1, *map(len, scores)))), -np.inf)
    for row, own in enumerate(scores):
        if len(own):
            gaps[row, : len(own)] = np.asarray(own, dtype=np.float64) - own[0]
    if gaps.size and gaps.max() > 0:
        raise ValueError("Expected the scores of each case best first")
    return gaps


def _first(gaps: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    total = np.exp(gaps / temperature).sum(axis=1)
    first: NDArray[np.float64] = np.divide(1.0, total, out=np.zeros(len(gaps)), where=total > 0)
    return first


def _losses(gaps: NDArray[np.float64], correct: NDArray[np.bool_], temperature: float) -> NDArray[np.float64]:
    """The log loss of "the first answer is right" of each case, (n,)."""
    if correct.shape != (len(gaps),):
        raise ValueError(f"Expected right or wrong for each of {len(gaps)} cases, got {correct.shape}")
    first = _first(gaps, temperature)
    losses = -np.log(np.clip(np.where(correct, first, 1 - first), LEAST_CONFIDENCE, 1))
    return np.asarray(losses, dtype=np.float64)


def _least(losses: Sequence[float]) -> int:
    """The place of the least loss; of equal ones the nearest to temperature 1."""
    return min(range(len(losses)), key=lambda i: (losses[i], abs(math.log(TEMPERATURES[i]))))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _require_steps(what: str, steps: int, most: int) -> None:
    if not 0 <= steps <= most:
        raise ValueError(f"Expected a sum of {what} from 0 to {most} steps, got {steps}")


def _require_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"Expected a temperature > 0, got {temperature}")


def _by_bin(place: NDArray[np.int64], values: NDArray[np.int64]) -> tuple[int, ...]:
    sums = np.zeros(BINS, dtype=np.int64)
    np.add.at(sums, place, values)
    return tuple(int(value) for value in sums)


def _sums(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
