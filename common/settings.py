"""YAML and overrides into a frozen dataclass.

A program's settings come in layers: its defaults, a file, the command line; a later layer wins, key by
key. OmegaConf merges the layers as plain mappings and resolves their ``${...}``. The dataclass is applied
after that and not handed to OmegaConf, which marks a frozen dataclass read-only, so that merging into
it fails, and accepts and drops an unknown key (``+extra=1``) where the dataclass is not frozen.

Guarantee: an unknown key is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.errors import SettingsError
from common.schema import build

T = TypeVar("T")


def load_settings(schema: type[T], *layers: Mapping[str, Any], where: str = "settings") -> T:
    """The frozen dataclass ``schema`` from layers of plain mappings, the last one winning.

    Nested dataclasses are mappings, tuples are lists (replaced whole by a later layer), enums are given
    by their value, paths and digests as text.

    Raises:
        SettingsError: A key is unknown or missing, or its value is refused; the key is named after ``where``.
    """
    try:
        merged = OmegaConf.merge({}, *(OmegaConf.create(_copied(layer)) for layer in layers))
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{where}.{error.full_key}" if error.full_key else where
        # Only the first line is OmegaConf's reason; the others repeat the key.
        raise SettingsError(key, str(error).partition("\n")[0], "a value that can be merged") from error
    return build(schema, plain, where)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping of a YAML file, its ``${...}`` as written; an empty file is an empty mapping.

    Raises:
        SettingsError: The file is missing, no YAML, or no mapping; with the line where there is one.
    """
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise SettingsError(str(path), error.strerror or type(error).__name__, "a readable file") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        key = str(path) if line is None else f"{path}:{line + 1}"
        raise SettingsError(key, getattr(error, "problem", None) or error, "YAML") from error
    if not isinstance(config, DictConfig):
        raise SettingsError(str(path), "a list", "a mapping of keys")
    content = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _copied(layer: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(layer, DictConfig):
        return dict(OmegaConf.to_container(layer, resolve=False))  # type: ignore[arg-type]
    return dict(layer)
