"""The students of a comparison: trained by the federation, by each site alone, and on all data in one place.

Who learns from the same pairs does so in equal steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from client.student.fit import fit_alone
from client.worker import SiteWorker
from common.adapter import Adapter
from common.ids import SiteId
from common.plan import RunPlan
from server.rounds import TrackState
from simulations.federation import TRACK, Models, federate, imitation_plan, make_workers
from simulations.scenarios import Population
from simulations.settings import SimulationSettings
from simulations.stages import Stages


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained student: where it stands, and what it took.

    Attributes:
        adapter: Its values.
        seconds: Of training.
        bytes_up: That one site sent, at most.
        state: Of the federation; None for a student trained alone.
    """

    adapter: Adapter
    seconds: float = 0.0
    bytes_up: int | None = None
    state: TrackState | None = None


Students = Mapping[str, Trained | Mapping[SiteId, Trained]]
"""By method: one student, or one for each site."""


def train_students(
    settings: SimulationSettings,
    plan: RunPlan,
    population: Population,
    models: Models,
    stages: Stages,
) -> Students:
    """Every student of ``settings.methods``, by method."""
    trained: dict[str, Trained | Mapping[SiteId, Trained]] = {"base": Trained(adapter=models.initial)}
    plans = {"orpo": plan}
    if any(method.endswith("_sft") for method in settings.methods):
        plans["sft"] = imitation_plan(plan)
    for loss, its_plan in plans.items():
        workers = make_workers(its_plan, population, models, settings.out / "sites", settings.recipe)
        with stages.stage(f"teachers_and_pairs_{loss}", len(workers)) as advance:
            for worker in workers.values():
                worker.prepare()
                advance(1)
        if f"federated_{loss}" in settings.methods:
            trained[f"federated_{loss}"] = train_federated(settings, its_plan, workers, models, loss, stages)
        if f"local_{loss}" in settings.methods:
            trained[f"local_{loss}"] = train_local(settings, its_plan, workers, models, loss, stages)
        if f"pooled_{loss}" in settings.methods:
            trained[f"pooled_{loss}"] = train_pooled(settings, its_plan, workers, models, loss, stages)
    return trained


def train_federated(
    settings: SimulationSettings,
    plan: RunPlan,
    workers: Mapping[SiteId, SiteWorker],
    models: Models,
    loss: str,
    stages: Stages,
) -> Trained:
    """The federation's student."""
    started = time.perf_counter()
    rounds = plan.track(TRACK).training.rounds
    seen = [0]
    with stages.stage(f"federated_{loss}", rounds) as advance:

        def on_state(state: TrackState) -> None:
            advance(int(state.round_id) - seen[0])
            seen[0] = int(state.round_id)

        state = federate(
            plan,
            workers,
            models.initial,
            link=settings.link,
            folder=settings.out / "coordinator" / loss,
            on_state=on_state,
        )
    largest = max((report.bytes_up // max(1, len(report.survivors)) for report in state.history), default=0)
    return Trained(
        adapter=state.adapter,
        seconds=time.perf_counter() - started,
        bytes_up=largest * len(state.history),
        state=state,
    )


def train_local(
    settings: SimulationSettings,
    plan: RunPlan,
    workers: Mapping[SiteId, SiteWorker],
    models: Models,
    loss: str,
    stages: Stages,
) -> dict[SiteId, Trained]:
    """One student a site, from its own pairs alone, in as many steps as it takes in the federation."""
    training = plan.track(TRACK).training
    done: dict[SiteId, Trained] = {}
    with stages.stage(f"local_{loss}", training.rounds * training.local_steps * len(workers)) as advance:
        for site, worker in workers.items():
            started = time.perf_counter()
            update = fit_alone(
                models.student,
                models.initial,
                worker.prepare().encoded,
                training,
                patients_per_step=training.patients_per_step,
                learning_rate=settings.alone.learning_rate,
                seed=settings.seed,
                on_progress=advance,
            )
            done[site] = Trained(adapter=update.adapter, seconds=time.perf_counter() - started)
    return done


def train_pooled(
    settings: SimulationSettings,
    plan: RunPlan,
    workers: Mapping[SiteId, SiteWorker],
    models: Models,
    loss: str,
    stages: Stages,
) -> Trained:
    """The student of all sites' pairs in one place; pairs, steps and patients a step as in the federation."""
    training = plan.track(TRACK).training
    started = time.perf_counter()
    pooled = [entry for worker in workers.values() for entry in worker.prepare().encoded]
    with stages.stage(f"pooled_{loss}", training.rounds * training.local_steps) as advance:
        update = fit_alone(
            models.student,
            models.initial,
            pooled,
            training,
            patients_per_step=training.patients_per_step * len(workers),
            learning_rate=settings.alone.learning_rate,
            seed=settings.seed,
            on_progress=advance,
        )
    return Trained(adapter=update.adapter, seconds=time.perf_counter() - started)


def federated_student(trained: Students) -> Trained:
    """The student that the run is about."""
    one = trained["federated_orpo"]
    assert isinstance(one, Trained)  # one student for all sites
    return one


def federated_state(trained: Students) -> TrackState:
    """Where the federation of the main method ended."""
    state = federated_student(trained).state
    assert state is not None  # a federated student has one
    return state
