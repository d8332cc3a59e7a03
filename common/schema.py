"""Frozen dataclasses from plain mappings, strictly.

A dataclass is its own schema: its type hints say what each key must hold. An unknown key, a missing
one, a wrong type (text for a number, a boolean for a number) and a value that the dataclass refuses all
end in one `SettingsError` that names the key from the outside (`plan.tracks[0].training.rounds`).
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NewType, NoReturn, TypeVar, Union
from weakref import WeakKeyDictionary

from common.errors import SettingsError

T = TypeVar("T")


def build(schema: type[T], value: Any, where: str) -> T:
    """The dataclass ``schema`` from a mapping; ``where`` is the mapping's own name.

    Guarantee: nothing in the mapping is dropped in silence.
    """
    if not isinstance(value, Mapping):
        raise SettingsError(where, _named(value), f"a mapping of {schema.__name__}'s keys")
    hints = _hints(schema)
    for key in value:
        if key not in hints:
            raise SettingsError(f"{where}.{key}", "an unknown key", f"one of {', '.join(hints)}")
    for name in _required(schema):
        if name not in value:
            raise SettingsError(f"{where}.{name}", "nothing", _expectation(hints[name]))
    arguments = {key: convert(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return schema(**arguments)
    except SettingsError as error:
        raise error.under(where) from error
    except ValueError as error:
        raise _foreign(where, error) from error


def conform(instance: Any) -> None:
    """Bring every field of a dataclass under construction to its declared type, or refuse it.

    Called first in ``__post_init__``: two instances that mean the same are then equal and have one
    digest (``alpha=64`` and ``alpha=64.0``, a list and a tuple).
    """
    for name, hint in _hints(type(instance)).items():
        object.__setattr__(instance, name, convert(hint, getattr(instance, name), name))


def convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the hint's type; SettingsError if it is something else."""
    if hint is Any:
        return value
    if isinstance(hint, NewType):
        return convert(hint.__supertype__, value, where)
    origin = typing.get_origin(hint)
    if origin in _READERS_BY_ORIGIN:
        return _READERS_BY_ORIGIN[origin](hint, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _read_enum(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build(hint, value, where)
    return _read_scalar(hint, value, where)


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    # A boolean is an int in Python, yet `rounds: true` is a slip of the pen.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared, not asked with math.isfinite, which fails on an integer beyond the range of floats.
    if hint is float and is_number and abs(value) <= sys.float_info.max:
        return float(value)
    if hint is int and is_number and isinstance(value, int):
        return int(value)
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint in (str, bool, bytes, type(None)) and isinstance(value, hint):
        return value
    if hint not in _EXPECTATIONS:
        raise TypeError(f"{where}: a settings field cannot be {hint!r}")
    return _refuse(hint, value, where)


def _read_enum(hint: type[Enum], value: Any, where: str) -> Enum:
    try:
        return value if isinstance(value, hint) else hint(value)
    except ValueError:
        return _refuse(hint, value, where)


def _read_literal(hint: Any, value: Any, where: str) -> Any:
    for choice in typing.get_args(hint):
        if type(choice) is type(value) and choice == value:
            return choice
    return _refuse(hint, value, where)


def _read_union(hint: Any, value: Any, where: str) -> Any:
    choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    if value is None and len(choices) < len(typing.get_args(hint)):
        return None
    if len(choices) == 1:
        return convert(choices[0], value, where)
    for choice in choices:
        try:
            return convert(choice, value, where)
        except SettingsError:
            continue
    return _refuse(hint, value, where)


def _read_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        return _refuse(hint, value, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise SettingsError(where, f"{len(value)} values", f"{len(arguments)} values")
    return tuple(convert(arguments[i], item, f"{where}[{i}]") for i, item in enumerate(value))


def _read_frozenset(hint: Any, value: Any, where: str) -> frozenset[Any]:
    if not isinstance(value, list | tuple | set | frozenset):
        return _refuse(hint, value, where)
    (item_hint,) = typing.get_args(hint)
    return frozenset(convert(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))


def _read_mapping(hint: Any, value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        return _refuse(hint, value, where)
    key_hint, item_hint = typing.get_args(hint)
    return {
        convert(key_hint, key, where): convert(item_hint, item, f"{where}.{key}")
        for key, item in value.items()
    }


_READERS_BY_ORIGIN: Mapping[Any, Callable[[Any, Any, str], Any]] = {
    Literal: _read_literal,
    Union: _read_union,
    types.UnionType: _read_union,
    tuple: _read_tuple,
    frozenset: _read_frozenset,
    dict: _read_mapping,
    Mapping: _read_mapping,
}

_EXPECTATIONS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bytes: "bytes",
    Path: "a path",
    type(None): "nothing",
}


_HINTS: MutableMapping[type, Mapping[str, Any]] = WeakKeyDictionary()


def _expectation(hint: Any) -> str:
    if isinstance(hint, NewType):
        return _expectation(hint.__supertype__)
    if hint in _EXPECTATIONS:
        return _EXPECTATIONS[hint]
    origin = typing.get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(str(choice) for choice in typing.get_args(hint))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_expectation(choice) for choice in typing.get_args(hint))
    if origin in (tuple, frozenset):
        return "a list"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return "a mapping"


def _refuse(hint: Any, value: Any, where: str) -> NoReturn:
    raise SettingsError(where, _named(value), _expectation(hint))


def _named(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    return "nothing" if value is None else repr(value)


def _foreign(where: str, error: ValueError) -> SettingsError:
    # Most checks say "Expected <this>, got <that>"; the rest are quoted whole.
    expected, divider, got = str(error).removeprefix("Expected ").partition(", got ")
    if str(error).startswith("Expected ") and divider:
        return SettingsError(where, got, expected)
    return SettingsError(where, f"a refusal: {error}", "values that its check accepts")


def _hints(schema: type) -> Mapping[str, Any]:
    # Kept, since an answer list calls this once for every answer.
    if schema not in _HINTS:
        hints = typing.get_type_hints(schema)
        _HINTS[schema] = {field.name: hints[field.name] for field in _fields(schema)}
    return _HINTS[schema]


def _required(schema: type) -> list[str]:
    return [
        field.name
        for field in _fields(schema)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def _fields(schema: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(schema) if field.init]
