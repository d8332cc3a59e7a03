import numpy as np
import pytest

from common.calibration import ReliabilityBins
from common.errors import BadMessageError
from common.evaluation_counts import EvaluationCounts
from common.fixedpoint import add_words
from common.metrics import MetricCounts
from server.evaluation import pooled_counts, pooled_figures, pooled_rates


def counted(metrics: MetricCounts, gap: float) -> EvaluationCounts:
    """Every case with two answers, the second ``gap`` behind; the truth is one of them or neither."""
    places = [0] * metrics.top1 + [1] * (metrics.top5 - metrics.top1) + [None] * (metrics.n - metrics.top5)
    return EvaluationCounts.from_cases(metrics, [np.array([0.0, -gap])] * metrics.n, places)


SITE_A = counted(MetricCounts(n=10, top1=2, top5=4, top10=5, invalid=1, free=10), gap=2.0)
SITE_B = counted(MetricCounts(n=30, top1=18, top5=20, top10=25, invalid=3, free=10), gap=0.0)


def test_rates_are_pooled_over_cases_not_averaged_over_sites() -> None:
    total = SITE_A.to_words().copy()
    add_words(total, SITE_B.to_words())
    rates = pooled_rates(pooled_counts(total), np.random.default_rng(0))
    assert (rates["n"], rates["top1"], rates["top10"], rates["invalid_rate"]) == (40, 0.5, 0.75, 0.2)
    assert rates["coverage"] is None
    assert rates["car"] is None
    low, high = rates["interval"]["top1"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_calibration_is_that_of_the_pooled_cases_with_its_noise_floor_beside_it() -> None:
    sure = 1 / (1 + np.exp(-2.0))
    rates = pooled_rates(SITE_A + SITE_B, np.random.default_rng(0))
    confidence = np.array([sure] * 10 + [0.5] * 30)
    correct = np.array([True] * 2 + [False] * 8 + [True] * 18 + [False] * 12)
    bins = ReliabilityBins.from_cases(confidence, correct)
    assert rates["ece"] == bins.ece() == pytest.approx((10 * (sure - 0.2) + 30 * 0.1) / 40, abs=1e-4)
    assert rates["ece_noise_floor"] == pytest.approx(bins.noise_floor(np.random.default_rng(1)), rel=0.1)
    # Lost truths, 6 and 10 of them, lose the most that is counted.
    losses = -2 * np.log(sure) - 2 * np.log(1 - sure) - 20 * np.log(0.5) - 16 * np.log(1e-4)
    assert rates["nll"] == pytest.approx(losses / 40, abs=1e-3)
    assert rates["brier"] == pytest.approx(
        (
            2 * 2 * (1 - sure) ** 2
            + 2 * 2 * sure**2
            + 6 * (1 + sure**2 + (1 - sure) ** 2)
            + 20 * 0.5
            + 10 * 1.5
        )
        / 40,
        abs=1e-3,
    )


def test_figures_for_one_line_are_the_same_at_every_call_and_have_no_interval() -> None:
    figures = pooled_figures(SITE_A)
    assert figures == pooled_figures(SITE_A)
    assert set(pooled_rates(SITE_A, np.random.default_rng(1))) - set(figures) == {"interval"}


def test_no_cases_have_no_rate_and_no_interval() -> None:
    rates = pooled_rates(EvaluationCounts(), np.random.default_rng(0))
    assert {rates[name] for name in ("top1", "ece", "ece_noise_floor", "nll", "brier", "car")} == {None}
    assert rates["interval"] == {"top1": None, "top5": None, "top10": None}


def test_a_sum_that_is_no_count_of_cases_is_refused() -> None:
    words = SITE_A.to_words().copy()
    words[1] += np.uint32(2**31)
    with pytest.raises(BadMessageError, match="pooled counts: Expected 0 <= top1"):
        pooled_counts(words)
