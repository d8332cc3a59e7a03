"""FHIR attachments: text and images inside a resource, or in a file of the export's folder.

Nothing is fetched: an address is a path inside the folder, or a problem.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from client.patients.importers.fhir_shapes import Row
from client.patients.importers.fields import read_note
from client.patients.importers.files import MAX_NOTE_BYTES, read_image_file, read_note_bytes, read_slide_file
from client.patients.photos import INLINE, ImageRef, SlideRef, decode_bytes
from client.patients.slides import Tiling
from common.errors import BadFileError

TEXT = "text/plain"
ENCODINGS = ("utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252", "utf-16")


def media_type(attachment: Any) -> str:
    """The type in small letters, without its parameters; empty where there is none."""
    found = attachment.get("contentType") if isinstance(attachment, dict) else None
    return found.partition(";")[0].strip().lower() if isinstance(found, str) else ""


def read_text(folder: Path, attachment: Row) -> str:
    """A note: at most MAX_NOTE_BYTES, in the character set that its type names, UTF-8 if it names none."""
    data = _data(attachment)
    if data is None:
        data = read_note_bytes(folder, _path(attachment))
    if len(data) > MAX_NOTE_BYTES:
        raise ValueError(f"larger than {MAX_NOTE_BYTES} bytes")
    _require_whole(data, attachment)
    encoding = _encoding(attachment)
    try:
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.upper()}") from error
    return read_note(text.replace("\r\n", "\n").strip())


def read_picture(folder: Path, attachment: Row) -> ImageRef:
    """An image, decoded once."""
    data = _data(attachment)
    if data is None:
        return read_image_file(folder, _path(attachment))
    _require_whole(data, attachment)
    try:
        decode_bytes(data, Path(INLINE))
    except BadFileError as error:
        raise ValueError(error.reason) from error
    return ImageRef(data=data)


def read_tiles_of(folder: Path, tiling: Tiling, attachment: Row) -> tuple[SlideRef, ...]:
    """The tiles of a whole slide, or one image."""
    if attachment.get("data") is not None:
        return (read_picture(folder, attachment),)
    return read_slide_file(folder, tiling, _path(attachment))


def local_path(url: Any) -> str:
    """The path that an address means; its place inside the folder is for the reader to check."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme or parts.netloc or parts.query or parts.fragment:
        raise ValueError("url: expected a path inside the folder, since nothing is fetched")
    return unquote(parts.path)


def _data(attachment: Row) -> bytes | None:
    text = attachment.get("data")
    if text is None:
        return None
    try:
        # The library reads on over what is no base64, and gives a shorter note.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError, AttributeError) as error:
        raise ValueError("data: expected base64") from error


def _path(attachment: Row) -> str:
    if attachment.get("url") is None:
        raise ValueError("expected data or a url, got neither")
    return local_path(attachment["url"])


def _require_whole(data: bytes, attachment: Row) -> None:
    size, digest = attachment.get("size"), attachment.get("hash")
    if size is not None and size != len(data):
        raise ValueError(f"size: {size} in the resource, {len(data)} in the content")
    # FHIR R4 asks for SHA-1 here: it finds damage, nobody relies on it against forgery.
    if digest is not None and base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()) != (
        "".join(str(digest).split()).encode()
    ):
        raise ValueError("hash: not that of the content")


def _encoding(attachment: Row) -> str:
    parameters = str(attachment.get("contentType", "")).lower().split(";")[1:]
    named = dict(part.strip().partition("=")[::2] for part in parameters)
    encoding = named.get("charset", "utf-8").strip('" ')
    if encoding not in ENCODINGS:
        raise ValueError(f"charset: expected one of {', '.join(ENCODINGS)}")
    return encoding
