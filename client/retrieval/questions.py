"""What a reader is asked: the five questions of the protocol, for diseases and for genes.

After arXiv 2503.12286, in words of our own: findings by organ system, demographics, groups of diseases or
genes, refinement by inheritance and severity, and a list of exactly ten. A prompt that is too long for its
reader loses words of the documents first, then of earlier turns, then of the note, never of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from client.preferences.answers import INSTRUCTIONS
from client.retrieval.index import Document, DocumentKind
from common.checks import require, require_line
from common.tracks import RARE_DISEASE, AnswerList

WANTED = 10
STEP_TOKENS, CHAIN_TOKENS = 1024, 5000
"""Longest answers to one question, and to all of them in one prompt, as in the paper."""

# The ontology's organ systems: the children of "Phenotypic abnormality".
# fmt: off
ORGAN_SYSTEMS = (
    "blood and blood-forming tissues", "breast", "cardiovascular system", "cellular phenotype",
    "constitutional symptoms", "digestive system", "ear", "endocrine system", "eye", "genitourinary system",
    "growth", "head or neck", "immune system", "integument", "limbs", "metabolism or homeostasis",
    "musculoskeletal system", "neoplasm", "nervous system", "prenatal development or birth",
    "respiratory system", "thoracic cavity", "voice",
)
# fmt: on
_FINDINGS = (
    "Which findings does the note state? Write them as HPO terms under these organ systems: "
    f"{', '.join(ORGAN_SYSTEMS)}. Add none that the note does not state; what fits nowhere is Unclassified."
)
_DISEASE_QUESTIONS = (
    _FINDINGS,
    "How do the patient's age, sex and ancestry change which diseases are likely?",
    "Which groups of diseases do these findings point to?",
    "Which of them remain, given severity, inheritance and the clinical picture?",
)
_GENE_QUESTIONS = (
    _FINDINGS,
    "How do the patient's age, sex and ancestry change which genes are likely to be involved?",
    "Which genes do these findings point to?",
    "Which of them remain, given inheritance, known pathogenic variants and their effect?",
)
_LIST = (
    "List the {wanted} most likely {what} of this patient, exactly {wanted}, the most likely first, "
    "numbered, one a line, under the line {header}"
)
_CHAIN = "Answer these questions one after the other before you list."
_REFERENCE = "Reference, from public knowledge:"
_FROM_REFERENCE = "Rely on the reference and the note alone."


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked for, of whom, and how long answers may be.

    Attributes:
        kind: What is looked for, and which documents are searched.
        header: The line above a list.
        answers: What counts as an answer, with its synonyms.
        questions: Those before the list.
        final: The question for the list.
        wanted: Names that a list must have.
        documents: Documents that a reader gets.
        step_tokens: Longest answer to one question, and longest list.
        chain_tokens: Longest answer to all questions in one prompt.
    """

    kind: DocumentKind
    header: str
    answers: AnswerList
    questions: tuple[str, ...]
    final: str
    wanted: int = WANTED
    documents: int = 1
    step_tokens: int = STEP_TOKENS
    chain_tokens: int = CHAIN_TOKENS

    def __post_init__(self) -> None:
        require_line("header", self.header)
        require(bool(self.questions), "questions", "none", "at least one")
        for name in ("wanted", "documents", "step_tokens", "chain_tokens"):
            require(getattr(self, name) >= 1, name, str(getattr(self, name)), "1 or more")


def disease_task(answers: AnswerList) -> Task:
    """Which diseases a patient may have."""
    header = RARE_DISEASE.header
    final = _LIST.format(wanted=WANTED, what="diseases", header=header)
    return Task(kind="disease", header=header, answers=answers, questions=_DISEASE_QUESTIONS, final=final)


def gene_task(answers: AnswerList) -> Task:
    """In which genes a patient may have a cause; answers as from ``OntologyIndex.genes``."""
    header = "POTENTIAL_GENES:"
    final = _LIST.format(wanted=WANTED, what="genes", header=header)
    return Task(kind="gene", header=header, answers=answers, questions=_GENE_QUESTIONS, final=final)


def student_task(answers: AnswerList) -> Task:
    """The disease task in the words that a student of the rare diseases was taught.

    Guarantee: without documents and questions its prompt is the one that the student was trained on.
    """
    return replace(disease_task(answers), final=INSTRUCTIONS[RARE_DISEASE.name])


class Gives(IntEnum):
    """How readily a part of a prompt gives way: the largest first, 0 never."""

    QUESTION = 0
    NOTE = 1
    TURN = 2
    REFERENCE = 3


@dataclass(frozen=True)
class Part:
    """A paragraph of a prompt."""

    text: str
    gives: Gives


def base_prompt(note: str, task: Task) -> list[Part]:
    """The note and the question for the list."""
    return [_note(note), Part(task.final, Gives.QUESTION)]


def chain_prompt(note: str, task: Task) -> list[Part]:
    """The note and all questions, the one for the list last."""
    asked = [f"{number}. {question}" for number, question in enumerate(task.questions, start=1)]
    return [
        _note(note),
        Part("\n".join([_CHAIN, *asked]), Gives.QUESTION),
        Part(task.final, Gives.QUESTION),
    ]


def turn_prompt(note: str, turns: Sequence[str], question: str) -> list[Part]:
    """The note, what was asked and answered before, and the next question."""
    return [_note(note), *(Part(turn, Gives.TURN) for turn in turns), Part(question, Gives.QUESTION)]


def with_reference(parts: Sequence[Part], documents: Sequence[Document], place: int) -> list[Part]:
    """The parts with the documents as one more before the part at ``place``; unchanged without documents."""
    if not documents:
        return list(parts)
    texts = "\n".join(document.text for document in documents)
    return [*parts[:place], Part(f"{_REFERENCE} {texts}", Gives.REFERENCE), *parts[place:]]


def held_to_reference(parts: Sequence[Part], documents: Sequence[Document]) -> list[Part]:
    """The parts with the documents first and the rule to rely on them, before the question for the list."""
    if not documents:
        return list(parts)
    told = with_reference(parts, documents, 0)
    return [*told[:-1], Part(_FROM_REFERENCE, Gives.QUESTION), told[-1]]


def _note(note: str) -> Part:
    return Part(" ".join(note.split()), Gives.NOTE)


def fit(parts: Sequence[Part], longest: int, count: Callable[[str], int]) -> tuple[str, int]:
    """A prompt of at most ``longest`` tokens, and how many tokens it lost; it ends with a line break.

    Guarantee: what gives way readily is gone before another part loses a word, and a question loses none.
    The prompt stays too long only where the questions alone are.

    Args:
        parts: In the prompt's order.
        longest: In tokens.
        count: The tokens of a text, as its reader counts them.
    """
    kept = list(parts)
    whole = size = count(_joined(kept))
    for row in sorted(range(len(kept)), key=lambda row: -kept[row].gives):
        if size <= longest or kept[row].gives is Gives.QUESTION:
            break
        kept[row] = _shortened(kept, row, longest, count)
        size = count(_joined(kept))
    return _joined(kept), whole - size


def _shortened(parts: list[Part], row: int, longest: int, count: Callable[[str], int]) -> Part:
    """The part with as many of its first words as fit, none if none do."""
    words = parts[row].text.split(" ")

    def cut(kept: int) -> Part:
        return Part(" ".join(words[:kept]), parts[row].gives)

    fits, fails = 0, len(words)
    while fits + 1 < fails:
        middle = (fits + fails) // 2
        if count(_joined([*parts[:row], cut(middle), *parts[row + 1 :]])) <= longest:
            fits = middle
        else:
            fails = middle
    return cut(fits)


def _joined(parts: Sequence[Part]) -> str:
    return "".join(f"{part.text}\n" for part in parts if part.text)
