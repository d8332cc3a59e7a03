"""Tests of class-wise bins, proper scores and temperatures."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.calibration import (
    BINS,
    LEAST_CONFIDENCE,
    SCORE_STEPS,
    TEMPERATURES,
    ClassBins,
    ProperScores,
    ReliabilityBins,
    TemperatureSums,
    confidence_of,
    fit_temperature,
)

CLASSES = 7


def cases(
    rng: np.random.Generator, n: int, sharpness: float
) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Scores that are right as often as they say at temperature ``sharpness``."""
    scores = [np.sort(rng.normal(size=CLASSES) * 2)[::-1] for _ in range(n)]
    right = np.array([rng.random() < confidence_of(own)[0] for own in scores])
    return [own * sharpness for own in scores], right


def plain_loss(
    scores: Sequence[NDArray[np.float64]], correct: NDArray[np.bool_], temperature: float
) -> float:
    """The log loss case by case."""
    total = 0.0
    for own, right in zip(scores, correct, strict=True):
        first = 1 / sum(math.exp(float(score - own[0]) / temperature) for score in own)
        total -= math.log(max(LEAST_CONFIDENCE, first if right else 1 - first))
    return total


def plain_class_ece(confidence: NDArray[np.float64], truths: NDArray[np.int64]) -> float:
    """Nixon et al. 2019 with equal bins, class by class and bin by bin."""
    total = 0.0
    for number in range(confidence.shape[1]):
        own, is_truth = confidence[:, number], truths == number
        for low in range(BINS):
            inside = np.minimum(np.floor(own * BINS), BINS - 1) == low
            total += abs(float(is_truth[inside].sum() - own[inside].sum()))
    return total / confidence.size


@pytest.mark.parametrize("sites", [1, 2, 5])
def test_summed_site_bins_give_the_ece_of_all_cases_to_1e_12(sites: int) -> None:
    rng = np.random.default_rng(sites)
    # On the bins' own steps, so that the plain computation below sees the same confidences.
    confidence = rng.integers(0, 2**16 + 1, size=900) / 2**16
    correct = rng.random(900) < confidence**2
    site = rng.integers(sites, size=900)
    total = sum(
        (ReliabilityBins.from_cases(confidence[site == s], correct[site == s]) for s in range(sites)),
        ReliabilityBins(),
    )
    place = np.minimum(np.floor(confidence * BINS), BINS - 1)
    plain = sum(
        (place == b).mean() * abs(correct[place == b].mean() - confidence[place == b].mean())
        for b in range(BINS)
        if (place == b).any()
    )
    assert total.ece() == pytest.approx(plain, abs=1e-12)


def test_the_most_confident_bin_counts_and_empty_bins_do_not() -> None:
    # All cases at 0.97, every second one wrong: without the last bin the error would be 0.
    bins = ReliabilityBins.from_cases(np.full(10, 0.97), np.arange(10) % 2 == 0)
    assert bins.n == (0,) * 9 + (10,)
    assert bins.ece() == pytest.approx(0.47, abs=1e-4)
    classes = ClassBins.from_cases([[0]] * 10, [np.array([0.97])] * 10, [0, 1] * 5, 2)
    # Class 0 claims 0.97 and is the truth half of the time; class 1 claims nothing and is it as often.
    assert classes.ece() == pytest.approx((0.47 + 0.5) / 2, abs=1e-4)


@pytest.mark.parametrize(("n", "expected"), [(50, 0.111), (200, 0.056), (845, 0.027), (5000, 0.011)])
def test_the_noise_floor_is_of_the_size_known_from_simulation(n: int, expected: float) -> None:
    rng = np.random.default_rng(n)
    confidence = rng.beta(4, 2, size=n)
    floor = ReliabilityBins.from_cases(confidence, rng.random(n) < confidence).noise_floor(rng)
    assert floor == pytest.approx(expected, rel=0.35)


def test_class_wise_ece_is_that_of_the_plain_formula_and_adds_up() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.dirichlet(np.full(CLASSES, 0.5), size=300)
    truths = rng.integers(CLASSES, size=300)
    kept = [np.argsort(-row)[:4] for row in confidence]
    shown = np.zeros_like(confidence)
    for row, own in enumerate(kept):
        shown[row, own] = confidence[row, own]

    def of(rows: range) -> ClassBins:
        return ClassBins.from_cases(
            [list(kept[i]) for i in rows], [confidence[i][kept[i]] for i in rows], list(truths[rows]), CLASSES
        )

    total = of(range(120)) + of(range(120, 300))
    assert total == of(range(300))
    assert total.ece() == pytest.approx(plain_class_ece(shown, truths), abs=2e-5)


def test_the_class_wise_floor_is_the_class_wise_ece_of_calibrated_models() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.dirichlet(np.full(CLASSES, 0.5), size=200)
    everything = [list(range(CLASSES))] * 200

    def drawn() -> ClassBins:
        truths = [int(rng.choice(CLASSES, p=row)) for row in confidence]
        return ClassBins.from_cases(everything, list(confidence), truths, CLASSES)

    eces = [ece for _ in range(60) if (ece := drawn().ece()) is not None]
    assert drawn().noise_floor(rng) == pytest.approx(np.mean(eces), rel=0.1)


def test_no_case_and_no_class_have_no_class_wise_ece() -> None:
    rng = np.random.default_rng(0)
    for empty in (ClassBins(classes=()), ClassBins(classes=(ReliabilityBins(),) * 2)):
        assert empty.ece() is None
        assert empty.noise_floor(rng) is None
    with pytest.raises(ValueError, match="bins of 0 classes, got 1"):
        ClassBins(classes=()) + ClassBins(classes=(ReliabilityBins(),))


def test_proper_scores_by_hand() -> None:
    scores = ProperScores.from_cases(
        [np.array([0.7, 0.2, 0.1]), np.array([0.6, 0.4]), np.array([0.5, 0.5]), np.zeros(0)],
        [0, 1, None, None],
    )
    floor = -math.log(LEAST_CONFIDENCE)
    assert scores.nll() == pytest.approx((-math.log(0.7) - math.log(0.4) + 2 * floor) / 4, abs=2e-4)
    # (0.3, 0.2, 0.1), (0.6, 0.6), (0.5, 0.5) and the truth that is not there, and that alone.
    assert scores.brier() == pytest.approx((0.14 + 0.72 + 1.5 + 1) / 4, abs=2e-4)


def test_a_sure_and_right_answer_loses_nothing_and_a_sure_and_wrong_one_all() -> None:
    best = ProperScores.from_cases([np.array([1.0, 0.0])], [0])
    worst = ProperScores.from_cases([np.array([1.0, 0.0])], [1])
    assert (best.nll(), best.brier()) == (0.0, 0.0)
    assert worst.nll() == pytest.approx(-math.log(LEAST_CONFIDENCE), abs=1e-3)
    assert worst.brier() == 2.0
    assert ProperScores().nll() is None
    assert ProperScores().brier() is None


def test_scores_of_no_set_of_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="log loss from 0"):
        ProperScores(n=1, nll_steps=10 * SCORE_STEPS)
    with pytest.raises(ValueError, match="Brier score from 0"):
        ProperScores(n=1, brier_steps=2 * SCORE_STEPS + 1)
    with pytest.raises(ValueError, match="41 sums"):
        TemperatureSums(n=1, nll_steps=(0,))
    with pytest.raises(ValueError, match=r"temperature 0\.25"):
        TemperatureSums(nll_steps=(1,) + (0,) * 40)


def test_a_confidence_is_the_softmax_of_the_tempered_scores() -> None:
    scores = np.log([0.5, 0.3, 0.2]) - 900  # far below what a float's exponential holds
    assert confidence_of(scores) == pytest.approx([0.5, 0.3, 0.2])
    cold = np.array([0.25, 0.09, 0.04]) / 0.38
    assert confidence_of(scores, 0.5) == pytest.approx(cold)
    assert confidence_of(np.zeros(0)).shape == (0,)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature > 0"):
            confidence_of(scores, bad)


def test_the_grid_of_temperatures_holds_one_and_its_ends() -> None:
    assert (TEMPERATURES[0], TEMPERATURES[16], TEMPERATURES[-1]) == (0.25, 1.0, 8.0)
    assert list(TEMPERATURES) == sorted(TEMPERATURES)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 1.7, 3.0])
def test_the_fitted_temperature_is_that_of_a_fine_grid_and_undoes_what_sharpened_the_scores(
    sharpness: float,
) -> None:
    scores, correct = cases(np.random.default_rng(2), 600, sharpness)
    fine = np.geomspace(0.25, 8, 1500)
    least = fine[np.argmin([plain_loss(scores, correct, t) for t in fine])]
    fitted = fit_temperature(scores, correct)
    assert fitted == pytest.approx(least, rel=0.003)
    assert fitted == pytest.approx(sharpness, rel=0.25)


@pytest.mark.parametrize("sharpness", [0.6, 2.2])
def test_sites_together_find_nearly_the_temperature_of_their_pooled_cases(sharpness: float) -> None:
    scores, correct = cases(np.random.default_rng(3), 500, sharpness)
    parts = (slice(0, 50), slice(50, 130), slice(130, 500))
    sums = sum((TemperatureSums.from_cases(scores[p], correct[p]) for p in parts), TemperatureSums())
    assert sums == TemperatureSums.from_cases(scores, correct)
    # A step of the grid is an eighth of an octave; a tenth of it is under 1 % of the temperature.
    assert abs(math.log2(sums.best() / fit_temperature(scores, correct))) < 0.1 / 8


def test_a_temperature_sum_is_the_plain_log_loss() -> None:
    scores, correct = cases(np.random.default_rng(4), 80, 1.4)
    sums = TemperatureSums.from_cases(scores, correct)
    for place in (0, 16, 40):
        plain = plain_loss(scores, correct, TEMPERATURES[place])
        assert sums.nll_steps[place] / SCORE_STEPS == pytest.approx(plain, abs=80 / SCORE_STEPS)


def test_without_anything_to_learn_from_the_temperature_stays_one() -> None:
    alone = [np.array([-3.0])] * 4
    wrong = np.zeros(4, dtype=bool)
    for scores, correct in (([], wrong[:0]), (alone, wrong), ([np.zeros(0)] * 4, wrong)):
        assert fit_temperature(scores, correct) == 1.0
        assert TemperatureSums.from_cases(scores, correct).best() == 1.0


def test_a_student_that_is_always_right_or_never_ends_at_the_ends_of_the_grid() -> None:
    scores = [np.array([0.0, -1.0, -2.0])] * 5
    for right, end in ((True, TEMPERATURES[0]), (False, TEMPERATURES[-1])):
        correct = np.full(5, right)
        assert TemperatureSums.from_cases(scores, correct).best() == end
        assert fit_temperature(scores, correct) == pytest.approx(end, rel=1e-4)


def test_a_case_whose_truth_fell_off_the_beam_pulls_the_confidence_down() -> None:
    scores, correct = cases(np.random.default_rng(5), 200, 1.0)
    lost = [np.array([0.0, -4.0, -5.0])] * 100
    with_lost = fit_temperature([*scores, *lost], np.concatenate([correct, np.zeros(100, dtype=bool)]))
    assert with_lost > 1.3 * fit_temperature(scores, correct)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-50, 0), max_size=5), max_size=12))
def test_any_cases_have_a_temperature_within_the_grid(rows: list[list[float]]) -> None:
    scores = [np.array(sorted(row, reverse=True)) for row in rows]
    correct = np.array([len(row) % 2 == 1 for row in rows], dtype=bool)
    for found in (fit_temperature(scores, correct), TemperatureSums.from_cases(scores, correct).best()):
        assert TEMPERATURES[0] <= found <= TEMPERATURES[-1]


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="best first"):
        fit_temperature([np.array([-2.0, -1.0])], np.array([True]))
    with pytest.raises(ValueError, match="each of 1 cases"):
        fit_temperature([np.array([-1.0])], np.array([True, False]))
