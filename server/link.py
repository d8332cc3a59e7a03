"""How the coordinator reaches sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from common.ids import SiteId
from common.messages import Message


class SiteLink(Protocol):
    """One of three: in memory (``simulations.link``), over Flower in one process, between hospitals."""

    def sites(self) -> tuple[SiteId, ...]:
        """The sites that can be reached now."""
        ...

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """Send each site its task; yield what comes back in time, as it comes, and keep none of it.

        A site that is not yielded is a dropout: no answer in time, or none that the link could read; it
        logs which.
        """
        ...
