"""GA4GH Phenopackets v2 (JSON, one patient a file) to records.

Read of a packet: the subject's id, sex, age or dates, and vital status; phenotypic features with their
onset; the one disease that was diagnosed, with its onset; the first publication of the meta data, as the
group. The note is written from these in the template of `client.patients.notes`. Not read: genomic
interpretations, measurements, biosamples, treatments, files, severity, modifiers and evidence.

Schema: phenopacket-schema.readthedocs.io, 2.0. A packet of another major version is a problem.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar

from google.protobuf import json_format
from phenopackets.schema.v2 import Individual, Interpretation, Phenopacket, Sex, VitalStatus

from client.patients.ages import age_between, is_age, onset_class
from client.patients.importers.fields import reason_of, share_finding
from client.patients.importers.files import json_files
from client.patients.importers.gather import Found, gather
from client.patients.notes import write_note
from client.patients.records import (
    Finding,
    PatientRecord,
    PatientSet,
    Problem,
    is_line,
    pseudonym,
    require_key,
)
from common.canonical import read_object
from common.errors import SettingsError, UnsupportedSchemaError
from common.tracks import RARE_DISEASE, AnswerList

T = TypeVar("T")

MAX_FILE_BYTES = 16 * 2**20
MAJOR_VERSION = 2

_SEXES = {Sex.MALE: "male", Sex.FEMALE: "female", Sex.OTHER_SEX: "other", Sex.UNKNOWN_SEX: "unknown"}
_DECEASED = {number: number == VitalStatus.DECEASED for number in VitalStatus.Status.values()}
_SOLVED = {number: number == Interpretation.SOLVED for number in Interpretation.ProgressStatus.values()}
_VERSION = re.compile(r"([0-9]{1,3})(?:\.[0-9]{1,3}){0,2}")
_FAILED_FIELD = re.compile(r"Failed to parse (\w+) field")
_UNKNOWN_KEY = re.compile(r'has no field named "([A-Za-z_][A-Za-z0-9_]{0,39})"')


@dataclass(frozen=True, kw_only=True)
class PacketRules:
    """What a site says of its packets, because they do not.

    Attributes:
        key: The site's secret for pseudonyms, at least 16 bytes.
        consent: Purposes that every patient of the folder agreed to.
        identity: Which id names a patient: the ``subject``'s (a hospital's export), or the ``packet``'s (a
            collection where subjects are called "proband").
        shows_ids: Whether the packet's id may stand in predictions (public data); else the pseudonym does.
        answers: A disease that is none of them is a problem; any disease if absent.
        today: The day that no date may lie after; the machine's own if absent.
    """

    key: bytes
    consent: frozenset[str]
    identity: Literal["subject", "packet"] = "subject"
    shows_ids: bool = False
    answers: AnswerList | None = None
    today: date = field(default_factory=date.today)

    def __post_init__(self) -> None:
        require_key(self.key)
        if self.identity not in ("subject", "packet"):
            raise ValueError(f"Expected identity as subject or packet, got {self.identity!r}")


def read_phenopackets(folder: Path, rules: PacketRules) -> PatientSet:
    """The patients of every ``*.json`` under a folder, hidden folders left out, in the order of their paths.

    Guarantee: every file is a record or a problem.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected a folder of phenopackets at {folder}")
    return gather(_read_all(folder, rules))


def _read_all(folder: Path, rules: PacketRules) -> Iterator[Found | Problem]:
    paths = sorted(json_files(folder))
    if not paths:
        yield Problem(file=folder.name, reason="expected files that end in .json, found none")
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            yield Found(record=_record(_packet(path), rules), file=name)
        except (SettingsError, UnicodeDecodeError) as error:
            reason = f"expected {error.expected}" if isinstance(error, SettingsError) else "not UTF-8"
            yield Problem(file=name, reason=reason)
        except (ValueError, UnsupportedSchemaError) as error:
            yield Problem(file=name, reason=reason_of(error))
        except OSError:
            yield Problem(file=name, reason="not readable")


def _packet(path: Path) -> Any:
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    content = read_object(path.read_bytes().decode("utf-8-sig"), "packet")
    _require_version(content)
    try:
        return json_format.ParseDict(content, Phenopacket())
    except json_format.ParseError as error:
        # The parser's own words quote the value, which may be the patient's; the field is enough.
        raise ValueError(_parse_reason(str(error))) from error


def _require_version(content: dict[str, Any]) -> None:
    meta = content.get("metaData", content.get("meta_data"))
    meta = meta if isinstance(meta, dict) else {}
    version = meta.get("phenopacketSchemaVersion", meta.get("phenopacket_schema_version"))
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None or int(match[1]) < MAJOR_VERSION:
        raise ValueError(f"metaData.phenopacketSchemaVersion: expected {MAJOR_VERSION}.x")
    if int(match[1]) > MAJOR_VERSION:
        raise UnsupportedSchemaError("phenopacket", int(match[1]), MAJOR_VERSION)


def _parse_reason(text: str) -> str:
    place = ".".join(_FAILED_FIELD.findall(text)) or "packet"
    unknown = _UNKNOWN_KEY.search(text)
    return f"{place}: " + (f"unknown keys: {unknown[1]}" if unknown else "not what the schema expects")


def _record(packet: Any, rules: PacketRules) -> PatientRecord:
    birth = _birth_date(packet.subject, rules.today)
    features = packet.phenotypic_features
    observed = _findings(features, birth, rules.today, excluded=False)
    disease_id = _diagnosis(packet, rules.answers)
    patient_id = pseudonym(rules.key, _source_id(packet, rules.identity))
    if packet.meta_data.created.ToDatetime().date() > rules.today:
        raise ValueError("metaData.created: a date in the future")
    record = PatientRecord(
        patient_id=patient_id,
        case_id=_line(packet.id, "id") if rules.shows_ids else patient_id,
        sex=_named(_SEXES, packet.subject.sex, "subject.sex"),
        age=_age(packet.subject.time_at_last_encounter, "subject.timeAtLastEncounter", birth, rules.today),
        onset=_disease_onset(packet, disease_id, birth, rules.today),
        deceased=_named(_DECEASED, packet.subject.vital_status.status, "subject.vitalStatus"),
        observed=observed,
        excluded=_findings(features, birth, rules.today, excluded=True),
        label={} if disease_id is None else {RARE_DISEASE.name: disease_id},
        consent=rules.consent,
        group=_publication(packet),
    )
    return replace(record, note=write_note(record))


def _named(meanings: Mapping[int, T], number: int, place: str) -> T:
    # Enums of protobuf are open: the parser lets any number through.
    if number not in meanings:
        raise ValueError(f"{place}: not what the schema expects")
    return meanings[number]


def _source_id(packet: Any, identity: Literal["subject", "packet"]) -> str:
    if identity == "packet":
        return _line(packet.id, "id")
    return _line(packet.subject.id, "subject.id")


def _line(text: str, name: str) -> str:
    if not is_line(text):
        raise ValueError(f"{name}: missing" if not text else f"{name}: expected one line of text, not padded")
    return text


def _birth_date(subject: Individual, today: date) -> date | None:
    if not subject.HasField("date_of_birth"):
        return None
    birth: date = subject.date_of_birth.ToDatetime().date()
    if birth > today:
        raise ValueError("subject.dateOfBirth: a date in the future")
    return birth


def _findings(features: Any, birth: date | None, today: date, *, excluded: bool) -> tuple[Finding, ...]:
    return tuple(
        _finding(feature, f"phenotypicFeatures[{index}]", birth, today)
        for index, feature in enumerate(features)
        if feature.excluded == excluded
    )


def _finding(feature: Any, place: str, birth: date | None, today: date) -> Finding:
    # An excluded finding appeared at no age.
    onset = None if feature.excluded else _age(feature.onset, f"{place}.onset", birth, today)
    try:
        return share_finding(feature.type.id, feature.type.label, onset)
    except ValueError as error:
        raise ValueError(f"{place}: {reason_of(error)}") from error


def _age(element: Any, place: str, birth: date | None, today: date) -> str | None:
    """The age that a TimeElement says; None if it says nothing."""
    kind = element.WhichOneof("element")
    if kind is None:
        return None
    try:
        age = _age_of_kind(element, kind, birth, today)
    except ValueError as error:
        raise ValueError(f"{place}: {reason_of(error)}") from error
    if not is_age(age):
        raise ValueError(f"{place}: expected a duration of at most 130 years, or weeks of gestation")
    return age


def _age_of_kind(element: Any, kind: str, birth: date | None, today: date) -> str:
    if kind == "age":
        return str(element.age.iso8601duration)
    if kind == "gestational_age":
        return f"GA{element.gestational_age.weeks}w{element.gestational_age.days}d"
    if kind == "ontology_class":
        return onset_class(element.ontology_class.id)
    if kind != "timestamp":
        raise ValueError(f"expected an age, a gestational age, an onset class or a timestamp, got {kind}")
    seen = element.timestamp.ToDatetime().date()
    if seen > today:
        raise ValueError("a date in the future")
    if birth is None:
        raise ValueError("a timestamp needs subject.dateOfBirth")
    return age_between(birth, seen)


def _diagnosis(packet: Any, answers: AnswerList | None) -> str | None:
    """The one disease that is named, not excluded, and not only suspected; None if there is none."""
    ids = {disease.term.id for disease in packet.diseases if not disease.excluded}
    ids |= {
        interpretation.diagnosis.disease.id
        for interpretation in packet.interpretations
        if _named(_SOLVED, interpretation.progress_status, "interpretations.progressStatus")
        and interpretation.diagnosis.HasField("disease")
    }
    if len(ids) > 1:
        raise ValueError(f"diseases: expected one, got {len(ids)}")
    disease_id = next((_line(text, "diseases: id") for text in ids), None)
    if answers is not None and disease_id is not None and disease_id not in answers.ids:
        raise ValueError(f"diseases: not among the plan's {len(answers)} answers")
    return disease_id


def _disease_onset(packet: Any, disease_id: str | None, birth: date | None, today: date) -> str | None:
    for disease in packet.diseases:
        if disease.term.id == disease_id and not disease.excluded:
            return _age(disease.onset, "diseases.onset", birth, today)
    return None


def _publication(packet: Any) -> str | None:
    references = (reference.id for reference in packet.meta_data.external_references)
    return next((_line(text, "externalReferences") for text in references if text.startswith("PMID:")), None)
