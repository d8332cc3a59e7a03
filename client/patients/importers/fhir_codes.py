"""Code systems of FHIR resources that mean something here, and what their codes become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from client.patients.importers.fhir_shapes import codings
from common.tracks import AnswerList

DISEASE_SYSTEMS: Mapping[str, str] = {
    "omim.org": "OMIM",
    "urn:oid:2.16.840.1.113883.6.174": "OMIM",
    "orpha.net": "ORPHA",
    "orphadata.com": "ORPHA",
    "purl.obolibrary.org/obo/mondo.owl": "MONDO",
    "purl.obolibrary.org/obo/mondo": "MONDO",
}
"""Prefix of an answer's id by code system, in the order in which one is taken where no plan decides."""

HPO_SYSTEMS = frozenset(
    {
        "human-phenotype-ontology.org",
        "purl.obolibrary.org/obo/hp.owl",
        "purl.obolibrary.org/obo/hp",
        "hpo.jax.org",
        "hpo.jax.org/app",
        "urn:oid:2.16.840.1.113883.6.339",
    }
)
# SNOMED CT, LOINC answers, HL7's own yes and no, and interpretations.
PRESENT = frozenset({"52101004", "373066001", "10828004", "LA9633-4", "LA33-6", "Y", "POS", "present"})
ABSENT = frozenset({"2667000", "373067005", "260385009", "LA9634-2", "LA32-8", "N", "NEG", "absent"})
SLIDE_MODALITIES = frozenset({"SM", "GM"})
"""DICOM: slide microscopy, general microscopy."""
FACES = frozenset({"89545001", "302549007", "69536005", "302548004"})
"""SNOMED CT: face and head, as structure and as entire organ."""

_DIGITS = re.compile(r"(?:[A-Za-z]{2,10}[:_]|#)?([0-9]{1,9})")
_HPO_DIGITS = 7


def finding_codes(concept: Any) -> list[tuple[str, str]]:
    """Ids and labels of the HPO terms that a concept has, each once."""
    found = {
        _numbered("HP", code, _HPO_DIGITS): display
        for system, code, display in codings(concept)
        if system in HPO_SYSTEMS
    }
    return list(found.items())


def disease_codes(concept: Any) -> list[str]:
    """Ids of the diseases that a concept has, each once, in the order of ``DISEASE_SYSTEMS``."""
    prefixes = list(DISEASE_SYSTEMS.values())
    found = {
        _numbered(DISEASE_SYSTEMS[system], code)
        for system, code, _ in codings(concept)
        if system in DISEASE_SYSTEMS
    }
    return sorted(found, key=lambda one: (prefixes.index(one.partition(":")[0]), one))


def answer_of(concept: Any, answers: AnswerList | None) -> str:
    """The one answer that a concept of a disease means: of the plan, or else of the first system it has.

    The codings of one concept are translations of each other, so that one of them is enough.
    """
    found = disease_codes(concept)
    if answers is not None:
        found = [one for one in found if one in answers.ids]
        if not found:
            raise ValueError(f"code: not among the plan's {len(answers)} answers")
    else:
        found = [one for one in found if one.partition(":")[0] == found[0].partition(":")[0]]
    if len(found) > 1:
        raise ValueError(f"code: expected one diagnosis, got {len(found)} of one system")
    return found[0]


def _numbered(prefix: str, code: str, digits: int = 0) -> str:
    match = _DIGITS.fullmatch(code.strip())
    if match is None:
        raise ValueError(f"code: expected a number of {prefix}")
    return f"{prefix}:{match[1].zfill(digits)}"
