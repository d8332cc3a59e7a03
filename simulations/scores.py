"""What a method reached on a set of test patients, with intervals.

Everything that is reported is made of counts that add up over patients, so one bootstrap serves every
figure: patients are drawn with replacement, their counts summed, and each rate taken from the sums; the
class-wise ECE too, from counts that are mostly zero (`simulations.claims`). The intervals say how far another
draw of patients would move a figure; they say nothing about another training seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.student.predictions import Prediction
from common.calibration import BINS, CONFIDENCE_STEPS, SCORE_STEPS, ProperScores, ReliabilityBins
from common.metrics import CAR, FreeAnswer, MetricCounts, count_case
from simulations.claims import Claim, class_bins, class_eces, class_gaps

DRAWS = 1000
LEVEL = 0.95
ECE, CLASS_ECE, NLL, BRIER = "ece", "class_ece", "nll", "brier"
RATES = (*MetricCounts.RATES, CAR, ECE, NLL, BRIER, CLASS_ECE)

_COUNT_NAMES = tuple(field.name for field in fields(MetricCounts))
_BIN_NAMES = ("n", "correct", "confidence_sum")
_PROPER_NAMES = ("n", "nll_steps", "brier_steps")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How one method did on each of a list of patients, in the list's order.

    Attributes:
        counts: Of each patient.
        bins: Of each patient: where the first answer's confidence lies. Empty bins where there is none.
        claims: Of each patient: the confidences of all answers, a claim a case; none where a method has no
            confidences, or they are not known beyond the first answer's.
        classes: How many answers the plan has; 0 where there are no claims.
    """

    counts: tuple[MetricCounts, ...]
    bins: tuple[ReliabilityBins, ...]
    claims: tuple[tuple[Claim, ...], ...]
    classes: int = 0

    def __post_init__(self) -> None:
        if not len(self.counts) == len(self.bins) == len(self.claims):
            got = f"{len(self.counts)}, {len(self.bins)}, {len(self.claims)}"
            raise ValueError(f"Expected counts and bins and claims of each patient, got {got}")
        if any(self.claims) and self.classes < 1:
            raise ValueError("Expected a number of classes for claims, got none")

    @classmethod
    def claimed(
        cls, counts: Sequence[MetricCounts], claims: Sequence[Claim | None], classes: int
    ) -> Outcomes:
        """The outcomes of cases counted one by one; a case without a claim has no confidence at all.

        ``classes`` is how many answers the plan has.
        """
        bins = tuple(
            ReliabilityBins()
            if claim is None
            else ReliabilityBins.from_cases(np.array([claim.first]), np.array([count.top1 > 0]))
            for count, claim in zip(counts, claims, strict=True)
        )
        known = tuple(() if claim is None else (claim,) for claim in claims)
        return cls(counts=tuple(counts), bins=bins, claims=known, classes=classes)

    @classmethod
    def of(cls, counts: Sequence[MetricCounts], confidence: NDArray[np.floating] | None = None) -> Outcomes:
        """The outcomes of cases of whose confidences the first answer's is known at most, (n,)."""
        none: tuple[tuple[Claim, ...], ...] = ((),) * len(counts)
        if confidence is None:
            return cls(counts=tuple(counts), bins=(ReliabilityBins(),) * len(counts), claims=none)
        if confidence.shape != (len(counts),):
            raise ValueError(f"Expected a confidence for each of {len(counts)} cases, got {confidence.shape}")
        correct = np.array([count.top1 > 0 for count in counts], dtype=np.bool_)
        bins = [
            ReliabilityBins.from_cases(confidence[i : i + 1], correct[i : i + 1]) for i in range(len(counts))
        ]
        return cls(counts=tuple(counts), bins=tuple(bins), claims=none)

    def __len__(self) -> int:
        """How many patients there are."""
        return len(self.counts)

    def __add__(self, other: Outcomes) -> Outcomes:
        """Both methods' outcomes on the same patients; the rates are then means over the two methods."""
        if len(self) != len(other):
            raise ValueError(f"Expected outcomes of the same patients, got {len(self)} and {len(other)}")
        if self.classes != other.classes:
            raise ValueError(f"Expected outcomes of {self.classes} classes, got {other.classes}")
        return Outcomes(
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            bins=tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)),
            claims=tuple(a + b for a, b in zip(self.claims, other.claims, strict=True)),
            classes=self.classes,
        )

    def only(self, places: Iterable[int]) -> Outcomes:
        """The outcomes of the patients at these places of the list."""
        chosen = list(places)
        return Outcomes(
            counts=tuple(self.counts[i] for i in chosen),
            bins=tuple(self.bins[i] for i in chosen),
            claims=tuple(self.claims[i] for i in chosen),
            classes=self.classes,
        )

    def pooled_bins(self) -> ReliabilityBins:
        """The bins of all patients together, for a reliability diagram."""
        return reduce(ReliabilityBins.__add__, self.bins, ReliabilityBins())


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Rates over patients.

    Attributes:
        n: Cases: patients, or their tiles.
        rates: Each of ``RATES``; None where nothing was counted.
        interval: 95 % interval of each rate that is there.
        ece_noise_floor: ECE that a perfectly calibrated method would show with so few patients.
        class_ece_noise_floor: The same of the class-wise ECE.
    """

    n: int
    rates: Mapping[str, float | None]
    interval: Mapping[str, tuple[float, float]]
    ece_noise_floor: float | None = None
    class_ece_noise_floor: float | None = None

    def __post_init__(self) -> None:
        if tuple(self.rates) != RATES:
            raise ValueError(f"Expected the rates {', '.join(RATES)}, got {', '.join(self.rates)}")

    def as_dict(self) -> dict[str, Any]:
        """The scores as ``results.json`` holds them."""
        return {
            "n": self.n,
            **self.rates,
            "ece_noise_floor": self.ece_noise_floor,
            "class_ece_noise_floor": self.class_ece_noise_floor,
            "interval": {name: list(ends) for name, ends in self.interval.items()},
        }


def judge(
    predictions: Sequence[Prediction],
    classes: int,
    *,
    free: Sequence[FreeAnswer] = (),
    teacher_tops: Sequence[Sequence[str]] | None = None,
    teacher_bottoms: Sequence[Sequence[str]] | None = None,
) -> Outcomes:
    """Return the outcomes of predictions, in their order.

    Args:
        predictions: With the truth; a case without any answer counts as wrong, with confidence 0. A case
            whose answers have no confidence claims nothing.
        classes: How many answers the plan has.
        free: Of the first cases, those also decoded freely.
        teacher_tops: Of each case, ids of the teacher's first answers; ``teacher_bottoms`` of its last.
    """
    counts, claims = [], []
    for row, prediction in enumerate(predictions):
        if prediction.truth is None:
            raise ValueError(f"Expected the truth of every case, got none in row {row}")
        one = count_case(
            [answer.id for answer in prediction.answers],
            prediction.truth,
            teacher_top=None if teacher_tops is None else teacher_tops[row],
            teacher_bottom=None if teacher_bottoms is None else teacher_bottoms[row],
            free=free[row] if row < len(free) else None,
        )
        counts.append(one)
        claims.append(_claim(prediction, prediction.truth))
    return Outcomes.claimed(counts, claims, classes)


def _claim(prediction: Prediction, truth: str) -> Claim | None:
    confidence = [answer.confidence for answer in prediction.answers if answer.confidence is not None]
    if len(confidence) < len(prediction.answers):
        return None
    ids = tuple(answer.id for answer in prediction.answers)
    return Claim(answers=ids, confidence=tuple(confidence), truth=truth)


def score(
    outcomes: Outcomes,
    rng: np.random.Generator,
    *,
    units: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
) -> Scores:
    """Rates and their 95 % bootstrap intervals over patients.

    ``units`` says whose each outcome is, where a patient has several: tiles of one slide are alike, so that
    a patient is drawn with all of them. Without it each outcome is a patient's only one.

    For the mean over sites add the sites' outcomes first (`mean_over_sites`): a patient is then drawn with
    the answers of all sites at once, as the sites are judged on the same patients.
    """
    if not len(outcomes):
        return Scores(n=0, rates=dict.fromkeys(RATES), interval={})
    drawn = _draw(range(len(outcomes)) if units is None else units, rng, draws)
    # The first sample is everybody once.
    found = _rates(np.vstack([np.ones(len(outcomes)), drawn]), outcomes)
    rates = {name: _known(values[0]) for name, values in found.items()}
    claims = [claim for own in outcomes.claims for claim in own]
    return Scores(
        n=len(outcomes),
        rates=rates,
        interval={name: _interval(found[name][1:]) for name in RATES if rates[name] is not None},
        ece_noise_floor=outcomes.pooled_bins().noise_floor(rng),
        class_ece_noise_floor=class_bins(claims, outcomes.classes).noise_floor(rng) if claims else None,
    )


def _known(rate: float) -> float | None:
    return None if np.isnan(rate) else float(rate)


def mean_over_sites(outcomes_by_site: Mapping[Any, Outcomes]) -> Outcomes:
    """The outcomes whose rates are the means over sites; ValueError without any site."""
    if not outcomes_by_site:
        raise ValueError("Expected the outcomes of at least one site, got none")
    return reduce(Outcomes.__add__, outcomes_by_site.values())


def _table(outcomes: Outcomes) -> NDArray[np.float64]:
    """Return one row of whole numbers a patient: counts, the three rows of bins, then proper scores."""
    proper = [reduce(ProperScores.__add__, map(Claim.proper, own), ProperScores()) for own in outcomes.claims]
    rows = [
        [getattr(count, name) for name in _COUNT_NAMES]
        + [number for name in _BIN_NAMES for number in getattr(bins, name)]
        + [getattr(one, name) for name in _PROPER_NAMES]
        for count, bins, one in zip(outcomes.counts, outcomes.bins, proper, strict=True)
    ]
    # Floats hold these sums exactly, and multiply by far faster than integers.
    return np.array(rows, dtype=np.float64)


def _draw(units: Sequence[Hashable], rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Return how often each outcome is drawn, (draws, outcomes), a unit's always together.

    As many units are drawn as there are.
    """
    row_of = {unit: row for row, unit in enumerate(dict.fromkeys(units))}
    drawn = rng.integers(len(row_of), size=(draws, len(row_of))) + len(row_of) * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * len(row_of)).reshape(draws, len(row_of))
    return times[:, [row_of[unit] for unit in units]].astype(np.float64)


def _rates(drawn: NDArray[np.float64], outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
    """Return each rate of samples, NaN where nothing was counted; ``drawn`` as of ``_draw``."""
    sums = drawn @ _table(outcomes)
    column = {name: sums[:, i] for i, name in enumerate(_COUNT_NAMES)}
    rates = {name: _divide(column[part], column[whole]) for name, (part, whole) in MetricCounts.RATES.items()}
    start, end = len(_COUNT_NAMES), -len(_PROPER_NAMES)
    n, correct, confidence = np.moveaxis(sums[:, start:end].reshape(len(sums), len(_BIN_NAMES), BINS), 1, 0)
    gap = np.abs(correct - confidence / CONFIDENCE_STEPS)
    claims, nll, brier = sums[:, end:].T
    return {
        **rates,
        CAR: _car(rates["coverage"], rates["avoidance"]),
        ECE: _divide(gap.sum(axis=1), n.sum(axis=1)),
        NLL: _divide(nll / SCORE_STEPS, claims),
        BRIER: _divide(brier / SCORE_STEPS, claims),
        CLASS_ECE: class_eces(drawn, class_gaps(outcomes.claims), claims, outcomes.classes),
    }


def _car(coverage: NDArray[np.float64], avoidance: NDArray[np.float64]) -> NDArray[np.float64]:
    """`MetricCounts.car` at weight 1."""
    both = coverage + avoidance
    return np.where(both == 0, 0.0, _divide(2 * coverage * avoidance, both))


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    # A draw may hold no counted patient where only a few were; it has no rate.
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
