import hashlib
import json
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical import canonical_json, json_digest, labeled_digest, plain, plain_json, read_object
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


@few
@given(content=JSON_VALUES)
def test_what_is_plain_already_is_written_the_same_without_a_copy(content: object) -> None:
    assert plain_json(content) == canonical_json(content)


def test_a_labeled_digest_is_sha256_of_label_and_parts_each_behind_its_length() -> None:
    content = b"\x05\0\0\0\0\0\0\0label\x02\0\0\0\0\0\0\0ab\0\0\0\0\0\0\0\0"
    assert labeled_digest("label", b"ab", b"") == hashlib.sha256(content).digest()


def test_other_parts_another_split_or_another_label_give_another_digest() -> None:
    digests = [
        labeled_digest("label", b"ab", b"c"),
        labeled_digest("label", b"a", b"bc"),
        labeled_digest("label", b"abc"),
        labeled_digest("label", b"abc", b""),
        labeled_digest("label", b"c", b"ab"),
        labeled_digest("labela", b"b", b"c"),
        labeled_digest("other", b"ab", b"c"),
        labeled_digest("label"),
    ]
    assert len(set(digests)) == len(digests)


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


def test_a_key_that_comes_twice_among_very_many_is_found_at_once() -> None:
    keys = ",".join(f'"{number}":0' for number in range(100_000))
    started = time.perf_counter()
    with pytest.raises(SettingsError, match="got '99999' twice"):
        read_object(f'{{{keys},"99999":0}}', "head")
    # One look at each key takes a part of a second; one at each pair of keys takes minutes.
    assert time.perf_counter() - started < 20


def test_a_lenient_parser_would_have_taken_a_key_twice() -> None:
    assert json.loads('{"a": 1, "a": 2}') == {"a": 2}
