import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.calibration import BINS, CONFIDENCE_STEPS, ReliabilityBins
from common.fixedpoint import add_words

cases = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def bins_of(pairs: list[tuple[float, bool]]) -> ReliabilityBins:
    confidence = np.array([pair[0] for pair in pairs], dtype=np.float64)
    return ReliabilityBins.from_cases(confidence, np.array([pair[1] for pair in pairs], dtype=bool))


def plain_ece(pairs: list[tuple[float, bool]]) -> float:
    """Guo et al. 2017, equation 3, case by case."""
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [(p, c) for p, c in pairs if low <= p < high or (p == 1 and number == BINS - 1)]
        total += abs(sum(c for _, c in inside) - sum(p for p, _ in inside))
    return total / len(pairs)


def test_ece_by_hand() -> None:
    # 0.8-0.9: three of four right at 0.8 -> gap 0.2 of a case; 0.2-0.3: none of one right at 0.25.
    bins = bins_of([(0.8, True), (0.8, True), (0.8, True), (0.8, False), (0.25, False)])
    assert bins.n == (0, 0, 1, 0, 0, 0, 0, 0, 4, 0)
    assert bins.correct == (0, 0, 0, 0, 0, 0, 0, 0, 3, 0)
    assert bins.ece() == pytest.approx((0.2 + 0.25) / 5, abs=1e-5)


@given(cases.filter(bool))
def test_ece_is_that_of_the_plain_formula(pairs: list[tuple[float, bool]]) -> None:
    # Away from the edges, where rounding the confidence may choose the other bin.
    pairs = [(min(1.0, max(0.0, round(p * 100) / 100 + 0.001)), c) for p, c in pairs]
    assert bins_of(pairs).ece() == pytest.approx(plain_ece(pairs), abs=1 / CONFIDENCE_STEPS)


@given(cases, cases)
def test_the_ece_of_added_bins_is_the_ece_of_all_their_cases_in_one_set_of_bins(
    a: list[tuple[float, bool]], b: list[tuple[float, bool]]
) -> None:
    assert bins_of(a) + bins_of(b) == bins_of(a + b)
    assert (bins_of(a) + bins_of(b)).ece() == bins_of(a + b).ece()
    total = bins_of(a).to_words().copy()
    add_words(total, bins_of(b).to_words())
    assert ReliabilityBins.from_words(total) == bins_of(a + b)


def test_one_and_zero_are_in_the_last_and_first_bin() -> None:
    bins = bins_of([(1.0, True), (0.0, False)])
    assert (bins.n[0], bins.n[-1]) == (1, 1)
    assert bins.ece() == 0.0


def test_no_case_has_no_ece_and_no_floor() -> None:
    empty = ReliabilityBins()
    assert empty.ece() is None
    assert empty.noise_floor(np.random.default_rng(0)) is None
    assert bins_of([]) == empty


def test_the_noise_floor_is_the_ece_of_calibrated_models_and_falls_with_the_cases() -> None:
    rng = np.random.default_rng(0)
    floors = []
    for n in (200, 2000):
        confidence = rng.random(n)
        bins = ReliabilityBins.from_cases(confidence, rng.random(n) < confidence)
        eces = []
        for _ in range(200):
            drawn = ReliabilityBins.from_cases(confidence, rng.random(n) < confidence).ece()
            assert drawn is not None
            eces.append(drawn)
        floor = bins.noise_floor(rng)
        assert floor == pytest.approx(np.mean(eces), rel=0.1)
        floors.append(floor)
    assert floors[1] < floors[0] / 2


@pytest.mark.parametrize("bad", [1.01, -0.1, float("nan")])
def test_a_confidence_outside_0_to_1_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        bins_of([(bad, True)])


def test_bins_of_no_set_of_cases_are_refused() -> None:
    one = (1,) + (0,) * (BINS - 1)
    with pytest.raises(ValueError, match="bin 0"):
        ReliabilityBins(correct=one)
    with pytest.raises(ValueError, match="bin 0"):
        ReliabilityBins(n=one, confidence_sum=(CONFIDENCE_STEPS + 1,) + (0,) * (BINS - 1))
    with pytest.raises(ValueError, match="10 bins of n"):
        ReliabilityBins(n=(0,))
    with pytest.raises(ValueError, match="30 words"):
        ReliabilityBins.from_words(np.zeros(29, dtype=np.uint32))
    with pytest.raises(ValueError, match="one confidence a case"):
        ReliabilityBins.from_cases(np.zeros(3), np.zeros(2, dtype=bool))
