"""Checks of one field's value, each with one clear line when it fails.

A dataclass calls them in ``__post_init__``, after `schema.conform` has settled the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from common.errors import SettingsError, UnsupportedSchemaError
from common.ids import is_digest


def require(condition: bool, key: str, got: object, expected: str) -> None:
    """Refuse a field's value unless the condition holds."""
    if not condition:
        raise SettingsError(key, got, expected)


def require_whole(key: str, got: int, least: int) -> None:
    """Refuse a whole number below ``least``."""
    require(got >= least, key, got, f"a whole number >= {least}")


def require_positive(key: str, got: float) -> None:
    """Refuse zero and negative numbers."""
    require(got > 0, key, got, "a number > 0")


def require_within(key: str, got: float, least: float, bound: float) -> None:
    """Refuse numbers outside of the interval [least, bound)."""
    require(least <= got < bound, key, got, f"a number with {least} <= number < {bound}")


def require_line(key: str, got: str) -> None:
    """Refuse empty text, several lines and surplus white space."""
    require(
        bool(got) and got == " ".join(got.split()), key, repr(got), "one line without surplus white space"
    )


def require_digest(key: str, got: str) -> None:
    """Refuse what cannot be a SHA-256."""
    require(is_digest(got), key, repr(got), "a SHA-256 of 64 lower-case hexadecimal digits")


def require_date(key: str, got: str) -> None:
    """Refuse what is no day in the form YYYY-MM-DD."""
    try:
        is_day = date.fromisoformat(got).isoformat() == got
    except ValueError:
        is_day = False
    require(is_day, key, repr(got), "a day as YYYY-MM-DD")


def require_once(key: str, got: Sequence[str]) -> None:
    """Refuse an empty sequence and one that holds something twice."""
    require(len(got) > 0, key, "none", "at least one")
    seen: set[str] = set()
    for value in got:
        require(value not in seen, key, f"{value!r} twice", "every one once")
        seen.add(value)


def require_schema(what: str, got: object, newest: int) -> None:
    """Refuse a schema number that is none, and one of a later version than this one reads."""
    is_number = isinstance(got, int) and not isinstance(got, bool) and got >= 1
    require(
        is_number, f"{what}.schema", "nothing" if got is None else repr(got), f"a number from 1 to {newest}"
    )
    if isinstance(got, int) and got > newest:
        raise UnsupportedSchemaError(what, got, newest)
