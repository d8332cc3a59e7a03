"""Who took the consent back: a list of pseudonyms, one a line, in the home of the cohort.

A line that begins with ``#`` is a comment. People may write lines too; nothing of the file is ever taken
away, and whoever is in it takes part in no later round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from client.patients.records import is_line, pseudonym
from common.atomic import write_atomically
from common.durable import sync_folder
from common.errors import BadFileError
from common.locks import locked

COMMENT = "#"

_PSEUDONYM = re.compile(r"[0-9a-f]{64}")


def read_lines_of(path: Path) -> tuple[str, ...]:
    """The lines of the list as they are, without comments; none where there is no file.

    Raises:
        BadFileError: The list cannot be read. It must not be taken for an empty one.
    """
    lines = (line.strip() for line in _text(path).splitlines())
    return tuple(line for line in lines if line and not line.startswith(COMMENT))


def read_withdrawn(path: Path, key: bytes) -> frozenset[str]:
    """The pseudonyms of those who took the consent back; nobody where there is no file.

    A line counts as all that it `may_mean`. BadFileError as of `read_lines_of`.
    """
    return frozenset(one for line in read_lines_of(path) for one in may_mean(key, line))


def count_withdrawn(path: Path, key: bytes) -> int:
    """How many people the list names, each once. BadFileError as of `read_lines_of`."""
    return len({line if is_pseudonym(line) else pseudonym(key, line) for line in read_lines_of(path)})


def may_mean(key: bytes, patient: str) -> frozenset[str]:
    """The pseudonyms that an id or a pseudonym may mean: an id of the hospital's own may look like one."""
    hashed = pseudonym(key, patient)
    return frozenset({patient, hashed} if is_pseudonym(patient) else {hashed})


def add_withdrawn(path: Path, pseudonyms: Iterable[str], key: bytes) -> int:
    """Add to the list whoever is not in it; how many they are.

    Guarantee: what was in the list stays in it, also after a crash, and where several add at one time.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        known = read_withdrawn(path, key)
        new = [one for one in dict.fromkeys(pseudonyms) if one not in known]
        if new:
            before = _text(path)
            ending = "" if not before or before.endswith("\n") else "\n"
            write_atomically(path, before + ending + "".join(f"{one}\n" for one in new), private=True)
            sync_folder(path.parent)
    return len(new)


def to_pseudonym(key: bytes, patient: str) -> str:
    """The pseudonym of an id of the hospital's own; a pseudonym stays what it is.

    Raises:
        ValueError: It is neither.
    """
    if is_pseudonym(patient):
        return patient
    if not is_line(patient) or patient.startswith(COMMENT):
        raise ValueError(f"Expected a patient's id as one line that does not begin with {COMMENT}")
    return pseudonym(key, patient)


def is_pseudonym(text: str) -> bool:
    """Whether a text has the form of a pseudonym."""
    return _PSEUDONYM.fullmatch(text) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(path, "expected a readable list of patients, one a line, UTF-8") from error
