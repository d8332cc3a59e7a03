import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.fixedpoint import BLOCK, FixedPoint, add_words, decode_counts, encode_counts

# No deadline: another test may hold the processor.
few = settings(max_examples=100, deadline=None)

MAX_ABS = st.floats(1e-30, 1e30)
TERMS = st.integers(1, 1000)
BITS = st.integers(16, 32)


@st.composite
def sums(draw: st.DrawFn) -> tuple[FixedPoint, np.ndarray]:
    """A fixed point, and up to as many vectors as it is made for, also with values out of its range."""
    terms = draw(st.integers(1, 6))
    point = FixedPoint.for_sum(draw(MAX_ABS), terms, draw(BITS))
    value = st.floats(-2, 2, width=32).map(lambda part: part * point.max_abs)
    value |= st.sampled_from([-point.max_abs, point.max_abs])
    rows = draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=terms))
    return point, np.array(rows)


@few
@given(example=sums())
def test_the_decoded_sum_of_encoded_vectors_differs_by_at_most_terms_over_twice_the_scale_and_never_wraps(
    example: tuple[FixedPoint, np.ndarray],
) -> None:
    point, rows = example
    total = reduce(add_words, [point.encode(row) for row in rows])
    for column, decoded in enumerate(point.decode(total)):
        clipped = [
            min(max(Fraction(row[column]), -Fraction(point.max_abs)), Fraction(point.max_abs)) for row in rows
        ]
        assert abs(Fraction(decoded) - sum(clipped)) <= Fraction(point.terms) / (2 * Fraction(point.scale))


@few
@given(max_abs=MAX_ABS, terms=TERMS, bits=BITS)
def test_for_sum_is_the_finest_power_of_two_that_never_wraps(max_abs: float, terms: int, bits: int) -> None:
    point = FixedPoint.for_sum(max_abs, terms, bits)
    assert math.frexp(point.scale)[0] == 0.5
    assert round(max_abs * point.scale) * terms < 2 ** (bits - 1)
    with pytest.raises(ValueError, match=r"Expected round\(max_abs \* scale\) \* terms < 2\*\*"):
        FixedPoint(bits=bits, scale=2 * point.scale, max_abs=max_abs, terms=terms)


@few
@given(max_abs=MAX_ABS, terms=TERMS, bits=BITS)
def test_the_largest_sum_fits_and_one_term_more_would_be_refused(
    max_abs: float, terms: int, bits: int
) -> None:
    point = FixedPoint.for_sum(max_abs, terms, bits)
    for sign in (-1, 1):
        word = point.encode(np.array([sign * max_abs])).astype(np.int64)
        total = (word * terms % 2**bits).astype(np.uint32)
        assert point.decode(total)[0] == sign * round(max_abs * point.scale) * terms / point.scale
    with pytest.raises(ValueError, match="terms"):
        FixedPoint(bits=bits, scale=point.scale, max_abs=max_abs, terms=2**bits)


def test_words_are_twos_complement() -> None:
    point = FixedPoint(bits=32, scale=4.0, max_abs=100.0, terms=2)
    words = point.encode(np.array([[0.25, -0.25], [1.0, 0.0]], dtype=np.float32))
    assert words.tolist() == [[1, 2**32 - 1], [4, 0]]
    assert words.dtype == np.uint32
    assert point.decode(words).tolist() == [[0.25, -0.25], [1.0, 0.0]]
    narrow = FixedPoint(bits=8, scale=1.0, max_abs=60.0, terms=2)
    assert narrow.encode(np.array([-1.0, 60.0])).tolist() == [255, 60]


def test_rounding_is_to_the_nearest_step() -> None:
    point = FixedPoint(scale=1.0, max_abs=10.0, terms=1)
    assert point.decode(point.encode(np.array([0.4, 0.6, -0.4, -0.6, 0.5, 1.5]))).tolist() == [
        0,
        1,
        0,
        -1,
        0,
        2,
    ]


def test_sums_in_fewer_bits_than_a_word_are_read_modulo_their_own_size() -> None:
    point = FixedPoint.for_sum(1.0, terms=3, bits=16)
    rows = [np.array([-1.0, 0.5]), np.array([-1.0, -0.75]), np.array([-1.0, 0.125])]
    total = reduce(add_words, [point.encode(row) for row in rows])
    assert point.decode(total).tolist() == [-3.0, -0.125]


def test_values_beyond_max_abs_are_clipped_to_it_and_counted() -> None:
    point = FixedPoint.for_sum(1.0, terms=4)
    values = np.array([0.5, 1.0, -1.0, 1.5, -7.0, np.nextafter(1.0, 2.0)])
    assert point.decode(point.encode(values)).tolist() == [0.5, 1.0, -1.0, 1.0, -1.0, 1.0]
    assert point.clipped(values) == 3
    assert point.clipped(values[:3]) == 0


@few
@given(values=st.lists(st.floats(-3, 3), max_size=20))
def test_the_count_of_clipped_values_is_that_of_changed_ones(values: list[float]) -> None:
    point = FixedPoint.for_sum(1.0, terms=1)
    array = np.array(values)
    changed = np.abs(point.decode(point.encode(array)) - array) > 1 / point.scale
    beyond = sum(abs(value) > 1 for value in values)
    assert point.clipped(array) == beyond
    assert changed.sum() <= beyond


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    point = FixedPoint.for_sum(1.0, terms=1)
    with pytest.raises(ValueError, match="Expected finite values, got 1 that are not"):
        point.encode(np.array([0.0, bad]))
    with pytest.raises(ValueError, match="Expected finite values"):
        point.clipped(np.array([bad]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bits": 1}, "bits between 2 and 32, got 1"),
        ({"bits": 33}, "bits between 2 and 32, got 33"),
        ({"max_abs": 0.0}, "max_abs > 0"),
        ({"max_abs": math.inf}, "max_abs > 0"),
        ({"max_abs": math.nan}, "max_abs > 0"),
        ({"terms": 0}, "terms >= 1, got 0"),
        ({"scale": 0.0}, "power of two"),
        ({"scale": 3.0}, "power of two"),
        ({"scale": math.inf}, "power of two"),
        ({"scale": 2.0**31}, r"< 2\*\*31"),
        ({"scale": 2.0**1023, "max_abs": 1e300}, r"< 2\*\*31"),
    ],
)
def test_a_fixed_point_that_could_wrap_or_makes_no_sense_is_refused(
    change: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        FixedPoint(**({"bits": 32, "scale": 2.0**20, "max_abs": 1.0, "terms": 3} | change))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0.0, 3), "max_abs"),
        ((-1.0, 3), "max_abs"),
        ((math.nan, 3), "max_abs"),
        ((5e-324, 3), "max_abs"),
        ((1.0, 0), "terms"),
        ((1.0, 2**31), "terms"),
        ((1.0, 3, 64), "bits"),
    ],
)
def test_a_sum_that_cannot_be_planned_is_refused(arguments: tuple[float, int], reason: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {reason}"):
        FixedPoint.for_sum(*arguments)


def test_words_are_added_in_place_modulo_two_to_the_32() -> None:
    total = np.array([2**32 - 1, 5], dtype=np.uint32)
    assert add_words(total, np.array([2, 3], dtype=np.uint32)) is total
    assert total.tolist() == [1, 8]


@pytest.mark.parametrize(
    "words", [np.zeros(3, dtype=np.uint32), np.zeros(2, dtype=np.int64), np.zeros((2, 1), dtype=np.uint32)]
)
def test_words_of_another_shape_or_type_are_not_added(words: np.ndarray) -> None:
    total = np.zeros(2, dtype=np.uint32)
    with pytest.raises(ValueError, match="Expected words of"):
        add_words(total, words)
    with pytest.raises(ValueError, match="Expected words of uint32, got float64"):
        FixedPoint.for_sum(1.0, terms=1).decode(np.zeros(2))


@few
@given(rows=st.lists(st.lists(st.integers(0, 10**8), min_size=2, max_size=2), min_size=1, max_size=5))
def test_counts_add_up(rows: list[list[int]]) -> None:
    total = reduce(add_words, [encode_counts(row, terms=len(rows)) for row in rows])
    assert decode_counts(total) == tuple(sum(column) for column in zip(*rows, strict=True))


def test_counts_that_could_wrap_or_are_no_counts_are_refused() -> None:
    assert encode_counts([2**32 - 1]).tolist() == [2**32 - 1]
    assert encode_counts(np.array([1, 2])).tolist() == [1, 2]
    assert encode_counts([]).tolist() == []
    for counts, terms in ([-1], 1), ([2**32], 1), ([2**31], 2), ([0.5], 1):
        with pytest.raises(ValueError, match="Expected counts between 0 and"):
            encode_counts(counts, terms=terms)
    with pytest.raises(ValueError, match="Expected terms >= 1, got 0"):
        encode_counts([1], terms=0)


@given(
    max_abs=st.sampled_from([1.0, 0.3, 2.0, 8.0, 1e-30]),
    terms=st.integers(1, 100),
    bits=st.integers(16, 32),
    seed=st.integers(0, 99),
)
def test_floats_of_either_width_give_the_same_words(max_abs: float, terms: int, bits: int, seed: int) -> None:
    fixed_point = FixedPoint.for_sum(max_abs, terms, bits)
    narrow = (np.random.default_rng(seed).normal(size=200) * max_abs).astype(np.float32)
    assert (fixed_point.encode(narrow) == fixed_point.encode(narrow.astype(np.float64))).all()


def test_more_values_than_a_block_are_encoded_alike() -> None:
    fixed_point = FixedPoint.for_sum(1.0, 3)
    values = np.random.default_rng(0).normal(size=2 * BLOCK + 7)
    halves = [fixed_point.encode(values[:100]), fixed_point.encode(values[100:])]
    assert (fixed_point.encode(values) == np.concatenate(halves)).all()


def test_a_value_just_beyond_the_bound_is_clipped_in_either_width() -> None:
    fixed_point = FixedPoint.for_sum(0.3, 1)
    beyond = np.array([0.3], dtype=np.float32)
    assert float(beyond[0]) > 0.3
    largest = fixed_point.encode(np.array([0.3]))
    assert fixed_point.encode(beyond) == largest
    assert fixed_point.encode(beyond.astype(np.float64)) == largest


def test_a_long_vector_is_encoded_and_added_as_in_numpy_at_once() -> None:
    fixed_point = FixedPoint.for_sum(1.0, 2)
    values = np.random.default_rng(1).uniform(-1.2, 1.2, 9 * BLOCK + 3)
    words = fixed_point.encode(values)
    assert (words.view(np.int32) == np.rint(np.clip(values, -1, 1) * fixed_point.scale)).all()
    total = words.copy()
    add_words(total, words)
    assert (total == words + words).all()
