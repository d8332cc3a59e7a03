"""A student from a folder answers notes or images: `consilium-site predict` and a simulation's end share it.

A student's folder is a PEFT adapter (``adapter_config.json``, ``adapter_model.safetensors``) with
``answers.json`` and ``student.json`` (schema 2: track, base model and its digests, how long a prompt may be,
what confidences are made of; schema 1 knew no temperature).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from client.patients.photos import SlideRef
from client.preferences.answers import write_prompt
from client.student.calibrate import as_confident, own_lengths
from client.student.decode import build_trie
from client.student.evaluate import TOP, RankedCase, rank_cases
from client.student.model import Student, digest_base, load_base, make_student
from client.student.prompts import StudentPrompt
from common.adapter import Adapter
from common.atomic import write_atomically
from common.calibration_plan import ConfidenceScore
from common.checks import require_schema
from common.errors import BadFileError, DigestMismatchError, UnsupportedSchemaError
from common.peft import export_peft, import_peft
from common.schema import build
from common.tracks import TRACKS, AnswerList, Modality, Track

STUDENT_SCHEMA = 2
INPUTS = {Modality.TEXT: "cases.jsonl", Modality.IMAGE: "FOLDER_OF_IMAGES"}
ANSWERS_FILE, STUDENT_FILE, CARD_FILE = "answers.json", "student.json", "README.md"


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What a folder says of its student.

    Attributes:
        track: The track it answers.
        base_model: Name or folder of the base it was trained on; another place of the same base may be given
            when it is loaded.
        base_model_digest, tokenizer_digest: What the base must be.
        max_prompt_tokens: A longer prompt is cut.
        chosen_length: How many names its answers list.
        plan_digest: The plan it came from.
        method: How it was trained, for example ``federated_orpo``.
        privacy, aggregation: The modes of the run, named as they are.
        statement: What was promised to each patient, in a sentence.
        not_covered: What the promise leaves out.
        temperature: What scores are divided by before they are confidences; 1 unless it was calibrated.
        score: What a score is, as ``CalibrationPlan.score``.
    """

    track: str
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    max_prompt_tokens: int
    chosen_length: int
    plan_digest: str
    method: str
    privacy: str
    aggregation: str
    statement: str = ""
    not_covered: tuple[str, ...] = ()
    temperature: float = 1.0
    score: ConfidenceScore = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Expected a temperature > 0, got {self.temperature}")


def save_student(folder: Path, adapter: Adapter, answers: AnswerList, card: StudentCard) -> None:
    """Write a student's folder, so that ``load_student`` and PEFT read it."""
    folder.mkdir(parents=True, exist_ok=True)
    export_peft(adapter, folder, card.base_model)
    write_atomically(folder / ANSWERS_FILE, answers.to_json())
    write_atomically(folder / STUDENT_FILE, json.dumps({"schema": STUDENT_SCHEMA, **asdict(card)}, indent=1))
    write_atomically(folder / CARD_FILE, card_text(card, len(answers)))


def card_text(card: StudentCard, answers: int) -> str:
    """What a folder says of its student to people."""
    place = INPUTS[TRACKS[card.track].modality]
    return f"""---
library_name: peft
base_model: {card.base_model}
---
# Consilium student: {card.track}

Trained by `{card.method}` under plan `{card.plan_digest}`; it orders {answers} possible answers.

- Privacy mode: `{card.privacy}`. Aggregation mode: `{card.aggregation}`.
- With aggregation mode `secagg-v1` the coordinator saw only the sum of the sites' updates.
{_promise(card)}
- Confidences are made at temperature {card.temperature:.3g}, over the answers that are kept of a case.
- For research. Not a medical device.

    consilium-site predict --student . --track {card.track} --input {place} --output answers.jsonl
"""


def _promise(card: StudentCard) -> str:
    if card.privacy == "none":
        return "- There is no formal guarantee for any patient: do not publish this adapter."
    lines = [f"- {card.statement}"]
    if card.not_covered:
        lines += ["- Not covered by it:", *(f"  - {what}" for what in card.not_covered)]
    return "\n".join(lines)


@dataclass(frozen=True)
class LoadedStudent:
    """A student, its answers and its card, ready to answer notes or images."""

    student: Student
    answers: AnswerList
    card: StudentCard

    @property
    def track(self) -> Track:
        """The track it answers."""
        return TRACKS[self.card.track]

    def rank(self, notes: Sequence[str], top: int) -> list[list[tuple[str, str, float]]]:
        """For each note the best ``top`` answers as (id, name, confidence), best first.

        Raises:
            ValueError: It is an image student, or a note is empty.
        """
        return self._named([StudentPrompt(text=write_prompt(self.track, note)) for note in notes], top)

    def rank_images(self, images: Sequence[SlideRef], top: int) -> list[list[tuple[str, str, float]]]:
        """The same for images, each read alone.

        Raises:
            ValueError: It is a text student.
            BadFileError: An image cannot be read.
        """
        if self.track.modality is not Modality.IMAGE:
            raise ValueError(f"Expected a student of images, got one of the track {self.track.name}")
        text = write_prompt(self.track)
        return self._named([StudentPrompt(text=text, image=image) for image in images], top)

    def _named(self, prompts: Sequence[StudentPrompt], top: int) -> list[list[tuple[str, str, float]]]:
        return [
            [
                (self.answers.answers[i].id, self.answers.answers[i].name, c)
                for i, c in zip(case.answers, case.confidence, strict=True)
            ]
            for case in self.rank_prompts(prompts, top)
        ]

    def rank_prompts(
        self, prompts: Sequence[StudentPrompt], top: int, on_progress: Callable[[int], None] | None = None
    ) -> list[RankedCase]:
        """The same for prompts, as indices into the answers."""
        card = self.card
        tokens = self.student.answer_tokens(self.track.header, self.answers, lists=card.chosen_length > 1)
        ranked = rank_cases(
            self.student,
            prompts,
            build_trie(tokens),
            # As many as in its evaluation: what an answer is claimed with hangs on how many share it.
            top=max(top, TOP),
            max_prompt_tokens=card.max_prompt_tokens,
            on_progress=on_progress,
        )
        lengths = own_lengths(tokens)
        claimed = (as_confident(case, card.score, lengths) for case in ranked)
        return [RankedCase.of(c.kept, c.scores, top).tempered(card.temperature) for c in claimed]


def load_student(folder: Path, base_model: str | None = None) -> LoadedStudent:
    """A student from its folder; ``base_model`` names another place of the same base.

    Raises:
        BadFileError: A file of the folder is missing or damaged, or the base cannot be loaded.
        UnsupportedSchemaError: A newer version wrote it.
        DigestMismatchError: The base or its tokenizer is not the one the student was trained on.
    """
    card = _read_card(folder / STUDENT_FILE)
    answers = _read_answers(folder / ANSWERS_FILE)
    adapter = import_peft(folder)
    place = Path(base_model or card.base_model)
    if not place.is_dir():
        raise BadFileError(place, "expected the base model's folder; give its place with --base-model")
    try:
        base_digest, tokenizer_digest = digest_base(place)
    except ValueError as error:
        raise BadFileError(place, str(error)) from error
    for what, got, expected in (
        ("base model", base_digest, card.base_model_digest),
        ("tokenizer", tokenizer_digest, card.tokenizer_digest),
    ):
        if got != expected:
            raise DigestMismatchError(what, got, expected)
    try:
        base, reader = load_base(str(place), modality=TRACKS[card.track].modality)
    except (OSError, ValueError) as error:
        raise BadFileError(place, str(error)) from error
    student = make_student(base, reader, adapter.spec)
    student.load(adapter)
    return LoadedStudent(student, answers, card)


def load_answers(folder: Path, track: str) -> AnswerList:
    """The answers of a student's folder, without the student; errors as ``load_student``."""
    card = _read_card(folder / STUDENT_FILE)
    if card.track != track:
        raise BadFileError(folder, f"expected a student of track {track}, got one of {card.track}")
    return _read_answers(folder / ANSWERS_FILE)


def _read_card(path: Path) -> StudentCard:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("expected a JSON object")
        require_schema("student", content.pop("schema", None), STUDENT_SCHEMA)
        card = build(StudentCard, content, "student")
    except UnsupportedSchemaError as error:
        raise error.at(path) from error
    except (OSError, ValueError) as error:
        raise BadFileError(path, str(error)) from error
    if card.track not in TRACKS:
        raise BadFileError(path, f"expected a track among {', '.join(TRACKS)}, got {card.track!r}")
    return card


def _read_answers(path: Path) -> AnswerList:
    try:
        return AnswerList.from_json(path.read_text(encoding="utf-8"))
    except UnsupportedSchemaError as error:
        raise error.at(path) from error
    except (OSError, ValueError) as error:
        raise BadFileError(path, str(error)) from error
