from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.ages import (
    ONSET_LABELS,
    ONSET_PHRASES,
    Duration,
    age_between,
    is_age,
    onset_class,
    order,
    phrase,
    read_duration,
    read_gestation,
)

ages = st.one_of(
    st.builds(lambda y, m, d: f"P{y}Y{m}M{d}D", st.integers(0, 99), st.integers(0, 30), st.integers(0, 60)),
    st.builds(lambda w, d: f"GA{w}w{d}d", st.integers(0, 45), st.integers(0, 6)),
    st.sampled_from(sorted(ONSET_LABELS)).map(onset_class),
)


@pytest.mark.parametrize(
    "text", ["P3Y6M", "P0D", "P2W", "P1Y18M", "P1DT5H", "PT12H", "GA19w3d", "HP:0003577 Congenital onset"]
)
def test_ages_of_the_three_forms_are_read(text: str) -> None:
    assert is_age(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "P",
        "PT",
        "3 years",
        "P3",
        "p3Y",
        "P-1Y",
        "P1.5Y",
        "P131Y",
        "P3Y\n",
        "P٣Y",
        "GA46w0d",
        "GA19w7d",
        "GA19",
    ],
)
def test_text_of_another_form_is_no_age(text: str) -> None:
    assert not is_age(text)


@pytest.mark.parametrize("text", ["GA46w0d", "GA19w7d", "GA19"])
def test_a_gestation_beyond_its_limits_is_no_age(text: str) -> None:
    assert not is_age(text)


@pytest.mark.parametrize("text", ["HP:0003577 John Smith", "HP:0003577", "HP:0000316 Hypertelorism"])
def test_free_text_is_no_age_an_onset_class_included(text: str) -> None:
    assert not is_age(text)


@settings(deadline=None)
@given(text=st.text(max_size=12))
def test_any_text_is_an_age_or_is_not(text: str) -> None:
    assert is_age(text) in (True, False)


def test_weeks_count_as_days_and_hours_are_left_out() -> None:
    assert read_duration("P1W2DT6H") == Duration(days=9)


def test_gestation_has_completed_weeks() -> None:
    assert read_gestation("GA19w6d") == 19


@pytest.mark.parametrize(
    ("age", "words"),
    [
        ("P2Y3M", "at the age of 2 years and 3 months"),
        ("P1Y1M1D", "at the age of 1 year and 1 month and 1 day"),
        ("P0D", "at the age of 0 days"),
        ("GA1w0d", "at a gestational age of 1 week"),
        ("HP:0003593 Infantile onset", "in infancy"),
    ],
)
def test_phrases_say_when(age: str, words: str) -> None:
    assert phrase(age) == words


def test_a_phrase_needs_an_age() -> None:
    with pytest.raises(ValueError, match="Expected an age"):
        phrase("soon")


def test_every_onset_class_has_a_phrase() -> None:
    assert ONSET_LABELS.keys() == ONSET_PHRASES.keys()


def test_an_unknown_onset_class_is_refused() -> None:
    with pytest.raises(ValueError, match="onset class"):
        onset_class("HP:0000316")


@settings(deadline=None)
@given(age=ages)
def test_every_age_has_a_phrase_and_a_place_in_the_order(age: str) -> None:
    assert is_age(age)
    assert phrase(age).startswith(("at ", "in "))
    assert order(age)[0] in (0, 1, 2)


def test_gestation_comes_before_classes_and_durations_last() -> None:
    shuffled = ["P2Y", "HP:0003593 Infantile onset", "P1M", "GA20w0d", "HP:0003577 Congenital onset", "P18M"]
    assert sorted(shuffled, key=order) == [
        "GA20w0d",
        "HP:0003593 Infantile onset",
        "HP:0003577 Congenital onset",
        "P1M",
        "P18M",
        "P2Y",
    ]


@pytest.mark.parametrize(
    ("birth", "seen", "age"),
    [
        (date(2010, 5, 20), date(2013, 11, 19), "P3Y5M"),
        (date(2010, 5, 20), date(2013, 11, 20), "P3Y6M"),
        (date(2010, 5, 20), date(2013, 5, 20), "P3Y"),
        (date(2010, 5, 20), date(2010, 6, 19), "P30D"),
        (date(2010, 5, 20), date(2010, 5, 20), "P0D"),
        (date(2012, 2, 29), date(2013, 2, 28), "P11M"),
    ],
)
def test_the_age_between_two_dates(birth: date, seen: date, age: str) -> None:
    assert age_between(birth, seen) == age


def test_a_patient_seen_before_birth_is_refused() -> None:
    with pytest.raises(ValueError, match="before the encounter"):
        age_between(date(2020, 1, 2), date(2020, 1, 1))


@settings(deadline=None)
@given(birth=st.dates(date(1900, 1, 1), date(2020, 1, 1)), days=st.integers(0, 40_000))
def test_the_age_between_dates_is_within_a_month_of_the_days_passed(birth: date, days: int) -> None:
    duration = read_duration(age_between(birth, birth + timedelta(days=days)))
    assert duration is not None
    assert -2 <= days - duration.in_days <= 32
