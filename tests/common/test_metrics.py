import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.fixedpoint import add_words
from common.metrics import WORD_COUNT, FreeAnswer, MetricCounts, bootstrap_interval, count_case

ANSWERS = [f"OMIM:{number}" for number in range(1, 13)]


@st.composite
def counts(draw: st.DrawFn) -> MetricCounts:
    top1, top5, top10, n = sorted(draw(st.lists(st.integers(0, 1000), min_size=4, max_size=4)))
    pairs = [sorted(draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000)))) for _ in range(3)]
    free_cases = draw(st.integers(0, min(n, pairs[0][1])))
    abstained = draw(st.integers(0, min(free_cases, pairs[0][0])))
    exact1, free1, free10 = sorted(draw(st.integers(0, free_cases - abstained)) for _ in range(3))
    return MetricCounts(
        n=n,
        top1=top1,
        top5=top5,
        top10=top10,
        invalid=pairs[0][0],
        free=pairs[0][1],
        free_cases=free_cases,
        free_top1=free1,
        free_top10=free10,
        free_top1_exact=exact1,
        free_top10_exact=draw(st.integers(exact1, free10)),
        abstained=abstained,
        coverage_hits=pairs[1][0],
        coverage_total=pairs[1][1],
        avoidance_hits=pairs[2][0],
        avoidance_total=pairs[2][1],
    )


@given(counts(), counts())
def test_counts_add_up_as_values_and_as_words(a: MetricCounts, b: MetricCounts) -> None:
    total = a.to_words().copy()
    add_words(total, b.to_words())
    assert MetricCounts.from_words(total) == a + b
    assert (a + b).n == a.n + b.n
    assert MetricCounts() + a == a


@pytest.mark.parametrize(
    ("place", "expected"),
    [(0, (1, 1, 1)), (1, (0, 1, 1)), (4, (0, 1, 1)), (5, (0, 0, 1)), (9, (0, 0, 1)), (10, (0, 0, 0))],
)
def test_a_case_is_counted_by_the_place_of_its_truth(place: int, expected: tuple[int, int, int]) -> None:
    case = count_case(ANSWERS, ANSWERS[place])
    assert (case.n, case.top1, case.top5, case.top10) == (1, *expected)


def test_a_truth_that_a_short_list_does_not_name_is_not_in_its_top_10() -> None:
    assert count_case(["a", "b"], "c") == MetricCounts(n=1)
    assert count_case([], "c") == MetricCounts(n=1)


def test_coverage_and_avoidance_are_those_of_the_models_first_k_answers() -> None:
    # The model says 1 2 3 4 5 ...; of its first 5 the teacher's top has 1, 2 and 3, the bottom has 5.
    case = count_case(
        ANSWERS,
        "OMIM:1",
        teacher_top=["OMIM:3", "OMIM:2", "OMIM:1", "OMIM:9", "OMIM:8"],
        teacher_bottom=["OMIM:5", "OMIM:6", "OMIM:7"],
    )
    assert (case.coverage_hits, case.coverage_total) == (3, 5)
    assert (case.avoidance_hits, case.avoidance_total) == (4, 5)
    assert case.rate("coverage") == 0.6
    assert case.rate("avoidance") == 0.8


def test_a_list_shorter_than_k_cannot_cover_what_it_leaves_out() -> None:
    case = count_case(["a"], "a", teacher_top=["a", "b"], teacher_bottom=["c"], k=2)
    assert case.rate("coverage") == 0.5
    assert case.rate("avoidance") == 1.0


def test_k_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="k >= 1"):
        count_case(["a"], "a", teacher_top=[])


def free(*named: str | None, exact: bool = True, abstained: bool = False) -> FreeAnswer:
    return FreeAnswer(
        valid=tuple(name is not None for name in named),
        ids=named,
        exact=tuple(name is not None and exact for name in named),
        abstained=abstained,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, (0, 0)), (free("a", None, "b"), (1, 3)), (free(), (1, 1)), (free("a"), (0, 1))],
)
def test_invalid_answers_are_counted_and_an_empty_text_is_one(
    text: FreeAnswer | None, expected: tuple[int, int]
) -> None:
    case = count_case(ANSWERS, ANSWERS[0], free=text)
    assert (case.invalid, case.free) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # free_top1, free_top10, exact ones, abstained
        (free("t", "a"), (1, 1, 1, 1, 0)),
        (free("t", "a", exact=False), (1, 1, 0, 0, 0)),
        (free(None, "a", "t"), (0, 1, 0, 1, 0)),
        (free(*"abcdefghij", "t"), (0, 0, 0, 0, 0)),
        (free(None), (0, 0, 0, 0, 0)),
        (free(), (0, 0, 0, 0, 1)),
        (free(None, abstained=True), (0, 0, 0, 0, 1)),
    ],
)
def test_free_texts_are_counted_by_cases_with_any_name_and_with_the_own_name(
    text: FreeAnswer, expected: tuple[int, ...]
) -> None:
    case = count_case(["a"], "t", free=text)
    got = (case.free_top1, case.free_top10, case.free_top1_exact, case.free_top10_exact, case.abstained)
    assert got == expected
    assert case.free_cases == 1
    assert case.rate("free_top10") == float(expected[1])


def test_free_answers_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        FreeAnswer(valid=(True,))
    with pytest.raises(ValueError, match="an id of valid answers"):
        FreeAnswer(valid=(True,), ids=(None,), exact=(False,))
    with pytest.raises(ValueError, match="an id of valid answers"):
        FreeAnswer(valid=(False,), ids=(None,), exact=(True,))
    with pytest.raises(ValueError, match="no valid answer"):
        free("a", abstained=True)


def test_car_is_the_weighted_harmonic_mean_of_coverage_and_avoidance() -> None:
    counts = MetricCounts(coverage_hits=6, coverage_total=10, avoidance_hits=9, avoidance_total=10)
    assert counts.rate("car") == counts.car() == pytest.approx(2 / (1 / 0.6 + 1 / 0.9))
    # notes of the published code: (1 + w) C A / (w C + A)
    assert counts.car(0.5) == pytest.approx(1.5 * 0.54 / (0.3 + 0.9))
    assert counts.car(0.0) == pytest.approx(0.6)
    assert counts.car(1e9) == pytest.approx(0.9)
    assert MetricCounts(coverage_total=10, avoidance_total=10).car() == 0.0
    assert MetricCounts(coverage_total=10).car() is None


def test_a_rate_of_nothing_is_none_and_not_zero() -> None:
    case = count_case(ANSWERS, ANSWERS[3])
    assert case.rate("top1") == 0.0
    assert case.rate("coverage") is None
    assert case.as_dict() == {
        "n": 1,
        "top1": 0.0,
        "top5": 1.0,
        "top10": 1.0,
        "invalid_rate": None,
        "free_top1": None,
        "free_top10": None,
        "free_top1_exact": None,
        "free_top10_exact": None,
        "abstained": None,
        "coverage": None,
        "avoidance": None,
        "car": None,
    }
    with pytest.raises(ValueError, match="top1"):
        case.rate("top2")


@pytest.mark.parametrize(
    "values",
    [
        {"n": 1, "top1": 2, "top5": 2, "top10": 2},
        {"n": 3, "top1": 2, "top5": 1, "top10": 3},
        {"n": -1},
        {"invalid": 1},
        {"coverage_hits": 2, "coverage_total": 1},
    ],
)
def test_counts_of_no_set_of_cases_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="Expected 0 <="):
        MetricCounts(**values)


FREE = {"n": 9, "free": 9, "free_cases": 9}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FREE | {"free_top1": 2, "free_top10": 1}, "free_top1 <= free_top10"),
        (
            FREE | {"free_top1_exact": 1, "free_top10": 1, "free_top10_exact": 1},
            "free_top1_exact <= free_top1",
        ),
        (FREE | {"free_top10_exact": 1}, "free_top10_exact <= free_top10"),
        (
            FREE | {"free_top1": 1, "free_top1_exact": 1, "free_top10": 1},
            "free_top1_exact <= free_top10_exact",
        ),
        ({"n": 1, "free": 2, "free_cases": 2}, "free_cases <= n"),
        ({"n": 2, "free": 1, "free_cases": 2}, "free_cases <= free"),
        (FREE | {"abstained": 1}, "abstained <= invalid"),
        (FREE | {"free_top10": 9, "abstained": 1, "invalid": 1}, r"free_top10 \+ abstained <= free_cases"),
    ],
)
def test_counts_of_free_texts_are_nested(values: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {expected}"):
        MetricCounts(**values)


def test_words_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{WORD_COUNT} words"):
        MetricCounts.from_words(np.zeros(WORD_COUNT + 1, dtype=np.uint32))


def test_the_bootstrap_interval_covers_the_true_accuracy_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.random(400) < 0.7, rng, draws=400)
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_bootstrap_interval_of_all_right_is_a_point_and_of_none_is_refused() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_interval(np.ones(5, dtype=bool), rng) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one case"):
        bootstrap_interval(np.ones(0, dtype=bool), rng)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(np.ones(3, dtype=bool), rng, level=1.0)
