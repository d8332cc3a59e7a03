"""FHIR Consent resources: what one patient agreed to, and whether the consent was taken back.

A purpose is the code of ``provision.purpose`` in small letters; healthcare research (``HRESCH``), and a
consent of scope research that is permitted without naming a purpose, is ``research``. What is not understood
permits nothing: a permission that holds only for some actors, actions, data, classes, codes or labels is
none here, and a denial holds whatever its conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from client.patients.importers.fhir_shapes import Row, any_codes, codes, day

RESEARCH = "research"
EVERYTHING = "*"

_SCOPES = frozenset({"research", "patient-privacy"})
_PURPOSES = {"HRESCH": RESEARCH}
_CONDITIONS = (
    "actor", "action", "class", "code", "data", "dataPeriod", "securityLabel", "modifierExtension",
)  # fmt: skip
_OPT_IN, _OPT_OUT = frozenset({"OPTIN", "OPTINR"}), frozenset({"OPTOUT", "OPTOUTE"})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one Consent says.

    Attributes:
        day: When it was given, empty where it does not say.
        permits: Purposes that the patient agrees to.
        denies: Purposes that the patient refuses; ``*`` is all of them.
        withdraws: Whether it is one that was ended.
    """

    day: str = ""
    permits: frozenset[str] = frozenset()
    denies: frozenset[str] = frozenset()
    withdraws: bool = False


def consent_unread(row: Row) -> str | None:
    """Why a Consent says nothing here; None if it is to be read."""
    if row.get("status") in ("draft", "proposed", "entered-in-error"):
        return "a draft, or entered in error"
    scope = codes(row.get("scope"))
    return "of another scope than research or privacy" if scope and not scope & _SCOPES else None


def read_consent(row: Row, today: date) -> Decision:
    """What a Consent says, `consent_unread` left aside."""
    given = day(row["dateTime"], "dateTime", today) if row.get("dateTime") else ""
    if row["status"] == "inactive":
        return Decision(day=given, withdraws=True)
    if row["status"] != "active":
        return Decision(day=given, denies=frozenset({EVERYTHING}))
    # An exception comes after its rule and replaces it.
    verdicts = dict(_verdicts(row, RESEARCH in codes(row.get("scope")), today))
    return Decision(
        day=given,
        permits=frozenset(one for one, permitted in verdicts.items() if permitted),
        denies=frozenset(one for one, permitted in verdicts.items() if not permitted),
    )


def settle(decisions: Iterable[Decision]) -> tuple[frozenset[str], bool]:
    """The purposes that a patient agrees to, all Consents together, and whether the consent was taken back.

    A denial beats every permission. An ended Consent is a withdrawal, unless a later one permits something.
    """
    listed = list(decisions)
    permitted = frozenset[str]().union(*(one.permits for one in listed))
    denied = frozenset[str]().union(*(one.denies for one in listed))
    last_permit = max((one.day for one in listed if one.permits), default="")
    # Without a date nobody can say that the permission came later.
    withdrawn = any(one.withdraws and not (one.day and last_permit > one.day) for one in listed)
    return frozenset() if EVERYTHING in denied else permitted - denied, withdrawn


def has_ended(decisions: Sequence[Decision]) -> bool:
    """Whether a patient said something of consent, and none is left of it."""
    permitted, withdrawn = settle(decisions)
    return withdrawn or (bool(decisions) and not permitted)


def _verdicts(row: Row, is_research: bool, today: date) -> Iterator[tuple[str, bool]]:
    """Purposes with whether they are permitted, exceptions after the rule that they are exceptions to."""
    root = row.get("provision") or {}
    policy = codes(row.get("policyRule"))
    implied = "permit" if policy & _OPT_IN else "deny" if policy & _OPT_OUT else None
    nested = list(_nested(root.get("provision"), is_research, today))
    kind = root.get("type") or implied
    # A general no with exceptions says no to the rest, which `permits` leaves out by itself.
    is_ground = kind == "deny" and not root.get("purpose") and any(permitted for _, permitted in nested)
    if not is_ground:
        yield from _rule({**root, "type": kind}, is_research, today)
    yield from nested


def _nested(rules: Any, is_research: bool, today: date) -> Iterator[tuple[str, bool]]:
    for rule in rules or ():
        yield from _rule(rule, is_research, today)
        yield from _nested(rule.get("provision"), is_research, today)


def _rule(rule: Mapping[str, Any], is_research: bool, today: date) -> Iterator[tuple[str, bool]]:
    if rule.get("type") not in ("permit", "deny") or not _is_in_force(rule, today):
        return
    permitted = rule["type"] == "permit"
    if permitted and any(rule.get(key) for key in _CONDITIONS):
        return
    named = any_codes([{"coding": rule.get("purpose") or []}])
    for purpose in sorted(named):
        yield _PURPOSES.get(purpose, purpose.lower()), permitted
    if not named and (not permitted or is_research):
        yield (RESEARCH if permitted else EVERYTHING), permitted


def _is_in_force(rule: Mapping[str, Any], today: date) -> bool:
    period = rule.get("period") or {}
    start, end = str(period.get("start") or "")[:10], str(period.get("end") or "")[:10]
    now = today.isoformat()
    return (not start or start <= now[: len(start)]) and (not end or end >= now[: len(end)])
