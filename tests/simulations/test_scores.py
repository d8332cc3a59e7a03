"""Tests of rates and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.student.predictions import Prediction, RankedAnswer
from common.calibration import ReliabilityBins
from common.metrics import MetricCounts
from simulations.scores import RATES, Outcomes, Scores, judge, mean_over_sites, score


def cases(*top1: int, free: int = 1) -> Outcomes:
    counts = [
        MetricCounts(
            n=1, top1=right, top5=1, top10=1, invalid=0, free=free, coverage_hits=3, coverage_total=10
        )
        for right in top1
    ]
    return Outcomes.of(counts, np.full(len(top1), 0.75))


def test_rates_are_those_of_the_summed_counts() -> None:
    scores = score(cases(1, 1, 1, 0), np.random.default_rng(0))
    assert scores.n == 4
    assert tuple(scores.rates) == RATES
    assert scores.rates["top1"] == 0.75
    assert scores.rates["coverage"] == 0.3
    assert scores.rates["ece"] == 0
    assert scores.rates["avoidance"] is None
    assert "avoidance" not in scores.interval


@settings(deadline=None, max_examples=40)
@given(
    confidence=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    right=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_ece_is_that_of_the_pooled_bins(confidence: list[float], right: list[bool]) -> None:
    correct = np.array(right[: len(confidence)])
    counts = [MetricCounts(n=1, top1=int(hit), top5=1, top10=1) for hit in correct]
    outcomes = Outcomes.of(counts, np.array(confidence))
    bins = ReliabilityBins.from_cases(np.array(confidence), correct)
    assert outcomes.pooled_bins() == bins
    assert score(outcomes, np.random.default_rng(0), draws=2).rates["ece"] == pytest.approx(bins.ece())


def test_interval_has_the_width_of_a_binomial_and_the_test_would_notice() -> None:
    outcomes = cases(*([1] * 300 + [0] * 100))
    low, high = score(outcomes, np.random.default_rng(0)).interval["top1"]
    expected = 2 * 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert high - low == pytest.approx(expected, rel=0.12)
    low, high = score(outcomes.only(range(0, 400, 4)), np.random.default_rng(0)).interval["top1"]
    assert high - low > 1.5 * expected


def test_mean_over_sites_is_the_mean_and_draws_a_patient_with_all_sites() -> None:
    always_right_on_one_half = cases(*([1] * 50 + [0] * 50))
    opposite = cases(*([0] * 50 + [1] * 50))
    scores = score(mean_over_sites({"a": always_right_on_one_half, "b": opposite}), np.random.default_rng(0))
    assert scores.n == 100
    # Whoever is drawn, exactly one of the two sites is right: nothing varies.
    assert scores.rates["top1"] == 0.5
    assert scores.interval["top1"] == (0.5, 0.5)


def test_same_seed_gives_the_same_intervals() -> None:
    outcomes = cases(1, 0, 0, 1, 1)
    assert score(outcomes, np.random.default_rng(3)) == score(outcomes, np.random.default_rng(3))


def test_without_patients_nothing_was_measured() -> None:
    scores = score(cases(), np.random.default_rng(0))
    assert scores.n == 0
    assert set(scores.rates.values()) == {None}
    assert scores.interval == {}


def test_without_confidence_there_is_no_ece() -> None:
    outcomes = Outcomes.of([MetricCounts(n=1, top1=1, top5=1, top10=1)])
    scores = score(outcomes, np.random.default_rng(0))
    assert scores.rates["ece"] is None
    assert scores.ece_noise_floor is None
    assert scores.rates["top1"] == 1


def prediction(*answers: str, truth: str | None = "a") -> Prediction:
    ranked = tuple(
        RankedAnswer(id=name, name=name, confidence=0.9 / (i + 1)) for i, name in enumerate(answers)
    )
    return Prediction(case_id="p", answers=ranked, truth=truth)


def test_predictions_are_judged_one_by_one() -> None:
    outcomes = judge(
        [prediction("a", "b"), prediction("b", "a"), prediction()],
        valid=[[True, False]],
        teacher_tops=[["a", "c"]] * 3,
        teacher_bottoms=[["b", "d"]] * 3,
    )
    assert [count.top1 for count in outcomes.counts] == [1, 0, 0]
    assert [count.top5 for count in outcomes.counts] == [1, 1, 0]
    rates = score(outcomes, np.random.default_rng(0)).rates
    assert rates["invalid_rate"] == 0.5
    assert rates["coverage"] == pytest.approx(2 / 6)
    assert rates["avoidance"] == pytest.approx(4 / 6)
    # Confidence 0.9 twice, right once; confidence 0 once, wrong.
    assert rates["ece"] == pytest.approx((2 * 0.9 - 1) / 3, abs=1e-4)


def test_a_case_whose_truth_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        judge([prediction("a"), prediction("a", truth=None)])


def test_outcomes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence for each of 2 cases"):
        Outcomes.of(cases(1, 0).counts, np.zeros(3))
    with pytest.raises(ValueError, match="same patients"):
        cases(1) + cases(1, 0)
    with pytest.raises(ValueError, match="at least one site"):
        mean_over_sites({})
    with pytest.raises(ValueError, match="counts and bins"):
        Outcomes(counts=cases(1).counts, bins=())
    with pytest.raises(ValueError, match="rates top1"):
        Scores(n=1, rates={}, interval={})
