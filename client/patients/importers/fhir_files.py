"""The files of a FHIR bulk export: which of them holds what, and their lines.

A file holds resources of one type. Which, says the export's manifest (``output.json`` or ``manifest.json``),
else the file's name, as servers give it (``Patient.ndjson``, ``1.Condition.ndjson.gz``), else its first line.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from client.patients.importers.lines import read_lines
from client.patients.records import Problem
from common.canonical import read_object
from common.errors import SettingsError

PATTERNS = ("*.ndjson", "*.ndjson.gz")
MANIFESTS = ("output.json", "manifest.json")
MOST_MANIFEST_BYTES = 16 * 2**20

_TYPE = re.compile(r"[A-Z][A-Za-z]{2,39}")
_TYPE_IN_NAME = re.compile(r"(?<![A-Za-z])([A-Z][A-Za-z]{2,39})(?![A-Za-z])")
_CHUNK = 2**20
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class ExportFile:
    """One file of an export.

    Attributes:
        path: Where it is.
        type: The resources that it holds; None where nothing says.
        expected: How many they are, if the manifest says.
    """

    path: Path
    type: str | None
    expected: int | None = None

    @property
    def name(self) -> str:
        """What problems call it."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Export:
    """The files of an export.

    Attributes:
        files: By name.
        missing: Types of files that the manifest names and the folder lacks.
        problems: What is wrong with the manifest.
    """

    files: tuple[ExportFile, ...]
    missing: frozenset[str]
    problems: tuple[Problem, ...]

    def of(self, resource_type: str) -> tuple[ExportFile, ...]:
        """The files of one type."""
        return tuple(file for file in self.files if file.type == resource_type)


def find_files(folder: Path) -> Export:
    """The files of an export; what is wrong with its manifest becomes a problem.

    Guarantee: every ``*.ndjson`` and ``*.ndjson.gz`` of the folder is in it.
    """
    paths = sorted(path for pattern in PATTERNS for path in folder.glob(pattern))
    named, missing, problems = _manifest(folder, {path.name for path in paths})
    files = []
    for path in paths:
        resource_type, expected = named.get(path.name, (None, None))
        files.append(ExportFile(path=path, type=resource_type or _type_of(path), expected=expected))
    return Export(files=tuple(files), missing=frozenset(missing), problems=tuple(problems))


def read_resources(file: ExportFile) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    """Each line's number and object; a problem where there is none, and where the manifest expects more."""
    number = 0
    try:
        with _open(file.path) as content:
            for line in read_lines(content, file.name):
                number += 1
                yield line
    except _DAMAGED:
        yield Problem(file=file.name, reason="damaged gzip data, the rest could not be read")
    except OSError:
        yield Problem(file=file.name, reason="not readable")
    else:
        if file.expected is not None and number != file.expected:
            yield Problem(
                file=file.name, reason=f"the manifest says {file.expected} resources, the file has {number}"
            )


def count_lines(file: ExportFile) -> int | Problem:
    """How many lines a file has whose resources are not read."""
    count, last = 0, b""
    try:
        with _open(file.path) as content:
            while chunk := content.read(_CHUNK):
                count += chunk.count(b"\n")
                last = chunk[-1:]
    except _DAMAGED:
        return Problem(file=file.name, reason="damaged gzip data")
    except OSError:
        return Problem(file=file.name, reason="not readable")
    return count + (last not in (b"", b"\n"))


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise OSError(f"{path.name} is not a file")
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _type_of(path: Path) -> str | None:
    named = _TYPE_IN_NAME.search(path.name)
    return named[1] if named else _first_type(path)


def _first_type(path: Path) -> str | None:
    for line in read_resources(ExportFile(path=path, type=None)):
        found = None if isinstance(line, Problem) else line[1].get("resourceType")
        return found if isinstance(found, str) and _TYPE.fullmatch(found) else None
    return None


_Named = Mapping[str, tuple[str, int | None]]


def _manifest(folder: Path, here: set[str]) -> tuple[_Named, set[str], list[Problem]]:
    """Type and number of resources of each file that a manifest names, and the types of missing ones."""
    name = next((name for name in MANIFESTS if (folder / name).is_file()), None)
    if name is None:
        return {}, set(), []
    try:
        outputs = _outputs(folder / name)
    except ValueError as error:
        return {}, set(), [Problem(file=name, reason=str(error))]
    named: dict[str, tuple[str, int | None]] = {}
    missing: set[str] = set()
    problems = []
    for index, (resource_type, url, count) in enumerate(outputs):
        files = [file for file in _possible_names(url, resource_type) if file in here]
        if not files:
            missing.add(resource_type)
            problems.append(Problem(file=name, reason=f"output[{index}]: a file that is not in the folder"))
        for file in files[:1]:
            named[file] = (resource_type, count)
    return named, missing, problems


def _possible_names(url: str, resource_type: str) -> tuple[str, ...]:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name, f"{name}.gz", f"{name}.ndjson", f"{name}.ndjson.gz", f"{resource_type}.{name}.ndjson"


def _outputs(path: Path) -> list[tuple[str, str, int | None]]:
    try:
        if path.stat().st_size > MOST_MANIFEST_BYTES:
            raise ValueError(f"larger than {MOST_MANIFEST_BYTES} bytes")
        content = read_object(path.read_bytes().decode("utf-8-sig"), "manifest")
    except SettingsError as error:
        raise ValueError(f"expected {error.expected}") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except OSError as error:
        raise ValueError("not readable") from error
    outputs = content.get("output")
    if not isinstance(outputs, list):
        raise ValueError("output: expected a list of files")
    return [_output(item, index) for index, item in enumerate(outputs)]


def _output(item: Any, index: int) -> tuple[str, str, int | None]:
    entry = item if isinstance(item, dict) else {}
    resource_type, url, count = entry.get("type"), entry.get("url"), entry.get("count")
    if not isinstance(resource_type, str) or not _TYPE.fullmatch(resource_type) or not isinstance(url, str):
        raise ValueError(f"output[{index}]: expected a type and a url")
    return resource_type, url, count if type(count) is int else None
