"""Tests of paired comparisons: right on known cases, and honest about what it cannot know."""

import numpy as np
import pytest

from simulations.paired import BOOTSTRAP, MCNEMAR, Hits, Word, compare, holm, mcnemar, rate_of, word_for


def hits(right: list[bool], patients: list[str] | None = None, seeds: list[int] | None = None) -> Hits:
    n = len(right)
    patients, seeds = patients or [f"p{i}" for i in range(n)], seeds or [0] * n
    keys = tuple((seed, i) for i, seed in enumerate(seeds))
    return Hits(keys=keys, seeds=tuple(seeds), patients=tuple(patients), right=np.array(right))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_difference_and_ratio_are_those_of_the_cases() -> None:
    first, second = hits([True] * 8 + [False] * 2), hits([True] * 5 + [False] * 5)
    found = compare(first, second, rng())
    assert (found.n, found.patients, found.first_rate, found.second_rate) == (10, 10, 0.8, 0.5)
    assert found.difference == pytest.approx(0.3)
    assert found.ratio == pytest.approx(1.6)
    assert found.interval[0] < 0.3 < found.interval[1]
    assert found.ratio_interval is not None
    assert found.ratio_interval[0] < 1.6 < found.ratio_interval[1]


def test_pairing_makes_a_difference_surer_than_two_samples_would() -> None:
    right = [i % 2 == 0 for i in range(200)]
    better = [one or i % 20 == 1 for i, one in enumerate(right)]
    paired = compare(hits(better), hits(right), rng())
    low, high = paired.interval
    # Two samples of 200 at about one half: standard error 0.05. Here only ten cases differ: 0.0155.
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.05 * 0.95 / 200), rel=0.1)
    assert word_for(paired.interval) is Word.BETTER


def test_one_seed_is_tested_by_mcnemar_and_several_by_the_bootstrap() -> None:
    first, second = [True] * 6 + [False] * 4, [False] * 10
    assert compare(hits(first), hits(second), rng()).test == MCNEMAR
    # Six cases that one method alone got right: 2 * 0.5 ** 6.
    assert compare(hits(first), hits(second), rng()).p_value == pytest.approx(2 / 64)
    seeds = [0] * 5 + [1] * 5
    assert compare(hits(first, seeds=seeds), hits(second, seeds=seeds), rng()).test == BOOTSTRAP
    tiles = ["p"] * 2 + [f"p{i}" for i in range(8)]
    assert compare(hits(first, tiles), hits(second, tiles), rng()).test == BOOTSTRAP
    assert mcnemar(np.array([True]), np.array([True])) == 1.0


def test_the_bootstrap_s_p_value_is_even_where_there_is_no_difference() -> None:
    """At a level of 0.05 about one comparison in twenty of equal methods is called a difference."""
    source, called = np.random.default_rng(1), 0
    for _ in range(200):
        right = [list(source.random(80) < 0.5) for _ in range(2)]
        seeds = [0] * 40 + [1] * 40
        found = compare(hits(right[0], seeds=seeds), hits(right[1], seeds=seeds), source, draws=500)
        called += found.p_value < 0.05
    assert 2 <= called <= 22


def test_a_patient_of_several_seeds_is_drawn_with_all_of_his_appearances() -> None:
    once = compare(hits([True, False] * 50), hits([False] * 100), rng())
    same = [f"p{i}" for i in range(100)] * 3
    seeds = [seed for seed in range(3) for _ in range(100)]
    thrice = compare(hits([True, False] * 150, same, seeds), hits([False] * 300, same, seeds), rng())
    apart = compare(hits([True, False] * 150, None, seeds), hits([False] * 300, None, seeds), rng())
    # Three looks at the same patients know no more of other patients than one.
    assert np.subtract(*thrice.interval) == pytest.approx(np.subtract(*once.interval), rel=0.1)
    assert abs(np.subtract(*apart.interval)) < 0.7 * abs(np.subtract(*once.interval))
    assert (thrice.n, thrice.patients) == (300, 100)


def test_the_difference_of_every_seed_is_told() -> None:
    found = compare(
        hits([True, True, False], seeds=[4, 4, 7]), hits([False, True, True], seeds=[4, 4, 7]), rng()
    )
    assert found.by_seed == (0.5, -1.0)


@pytest.mark.parametrize("other", [[True], [True, False, True]])
def test_other_cases_are_refused(other: list[bool]) -> None:
    with pytest.raises(ValueError, match="the same cases"):
        compare(hits([True, False]), hits(other), rng())
    with pytest.raises(ValueError, match="the same cases"):
        compare(hits([]), hits([]), rng())


def test_no_ratio_to_a_method_that_is_never_right() -> None:
    found = compare(hits([True, False]), hits([False, False]), rng())
    assert (found.ratio, found.ratio_interval) == (None, None)


def test_holm_s_correction_of_a_worked_example() -> None:
    # Four comparisons, sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.01, 0.05), Word.BETTER),
        ((-0.05, -0.01), Word.WORSE),
        ((-0.01, 0.05), Word.EVEN),
        ((0.0, 0.05), Word.EVEN),
        ((-0.05, 0.0), Word.EVEN),
    ],
)
def test_verdicts_come_from_the_interval_alone(interval: tuple[float, float], word: Word) -> None:
    assert word_for(interval) is word


def test_a_rate_has_the_interval_of_its_patients() -> None:
    rate, (low, high) = rate_of(hits([i % 4 > 0 for i in range(400)]), rng())
    assert rate == 0.75
    # A binomial share: 1.96 * sqrt(0.75 * 0.25 / 400) = 0.042.
    assert (low, high) == pytest.approx((0.708, 0.792), abs=0.006)
