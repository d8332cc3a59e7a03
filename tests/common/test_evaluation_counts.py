"""Tests of the vector that a site answers an evaluation with."""

import numpy as np
import pytest
from numpy.typing import NDArray

from common.calibration import (
    MOST_LOSS_STEPS,
    TEMPERATURES,
    ProperScores,
    ReliabilityBins,
    TemperatureSums,
    confidence_of,
)
from common.evaluation_counts import WORD_COUNT, EvaluationCounts
from common.fixedpoint import add_words
from common.metrics import MetricCounts

Cases = tuple[list[NDArray[np.float64]], list[int | None]]


def some_cases(seed: int, n: int) -> Cases:
    rng = np.random.default_rng(seed)
    scores = [np.sort(rng.normal(size=rng.integers(1, 6)))[::-1] for _ in range(n)]
    places = [place if (place := int(rng.integers(6))) < len(own) else None for own in scores]
    return scores, places


def counted(cases: Cases, temperature: float = 1.0) -> EvaluationCounts:
    scores, places = cases
    near = [sum(place is not None and place < k for place in places) for k in (1, 5, 10)]
    counts = MetricCounts(n=len(places), top1=near[0], top5=near[1], top10=near[2])
    return EvaluationCounts.from_cases(counts, scores, places, temperature)


def test_summed_words_of_sites_are_the_counts_of_all_their_cases() -> None:
    sites = [some_cases(seed, n) for seed, n in enumerate((30, 1, 0, 70))]
    everything = ([s for scores, _ in sites for s in scores], [p for _, places in sites for p in places])
    total = np.zeros(WORD_COUNT, dtype=np.uint32)
    for site in sites:
        add_words(total, counted(site).to_words())
    assert EvaluationCounts.from_words(total) == counted(everything)
    assert sum((counted(site) for site in sites), EvaluationCounts()) == counted(everything)


def test_confidences_are_tempered_and_the_temperature_sums_are_not() -> None:
    scores, places = some_cases(5, 40)
    warm = counted((scores, places), temperature=2.0)
    confidence = [confidence_of(own, 2.0) for own in scores]
    assert warm.proper == ProperScores.from_cases(confidence, places)
    first, correct = np.array([own[0] for own in confidence]), np.array([place == 0 for place in places])
    assert warm.bins == ReliabilityBins.from_cases(first, correct)
    cold = counted((scores, places))
    assert warm.temperatures == cold.temperatures
    assert warm.bins != cold.bins


def test_a_case_without_any_answer_is_wrong_with_confidence_0() -> None:
    counts = counted(([np.zeros(0)], [None]))
    assert counts.bins.n[0] == 1
    assert counts.bins.confidence_sum[0] == 0
    assert counts.proper.brier() == 1.0
    assert counts.temperatures.nll_steps == (0,) * len(TEMPERATURES)


def test_the_most_cases_at_their_worst_still_fit_the_words() -> None:
    n = 65_535
    worst = EvaluationCounts(
        metrics=MetricCounts(n=n),
        bins=ReliabilityBins(n=(0,) * 9 + (n,), correct=(0,) * 10, confidence_sum=(0,) * 9 + (n * 2**16,)),
        proper=ProperScores(n=n, nll_steps=n * MOST_LOSS_STEPS, brier_steps=n * 2 * 4096),
        temperatures=TemperatureSums(n=n, nll_steps=(n * MOST_LOSS_STEPS,) * len(TEMPERATURES)),
    )
    assert EvaluationCounts.from_words(worst.to_words()) == worst


def test_words_that_are_of_no_cases_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{WORD_COUNT} words"):
        EvaluationCounts.from_words(np.zeros(WORD_COUNT - 1, dtype=np.uint32))
    words = counted(some_cases(1, 9)).to_words().copy()
    words[0] += 1  # a case more than the bins hold
    with pytest.raises(ValueError, match="10 cases in bins"):
        EvaluationCounts.from_words(words)
    counts = counted(some_cases(1, 9))
    with pytest.raises(ValueError, match="right in bins"):
        EvaluationCounts(
            metrics=MetricCounts(n=9),
            bins=counts.bins,
            proper=counts.proper,
            temperatures=counts.temperatures,
        )
