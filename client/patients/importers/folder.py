"""A site's own folder of patients: ``patients.jsonl`` with ``photos/``, ``notes/`` and ``slides/`` beside it.

Each line of ``patients.jsonl`` is one patient, a JSON object in UTF-8 with these keys (schema 1):

===================  =========================================================================================
``schema``           1; required
``patient_id``       the site's id, one line; required, never twice
``case_id``          id for predictions; if absent, the pseudonym
``sex``              male, female, other or unknown
``age``              when last seen: ``P3Y6M``, ``GA19w3d`` or ``HP:0003577 Congenital onset``
``birth_date``,      ISO dates that stand in for ``age``; only the duration between them is kept
``seen_on``
``onset``            age when the disease began, as ``age``
``deceased``         true or false
``observed``         [{"id": "HP:0000316", "label": "Hypertelorism", "onset": "P2Y"}]; ``onset`` may be absent
``excluded``         the same, of findings that were looked for and not found
``note``             the note's text, or
``note_file``        its file, UTF-8, e.g. ``notes/17.txt``
``photo``            an image file, e.g. ``photos/17.jpg``
``slides``           image files, one a tile, or whole slides, which are cut into tiles of their tissue (SVS,
                     NDPI, DICOM and what else OpenSlide opens), e.g. ``["slides/17-1.png", "slides/17.svs"]``
``label``            answer id by track: {"rare_disease": "OMIM:154700"}
``consent``          purposes the patient agreed to: ["research"]; absent means none
``withdrawn``        true if the consent was taken back
``group``            publication or family
===================  =========================================================================================

An absent key and a null mean the same. Paths are relative and stay inside the folder. Images are decoded
once while reading, so that a damaged one is listed now and not found in the middle of a training; of a whole
slide an overview is, to find its tissue.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from client.patients.ages import age_between, is_age
from client.patients.importers.fields import (
    Parser,
    read_age,
    read_fields,
    read_findings,
    read_flag,
    read_line,
    read_lines_of_text,
    read_note,
    read_sex,
    reason_of,
)
from client.patients.importers.files import (
    MAX_NOTE_BYTES,
    read_image_file,
    read_note_file,
    read_slide_file,
)
from client.patients.importers.gather import Found, gather
from client.patients.importers.lines import read_lines
from client.patients.photos import SlideRef, encode_png
from client.patients.records import (
    SCHEMA,
    Finding,
    PatientRecord,
    PatientSet,
    Problem,
    is_line,
    pseudonym,
    require_key,
)
from client.patients.slides import Tiling
from common.durable import sync_folder, sync_tree
from common.errors import UnsupportedSchemaError
from common.tracks import TRACKS, AnswerList

__all__ = ["MAX_NOTE_BYTES", "PATIENTS_FILE", "read_folder", "write_folder"]

PATIENTS_FILE = "patients.jsonl"


def read_folder(
    folder: Path,
    *,
    key: bytes | None,
    answers: Mapping[str, AnswerList] | None = None,
    today: date | None = None,
    tiling: Tiling | None = None,
) -> PatientSet:
    """The patients of a folder, and a line for each that could not be read.

    Args:
        folder: Holds ``patients.jsonl``; FileNotFoundError if it does not.
        key: The site's secret for pseudonyms, at least 16 bytes. None only where the folder holds
            pseudonyms already, as one that `write_folder` wrote.
        answers: Answer lists by track; a label that is not in its track's list is a problem.
        today: The day that no date may lie after; the machine's own if absent.
        tiling: How whole slides are cut; `Tiling`'s own settings if absent.

    Guarantee: every line of the file is a record or a problem.
    """
    if key is not None:
        require_key(key)
    parsers = _parsers(folder, answers or {}, today or date.today(), tiling or Tiling())
    return gather(_read_all(folder, parsers, key))


def write_folder(folder: Path, records: Iterable[PatientRecord]) -> None:
    """Write records as a folder that `read_folder` reads back, without a key, as the same records.

    Images are written as PNG from their pixels, so that no EXIF goes with them, and numbered, so that no
    file name holds an id. ``patients.jsonl`` comes last: a folder without it is not finished.

    Guarantee: where ``patients.jsonl`` is there, all that it names is on the disk.

    Raises:
        FileExistsError: The folder holds patients already; nothing is overwritten.
        ValueError: Two records have one id.
    """
    target = folder / PATIENTS_FILE
    if target.exists():
        raise FileExistsError(f"{target} exists")
    folder.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_suffix(".partial")
    seen: set[str] = set()
    with partial_file.open("w", encoding="utf-8", newline="\n") as file:
        for number, record in enumerate(records, start=1):
            if record.patient_id in seen:
                raise ValueError(f"Expected every patient once, got record {number} again")
            seen.add(record.patient_id)
            file.write(json.dumps(_row(record, folder, number)) + "\n")
    sync_tree(folder)
    partial_file.replace(target)
    sync_folder(folder)


def _read_all(folder: Path, parsers: Mapping[str, Parser], key: bytes | None) -> Iterator[Found | Problem]:
    with (folder / PATIENTS_FILE).open("rb") as file:
        for line in read_lines(file, PATIENTS_FILE):
            if isinstance(line, Problem):
                yield line
            else:
                yield _read_patient(line[1], line[0], parsers, key)


def _read_patient(
    row: dict[str, Any], number: int, parsers: Mapping[str, Parser], key: bytes | None
) -> Found | Problem:
    try:
        record = _record(row, parsers, key)
    except (ValueError, UnsupportedSchemaError) as error:
        ended = _ended(row, key)
        return Problem(file=PATIENTS_FILE, line=number, reason=reason_of(error), ended=ended)
    return Found(record=record, file=PATIENTS_FILE, line=number)


def _ended(row: dict[str, Any], key: bytes | None) -> str | None:
    """Whose line this is, if it leaves no consent, whatever else is wrong with it."""
    patient = row.get("patient_id")
    if (
        not isinstance(patient, str)
        or not is_line(patient)
        or (row.get("consent") and not row.get("withdrawn"))
    ):
        return None
    return patient if key is None else pseudonym(key, patient)


def _record(row: dict[str, Any], parsers: Mapping[str, Parser], key: bytes | None) -> PatientRecord:
    _require_schema(row.get("schema"))
    values, reasons = read_fields(row, parsers, unread=("schema",))
    if row.get("patient_id") is None:
        reasons.append("patient_id: missing")
    reasons += _settle_age(values) + _settle_note(values)
    if reasons:
        raise ValueError("; ".join(reasons))
    if key is not None:
        values["patient_id"] = pseudonym(key, values["patient_id"])
    return PatientRecord(**{"case_id": values["patient_id"], **values})


def _require_schema(got: Any) -> None:
    if not isinstance(got, int) or isinstance(got, bool) or got < 1:
        raise ValueError("schema: missing" if got is None else f"schema: expected {SCHEMA}")
    if got > SCHEMA:
        raise UnsupportedSchemaError("patient", got, SCHEMA)


def _settle_age(values: dict[str, Any]) -> list[str]:
    """Put the duration between two dates in the place of an age; reasons why that cannot be."""
    birth, seen = values.pop("birth_date", None), values.pop("seen_on", None)
    if birth is None and seen is None:
        return []
    if birth is None or seen is None:
        return ["birth_date and seen_on: expected both or neither"]
    if "age" in values:
        return ["age: expected an age or two dates, got both"]
    if seen < birth:
        return ["seen_on: expected a date after birth_date"]
    values["age"] = age_between(birth, seen)
    return [] if is_age(values["age"]) else ["birth_date: more than 130 years before seen_on"]


def _settle_note(values: dict[str, Any]) -> list[str]:
    text = values.pop("note_file", None)
    if text is None:
        return []
    if "note" in values:
        return ["note: expected a note or its file, got both"]
    values["note"] = text
    return []


def _parsers(
    folder: Path, answers: Mapping[str, AnswerList], today: date, tiling: Tiling
) -> Mapping[str, Parser]:
    return {
        "patient_id": read_line,
        "case_id": read_line,
        "sex": read_sex,
        "age": read_age,
        "birth_date": partial(_read_date, today),
        "seen_on": partial(_read_date, today),
        "onset": read_age,
        "deceased": read_flag,
        "observed": read_findings,
        "excluded": read_findings,
        "note": read_note,
        "note_file": partial(read_note_file, folder),
        "photo": partial(read_image_file, folder),
        "slides": partial(_read_slides, folder, tiling),
        "label": partial(_read_label, answers),
        "consent": read_lines_of_text,
        "withdrawn": read_flag,
        "group": read_line,
    }


def _read_date(today: date, value: Any) -> date:
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError("expected a date as YYYY-MM-DD") from error
    if day > today:
        raise ValueError("a date in the future")
    return day


def _read_label(answers: Mapping[str, AnswerList], value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("expected an answer id by track")
    for track, answer_id in value.items():
        if track not in TRACKS:
            raise ValueError(f"expected tracks among {', '.join(TRACKS)}")
        read_line(answer_id)
        if track in answers and answer_id not in answers[track].ids:
            raise ValueError(f"not among the {len(answers[track])} answers of {track}")
    return value


def _read_slides(folder: Path, tiling: Tiling, value: Any) -> tuple[SlideRef, ...]:
    if not isinstance(value, list):
        raise ValueError("expected a list of paths")
    return tuple(tile for item in value for tile in read_slide_file(folder, tiling, item))


def _row(record: PatientRecord, folder: Path, number: int) -> dict[str, Any]:
    photo = None if record.photo is None else _write_image(record.photo, folder, f"photos/{number:06d}.png")
    slides = [
        _write_image(slide, folder, f"slides/{number:06d}-{index:03d}.png")
        for index, slide in enumerate(record.slides, start=1)
    ]
    row: dict[str, Any] = {
        "schema": SCHEMA,
        "patient_id": record.patient_id,
        "case_id": record.case_id,
        "sex": record.sex,
        "age": record.age,
        "onset": record.onset,
        "deceased": record.deceased,
        "observed": [_finding_row(finding) for finding in record.observed],
        "excluded": [_finding_row(finding) for finding in record.excluded],
        "note": record.note,
        "photo": photo,
        "slides": slides,
        "label": record.label,
        "consent": sorted(record.consent),
        "withdrawn": record.withdrawn,
        "group": record.group,
    }
    return {key: value for key, value in row.items() if value not in (None, [], {}, False)}


def _finding_row(finding: Finding) -> dict[str, str]:
    row = {"id": finding.id, "label": finding.label}
    return row if finding.onset is None else {**row, "onset": finding.onset}


def _write_image(image: SlideRef, folder: Path, name: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_png(image.pixels()))
    return name
