"""Which importer reads a folder of patients: found from what lies in it, or named.

============== =========================================== ================================================
kind           found by                                    read by
============== =========================================== ================================================
imported       ``batch-0001/imported.json`` and further    `read_folder`, whose ids are pseudonyms already
folder         ``patients.jsonl``                          `read_folder`
tiles          ``manifest.csv``, ``manifest.csv.gz``       `read_tiles`
fhir           ``*.ndjson``, ``*.ndjson.gz``               `read_fhir`
phenopackets   none of these, but ``*.json``, also deeper  `read_phenopackets`
============== =========================================== ================================================

Phenopackets and tiles say nothing of consent, and of a FHIR export only those with Consent resources do:
the site says for all of their patients together what they agreed to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from client.patients.importers.batches import batches_of, held_patients, read_batches
from client.patients.importers.files import json_files
from client.patients.importers.folder import PATIENTS_FILE, read_folder
from client.patients.records import PatientSet
from common.errors import BadFileError, UnclearSourceError
from common.tracks import RARE_DISEASE, TISSUE_TYPE, AnswerList

Kind = Literal["imported", "folder", "tiles", "fhir", "phenopackets"]
RAW_KINDS = ("folder", "tiles", "phenopackets", "fhir")
"""What a person may name; the other is what `client.patients.importers.batches` wrote."""

NO_CONSENT: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Source:
    """What lies in a folder.

    Attributes:
        kind: Which importer read it.
        patients: The records, and what could not be read.
        unread: What was left alone, as its kind says it may be: how many of what.
        tells_consent: Whether it says itself, of each patient, what that patient agreed to. If so, what it
            does not say was not agreed to.
    """

    kind: Kind
    patients: PatientSet
    unread: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    tells_consent: bool = False


@dataclass(frozen=True, kw_only=True)
class _Reading:
    key: bytes | None
    answers: Mapping[str, AnswerList]
    consent: frozenset[str]
    today: date

    @property
    def secret(self) -> bytes:
        """The key, where it cannot be done without; ValueError if there is none."""
        if self.key is None:
            raise ValueError("Expected a key for pseudonyms, since the folder holds a hospital's own ids")
        return self.key


def read_patients(
    folder: Path,
    *,
    key: bytes | None,
    answers: Mapping[str, AnswerList] | None = None,
    kind: Kind | None = None,
) -> PatientSet:
    """The patients of a folder, whatever its kind, and a line for each thing that could not be read.

    Args and errors are those of `read_source`.
    """
    return read_source(folder, key=key, answers=answers, kind=kind).patients


def read_source(
    folder: Path,
    *,
    key: bytes | None,
    answers: Mapping[str, AnswerList] | None = None,
    kind: Kind | None = None,
    consent: frozenset[str] = NO_CONSENT,
    today: date | None = None,
) -> Source:
    """What lies in a folder, read by the importer of its kind.

    Args:
        folder: Is not changed.
        key: The site's secret for pseudonyms, at least 16 bytes; None for what was imported before.
        answers: Answer lists by track; a label that is not in its track's list is a problem.
        kind: Found from the folder if absent.
        consent: What all patients of a kind that says nothing of consent agreed to.
        today: The day that no date may lie after; the machine's own if absent.

    Raises:
        UnclearSourceError: The folder is of no kind, or of several.
        BadFileError: It is no folder, says itself what its patients agreed to, or is damaged as a whole.
    """
    found = kind or kind_of(folder)
    reading = _Reading(key=key, answers=answers or {}, consent=consent, today=today or date.today())
    return _READERS[found](folder, reading)


def patient_groups(folder: Path, key: bytes) -> Mapping[str, str | None]:
    """The group of each patient of a folder, by pseudonym. Errors are those of `read_source`."""
    if kind_of(folder) == "imported":
        return {one: held.group for one, held in held_patients(folder, key).items()}
    return {one.patient_id: one.group for one in read_patients(folder, key=key).records}


def is_empty(folder: Path) -> bool:
    """Whether a data folder holds nothing yet that an importer would read, or is not there."""
    is_kind = any(sign(folder) for sign in _SIGNS.values())
    return not folder.is_dir() or not (is_kind or any(json_files(folder)))


def kind_of(folder: Path) -> Kind:
    """The kind of a folder; UnclearSourceError or BadFileError as of `read_source`."""
    if not folder.is_dir():
        raise BadFileError(folder, "expected a folder of patients")
    found = [kind for kind, is_kind in _SIGNS.items() if is_kind(folder)]
    if not found and any(json_files(folder)):
        return "phenopackets"
    if len(found) != 1:
        raise UnclearSourceError(folder, found, tuple(_SIGNS_FOR_PEOPLE))
    return found[0]


def _has(folder: Path, *patterns: str) -> bool:
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


_SIGNS: Mapping[Kind, Callable[[Path], bool]] = {
    "imported": lambda folder: bool(batches_of(folder)),
    "folder": lambda folder: (folder / PATIENTS_FILE).exists(),
    "tiles": lambda folder: _has(folder, "manifest.csv", "manifest.csv.gz"),
    "fhir": lambda folder: _has(folder, "*.ndjson", "*.ndjson.gz"),
}
_SIGNS_FOR_PEOPLE = (PATIENTS_FILE, "manifest.csv", "*.ndjson", "phenopackets (*.json)")


def _imported(folder: Path, reading: _Reading) -> Source:
    _require_silent(folder, reading)
    patients = read_batches(folder, key=reading.key, answers=reading.answers, today=reading.today)
    return Source(kind="imported", patients=patients)


def _folder(folder: Path, reading: _Reading) -> Source:
    _require_silent(folder, reading)
    patients = read_folder(folder, key=reading.secret, answers=reading.answers, today=reading.today)
    return Source(kind="folder", patients=patients, tells_consent=True)


def _tiles(folder: Path, reading: _Reading) -> Source:
    from client.patients.importers.tiles import read_tiles

    answers = reading.answers.get(TISSUE_TYPE.name)
    # One manifest holds both levels; the plan's answers say which of them is asked for.
    is_organ = answers is not None and all(one.startswith("organ:") for one in answers.ids)
    level: Literal["tissue", "organ"] = "organ" if is_organ else "tissue"
    patients = read_tiles(folder, key=reading.secret, answers=answers, level=level)
    agreed = tuple(replace(record, consent=reading.consent) for record in patients.records)
    return Source(kind="tiles", patients=replace(patients, records=agreed))


def _phenopackets(folder: Path, reading: _Reading) -> Source:
    from client.patients.importers.phenopackets import PacketRules, read_phenopackets

    rules = PacketRules(
        key=reading.secret,
        consent=reading.consent,
        answers=reading.answers.get(RARE_DISEASE.name),
        today=reading.today,
    )
    return Source(kind="phenopackets", patients=read_phenopackets(folder, rules))


def _fhir(folder: Path, reading: _Reading) -> Source:
    # The shapes of FHIR take a second to load, which the other kinds need not wait for.
    from client.patients.importers.fhir import read_fhir

    read = read_fhir(
        folder,
        key=reading.secret,
        answers=reading.answers.get(RARE_DISEASE.name),
        consent=reading.consent,
        today=reading.today,
    )
    return Source(kind="fhir", patients=read.patients, unread=read.unread, tells_consent=read.tells_consent)


def _require_silent(folder: Path, reading: _Reading) -> None:
    if reading.consent:
        raise BadFileError(folder, "each patient's own consent is in the folder, expected none for all")


_READERS: Mapping[Kind, Callable[[Path, _Reading], Source]] = {
    "imported": _imported,
    "folder": _folder,
    "tiles": _tiles,
    "phenopackets": _phenopackets,
    "fhir": _fhir,
}
