import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NewType

import pytest

from common.errors import SettingsError
from common.schema import build, conform

Name = NewType("Name", str)


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    steps: int

    def __post_init__(self) -> None:
        conform(self)
        if self.steps < 1:
            raise ValueError(f"Expected steps >= 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: Name
    color: Color = Color.RED
    side: Literal["left", "right"] = "left"
    inner: Inner
    others: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (1, "a")
    names: frozenset[str] = frozenset()
    table: Mapping[str, float] = field(default_factory=dict)
    folder: Path | None = None
    number: int | str = 0
    flag: bool = False
    anything: Any = None


LEAST = {"name": "x", "inner": {"steps": 3}}


def test_a_dataclass_comes_from_plain_values() -> None:
    outer = build(
        Outer,
        {
            "name": "x",
            "color": "blue",
            "side": "right",
            "inner": {"steps": 3, "rate": 1},
            "others": [{"steps": 1}, Inner(steps=2)],
            "pair": [2, "b"],
            "names": ["a", "b", "a"],
            "table": {"a": 1},
            "folder": "a/b",
            "number": "seven",
            "flag": True,
            "anything": [1, {}],
        },
        "outer",
    )
    assert outer == Outer(
        name=Name("x"),
        color=Color.BLUE,
        side="right",
        inner=Inner(steps=3, rate=1.0),
        others=(Inner(steps=1), Inner(steps=2)),
        pair=(2, "b"),
        names=frozenset({"a", "b"}),
        table={"a": 1.0},
        folder=Path("a/b"),
        number="seven",
        flag=True,
        anything=[1, {}],
    )
    assert type(outer.inner.rate) is float


def test_what_is_left_out_has_its_default() -> None:
    outer = build(Outer, LEAST, "outer")
    assert (outer.color, outer.folder, outer.others) == (Color.RED, None, ())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"extra": 1}, "outer.extra: expected one of name, color"),
        (
            {"inner": {"steps": 1, "stepz": 2}},
            "outer.inner.stepz: expected one of rate, steps, got an unknown",
        ),
        ({"inner": {}}, "outer.inner.steps: expected a whole number, got nothing"),
        ({"inner": {"steps": 0}}, "outer.inner: expected steps >= 1, got 0"),
        ({"inner": {"steps": "3"}}, "outer.inner.steps: expected a whole number, got '3'"),
        ({"inner": {"steps": 3.0}}, "outer.inner.steps: expected a whole number, got 3.0"),
        ({"inner": {"steps": True}}, "outer.inner.steps: expected a whole number, got True"),
        ({"inner": {"steps": 1, "rate": False}}, "outer.inner.rate: expected a finite number, got False"),
        (
            {"inner": {"steps": 1, "rate": float("nan")}},
            "outer.inner.rate: expected a finite number, got nan",
        ),
        (
            {"inner": {"steps": 1, "rate": float("inf")}},
            "outer.inner.rate: expected a finite number, got inf",
        ),
        ({"inner": {"steps": 1, "rate": 10**309}}, "outer.inner.rate: expected a finite number, got 1000"),
        ({"inner": 7}, "outer.inner: expected a mapping of Inner's keys, got 7"),
        ({"others": [{"steps": 1}, {}]}, "outer.others[1].steps: expected a whole number, got nothing"),
        ({"others": {"steps": 1}}, "outer.others: expected a list, got a mapping"),
        ({"color": "green"}, "outer.color: expected one of red, blue, got 'green'"),
        ({"color": ["red"]}, "outer.color: expected one of red, blue, got a list"),
        ({"side": "up"}, "outer.side: expected one of left, right, got 'up'"),
        ({"pair": [1]}, "outer.pair: expected 2 values, got 1 values"),
        ({"pair": [1, 2]}, "outer.pair[1]: expected text, got 2"),
        ({"names": "ab"}, "outer.names: expected a list, got 'ab'"),
        ({"table": {"a": "b"}}, "outer.table.a: expected a finite number, got 'b'"),
        ({"table": []}, "outer.table: expected a mapping, got a list"),
        ({"folder": 3}, "outer.folder: expected a path, got 3"),
        ({"folder": ""}, "outer.folder: expected a path, got ''"),
        ({"number": None}, "outer.number: expected a whole number or text, got nothing"),
        ({"flag": 1}, "outer.flag: expected true or false, got 1"),
        ({"name": None}, "outer.name: expected text, got nothing"),
    ],
)
def test_nothing_in_the_mapping_is_dropped_in_silence(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(Outer, LEAST | change, "outer")
    assert str(caught.value).startswith(line)


def test_no_mapping_at_all_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"outer: expected a mapping of Outer's keys, got nothing"):
        build(Outer, None, "outer")


def test_a_check_that_says_it_in_its_own_words_is_quoted() -> None:
    @dataclass(frozen=True)
    class Picky:
        value: int

        def __post_init__(self) -> None:
            raise ValueError("I want another value")

    with pytest.raises(SettingsError, match=r"picky: .*I want another value"):
        build(Picky, {"value": 1}, "picky")


def test_a_field_that_cannot_be_read_is_the_authors_mistake() -> None:
    @dataclass(frozen=True)
    class Odd:
        value: complex

    with pytest.raises(TypeError, match=r"odd.value: a settings field cannot be"):
        build(Odd, {"value": 1}, "odd")


def test_conform_makes_equal_what_means_the_same() -> None:
    assert Inner(steps=1, rate=1) == Inner(steps=1, rate=1.0)
    assert type(Inner(steps=1, rate=1).rate) is float
    with pytest.raises(SettingsError, match=r"steps: expected a whole number, got '1'"):
        dataclasses.replace(Inner(steps=1), steps="1")
