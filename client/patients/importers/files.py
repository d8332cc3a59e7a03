"""Files that a line names: notes, photos and slides, inside the folder of the patients and nowhere else.

A reader takes the folder and the path that stands in a line, and raises ValueError with what it expected;
no reason quotes the path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.patients.importers.fields import read_line, read_note
from client.patients.photos import ImageRef, SlideRef, decode_image
from client.patients.slides import SUFFIXES, Tiling, is_slide, tile_slide
from common.errors import BadFileError

MAX_NOTE_BYTES = 2**20


def path_inside(folder: Path, value: Any) -> Path:
    """The path, if it is one line and stays inside the folder."""
    path = folder / read_line(value)
    try:
        # A link may lead out as well as dots may.
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise ValueError("expected a path, got links in a circle or a name too long") from error
    if not is_inside:
        raise ValueError("expected a relative path inside the folder")
    return path


def json_files(folder: Path) -> Iterator[Path]:
    """Every ``*.json`` under a folder, in no order.

    Hidden folders are passed over: what an import that was cut off left is nobody's source.
    """
    for path in folder.rglob("*.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts[:-1]):
            yield path


def read_note_bytes(folder: Path, value: Any) -> bytes:
    """The bytes of a note's file, at most MAX_NOTE_BYTES."""
    path = path_inside(folder, value)
    try:
        if not path.is_file():
            raise ValueError("missing")
        if path.stat().st_size > MAX_NOTE_BYTES:
            raise ValueError(f"larger than {MAX_NOTE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ValueError("not readable") from error


def read_note_file(folder: Path, value: Any) -> str:
    """The text of a note's file, UTF-8."""
    try:
        # Editors on Windows begin a file with a byte order mark and end it with line breaks.
        return read_note(read_note_bytes(folder, value).decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error


def read_image_file(folder: Path, value: Any) -> ImageRef:
    """An image, decoded once."""
    path = path_inside(folder, value)
    try:
        decode_image(path)
    except BadFileError as error:
        raise ValueError(error.reason) from error
    return ImageRef(path=path)


def read_slide_file(folder: Path, tiling: Tiling, value: Any) -> tuple[SlideRef, ...]:
    """The tiles of a whole slide, or the one image of a plain file."""
    path = path_inside(folder, value)
    if path.suffix.lower() not in SUFFIXES and not is_slide(path):
        return (read_image_file(folder, value),)
    try:
        return tile_slide(path, tiling)
    except BadFileError as error:
        raise ValueError(error.reason) from error
