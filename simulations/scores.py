"""What a method reached on a set of test patients, with intervals.

Everything that is reported is made of counts that add up over patients, so one bootstrap serves every
figure: patients are drawn with replacement, their counts summed, and each rate taken from the sums. The
intervals say how far another draw of patients would move a figure; they say nothing about another training
seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.student.predictions import Prediction
from common.calibration import BINS, CONFIDENCE_STEPS, ReliabilityBins
from common.metrics import MetricCounts, count_case

DRAWS = 1000
LEVEL = 0.95
ECE = "ece"
RATES = (*MetricCounts.RATES, ECE)

_COUNT_NAMES = tuple(field.name for field in fields(MetricCounts))
_BIN_NAMES = ("n", "correct", "confidence_sum")


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How one method did on each of a list of patients, in the list's order.

    Attributes:
        counts: Of each patient.
        bins: Of each patient: where the first answer's confidence lies. Empty bins where there is none.
    """

    counts: tuple[MetricCounts, ...]
    bins: tuple[ReliabilityBins, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bins):
            raise ValueError(
                f"Expected counts and bins of each patient, got {len(self.counts)}, {len(self.bins)}"
            )

    @classmethod
    def of(cls, counts: Sequence[MetricCounts], confidence: NDArray[np.floating] | None = None) -> Outcomes:
        """The outcomes of cases counted one by one; ``confidence`` (n,) is that of each first answer."""
        if confidence is None:
            return cls(counts=tuple(counts), bins=(ReliabilityBins(),) * len(counts))
        if confidence.shape != (len(counts),):
            raise ValueError(f"Expected a confidence for each of {len(counts)} cases, got {confidence.shape}")
        correct = np.array([count.top1 > 0 for count in counts], dtype=np.bool_)
        bins = [
            ReliabilityBins.from_cases(confidence[i : i + 1], correct[i : i + 1]) for i in range(len(counts))
        ]
        return cls(counts=tuple(counts), bins=tuple(bins))

    def __len__(self) -> int:
        """How many patients there are."""
        return len(self.counts)

    def __add__(self, other: Outcomes) -> Outcomes:
        """Both methods' outcomes on the same patients; the rates are then means over the two methods."""
        if len(self) != len(other):
            raise ValueError(f"Expected outcomes of the same patients, got {len(self)} and {len(other)}")
        return Outcomes(
            counts=tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            bins=tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)),
        )

    def only(self, places: Iterable[int]) -> Outcomes:
        """The outcomes of the patients at these places of the list."""
        chosen = list(places)
        return Outcomes(
            counts=tuple(self.counts[i] for i in chosen), bins=tuple(self.bins[i] for i in chosen)
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
    """

    n: int
    rates: Mapping[str, float | None]
    interval: Mapping[str, tuple[float, float]]
    ece_noise_floor: float | None = None

    def __post_init__(self) -> None:
        if tuple(self.rates) != RATES:
            raise ValueError(f"Expected the rates {', '.join(RATES)}, got {', '.join(self.rates)}")

    def as_dict(self) -> dict[str, Any]:
        """The scores as ``results.json`` holds them."""
        return {
            "n": self.n,
            **self.rates,
            "ece_noise_floor": self.ece_noise_floor,
            "interval": {name: list(ends) for name, ends in self.interval.items()},
        }


def judge(
    predictions: Sequence[Prediction],
    *,
    valid: Sequence[Sequence[bool]] = (),
    teacher_tops: Sequence[Sequence[str]] | None = None,
    teacher_bottoms: Sequence[Sequence[str]] | None = None,
) -> Outcomes:
    """Return the outcomes of predictions, in their order.

    Args:
        predictions: With the truth; a case without any answer counts as wrong, with confidence 0.
        valid: Of the first cases, those also decoded freely: whether each of the free answers names an answer
            of the plan.
        teacher_tops: Of each case, ids of the teacher's first answers; ``teacher_bottoms`` of its last.
    """
    counts, confidence = [], []
    for row, prediction in enumerate(predictions):
        if prediction.truth is None:
            raise ValueError(f"Expected the truth of every case, got none in row {row}")
        one = count_case(
            [answer.id for answer in prediction.answers],
            prediction.truth,
            teacher_top=None if teacher_tops is None else teacher_tops[row],
            teacher_bottom=None if teacher_bottoms is None else teacher_bottoms[row],
            free_answers_valid=valid[row] if row < len(valid) else None,
        )
        counts.append(one)
        confidence.append(prediction.answers[0].confidence if prediction.answers else 0.0)
    return Outcomes.of(counts, np.array(confidence))


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
    table = _table(outcomes)
    rates = {
        name: None if np.isnan(rate) else float(rate)
        for name, (rate,) in _rates(table.sum(axis=0)[None]).items()
    }
    whole = table if units is None else _summed(table, units)
    drawn = _rates(_draw(len(whole), rng, draws) @ whole)
    return Scores(
        n=len(outcomes),
        rates=rates,
        interval={name: _interval(drawn[name]) for name in RATES if rates[name] is not None},
        ece_noise_floor=outcomes.pooled_bins().noise_floor(rng),
    )


def mean_over_sites(outcomes_by_site: Mapping[Any, Outcomes]) -> Outcomes:
    """The outcomes whose rates are the means over sites; ValueError without any site."""
    if not outcomes_by_site:
        raise ValueError("Expected the outcomes of at least one site, got none")
    return reduce(Outcomes.__add__, outcomes_by_site.values())


def _table(outcomes: Outcomes) -> NDArray[np.float64]:
    """Return one row of whole numbers a patient: counts, then the three rows of bins."""
    rows = [
        [getattr(count, name) for name in _COUNT_NAMES]
        + [number for name in _BIN_NAMES for number in getattr(bins, name)]
        for count, bins in zip(outcomes.counts, outcomes.bins, strict=True)
    ]
    # Floats hold these sums exactly, and multiply by far faster than integers.
    return np.array(rows, dtype=np.float64)


def _summed(table: NDArray[np.float64], units: Sequence[Hashable]) -> NDArray[np.float64]:
    """Return the rows of each unit added up, (units, columns), in order of first appearance."""
    row_of = {unit: row for row, unit in enumerate(dict.fromkeys(units))}
    sums = np.zeros((len(row_of), table.shape[1]))
    np.add.at(sums, [row_of[unit] for unit in units], table)
    return sums


def _draw(patients: int, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Return how often each patient is drawn, (draws, patients); each row sums to the number of patients."""
    drawn = rng.integers(patients, size=(draws, patients)) + patients * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * patients).reshape(draws, patients).astype(np.float64)


def _rates(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return each rate of rows of summed counts (rows, columns), NaN where nothing was counted."""
    column = {name: sums[:, i] for i, name in enumerate(_COUNT_NAMES)}
    rates = {name: _divide(column[part], column[whole]) for name, (part, whole) in MetricCounts.RATES.items()}
    n, correct, confidence = np.moveaxis(
        sums[:, len(_COUNT_NAMES) :].reshape(len(sums), len(_BIN_NAMES), BINS), 1, 0
    )
    gap = np.abs(correct - confidence / CONFIDENCE_STEPS)
    return {**rates, ECE: _divide(gap.sum(axis=1), n.sum(axis=1))}


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    # A draw may hold no counted patient where only a few were; it has no rate.
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
