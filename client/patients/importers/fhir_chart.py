"""What a FHIR export says of one patient, resource by resource, and the record that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.patients.importers.fhir_consent import Decision, settle
from client.patients.importers.fhir_shapes import age_at
from client.patients.importers.files import MAX_NOTE_BYTES
from client.patients.photos import ImageRef, SlideRef
from client.patients.records import Finding, PatientRecord, Place
from common.tracks import RARE_DISEASE

BEFORE_BIRTH = "HP:0030674 Antenatal onset"


@dataclass(frozen=True, kw_only=True)
class Dated:
    """A document or a photo, with the day that it is of; empty where it does not say."""

    day: str
    text: str = ""
    photo: ImageRef | None = None


@dataclass(kw_only=True)
class Chart:
    """One patient, while the export is read.

    Attributes:
        pseudonym: Stands for the patient.
        place: Of the Patient resource.
        sex: One of the records' words.
        birth: Date of birth, as exact as it was written; never in the record.
        deceased: Whether the patient is known to have died.
        seen: The last day that something was recorded.
        diagnosis: Answer id, with the place that it came from.
        onset: Age when it began.
        observed: Findings by id.
        excluded: Findings that were looked for and not found.
        notes: Documents.
        photos: Photos of the face.
        slides: Tiles.
        decisions: What the patient said of consent.
        refusals: How many resources of this patient were refused.
        refused_at: The first of them.
    """

    pseudonym: str
    place: Place
    sex: str = "unknown"
    birth: str = ""
    deceased: bool = False
    seen: str = ""
    diagnosis: tuple[str, Place] | None = None
    onset: str | None = None
    observed: dict[str, Finding] = field(default_factory=dict)
    excluded: dict[str, Finding] = field(default_factory=dict)
    notes: list[Dated] = field(default_factory=list)
    photos: list[Dated] = field(default_factory=list)
    slides: list[SlideRef] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    refusals: int = 0
    refused_at: Place | None = None

    def see(self, found: str) -> None:
        """The patient was seen on a day."""
        self.seen = max(self.seen, found)

    def refuse(self, place: Place) -> None:
        """A resource of this patient was refused."""
        self.refusals += 1
        self.refused_at = self.refused_at or place

    def diagnose(self, answer_id: str, onset: str | None, place: Place) -> None:
        """Take a diagnosis; ValueError if it is another one than before."""
        if self.diagnosis is not None and self.diagnosis[0] != answer_id:
            first = self.diagnosis[1]
            raise ValueError(
                f"code: another diagnosis than in {first.file}, line {first.line}; expected one a patient"
            )
        self.diagnosis = self.diagnosis or (answer_id, place)
        self.onset = self.onset or onset

    def find(self, finding: Finding, *, present: bool) -> None:
        """Take a finding; ValueError if it was both found and not found."""
        where, other = (self.observed, self.excluded) if present else (self.excluded, self.observed)
        if finding.id in other:
            raise ValueError("code: found in one resource and not found in another")
        known = where.get(finding.id)
        if known is None or known.onset is None:
            where[finding.id] = finding

    def age_on(self, found: str) -> str | None:
        """The age on a day; before birth is an age too. None where the date of birth is not known."""
        return (age_at(self.birth, found) or BEFORE_BIRTH) if self.birth else None

    def record(self, consent: frozenset[str] | None) -> PatientRecord:
        """The patient; ValueError if there is nothing to learn from, or if the dates cannot be.

        Args:
            consent: What all patients agreed to, instead of their own Consents.
        """
        own, withdrawn = settle(self.decisions)
        return PatientRecord(
            patient_id=self.pseudonym,
            case_id=self.pseudonym,
            sex=self.sex,
            age=self._last_age(),
            onset=self.onset,
            deceased=self.deceased,
            observed=tuple(self.observed.values()),
            excluded=tuple(self.excluded.values()),
            note=self._note(),
            photo=self.last_photo(),
            slides=tuple(self.slides),
            label={} if self.diagnosis is None else {RARE_DISEASE.name: self.diagnosis[0]},
            consent=own if consent is None else consent,
            withdrawn=withdrawn,
        )

    def last_photo(self) -> ImageRef | None:
        """The newest photo; of several of one day the first."""
        newest = max(self.photos, key=lambda photo: photo.day, default=None)
        return None if newest is None else newest.photo

    def _last_age(self) -> str | None:
        if not self.birth or not self.seen:
            return None
        age = age_at(self.birth, self.seen)
        if age is None:
            raise ValueError("birthDate: after the last day that the patient was seen")
        return age

    def _note(self) -> str | None:
        """All documents by their days, an empty line between two."""
        text = "\n\n".join(note.text for note in sorted(self.notes, key=lambda note: note.day))
        if len(text.encode()) > MAX_NOTE_BYTES:
            raise ValueError(f"all notes together: larger than {MAX_NOTE_BYTES} bytes")
        return text or None
