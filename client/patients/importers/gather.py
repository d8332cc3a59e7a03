"""One `PatientSet` from what an importer met, each patient once."""

from collections.abc import Iterable
from dataclasses import dataclass

from client.patients.records import PatientRecord, PatientSet, Place, Problem


@dataclass(frozen=True, kw_only=True)
class Found:
    """A patient, and the place of a file where it was found."""

    record: PatientRecord
    file: str
    line: int | None = None


def gather(met: Iterable[Found | Problem]) -> PatientSet:
    """The records in the order met, and the problems.

    Guarantee: everything met is a record or a problem. A patient met again is a problem that names the
    first place, since nobody but the site can say which of the two is right; the first is kept.
    """
    records: list[PatientRecord] = []
    problems: list[Problem] = []
    places: list[Place] = []
    place_by_id: dict[tuple[str, str], str] = {}
    for item in met:
        problem = item if isinstance(item, Problem) else _repetition(item, place_by_id)
        if problem is not None:
            problems.append(problem)
        elif isinstance(item, Found):
            records.append(item.record)
            places.append(Place(file=item.file, line=item.line))
            place_by_id.update(dict.fromkeys(_ids(item.record), _place(item)))
    return PatientSet(records=tuple(records), problems=tuple(problems), places=tuple(places))


def _repetition(found: Found, place_by_id: dict[tuple[str, str], str]) -> Problem | None:
    for kind, value in _ids(found.record):
        place = place_by_id.get((kind, value))
        if place is not None:
            ended = found.record.patient_id if found.record.withdrawn else None
            return Problem(
                file=found.file, line=found.line, reason=f"{kind}: the same as {place}", ended=ended
            )
    return None


def _ids(record: PatientRecord) -> tuple[tuple[str, str], ...]:
    return ("patient_id", record.patient_id), ("case_id", record.case_id)


def _place(found: Found) -> str:
    return found.file if found.line is None else f"line {found.line}"
