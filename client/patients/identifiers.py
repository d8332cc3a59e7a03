"""What in a note looks like an identifier that de-identification has left behind: kinds and numbers, no text.

Patterns find forms, not people: a name without a title passes, and a number may look like a telephone's. A
hit is a reason for a person to look, so that a note is never refused or changed for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    r"Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember)\.?"
)
_DATE = (
    r"(?:(?:19|20)\d{2}-\d{2}-\d{2}"
    r"|\d{1,2}(?P<mark>[./-])\d{1,2}(?P=mark)(?:19|20)?\d{2}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\.? {_MONTH},? (?:19|20)\d{{2}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d{{2}})"
)
_BORN = r"(?i:\b(?:d\.?o\.?b\.?|date of birth|birth ?date|born(?: on)?|geb(?:oren)?(?: am)?|geburtsdatum))"
_BEFORE, _AFTER = r"(?<![\w./-])", r"(?![\w/-])"

# In this order: what one pattern has found is no other's any more. Every repetition has a bound: without one
# a note of a megabyte that nearly matches takes hours.
_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "e-mail address": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "date of birth": re.compile(rf"{_BORN}[\s:.,]{{0,5}}{_DATE}{_AFTER}"),
    "calendar date": re.compile(rf"{_BEFORE}{_DATE}{_AFTER}"),
    "record number": re.compile(
        r"(?i:\b(?:mrn|nhs|ssn|(?:medical )?record|patient(?: id)?|case|chart|hospital|insurance|"
        r"fall|patienten|versicherten)[\s-]{0,3}(?:number|nummer|no|nr|id|#)?[\s.:#]{0,3})"
        r"[A-Z]{0,4}[- ]?\d(?:[ -]?\d){5,20}\b"
    ),
    "social security number": re.compile(rf"{_BEFORE}\d{{3}}-\d{{2}}-\d{{4}}{_AFTER}"),
    "telephone number": re.compile(
        r"(?i:\b(?:tel(?:ephone|efon)?|phone|mobile|cell|fax|handy)\b)[\s.:]{0,5}[+(\d][\d\s()/.-]{4,20}\d"
        r"|(?<![\w.])\+\d{1,3}(?:[ ./-]?\(?\d{1,4}\)?){2,5}\b"
        r"|(?<![\w.])\(?0\d{2,4}\)?[ /-]\d{3,4}[ -]?\d{3,5}(?![\w.])"
        r"|(?<![\w.-])(?:\(\d{3}\) |\d{3}[-.])\d{3}[-.]\d{4}(?![\w-])"
    ),
    "name with a title": re.compile(
        r"\b(?:Mrs?|Ms|Miss|Mx|Dr|Prof|Herrn?|Frau|Mme|Mlle|Monsieur|Madame|Sra?)\b\.? ?"
        r"(?:Dr\.? ?|med\.? ?){0,3}[A-ZÄÖÜÀ-Ý][a-zß-ÿ'\u2019-]{1,40}"
    ),
    "postcode": re.compile(
        r"\b(?:GIR 0AA|[A-Z]{1,2}\d[A-Z\d]? \d[ABD-HJLNP-UW-Z]{2})\b"
        r"|\b[A-Z]{2},? \d{5}(?:-\d{4})?\b"
        r"|\b(?:D|DE|A|CH|F|I)-\d{4,5}\b"
    ),
}


def find_identifiers(text: str) -> Mapping[str, int]:
    """How many of each kind stand in a text; kinds without any are left out.

    Guarantee: nothing of the text itself is in what comes back.
    """
    found: dict[str, int] = {}
    for kind, pattern in _PATTERNS.items():
        text, number = pattern.subn(" \N{BULLET} ", text)
        if number:
            found[kind] = number
    return found


def in_words(found: Mapping[str, int]) -> str:
    """``2 calendar dates, 1 postcode``."""
    return ", ".join(f"{number} {_plural(kind) if number > 1 else kind}" for kind, number in found.items())


def _plural(kind: str) -> str:
    noun, _, rest = kind.partition(" ") if kind.startswith(("date of", "name with")) else (kind, "", "")
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{plural} {rest}" if rest else plural
