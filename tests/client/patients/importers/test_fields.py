from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.importers.fields import (
    read_age,
    read_fields,
    read_findings,
    read_flag,
    read_line,
    read_lines_of_text,
    read_note,
    read_sex,
    share_finding,
)
from client.patients.records import Finding

PARSERS = [read_age, read_findings, read_flag, read_line, read_lines_of_text, read_note, read_sex]
SEIZURE = {"id": "HP:0001250", "label": "Seizure"}

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("parser", PARSERS)
@settings(deadline=None)
@given(value=json_values)
def test_any_value_is_read_or_refused_by_a_value_error(parser: Any, value: Any) -> None:
    try:
        parser(value)
    except ValueError as error:
        assert str(error)


def test_fields_are_read_each_by_its_parser() -> None:
    row = {"sex": "female", "age": "P3Y", "group": None, "title": "left alone"}
    values, reasons = read_fields(
        row, {"sex": read_sex, "age": read_age, "group": read_line}, unread={"title"}
    )
    assert (values, reasons) == ({"sex": "female", "age": "P3Y"}, [])


def test_every_reason_is_kept_with_its_key_and_quotes_no_value() -> None:
    row = {"sex": "John", "age": "Smith", "name": 1, "John Smith": 2}
    _, reasons = read_fields(row, {"sex": read_sex, "age": read_age})
    assert reasons[0] == "sex: expected one of male, female, other, unknown"
    assert reasons[1].startswith("age: expected an ISO 8601 duration")
    assert reasons[2:] == ["unknown keys: name"]


def test_keys_that_do_not_look_like_keys_are_counted_not_quoted() -> None:
    assert read_fields({"John Smith": 1, "Jane Smith": 2}, {})[1] == ["2 unknown keys"]


def test_findings_are_read_and_shared() -> None:
    first, second = read_findings(
        [SEIZURE, {**SEIZURE, "onset": "P2Y", "severity": "Mild"}], unread={"severity"}
    )
    assert first == Finding(id="HP:0001250", label="Seizure")
    assert second.onset == "P2Y"
    assert first is share_finding("HP:0001250", "Seizure", None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("HP:0001250", "expected a list of findings"),
        (["HP:0001250"], r"\[0\]: expected an object with id and label"),
        ([SEIZURE, {"id": "HP:0001250"}], r"\[1\]: expected id, label and, if known, onset as text"),
        ([{**SEIZURE, "onset": 3}], r"\[0\]: expected id, label and, if known, onset as text"),
        ([{**SEIZURE, "id": "HP:125"}], r"\[0\]: expected a finding's id as HP: and seven digits"),
        ([{**SEIZURE, "onset": "early"}], r"\[0\]: expected a finding's onset as an ISO"),
        ([{**SEIZURE, "severity": "Mild"}], r"\[0\]: unknown keys: severity"),
    ],
)
def test_bad_findings_are_refused_with_their_place(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        read_findings(value)


@pytest.mark.parametrize(
    ("parser", "value"),
    [
        (read_flag, 1),
        (read_line, " padded"),
        (read_line, "two\nlines"),
        (read_note, " \n"),
        (read_note, "\ud800"),
        (read_sex, ["male"]),
        (read_lines_of_text, "research"),
        (read_lines_of_text, [""]),
    ],
)
def test_values_of_another_form_are_refused(parser: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        parser(value)


def test_lists_of_lines_become_sets() -> None:
    assert read_lines_of_text(["research", "care", "care"]) == frozenset({"research", "care"})
