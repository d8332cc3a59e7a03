"""A whole federation on one machine, from patients to report.

Hospitals, teachers, pairs, rounds over the real ServerApp and ClientApp, the students it is compared with,
``results.json``, ``predictions/``, ``students/`` and ``report.html``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from client.student.predict import StudentCard, save_student
from client.student.predictions import write_predictions
from common.atomic import write_atomically
from common.canonical import canonical_json
from common.plan import RunPlan, TrackPlan
from simulations.cases import known_cases, write_cases
from simulations.judging import Judgement, Verdict, collect, judge_all
from simulations.models import gather_models
from simulations.planning import AllModels, Models, make_plan
from simulations.populations import Population, Populations
from simulations.privacy import most_charged
from simulations.report import RunPicture, SiteHolding, TrackPicture, write_report
from simulations.results import predictions_path, write_results
from simulations.scenarios import populations_of
from simulations.settings import SimulationSettings
from simulations.stages import Stages
from simulations.students import (
    AllStudents,
    Students,
    federated_student,
    train_students,
)
from simulations.table import print_results
from simulations.tradeoff import write_tradeoff

LEDGER_LINES = "ledger.jsonl"


def run_simulation(settings: SimulationSettings, console: Console) -> dict[str, Any]:
    """Run a scenario, write its results into ``settings.out`` and return the content of ``results.json``."""
    torch.set_num_threads(settings.threads)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        stages = Stages(progress=progress)
        populations = gather_populations(settings, stages)
        models = gather_models(settings, populations, stages)
        plan = make_plan(settings.name, settings.plans, populations, models, settings.seed)
        write_atomically(settings.out / "plan.json", plan.to_json() + "\n")
        trained = train_students(settings, plan, populations, models, stages)
        judged = judge_all(settings, plan, populations, models, trained, stages)
    content = write_results(settings.out, collect(settings, populations, trained, judged, stages))
    write_outputs(settings, plan, populations, models, trained, judged, content)
    print_results(content, console)
    if settings.sweep:
        (track,) = populations  # a sweep is of one track
        page = write_tradeoff(settings, content, trained[track], judged[track])
        console.print(f"What privacy costs: {page}")
    console.print(f"Report: {settings.out / 'report.html'}")
    return content


def gather_populations(settings: SimulationSettings, stages: Stages) -> Populations:
    """The scenario's patients; what could not be read is counted on the console and listed in a file."""
    with stages.stage("patients"):
        populations = populations_of(settings)
    problems = [problem for one in populations.values() for problem in one.problems]
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomically(settings.out / "not_read.txt", "".join(f"{problem}\n" for problem in problems))
    if problems:
        stages.progress.console.print(
            f"{len(problems)} cases are not in this run; {settings.out / 'not_read.txt'} says why"
        )
    return populations


def write_outputs(
    settings: SimulationSettings,
    plan: RunPlan,
    populations: Populations,
    models: AllModels,
    trained: AllStudents,
    judged: Mapping[str, Judgement],
    content: Mapping[str, Any],
) -> None:
    """Predictions of every method, the federated students' folders, the ledger of the site that gave most,
    the report."""
    for track, population in populations.items():
        _write_predictions(settings.out, track, judged[track])
        write_cases(settings.out, track, known_cases(population))
        save_student(
            settings.out / "students" / track,
            federated_student(trained[track]).adapter,
            population.answers,
            _card(
                plan,
                plan.track(track),
                models[track],
                content["privacy"],
                temperature=federated_student(trained[track]).temperature,
            ),
        )
    entries = most_charged(plan, [federated_student(students).entries for students in trained.values()])
    if entries:
        lines = (canonical_json(entry) for entry in entries)
        write_atomically(settings.out / LEDGER_LINES, "".join(f"{line}\n" for line in lines))
    write_report(settings.out, content, picture_of(plan, populations, trained, judged))


def _write_predictions(folder: Path, track: str, judged: Judgement) -> None:
    for name, verdict in [*judged.references.items(), *judged.students.items()]:
        for site, one in [(None, verdict)] if isinstance(verdict, Verdict) else verdict.items():
            predictions = (*one.union.predictions, *one.new.predictions)
            write_predictions(predictions_path(folder, track, name, site), predictions)


def _card(
    plan: RunPlan, track: TrackPlan, models: Models, privacy: Mapping[str, Any], *, temperature: float
) -> StudentCard:
    return StudentCard(
        track=track.track,
        base_model=str(models.base.resolve()),
        base_model_digest=track.base_model_digest,
        tokenizer_digest=track.tokenizer_digest,
        max_prompt_tokens=track.training.max_prompt_tokens,
        chosen_length=track.preferences.chosen_length,
        plan_digest=plan.digest(),
        method="federated_orpo",
        privacy=plan.privacy.mode,
        statement=privacy["statement"],
        not_covered=tuple(privacy.get("not_covered", ())),
        aggregation=plan.aggregation.mode,
        temperature=temperature,
    )


def picture_of(
    plan: RunPlan,
    populations: Populations,
    trained: AllStudents,
    judged: Mapping[str, Judgement],
) -> RunPicture:
    """What the report shows beyond the results."""
    described = dict.fromkeys(population.description for population in populations.values())
    return RunPicture(
        plan=plan,
        patients=" ".join(described),
        tracks={
            track: _picture_track(population, trained[track], judged[track])
            for track, population in populations.items()
        },
    )


def _picture_track(population: Population, trained: Students, judged: Judgement) -> TrackPicture:
    holdings = []
    for site, patients in sorted(population.sites.items()):
        labels = [record.label[population.track.name] for record in patients.train]
        by_answer = {answer: labels.count(answer) for answer in sorted(set(labels))}
        holdings.append(SiteHolding(site=site, patients=len(labels), patients_by_answer=by_answer))
    bins = {
        name: verdict.union.outcomes.pooled_bins()
        for name, verdict in judged.students.items()
        if isinstance(verdict, Verdict) and name != "base"
    }
    return TrackPicture(
        answers=population.answers, holdings=holdings, rounds=federated_student(trained).rounds, bins=bins
    )
