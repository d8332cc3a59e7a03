"""What of a source a run could use, and every reason why not: for a site's people, before anything runs.

Guarantee: every patient of the source is accepted or has a line, and no line quotes the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.patients.identifiers import find_identifiers, in_words
from client.patients.importers.sources import Source
from client.patients.records import Exclusion, PatientRecord, Place, Problem, eligible
from common.plan import RunPlan
from common.tracks import TRACKS, Modality


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What was found.

    Attributes:
        kind: Which importer read the source.
        accepted: Patients that can be used, for the plan if there is one.
        refused: What cannot be used: the source's problems, then what the plan has no use for.
        warnings: Notes in which identifiers seem to be left.
        unread: What the importer counts and does not read, by reason.
    """

    kind: str
    accepted: tuple[PatientRecord, ...]
    refused: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    unread: Mapping[str, int]


def check_source(source: Source, plan: RunPlan | None = None) -> DataCheck:
    """The source, as a run of the plan would find it; as any run would, if there is no plan."""
    records, places = source.patients.records, _places(source)
    reasons = [None if plan is None else _no_use(record, plan) for record in records]
    return DataCheck(
        kind=source.kind,
        accepted=tuple(one for one, reason in zip(records, reasons, strict=True) if reason is None),
        refused=(
            *source.patients.problems,
            *(place.problem(why) for place, why in zip(places, reasons, strict=True) if why is not None),
        ),
        warnings=tuple(_warnings(records, places)),
        unread=source.unread,
    )


def counts(records: Sequence[PatientRecord]) -> list[tuple[str, int]]:
    """What patients bring, as (what, number of patients)."""
    labeled = Counter(track for record in records for track in record.label)
    return [
        ("patients", len(records)),
        ("with a note", sum(record.note is not None for record in records)),
        ("with a photo", sum(record.photo is not None for record in records)),
        ("with slides", sum(bool(record.slides) for record in records)),
        ("tiles of slides", sum(len(record.slides) for record in records)),
        ("with findings", sum(bool(record.observed or record.excluded) for record in records)),
        ("without any consent", sum(not record.consent for record in records)),
        ("withdrawn", sum(record.withdrawn for record in records)),
        *((f"with an answer for {track}", labeled[track]) for track in sorted(labeled)),
    ]


def _places(source: Source) -> tuple[Place, ...]:
    return source.patients.places or (Place(file=source.kind),) * len(source.patients.records)


def _no_use(record: PatientRecord, plan: RunPlan) -> str | None:
    """Why the plan has no use for a patient; None if it has."""
    for out in eligible((record,), plan.purpose).left_out:
        if out.reason is Exclusion.WITHDRAWN:
            return "withdrawn: the consent was taken back"
        return f"consent: none for the plan's purpose, {plan.purpose}"
    tracks = [track.track for track in plan.tracks if track.track in record.label]
    if not tracks:
        asked = ", ".join(track.track for track in plan.tracks)
        return f"label: no answer for {asked}, so that there is nothing to learn from"
    if any(_can_be_read(record, track) for track in tracks):
        return None
    return f"nothing to learn from: no {' and no '.join(_WANTED[TRACKS[track].modality] for track in tracks)}"


_WANTED = {Modality.TEXT: "note and no finding", Modality.IMAGE: "slide"}


def _can_be_read(record: PatientRecord, track: str) -> bool:
    """Whether the track's student has something to read of a patient."""
    if TRACKS[track].modality is Modality.IMAGE:
        return bool(record.slides)
    return bool(record.note or record.observed or record.excluded)


def _warnings(records: Iterable[PatientRecord], places: Iterable[Place]) -> Iterator[Problem]:
    for record, place in zip(records, places, strict=True):
        found = find_identifiers(record.note or "")
        if found:
            yield place.problem(f"note: identifiers seem to be left: {in_words(found)}")
