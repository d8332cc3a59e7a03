"""What a site keeps of the secure sums of its runs: one record a stage, and which sums are closed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from client.session_store import SessionStore
from common.canonical import canonical_json
from common.errors import StaleSumError
from common.ids import RunId
from common.messages import Message
from common.wire import from_bytes, to_bytes

# One sum is unmasked while the keys of the next are agreed.
OPEN_SUMS = 2


class Stage(StrEnum):
    """A step of a secure sum at a site."""

    ADVERTISE_KEYS = "keys"
    SHARE_KEYS = "shares"
    OPEN_SHARES = "opened"
    MASKED_INPUT = "masked-input"
    SIGN_LIST = "list"
    UNMASK = "unmask"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a site did at one stage.

    Attributes:
        request: Names what it was asked; the same name gets the same answer.
        facts: What later stages need, secrets among it.
        answer: What it sent, or may have sent before a crash; None where a stage answers nothing.
    """

    request: str
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    answer: Message | None = None

    def sent(self) -> Message:
        """The answer of a stage that has one."""
        if self.answer is None:
            raise ValueError("Expected a record with an answer")
        return self.answer

    def to_bytes(self) -> bytes:
        """One line of JSON, then the answer's bytes."""
        head = canonical_json({"request": self.request, "facts": self.facts}).encode()
        return head + b"\n" + (to_bytes(self.answer) if self.answer is not None else b"")

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """The record back."""
        head, _, answer = data.partition(b"\n")
        content = json.loads(head)
        return cls(
            request=content["request"],
            facts=content["facts"],
            answer=from_bytes(answer) if answer else None,
        )


class SumRecords:
    """The records of one track, by run, sum and stage.

    Guarantee: what belongs to a closed sum is erased but for its last answer, and at most ``OPEN_SUMS``
    sums of one run are open, however many a coordinator begins.
    """

    def __init__(self, store: SessionStore) -> None:
        """Keep the records in ``store``, which holds nothing else."""
        self._store = store

    def read(self, run_id: RunId, sum_id: int, stage: Stage) -> Record | None:
        """The record of a stage, if there is one."""
        data = self._store.read(_name(run_id, sum_id, stage))
        return None if data is None else Record.from_bytes(data)

    def write(self, run_id: RunId, sum_id: int, stage: Stage, record: Record) -> None:
        """Store a record; durable when this returns."""
        self._store.write(_name(run_id, sum_id, stage), record.to_bytes())

    def begin(self, run_id: RunId, sum_id: int) -> None:
        """Make room for a sum: other runs end, and so do this run's sums but the one before."""
        self.require_open(run_id, sum_id)
        for name in self._store.names():
            run, _, rest = name.partition(".")
            if run != run_id and rest != "closed":
                # For good: a run that is called back must not get other keys for the sums it had.
                self._mark_closed(RunId(run), _number(rest))
                self._store.erase(name)
        self.close_up_to(run_id, sum_id - OPEN_SUMS)

    def require_open(self, run_id: RunId, sum_id: int) -> None:
        """StaleSumError if this site has closed the sum."""
        # A crash may have come between the last answer and the closing.
        if self._store.read(_name(run_id, sum_id, Stage.UNMASK)) is not None:
            self.close_up_to(run_id, sum_id)
        closed = self._closed(run_id)
        if sum_id <= closed:
            raise StaleSumError(sum_id, f"this site has closed all sums up to {closed}")

    def close_up_to(self, run_id: RunId, sum_id: int) -> None:
        """Close these sums for good and erase their secrets. The last one's unmask answer is kept."""
        # First: a crash in between leaves secrets that nobody reads, and the next call erases.
        self._mark_closed(run_id, sum_id)
        kept = _name(run_id, sum_id, Stage.UNMASK)
        for name in self._store.names():
            run, _, rest = name.partition(".")
            if run == run_id and rest != "closed" and _number(rest) <= sum_id and name != kept:
                self._store.erase(name)

    def _mark_closed(self, run_id: RunId, sum_id: int) -> None:
        if sum_id > self._closed(run_id):
            self._store.write(f"{run_id}.closed", str(sum_id).encode())

    def _closed(self, run_id: RunId) -> int:
        return int(self._store.read(f"{run_id}.closed") or b"0")


def _name(run_id: RunId, sum_id: int, stage: Stage) -> str:
    return f"{run_id}.{sum_id}.{stage}"


def _number(rest: str) -> int:
    """The sum in a name without its run."""
    return int(rest.partition(".")[0])
