"""The federation of a simulation: its plan, its workers, and a run over either link."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from client.app import app as client_app
from client.budget import SiteBudget
from client.lessons import SiteTeaching
from client.preferences.store import create_master_key, read_master_key
from client.session import SiteSession, Work
from client.session_store import MemoryStore
from client.student.model import Student, adapter_spec, digest_base, load_base, make_student
from client.teacher.fit import TeacherRecipe
from client.teacher.sight import Memory
from client.track_sessions import TrackSessions
from client.worker import SiteWorker
from client.worker_link import Handler, attach, detach
from common.adapter import Adapter, initial_adapter, save_adapter
from common.fixedpoint import Words
from common.ids import RunId, SiteId, site_id
from common.learning_plan import AdapterPlan
from common.messages import SumTask, TrainTask
from common.pki import Identity, create_identity, read_identity, write_public
from common.plan import RunPlan, TrackPlan
from common.privacy.budget import Cap
from common.privacy.ledger import Ledger
from common.tracks import Track
from server.app import HEADS_FILE, make_app
from server.budget import LEDGER_FILE, open_ledger
from server.rounds import TrackState, run_track
from server.session import Identities
from simulations.grid import run_apps
from simulations.link import MemoryLink
from simulations.populations import Population, Populations, everyone
from simulations.privacy import calibrated, planned_privacy, planned_teacher, planned_track
from simulations.settings import PlanSettings


@dataclass(frozen=True, kw_only=True)
class Models:
    """What the sites of a simulation share because it is frozen, for one track.

    Attributes:
        base: Folder of the student's base.
        student: The base with LoRA layers; whoever uses it loads an adapter first.
        memory: The teachers' eyes, which look at each patient once; the same for all tracks.
        initial: The adapter that every training starts from.
    """

    base: Path
    student: Student
    memory: Memory
    initial: Adapter


AllModels = Mapping[str, Models]
"""By track."""


def load_models(track: Track, base: Path, memory: Memory, settings: PlanSettings, seed: int) -> Models:
    """Load a track's base once for all sites."""
    model, reader = load_base(str(base), modality=track.modality)
    planned = AdapterPlan(**vars(settings.adapter), factors_digest="0" * 64)
    spec = adapter_spec(model, planned)
    return Models(
        base=base,
        student=make_student(model, reader, spec),
        memory=memory,
        initial=initial_adapter(spec, seed),
    )


def make_plan(
    name: str,
    settings: Mapping[str, PlanSettings],
    populations: Populations,
    models: AllModels,
    seed: int,
) -> RunPlan:
    """The plan that all sites agree on, everything in it named by digest.

    What the tracks have in common is taken from the first track's settings.
    """
    common = settings[next(iter(populations))]
    sites = tuple(sorted({site for population in populations.values() for site in population.sites}))
    tracks = tuple(
        _plan_track(settings[track], population, models[track], sites)
        for track, population in populations.items()
    )
    plan = RunPlan(
        name=name,
        purpose=common.purpose,
        ethics_id=common.ethics_id,
        expires=common.expires,
        seed=seed,
        sites=sites,
        tracks=tracks,
        teacher=planned_teacher(common),
        aggregation=common.aggregation,
        privacy=planned_privacy(common),
    )
    return calibrated(plan, common.privacy.epsilon)


def _plan_track(
    settings: PlanSettings, population: Population, models: Models, sites: tuple[SiteId, ...]
) -> TrackPlan:
    base_digest, tokenizer_digest = digest_base(models.base)
    # About as many as there are: a federation would name a round number here.
    patients = sum(len(site.train) for site in population.sites.values())
    own = tuple(sorted(population.sites))
    return TrackPlan(
        track=population.track.name,
        answers_digest=population.answers.digest(),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        adapter=AdapterPlan(**vars(settings.adapter), factors_digest=models.initial.digest()),
        preferences=settings.preferences,
        training=settings.training,
        server_optimizer=settings.server_optimizer,
        privacy=planned_track(settings, sites=len(own), patients=patients, spec=models.initial.spec),
        sites=() if own == sites else own,
    )


def imitation_plan(plan: RunPlan) -> RunPlan:
    """The same plan for supervised fine-tuning on labels: one name, the label, and no odds ratio."""
    return replace(plan, name=f"{plan.name} sft", tracks=tuple(_imitating(track) for track in plan.tracks))


def _imitating(track: TrackPlan) -> TrackPlan:
    preferences = replace(track.preferences, label_policy="label_first", chosen_length=1)
    return replace(track, preferences=preferences, training=replace(track.training, orpo_lambda=0.0))


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
) -> Workers:
    """A worker for each site of each track; a site has one home for its key, its pairs and its ledger."""
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
    for path in (*folder.glob(f"{LEDGER_FILE}*"), *folder.glob(f"*/{HEADS_FILE}")):
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
    starts = {
        track.track: TrackState(
            plan=plan,
            run_id=RunId("run-1"),
            track=track.track,
            adapter=models[track.track].initial,
            identities=identities,
            signer=coordinator_identity(home) if plan.privacy.mode != "none" else None,
        )
        for track in plan.tracks
    }
    link = MemoryLink(sessions)
    return {
        track: run_track(start, link, on_state=on_state, ledger=ledger) for track, start in starts.items()
    }


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
