"""The students of a comparison: trained by the federation, by each site alone, and on all data in one place.

Who learns from the same pairs does so in equal steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from client.student.branches import PatientPairs
from client.student.fit import fit_alone
from common.adapter import Adapter
from common.ids import SiteId
from common.learning_plan import TrainingPlan
from common.plan import RunPlan
from common.privacy.ledger import Entry
from server.rounds import TrackState
from simulations.federation import Federated, Workers, federate, make_workers
from simulations.planning import AllModels, imitation_plan
from simulations.populations import Populations
from simulations.privacy import most_charged, privacy_block
from simulations.settings import SimulationSettings
from simulations.stages import Stages
from simulations.sweep import SWEEP_FOLDER, sweep_plans


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained student: where it stands, and what it took.

    Attributes:
        adapter: Its values.
        seconds: Of training.
        bytes_up: That one site sent, at most.
        state: Of the federation; None for a student trained alone.
        work_seconds: Of a federation's rounds, those in which its sites trained.
        privacy: What a federation took from a patient, as ``results.json`` says it; None for other students.
        entries: Of the ledger of the site that was charged most.
    """

    adapter: Adapter
    seconds: float = 0.0
    bytes_up: int | None = None
    state: TrackState | None = None
    work_seconds: float = 0.0
    privacy: Mapping[str, Any] | None = None
    entries: Sequence[Entry] = ()


Students = Mapping[str, Trained | Mapping[SiteId, Trained]]
"""Of a track, by method: one student, or one for each site."""
AllStudents = Mapping[str, Students]
"""By track."""


def train_students(
    settings: SimulationSettings,
    plan: RunPlan,
    populations: Populations,
    models: AllModels,
    stages: Stages,
) -> AllStudents:
    """Every student of ``settings.methods`` and of its sweep, by track and method."""
    trained: dict[str, dict[str, Trained | Mapping[SiteId, Trained]]] = {
        track: {"base": Trained(adapter=models[track].initial)} for track in populations
    }
    # Before the first training: a point whose promise cannot be kept is then refused at once.
    swept = sweep_plans(settings, populations, models)
    plans = {"orpo": plan}
    if any(method.endswith("_sft") for method in settings.methods):
        plans["sft"] = imitation_plan(plan)
    for loss, its_plan in plans.items():
        course = _course(settings, its_plan, populations, models, loss, stages)
        for name, train in course.trainings().items():
            if name in settings.methods:
                for track, one in train().items():
                    trained[track][name] = one
    for name, its_plan in swept.items():
        # A folder for each: the same patients spend a budget in every one, and only one would be given out.
        apart = replace(settings, out=settings.out / SWEEP_FOLDER / name, link="memory")
        course = _course(apart, its_plan, populations, models, name.removeprefix("federated_"), stages)
        for track, one in course.train_federated().items():
            trained[track][name] = one
    return trained


def _course(
    settings: SimulationSettings,
    plan: RunPlan,
    populations: Populations,
    models: AllModels,
    loss: str,
    stages: Stages,
) -> Course:
    """The plan's sites with their teachers trained and their pairs made."""
    workers = make_workers(plan, populations, models, settings.out / "sites", settings.recipe, settings.caps)
    everybody = [worker for own in workers.values() for worker in own.values()]
    with stages.stage(f"teachers_and_pairs_{loss}", len(everybody)) as advance:
        for worker in everybody:
            worker.encoded()
            advance(1)
    units = {population.unit for population in populations.values()}
    return Course(
        settings=settings,
        plan=plan,
        workers=workers,
        models=models,
        loss=loss,
        stages=stages,
        unit=units.pop() if len(units) == 1 else "patient",
    )


@dataclass(frozen=True, kw_only=True)
class Course:
    """What the students of one loss are trained with: the same pairs, in equal steps.

    Attributes:
        settings: Of the simulation.
        plan: Of this loss.
        workers: By track and site, with their pairs made.
        models: By track: base, adapter and student.
        loss: As methods name it.
        stages: The run's.
        unit: What a record stands for.
    """

    settings: SimulationSettings
    plan: RunPlan
    workers: Workers
    models: AllModels
    loss: str
    stages: Stages
    unit: str = "patient"

    def trainings(self) -> dict[str, Callable[[], Mapping[str, Trained | Mapping[SiteId, Trained]]]]:
        """How each method trains its students of all tracks, by method."""
        return {
            f"federated_{self.loss}": self.train_federated,
            f"local_{self.loss}": self.train_local,
            f"pooled_{self.loss}": self.train_pooled,
        }

    def train_federated(self) -> dict[str, Trained]:
        """The federation's students, by track; one run for all."""
        seen: dict[str, int] = {}
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        rounds = sum(track.training.rounds for track in self.plan.tracks)
        with self.stages.stage(f"federated_{self.loss}", rounds) as advance:

            def on_state(state: TrackState) -> None:
                advance(int(state.round_id) - seen.get(state.track, 0))
                seen[state.track] = int(state.round_id)
                took[state.track] = time.perf_counter() - began.setdefault(state.track, time.perf_counter())

            ended = federate(
                self.plan,
                self.workers,
                self.models,
                link=self.settings.link,
                folder=self.settings.out / "coordinator" / self.loss,
                home=self.settings.out / "sites",
                on_state=on_state,
            )
        return {track: self._trained(one, took[track]) for track, one in ended.items()}

    def _trained(self, ended: Federated, seconds: float) -> Trained:
        entries = most_charged(
            self.plan,
            (
                worker.teaching.budget.entries()
                for worker in self.workers[ended.state.track].values()
                if worker.teaching.budget is not None
            ),
        )
        history = ended.state.history
        sent = (report.bytes_up // max(1, len(report.survivors)) for report in history)
        return Trained(
            adapter=ended.state.adapter,
            seconds=seconds,
            bytes_up=max(sent, default=0) * len(history),
            state=ended.state,
            work_seconds=ended.work_seconds,
            privacy=privacy_block(self.plan, entries, self.unit),
            entries=entries,
        )

    def train_local(self) -> dict[str, dict[SiteId, Trained]]:
        """One student a site and track, from its own pairs alone, in as many steps as in the federation."""
        total = sum(self._steps(track) * len(own) for track, own in self.workers.items())
        with self.stages.stage(f"local_{self.loss}", total) as advance:
            return {
                track: {
                    site: self._train_alone(track, worker.encoded(), self._batch(track), advance)
                    for site, worker in own.items()
                }
                for track, own in self.workers.items()
            }

    def train_pooled(self) -> dict[str, Trained]:
        """The students of all pairs in one place; steps and patients a step as in the federation."""
        total = sum(self._steps(track) for track in self.workers)
        with self.stages.stage(f"pooled_{self.loss}", total) as advance:
            return {
                track: self._train_alone(
                    track,
                    [entry for worker in own.values() for entry in worker.encoded()],
                    self._batch(track) * len(own),
                    advance,
                )
                for track, own in self.workers.items()
            }

    def _training(self, track: str) -> TrainingPlan:
        return self.plan.track(track).training

    def _batch(self, track: str) -> int:
        return self._training(track).patients_per_step

    def _steps(self, track: str) -> int:
        return self._training(track).rounds * self._training(track).local_steps

    def _train_alone(
        self,
        track: str,
        patients: Sequence[PatientPairs],
        patients_per_step: int,
        advance: Callable[[int], None],
    ) -> Trained:
        started = time.perf_counter()
        update = fit_alone(
            self.models[track].student,
            self.models[track].initial,
            patients,
            self._training(track),
            patients_per_step=patients_per_step,
            learning_rate=self.settings.alone.learning_rate,
            seed=self.settings.seed,
            on_progress=advance,
        )
        return Trained(adapter=update.adapter, seconds=time.perf_counter() - started)


def federated_student(trained: Students) -> Trained:
    """The student that a track is about."""
    one = trained["federated_orpo"]
    assert isinstance(one, Trained)  # one student for all sites
    return one


def federated_state(trained: Students) -> TrackState:
    """Where the federation of the main method ended."""
    state = federated_student(trained).state
    assert state is not None  # a federated student has one
    return state
