"""The federation of a simulation: its workers, and a run over either link."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.app import app as client_app
from client.budget import SiteBudget
from client.lessons import KnownRankings, SiteTeaching
from client.preferences.store import create_master_key, read_master_key
from client.session import SiteSession, Work
from client.session_store import MemoryStore
from client.teacher.fit import TeacherRecipe
from client.track_sessions import TrackSessions
from client.worker import SiteWorker
from client.worker_link import Handler, attach, detach
from common.adapter import save_adapter
from common.fixedpoint import Words
from common.ids import RunId, SiteId, site_id
from common.messages import SumTask, TrainTask
from common.pki import Identity, create_identity, read_identity, write_public
from common.plan import RunPlan
from common.privacy.budget import Cap
from common.privacy.ledger import Ledger
from server.app import HEADS_FOLDER, make_app
from server.budget import LEDGER_FILE, open_ledger
from server.lanes import run_tracks
from server.rounds import TrackState
from server.session import Identities
from simulations.grid import run_apps
from simulations.link import MemoryLink
from simulations.planning import AllModels
from simulations.populations import Populations, everyone

COORDINATOR, COORDINATOR_FILE = site_id("coordinator"), "coordinator.json"


def coordinator_identity(home: Path) -> Identity:
    """The identity of a simulation's coordinator, made when it is first asked for."""
    path = home / COORDINATOR_FILE
    home.mkdir(parents=True, exist_ok=True)
    return read_identity(path) if path.exists() else create_identity(path, COORDINATOR)


def make_budgets(
    plan: RunPlan, home: Path, caps: Mapping[str, float] | None = None
) -> dict[SiteId, SiteBudget]:
    """A new ledger for each site of the plan, where it spends a budget.

    ``caps`` by site is the epsilon, at the plan's delta, that the site lets be taken; no other site has one.

    Older ledgers of the same folder are removed, which nobody may do in a hospital: a simulation's patients
    are drawn, or published, and each run is theirs alone.
    """
    if plan.privacy.mode == "none":
        return {}
    coordinator = coordinator_identity(home).public()
    budgets = {}
    for site in plan.sites:
        folder = home / site
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{LEDGER_FILE}*"):
            path.unlink()
        ledger = Ledger.create(folder / LEDGER_FILE, f"simulated patients of {site}")
        limit, delta = (caps or {}).get(site), plan.privacy.delta
        cap = None if limit is None or delta is None else Cap(epsilon=limit, delta=delta)
        budgets[site] = SiteBudget(plan, ledger, site=site, cap=cap, coordinator=coordinator)
    return budgets


Workers = Mapping[str, Mapping[SiteId, SiteWorker]]
"""By track, then by site; a site's workers share its teacher."""


def make_workers(
    plan: RunPlan,
    populations: Populations,
    models: AllModels,
    home: Path,
    recipe: TeacherRecipe,
    caps: Mapping[str, float] | None = None,
    known: KnownRankings | None = None,
) -> Workers:
    """A worker for each site of each track; a site has one home for its key, its pairs and its ledger.

    ``known`` are rankings of equal teachers, as of `SiteTeaching`.
    """
    budgets = make_budgets(plan, home, caps)
    answers = {track: population.answers for track, population in populations.items()}
    teaching = {
        site: SiteTeaching(
            site_id=site,
            plan=plan,
            patients=patients,
            answers=answers,
            memory=next(iter(models.values())).memory,
            store=home / site,
            master_key=_master_key(home / site),
            recipe=recipe,
            budget=budgets.get(site),
            known=known,
        )
        for site, patients in sorted(everyone(populations).items())
    }
    return {
        track.track: {
            site: SiteWorker(
                site_id=site,
                plan=plan,
                track=track.track,
                teaching=teaching[site],
                student=models[track.track].student,
            )
            for site in plan.sites_of(track)
        }
        for track in plan.tracks
    }


def _master_key(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "master.key"
    if not path.exists():
        create_master_key(path)
    return read_master_key(path)


class Clocked:
    """A site's work, with the seconds that its training took."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.seconds = 0.0

    def prepare(self) -> object:
        """As the work does it."""
        return self._work.prepare()

    def words(self, task: SumTask) -> Words:
        """As the work does it; training is on the clock."""
        started = time.perf_counter()
        words = self._work.words(task)
        if isinstance(task, TrainTask):
            self.seconds += time.perf_counter() - started
        return words


def make_sessions(
    plan: RunPlan,
    works: Mapping[str, Mapping[SiteId, Work]],
    budgets: Mapping[SiteId, SiteBudget] | None = None,
) -> tuple[dict[SiteId, TrackSessions], Identities]:
    """The sessions of each site, for its work in each track, and the sites' public identities.

    Everything is made for one run and lives in memory: the sites of a simulation end with their process, and
    approve one another because one person runs them all.
    """
    own = {site: Identity.generate(site) for site in plan.sites}
    identities = {site: identity.public() for site, identity in own.items()}
    by_site: dict[SiteId, dict[str, SiteSession]] = {}
    for track, works_of_track in works.items():
        for site, work in works_of_track.items():
            by_site.setdefault(site, {})[track] = SiteSession(
                plan=plan,
                track=track,
                identity=own[site],
                approved=identities,
                store=MemoryStore(),
                work=work,
                budget=(budgets or {}).get(site),
            )
    return {site: TrackSessions(site, sessions) for site, sessions in by_site.items()}, identities


@dataclass(frozen=True, kw_only=True)
class Federated:
    """Where a track's federation ended.

    Attributes:
        state: Evaluated.
        work_seconds: Of its rounds, those in which its sites trained.
    """

    state: TrackState
    work_seconds: float


def federate(
    plan: RunPlan,
    workers: Workers,
    models: AllModels,
    *,
    link: str,
    folder: Path,
    home: Path,
    on_state: Callable[[TrackState], None],
) -> dict[str, Federated]:
    """Run all tracks of the plan over their workers; where each ended, by track.

    Args:
        plan: The run's.
        workers: By track and site.
        models: By track, with the adapters that the plan names.
        link: ``grid`` for the real ServerApp and ClientApp in this process, ``memory`` without Flower.
        folder: Gets the initial adapters and the coordinator's output.
        home: Holds the coordinator's identity, which the sites' budgets know.
        on_state: Handed every state on the way.
    """
    works = {track: {site: Clocked(w) for site, w in own.items()} for track, own in workers.items()}
    budgets = {
        site: worker.teaching.budget
        for own in workers.values()
        for site, worker in own.items()
        if worker.teaching.budget is not None
    }
    sessions, identities = make_sessions(plan, works, budgets)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (f"{LEDGER_FILE}*", f"{HEADS_FOLDER}/*", "*/journal/*"):
        # What an earlier simulation left: its patients and its sites are gone.
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    run = _run_in_memory if link == "memory" else _run_on_grid
    states = run(plan, sessions, identities, models, folder, home, on_state)
    return {
        track: Federated(state=state, work_seconds=sum(work.seconds for work in works[track].values()))
        for track, state in states.items()
    }


def _run_in_memory(
    plan: RunPlan,
    sessions: Mapping[SiteId, TrackSessions],
    identities: Identities,
    models: AllModels,
    folder: Path,
    home: Path,
    on_state: Callable[[TrackState], None],
) -> dict[str, TrackState]:
    ledger = open_ledger(folder, plan)
    starts = [
        TrackState(
            plan=plan,
            run_id=RunId("run-1"),
            track=track.track,
            adapter=models[track.track].initial,
            identities=identities,
            signer=coordinator_identity(home) if plan.privacy.mode != "none" else None,
        )
        for track in plan.tracks
    ]
    return run_tracks(starts, MemoryLink(sessions), on_state=on_state, ledger=ledger)


def _run_on_grid(
    plan: RunPlan,
    sessions: Mapping[SiteId, TrackSessions],
    identities: Identities,
    models: AllModels,
    folder: Path,
    home: Path,
    on_state: Callable[[TrackState], None],
) -> dict[str, TrackState]:
    last: dict[str, TrackState] = {}

    def keep(state: TrackState) -> None:
        last[state.track] = state
        on_state(state)

    public = folder / "identities"
    public.mkdir(parents=True, exist_ok=True)
    for identity in identities.values():
        write_public(identity, public)
    for track, own_models in models.items():
        save_adapter(own_models.initial, folder / f"{track}.safetensors")
    own = {"identity": os.fspath(home / COORDINATOR_FILE)} if plan.privacy.mode != "none" else {}
    with attached_sessions(sessions):
        run_apps(
            make_app(keep),
            client_app,
            sites=plan.sites,
            run_config={
                "plan": plan.to_json(),
                "adapters": os.fspath(folder),
                "identities": os.fspath(public),
                "out": os.fspath(folder),
                "attempts": 1,
                **own,
            },
        )
    return last


@contextmanager
def attached_sessions(sessions: Mapping[SiteId, Handler]) -> Iterator[None]:
    """Let the client app find the sites for a while."""
    try:
        for site, session in sessions.items():
            attach(site, session)
        yield
    finally:
        for site in sessions:
            detach(site)
