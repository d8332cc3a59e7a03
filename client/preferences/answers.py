"""Answers as text, and back.

A student answers with a numbered list under its track's fixed header (MINT, arXiv 2505.05736). What
``write_answers`` writes, ``parse_answers`` reads back unchanged; what a model writes freely is read with
patience, and a name the plan does not know becomes None instead of a guess.
"""

import re
from collections.abc import Iterator, Sequence

from common.tracks import RARE_DISEASE, TISSUE_TYPE, Answer, AnswerList, Modality, Track, fold

# Short, because prompts are read at every step, and fixed, because pairs and students must agree on them.
INSTRUCTIONS = {
    RARE_DISEASE.name: "List the most likely rare diseases of this patient, the most likely first.",
    TISSUE_TYPE.name: "List the most likely tissues of this image, the most likely first.",
}

_NUMBER = re.compile(r"^(?:\d{1,3}\s*[.):]|[-*•])\s*")
_NOISE = " \t'\"`*_“”‘’«»,;"  # noqa: RUF001 - the quotation marks are the point
# A model that explains itself writes "name - because ..." or "name (because ...)". Names may hold these too,
# so the whole line is tried first and each shorter reading after it.
_EXPLANATION = re.compile(r"\s+[-\u2013\u2014]\s+|:\s|\s+\(")

# "Unknown", "The diagnosis is unclear", "Cannot be determined", "I do not know".
_UNKNOWN = re.compile(
    r"(?:(?:the )?(?:diagnosis|disease|tissue|answer)(?: is|:)? )?"
    r"(?:(?:unknown|unclear|undetermined|not (?:known|clear|determined|available)|none|n/?a)"
    r"(?: (?:diagnosis|disease|tissue))?\W*$"
    r"|(?:i |we )?(?:do not|don.t|cannot|can.t|can not|could not|unable to|not able to) (?:be )?"
    r"(?:know|determine|deduce|tell|say|identif))",
    re.IGNORECASE,
)


def write_prompt(track: Track, note: str | None = None) -> str:
    """Return what a student of ``track`` reads before it answers.

    The prompt ends with one line break, so that the answer, which starts with the header's letters, begins
    at a token boundary. A tokenizer's chat template is the student's affair.

    Raises:
        ValueError: The track has no instruction, a text track has no note, or an image track has one.
    """
    if track.name not in INSTRUCTIONS:
        raise ValueError(f"Expected a track among {', '.join(sorted(INSTRUCTIONS))}, got {track.name}")
    instruction = INSTRUCTIONS[track.name]
    text = (note or "").strip()
    if track.modality is Modality.IMAGE:
        if text:
            raise ValueError(f"Expected no note for {track.name}: its student reads the image alone")
        return f"{instruction}\n"
    if not text:
        raise ValueError(f"Expected a note for {track.name}, got an empty one")
    return f"{text}\n{instruction}\n"


def write_answers(header: str, names: Sequence[str]) -> str:
    """Return ``names`` as a numbered list under ``header``, without a line break at the end."""
    if not names:
        raise ValueError("Expected at least one name, got none")
    return "\n".join([header, *(f"{rank}. {name}" for rank, name in enumerate(names, start=1))])


def parse_answers(text: str, header: str, answers: AnswerList) -> list[Answer | None]:
    """Return the answers a text lists, in its order; None stands for a name that is no answer of the plan.

    A numbered line is an answer or None. A line without a number counts where it names an answer, and, in
    a text that numbers nothing, wherever it stands below the header. Text before the header is left out.

    Guarantee: what write_answers wrote is read back unchanged.
    """
    return [answer for _, answer in answer_lines(text, header, answers)]


def answer_lines(text: str, header: str, answers: AnswerList) -> list[tuple[str, Answer | None]]:
    """Return what ``parse_answers`` returns, each after the line it was read from."""
    lines = [line.strip() for line in _below(text, header).splitlines() if line.strip()]
    numbered = any(_NUMBER.match(line) for line in lines)
    found = [(line, _named(line, answers)) for line in lines]
    return [one for one in found if one[1] is not None or _NUMBER.match(one[0]) or not numbered]


def names_exactly(line: str, answer: Answer) -> bool:
    """Whether a line of a list names ``answer`` by its own name; case and white space are ignored."""
    return any(fold(reading) == fold(answer.name) for reading in _readings(line))


def says_unknown(line: str) -> bool:
    """Whether a line of a list says that its writer does not know, instead of a name."""
    return any(_UNKNOWN.match(reading) for reading in _readings(line))


def _below(text: str, header: str) -> str:
    start = text.casefold().find(header.casefold())
    return text if start < 0 else text[start + len(header) :]


def _named(line: str, answers: AnswerList) -> Answer | None:
    for reading in _readings(line):
        answer = answers.find(reading)
        if answer is not None:
            return answer
    return None


def _readings(line: str) -> Iterator[str]:
    """Yield what a line may name, the longest reading first."""
    yield line
    name = _NUMBER.sub("", line.strip(_NOISE), count=1)
    yield name
    yield name.strip(_NOISE)
    yield name.strip(_NOISE + ".")
    for cut in reversed(list(_EXPLANATION.finditer(name))):
        yield name[: cut.start()].strip(_NOISE + ".")
