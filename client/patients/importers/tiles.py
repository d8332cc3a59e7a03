"""Tiles of published slides: a folder with ``manifest.csv`` or ``manifest.csv.gz``, and the images it names.

Each row is one tile. The image is the file of that path inside the folder, or else a member of that name in
``<source>.zip``. These columns are read, others are left alone:

===========  =================================================================================================
``file``     the image's path, relative and inside the folder or the zip; never twice
``source``   the data set: letters, digits, ``_``, ``-`` and ``.``
``group``    the image that the tile was cut from; all its tiles become one record
``tissue``   the answer at level "tissue": lower-case words with underscores
``organ``    the answer at level "organ"
``slide``    the slide, empty where unknown
``patient``  the patient, empty where unknown
``sha256``   of the image file, 64 hexadecimal digits
===========  =================================================================================================

Tiles of one image look alike, and so do images of one patient: a record's ``group`` is the patient where the
manifest names one, else the slide, else the image, so that a split by group parts none of them.
"""

import csv
import gzip
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.patients.importers.gather import Found, gather
from client.patients.open_files import OpenFiles
from client.patients.photos import (
    ImageRef,
    SlideRef,
    decode_bytes,
    read_image,
    read_only,
    require_regular,
    require_size,
)
from client.patients.records import PatientRecord, PatientSet, Problem, is_line, pseudonym, require_key
from common.errors import BadFileError
from common.tracks import TISSUE_TYPE, Answer, AnswerList

Level = Literal["tissue", "organ"]
LEVELS = ("tissue", "organ")

MANIFESTS = ("manifest.csv", "manifest.csv.gz")
ONTOLOGY = "consilium tissues 1"
CONSENT = frozenset({"research"})
COLUMNS = ("file", "source", "group", "tissue", "organ", "slide", "patient", "sha256")
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_OPEN = 4

_SOURCE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}")
_ANSWER = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What all tiles of one image have in common.
_SHARED = ("tissue", "organ", "slide", "patient")


@dataclass(frozen=True, kw_only=True, repr=False)
class MemberRef:
    """A tile inside a zip archive, decoded when its pixels are asked for.

    Attributes:
        path: The archive.
        member: The image's name in it.
    """

    path: Path
    member: str

    def pixels(self) -> NDArray[np.uint8]:
        """The tile, uint8, (height, width, 3), RGB, read-only; BadFileError if it cannot be read."""
        return read_only(decode_bytes(read_member(self.path, self.member), self.path))

    def __repr__(self) -> str:
        # A name may hold an id, so it stays out of what a log may print.
        return "MemberRef(file in a zip)"


def read_tiles(
    folder: Path,
    *,
    key: bytes,
    answers: AnswerList | None = None,
    public_ids: bool = False,
    level: Level = "tissue",
) -> PatientSet:
    """The source images of a folder, one record each, and a line for each tile that could not be read.

    An image with a bad tile, or whose tiles contradict each other, is left out whole.

    Args:
        folder: Holds the manifest; FileNotFoundError if it does not.
        key: The site's secret for pseudonyms, at least 16 bytes.
        answers: An image whose answer is none of them is a problem; any answer will do if absent.
        public_ids: Whether the images were published: their ids may then be shown, as ``case_id`` and
            ``group``, and their use for research was agreed to. Otherwise both are keyed hashes, and the
            consent is for somebody to add who knows of it.
        level: The column that holds the answer.

    Guarantee: every row is part of a record, or its image has a problem. Every image was decoded once and
    has the hash that its row names.

    Raises:
        BadFileError: A manifest that is no such table.
    """
    require_key(key)
    _require_level(level)
    manifest, rows = _read_manifest(folder)
    return gather(_read_all(folder, manifest, rows, _Reading(key, answers, public_ids, level)))


def tile_answers(folders: Iterable[Path], level: Level = "tissue") -> AnswerList:
    """The tissues or organs that manifests name, ordered by name; BadFileError for a name that is none."""
    _require_level(level)
    names: set[str] = set()
    for folder in folders:
        manifest, rows = _read_manifest(folder)
        for row in rows:
            if _ANSWER.fullmatch(row.values[level]) is None:
                raise BadFileError(folder / manifest, f"line {row.line}: {level}: {_EXPECTED[level]}")
            names.add(row.values[level])
    return AnswerList(
        answers=tuple(
            Answer(id=_answer_id(level, name), name=name.replace("_", " "), ontology=ONTOLOGY)
            for name in sorted(names)
        )
    )


def unit_of(folder: Path) -> str:
    """Whom a guarantee over the folder's groups protects: "patient", or "source image" if one is unknown."""
    rows = _read_manifest(folder)[1]
    return "patient" if all(row.values["patient"] for row in rows) else "source image"


def slides_of(folder: Path) -> dict[str, str]:
    """The slide of each source image, both as "source/name", where the manifest names one."""
    return {
        f"{row.values['source']}/{row.values['group']}": f"{row.values['source']}/{row.values['slide']}"
        for row in _read_manifest(folder)[1]
        if row.values["slide"]
    }


def read_member(path: Path, member: str) -> bytes:
    """The bytes of an image in a zip archive.

    Guarantee: no member beyond the photos' MAX_FILE_BYTES is unpacked, whatever the archive says of it.

    Raises:
        BadFileError: What is wrong with the archive or the member.
    """
    try:
        with _archives.reading(path) as archive:
            info = archive.getinfo(member)
            require_size(info.file_size, path)
            return archive.read(info)
    except KeyError as error:
        raise BadFileError(path, "missing in the zip") from error
    except FileNotFoundError as error:
        raise BadFileError(path, "missing, as a file and as a zip") from error
    except OSError as error:
        raise BadFileError(path, "not readable") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise BadFileError(path, "damaged zip data") from error
    except (RuntimeError, NotImplementedError) as error:
        raise BadFileError(path, "a zip with a password or of an unknown method") from error


@dataclass(frozen=True)
class _Row:
    line: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class _Reading:
    key: bytes
    answers: AnswerList | None
    public_ids: bool
    level: Level

    def shown(self, name: str) -> str:
        return name if self.public_ids else pseudonym(self.key, name)


_EXPECTED = {
    "source": "expected letters, digits, _, - and .",
    "tissue": "expected lower-case words with underscores",
    "organ": "expected lower-case words with underscores",
    "sha256": "expected 64 hexadecimal digits",
}
_PATTERNS = {"source": _SOURCE, "tissue": _ANSWER, "organ": _ANSWER, "sha256": _SHA256}


def _open_archive(path: Path) -> zipfile.ZipFile:
    require_regular(path)
    return zipfile.ZipFile(path)


_archives: OpenFiles[zipfile.ZipFile] = OpenFiles(_open_archive, MAX_OPEN)


def _read_manifest(folder: Path) -> tuple[str, list[_Row]]:
    """The manifest's name and its rows, values stripped."""
    path = next((folder / name for name in MANIFESTS if (folder / name).exists()), folder / MANIFESTS[0])
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise BadFileError(path, f"expected the columns {', '.join(missing)}")
        rows = [
            _Row(reader.line_num, {column: (row[column] or "").strip() for column in COLUMNS})
            for row in reader
        ]
    except csv.Error as error:
        raise BadFileError(path, "expected comma-separated values") from error
    return path.name, rows


def _text(path: Path) -> str:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise BadFileError(path, f"larger than {MAX_MANIFEST_BYTES} bytes")
        return data.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadFileError(path, "damaged gzip data") from error
    except UnicodeDecodeError as error:
        raise BadFileError(path, "not UTF-8") from error


def _read_all(
    folder: Path, manifest: str, rows: Sequence[_Row], reading: _Reading
) -> Iterator[Found | Problem]:
    line_by_file: dict[str, int] = {}
    patient_by_slide = _patient_by_slide(rows)
    for image in _images(rows):
        tiles: list[SlideRef] = []
        problems: list[Problem] = []
        for row in image:
            try:
                tiles.append(_tile(folder, row, image[0], line_by_file, reading))
            except ValueError as error:
                problems.append(Problem(file=manifest, line=row.line, reason=str(error)))
        yield from problems
        if not problems:
            record = _record(image[0].values, tuple(tiles), patient_by_slide, reading)
            yield Found(record=record, file=manifest, line=image[0].line)


def _images(rows: Iterable[_Row]) -> Iterable[list[_Row]]:
    """The rows of each source image, in the order met."""
    images: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        images.setdefault((row.values["source"], row.values["group"]), []).append(row)
    return images.values()


def _tile(folder: Path, row: _Row, first: _Row, line_by_file: dict[str, int], reading: _Reading) -> SlideRef:
    """The row's image, checked; ValueError says what is wrong with it."""
    _require_values(row.values)
    for column in _SHARED:
        if row.values[column] != first.values[column]:
            raise ValueError(f"{column}: another than in line {first.line}, of the same group")
    answer_id = _answer_id(reading.level, row.values[reading.level])
    if reading.answers is not None and answer_id not in reading.answers.ids:
        raise ValueError(f"{reading.level}: not among the {len(reading.answers)} answers")
    line = line_by_file.setdefault(row.values["file"], row.line)
    if line != row.line:
        raise ValueError(f"file: the same as line {line}")
    try:
        return _image(folder, row.values)
    except BadFileError as error:
        raise ValueError(f"file: {error.reason}") from error
    except OSError as error:
        raise ValueError("file: not readable") from error


def _require_values(values: Mapping[str, str]) -> None:
    for column, pattern in _PATTERNS.items():
        if pattern.fullmatch(values[column]) is None:
            raise ValueError(f"{column}: {_EXPECTED[column]}")
    if not is_line(f"{values['source']}/{values['group']}") or not values["group"]:
        raise ValueError("group: expected one line of text, not empty")
    for column in ("slide", "patient"):
        if values[column] and not is_line(f"{values['source']}/{values[column]}"):
            raise ValueError(f"{column}: expected one line of text, or nothing")
    file = PurePosixPath(values["file"])
    if not is_line(values["file"]) or file.is_absolute() or ".." in file.parts:
        raise ValueError("file: expected a relative path inside the folder")


def _image(folder: Path, values: Mapping[str, str]) -> SlideRef:
    path, archive = folder / values["file"], folder / f"{values['source']}.zip"
    is_file = path.exists()
    if is_file and not path.resolve().is_relative_to(folder.resolve()):
        raise BadFileError(path, "expected a relative path inside the folder")
    data = read_image(path) if is_file else read_member(archive, values["file"])
    if hashlib.sha256(data).hexdigest() != values["sha256"]:
        raise BadFileError(path, "another sha256 than the manifest says")
    decode_bytes(data, path)
    return ImageRef(path=path) if is_file else MemberRef(path=archive, member=values["file"])


def _record(
    values: Mapping[str, str],
    tiles: tuple[SlideRef, ...],
    patient_by_slide: Mapping[tuple[str, str], str],
    reading: _Reading,
) -> PatientRecord:
    source, image = values["source"], values["group"]
    patient = values["patient"] or patient_by_slide.get((source, values["slide"]))
    return PatientRecord(
        patient_id=pseudonym(reading.key, f"{source}/{image}"),
        case_id=reading.shown(f"{source}/{image}"),
        slides=tiles,
        label={TISSUE_TYPE.name: _answer_id(reading.level, values[reading.level])},
        consent=CONSENT if reading.public_ids else frozenset(),
        group=reading.shown(f"{source}/{patient or values['slide'] or image}"),
    )


def _patient_by_slide(rows: Iterable[_Row]) -> Mapping[tuple[str, str], str]:
    """Whose slide it is: one row may name the patient that another of the same slide leaves out."""
    known = (row.values for row in rows if row.values["slide"] and row.values["patient"])
    return {(values["source"], values["slide"]): values["patient"] for values in known}


def _require_level(level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"Expected a level of {', '.join(LEVELS)}, got {level!r}")


def _answer_id(level: Level, name: str) -> str:
    return f"{level}:{name}"
