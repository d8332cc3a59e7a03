"""How the students of one loss are trained: by the federation, by each site alone, on all data in one place.

Who learns from the same pairs does so in equal steps. Text students of one site alone who imitate labels, or
learn by DPO, are trained by TRL's trainers: what a hospital would use that has no federation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from client.lessons import KnownRankings
from client.student.branches import PatientPairs
from client.student.fit import LocalUpdate, fit_alone
from client.student.model import Student
from common.adapter import Adapter
from common.ids import SiteId
from common.learning_plan import TrainingPlan
from common.plan import RunPlan
from common.tracks import TRACKS, Modality
from server.rounds import TrackState
from simulations.federation import Federated, Workers, federate, make_workers
from simulations.kept import ByTrack, Trained
from simulations.planning import AllModels
from simulations.populations import Populations
from simulations.privacy import most_charged, privacy_block
from simulations.settings import SimulationSettings
from simulations.stages import Stages

Starts = Mapping[str, Mapping[SiteId, Adapter]]
"""Adapters by track and site."""


class Alone(Protocol):
    """Trains one student without a federation; arguments and result as of `client.student.fit.fit_alone`."""

    def __call__(
        self,
        student: Student,
        adapter: Adapter,
        patients: Sequence[PatientPairs],
        plan: TrainingPlan,
        *,
        patients_per_step: int,
        learning_rate: float,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
    ) -> LocalUpdate:
        """The trained student."""
        ...


@dataclass(frozen=True, kw_only=True)
class Course:
    """What the students of one loss are trained with: the same pairs, in equal steps.

    Attributes:
        settings: Of the simulation.
        plan: Of this loss.
        populations: Everybody, by track.
        models: By track: base, the adapter to start from, and student.
        loss: As methods name it.
        stages: The run's.
        known: Rankings of teachers that an earlier course trained alike.
    """

    settings: SimulationSettings
    plan: RunPlan
    populations: Populations
    models: AllModels
    loss: str
    stages: Stages
    known: KnownRankings = field(default_factory=dict)

    @cached_property
    def workers(self) -> Workers:
        """The plan's sites with their teachers trained and their pairs made, when they are first needed."""
        settings = self.settings
        workers = make_workers(
            self.plan,
            self.populations,
            self.models,
            settings.out / "sites",
            settings.recipe,
            settings.caps,
            self.known,
        )
        everybody = [(track, worker) for track, own in workers.items() for worker in own.values()]
        with self.stages.stage(f"teachers_and_pairs_{self.loss}", len(everybody)) as advance:
            for track, worker in everybody:
                if self._training(track).rounds:
                    worker.encoded()
                advance(1)
        return workers

    @property
    def unit(self) -> str:
        """What a record stands for."""
        units = {population.unit for population in self.populations.values()}
        return units.pop() if len(units) == 1 else "patient"

    def trainings(self) -> dict[str, Callable[[], ByTrack]]:
        """How each method trains its students of all tracks, by method."""
        return {
            f"federated_{self.loss}": self.train_federated,
            f"local_{self.loss}": self.train_local,
            f"pooled_{self.loss}": self.train_pooled,
        }

    def train_federated(self) -> dict[str, Trained]:
        """The federation's students, by track; one run for all."""
        workers = self.workers
        seen: dict[str, int] = {}
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        rounds = sum(track.all_rounds for track in self.plan.tracks)
        with self.stages.stage(f"federated_{self.loss}", rounds) as advance:

            def on_state(state: TrackState) -> None:
                advance(int(state.round_id) - seen.get(state.track, 0))
                seen[state.track] = int(state.round_id)
                took[state.track] = time.perf_counter() - began.setdefault(state.track, time.perf_counter())

            ended = federate(
                self.plan,
                workers,
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
            plan=self.plan,
            rounds=history,
            retried=ended.state.retried,
            work_seconds=ended.work_seconds,
            privacy=privacy_block(self.plan, entries, self.unit),
            entries=tuple(entries),
            temperature=ended.state.temperature,
        )

    def train_local(self, starts: Starts | None = None) -> dict[str, dict[SiteId, Trained]]:
        """One student a site and track, from its own pairs alone, in as many steps as in the federation.

        ``starts`` are the adapters to begin with, by track and site; the models' if not given.
        """
        workers = self.workers
        total = sum(self._steps(track) * len(own) for track, own in workers.items())
        with self.stages.stage(f"local_{self.loss}", total) as advance:
            return {
                track: {
                    site: self._train_alone(
                        track,
                        worker.encoded(),
                        self._batch(track),
                        advance,
                        fit=self._trainer(track),
                        start=None if starts is None else starts[track][site],
                    )
                    for site, worker in own.items()
                }
                for track, own in workers.items()
            }

    def train_pooled(self) -> dict[str, Trained]:
        """The students of all pairs in one place; steps and patients a step as in the federation."""
        workers = self.workers
        total = sum(self._steps(track) for track in workers)
        with self.stages.stage(f"pooled_{self.loss}", total) as advance:
            return {
                track: self._train_alone(
                    track,
                    [entry for worker in own.values() for entry in worker.encoded()],
                    self._batch(track) * len(own),
                    advance,
                )
                for track, own in workers.items()
            }

    def _trainer(self, track: str) -> Alone:
        """What trains a site's own student: TRL where it has a trainer for the loss and the track."""
        if TRACKS[track].modality is Modality.IMAGE or self.loss == "orpo":
            return fit_alone
        from simulations.trl_baselines import fit_dpo, fit_sft

        return fit_dpo if self._training(track).loss == "dpo" else fit_sft

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
        *,
        fit: Alone = fit_alone,
        start: Adapter | None = None,
    ) -> Trained:
        started = time.perf_counter()
        update = fit(
            self.models[track].student,
            start or self.models[track].initial,
            patients,
            self._training(track),
            patients_per_step=patients_per_step,
            learning_rate=self.settings.alone.learning_rate,
            seed=self.settings.seed,
            on_progress=advance,
        )
        return Trained(adapter=update.adapter, seconds=time.perf_counter() - started)
