import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical import canonical_json, json_digest, plain, read_object
from common.errors import SettingsError

# No deadline: another test may hold the processor.
few = settings(max_examples=30, deadline=None)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


class Color(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Box:
    color: Color
    sizes: tuple[int, ...]
    path: Path


@few
@given(content=st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_what_is_written_is_read_back(content: dict[str, object]) -> None:
    assert read_object(canonical_json(content), "content") == content


@few
@given(content=st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_the_digest_is_stable_under_key_order(content: dict[str, object]) -> None:
    turned = dict(reversed(content.items()))
    assert json_digest(turned) == json_digest(content)


def test_the_form_is_sorted_dense_and_utf8() -> None:
    text = canonical_json({"b": 1, "a": "é"})
    assert text == '{"a":"é","b":1}'
    assert json_digest({"b": 1, "a": "é"}) == hashlib.sha256(text.encode()).hexdigest()


def test_dataclasses_enums_tuples_and_paths_are_written_as_what_they_hold() -> None:
    box = Box(color=Color.RED, sizes=(1, 2), path=Path("a/b"))
    assert plain(box) == {"color": "red", "sizes": [1, 2], "path": "a/b"}
    assert type(plain(box)["color"]) is str


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": value})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "got JSON of list"),
        ("{", "in line 1"),
        ("{\n'a'}", "in line 2"),
        ("", "in line 1"),
        ('{"a": NaN}', "got NaN"),
        ('{"a": -Infinity}', "got -Infinity"),
        ('{"a": {"b": 1, "b": 2}}', "got 'b' twice"),
        ('{"a":' * 100_000, "too deep"),
    ],
)
def test_anything_but_one_strict_object_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        read_object(text, "plan")
    assert str(caught.value).startswith("plan: expected ")


def test_a_lenient_parser_would_have_taken_a_key_twice() -> None:
    assert json.loads('{"a": 1, "a": 2}') == {"a": 2}
