"""FHIR R4B resources: their shapes, checked by ``fhir.resources``, and the parts that many of them share.

A resource stays the JSON object that it was; after `require_shape` its keys hold what the standard says.
Every other function takes a part of such an object, and raises ValueError without quoting it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from client.patients.ages import age_between, is_age

Row = Mapping[str, Any]

_KEY = re.compile(r"_?[A-Za-z][A-Za-z0-9]{0,63}")
_REFERENCE = re.compile(r"(?:.*/)?Patient/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?")
_URN = re.compile(r"urn:uuid:([A-Fa-f0-9-]{36})")
_DATE = re.compile(r"[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2})?)?")
_SCHEME = re.compile(r"https?://(?:www\.)?")
_YEAR, _MONTH, _DAY = len("2010"), len("2010-05"), len("2010-05-20")


def require_shape(row: Row, resource_type: str) -> None:
    """Refuse what is not a resource of this type, or what says that it must not be read as one."""
    if row.get("resourceType") != resource_type:
        raise ValueError(f"resourceType: expected {resource_type}")
    try:
        _model(resource_type).model_validate(row)
    except ValidationError as error:
        raise ValueError(_reason(error)) from error
    except Exception as error:
        # A contained resource of a type that is none ends in a KeyError of the library, and the like.
        raise ValueError("not what FHIR R4B expects") from error
    for key in ("implicitRules", "modifierExtension"):
        if row.get(key):
            raise ValueError(f"{key}: changes what the resource means, in a way not known here")


def patient_id(row: Row, key: str = "subject") -> str:
    """The id of the patient whom a resource is about.

    ``Patient/ID``, an address that ends so, and ``urn:uuid:ID`` are understood, with or without a version.
    """
    subject = row.get(key)
    text = subject.get("reference") if isinstance(subject, dict) else None
    if text is None:
        raise ValueError(f"{key}: expected a reference to a patient")
    match = (_REFERENCE.fullmatch(text) or _URN.fullmatch(text)) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{key}: expected Patient/ID, an address that ends so, or urn:uuid:ID")
    return match[1]


def codings(concept: Any) -> Iterator[tuple[str, str, str]]:
    """System, code and display of each coding; ``http://`` and ``www.`` are left out of a system.

    Parts that are no text are passed over, so that a resource may be asked before its shape was checked.
    """
    listed = concept.get("coding") if isinstance(concept, dict) else None
    for coding in listed if isinstance(listed, list) else ():
        if isinstance(coding, dict) and isinstance(coding.get("code"), str):
            system, display = coding.get("system"), coding.get("display")
            yield (
                system_name(system) if isinstance(system, str) else "",
                coding["code"],
                display if isinstance(display, str) else "",
            )


def system_name(system: str) -> str:
    """A code system's address without what people write in several ways."""
    return _SCHEME.sub("", system.strip()).rstrip("/").lower()


def codes(concept: Any) -> frozenset[str]:
    """The codes of a concept alone, for short lists of codes that no two systems use for different things."""
    return frozenset(code for _, code, _ in codings(concept))


def any_codes(concepts: Any) -> frozenset[str]:
    """The codes of a list of concepts."""
    listed: Sequence[Any] = concepts if isinstance(concepts, list) else ()
    return frozenset(code for concept in listed for code in codes(concept))


def day(text: Any, place: str, today: date) -> str:
    """A date or time as YYYY-MM-DD, YYYY-MM or YYYY, as it was written."""
    found = text[:_DAY] if isinstance(text, str) else ""
    if _DATE.fullmatch(found) is None or not _is_day(found):
        raise ValueError(f"{place}: expected a date")
    if found > today.isoformat()[: len(found)]:
        raise ValueError(f"{place}: a date in the future")
    return found


def age_at(birth: str, seen: str) -> str | None:
    """The age between two dates, as exact as both are; None if the second lies before the first."""
    exact = min(len(birth), len(seen))
    if birth[:exact] > seen[:exact]:
        return None
    if exact == _DAY:
        age = age_between(date.fromisoformat(birth), date.fromisoformat(seen))
    elif exact == _MONTH:
        years, months = divmod(_months(seen) - _months(birth), 12)
        age = f"P{years}Y{months}M"
    else:
        age = f"P{int(seen[:_YEAR]) - int(birth[:_YEAR])}Y"
    if not is_age(age):
        raise ValueError("birthDate: more than 130 years before the patient was seen")
    return age


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text + "-01-01"[len(text) - _YEAR :])
    except ValueError:
        return False
    return True


def _months(text: str) -> int:
    return 12 * int(text[:_YEAR]) + int(text[_YEAR + 1 : _MONTH])


@cache
def _model(resource_type: str) -> Any:
    return getattr(import_module(f"fhir.resources.R4B.{resource_type.lower()}"), resource_type)


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong: where, as far as the standard has a name for it, and what."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    steps = [str(step) for step in first["loc"]]
    if first["type"] == "extra_forbidden":
        # The key itself may be a patient's name.
        steps.pop()
    place = ".".join(step for step in steps if step.isdigit() or _KEY.fullmatch(step)) or "resource"
    if first["type"] == "extra_forbidden":
        return f"{place}: a key that FHIR R4B does not have"
    return f"{place}: " + ("missing" if first["type"] == "missing" else "not what FHIR R4B expects")
