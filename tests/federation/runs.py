"""A coordinator's run over sites in memory, which outlive it, and a fuse that ends its process where told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

import server.journal
import server.stored_state
from client.track_sessions import TrackSessions
from common.ids import SiteId
from common.messages import Bundle, MaskedInput, Message, TrainTask
from common.plan import RunPlan
from common.privacy.ledger import Entry, Ledger
from server.budget import open_ledger
from server.journal import Journal
from server.lanes import run_tracks
from server.rounds import TrackState
from simulations.link import Handler, MemoryLink
from tests.fakes import (
    COORDINATOR,
    RUN,
    FakeWork,
    fake_budgets,
    fake_identities,
    fake_sites,
    private_works,
    tiny_adapter,
)

NEVER = 10**9


class Killed(BaseException):
    """The process is gone."""


class Fuse:
    """Counts the instants of a run; at one of them, and at all later ones, the process ends."""

    def __init__(self, at: int = NEVER) -> None:
        self.at, self.passed, self._lock = at, 0, threading.Lock()

    def burn(self) -> None:
        with self._lock:
            self.passed += 1
            if self.passed >= self.at:
                raise Killed

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def burning(*args: Any, **kwargs: Any) -> Any:
            self.burn()
            result = inner(*args, **kwargs)
            self.burn()
            return result

        return burning


def fuse_journal(fuse: Fuse, patch: pytest.MonkeyPatch) -> None:
    """Have the fuse burn before and after every file that the journal brings to its place."""
    for module, name in (
        (server.journal, "write_durable"),
        (server.journal, "write_text_durably"),
        (server.stored_state, "move_durably"),
    ):
        patch.setattr(module, name, fuse.around(getattr(module, name)))


def parts_of(message: Message) -> tuple[Message, ...]:
    return message.parts if isinstance(message, Bundle) else (message,)


@dataclass
class FusedLink:
    """A link whose exchanges burn the fuse: before the sites are asked, behind every answer, at the end.

    It keeps who sent a masked input for which sum of training: that much was released.
    """

    inner: MemoryLink
    fuse: Fuse
    released: set[tuple[SiteId, str, int]]
    exchanges: int = 0

    def sites(self) -> tuple[SiteId, ...]:
        return self.inner.sites()

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        self.exchanges += 1
        self.fuse.burn()
        for site, reply in self.inner.exchange(tasks, timeout_s):
            training = {
                (part.track, part.sum_id) for part in parts_of(tasks[site]) if isinstance(part, TrainTask)
            }
            self.released |= {
                (site, part.track, part.sum_id)
                for part in parts_of(reply)
                if isinstance(part, MaskedInput) and (part.track, part.sum_id) in training
            }
            self.fuse.burn()
            yield site, reply
        self.fuse.burn()


@dataclass
class FusedLedger:
    """The coordinator's ledger, whose charges burn the fuse before and after."""

    inner: Ledger
    fuse: Fuse

    def entries(self) -> tuple[Entry, ...]:
        return self.inner.entries()

    def charge(self, charge: Any) -> Entry:
        return self.fuse.around(self.inner.charge)(charge)


def sites_of(plan: RunPlan, folder: Path) -> dict[SiteId, Handler]:
    """Each site of the plan, with its sessions for all tracks; other patients in each track."""
    private = plan.privacy.mode != "none"
    budgets = fake_budgets(plan, folder / "sites") if private else None
    by_track = {}
    for number, track in enumerate(plan.tracks):
        works: Any = private_works(plan)
        if not private:
            works = {
                site: FakeWork(site=site, plan=plan, patients=10 * place + number)
                for place, site in enumerate(plan.sites, 1)
            }
        mine = {site: works[site] for site in plan.sites_of(track)}
        by_track[track.track] = fake_sites(plan, mine, track=track.track, budgets=budgets)
    return {
        site: TrackSessions(site, {name: sites[site] for name, sites in by_track.items() if site in sites})
        for site in plan.sites
    }


def starts_of(plan: RunPlan) -> list[TrackState]:
    """The state before the first round of every track."""
    public = {site: identity.public() for site, identity in fake_identities(plan).items()}
    return [
        TrackState(
            plan=plan,
            run_id=RUN,
            track=track.track,
            adapter=tiny_adapter(),
            identities=public,
            signer=COORDINATOR if plan.privacy.mode != "none" else None,
        )
        for track in plan.tracks
    ]


@dataclass
class Coordinator:
    """A coordinator whose process may end; its folder and the sites stay."""

    plan: RunPlan
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.sites = sites_of(self.plan, self.folder)
        self.released: set[tuple[SiteId, str, int]] = set()

    @property
    def out(self) -> Path:
        return self.folder / "run-1"

    def run(self, fuse: Fuse, *, attempts: int = 1) -> dict[str, TrackState]:
        """Begin the run, or go on with it."""
        self.link = FusedLink(MemoryLink(self.sites), fuse, self.released)
        with pytest.MonkeyPatch.context() as patch:
            fuse_journal(fuse, patch)
            with Journal.open(self.out, self.plan, RUN) as journal:
                ledger: Any = open_ledger(self.out, self.plan)
                return run_tracks(
                    [journal.resume(start) for start in starts_of(self.plan)],
                    self.link,
                    on_state=journal.close,
                    on_begin=journal.begin,
                    ledger=FusedLedger(ledger, fuse) if ledger else None,
                    attempts=attempts,
                )

    def killed_at(self, instant: int) -> dict[str, TrackState]:
        """The run's end, when its process was killed at this instant and another one resumed it."""
        with pytest.raises(Killed):
            self.run(Fuse(instant))
        return self.run(Fuse())


def two_tracks(plan: RunPlan) -> RunPlan:
    """The same plan for a second track."""
    (first,) = plan.tracks
    return replace(plan, tracks=(first, replace(first, track="tissue_type")))
