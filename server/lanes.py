"""All tracks of a run at once: one exchange with the sites carries the tasks of all of them.

An exchange between hospitals costs seconds whatever it carries, so tracks share them. Each track runs in a
lane, a thread with the same code that runs a track alone (``server.rounds``), over a link that waits until
every lane wants an exchange, has ended, or pauses before another attempt. What the lanes ask of a site
travels as one bundle, and each lane gets the answers to its own part as they come, one site at a time.

Guarantee: the tracks end as they would one after another, with the exchanges of the longest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

from common.ids import SiteId
from common.messages import Bundle, Message, bundle
from common.privacy.ledger import Ledger
from server.link import SiteLink
from server.rounds import run_track
from server.track_state import OnBegin, OnState, TrackState, no_journal

logger = logging.getLogger(__name__)

Tasks = Mapping[SiteId, Message]
T = TypeVar("T")


class Standing(Enum):
    """What a lane does."""

    WORKING = auto()
    ASKING = auto()
    AWAY = auto()
    ENDED = auto()


@dataclass(eq=False)
class Lane:
    """One track's place in the rendezvous; what is in it belongs to the lock of its ``Rendezvous``.

    Attributes:
        standing: What it does.
        tasks: What it asks, while it is asking.
        timeout_s: How long it would wait for answers.
        answer: The one that it is handed; None when it has taken it.
        hungry: Whether it waits for the next one.
    """

    standing: Standing = Standing.WORKING
    tasks: Tasks = field(default_factory=dict)
    timeout_s: float = 0.0
    answer: tuple[SiteId, Message] | None = None
    hungry: bool = False


class StoppedError(Exception):
    """The run ends for another reason than this lane's own."""


class Rendezvous:
    """Where lanes meet for an exchange; ``carry`` makes the exchanges, in the caller's own thread."""

    def __init__(self, link: SiteLink, lanes: Sequence[Lane]) -> None:
        """For ``lanes``, over ``link``."""
        self._link, self._lanes = link, lanes
        self._changed = threading.Condition()
        # A link is for one thread at a time.
        self._link_lock = threading.Lock()
        self._stopped = False

    def carry(self) -> None:
        """Make exchanges until every lane has ended. Raises what the link raises."""
        while asking := self._asking():
            self._exchange(asking)

    def stop(self) -> None:
        """Have every lane end at its next step."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def sites(self) -> tuple[SiteId, ...]:
        """Of the link."""
        with self._link_lock:
            return self._link.sites()

    def ask(self, lane: Lane, tasks: Tasks, timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """A lane's part of the next exchange: its answers, as they come."""
        with self._changed:
            lane.tasks, lane.timeout_s, lane.answer = tasks, timeout_s, None
            self._stand(lane, Standing.ASKING)
        try:
            while (answer := self._next(lane, tasks)) is not None:
                yield answer
                del answer
        finally:
            # Also where the lane wants no more of them: nobody may wait for it.
            with self._changed:
                if lane.tasks is tasks and lane.standing is Standing.ASKING:
                    self._stand(lane, Standing.WORKING)

    def pause(self, lane: Lane, seconds: float) -> None:
        """Wait; the other lanes go on."""
        with self._changed:
            self._stand(lane, Standing.AWAY)
            self._changed.wait_for(lambda: self._stopped, seconds)
            self._stand(lane, Standing.WORKING)
            self._require_going()

    def end(self, lane: Lane) -> None:
        """Never wait for it again."""
        with self._changed:
            self._stand(lane, Standing.ENDED)

    def _stand(self, lane: Lane, standing: Standing) -> None:
        lane.standing, lane.hungry = standing, False
        self._changed.notify_all()

    def _next(self, lane: Lane, tasks: Tasks) -> tuple[SiteId, Message] | None:
        """The next answer; None after the last."""

        def is_over() -> bool:
            return lane.tasks is not tasks or lane.standing is not Standing.ASKING

        with self._changed:
            lane.hungry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: lane.answer is not None or is_over() or self._stopped)
            self._require_going()
            if is_over():
                return None
            answer, lane.answer, lane.hungry = lane.answer, None, False
            return answer

    def _require_going(self) -> None:
        if self._stopped:
            raise StoppedError("the run ends")

    def _asking(self) -> list[Lane]:
        """The lanes that want an exchange, as soon as no other may still want it; none at the end."""

        def asking() -> list[Lane]:
            return [lane for lane in self._lanes if lane.standing is Standing.ASKING]

        def is_settled() -> bool:
            standings = {lane.standing for lane in self._lanes}
            return (
                self._stopped
                or standings <= {Standing.ENDED}
                or (Standing.WORKING not in standings and Standing.ASKING in standings)
            )

        with self._changed:
            self._changed.wait_for(is_settled)
            return [] if self._stopped else asking()

    def _exchange(self, asking: Sequence[Lane]) -> None:
        """One exchange for all of them."""
        asked = [(lane, lane.tasks) for lane in asking]
        parts: dict[SiteId, list[tuple[Lane, tuple[Message, ...]]]] = {}
        for lane, tasks in asked:
            for site, task in tasks.items():
                parts.setdefault(site, []).append((lane, _parts(task)))
        tasks_by_site = {
            site: bundle(tuple(part for _, own in by_lane for part in own)) for site, by_lane in parts.items()
        }
        answers = self._link.exchange(tasks_by_site, max(lane.timeout_s for lane in asking))
        while (answer := self._from_link(lambda: next(answers, None))) is not None and not self._stopped:
            site, reply = answer
            self._hand_over(site, _divided(reply, parts[site]), dict(asked))
            del answer, reply
        with self._changed:
            for lane, tasks in asked:
                if lane.tasks is tasks and lane.standing is Standing.ASKING:
                    self._stand(lane, Standing.WORKING)

    def _from_link(self, ask: Callable[[], T]) -> T:
        with self._link_lock:
            return ask()

    def _hand_over(
        self, site: SiteId, replies: Sequence[tuple[Lane, Message]], asked: Mapping[Lane, Tasks]
    ) -> None:
        """Give each lane its own; back when all have done with it: two answers may not fit in memory."""

        def is_done(lane: Lane) -> bool:
            gone = lane.standing is not Standing.ASKING or lane.tasks is not asked[lane]
            return gone or (lane.answer is None and lane.hungry)

        lanes = [lane for lane, _ in replies]
        with self._changed:
            for lane, reply in replies:
                if lane.standing is Standing.ASKING and lane.tasks is asked[lane]:
                    lane.answer = site, reply
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or all(is_done(lane) for lane in lanes))


@dataclass(frozen=True)
class LaneLink:
    """The link that one lane's track sees."""

    rendezvous: Rendezvous
    lane: Lane

    def sites(self) -> tuple[SiteId, ...]:
        """The sites that can be reached now."""
        return self.rendezvous.sites()

    def exchange(self, tasks: Tasks, timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """As ``SiteLink``, together with the other lanes."""
        return self.rendezvous.ask(self.lane, tasks, timeout_s)

    def pause(self, seconds: float) -> None:
        """Wait, and keep nobody waiting."""
        self.rendezvous.pause(self.lane, seconds)


def run_tracks(
    states: Sequence[TrackState],
    link: SiteLink,
    *,
    on_state: OnState,
    on_begin: OnBegin = no_journal,
    attempts: int = 1,
    pause_s: float = 0.0,
    ledger: Ledger | None = None,
) -> dict[str, TrackState]:
    """Run every track to its end, as ``run_track`` does; where each ended, by track.

    ``on_state`` and ``on_begin`` are called for one track at a time, in that track's thread. A track that
    fails lets the others go on to their end; what ended the first of them is raised then. What the link
    raises, and what no track may go on after (``KeyboardInterrupt``), ends all at once.
    """
    lanes = {state.track: Lane() for state in states}
    rendezvous = Rendezvous(link, tuple(lanes.values()))
    ended: dict[str, TrackState] = {}
    errors: list[BaseException] = []
    alone = threading.Lock()

    def reported(state: TrackState) -> None:
        with alone:
            on_state(state)

    def begun(state: TrackState, sum_id: int) -> None:
        with alone:
            on_begin(state, sum_id)

    def run(state: TrackState) -> None:
        lane = LaneLink(rendezvous, lanes[state.track])
        try:
            ended[state.track] = run_track(
                state,
                lane,
                on_state=reported,
                on_begin=begun,
                attempts=attempts,
                pause_s=pause_s,
                pause=lane.pause,
                ledger=ledger,
            )
        except StoppedError:
            logger.info("%s: ended with the run", state.track)
        except Exception as error:
            logger.error("%s: %s; the other tracks go on", state.track, error)
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            rendezvous.stop()
        finally:
            rendezvous.end(lane.lane)

    threads = [threading.Thread(target=run, args=(state,), name=f"lane-{state.track}") for state in states]
    try:
        for thread in threads:
            thread.start()
        rendezvous.carry()
    finally:
        # Nobody waits for an exchange that will not come.
        rendezvous.stop()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return {state.track: ended[state.track] for state in states}


def _parts(task: Message) -> tuple[Message, ...]:
    return task.parts if isinstance(task, Bundle) else (task,)


def _divided(
    reply: Message, by_lane: Sequence[tuple[Lane, tuple[Message, ...]]]
) -> list[tuple[Lane, Message]]:
    """Each lane's part of a site's answer; an answer that is not one to each part answers every lane."""
    number = sum(len(own) for _, own in by_lane)
    if len(by_lane) == 1 or not isinstance(reply, Bundle) or len(reply.parts) != number:
        return [(lane, reply) for lane, _ in by_lane]
    divided, start = [], 0
    for lane, own in by_lane:
        divided.append((lane, bundle(reply.parts[start : start + len(own)])))
        start += len(own)
    return divided
