"""A student's answers as lines of JSON, one line a case.

`consilium-site predict` and a simulation write the same lines, so that whatever reads one reads the other:
``{"case_id": ..., "answers": [{"id": ..., "name": ..., "confidence": ...}, ...], "truth": ...}``, best
answer first; ``truth`` is there only where the right answer was known, ``confidence`` where one is claimed,
and ``documents`` (id and title of each) where public documents were read. No part of a note is ever written.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic import write_atomically

# A confidence's further digits differ between machines and tell nobody anything.
CONFIDENCE_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class RankedAnswer:
    """One answer of a list.

    Attributes:
        id: The answer's id in the plan.
        name: Its name in the plan.
        confidence: What the student claims it is sure by, 0 to 1; None of a search, which claims
            nothing.
    """

    id: str
    name: str
    confidence: float | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.name:
            raise ValueError("Expected an answer with an id and a name, got an empty one")
        claimed = 0.0 if self.confidence is None else self.confidence
        if not (math.isfinite(claimed) and 0 <= claimed <= 1):
            raise ValueError(f"Expected a confidence from 0 to 1, got {self.confidence}")

    def to_fields(self) -> dict[str, Any]:
        """Return what a line says of it."""
        fields: dict[str, Any] = {"id": self.id, "name": self.name}
        if self.confidence is not None:
            fields["confidence"] = round(self.confidence, CONFIDENCE_DIGITS)
        return fields


@dataclass(frozen=True, kw_only=True)
class ReadDocument:
    """A public document that was read for a case.

    Attributes:
        id: In the index.
        title: Its name there.
    """

    id: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a student answers for one case.

    Attributes:
        case_id: The case, as the input named it.
        answers: Best first, no id twice.
        truth: Id of the right answer, where it is known.
        documents: What was read for it from the index of public documents.
    """

    case_id: str
    answers: tuple[RankedAnswer, ...]
    truth: str | None = None
    documents: tuple[ReadDocument, ...] = ()

    def __post_init__(self) -> None:
        if not self.case_id:
            raise ValueError("Expected a case_id, got an empty one")
        if len({answer.id for answer in self.answers}) != len(self.answers):
            raise ValueError("Expected every answer once, got one twice")

    def to_line(self) -> str:
        """Return the case as one line of JSON, without the line's end."""
        line: dict[str, Any] = {
            "case_id": self.case_id,
            "answers": [answer.to_fields() for answer in self.answers],
        }
        if self.documents:
            line["documents"] = [{"id": one.id, "title": one.title} for one in self.documents]
        if self.truth is not None:
            line["truth"] = self.truth
        return json.dumps(line, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> "Prediction":
        """Read what ``to_line`` wrote; ValueError names what is wrong with the line."""
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
        fields = _fields(read, required={"case_id", "answers"}, optional={"truth", "documents"})
        answers, documents = fields["answers"], fields.get("documents", [])
        if not isinstance(fields["case_id"], str) or not isinstance(answers, list):
            raise ValueError("Expected a text as case_id and a list as answers")
        if not isinstance(documents, list):
            raise ValueError("Expected a list as documents")
        truth = fields.get("truth")
        if truth is not None and not isinstance(truth, str):
            raise ValueError("Expected a text as truth")
        return cls(
            case_id=fields["case_id"],
            answers=tuple(map(_answer, answers)),
            truth=truth,
            documents=tuple(map(_document, documents)),
        )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line a case, whole or not at all, readable by its owner only."""
    write_atomically(path, "".join(f"{prediction.to_line()}\n" for prediction in predictions), private=True)


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Return the cases of a file in its order; ValueError names the file and the line that is damaged."""
    predictions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                predictions.append(Prediction.from_line(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
    return tuple(predictions)


def _answer(read: Any) -> RankedAnswer:
    fields = _fields(read, required={"id", "name"}, optional={"confidence"})
    identifier, name, confidence = fields["id"], fields["name"], fields.get("confidence", 0)
    if not isinstance(identifier, str) or not isinstance(name, str):
        raise ValueError("Expected an answer whose id and name are texts")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise ValueError("Expected a number as confidence")
    claimed = float(confidence) if "confidence" in fields else None
    return RankedAnswer(id=identifier, name=name, confidence=claimed)


def _document(read: Any) -> ReadDocument:
    fields = _fields(read, required={"id", "title"}, optional=set())
    if not isinstance(fields["id"], str) or not isinstance(fields["title"], str):
        raise ValueError("Expected a document whose id and title are texts")
    return ReadDocument(id=fields["id"], title=fields["title"])


def _fields(read: Any, *, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(read, dict):
        raise ValueError("Expected a JSON object")
    for key in sorted(required - read.keys()):
        raise ValueError(f"Expected a field {key!r}, got none")
    if read.keys() - required - optional:
        raise ValueError(f"Expected the fields {sorted(required | optional)} only, got others")
    return read
