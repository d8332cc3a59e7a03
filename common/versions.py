"""Which versions of the protocol this build speaks, and which one two ends have in common.

The protocol's version is the schema of the messages (``common.wire``). Site and coordinator settle on one
when the site enrols and whenever it renews, and each keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.checks import require
from common.errors import ProtocolTooOldError, UnsupportedSchemaError
from common.wire import SCHEMA


@dataclass(frozen=True, kw_only=True)
class ProtocolRange:
    """Versions from ``oldest`` to ``newest``, both spoken."""

    oldest: int
    newest: int

    def __post_init__(self) -> None:
        require(self.oldest >= 1, "oldest", self.oldest, "a number >= 1")
        require(self.newest >= self.oldest, "newest", self.newest, f"a number >= oldest, {self.oldest}")


# A message of another schema is not read, so one version is all that there is.
SPOKEN = ProtocolRange(oldest=SCHEMA, newest=SCHEMA)


def negotiate(ours: ProtocolRange, theirs: ProtocolRange) -> int:
    """The newest version that both speak.

    Raises:
        ProtocolTooOldError: The other end stopped before ours begin.
        UnsupportedSchemaError: Theirs begin after ours end.
    """
    if theirs.newest < ours.oldest:
        raise ProtocolTooOldError(theirs.newest, ours.oldest)
    if theirs.oldest > ours.newest:
        raise UnsupportedSchemaError("protocol", theirs.oldest, ours.newest)
    return min(ours.newest, theirs.newest)
