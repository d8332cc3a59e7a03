"""What a site imported: one numbered folder for each import, in `read_folder`'s format, under pseudonyms.

``DATA/batch-0001/`` holds ``patients.jsonl`` with its photos and slides, and ``imported.json``, which says
that the ids are pseudonyms already:

===========  ==========================================================================================
``schema``   1
``kind``     what was read
``day``      when, YYYY-MM-DD
``patients`` how many it holds
``refused``  how many things of the source were refused
``key``      a mark of the pseudonyms' key, so that no batch is made or read with another
===========  ==========================================================================================

A batch is written beside its place and moved there when it is whole. It is never changed: another import
adds the next number, with the patients that no earlier batch has.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from client.patients.importers.folder import PATIENTS_FILE, read_folder, write_folder
from client.patients.importers.gather import Found, gather
from client.patients.importers.lines import read_lines
from client.patients.records import PatientRecord, PatientSet, Problem, require_key
from common.atomic import write_atomically
from common.canonical import read_object
from common.checks import require, require_date, require_schema, require_whole
from common.errors import BadFileError, ImportRefusedError, SettingsError
from common.tracks import AnswerList

MARKER_FILE = "imported.json"
MARKER_SCHEMA = 1
MOST_BATCHES = 9999
PRIVATE_FOLDER = 0o700

_BATCH = re.compile(r"batch-[0-9]{4}")
_KEY_LABEL = b"consilium mark of a pseudonym key 1"


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What ``imported.json`` says.

    Attributes:
        kind: What was read.
        day: When, YYYY-MM-DD.
        patients: How many the batch holds.
        refused: How many things of the source were refused.
        key: `key_mark` of the pseudonyms' key.
    """

    kind: str
    day: str
    patients: int
    refused: int
    key: str

    def __post_init__(self) -> None:
        require_date("day", self.day)
        require_whole("patients", self.patients, 1)
        require_whole("refused", self.refused, 0)


def key_mark(key: bytes) -> str:
    """16 hexadecimal digits that tell keys apart and nothing about one."""
    require_key(key)
    return hmac.new(key, _KEY_LABEL, "sha256").hexdigest()[:16]


def batches_of(folder: Path) -> tuple[Path, ...]:
    """The batches of a data folder, in their order; none where nothing was imported."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if _BATCH.fullmatch(path.name)))


def read_marker(batch: Path) -> Marker:
    """What a batch says of itself. BadFileError if it does not; UnsupportedSchemaError if it is newer."""
    path = batch / MARKER_FILE
    try:
        content = read_object(path.read_text(encoding="utf-8"), "imported")
        require_schema(str(path), content.pop("schema", None), MARKER_SCHEMA)
        return _marker(content)
    except OSError as error:
        raise BadFileError(path, "missing or not readable: no import wrote this batch") from error
    except (SettingsError, UnicodeDecodeError) as error:
        reason = f"expected {error.expected}" if isinstance(error, SettingsError) else "not UTF-8"
        raise BadFileError(path, reason) from error


def read_batches(
    folder: Path,
    *,
    key: bytes | None,
    answers: Mapping[str, AnswerList] | None = None,
    today: date | None = None,
) -> PatientSet:
    """The patients of all batches, and a line for each that could not be read.

    Args:
        folder: Holds the batches.
        key: Checked against what each batch says of its pseudonyms; None leaves that out.
        answers: As of `read_folder`.
        today: As of `read_folder`.

    Guarantee: a batch that lost patients since it was written has a problem.

    Raises:
        BadFileError: A batch is not one, or its pseudonyms are of another key.
    """
    return gather(_read_all(batches_of(folder), key, answers, today))


def batch_ids(folder: Path, key: bytes) -> Mapping[str, tuple[str, str | None]]:
    """The batch and the group of each pseudonym that was imported; no image is opened for it.

    Raises:
        BadFileError: A batch is not one, or its pseudonyms are of another key.
    """
    known: dict[str, tuple[str, str | None]] = {}
    for batch in batches_of(folder):
        _checked_marker(batch, key)
        with (batch / PATIENTS_FILE).open("rb") as file:
            # A damaged line is for whoever reads the batch to report.
            rows = (line[1] for line in read_lines(file, PATIENTS_FILE) if not isinstance(line, Problem))
            known.update((str(row.get("patient_id")), (batch.name, row.get("group"))) for row in rows)
    return known


def add_batch(
    folder: Path, patients: PatientSet, *, kind: str, key: bytes, today: date | None = None
) -> tuple[Path, PatientSet]:
    """Write what is new as the next batch; its folder, and what was imported, with a line for the rest.

    Guarantee: after an error no batch is there that was not there before, and no old one is changed.

    Raises:
        ImportRefusedError: There is nothing new, or the folder holds patients that were not imported.
        BadFileError: An image could not be read any more, or an older batch is of another key.
    """
    _require_imports_only(folder)
    before = batches_of(folder)
    known = {one: batch for one, (batch, _) in batch_ids(folder, key).items()}
    fresh = _without_known(patients, known)
    if not fresh.records:
        raise ImportRefusedError(folder, "no patient of the source can be used, or all are here already")
    place = folder / f"batch-{_next_number(folder, before):04d}"
    marker = Marker(
        kind=kind,
        day=(today or date.today()).isoformat(),
        patients=len(fresh.records),
        refused=len(fresh.problems),
        key=key_mark(key),
    )
    _write(place, fresh.records, marker)
    return place, fresh


def _write(place: Path, records: Sequence[PatientRecord], marker: Marker) -> None:
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        unfinished.mkdir(mode=PRIVATE_FOLDER, parents=True)
        write_folder(unfinished, records)
        row = {"schema": MARKER_SCHEMA, **marker.__dict__}
        write_atomically(unfinished / MARKER_FILE, json.dumps(row, indent=1) + "\n", private=True)
        # Refused by the file system where another import took the number meanwhile.
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _marker(content: dict[str, Any]) -> Marker:
    texts, numbers = ("kind", "day", "key"), ("patients", "refused")
    expected = "kind, day, key, patients and refused, nothing else"
    require(sorted(content) == sorted((*texts, *numbers)), "imported", "other keys", expected)
    for key in texts:
        require(isinstance(content[key], str), key, "another type", f"text as {key}")
    for key in numbers:
        require(type(content[key]) is int, key, "another type", f"a whole number as {key}")
    return Marker(**content)


def _read_all(
    batches: Iterable[Path],
    key: bytes | None,
    answers: Mapping[str, AnswerList] | None,
    today: date | None,
) -> Iterator[Found | Problem]:
    for batch in batches:
        marker = _checked_marker(batch, key)
        patients = read_folder(batch, key=None, answers=answers, today=today)
        for record in patients.records:
            yield Found(record=record, file=f"{batch.name}/{PATIENTS_FILE}")
        for problem in patients.problems:
            yield replace(problem, file=f"{batch.name}/{problem.file}")
        got = len(patients.records) + len(patients.problems)
        if got != marker.patients:
            yield Problem(
                file=f"{batch.name}/{PATIENTS_FILE}", reason=f"expected {marker.patients} patients, got {got}"
            )


def _checked_marker(batch: Path, key: bytes | None) -> Marker:
    marker = read_marker(batch)
    if key is not None and marker.key != key_mark(key):
        raise BadFileError(batch, "was imported with another key for pseudonyms than this site's")
    return marker


def _without_known(patients: PatientSet, known: Mapping[str, str]) -> PatientSet:
    """The patients whom no batch has; of each of the others a problem."""
    fresh: list[Found | Problem] = list(patients.problems)
    for record, place in zip(patients.records, patients.places, strict=True):
        batch = known.get(record.patient_id)
        if batch is None:
            fresh.append(Found(record=record, file=place.file, line=place.line))
        else:
            fresh.append(place.problem(f"patient_id: imported before, as part of {batch}"))
    return gather(fresh)


def _require_imports_only(folder: Path) -> None:
    if (folder / PATIENTS_FILE).exists():
        raise ImportRefusedError(folder, f"it holds the site's own {PATIENTS_FILE}, which stays as it is")


def _next_number(folder: Path, batches: Sequence[Path]) -> int:
    number = int(batches[-1].name.removeprefix("batch-")) + 1 if batches else 1
    if number > MOST_BATCHES:
        raise ImportRefusedError(folder, f"it holds {MOST_BATCHES} batches already")
    return number
