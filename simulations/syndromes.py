"""Named syndromes, their findings and how often these occur, as public literature tells it.

``conf/syndromes.yaml`` is the casebook: each syndrome with the review its frequencies come from, the more
general words a note may use, and common complaints that belong to no syndrome. Everything here is public
knowledge; it may go into prompts, answer lists and pretraining text. Simulated patients are drawn from it in
``simulations.hospital``.

This product uses the Human Phenotype Ontology (version 2024-08-13).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from client.patients.records import Finding
from common.errors import BadFileError
from common.settings import read_yaml
from common.tracks import Answer, AnswerList
from simulations.faces import is_visible

CASEBOOK = Path(__file__).parent / "conf" / "syndromes.yaml"
# The ontology's frequency classes, by the share from which each holds.
FREQUENCY_WORDS = (
    (0.995, "always"),
    (0.8, "very often"),
    (0.3, "often"),
    (0.05, "sometimes"),
    (0.0, "rarely"),
)
_LABELS_WITH_NAMES = ("Brushfield",)


@dataclass(frozen=True, kw_only=True)
class TypicalFinding:
    """A finding of a syndrome.

    Attributes:
        finding: Its id and label in the ontology.
        frequency: Share of the syndrome's patients who have it, above 0, at most 1.
        facial: Whether a frontal photo shows it.
    """

    finding: Finding
    frequency: float
    facial: bool

    def __post_init__(self) -> None:
        if not 0 < self.frequency <= 1:
            raise ValueError(f"Expected frequency above 0 and at most 1, got {self.frequency}")


@dataclass(frozen=True, kw_only=True)
class Syndrome:
    """A syndrome as the literature describes it.

    Attributes:
        id: In OMIM, ``OMIM:`` and six digits.
        name: What a student is to answer.
        synonyms: Other names.
        findings: The facial ones first.
        inheritance: In words.
        source: The review its frequencies come from.
        male_share: Share of male patients.
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    findings: tuple[TypicalFinding, ...]
    inheritance: str = ""
    source: str = ""
    male_share: float = 0.5

    def __post_init__(self) -> None:
        ids = [typical.finding.id for typical in self.findings]
        if len(set(ids)) < len(ids) or not ids:
            raise ValueError(f"Expected one or more findings of {self.id}, none named twice")

    def frequency_table(self) -> tuple[tuple[Finding, float], ...]:
        """Return each finding with its frequency, most frequent first."""
        rows = sorted(self.findings, key=lambda typical: (-typical.frequency, typical.finding.id))
        return tuple((typical.finding, typical.frequency) for typical in rows)

    def description(self) -> str:
        """Return a public description: names, inheritance and findings by how often they occur."""
        also = f", also called {_joined(self.synonyms)}," if self.synonyms else ""
        sentences = [f"{self.name}{also} has the identifier {self.id}."]
        if self.inheritance:
            sentences.append(f"Inheritance: {self.inheritance[0].lower()}{self.inheritance[1:]}.")
        for place, facial in (("The face shows", True), ("Other findings are", False)):
            by_word: dict[str, list[str]] = {}
            for finding, frequency in self.frequency_table():
                if is_visible(finding.id) == facial:
                    by_word.setdefault(frequency_word(frequency), []).append(_in_sentence(finding.label))
            parts = [f"{word} {_joined(labels)}" for word, labels in by_word.items()]
            sentences.append(f"{place} {'; '.join(parts)}.")
        return " ".join(sentences)

    def public_sentences(self, rng: np.random.Generator, n: int) -> list[str]:
        """Draw ``n`` sentences about the syndrome, as a textbook could have them."""
        return [self._sentence(rng) for _ in range(n)]

    def _sentence(self, rng: np.random.Generator) -> str:
        names = (self.name, *self.synonyms)
        name = names[int(rng.integers(len(names)))] if rng.random() < 0.3 else self.name
        order = [int(place) for place in rng.permutation(len(self.findings))]
        # Frequent findings are written about more often than rare ones.
        told = [self.findings[place] for place in order if rng.random() < self.findings[place].frequency]
        told = told or [self.findings[order[0]]]
        first, labels = told[0], [_in_sentence(typical.finding.label) for typical in told[:5]]
        word, percent = frequency_word(first.frequency), round(100 * first.frequency)
        forms = (
            f"{first.finding.label} is {word} found in {name}.",
            f"{name}: {labels[0]} in {percent} % of patients.",
            f"About {percent} of 100 people with {name} have {labels[0]}.",
            f"Among the findings of {name} are {_joined(labels)}.",
            f"{_capital(_joined(labels))} together suggest {name}.",
            f"A patient with {_joined(labels)} may have {name}.",
        )
        if name != self.name and rng.random() < 0.5:
            return f"{name} is another name for {self.name}."
        return forms[int(rng.integers(len(forms)))]


@dataclass(frozen=True, kw_only=True)
class Casebook:
    """Syndromes and what is needed to write about their patients.

    Attributes:
        ontology: Where ids and names of the syndromes come from, with the version.
        syndromes: In alphabetical order of their names.
        broader: By finding id, what a note may say in more general words.
        background: Common complaints that belong to no syndrome.
        male_only: Ids of findings that only males can have.
    """

    ontology: str
    syndromes: tuple[Syndrome, ...]
    broader: Mapping[str, Finding]
    background: tuple[Finding, ...]
    male_only: frozenset[str]

    @cached_property
    def answers(self) -> AnswerList:
        """The syndromes as the answers of a plan."""
        return AnswerList(
            answers=tuple(
                Answer(id=syndrome.id, name=syndrome.name, synonyms=syndrome.synonyms, ontology=self.ontology)
                for syndrome in self.syndromes
            )
        )

    @cached_property
    def facial(self) -> tuple[Finding, ...]:
        """All findings that a photo shows in any of the syndromes, by id."""
        typical = (one for syndrome in self.syndromes for one in syndrome.findings)
        facial = {one.finding.id: one.finding for one in typical if one.facial}
        return tuple(facial[hp_id] for hp_id in sorted(facial))


def load_casebook(path: Path = CASEBOOK) -> Casebook:
    """Return the casebook of a file; BadFileError names the file and what is wrong with it.

    Guarantee: a finding stands under ``face`` if and only if the renderer draws it.
    """
    return _read_casebook(path)


def load_syndromes(path: Path = CASEBOOK) -> tuple[Syndrome, ...]:
    """Return the syndromes of the casebook."""
    return load_casebook(path).syndromes


def frequency_word(frequency: float) -> str:
    """Return the word for how often: always, very often, often, sometimes, rarely."""
    return next(word for least, word in FREQUENCY_WORDS if frequency >= least)


@lru_cache(maxsize=4)
def _read_casebook(path: Path) -> Casebook:
    content = read_yaml(path)
    try:
        return Casebook(
            ontology=content["ontology"],
            syndromes=tuple(_read_syndrome(entry) for entry in content["syndromes"]),
            broader={narrow: Finding(id=wide, label=label) for narrow, wide, label in content["broader"]},
            background=tuple(Finding(id=hp_id, label=label) for hp_id, label in content["background"]),
            male_only=frozenset(content["male_only"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"not a casebook: {type(error).__name__}: {error}") from error


def _read_syndrome(entry: Mapping[str, Any]) -> Syndrome:
    entry = dict(entry)
    name = entry["name"]
    rows = [(row, facial) for kind, facial in (("face", True), ("other", False)) for row in entry.pop(kind)]
    for (hp_id, label, _), facial in rows:
        if is_visible(hp_id) != facial:
            raise ValueError(f"{name}: {label} stands under the wrong one of face and other")
    findings = tuple(
        TypicalFinding(finding=Finding(id=hp_id, label=label), frequency=frequency, facial=facial)
        for (hp_id, label, frequency), facial in rows
    )
    return Syndrome(**(entry | {"synonyms": tuple(entry["synonyms"]), "findings": findings}))


def _in_sentence(label: str) -> str:
    if label[1:2].isupper() or label.startswith(_LABELS_WITH_NAMES):
        return label
    return label[0].lower() + label[1:]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _joined(words: Iterable[str]) -> str:
    parts: Sequence[str] = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
