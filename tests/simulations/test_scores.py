"""Tests of rates and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.student.predictions import Prediction, RankedAnswer
from common.calibration import ProperScores, ReliabilityBins
from common.metrics import FreeAnswer, MetricCounts
from simulations.claims import Claim, class_bins
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


ANSWERS = tuple("abcdef")


def claimed(n: int, seed: int = 0) -> Outcomes:
    """Cases that keep four of six answers and one that has none; the truth is any of the six."""
    rng = np.random.default_rng(seed)
    claims = []
    for _ in range(n):
        order = rng.permutation(6)[:4]
        confidence = np.sort(rng.dirichlet(np.ones(4)))[::-1]
        truth = ANSWERS[rng.integers(6)]
        claims.append(
            Claim(answers=tuple(ANSWERS[i] for i in order), confidence=tuple(confidence), truth=truth)
        )
    claims[0] = Claim(answers=(), confidence=(), truth="a")
    counts = [MetricCounts(n=1, top1=int(c.answers[:1] == (c.truth,)), top5=1, top10=1) for c in claims]
    return Outcomes.claimed(counts, claims, classes=20)


def test_log_loss_brier_score_and_class_wise_ece_are_those_of_all_the_claims() -> None:
    outcomes = claimed(50)
    claims = [claim for own in outcomes.claims for claim in own]
    scores = score(outcomes, np.random.default_rng(0))
    proper = sum((claim.proper() for claim in claims), ProperScores())
    assert scores.rates["nll"] == pytest.approx(proper.nll())
    assert scores.rates["brier"] == pytest.approx(proper.brier())
    assert scores.rates["class_ece"] == pytest.approx(class_bins(claims, 20).ece(), abs=1e-12)
    assert scores.rates["ece"] == pytest.approx(outcomes.pooled_bins().ece())
    for name in ("nll", "brier", "class_ece"):
        low, high = scores.interval[name]
        assert low < high
    assert scores.class_ece_noise_floor is not None
    assert 0 < scores.class_ece_noise_floor < 0.1


def test_a_class_wise_interval_is_that_of_drawn_patients() -> None:
    outcomes, rng = claimed(30), np.random.default_rng(1)
    drawn = []
    for _ in range(300):
        sample = [claim for i in rng.integers(30, size=30) for claim in outcomes.claims[i]]
        drawn.append(class_bins(sample, 20).ece())
    expected = np.quantile(np.array(drawn, dtype=float), [0.025, 0.975])
    interval = score(outcomes, np.random.default_rng(0)).interval["class_ece"]
    assert interval == pytest.approx(tuple(expected), rel=0.05)


def test_claims_of_sites_add_up_case_by_case() -> None:
    together = mean_over_sites({"a": claimed(20, seed=1), "b": claimed(20, seed=2)})
    claims = [claim for own in together.claims for claim in own]
    assert len(claims) == 40
    rates = score(together, np.random.default_rng(0)).rates
    assert rates["class_ece"] == pytest.approx(class_bins(claims, 20).ece(), abs=1e-12)
    with pytest.raises(ValueError, match="20 classes, got 0"):
        claimed(2) + cases(1, 0)


def test_claims_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 1 answers"):
        Claim(answers=("a",), confidence=(), truth="a")
    with pytest.raises(ValueError, match="at most 1 answers, got 2"):
        class_bins([Claim(answers=("a",), confidence=(1.0,), truth="b")], 1)
    with pytest.raises(ValueError, match="number of classes"):
        Outcomes.claimed(cases(1).counts, [Claim(answers=(), confidence=(), truth="b")], 0)


def test_car_is_the_harmonic_mean_of_the_pooled_coverage_and_avoidance() -> None:
    counts = [
        MetricCounts(n=1, coverage_hits=3, coverage_total=10, avoidance_hits=a, avoidance_total=10)
        for a in (9, 7)
    ]
    scores = score(Outcomes.of(counts), np.random.default_rng(0))
    assert scores.rates["car"] == pytest.approx(2 * 0.3 * 0.8 / 1.1) == (counts[0] + counts[1]).car()
    low, high = scores.interval["car"]
    assert low < high
    nothing = [MetricCounts(n=1, coverage_total=10, avoidance_total=10)]
    assert score(Outcomes.of(nothing), np.random.default_rng(0)).rates["car"] == 0


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
        classes=4,
        free=[FreeAnswer(valid=(True, False), ids=("a", None), exact=(False, False))],
        teacher_tops=[["a", "c"]] * 3,
        teacher_bottoms=[["b", "d"]] * 3,
    )
    assert [count.top1 for count in outcomes.counts] == [1, 0, 0]
    assert [count.top5 for count in outcomes.counts] == [1, 1, 0]
    rates = score(outcomes, np.random.default_rng(0)).rates
    assert rates["invalid_rate"] == 0.5
    assert (rates["free_top1"], rates["free_top1_exact"], rates["abstained"]) == (1, 0, 0)
    assert rates["coverage"] == pytest.approx(2 / 6)
    assert rates["avoidance"] == pytest.approx(4 / 6)
    # Confidence 0.9 twice, right once; confidence 0 once, wrong.
    assert rates["ece"] == pytest.approx((2 * 0.9 - 1) / 3, abs=1e-4)
    assert rates["nll"] == pytest.approx(-np.log(0.9 * 0.45 * 1e-4) / 3, abs=1e-3)


def test_answers_without_confidence_claim_nothing() -> None:
    searched = Prediction(case_id="p", answers=(RankedAnswer(id="a", name="a"),), truth="a")
    rates = score(judge([searched], classes=4), np.random.default_rng(0)).rates
    assert rates["top1"] == 1
    assert {rates[name] for name in ("ece", "nll", "brier", "class_ece")} == {None}


def test_a_case_whose_truth_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        judge([prediction("a"), prediction("a", truth=None)], classes=4)


def test_outcomes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence for each of 2 cases"):
        Outcomes.of(cases(1, 0).counts, np.zeros(3))
    with pytest.raises(ValueError, match="same patients"):
        cases(1) + cases(1, 0)
    with pytest.raises(ValueError, match="at least one site"):
        mean_over_sites({})
    with pytest.raises(ValueError, match="counts and bins"):
        Outcomes(counts=cases(1).counts, bins=(), claims=())
    with pytest.raises(ValueError, match="rates top1"):
        Scores(n=1, rates={}, interval={})
