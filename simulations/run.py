"""`consilium-simulate`: a whole federation on one machine.

Hospitals, teachers, pairs, rounds over the real ServerApp and ClientApp, the students it is compared with,
``results.json``, ``predictions/``, ``students/`` and ``report.html``.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from client.student.fit import fit_alone
from client.student.predict import StudentCard, save_student
from client.student.predictions import write_predictions
from client.worker import SiteWorker
from common.adapter import Adapter
from common.atomic import write_atomically
from common.errors import FederationError
from common.ids import SiteId
from common.plan import RunPlan
from common.tracks import Eye
from server.rounds import TrackState
from simulations.comparisons import Bench, Judged, TeacherLists, rank_test_patients, teacher_lists
from simulations.federation import (
    TRACK,
    Models,
    federate,
    imitation_plan,
    load_models,
    make_plan,
    make_workers,
)
from simulations.report import RunPicture, SiteHolding, TrackPicture, write_report
from simulations.results import (
    AggregationResult,
    MethodBySite,
    MethodResult,
    RunResult,
    TrackResult,
    predictions_path,
    write_results,
)
from simulations.scenarios import Population, phenopacket_population, synthetic_population
from simulations.scores import Scores, mean_over_sites, score
from simulations.settings import SimulationSettings, SyntheticData, simulation_settings
from simulations.table import print_results
from simulations.tiny_base import tiny_base
from simulations.tiny_eyes import steps_of, tiny_eyes

CONFIG = "pkg://simulations.conf"
BOTH, PHOTO, NOTE = frozenset({Eye.PHOTO, Eye.NOTE}), frozenset({Eye.PHOTO}), frozenset({Eye.NOTE})


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The clock and the progress bars of a run."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage under ``name`` and show its progress; what is yielded moves the bar on."""
        bar = self.progress.add_task(name.replace("_", " "), total=total)
        started = time.perf_counter()
        try:
            yield lambda done: self.progress.advance(bar, done)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.progress.update(
                bar, total=1 if total is None else total, completed=1 if total is None else total
            )


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


def run_simulation(settings: SimulationSettings, console: Console) -> dict[str, Any]:
    """Run a scenario, write its results into ``settings.out`` and return the content of ``results.json``."""
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        stages = Stages(progress=progress)
        population = gather_population(settings, stages)
        models = gather_models(settings, population, stages)
        plan = make_plan(settings.name, settings.plan, population, models, settings.seed)
        write_atomically(settings.out / "plan.json", plan.to_json() + "\n")
        trained = train_students(settings, plan, population, models, stages)
        judged, teachers = judge_all(settings, plan, population, models, trained, stages)
    content = write_results(settings.out, collect(settings, population, trained, judged, teachers, stages))
    write_outputs(settings, plan, population, models, trained, judged, teachers, content)
    print_results(content, console)
    console.print(f"Report: {settings.out / 'report.html'}")
    return content


def gather_population(settings: SimulationSettings, stages: Stages) -> Population:
    """The scenario's patients; what could not be read is counted on the console and listed in a file."""
    with stages.stage("patients"):
        if isinstance(settings.data, SyntheticData):
            return synthetic_population(settings.data, settings.seed)
        population = phenopacket_population(
            settings.data, settings.seed, other_diseases=settings.other_diseases
        )
    listed = "".join(f"{problem}\n" for problem in population.problems)
    write_atomically(settings.out / "not_read.txt", listed)
    if population.problems:
        stages.progress.console.print(
            f"{len(population.problems)} cases are not in this run; {settings.out / 'not_read.txt'} says why"
        )
    return population


def gather_models(settings: SimulationSettings, population: Population, stages: Stages) -> Models:
    """Base and eyes: those named, or tiny ones made from public text and faces, cached."""
    cache = settings.cache.expanduser()
    base = settings.base_model
    if base is None:
        with stages.stage("tiny_base", settings.base.steps) as advance:
            base = tiny_base(cache, population.text, settings.base, settings.seed, on_progress=advance)
    with stages.stage("tiny_eyes", steps_of(settings.eyes)) as advance:
        eyes = tiny_eyes(cache, settings.eyes, settings.seed, on_progress=advance)
    return load_models(base, eyes, settings.plan, settings.seed)


def train_students(
    settings: SimulationSettings,
    plan: RunPlan,
    population: Population,
    models: Models,
    stages: Stages,
) -> dict[str, Trained | dict[SiteId, Trained]]:
    """Every student of ``settings.methods``, by method."""
    trained: dict[str, Trained | dict[SiteId, Trained]] = {"base": Trained(adapter=models.initial)}
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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A student's answers on the union of test patients, and on new publications."""

    union: Judged
    new: Judged


def judge_all(
    settings: SimulationSettings,
    plan: RunPlan,
    population: Population,
    models: Models,
    trained: Mapping[str, Trained | dict[SiteId, Trained]],
    stages: Stages,
) -> tuple[dict[str, Verdict | dict[SiteId, Verdict]], dict[str, Judged]]:
    """Every student's answers by method, and the teachers' by the eyes they looked with."""
    track = plan.track(TRACK)
    with stages.stage("teachers_tested"):
        both, photo, note = rank_test_patients(
            population.sites,
            models.memory,
            population.answers,
            track,
            seed=settings.seed,
            recipe=settings.recipe,
            eye_sets=(BOTH, PHOTO, NOTE),
        )
    lists = teacher_lists(both, settings.evaluation.teacher_top)
    students = sum(len(one) if isinstance(one, dict) else 1 for one in trained.values())
    cases = sum(len(site.test) for site in population.sites.values()) + len(population.new_publications)
    with stages.stage("students_tested", students * cases) as advance:
        bench = Bench(population, models.student, track, settings.evaluation, advance)
        judged = {method: _judge(bench, one, lists) for method, one in trained.items()}
        teachers = {
            "teacher": bench.judge_teacher(both),
            "teacher_photo_only": bench.judge_teacher(photo),
            "teacher_note_only": bench.judge_teacher(note),
        }
    return judged, teachers if "teacher" in settings.methods else {}


def _judge(
    bench: Bench, one: Trained | dict[SiteId, Trained], lists: TeacherLists
) -> Verdict | dict[SiteId, Verdict]:
    if isinstance(one, dict):
        verdicts = {site: bench.judge(student.adapter, lists) for site, student in one.items()}
        return {site: Verdict(union=union, new=new) for site, (union, new) in verdicts.items()}
    union, new = bench.judge(one.adapter, lists)
    return Verdict(union=union, new=new)


def collect(
    settings: SimulationSettings,
    population: Population,
    trained: Mapping[str, Trained | dict[SiteId, Trained]],
    judged: Mapping[str, Verdict | dict[SiteId, Verdict]],
    teachers: Mapping[str, Judged],
    stages: Stages,
) -> RunResult:
    """All figures of the run."""
    union = [r.label[TRACK] for site in sorted(population.sites) for r in population.sites[site].test]
    own = {
        site: [row for row, truth in enumerate(union) if truth in {r.label[TRACK] for r in patients.train}]
        for site, patients in population.sites.items()
    }
    methods: dict[str, MethodResult | MethodBySite] = {
        name: MethodResult(union=score(one.outcomes, _draws(settings.seed, name)))
        for name, one in teachers.items()
    }
    for name, verdict in judged.items():
        rng = _draws(settings.seed, name)
        student = trained[name]
        if isinstance(verdict, dict) and isinstance(student, dict):
            methods[name] = {
                site: _method(one, {site: own[site]}, student[site], rng) for site, one in verdict.items()
            }
            methods[f"{name}_mean"] = _mean_method(verdict, rng)
        elif isinstance(verdict, Verdict) and isinstance(student, Trained):
            methods[name] = _method(verdict, own, student, rng)
    state = federated_state(trained)
    return RunResult(
        scenario=settings.name,
        seed=settings.seed,
        seconds=stages.seconds,
        tracks={
            TRACK: TrackResult(
                n_train=sum(len(patients.train) for patients in population.sites.values()),
                n_test=len(union),
                n_answers=len(population.answers),
                methods=methods,
            )
        },
        aggregation=AggregationResult.of(state.history, retried=state.retried),
    )


def _draws(seed: int, method: str) -> np.random.Generator:
    """What a method's intervals are drawn with: they do not depend on which other methods ran."""
    return np.random.default_rng([seed, *method.encode()])


def _method(
    verdict: Verdict, own: Mapping[SiteId, Sequence[int]], student: Trained, rng: np.random.Generator
) -> MethodResult:
    new: Scores | None = score(verdict.new.outcomes, rng) if len(verdict.new.outcomes) else None
    return MethodResult(
        union=score(verdict.union.outcomes, rng),
        own_answers={site: score(verdict.union.outcomes.only(rows), rng) for site, rows in own.items()},
        new_publications=new,
        seconds=student.seconds or None,
        bytes_up=student.bytes_up,
    )


def _mean_method(verdict: Mapping[SiteId, Verdict], rng: np.random.Generator) -> MethodResult:
    """The mean over sites: a patient is drawn with the answers of all sites at once."""
    new = mean_over_sites({site: one.new.outcomes for site, one in verdict.items()})
    return MethodResult(
        union=score(mean_over_sites({site: one.union.outcomes for site, one in verdict.items()}), rng),
        new_publications=score(new, rng) if len(new) else None,
    )


def _federated(trained: Mapping[str, Trained | dict[SiteId, Trained]]) -> Trained:
    one = trained["federated_orpo"]
    assert isinstance(one, Trained)  # one student for all sites
    return one


def federated_state(trained: Mapping[str, Trained | dict[SiteId, Trained]]) -> TrackState:
    """Where the federation of the main method ended."""
    state = _federated(trained).state
    assert state is not None  # a federated student has one
    return state


def write_outputs(
    settings: SimulationSettings,
    plan: RunPlan,
    population: Population,
    models: Models,
    trained: Mapping[str, Trained | dict[SiteId, Trained]],
    judged: Mapping[str, Verdict | dict[SiteId, Verdict]],
    teachers: Mapping[str, Judged],
    content: Mapping[str, Any],
) -> None:
    """Predictions of every method, the federated student's folder, the report."""
    for name, teacher in teachers.items():
        write_predictions(predictions_path(settings.out, TRACK, name), teacher.predictions)
    for name, verdict in judged.items():
        for site, one in verdict.items() if isinstance(verdict, dict) else [(None, verdict)]:
            predictions = (*one.union.predictions, *one.new.predictions)
            write_predictions(predictions_path(settings.out, TRACK, name, site), predictions)
    track = plan.track(TRACK)
    card = StudentCard(
        track=TRACK,
        base_model=str(models.base.resolve()),
        base_model_digest=track.base_model_digest,
        tokenizer_digest=track.tokenizer_digest,
        max_prompt_tokens=track.training.max_prompt_tokens,
        chosen_length=track.preferences.chosen_length,
        plan_digest=plan.digest(),
        method="federated_orpo",
        privacy=plan.privacy,
        aggregation=plan.aggregation.mode,
    )
    save_student(settings.out / "students" / TRACK, _federated(trained).adapter, population.answers, card)
    write_report(settings.out, content, picture_of(plan, population, trained, judged))


def picture_of(
    plan: RunPlan,
    population: Population,
    trained: Mapping[str, Trained | dict[SiteId, Trained]],
    judged: Mapping[str, Verdict | dict[SiteId, Verdict]],
) -> RunPicture:
    """What the report shows beyond the results."""
    holdings = []
    for site, patients in sorted(population.sites.items()):
        labels = [record.label[TRACK] for record in patients.train]
        by_answer = {answer: labels.count(answer) for answer in sorted(set(labels))}
        holdings.append(SiteHolding(site=site, patients=len(labels), patients_by_answer=by_answer))
    bins = {
        name: verdict.union.outcomes.pooled_bins()
        for name, verdict in judged.items()
        if isinstance(verdict, Verdict) and name != "base"
    }
    track = TrackPicture(
        answers=population.answers, holdings=holdings, rounds=federated_state(trained).history, bins=bins
    )
    return RunPicture(plan=plan, patients=population.description, tracks={TRACK: track})


def _run_composed(config: DictConfig) -> None:
    composed = OmegaConf.to_container(config, resolve=True)
    assert isinstance(composed, dict)
    settings = simulation_settings({str(key): value for key, value in composed.items()})
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        settings = replace(settings, out=settings.out / str(HydraConfig.get().job.num))
    run_simulation(settings, Console())


def main() -> None:
    """Run the command. Exit status: 0 all well, 1 a run that failed, 2 settings that make no sense."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    run = hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")(_guarded)
    run()


def _guarded(config: DictConfig) -> None:
    try:
        _run_composed(config)
    except ValueError as error:
        _end(error, 2)
    except (FederationError, OSError) as error:
        _end(error, 1)


def _end(error: Exception, status: int) -> None:
    print(f"consilium-simulate: {error}", file=sys.stderr)  # noqa: T201 - the command's own last word
    sys.exit(status)


if __name__ == "__main__":
    main()
