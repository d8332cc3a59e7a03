"""What one patient agreed to, by FHIR Consent resources."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from client.patients.importers.fhir import read_fhir
from client.patients.importers.fhir_consent import Decision, settle
from tests.client.patients.importers.fhir_rows import (
    HL7,
    Row,
    attachment,
    code,
    concept,
    consent,
    deny,
    document,
    export,
    permit,
)

KEY = bytes(range(32))
TODAY = date(2026, 6, 30)
PRIVACY = concept(code("patient-privacy"))
RESEARCH = frozenset({"research"})
NOTHING: frozenset[str] = frozenset()
OVER = {"start": "2015-01-01", "end": "2025"}


def agreed(folder: Path, *consents: Row) -> tuple[frozenset[str], bool]:
    export(folder, document(attachment(b"A note.")), *consents)
    found = read_fhir(folder, key=KEY, today=TODAY).patients
    assert found.problems == ()
    return found.records[0].consent, found.records[0].withdrawn


def policy(name: str) -> dict[str, Any]:
    return {"policyRule": concept(code(name, f"{HL7}/v3-ActCode"))}


@pytest.mark.parametrize(
    "given",
    [
        consent(permit("HRESCH")),
        consent(permit("HRESCH"), scope=PRIVACY),
        consent(permit()),
        consent(**policy("OPTIN")),
        consent(deny(provision=[permit("HRESCH")])),
        consent(deny(provision=[permit("HRESCH", period={"start": "2020", "end": "2050-01-01"})])),
        consent(permit("HRESCH", provision=[deny("HMARKT")])),
        consent(permit("HRESCH"), dateTime=None),
    ],
)
def test_a_patient_agrees_to_research(tmp_path: Path, given: Row) -> None:
    assert agreed(tmp_path, {k: v for k, v in given.items() if v is not None}) == (RESEARCH, False)


@pytest.mark.parametrize(
    "given",
    [
        consent(),
        consent(deny()),
        consent(deny("HRESCH")),
        consent(permit(), scope=PRIVACY),
        consent(permit("HRESCH"), status="rejected"),
        consent(permit("HRESCH"), status="proposed"),
        consent(permit("HRESCH"), scope=concept(code("treatment"))),
        consent(permit("HRESCH", period=OVER)),
        consent(permit("HRESCH", period={"start": "2027"})),
        consent(permit("HRESCH", provision=[deny("HRESCH")])),
        consent(permit("HRESCH", provision=[deny()])),
        consent(permit("HRESCH", provision=[deny(**{"class": [code("x")]})])),
        consent(permit("HRESCH", action=[concept(code("collect"))])),
        consent(permit("HRESCH", dataPeriod=OVER)),
        consent(**policy("OPTOUT")),
    ],
)
def test_what_is_no_plain_yes_is_no(tmp_path: Path, given: Row) -> None:
    assert agreed(tmp_path, given) == (NOTHING, False)


def test_other_purposes_keep_their_codes(tmp_path: Path) -> None:
    assert agreed(tmp_path, consent(permit("HRESCH", "CLINTRCH")))[0] == {"research", "clintrch"}


def test_a_denial_beats_every_permission(tmp_path: Path) -> None:
    assert agreed(tmp_path, consent(permit("HRESCH")), consent(deny("HRESCH")))[0] == NOTHING
    assert agreed(tmp_path, consent(permit("HRESCH")), consent(deny()))[0] == NOTHING


def test_an_ended_consent_is_a_withdrawal_unless_a_later_one_permits() -> None:
    ended = Decision(day="2015-01-01", withdraws=True)
    for day, withdrawn in (("", True), ("2014-01-01", True), ("2015-01-01", True), ("2016-01-01", False)):
        assert settle([ended, Decision(day=day, permits=RESEARCH)]) == (RESEARCH, withdrawn)
    assert settle([Decision(withdraws=True), Decision(day="2016", permits=RESEARCH)]) == (RESEARCH, True)


def test_a_withdrawn_consent_marks_the_patient(tmp_path: Path) -> None:
    assert agreed(tmp_path, consent(permit("HRESCH"), status="inactive")) == (NOTHING, True)


def test_nobody_who_was_not_asked_has_agreed() -> None:
    assert settle([]) == (NOTHING, False)
