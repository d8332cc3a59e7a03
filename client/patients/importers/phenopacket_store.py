"""The tidied cases of phenopacket-store, and the answers that a plan may take from them.

The source is public (monarch-initiative/phenopacket-store, BSD 3-Clause; Danis et al., HGG Advances 6(1),
100371): every case was published with the consent to research, and its id may be shown. ``title``,
``cohort``, ``gene``, ``variants`` and the like name or imply the diagnosis. They are known keys that are
never read: no record holds them, so nothing behind this module can see them.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from client.patients.importers.fields import (
    Parser,
    read_age,
    read_fields,
    read_findings,
    read_line,
    read_note,
    read_sex,
)
from client.patients.importers.gather import Found, gather
from client.patients.importers.lines import read_lines
from client.patients.records import PatientRecord, PatientSet, Problem, pseudonym, require_key
from common.errors import BadFileError
from common.tracks import RARE_DISEASE, Answer, AnswerList, fold

ONTOLOGY = "OMIM via phenopacket-store 2026-06-25"
CONSENT = frozenset({"research"})
UNREAD_KEYS = frozenset(
    {"cohort", "disease", "gene", "hgnc", "variants", "subject", "title", "hpo_version", "n_measurements"}
)
# Carried by few findings, and not part of any note.
_UNREAD_FINDING_KEYS = frozenset({"severity", "modifiers"})
_REQUIRED_KEYS = ("case_id", "disease_id", "hpo", "note", "pmid")


def read_cases(path: Path, *, key: bytes, answers: AnswerList | None = None) -> PatientSet:
    """The cases of a ``cases.jsonl.gz``, and a line for each that could not be read.

    Args:
        path: The file; FileNotFoundError if there is none.
        key: The site's secret for pseudonyms, at least 16 bytes.
        answers: A case whose disease is none of them is a problem; all diseases if absent.

    Guarantee: every line of the file is a record or a problem.
    """
    require_key(key)
    return gather(_read_all(path, key, answers))


def read_answers(diseases: Path, *, min_cases: int, annotations: Path | None = None) -> AnswerList:
    """The diseases with at least ``min_cases`` cases, ordered by id.

    Args:
        diseases: ``diseases.csv`` with ``disease_id``, ``disease`` and ``n_cases``.
        min_cases: At least 1.
        annotations: ``disease_annotations.jsonl.gz``; its ``name`` and ``name_2025`` become synonyms where
            they differ from the disease's own name. Without it no answer has a synonym.

    Guarantee: no synonym names two answers, nor the name of another.

    Raises:
        BadFileError: A row that cannot be read.
    """
    if min_cases < 1:
        raise ValueError(f"Expected min_cases >= 1, got {min_cases}")
    name_by_id = _frequent_diseases(diseases, min_cases)
    if not name_by_id:
        raise ValueError(f"Expected a disease with {min_cases} cases, got none")
    synonyms = _synonyms(annotations, name_by_id) if annotations else {}
    return AnswerList(
        answers=tuple(
            Answer(id=disease_id, name=name, synonyms=synonyms.get(disease_id, ()), ontology=ONTOLOGY)
            for disease_id, name in sorted(name_by_id.items())
        )
    )


def _read_all(path: Path, key: bytes, answers: AnswerList | None) -> Iterator[Found | Problem]:
    parsers = _parsers(None if answers is None else frozenset(answers.ids))
    with gzip.open(path, "rb") as file:
        lines = read_lines(file, path.name)
        while True:
            try:
                line = next(lines, None)
            except (EOFError, gzip.BadGzipFile, zlib.error):
                yield Problem(file=path.name, reason="damaged gzip data, the rest could not be read")
                return
            if line is None:
                return
            yield line if isinstance(line, Problem) else _read_case(line[1], line[0], path.name, parsers, key)


def _read_case(
    row: dict[str, Any], number: int, file: str, parsers: Mapping[str, Parser], key: bytes
) -> Found | Problem:
    values, reasons = read_fields(row, parsers, unread=UNREAD_KEYS)
    reasons += [f"{name}: missing" for name in _REQUIRED_KEYS if row.get(name) is None]
    if reasons:
        return Problem(file=file, line=number, reason="; ".join(reasons))
    return Found(record=_record(values, key), file=file, line=number)


def _record(values: Mapping[str, Any], key: bytes) -> PatientRecord:
    return PatientRecord(
        patient_id=pseudonym(key, values["case_id"]),
        case_id=values["case_id"],
        sex=values.get("sex", "unknown"),
        age=values.get("age_last"),
        onset=values.get("onset"),
        deceased=values.get("vital_status", False),
        observed=values["hpo"],
        excluded=values.get("excluded", ()),
        note=values["note"],
        label={RARE_DISEASE.name: values["disease_id"]},
        consent=CONSENT,
        group=values["pmid"],
    )


def _parsers(answer_ids: frozenset[str] | None) -> Mapping[str, Parser]:
    findings = partial(read_findings, unread=_UNREAD_FINDING_KEYS)
    return {
        "case_id": read_line,
        "disease_id": partial(_read_disease, answer_ids),
        "sex": read_sex,
        "age_last": read_age,
        "onset": read_age,
        "vital_status": _read_vital_status,
        "hpo": findings,
        "excluded": findings,
        "note": read_note,
        "pmid": read_line,
    }


def _read_disease(answer_ids: frozenset[str] | None, value: Any) -> str:
    disease_id = read_line(value)
    if answer_ids is not None and disease_id not in answer_ids:
        raise ValueError(f"not among the plan's {len(answer_ids)} answers")
    return disease_id


def _read_vital_status(value: Any) -> bool:
    if value not in ("ALIVE", "DECEASED", "UNKNOWN_STATUS"):
        raise ValueError("expected ALIVE, DECEASED or UNKNOWN_STATUS")
    return bool(value == "DECEASED")


def _frequent_diseases(path: Path, min_cases: int) -> dict[str, str]:
    name_by_id: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            disease_id, name, cases = row.get("disease_id"), row.get("disease"), row.get("n_cases")
            if not disease_id or not name or not (cases or "").isdecimal() or disease_id in name_by_id:
                raise BadFileError(path, f"row of {disease_id}: expected a new id, a name and a count")
            if int(cases or 0) >= min_cases:
                name_by_id[disease_id] = " ".join(name.split())
    return name_by_id


def _synonyms(path: Path, name_by_id: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    names = {fold(name) for name in name_by_id.values()}
    other_names = {
        disease_id: [text for text in texts if fold(text) not in names]
        for disease_id, texts in _annotated_names(path)
        if disease_id in name_by_id
    }
    counts: dict[str, int] = {}
    for texts in other_names.values():
        for text in {fold(text) for text in texts}:
            counts[text] = counts.get(text, 0) + 1
    return {
        disease_id: _distinct(text for text in texts if counts[fold(text)] == 1)
        for disease_id, texts in other_names.items()
    }


def _annotated_names(path: Path) -> Iterator[tuple[str, list[str]]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                texts = [row.get("name"), row.get("name_2025")]
                yield row["disease_id"], [" ".join(text.split()) for text in texts if text and text.strip()]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"line {number}: expected an object with disease_id and names"
                raise BadFileError(path, reason) from error


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple({fold(text): text for text in reversed(list(texts))}.values())[::-1]
