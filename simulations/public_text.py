"""Public text for tiny base models: what an ontology and disease annotations say, never a patient.

A ``PublicText`` holds term names, definitions and diseases with how often each finding occurs. It comes
from the Human Phenotype Ontology's files (``from_hpo``) or from the synthetic syndromes' public
descriptions (``from_syndromes``). ``PublicNotes`` draws notes as such diseases would give them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from client.patients.notes import write_note
from client.patients.records import Finding, PatientRecord
from common.canonical import canonical_json, plain
from common.errors import BadFileError
from simulations.syndromes import Casebook

UNSTATED_FREQUENCY = 0.45
"""Taken where an annotation names a finding without saying how often: between occasional and frequent."""
FEWEST_FINDINGS = 3
SENTENCES_A_SYNDROME = 40


@dataclass(frozen=True, kw_only=True)
class PublicDisease:
    """A disease as public annotations describe it.

    Attributes:
        name: As an answer would give it.
        frequencies: How often each finding occurs, by finding id; facial ones are not in it where the
            notes of the run hide them.
        planned: Whether it is among the plan's answers.
    """

    name: str
    frequencies: Mapping[str, float]
    planned: bool


@dataclass(frozen=True, kw_only=True)
class PublicText:
    """All that a tiny base may learn from.

    Attributes:
        labels: Term name by id.
        parents: Broader terms by id, those with a label only.
        sentences: Definitions and descriptions.
        names: Answer and disease names, the plan's among them.
        diseases: Those with enough findings to draw a note from.
    """

    labels: Mapping[str, str]
    parents: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]
    names: tuple[str, ...]
    diseases: tuple[PublicDisease, ...]

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        return hashlib.sha256(canonical_json(plain(self)).encode()).hexdigest()

    @cached_property
    def mentions(self) -> Counter[str]:
        """In how many diseases each finding occurs."""
        return Counter(finding for disease in self.diseases for finding in disease.frequencies)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file of JSON lines; BadFileError if it is none."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    except (OSError, EOFError, ValueError) as error:
        raise BadFileError(path, f"not a gzipped file of JSON lines: {error}") from error


def from_hpo(
    folder: Path,
    answer_names: Mapping[str, str],
    hidden: frozenset[str],
    *,
    other_diseases: int,
    seed: int,
    unread: frozenset[str] = frozenset(),
    newest_lists: bool = True,
) -> PublicText:
    """Public text from the tidied HPO files in ``folder``.

    Guarantee: an annotation that names a publication of ``unread`` as its source is not in it.

    Args:
        folder: With ``hp_terms.jsonl.gz`` and ``disease_annotations.jsonl.gz``.
        answer_names: The plan's answers: name by disease id.
        hidden: Finding ids that the run's notes leave out (the facial ones).
        other_diseases: How many diseases outside the plan are learned about besides.
        seed: Chooses these.
        unread: Publications that the text must not know, for example those whose cases are tested on.
        newest_lists: Whether the terms that the release of 2025 lists are read too. They come without
            frequencies and without sources, so that none can be left out for where it was found.
    """
    terms = {t["id"]: t for t in read_lines(folder / "hp_terms.jsonl.gz") if t.get("is_phenotype")}
    labels = {identifier: str(term["label"]) for identifier, term in terms.items()}
    parents = {i: tuple(p for p in term.get("parents", []) if p in labels) for i, term in terms.items()}
    rows = list(read_lines(folder / "disease_annotations.jsonl.gz"))
    described = {
        row["disease_id"]: (row, _frequencies(row, labels, hidden, unread, newest_lists)) for row in rows
    }
    described = {i: (row, f) for i, (row, f) in described.items() if len(f) >= FEWEST_FINDINGS}
    others = sorted(i for i in described if i.startswith("OMIM:") and i not in answer_names)
    chosen = np.random.default_rng([seed, 1]).permutation(len(others))[:other_diseases]
    wanted = [*sorted(set(answer_names) & set(described)), *(others[k] for k in sorted(chosen))]
    diseases = tuple(
        PublicDisease(
            name=answer_names.get(i, described[i][0]["name"]),
            frequencies=described[i][1],
            planned=i in answer_names,
        )
        for i in wanted
    )
    definitions = tuple(
        f"{labels[i]}: {t['definition']}" for i, t in sorted(terms.items()) if t.get("definition")
    )
    names = tuple(dict.fromkeys([*answer_names.values(), *(d.name for d in diseases)]))
    return PublicText(labels=labels, parents=parents, sentences=definitions, names=names, diseases=diseases)


def _frequencies(
    row: Mapping[str, Any],
    labels: Mapping[str, str],
    hidden: frozenset[str],
    unread: frozenset[str],
    newest_lists: bool,
) -> dict[str, float]:
    found: dict[str, float] = {}
    for phenotype in row.get("phenotypes", []):
        # An annotation may name several publications.
        if not unread.isdisjoint(part.strip() for part in str(phenotype.get("ref", "")).split(";")):
            continue
        frequency = float(phenotype.get("freq", UNSTATED_FREQUENCY))
        if phenotype.get("qualifier") != "NOT" and frequency > 0:
            found[phenotype["id"]] = max(frequency, found.get(phenotype["id"], 0.0))
    # The later release lists more terms, without frequencies.
    for identifier in row.get("hpo_2025", []) if newest_lists else []:
        found.setdefault(identifier, UNSTATED_FREQUENCY)
    return {i: f for i, f in sorted(found.items()) if i in labels and i not in hidden}


def from_syndromes(casebook: Casebook, *, seed: int) -> PublicText:
    """Public text of the synthetic syndromes: their descriptions in prose, and how often a finding occurs.

    Facial findings are in the prose alone, as the run's notes leave them to the photo.
    """
    rng = np.random.default_rng([seed, 3])
    sentences = [syndrome.description() for syndrome in casebook.syndromes]
    for syndrome in casebook.syndromes:
        sentences += syndrome.public_sentences(rng, SENTENCES_A_SYNDROME)
    labels = {t.finding.id: t.finding.label for s in casebook.syndromes for t in s.findings}
    return PublicText(
        labels=labels,
        parents={},
        sentences=tuple(dict.fromkeys(sentences)),
        names=tuple(syndrome.name for syndrome in casebook.syndromes),
        diseases=tuple(
            PublicDisease(
                name=syndrome.name,
                frequencies={t.finding.id: t.frequency for t in syndrome.findings if not t.facial},
                planned=True,
            )
            for syndrome in casebook.syndromes
        ),
    )


@dataclass(frozen=True, kw_only=True)
class NoteStyle:
    """How notes are drawn from a disease; shares and means are rough reads of published case tables.

    Attributes:
        reported: Share of a patient's findings that get into his note.
        broader: Chance that a finding is written as a broader term.
        typical, spread: Median number of findings a note holds, and the spread of its logarithm.
        unrelated: Chances of 0, 1, 2 findings that have nothing to do with the disease.
        with_exclusions: Share of notes that list what was looked for and not found.
        typical_excluded, most_excluded: Median and largest number of these.
    """

    reported: float = 0.9
    broader: float = 0.12
    typical: float = 8.0
    spread: float = 0.6
    unrelated: tuple[float, float, float] = (0.5, 0.25, 0.25)
    with_exclusions: float = 0.6
    typical_excluded: float = 6.0
    most_excluded: int = 30


class PublicNotes:
    """Draws notes that a disease's public description would give."""

    def __init__(self, text: PublicText, rng: np.random.Generator, style: NoteStyle | None = None) -> None:
        self._text, self._rng, self._style = text, rng, style or NoteStyle()
        # Text without diseases still has words: its notes are of findings that mean nothing together.
        self._known = sorted(text.mentions.elements()) or sorted(text.labels)
        self._planned = [disease for disease in text.diseases if disease.planned]
        self._others = [disease for disease in text.diseases if not disease.planned]

    def draw(self) -> tuple[str, str]:
        """A note and its disease's name, half the time one of the plan's; no name without diseases."""
        from_plan = self._planned and (not self._others or self._rng.random() < 0.5)
        pool = (self._planned if from_plan else self._others) or [self._anything()]
        disease = pool[int(self._rng.integers(len(pool)))]
        observed = self._observed(disease)
        excluded = self._excluded(disease, observed)
        record = PatientRecord(
            patient_id="public",
            case_id="public",
            sex=str(self._rng.choice(["male", "female", "unknown"], p=[0.46, 0.46, 0.08])),
            age=self._duration() if self._rng.random() < 0.75 else None,
            onset=self._duration() if self._rng.random() < 0.4 else None,
            observed=self._findings(observed),
            excluded=self._findings(excluded),
        )
        return write_note(record), disease.name

    def _anything(self) -> PublicDisease:
        """No disease: any findings, none likelier than another."""
        share = min(1.0, 2 * self._style.typical / len(self._known))
        return PublicDisease(name="", frequencies=dict.fromkeys(self._known, share), planned=False)

    def _observed(self, disease: PublicDisease) -> list[str]:
        ids = list(disease.frequencies)
        chances = np.array(list(disease.frequencies.values())) * self._style.reported
        drawn = [ids[k] for k in np.flatnonzero(self._rng.random(len(ids)) < chances)] or [
            ids[int(chances.argmax())]
        ]
        wanted = max(1, int(self._rng.lognormal(np.log(self._style.typical), self._style.spread)))
        kept = [drawn[k] for k in self._rng.permutation(len(drawn))[:wanted]]
        broadened = [self._broader(i) if self._rng.random() < self._style.broader else i for i in kept]
        strangers = int(self._rng.choice(3, p=self._style.unrelated))
        return list(dict.fromkeys([*broadened, *self._any(strangers)]))

    def _broader(self, identifier: str) -> str:
        above = self._text.parents.get(identifier, ())
        return above[int(self._rng.integers(len(above)))] if above else identifier

    def _excluded(self, disease: PublicDisease, observed: Sequence[str]) -> list[str]:
        if self._rng.random() >= self._style.with_exclusions:
            return []
        wanted = min(
            self._style.most_excluded, int(self._rng.lognormal(np.log(self._style.typical_excluded), 0.9))
        )
        absent = [i for i, f in disease.frequencies.items() if self._rng.random() >= f]
        own = [absent[k] for k in self._rng.permutation(len(absent))[: wanted // 3]]
        candidates = dict.fromkeys([*own, *self._any(wanted - len(own))])
        return [i for i in candidates if i not in observed]

    def _any(self, count: int) -> list[str]:
        return [self._known[int(k)] for k in self._rng.integers(len(self._known), size=count)]

    def _findings(self, ids: Sequence[str]) -> tuple[Finding, ...]:
        return tuple(Finding(id=identifier, label=self._text.labels[identifier]) for identifier in ids)

    def _duration(self) -> str:
        years = int(self._rng.exponential(12))
        return f"P{min(years, 90)}Y" if years else f"P{int(self._rng.integers(1, 12))}M"
