"""Sites in memory, one after another, with faults on demand.

The link is what the coordinator sees of a network. Every message goes through its bytes, so that nothing
is shared that a network would not carry. A fault is named by round and site and happens once: a round
that is tried again meets the fault no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from common.errors import FederationError
from common.ids import RoundId, SiteId
from common.messages import Bundle, Message, PrepareTask, TrainTask, refusal
from common.wire import from_bytes, to_bytes

logger = logging.getLogger(__name__)

PREPARATION = RoundId(0)
INJECTED = "a fault of the simulation"


class Fault(StrEnum):
    """What happens to one site in one round."""

    DROP = "drop"
    """The task does not reach the site."""

    LATE = "late"
    """The site does its work, and the answer comes after the deadline."""

    REFUSE = "refuse"
    """The site refuses the task."""


Handler = Callable[[Message], Message]
Faults = Mapping[tuple[RoundId, SiteId], Fault]
NO_FAULTS: Faults = MappingProxyType({})


class MemoryLink:
    """A ``SiteLink`` over handlers in this process.

    Faults hit preparation (round 0) and training tasks, with what rides on them; the rest is left alone.
    """

    def __init__(self, handlers: Mapping[SiteId, Handler], faults: Faults = NO_FAULTS) -> None:
        """Reach each site through its handler; let ``faults`` happen, each once."""
        for _, site in faults:
            if site not in handlers:
                raise ValueError(f"Expected faults at sites of the link, got {site}")
        self._handlers = dict(handlers)
        self._faults = dict(faults)

    def sites(self) -> tuple[SiteId, ...]:
        """All sites, by name."""
        return tuple(sorted(self._handlers))

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """Have the sites do their tasks one after another. Time is not measured: only ``LATE`` is late."""
        if not timeout_s > 0:
            raise ValueError(f"Expected timeout_s > 0, got {timeout_s}")
        for site, task in tasks.items():
            reply = self._deliver(site, task)
            if reply is not None:
                yield site, reply

    def _deliver(self, site: SiteId, task: Message) -> Message | None:
        """What comes back in time from ``site``."""
        fault = self._fault_of(site, task)
        if site not in self._handlers or fault is Fault.DROP:
            return None
        if fault is Fault.REFUSE:
            return refusal(task.run_id, site, INJECTED)
        reply = _answer(self._handlers[site], site, task)
        return None if fault is Fault.LATE else reply

    def _fault_of(self, site: SiteId, task: Message) -> Fault | None:
        for part in task.parts if isinstance(task, Bundle) else (task,):
            if isinstance(part, TrainTask | PrepareTask):
                round_id = part.round_id if isinstance(part, TrainTask) else PREPARATION
                return self._faults.pop((round_id, site), None)
        return None


def _answer(handle: Handler, site: SiteId, task: Message) -> Message:
    """As the client app does it: through bytes, and a refusal for what the world may do."""
    try:
        return from_bytes(to_bytes(handle(from_bytes(to_bytes(task)))))
    except FederationError as error:
        return refusal(task.run_id, site, str(error))
