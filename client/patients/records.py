"""A patient as a site keeps it, and who may take part.

A record holds a pseudonym, never a name, a date or an address. What could not be read is listed as a
`Problem` beside the records; who may not take part is listed with the reason. Printing a record shows its
pseudonym only, so that no log can carry more.
"""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from client.patients.ages import is_age
from client.patients.photos import PhotoRef, SlideRef

__all__ = [
    "SCHEMA",
    "SEXES",
    "Eligibility",
    "Exclusion",
    "Finding",
    "LeftOut",
    "PatientRecord",
    "PatientSet",
    "PhotoRef",
    "Place",
    "Problem",
    "SlideRef",
    "eligible",
    "is_line",
    "is_text",
    "pseudonym",
    "require_key",
]

SCHEMA = 1
SEXES = ("male", "female", "other", "unknown")
SMALLEST_KEY = 16
LONGEST_LINE = 400

_HPO_ID = re.compile(r"HP:[0-9]{7}")
_AGE_EXPECTATION = (
    "an ISO 8601 duration of at most 130 years, GA<weeks>w<days>d, or an HPO onset class with its label"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding that was looked for.

    Attributes:
        id: ``HP:`` and seven digits.
        label: The term's name, one line.
        onset: The age when it appeared, if that is known.
    """

    id: str
    label: str
    onset: str | None = None

    def __post_init__(self) -> None:
        if _HPO_ID.fullmatch(self.id) is None:
            raise ValueError("Expected a finding's id as HP: and seven digits")
        if not is_line(self.label):
            raise ValueError(f"Expected a finding's label as one line of 1 to {LONGEST_LINE} characters")
        if self.onset is not None and not is_age(self.onset):
            raise ValueError(f"Expected a finding's onset as {_AGE_EXPECTATION}")


@dataclass(frozen=True, kw_only=True, repr=False)
class PatientRecord:
    """One patient, as read by an importer or drawn by a simulation.

    Attributes:
        patient_id: Pseudonym; for imported data the keyed hash of the source's id.
        case_id: Id used in predictions: the pseudonym, unless the source's id may be shown (public data).
        sex: One of ``SEXES``.
        age: Age when last seen: a duration, a gestational age or an onset class (`client.patients.ages`).
        onset: Age when the disease began, in the same forms.
        deceased: Whether the patient is known to have died.
        observed: Findings that were found.
        excluded: Findings that were looked for and not found.
        note: The clinical note; None where there is none.
        photo: The face; None where there is none.
        slides: Tiles of slides.
        label: The diagnosis: answer id by name of the track.
        consent: Purposes that the patient agreed to (``research``).
        withdrawn: Whether the patient took the consent back.
        group: Publication or family; the strict split never puts one group on two sides.
    """

    patient_id: str
    case_id: str
    sex: str = "unknown"
    age: str | None = None
    onset: str | None = None
    deceased: bool = False
    observed: tuple[Finding, ...] = ()
    excluded: tuple[Finding, ...] = ()
    note: str | None = None
    photo: PhotoRef | None = None
    slides: tuple[SlideRef, ...] = ()
    label: Mapping[str, str] = field(default_factory=dict, hash=False)
    consent: frozenset[str] = frozenset()
    withdrawn: bool = False
    group: str | None = None

    def __post_init__(self) -> None:
        # Copied, so that whoever passed the mapping cannot change the record.
        object.__setattr__(self, "label", dict(self.label))
        lines = (("patient_id", self.patient_id), ("case_id", self.case_id), ("group", self.group))
        for name, text in lines:
            if text is not None and not is_line(text):
                raise ValueError(f"Expected {name} as one line of 1 to {LONGEST_LINE} characters")
        if self.sex not in SEXES:
            raise ValueError(f"Expected sex as one of {', '.join(SEXES)}")
        for name, age in (("age", self.age), ("onset", self.onset)):
            if age is not None and not is_age(age):
                raise ValueError(f"Expected {name} as {_AGE_EXPECTATION}")
        if self.note is not None and not is_text(self.note):
            raise ValueError("Expected note as text that is not empty")
        if not (self.note or self.photo or self.slides or self.observed or self.excluded):
            raise ValueError("Expected a note, a photo, a slide or a finding, got none of them")

    def __repr__(self) -> str:
        return f"PatientRecord(patient_id={self.patient_id!r})"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in a site's files that could not be read; one line that never quotes a patient's data.

    Attributes:
        file: The file's path inside the folder that was read.
        line: Its line, counted from 1; None if the whole file is meant.
        reason: What was expected, or what was found.
        ended: Pseudonym of a patient of whom there is no record, where the file says that no consent is left.
    """

    file: str
    line: int | None = None
    reason: str
    ended: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return " ".join(f"{place}: {self.reason}".split())


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a site's files a patient was found; for the site's own eyes.

    Attributes:
        file: The file's path inside the folder that was read.
        line: Its line, counted from 1; None if the whole file is the patient's.
    """

    file: str
    line: int | None = None

    def problem(self, reason: str, *, ended: str | None = None) -> Problem:
        """Something that is wrong with what was found here; ``ended`` as of `Problem`."""
        return Problem(file=self.file, line=self.line, reason=reason, ended=ended)


@dataclass(frozen=True, kw_only=True)
class PatientSet:
    """What an importer read, and what it could not.

    Attributes:
        records: The patients.
        problems: What could not be read.
        places: Of each record, in their order; empty where the records came from no file.

    Guarantee: every patient of the source is a record or a problem.
    """

    records: tuple[PatientRecord, ...]
    problems: tuple[Problem, ...] = ()
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if self.places and len(self.places) != len(self.records):
            raise ValueError(
                f"Expected a place of each of {len(self.records)} records, got {len(self.places)}"
            )


class Exclusion(StrEnum):
    """Why a patient may not take part."""

    WITHDRAWN = "consent withdrawn"
    NO_CONSENT = "no consent for this purpose"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A patient who may not take part, and why."""

    patient_id: str
    reason: Exclusion


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Who may take part for a purpose, and who may not.

    Guarantee: every patient is in ``kept`` or in ``left_out``, and in one of them only.
    """

    kept: tuple[PatientRecord, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def counts(self) -> Mapping[Exclusion, int]:
        """How many patients were left out for each reason, reasons without any included."""
        counted = Counter(out.reason for out in self.left_out)
        return {reason: counted[reason] for reason in Exclusion}


def eligible(records: Iterable[PatientRecord], purpose: str) -> Eligibility:
    """Who agreed to ``purpose`` and did not withdraw; the others with the reason, in the order given."""
    if not is_line(purpose):
        raise ValueError("Expected a purpose, got an empty one")
    kept: list[PatientRecord] = []
    left_out: list[LeftOut] = []
    for record in records:
        reason = _exclusion(record, purpose)
        if reason is None:
            kept.append(record)
        else:
            left_out.append(LeftOut(patient_id=record.patient_id, reason=reason))
    return Eligibility(kept=tuple(kept), left_out=tuple(left_out))


def pseudonym(key: bytes, source_id: str) -> str:
    """The keyed hash of an id: HMAC-SHA256, 64 hexadecimal digits.

    Guarantee: without the key, which stays at the site, a pseudonym cannot be tried against known ids;
    two sites give one person two pseudonyms.
    """
    require_key(key)
    if not source_id:
        raise ValueError("Expected a source id, got an empty one")
    return hmac.new(key, source_id.encode(), hashlib.sha256).hexdigest()


def require_key(key: bytes) -> None:
    """Refuse a key for pseudonyms that could be guessed."""
    if len(key) < SMALLEST_KEY:
        raise ValueError(f"Expected a key of at least {SMALLEST_KEY} bytes, got {len(key)}")


def is_line(text: str) -> bool:
    """Whether the text is one line that can be printed, neither empty nor too long nor padded."""
    return 0 < len(text) <= LONGEST_LINE and text.isprintable() and text == text.strip()


def is_text(text: str) -> bool:
    """Whether the text says something and can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def _exclusion(record: PatientRecord, purpose: str) -> Exclusion | None:
    if record.withdrawn:
        return Exclusion.WITHDRAWN
    return None if purpose in record.consent else Exclusion.NO_CONSENT
