"""A log of what was let in and what was refused: it only grows, and a changed line is found.

One line of JSON an event. Each holds the hash of the line before, so that a changed, missing or inserted line
breaks the chain behind it. Beside the log lies its head, number and hash of the last line: a log whose tail
was cut is told from a short one. Whoever can write both files can forge both; an administrator who keeps the
head elsewhere (``verify`` prints it) will see that, too.

Guarantee: when ``append`` returns, its line is on the disk, behind all that any process wrote before.

Never a patient's data: an event names runs, plans, rounds, tracks, sites and people who decide.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from common.atomic import PRIVATE_MODE, write_atomically
from common.canonical import canonical_json, labeled_digest, read_object
from common.checks import require, require_schema
from common.errors import AuditBrokenError, SettingsError, one_line

AUDIT_SCHEMA = 1
LINE_LABEL = "consilium line of an audit log v1"
START = labeled_digest("consilium audit log v1").hex()
LONGEST_LINE = 2**16

Clock = Callable[[], datetime]
Fact = str | int | float | bool | None | tuple[str, ...]

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
_OWN = ("schema", "n", "time", "event", "previous", "hash")
# Whoever passes one of these has taken this log for another.
_NEVER = ("patient", "patient_id", "pseudonym", "note", "photo", "label", "token", "secret", "share")


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """A line of the log.

    Attributes:
        n: Its number, from 1.
        time: UTC, ``2026-11-29T10:00:00+00:00``.
        event: What happened, such as ``refused``.
        facts: What it was about; ``reason`` among them, where there is one.
        previous: Hash of the line before; of no line, ``START``.
        hash: Of all of the above.
    """

    n: int
    time: str
    event: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    previous: str
    hash: str

    def to_line(self) -> str:
        """The line, without its end."""
        return canonical_json({**_content(self), "hash": self.hash})


def _content(entry: AuditEntry) -> dict[str, Any]:
    return {
        "schema": AUDIT_SCHEMA,
        "n": entry.n,
        "time": entry.time,
        "event": entry.event,
        "previous": entry.previous,
        **entry.facts,
    }


@dataclass(frozen=True, kw_only=True)
class AuditHead:
    """The last line of a log: what to keep elsewhere.

    Attributes:
        n: Number of lines.
        hash: Of the last.
    """

    n: int
    hash: str


NO_LINES = AuditHead(n=0, hash=START)


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class AuditLog:
    """Appends to a log; threads and processes may share it, each with an object of its own."""

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        """Use the log at ``path``, which is made by the first event."""
        self._path, self._clock = path, clock

    def append(self, event: str, **facts: Fact) -> AuditEntry:
        """Write an event down.

        Raises:
            ValueError: A name that is none, or one that would hold a patient's data or a secret.
            AuditBrokenError: The log is not what was written; nothing goes behind that.
        """
        checked = _checked(event, facts)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._path) as file:
            head = _last(self._path, file)
            entry = _entry(head, self._clock(), event, checked)
            file.seek(0, os.SEEK_END)
            file.write(f"{entry.to_line()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
            _write_head(self._path, AuditHead(n=entry.n, hash=entry.hash))
        return entry

    def entries(self) -> tuple[AuditEntry, ...]:
        """All lines, verified. AuditBrokenError."""
        return read_entries(self._path)


def verify(path: Path, head: AuditHead | None = None) -> AuditHead:
    """Read the log from its first line; where it ends.

    Args:
        path: The log's.
        head: One that was kept elsewhere: the log must hold it.

    Raises:
        AuditBrokenError: Names the first line that is wrong and how, or what is missing.
        UnsupportedSchemaError: A newer version wrote it.
    """
    found = read_entries(path)
    if head is not None:
        _require_holds(path, found, head, "the head that was kept")
    return AuditHead(n=found[-1].n, hash=found[-1].hash) if found else NO_LINES


def read_entries(path: Path) -> tuple[AuditEntry, ...]:
    """All lines of a log, verified; none if nothing was ever written. As `verify` it raises."""
    kept = read_head(path)
    if not path.exists():
        if kept.n:
            raise AuditBrokenError(path, 1, f"the log is gone, its head names {kept.n} lines")
        return ()
    with path.open("rb") as file:
        # Whoever appends is let finish.
        fcntl.flock(file, fcntl.LOCK_SH)
        found = tuple(_chain(path, file))
        kept = read_head(path)
    _require_holds(path, found, kept, "its head")
    return found


def head_file(path: Path) -> Path:
    """Where a log's head lies."""
    return path.with_name(f"{path.name}.head")


def read_head(path: Path) -> AuditHead:
    """The head beside a log; of no lines if there is none. AuditBrokenError."""
    beside = head_file(path)
    try:
        content = read_object(beside.read_text(encoding="utf-8"), "head of an audit log")
        require_schema(str(beside), content.get("schema"), AUDIT_SCHEMA)
        return AuditHead(n=int(content["n"]), hash=str(content["hash"]))
    except FileNotFoundError:
        return NO_LINES
    except (OSError, UnicodeDecodeError, SettingsError, KeyError, ValueError, TypeError) as error:
        raise AuditBrokenError(beside, 1, f"not a readable head ({type(error).__name__})") from error


def _require_holds(path: Path, found: tuple[AuditEntry, ...], head: AuditHead, what: str) -> None:
    if head.n > len(found):
        raise AuditBrokenError(
            path, len(found) + 1, f"cut: {len(found)} lines are left of the {head.n} that {what} names"
        )
    if head.n and found[head.n - 1].hash != head.hash:
        raise AuditBrokenError(path, head.n, f"expected the hash that {what} names")


def _checked(event: str, facts: Mapping[str, Fact]) -> dict[str, Any]:
    for name in (event, *facts):
        if _NAME.fullmatch(name) is None or name in _OWN:
            raise ValueError(f"Expected an event and facts of lower-case letters, got {name!r}")
    for name in facts:
        if name in _NEVER:
            raise ValueError(f"Expected nothing secret and nothing of patients in the log, got {name!r}")
    return {name: one_line(value) if isinstance(value, str) else value for name, value in facts.items()}


def _entry(head: AuditHead, now: datetime, event: str, facts: Mapping[str, Any]) -> AuditEntry:
    time = now.astimezone(UTC).isoformat(timespec="seconds")
    entry = AuditEntry(n=head.n + 1, time=time, event=event, facts=facts, previous=head.hash, hash="")
    return AuditEntry(**{**vars(entry), "hash": _hash(_content(entry))})


def _hash(content: Mapping[str, Any]) -> str:
    return labeled_digest(LINE_LABEL, canonical_json(content).encode()).hex()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_MODE)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _last(path: Path, file: BinaryIO) -> AuditHead:
    """The last whole line's head; what a crash left of a further one is taken away."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * LONGEST_LINE))
    tail = file.read()
    whole, ended, torn = tail.rpartition(b"\n")
    kept = read_head(path)
    if torn:
        # It never was acknowledged: ``append`` had not returned.
        file.truncate(size - len(torn))
    if not ended:
        if kept.n:
            raise AuditBrokenError(path, 1, f"cut: no line is left of the {kept.n} that its head names")
        return NO_LINES
    entry = _parsed(path, whole.rpartition(b"\n")[2], number=None)
    if entry.n < kept.n or (entry.n == kept.n and entry.hash != kept.hash):
        raise AuditBrokenError(path, entry.n, f"expected line {kept.n}, which its head names")
    return AuditHead(n=entry.n, hash=entry.hash)


def _chain(path: Path, file: BinaryIO) -> Iterator[AuditEntry]:
    previous = START
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            raise AuditBrokenError(path, number, "half a line: a crash, or somebody, broke it off")
        entry = _parsed(path, line.rstrip(b"\n"), number)
        if entry.previous != previous:
            raise AuditBrokenError(path, number, "it does not follow the line before")
        previous = entry.hash
        yield entry


def _parsed(path: Path, line: bytes, number: int | None) -> AuditEntry:
    where = number or 0
    try:
        content = read_object(line.decode(), "line")
        require_schema(str(path), content.get("schema"), AUDIT_SCHEMA)
        facts = {name: value for name, value in content.items() if name not in _OWN}
        own = {name: content[name] for name in _OWN if name != "schema"}
        where = number or int(own["n"])
        require(own["n"] == where, "n", own["n"], str(where))
        hashed = _hash({name: value for name, value in content.items() if name != "hash"})
        require(own["hash"] == hashed, "hash", own["hash"], hashed)
        return AuditEntry(facts=facts, **own)
    except (UnicodeDecodeError, SettingsError, KeyError, ValueError, TypeError) as error:
        reason = str(error) if isinstance(error, SettingsError) else type(error).__name__
        raise AuditBrokenError(path, where, f"not the line that was written ({reason})") from error


def _write_head(path: Path, head: AuditHead) -> None:
    content = {"schema": AUDIT_SCHEMA, "n": head.n, "hash": head.hash}
    write_atomically(head_file(path), json.dumps(content) + "\n", private=True)
