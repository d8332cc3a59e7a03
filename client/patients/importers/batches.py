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
adds the next number, with the patients that no earlier batch has. Imports into one folder wait for each
other, by the lock of ``DATA/.import.lock``.
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
from common.durable import sync_folder
from common.errors import BadFileError, ImportRefusedError, SettingsError
from common.locks import locked
from common.tracks import AnswerList

MARKER_FILE = "imported.json"
MARKER_SCHEMA = 1
MOST_BATCHES = 9999
PRIVATE_FOLDER = 0o700

LOCK_FILE = ".import.lock"

_UNFINISHED = ".batch-*.partial"
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


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a batch says of one patient, as far as another import asks.

    Attributes:
        batch: Its name.
        group: The patient's; None if there is none.
        consent: Purposes that the patient agreed to.
    """

    batch: str
    group: str | None
    consent: frozenset[str]


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


def held_patients(folder: Path, key: bytes) -> Mapping[str, Held]:
    """What the batches hold, by pseudonym; no image is opened for it.

    Raises:
        BadFileError: A batch is not one, or its pseudonyms are of another key.
    """
    known: dict[str, Held] = {}
    for batch in batches_of(folder):
        _checked_marker(batch, key)
        with (batch / PATIENTS_FILE).open("rb") as file:
            # A damaged line is for whoever reads the batch to report.
            rows = (line[1] for line in read_lines(file, PATIENTS_FILE) if not isinstance(line, Problem))
            known.update((str(row.get("patient_id")), _held(batch, row)) for row in rows)
    return known


def add_batch(
    folder: Path, patients: PatientSet, *, kind: str, key: bytes, today: date | None = None
) -> tuple[Path, PatientSet]:
    """Write what is new as the next batch; its folder, and what was imported, with a line for the rest.

    What imports that were killed left behind is removed.

    Guarantee: after an error no batch is there that was not there before, and no old one is changed.

    Guarantee: a batch that is there is whole on the disk.

    Raises:
        ImportRefusedError: There is nothing new, or the folder holds patients that were not imported.
        BadFileError: An image could not be read any more, or an older batch is of another key.
    """
    _require_imports_only(folder)
    with locked(folder / LOCK_FILE):
        _remove_unfinished(folder)
        fresh = _without_known(patients, held_patients(folder, key))
        if not fresh.records:
            raise ImportRefusedError(folder, "no patient of the source can be used, or all are here already")
        place = folder / f"batch-{_next_number(folder, batches_of(folder)):04d}"
        marker = Marker(
            kind=kind,
            day=(today or date.today()).isoformat(),
            patients=len(fresh.records),
            refused=len(fresh.problems),
            key=key_mark(key),
        )
        _write(place, fresh.records, marker)
    return place, fresh


def _remove_unfinished(folder: Path) -> None:
    """Remove what is of no import any more: whoever holds the lock is the only one at work."""
    for left in folder.glob(_UNFINISHED):
        shutil.rmtree(left)


def _write(place: Path, records: Sequence[PatientRecord], marker: Marker) -> None:
    unfinished = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        unfinished.mkdir(mode=PRIVATE_FOLDER, parents=True)
        write_folder(unfinished, records)
        row = {"schema": MARKER_SCHEMA, **marker.__dict__}
        write_atomically(unfinished / MARKER_FILE, json.dumps(row, indent=1) + "\n", private=True)
        sync_folder(unfinished)
        # Refused by the file system where somebody took the number meanwhile.
        unfinished.rename(place)
        sync_folder(place.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _held(batch: Path, row: Mapping[str, Any]) -> Held:
    consent = row.get("consent")
    agreed = frozenset(map(str, consent)) if isinstance(consent, list) else frozenset[str]()
    return Held(batch=batch.name, group=row.get("group"), consent=agreed)


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


def _without_known(patients: PatientSet, known: Mapping[str, Held]) -> PatientSet:
    """The patients whom no batch has; of each of the others a problem."""
    fresh: list[Found | Problem] = list(patients.problems)
    for record, place in zip(patients.records, patients.places, strict=True):
        held = known.get(record.patient_id)
        if held is None:
            fresh.append(Found(record=record, file=place.file, line=place.line))
        else:
            fresh.append(place.problem(f"patient_id: imported before, as part of {held.batch}"))
    return gather(fresh)


def _require_imports_only(folder: Path) -> None:
    if (folder / PATIENTS_FILE).exists():
        raise ImportRefusedError(folder, f"it holds the site's own {PATIENTS_FILE}, which stays as it is")


def _next_number(folder: Path, batches: Sequence[Path]) -> int:
    number = int(batches[-1].name.removeprefix("batch-")) + 1 if batches else 1
    if number > MOST_BATCHES:
        raise ImportRefusedError(folder, f"it holds {MOST_BATCHES} batches already")
    return number
