"""Patients of a source come into a site's data folder; whoever it says has left takes part in no later round.

A source that is read later may say that a patient of a batch took the consent back, or may lack a purpose
that the batch has: the consent has ended, or was denied. Batches are never changed, so that such a patient
goes to the list of those who withdrew.

Guarantee: nobody whom a source shows as withdrawn is written, and whoever is in a batch is in the list before
anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.patients.importers.batches import Held, add_batch, held_patients
from client.patients.importers.gather import Found, gather
from client.patients.importers.sources import Source, is_empty, kind_of
from client.patients.records import PatientRecord, PatientSet, Problem, pseudonym
from client.patients.withdrawals import add_withdrawn, is_pseudonym, read_withdrawn
from common.errors import ImportRefusedError

LISTED = "withdrawn: the consent was taken back at this site"
LEFT = "withdrawn: the consent was taken back"


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """What became of a source's patients.

    Attributes:
        batch: Where those who are new were written; None where nobody is.
        patients: Those who were written, and a problem for each of the others.
        left: How many of earlier batches take part no more from now on, because the source says so.
    """

    batch: Path | None
    patients: PatientSet
    left: int


def import_patients(source: Source, data: Path, withdrawn_file: Path, key: bytes) -> Arrivals:
    """Write a source's patients as the next batch, and note who has left.

    Args:
        source: As it was read.
        data: The site's folder of batches, or an empty one.
        withdrawn_file: The list of those who withdrew.
        key: The site's secret for pseudonyms.

    Raises:
        ImportRefusedError: It was imported before, or nothing of it is new and nobody has left.
        BadFileError: The list of withdrawn patients, an image or an older batch cannot be read.
    """
    _require_source(source, data)
    held = held_patients(data, key)
    gone = frozenset(_gone(source, held))
    # First: whatever becomes of the rest, they take part no more.
    left = add_withdrawn(withdrawn_file, sorted(gone), key) if gone else 0
    staying = _staying(source.patients, read_withdrawn(withdrawn_file, key))
    if left and not any(record.patient_id not in held for record in staying.records):
        return Arrivals(batch=None, patients=replace(staying, records=(), places=()), left=left)
    records = tuple(_hidden(record, key) for record in staying.records)
    place, fresh = add_batch(data, replace(staying, records=records), kind=source.kind, key=key)
    return Arrivals(batch=place, patients=fresh, left=left)


def _require_source(source: Source, data: Path) -> None:
    if source.kind == "imported":
        raise ImportRefusedError(data, "the source was written by an import itself")
    kind = "imported" if is_empty(data) else kind_of(data)
    if kind != "imported":
        raise ImportRefusedError(data, f"it holds patients of its own ({kind}), which are used as they are")


def _gone(source: Source, held: Mapping[str, Held]) -> Iterator[str]:
    """Who is in a batch and, by the source, may not be used as the batch says; some perhaps twice."""
    for record in source.patients.records:
        known = held.get(record.patient_id)
        if known is not None:
            ended = known.consent - record.consent if source.tells_consent else ()
            if record.withdrawn or ended:
                yield record.patient_id
    # Also of a patient of whom nothing else can be used: notes are often removed with the consent.
    yield from (one.ended for one in source.patients.problems if one.ended is not None and one.ended in held)


def _staying(patients: PatientSet, withdrawn: frozenset[str]) -> PatientSet:
    """The patients who did not withdraw; a problem for each of the others."""
    met: list[Found | Problem] = list(patients.problems)
    for record, place in zip(patients.records, patients.places, strict=True):
        if withdrawn & {record.patient_id, record.group}:
            met.append(place.problem(LISTED))
        elif record.withdrawn:
            met.append(place.problem(LEFT))
        else:
            met.append(Found(record=record, file=place.file, line=place.line))
    return gather(met)


def _hidden(record: PatientRecord, key: bytes) -> PatientRecord:
    """The record without ids of the source that a site's own folder may show: of the case, of the group."""
    group = record.group
    if group is not None and not is_pseudonym(group):
        # Apart from the pseudonyms of patients: a family is often called like its first patient.
        group = pseudonym(key, f"group {group}")
    return replace(record, case_id=record.patient_id, group=group)
