"""Ages as patients' records write them, and the words a note has for them.

Three forms and no other: an ISO 8601 duration (``P3Y6M``), a gestational age (``GA19w3d``) and an onset
class of the Human Phenotype Ontology (``HP:0003577 Congenital onset``, HPO 2025-01-16). Whoever knows
dates only gets the duration between them, so that no date goes further than the importer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

DAYS_PER_YEAR = 365.25
DAYS_PER_MONTH = DAYS_PER_YEAR / 12
OLDEST_YEARS = 130
LONGEST_GESTATION_WEEKS = 45

ONSET_LABELS: Mapping[str, str] = {
    "HP:0003577": "Congenital onset",
    "HP:0003581": "Adult onset",
    "HP:0003584": "Late onset",
    "HP:0003593": "Infantile onset",
    "HP:0003596": "Middle age onset",
    "HP:0003621": "Juvenile onset",
    "HP:0003623": "Neonatal onset",
    "HP:0011460": "Embryonal onset",
    "HP:0011461": "Fetal onset",
    "HP:0011462": "Young adult onset",
    "HP:0011463": "Childhood onset",
    "HP:0025708": "Early young adult onset",
    "HP:0025709": "Intermediate young adult onset",
    "HP:0025710": "Late young adult onset",
    "HP:0030674": "Antenatal onset",
    "HP:0034197": "Third trimester onset",
    "HP:0034198": "Second trimester onset",
    "HP:0034199": "Late first trimester onset",
    "HP:0410280": "Pediatric onset",
}
ONSET_PHRASES: Mapping[str, str] = {
    "HP:0003577": "at birth",
    "HP:0003581": "in adulthood",
    "HP:0003584": "in late adulthood",
    "HP:0003593": "in infancy",
    "HP:0003596": "in middle age",
    "HP:0003621": "in a juvenile age",
    "HP:0003623": "in the neonatal period",
    "HP:0011460": "in the embryonal period",
    "HP:0011461": "in the fetal period",
    "HP:0011462": "in young adulthood",
    "HP:0011463": "in childhood",
    "HP:0025708": "in early young adulthood",
    "HP:0025709": "in young adulthood",
    "HP:0025710": "in late young adulthood",
    "HP:0030674": "in the antenatal period",
    "HP:0034197": "in the third trimester of gestation",
    "HP:0034198": "in the second trimester of gestation",
    "HP:0034199": "in the late first trimester of gestation",
    "HP:0410280": "in childhood or adolescence",
}

# Hours and less are read, since newborns have them, and then left out: notes speak of days.
_DURATION = re.compile(
    r"P(?=[0-9T])(?:([0-9]{1,4})Y)?(?:([0-9]{1,4})M)?(?:([0-9]{1,5})W)?(?:([0-9]{1,5})D)?"
    r"(?:T(?=[0-9])(?:[0-9]{1,4}H)?(?:[0-9]{1,4}M)?(?:[0-9]{1,5}S)?)?"
)
_GESTATION = re.compile(r"GA([0-9]{1,2})w[0-6]d")


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The parts of an ISO 8601 duration, as written: ``P1Y18M`` has one year and 18 months."""

    years: int = 0
    months: int = 0
    days: int = 0

    @property
    def in_days(self) -> float:
        """Its length with months of 30.4 days."""
        return self.years * DAYS_PER_YEAR + self.months * DAYS_PER_MONTH + self.days


def read_duration(text: str) -> Duration | None:
    """The duration, weeks as days; None if the text is not one or spans more than 130 years."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    years, months, weeks, days = (int(part or 0) for part in match.groups())
    duration = Duration(years=years, months=months, days=7 * weeks + days)
    return duration if duration.in_days <= OLDEST_YEARS * DAYS_PER_YEAR else None


def read_gestation(text: str) -> int | None:
    """The completed weeks of a gestational age; None if the text is not one."""
    match = _GESTATION.fullmatch(text)
    if match is None or int(match[1]) > LONGEST_GESTATION_WEEKS:
        return None
    return int(match[1])


def onset_class(hpo_id: str) -> str:
    """An onset class of HPO as an age; ValueError if the id is none."""
    if hpo_id not in ONSET_LABELS:
        raise ValueError("Expected the id of an HPO onset class, got another")
    return f"{hpo_id} {ONSET_LABELS[hpo_id]}"


def is_age(text: str) -> bool:
    """Whether the text has one of the three forms.

    Guarantee: free text is no age, an onset class included: its label must be HPO's own.
    """
    hpo_id = text.partition(" ")[0]
    if hpo_id in ONSET_LABELS:
        return text == onset_class(hpo_id)
    return read_duration(text) is not None or read_gestation(text) is not None


def age_between(birth: date, seen: date) -> str:
    """The age at ``seen`` as a duration: years and months, or days in the first month of life."""
    if seen < birth:
        raise ValueError("Expected a birth before the encounter, got one after it")
    months = 12 * (seen.year - birth.year) + seen.month - birth.month - (seen.day < birth.day)
    if months == 0:
        return f"P{(seen - birth).days}D"
    years, months = divmod(months, 12)
    return "P" + (f"{years}Y" if years else "") + (f"{months}M" if months else "")


def phrase(age: str) -> str:
    """When something was, as a note says it: ``at the age of 2 years and 3 months``, ``at birth``."""
    hpo_id = age.partition(" ")[0]
    if hpo_id in ONSET_PHRASES:
        return ONSET_PHRASES[hpo_id]
    weeks = read_gestation(age)
    if weeks is not None:
        return f"at a gestational age of {_count(weeks, 'week')}"
    duration = read_duration(age)
    if duration is None:
        raise ValueError("Expected an age, got text of another form")
    parts = ((duration.years, "year"), (duration.months, "month"), (duration.days, "day"))
    words = [_count(number, unit) for number, unit in parts if number]
    return f"at the age of {' and '.join(words) or _count(0, 'day')}"


def order(age: str) -> tuple[int, float]:
    """A sort key: gestational ages, then onset classes, then durations by their length.

    Ages before birth and classes keep the order they come in, as in the notes of the data.
    """
    if read_gestation(age) is not None:
        return (0, 0.0)
    duration = read_duration(age)
    return (1, 0.0) if duration is None else (2, duration.in_days)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
