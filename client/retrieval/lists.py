"""What a reader's list says: which answers, whether its form is right, whether it abstained.

The published reader of lists knew one header, and neither a space after it nor a list of genes; ours reads
any header, and what is missing or unknown keeps its place, so that ranks stay true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from client.preferences.answers import parse_answers, says_unknown
from common.tracks import Answer, AnswerList

_NUMBERED = re.compile(r"(\d{1,3})\s*[.):]\s*(.*)")


@dataclass(frozen=True, kw_only=True)
class ListRead:
    """A list as it was read.

    Attributes:
        ranked: Ids of the answers in the list's order; None where a name is no answer or was there before.
        format_ok: Whether there are exactly the wanted numbered lines under the header, and nothing else.
        abstained: Whether there is no list at all, or it says that nothing is known.
    """

    ranked: tuple[str | None, ...]
    format_ok: bool
    abstained: bool


def read_list(text: str, header: str, answers: AnswerList, wanted: int) -> ListRead:
    """Read the list under the last header of a text; without one only lines that name an answer count."""
    _, found, below = _last(text, header)
    parsed = parse_answers(f"{header}\n{below}" if found else text, header, answers)
    if not found:
        # Numbered lines of a text without a header may be reasoning.
        parsed = [answer for answer in parsed if answer is not None]
    lines = [line.strip() for line in below.splitlines() if line.strip()]
    says_nothing = all(says_unknown(line) or not _name(line) for line in lines)
    none_named = not any(parsed)
    return ListRead(
        ranked=_each_once(parsed),
        format_ok=found and _is_numbered(lines, wanted),
        abstained=none_named and (not found or says_nothing),
    )


def before_list(text: str, header: str) -> str:
    """What a text says before its last list; all of it where it has none."""
    return _last(text, header)[0].rstrip()


def _last(text: str, header: str) -> tuple[str, bool, str]:
    """What is before the last header, whether there is one, and what is below it."""
    pattern = r"\s*:".join(map(re.escape, header.split(":")))
    places = list(re.finditer(pattern, text, re.IGNORECASE))
    if not places:
        return text, False, ""
    return text[: places[-1].start()], True, text[places[-1].end() :]


def _name(line: str) -> str:
    numbered = _NUMBERED.fullmatch(line)
    return (numbered[2] if numbered else line).strip(" \t'\"`*-")


def _is_numbered(lines: Sequence[str], wanted: int) -> bool:
    numbers = [int(found[1]) for line in lines if (found := _NUMBERED.fullmatch(line)) and _name(line)]
    return len(lines) == wanted and numbers == list(range(1, wanted + 1))


def _each_once(parsed: Sequence[Answer | None]) -> tuple[str | None, ...]:
    seen: set[str] = set()
    ranked: list[str | None] = []
    for answer in parsed:
        new = answer is not None and answer.id not in seen
        ranked.append(answer.id if answer is not None and new else None)
        seen |= {answer.id} if answer is not None else set()
    return tuple(ranked)
