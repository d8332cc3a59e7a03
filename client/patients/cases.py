"""Cases to answer, as a site's people bring them: a file with one JSON object a line, or a folder of images.

A line needs ``case_id`` and ``note``, or ``image``, a path beside the file, where the student reads images;
further fields are left alone and never reach the student. Of a folder every image is a case under its file's
name. What cannot be used is reported with its line or its file, and the rest goes on. A report never repeats
what a line holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from client.patients.importers.lines import read_lines
from client.patients.photos import ImageRef, SlideRef, decode_image
from client.patients.records import Problem, is_text
from common.errors import BadFileError
from common.tracks import Modality


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case to answer.

    Attributes:
        case_id: The name the answers are given back under.
        note: What a text student reads.
        image: What an image student reads.
    """

    case_id: str
    note: str | None = None
    image: SlideRef | None = None


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """What a file or a folder of cases held.

    Attributes:
        cases: The usable ones, in their order.
        problems: The lines or files that are not, in their order.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]


def read_cases(path: Path, modality: Modality = Modality.TEXT) -> CaseSet:
    """Read a file of cases, or a folder of images; OSError if it cannot be opened.

    Guarantee: every line that is not empty, and every file of the folder, ends as a case or as a problem.
    """
    if path.is_dir():
        return _case_set(_images_of(path))
    return _case_set(_cases_of(path, modality))


def _case_set(found: Iterator[Case | Problem]) -> CaseSet:
    everything = list(found)
    return CaseSet(
        cases=tuple(one for one in everything if isinstance(one, Case)),
        problems=tuple(one for one in everything if isinstance(one, Problem)),
    )


def _cases_of(path: Path, modality: Modality) -> Iterator[Case | Problem]:
    line_by_case: dict[str, int] = {}
    read: Callable[[Mapping[str, Any]], Case] = (
        _note_case if modality is Modality.TEXT else partial(_image_case, path.parent)
    )
    with path.open("rb") as file:
        for line in read_lines(file, path.name):
            if isinstance(line, Problem):
                yield line
                continue
            number, row = line
            try:
                case = read(row)
                _refuse_second(case, number, line_by_case)
            except ValueError as error:
                yield Problem(file=path.name, line=number, reason=str(error))
            else:
                yield case


def _images_of(folder: Path) -> Iterator[Case | Problem]:
    """The files of a folder by name; hidden ones and folders in it are left alone."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        try:
            yield Case(case_id=path.name, image=_checked_image(path))
        except ValueError as error:
            yield Problem(file=path.name, reason=str(error))


def _note_case(row: Mapping[str, Any]) -> Case:
    return Case(case_id=_read_text(row, "case_id"), note=_read_text(row, "note"))


def _image_case(folder: Path, row: Mapping[str, Any]) -> Case:
    case_id, image = _read_text(row, "case_id"), _read_text(row, "image")
    try:
        return Case(case_id=case_id, image=_checked_image(folder / image))
    except ValueError as error:
        raise ValueError(f"image: {error}") from error


def _checked_image(path: Path) -> ImageRef:
    """The image, once it was decoded: a damaged one is reported now, and not after an hour of answering."""
    try:
        decode_image(path)
    except BadFileError as error:
        raise ValueError(error.reason) from error
    return ImageRef(path=path)


def _read_text(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        raise ValueError(f"{key}: missing")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text")
    if not is_text(value):
        raise ValueError(f"{key}: expected text that is not empty, in whole characters")
    return value


def _refuse_second(case: Case, number: int, line_by_case: dict[str, int]) -> None:
    first = line_by_case.setdefault(case.case_id, number)
    if first != number:
        raise ValueError(f"case_id: the same as in line {first}")
