"""The fields of one input object, each read by its own parser; every reason is kept, none quotes a value.

A parser takes a JSON value and returns what it means, or raises ValueError with what it expected.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

from client.patients.ages import is_age
from client.patients.records import SEXES, Finding, is_line, is_text

Parser = Callable[[Any], Any]

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def read_fields(
    row: Mapping[str, Any], parsers: Mapping[str, Parser], unread: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The fields that ``row`` brings, and what was wrong with the others, each reason with its key.

    An absent key and a null bring nothing. Keys of ``unread`` are known and left alone; any other key
    without a parser is a reason.
    """
    values: dict[str, Any] = {}
    reasons: list[str] = []
    for key, value in row.items():
        if key in parsers and value is not None:
            try:
                values[key] = parsers[key](value)
            except ValueError as error:
                reasons.append(f"{key}: {error}")
    return values, reasons + _unknown(row, parsers, unread)


def read_line(value: Any) -> str:
    """One printable line."""
    if not isinstance(value, str) or not is_line(value):
        raise ValueError("expected one line of text, not empty, not padded")
    return value


def read_note(value: Any) -> str:
    """Text that says something."""
    if not isinstance(value, str) or not is_text(value):
        raise ValueError("expected text that is not empty")
    return value


def read_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def read_sex(value: Any) -> str:
    """One of the four words for sex."""
    if value not in SEXES:
        raise ValueError(f"expected one of {', '.join(SEXES)}")
    return str(value)


def read_age(value: Any) -> str:
    """An age in one of its three forms."""
    if not isinstance(value, str) or not is_age(value):
        raise ValueError(
            "expected an ISO 8601 duration of at most 130 years, GA<weeks>w<days>d, or an HPO onset class"
        )
    return value


def read_findings(value: Any, unread: Collection[str] = ()) -> tuple[Finding, ...]:
    """A list of objects with id, label and, if known, onset; ``unread`` names keys that are left alone."""
    if not isinstance(value, list):
        raise ValueError("expected a list of findings")
    return tuple(_read_finding(item, index, unread) for index, item in enumerate(value))


def read_lines_of_text(value: Any) -> frozenset[str]:
    """A list of lines, as a set."""
    if not isinstance(value, list):
        raise ValueError("expected a list of lines of text")
    return frozenset(read_line(item) for item in value)


def reason_of(error: Exception) -> str:
    """What an error says, to stand after a place and a colon."""
    sentence = str(error)
    return sentence[:1].lower() + sentence[1:]


# Cases share most of their findings: one object for each keeps thousands of patients small.
@lru_cache(maxsize=65_536)
def share_finding(finding_id: str, label: str, onset: str | None) -> Finding:
    """The finding with this id, label and onset; ValueError if it cannot be one."""
    return Finding(id=finding_id, label=label, onset=onset)


def _read_finding(item: Any, index: int, unread: Collection[str]) -> Finding:
    if not isinstance(item, dict):
        raise ValueError(f"[{index}]: expected an object with id and label")
    parts = (item.get("id"), item.get("label"), item.get("onset"))
    if not isinstance(parts[0], str) or not isinstance(parts[1], str) or not isinstance(parts[2], str | None):
        raise ValueError(f"[{index}]: expected id, label and, if known, onset as text")
    unknown = item.keys() - {"id", "label", "onset"} - set(unread)
    if unknown:
        raise ValueError(f"[{index}]: {_named(unknown)}")
    try:
        return share_finding(parts[0], parts[1], parts[2])
    except ValueError as error:
        raise ValueError(f"[{index}]: {reason_of(error)}") from error


def _unknown(row: Mapping[str, Any], parsers: Mapping[str, Parser], unread: Collection[str]) -> list[str]:
    unknown = row.keys() - parsers.keys() - set(unread)
    return [_named(unknown)] if unknown else []


def _named(unknown: Collection[str]) -> str:
    # A key that does not look like one may be a patient's name.
    names = sorted(key for key in unknown if _KEY.fullmatch(key))
    return f"unknown keys: {', '.join(names)}" if names else f"{len(unknown)} unknown keys"
