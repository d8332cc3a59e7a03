"""Files that outlive a version: what kind they are, which schema, and how an older one is brought up.

A durable file is one JSON object with ``kind`` and ``schema`` beside its own keys. A newer schema is
refused, since a version that drops what it does not know could forget a promise. An older one is brought up
by a chain of functions, one a step, and stays beside the new one as ``NAME.v1``.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from common.atomic import write_atomically
from common.canonical import canonical_json, read_object
from common.errors import BadFileError, SettingsError, UnsupportedSchemaError

Migration = Callable[[dict[str, Any]], dict[str, Any]]
NO_MIGRATIONS: Mapping[int, Migration] = {}
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_durable(
    path: Path, kind: str, schema: int, content: Mapping[str, Any], *, private: bool = False
) -> None:
    """Put the content at ``path``; ``private`` leaves it readable by its owner only.

    Guarantee: a crash leaves the old file or the new one, and the new one is on the disk on return.
    """
    if {"kind", "schema"} & content.keys():
        raise ValueError("Expected content without the keys kind and schema")
    write_atomically(
        path, canonical_json({**content, "kind": kind, "schema": schema}) + "\n", private=private
    )
    sync_folder(path.parent)


def read_durable(
    path: Path, kind: str, schema: int, migrations: Mapping[int, Migration] = NO_MIGRATIONS
) -> dict[str, Any]:
    """The content of a durable file, without ``kind`` and ``schema``.

    A file of an older schema is written anew; the old one stays beside it, ``.v1`` and so on behind its name.

    Args:
        path: Of the file.
        kind: What it has to say it is.
        schema: The newest that this version reads.
        migrations: By the schema that each takes; it gives the content of the next one.

    Raises:
        BadFileError: Missing, damaged, of another kind, or of a schema that is no longer read.
        UnsupportedSchemaError: A newer version wrote it.
    """
    data = read_bytes(path)
    content = _parsed(path, data)
    if content.pop("kind", None) != kind:
        raise BadFileError(path, f"expected a file of the kind {kind!r}")
    found = require_file_schema(path, content.pop("schema", None), schema)
    if found == schema:
        return content
    migrated = _migrated(path, content, found, schema, migrations)
    private = not stat.S_IMODE(path.stat().st_mode) & _OTHERS
    # First: a crash in between leaves the old file twice.
    write_atomically(path.with_name(f"{path.name}.v{found}"), data, private=private)
    write_durable(path, kind, schema, migrated, private=private)
    return migrated


def require_file_schema(path: Path, got: object, newest: int) -> int:
    """The schema that a file says it has. BadFileError if it is none, UnsupportedSchemaError if newer."""
    if not isinstance(got, int) or isinstance(got, bool) or got < 1:
        raise BadFileError(path, f"schema: expected a number from 1 to {newest}")
    if got > newest:
        raise UnsupportedSchemaError(str(path), got, newest)
    return got


def read_bytes(path: Path) -> bytes:
    """What the file holds. BadFileError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFileError(path, error.strerror or type(error).__name__) from error


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk: a file is as durable as the folder that names it."""
    _sync(folder)


def sync_tree(folder: Path) -> None:
    """Bring everything under a folder to the disk, files and names; links are not followed."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(parent))


def lock_file(path: Path, *, shared: bool = False) -> IO[bytes] | None:
    """Hold the file until what is returned is closed or the process ends; None if another has it.

    Any number of processes may hold it ``shared``, or one alone. The file stays when nobody holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return read_object(data.decode(), str(path))
    # Not chained: what is damaged may be a key.
    except (UnicodeDecodeError, SettingsError):
        raise BadFileError(path, "damaged: expected one JSON object; restore its newest copy") from None


def _migrated(
    path: Path, content: dict[str, Any], found: int, schema: int, migrations: Mapping[int, Migration]
) -> dict[str, Any]:
    for step in range(found, schema):
        if step not in migrations:
            raise BadFileError(path, f"schema {step} is no longer read; expected {schema}")
        content = migrations[step](content)
    return content
