"""What reaches a model: a note, sex, age, findings, images, and nothing else of a record.

`ModelView` is the gate. Everything that names or implies the diagnosis (label, group, ids) stays on the
record. A note can be written from structured findings in the template of the public cases (after
monarch-initiative/phenopacket2prompt): who, findings without an age, onset, exclusions, findings by age.

With ``facial="hide"`` the findings that a photo shows are left out of note, observed and excluded alike,
so that the photo carries something the text lacks. The note is then written anew from the structured
findings; a real hospital's own note cannot be hidden from and is refused.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.patients.ages import DAYS_PER_MONTH, order, phrase, read_duration
from client.patients.photos import PhotoRef, SlideRef
from client.patients.records import Finding, PatientRecord
from common.errors import BadFileError

Facial = Literal["keep", "hide"]

ADULT_YEARS = 18
NO_FINDINGS = "No further findings were recorded."
NOBODY_KNOWN = "Age and sex of the patient are not known."

# Labels of HPO begin with a capital; these first words keep it inside a sentence, as in the public notes.
# fmt: off
_PROPER_WORDS = frozenset(
    {
        "Babinski", "Brushfield", "Candida", "Chiari", "Crohn's", "Dandy-Walker", "Duane", "Ebstein",
        "Gowers", "Hodgkin", "Horner", "IgA", "IgD", "IgE", "IgG", "IgM", "Lafora", "Lewy", "Lisch",
        "Madelung", "Meckel", "Mobitz", "Moyamoya", "Peters", "Pierre-Robin", "Raynaud", "Rieger",
        "Schmorl's", "Wolff-Parkinson-White", "Wormian",
    }
)
# fmt: on
_PEOPLE = {"male": ("boy", "man"), "female": ("girl", "woman")}
_ANYBODY = ("child", "individual")


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelView:
    """The part of a patient that a model may see.

    Guarantee: no label, group, id, consent or other field of a record is in it, nor changes it.

    Attributes:
        note: The note; None where a patient has neither a note nor findings.
        sex: One of ``records.SEXES``.
        age: Age when last seen, in one of the forms of `client.patients.ages`.
        observed: Findings that were found.
        excluded: Findings that were looked for and not found.
        photo: The face.
        slides: Tiles of slides.
    """

    note: str | None
    sex: str
    age: str | None
    observed: tuple[Finding, ...]
    excluded: tuple[Finding, ...]
    photo: PhotoRef | None
    slides: tuple[SlideRef, ...]


def model_view(
    record: PatientRecord, *, facial: Facial = "keep", facial_ids: frozenset[str] = frozenset()
) -> ModelView:
    """What a model may see of a patient; with ``hide``, without the findings that the photo shows.

    Raises:
        ValueError: ``hide`` without any facial ids, or of a note that no findings stand behind.
    """
    hidden = _hidden_ids(facial, facial_ids)
    return ModelView(
        note=_note_of(record, facial, facial_ids),
        sex=record.sex,
        age=record.age,
        observed=hide_findings(record.observed, hidden),
        excluded=hide_findings(record.excluded, hidden),
        photo=record.photo,
        slides=record.slides,
    )


def write_note(
    record: PatientRecord, *, facial: Facial = "keep", facial_ids: frozenset[str] = frozenset()
) -> str:
    """A note from a record's structured findings, in the template of the public cases.

    Guarantee: with hide no facial finding is named, neither as observed nor as excluded, and a patient
    whose only findings are facial keeps a note that says who, and that no further findings were recorded.
    """
    hidden = _hidden_ids(facial, facial_ids)
    observed = hide_findings(record.observed, hidden)
    excluded = hide_findings(record.excluded, hidden)
    sentences = [
        _presentation(record, [finding for finding in observed if finding.onset is None], bool(observed)),
        f"Disease onset was {phrase(record.onset)}." if record.onset else None,
        f"The following were looked for and not found: {_listed(excluded)}." if excluded else None,
        *_history(observed),
        None if observed else NO_FINDINGS,
        "The patient has died." if record.deceased else None,
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def hide_findings(findings: Iterable[Finding], facial_ids: frozenset[str]) -> tuple[Finding, ...]:
    """The findings whose ids are not among ``facial_ids``, in order."""
    return tuple(finding for finding in findings if finding.id not in facial_ids)


def read_facial_ids(path: Path) -> frozenset[str]:
    """The ids of a table of facial terms: a CSV file with a column ``id``, other columns unread.

    Raises:
        BadFileError: The table has no such column, or a row has no id in it.
    """
    with path.open(encoding="utf-8", newline="") as file:
        ids = [(row.get("id") or "").strip() for row in csv.DictReader(file)]
    if not ids or not all(ids):
        raise BadFileError(path, "expected a table with an id in each row")
    return frozenset(ids)


def _note_of(record: PatientRecord, facial: Facial, facial_ids: frozenset[str]) -> str | None:
    has_findings = bool(record.observed or record.excluded)
    if facial == "keep" and record.note is not None:
        return record.note
    if has_findings:
        return write_note(record, facial=facial, facial_ids=facial_ids)
    if record.note is not None:
        raise ValueError("Expected findings behind the note: facial ones cannot be hidden in free text")
    return None


def _hidden_ids(facial: Facial, facial_ids: frozenset[str]) -> frozenset[str]:
    if facial not in ("keep", "hide"):
        raise ValueError(f"Expected facial as keep or hide, got {facial!r}")
    if facial == "hide" and not facial_ids:
        raise ValueError("Expected the ids of the facial findings to hide, got none")
    return facial_ids if facial == "hide" else frozenset()


def _presentation(record: PatientRecord, undated: list[Finding], any_observed: bool) -> str | None:
    who = _who(record)
    if undated:
        return f"The patient {f'{who} who ' if who else ''}presented with {_listed(undated)}."
    if who:
        return f"The patient {who}."
    return None if any_observed else NOBODY_KNOWN


def _who(record: PatientRecord) -> str | None:
    """``was a 6-year-old girl``; ``was female`` without an age in units of time; None without both."""
    measured = _counted_age(record.age)
    if measured is None:
        return f"was {record.sex}" if record.sex in _PEOPLE else None
    number, unit = measured
    is_adult = unit == "year" and number >= ADULT_YEARS
    person = _PEOPLE.get(record.sex, _ANYBODY)[is_adult]
    article = "an" if str(number).startswith("8") or number in (11, 18) else "a"
    return f"was {article} {number}-{unit}-old {person}"


def _counted_age(age: str | None) -> tuple[int, str] | None:
    """Years from the second birthday on, months before it, days in the first month."""
    duration = read_duration(age) if age else None
    if duration is None:
        return None
    months = 12 * duration.years + duration.months
    if months >= 24:
        return months // 12, "year"
    if months:
        return round(months + duration.days / DAYS_PER_MONTH), "month"
    return duration.days, "day"


def _history(findings: Iterable[Finding]) -> list[str]:
    """One sentence an age at which findings appeared."""
    by_age: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.onset is not None:
            by_age.setdefault(finding.onset, []).append(finding)
    return [_noted(age, by_age[age]) for age in sorted(by_age, key=order)]


def _noted(age: str, findings: list[Finding]) -> str:
    when = phrase(age)
    verb = "was" if len(findings) == 1 else "were"
    return f"{when[0].upper()}{when[1:]}, {_listed(findings)} {verb} noted."


def _listed(findings: Iterable[Finding]) -> str:
    *first, last = [_inside_sentence(finding.label) for finding in findings]
    return f"{', '.join(first)} and {last}" if first else last


def _inside_sentence(label: str) -> str:
    keeps_capital = not label[1:2].islower() or label.partition(" ")[0] in _PROPER_WORDS
    return label if keeps_capital else label[0].lower() + label[1:]
