"""FHIR bulk exports (R4, R4B): a folder of NDJSON files, one resource a line, to records.

====================  ======================================================================================
``Patient``           sex, death; the date of birth for ages only; never a name, a number or an address
``Encounter``         when the patient was last seen
``Condition``         confirmed and coded in OMIM, ORPHA or MONDO: the diagnosis; in HPO: a finding
``Observation``       coded in HPO: a finding that was found, or looked for and not found
``DocumentReference`` current and plain text: a part of the note
``Media``             an image: the photo of the face; of modality SM or GM: a slide
``ImagingStudy``      of modality SM or GM: slides, by a contained Endpoint
``Consent``           what the patient agreed to (`client.patients.importers.fhir_consent`)
====================  ======================================================================================

Other types are counted, and so are resources that say nothing here (an Observation of blood pressure). Text
and images lie in the resource, or in a file inside the folder; nothing is fetched. Files are read line by
line, and of each patient only what a record holds is kept.

A patient of whom one resource is refused is left out whole: the diagnosis or the denial of consent might be
in that resource.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

from client.patients.importers.fhir_chart import Chart
from client.patients.importers.fhir_consent import Decision, has_ended, read_consent
from client.patients.importers.fhir_files import Export, ExportFile, count_lines, find_files, read_resources
from client.patients.importers.fhir_resources import (
    READ_TYPES,
    Reading,
    ResourceType,
    read_patient,
    why_unread,
)
from client.patients.importers.fhir_shapes import Row, codes, patient_id, require_shape
from client.patients.importers.fields import reason_of
from client.patients.importers.gather import Found, gather
from client.patients.records import PatientSet, Place, Problem, pseudonym, require_key
from client.patients.slides import Tiling
from common.errors import BadFileError
from common.tracks import AnswerList

_ENDED = "the consent has ended of a patient of whom nothing else can be used"
_LOST = "no consent counts in this export until every line of consents can be read: any of them may deny"


@dataclass(frozen=True, kw_only=True)
class FhirRead:
    """What an export holds.

    Attributes:
        patients: The records, and what could not be read.
        unread: What was counted and left alone, by type and reason.
        tells_consent: Whether it has Consent resources, and all of them could be read.
    """

    patients: PatientSet
    unread: Mapping[str, int]
    tells_consent: bool


def read_fhir(
    folder: Path,
    *,
    key: bytes,
    answers: AnswerList | None = None,
    consent: frozenset[str] = frozenset(),
    today: date | None = None,
    tiling: Tiling | None = None,
) -> FhirRead:
    """The patients of a bulk export.

    Args:
        folder: Holds the NDJSON files.
        key: The site's secret for pseudonyms, at least 16 bytes.
        answers: A diagnosis that is none of them is a problem; any will do if absent.
        consent: What every patient agreed to, of an export without Consent resources.
        today: The day that no date may lie after; the machine's own if absent.
        tiling: How whole slides are cut; `Tiling`'s own settings if absent.

    Guarantee: every resource is used, listed as a problem, or counted as one that is not read. Where a line
    of consents could not be read, nobody has agreed to anything.

    Raises:
        BadFileError: The folder has no Patient resources, or ``consent`` is given beside Consent resources.
    """
    require_key(key)
    export = find_files(folder)
    if not export.of("Patient"):
        raise BadFileError(folder, "expected Patient resources in *.ndjson, found none")
    if consent and (export.of("Consent") or "Consent" in export.missing):
        raise BadFileError(folder, "each patient's own consent is in the folder, expected none for all")
    reading = Reading(folder=folder, answers=answers, today=today or date.today(), tiling=tiling or Tiling())
    charts = _Charts(reading=reading, key=key)
    patients = gather(_read_all(export, charts, consent))
    return FhirRead(
        patients=patients,
        unread=dict(sorted(charts.unread.items())),
        tells_consent=charts.tells_consent(export),
    )


@dataclass(kw_only=True)
class _Charts:
    """The patients of an export while it is read, by id.

    Attributes:
        reading: What every resource is read with.
        key: For pseudonyms.
        by_id: Those whose Patient resource could be used.
        refused: Those whose could not.
        replaced: Links of Patient resources that another one replaces.
        numbers: Whose a medical record number is.
        others: Consents of those of whom no Patient resource could be used.
        unread: What was counted.
        are_consents_whole: False once a consent was lost that could have been anybody's.
    """

    reading: Reading
    key: bytes
    by_id: dict[str, Chart] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    replaced: list[tuple[Row, Place]] = field(default_factory=list)
    numbers: dict[tuple[str, str], tuple[str, Place]] = field(default_factory=dict)
    others: dict[str, list[Decision]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    are_consents_whole: bool = True

    def tells_consent(self, export: Export) -> bool:
        """Whether what the export says of consent is all there is, once it is read."""
        return bool(export.of("Consent")) and self.are_consents_whole

    def refuse(self, subject: str, place: Place) -> None:
        """Leave a patient out, if there is one of this id."""
        if subject in self.by_id:
            self.by_id[subject].refuse(place)

    def refuse_replaced(self) -> None:
        """Leave out whoever replaces another: what the other agreed to, or denied, is not under one id."""
        for link, place in self.replaced:
            self.refuse(_subject(link, "other"), place)


Take = Callable[[Row, Place, _Charts], None]


def _read_all(export: Export, charts: _Charts, consent: frozenset[str]) -> Iterator[Found | Problem]:
    yield from export.problems
    charts.are_consents_whole = "Consent" not in export.missing
    for file in export.of("Patient"):
        yield from _lines(file, "Patient", charts, _take_patient)
    charts.refuse_replaced()
    for name, resource_type in READ_TYPES.items():
        for file in export.of(name):
            yield from _lines(file, name, charts, partial(_take_resource, name, resource_type))
    for file in export.files:
        if file.type != "Patient" and file.type not in READ_TYPES:
            yield from _count(file, charts)
    if not charts.are_consents_whole:
        yield Problem(file="Consent", reason=_LOST)
    own = charts.tells_consent(export)
    for chart in charts.by_id.values():
        yield _outcome(chart, None if own else consent, charts.unread)
    for subject, decisions in charts.others.items():
        if has_ended(decisions):
            yield Problem(file="Consent", reason=_ENDED, ended=pseudonym(charts.key, subject))


def _lines(file: ExportFile, name: str, charts: _Charts, take: Take) -> Iterator[Problem]:
    """The problems of a file of one type, everything else taken or counted."""
    for line in read_resources(file):
        if isinstance(line, Problem):
            charts.are_consents_whole &= name != "Consent"
            yield line
            continue
        place = Place(file=file.name, line=line[0])
        try:
            # In a file of another type a consent would be overlooked.
            charts.are_consents_whole &= name == "Consent" or line[1].get("resourceType") != "Consent"
            take(line[1], place, charts)
        except ValueError as error:
            yield place.problem(reason_of(error))


def _take_patient(row: Row, place: Place, charts: _Charts) -> None:
    try:
        require_shape(row, "Patient")
        if not row.get("id"):
            raise ValueError("id: missing")
        _require_new(row, place, charts)
        chart = read_patient(row, pseudonym(charts.key, row["id"]), place, charts.reading)
    except ValueError:
        charts.refused.add(str(row.get("id")))
        raise
    charts.by_id[row["id"]] = chart


def _require_new(row: Row, place: Place, charts: _Charts) -> None:
    """Refuse a patient who was met before, under the same id or another one."""
    first = charts.by_id.get(row["id"])
    if first is not None:
        raise ValueError(f"id: the same as in {first.place.file}, line {first.place.line}")
    for link in row.get("link") or ():
        if link["type"] == "replaced-by":
            charts.replaced.append((link, place))
            raise ValueError("link: replaced by another patient; merge the two before the export")
    for number in _record_numbers(row):
        other_id, taken = charts.numbers.setdefault(number, (row["id"], place))
        if taken != place:
            # One of the two may deny what the other permits.
            charts.refuse(other_id, place)
            raise ValueError(f"identifier: the medical record of {taken.file}, line {taken.line}")


def _record_numbers(row: Row) -> Iterator[tuple[str, str]]:
    """System and value of the numbers that one person only may have."""
    for identifier in row.get("identifier") or ():
        if "MR" in codes(identifier.get("type")) and identifier.get("value"):
            yield str(identifier.get("system")), str(identifier["value"])


def _take_resource(name: str, resource_type: ResourceType, row: Row, place: Place, charts: _Charts) -> None:
    """Take one resource, or count it; ValueError says what is wrong with it."""
    why = why_unread(row, name, resource_type)
    if why is not None:
        charts.unread[f"{name}: {why}"] += 1
        return
    subject = _subject(row, resource_type.subject)
    try:
        require_shape(row, name)
        if subject in charts.by_id:
            resource_type.take(row, charts.by_id[subject], place, charts.reading)
            return
        if subject and name == "Consent":
            charts.others.setdefault(subject, []).append(read_consent(row, charts.reading.today))
        if subject in charts.refused:
            charts.unread[f"{name}: of a patient who was refused"] += 1
        else:
            patient_id(row, resource_type.subject)
            raise ValueError(f"{resource_type.subject}: no such patient in the export")
    except ValueError:
        charts.refuse(subject, place)
        charts.are_consents_whole &= name != "Consent" or bool(subject)
        raise


def _subject(row: Row, key: str) -> str:
    """Whose resource it is, as far as that can be told before its shape was checked; else empty."""
    try:
        return patient_id(row, key)
    except ValueError:
        return ""


def _count(file: ExportFile, charts: _Charts) -> Iterator[Problem]:
    if file.type is None:
        charts.are_consents_whole = False
        yield Problem(file=file.name, reason="expected resources of FHIR, one JSON object a line")
        return
    counted = count_lines(file)
    if isinstance(counted, Problem):
        yield counted
    else:
        charts.unread[file.type] += counted


def _outcome(chart: Chart, consent: frozenset[str] | None, unread: Counter[str]) -> Found | Problem:
    ended = chart.pseudonym if has_ended(chart.decisions) else None
    if chart.refused_at is not None:
        where = f"{chart.refused_at.file}, line {chart.refused_at.line}"
        return chart.place.problem(
            f"left out: {chart.refusals} resources of this patient were refused, the first in {where}",
            ended=ended,
        )
    try:
        record = chart.record(consent)
    except ValueError as error:
        return chart.place.problem(reason_of(error), ended=ended)
    if len(chart.photos) > 1:
        unread["Media: an older photo of the same patient"] += len(chart.photos) - 1
    return Found(record=record, file=chart.place.file, line=chart.place.line)
