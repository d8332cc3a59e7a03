"""What is taken of each type of FHIR resource.

Of every type there are two functions: one says why a resource is of no use here (it is then counted), the
other takes what it says into the patient's chart, or raises ValueError, which never quotes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from client.patients.ages import read_duration
from client.patients.importers.fhir_attachments import (
    TEXT,
    local_path,
    media_type,
    read_picture,
    read_text,
    read_tiles_of,
)
from client.patients.importers.fhir_chart import Chart, Dated
from client.patients.importers.fhir_codes import (
    ABSENT,
    DISEASE_SYSTEMS,
    FACES,
    HPO_SYSTEMS,
    PRESENT,
    SLIDE_MODALITIES,
    answer_of,
    disease_codes,
    finding_codes,
)
from client.patients.importers.fhir_consent import consent_unread, read_consent
from client.patients.importers.fhir_shapes import Row, any_codes, codes, codings, day
from client.patients.importers.fields import share_finding
from client.patients.importers.files import read_slide_file
from client.patients.records import SEXES, Place
from client.patients.slides import Tiling
from common.tracks import AnswerList

_NOT_FINAL = ("registered", "preliminary", "entered-in-error", "cancelled", "unknown")
_NOT_HELD = ("planned", "cancelled", "entered-in-error", "unknown")
_AGE_UNITS = {"a": "P{}Y", "mo": "P{}M", "wk": "P{}W", "d": "P{}D"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What every resource is read with.

    Attributes:
        folder: The export's.
        answers: Of the plan; any diagnosis will do if absent.
        today: The day that no date may lie after.
        tiling: How whole slides are cut.
    """

    folder: Path
    answers: AnswerList | None
    today: date
    tiling: Tiling

    def day(self, row: Row, key: str) -> str:
        """The date under a key; empty where there is none."""
        return day(row[key], key, self.today) if row.get(key) is not None else ""


@dataclass(frozen=True, kw_only=True)
class ResourceType:
    """How one type is read.

    Attributes:
        unread: Why a resource is counted only; None if it is read. It may be of any shape yet.
        take: Takes a resource of the right shape.
        subject: The key that says whom it is about.
    """

    unread: Callable[[Row], str | None]
    take: Callable[[Row, Chart, Place, Reading], None]
    subject: str = "subject"


def read_patient(row: Row, pseudonym: str, place: Place, reading: Reading) -> Chart:
    """The chart of a Patient resource: sex, birth and death, never a name, a number or an address."""
    died = reading.day(row, "deceasedDateTime")
    sex = row.get("gender") or "unknown"
    if sex not in SEXES:
        raise ValueError(f"gender: expected one of {', '.join(SEXES)}")
    return Chart(
        pseudonym=pseudonym,
        place=place,
        sex=sex,
        birth=reading.day(row, "birthDate"),
        deceased=bool(died) or row.get("deceasedBoolean") is True,
    )


def why_unread(row: Row, name: str, resource_type: ResourceType) -> str | None:
    """Why a resource is counted only; None if it is read, or if its shape is not what it should be."""
    is_known = row.get("resourceType") == name and (name == "Condition" or isinstance(row.get("status"), str))
    return resource_type.unread(row) if is_known else None


def _encounter_unread(row: Row) -> str | None:
    if row.get("status") in _NOT_HELD:
        return "not held"
    return None if row.get("period") else "without a time"


def _take_encounter(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    for key in ("start", "end"):
        chart.see(reading.day(row["period"], key))


def _condition_unread(row: Row) -> str | None:
    systems = {system for system, _, _ in codings(row.get("code"))}
    if not systems & (HPO_SYSTEMS | DISEASE_SYSTEMS.keys()):
        return "without a code of OMIM, ORPHA, MONDO or HPO"
    status = codes(row.get("verificationStatus"))
    if "confirmed" in status and len(status) == 1:
        return None
    if status == {"refuted"} and systems & HPO_SYSTEMS:
        return None
    return "not confirmed"


def _take_condition(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    present = codes(row["verificationStatus"]) == {"confirmed"}
    onset = _onset(row, chart, reading) if present else None
    for finding_id, label in finding_codes(row["code"]):
        _find(chart, finding_id, label, onset, present=present)
    if present and disease_codes(row["code"]):
        chart.diagnose(answer_of(row["code"], reading.answers), onset, place)


def _onset(row: Row, chart: Chart, reading: Reading) -> str | None:
    """The age when it began; None where the resource says it in a form that is no age."""
    if row.get("onsetDateTime") is not None:
        return chart.age_on(reading.day(row, "onsetDateTime"))
    age = row.get("onsetAge") or {}
    unit, value = _AGE_UNITS.get(str(age.get("code") or age.get("unit"))), age.get("value")
    if unit is None or value is None or value != int(value):
        return None
    text = unit.format(int(value))
    if read_duration(text) is None:
        raise ValueError("onsetAge: expected at most 130 years")
    return text


def _observation_unread(row: Row) -> str | None:
    if not _asks_of_finding(row) and not _names_finding(row):
        return "without a code of HPO"
    if row.get("status") in _NOT_FINAL:
        return "not final"
    return "without a value, for a reason" if row.get("dataAbsentReason") else None


def _take_observation(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    chart.see(reading.day(row, "effectiveDateTime"))
    if _names_finding(row):
        negative = any_codes(row.get("interpretation")) & ABSENT
        for finding_id, label in finding_codes(row["valueCodeableConcept"]):
            _find(chart, finding_id, label, None, present=not negative)
        return
    present = _is_present(row)
    for finding_id, label in finding_codes(row["code"]):
        _find(chart, finding_id, label, None, present=present)


def _asks_of_finding(row: Row) -> bool:
    return any(system in HPO_SYSTEMS for system, _, _ in codings(row.get("code")))


def _names_finding(row: Row) -> bool:
    return any(system in HPO_SYSTEMS for system, _, _ in codings(row.get("valueCodeableConcept")))


def _is_present(row: Row) -> bool:
    """Whether a finding was found: by its value, else by its interpretation, else because it was noted."""
    if isinstance(row.get("valueBoolean"), bool):
        return bool(row["valueBoolean"])
    has_value = any(key.startswith("value") for key in row)
    said = codes(row.get("valueCodeableConcept")) if has_value else any_codes(row.get("interpretation"))
    if not said and not has_value:
        return True
    if bool(said & PRESENT) == bool(said & ABSENT):
        raise ValueError("value: expected present or absent, yes or no")
    return bool(said & PRESENT)


def _find(chart: Chart, finding_id: str, label: str, onset: str | None, *, present: bool) -> None:
    if not label:
        raise ValueError("code: expected the term's name as display beside the code of HPO")
    chart.find(share_finding(finding_id, label.strip(), onset), present=present)


def _document_unread(row: Row) -> str | None:
    if row.get("status") != "current":
        return "not current"
    if row.get("docStatus") in ("preliminary", "entered-in-error"):
        return "not final"
    return None if _texts(row) else "without plain text"


def _take_document(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    texts = _texts(row)
    if len(texts) > 1:
        raise ValueError(f"content: expected one plain text, got {len(texts)}")
    found = reading.day(row, "date")
    chart.see(found)
    chart.notes.append(Dated(day=found, text=_at("content.attachment", read_text, reading.folder, texts[0])))


def _texts(row: Row) -> list[Any]:
    content = row.get("content")
    return [item["attachment"] for item in _objects(content) if media_type(item.get("attachment")) == TEXT]


def _media_unread(row: Row) -> str | None:
    if row.get("status") != "completed":
        return "not completed"
    if _is_slide(row):
        return None
    if not media_type(row.get("content")).startswith("image/"):
        return "no image"
    body = codes(row.get("bodySite"))
    return "of another part of the body than the face" if body and not body & FACES else None


def _take_media(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    found = reading.day(row, "createdDateTime")
    chart.see(found)
    if _is_slide(row):
        chart.slides += _at("content", read_tiles_of, reading.folder, reading.tiling, row["content"])
    else:
        photo = _at("content", read_picture, reading.folder, row["content"])
        chart.photos.append(Dated(day=found, photo=photo))


def _is_slide(row: Row) -> bool:
    return bool(codes(row.get("modality")) & SLIDE_MODALITIES)


def _imaging_unread(row: Row) -> str | None:
    if row.get("status") != "available":
        return "not available"
    listed: list[Any] = [*_objects(row.get("modality"))]
    listed += [series.get("modality") for series in _objects(row.get("series"))]
    if not codes({"coding": listed}) & SLIDE_MODALITIES:
        return "of another modality than microscopy"
    return None if _endpoints(row) else "without an endpoint"


def _take_imaging(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    chart.see(reading.day(row, "started"))
    address_by_id = {
        f"#{one.get('id')}": one.get("address")
        for one in _objects(row.get("contained"))
        if one.get("resourceType") == "Endpoint"
    }
    for reference in dict.fromkeys(_endpoints(row)):
        if reference not in address_by_id:
            raise ValueError("endpoint: expected a contained Endpoint, its address a path inside the folder")
        path = _at("endpoint", local_path, address_by_id[reference])
        chart.slides += _at("endpoint", read_slide_file, reading.folder, reading.tiling, path)


def _endpoints(row: Row) -> list[str]:
    holders = [row, *_objects(row.get("series"))]
    listed = [one.get("reference") for holder in holders for one in _objects(holder.get("endpoint"))]
    return [one for one in listed if isinstance(one, str)]


def _objects(listed: Any) -> Iterable[Mapping[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


def _at(place: str, read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _take_consent(row: Row, chart: Chart, place: Place, reading: Reading) -> None:
    chart.decisions.append(read_consent(row, reading.today))


READ_TYPES: Mapping[str, ResourceType] = {
    "Consent": ResourceType(unread=consent_unread, take=_take_consent, subject="patient"),
    "Encounter": ResourceType(unread=_encounter_unread, take=_take_encounter),
    "Condition": ResourceType(unread=_condition_unread, take=_take_condition),
    "Observation": ResourceType(unread=_observation_unread, take=_take_observation),
    "DocumentReference": ResourceType(unread=_document_unread, take=_take_document),
    "Media": ResourceType(unread=_media_unread, take=_take_media),
    "ImagingStudy": ResourceType(unread=_imaging_unread, take=_take_imaging),
}
