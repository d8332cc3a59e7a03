"""Values as JSON that has one form only, so that a digest names the value.

Keys are sorted, no white space, text as UTF-8, no NaN. Reading refuses what a lenient parser would
pass over: a key given twice, NaN and infinity, anything but an object at the top.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from common.errors import SettingsError

_PLAIN = (str, int, float, bool, type(None))


def canonical_json(value: Any) -> str:
    """The one JSON text of a value; dataclasses, enums, tuples and paths are written as what they hold."""
    return plain_json(plain(value))


def plain_json(value: Any) -> str:
    """The same for a value that came from JSON: without a copy of it, which a stranger could make large."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def labeled_digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 (32 bytes) of the parts, for one purpose.

    Guarantee: other parts, another split of the same bytes into parts, or another label give another
    digest, since every part goes in behind its length.
    """
    state = hashlib.sha256()
    for part in (label.encode(), *parts):
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def read_object(text: str, what: str) -> dict[str, Any]:
    """Parse one JSON object; SettingsError, naming ``what``, for anything else."""

    def refuse_constant(name: str) -> None:
        raise SettingsError(what, name, "finite numbers")

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            # Counted once: a stranger's object may have a hundred thousand keys.
            twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
            raise SettingsError(what, f"{twice!r} twice", "every key once in an object")
        return value

    try:
        value = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=refuse_twice)
    except json.JSONDecodeError as error:
        raise SettingsError(what, f"{error.msg} in line {error.lineno}", "JSON") from error
    except RecursionError as error:
        raise SettingsError(what, "objects too deep to read", "JSON") from error
    if not isinstance(value, dict):
        raise SettingsError(what, f"JSON of {type(value).__name__}", "a JSON object")
    return value


def plain(value: Any) -> Any:
    """The value as what JSON knows: dicts, lists, text, numbers, booleans, None."""
    # Most values are such already; the questions below are slow ones.
    if type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
