"""What a federation asks of a student: a track, and the answers it may give.

An answer is an id, a name, its synonyms and the ontology it comes from with its version, never a bare
string. A plan names its answer list by digest, so that every site ranks the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from common.canonical import canonical_json, json_digest, plain, read_object
from common.checks import require, require_line, require_once, require_schema
from common.schema import build, conform

ANSWERS_SCHEMA = 1

_TRACK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Modality(StrEnum):
    """What a student reads."""

    TEXT = "text"
    IMAGE = "image"


class Eye(StrEnum):
    """What a teacher may look at."""

    PHOTO = "photo"
    NOTE = "note"
    SLIDE = "slide"


@dataclass(frozen=True, kw_only=True)
class Track:
    """A task and the modality of its student.

    Attributes:
        name: Lower-case letters, digits and underscores.
        modality: What the student of this track reads.
        header: The fixed first line of an answer list.
    """

    name: str
    modality: Modality
    header: str

    def __post_init__(self) -> None:
        conform(self)
        require(
            _TRACK_NAME.fullmatch(self.name) is not None,
            "name",
            repr(self.name),
            "lower-case letters, digits and underscores, a letter first",
        )
        require_line("header", self.header)


RARE_DISEASE = Track(name="rare_disease", modality=Modality.TEXT, header="POTENTIAL_DISEASES:")
TISSUE_TYPE = Track(name="tissue_type", modality=Modality.IMAGE, header="MOST_LIKELY_TISSUE:")

TRACKS: Mapping[str, Track] = MappingProxyType({track.name: track for track in (RARE_DISEASE, TISSUE_TYPE)})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One possible answer of a track.

    Attributes:
        id: Its id in the ontology, for example ``OMIM:154700``.
        name: What a student writes; one line.
        synonyms: Other names that mean it.
        ontology: Where id and names come from, with the version.
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    ontology: str = ""

    def __post_init__(self) -> None:
        conform(self)
        require_line("id", self.id)
        require_line("name", self.name)
        for synonym in self.synonyms:
            require_line("synonyms", synonym)


@dataclass(frozen=True, kw_only=True)
class AnswerList:
    """The answers of a plan, in a fixed order.

    Guarantee: ids are unique, and so are names, also when case and white space are ignored.
    """

    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        conform(self)
        require_once("answers", self.ids)
        require_once("answers", [fold(name) for name in self.names])

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self.answers)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(answer.name for answer in self.answers)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, in order."""
        return tuple(answer.id for answer in self.answers)

    def index_of(self, answer_id: str) -> int:
        """The answer's place in the list; ValueError if it is not in it."""
        if answer_id not in self._index_by_id:
            raise ValueError(f"Expected an id of the plan's {len(self)} answers, got {answer_id!r}")
        return self._index_by_id[answer_id]

    def find(self, text: str) -> Answer | None:
        """The answer that a text names, by its name or else a synonym; case and white space are ignored.

        A synonym that two answers share names neither of them: to guess would count a wrong answer as
        right half of the time.
        """
        return self._answer_by_text.get(fold(text))

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return json_digest(self._content())

    def to_json(self) -> str:
        """The list as canonical JSON."""
        return canonical_json(self._content())

    @classmethod
    def from_json(cls, text: str) -> AnswerList:
        """The list back from its JSON; SettingsError or UnsupportedSchemaError if it is not one."""
        content = read_object(text, "answers")
        require_schema("answers", content.pop("schema", None), ANSWERS_SCHEMA)
        return build(cls, content, "answers")

    def _content(self) -> dict[str, object]:
        return {"schema": ANSWERS_SCHEMA, "answers": plain(self.answers)}

    @cached_property
    def _index_by_id(self) -> Mapping[str, int]:
        return {answer.id: index for index, answer in enumerate(self.answers)}

    @cached_property
    def _answer_by_text(self) -> Mapping[str, Answer]:
        owners: dict[str, set[int]] = {}
        for index, answer in enumerate(self.answers):
            for synonym in answer.synonyms:
                owners.setdefault(fold(synonym), set()).add(index)
        found = {text: self.answers[min(owner)] for text, owner in owners.items() if len(owner) == 1}
        return found | {fold(answer.name): answer for answer in self.answers}


def fold(text: str) -> str:
    """The text without differences of case and white space."""
    return " ".join(text.casefold().split())
