"""Every method of a comparison judged, and all figures of the run gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from client.teacher.rank import Ranking
from common.ids import SiteId
from common.plan import RunPlan
from common.tracks import Eye, Modality
from simulations.comparisons import (
    Bench,
    EyeSets,
    Judged,
    Rankings,
    TeacherLists,
    rank_test_patients,
    teacher_lists,
    test_cases,
)
from simulations.kept import Trained
from simulations.linear import rank_by_findings
from simulations.planning import AllModels
from simulations.populations import Population, Populations
from simulations.results import (
    AggregationResult,
    MethodBySite,
    MethodResult,
    RunResult,
    TrackResult,
)
from simulations.retrieving import Retrieved, judge_retrieval
from simulations.scores import mean_over_sites, score
from simulations.settings import SimulationSettings
from simulations.stages import Stages
from simulations.students import AllStudents, Students, federated_student
from simulations.sweep import is_swept
from simulations.text_reference import rank_by_text

TEXT_LINEAR = "text_linear"
LINEAR_MODELS = MappingProxyType({"linear_model": False, "linear_model_with_exclusions": True})
"""By method: whether findings that were looked for and not found are read too; of text tracks."""
EYE_SETS: Mapping[Modality, EyeSets] = MappingProxyType(
    {
        Modality.TEXT: {
            "teacher": frozenset(Eye),
            "teacher_photo_only": frozenset({Eye.PHOTO}),
            "teacher_note_only": frozenset({Eye.NOTE}),
        },
        Modality.IMAGE: {"teacher": frozenset(Eye), "teacher_slide_only": frozenset({Eye.SLIDE})},
    }
)
"""What a site's teacher may look with, by what the track's student reads."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A student's answers on the union of test patients, and on new publications."""

    union: Judged
    new: Judged

    @classmethod
    def of(cls, both: tuple[Judged, Judged]) -> Verdict:
        """The verdict of a bench."""
        return cls(union=both[0], new=both[1])


Verdicts = Mapping[str, Verdict | Mapping[SiteId, Verdict]]
"""By method: one verdict, or one for each site."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All methods of a track judged.

    Attributes:
        students: By method, as they were trained.
        references: Teachers, linear models and methods of retrieval, by method: what students stand beside.
        costs: What methods of retrieval found and what they took, by method.
    """

    students: Verdicts
    references: Mapping[str, Verdict]
    costs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


def judge_all(
    settings: SimulationSettings,
    plan: RunPlan,
    populations: Populations,
    models: AllModels,
    trained: AllStudents,
    stages: Stages,
) -> dict[str, Judgement]:
    """Every method of the settings on the test cases of its track, by track."""
    with stages.stage("teachers_tested"):
        rankings = rank_test_patients(
            populations,
            next(iter(models.values())).memory,
            plan,
            recipe=settings.recipe,
            eye_sets={name: EYE_SETS[one.track.modality] for name, one in populations.items()},
        )
    references: dict[str, dict[str, Mapping[str, Ranking]]] = {
        track: dict(found) if "teacher" in settings.methods else {} for track, found in rankings.items()
    }
    for track, population in populations.items():
        references[track] |= _linear_rankings(settings, population, stages)
    total = sum(_cases(populations[track]) * _students(trained[track]) for track in populations)
    with stages.stage("students_tested", total) as advance:
        benches = {
            track: Bench(population, models[track].student, plan.track(track), settings.evaluation, advance)
            for track, population in populations.items()
        }
        judged = {
            track: _judge_track(
                bench,
                trained[track],
                references[track],
                teacher_lists(rankings[track]["teacher"], settings.evaluation.teacher_top),
            )
            for track, bench in benches.items()
        }
    return {
        track: _with_retrieval(
            one,
            judge_retrieval(
                settings,
                populations[track],
                benches[track],
                models[track].student,
                federated_student(trained[track]),
                stages,
            ),
        )
        for track, one in judged.items()
    }


def _judge_track(bench: Bench, trained: Students, references: Rankings, lists: TeacherLists) -> Judgement:
    return Judgement(
        students={method: _judge(bench, one, lists) for method, one in trained.items()},
        references={name: Verdict.of(bench.judge_rankings(found)) for name, found in references.items()},
    )


def _with_retrieval(judged: Judgement, found: Mapping[str, Retrieved]) -> Judgement:
    verdicts = {name: Verdict(union=one.union, new=one.new) for name, one in found.items()}
    costs = {name: one.costs for name, one in found.items()}
    return replace(judged, references={**judged.references, **verdicts}, costs=costs)


def _cases(population: Population) -> int:
    return len(test_cases((*population.test, *population.new_publications), population))


def _students(trained: Students) -> int:
    return sum(1 if isinstance(one, Trained) else len(one) for one in trained.values())


def _linear_rankings(
    settings: SimulationSettings, population: Population, stages: Stages
) -> dict[str, Mapping[str, Ranking]]:
    """What linear models on the coded findings, and on the notes' words, say, of a text track."""
    if population.text is None:
        return {}
    train = [record for site in sorted(population.sites) for record in population.sites[site].train]
    cases = [*population.test, *population.new_publications]
    answers, views, track = population.answers, population.views, population.track.name
    found: dict[str, Mapping[str, Ranking]] = {}
    for name in settings.methods:
        if name in LINEAR_MODELS:
            with stages.stage(name):
                found[name] = rank_by_findings(
                    train,
                    cases,
                    answers,
                    views,
                    population.text.parents,
                    track,
                    exclusions=LINEAR_MODELS[name],
                )
        if name == TEXT_LINEAR:
            with stages.stage(name):
                found[name] = rank_by_text(train, cases, answers, views, track)
    return found


def _judge(
    bench: Bench, one: Trained | Mapping[SiteId, Trained], lists: TeacherLists
) -> Verdict | dict[SiteId, Verdict]:
    if isinstance(one, Trained):
        return Verdict.of(bench.judge(one, lists))
    return {site: Verdict.of(bench.judge(student, lists)) for site, student in one.items()}


def collect(
    settings: SimulationSettings,
    populations: Populations,
    trained: AllStudents,
    judged: Mapping[str, Judgement],
    stages: Stages,
) -> RunResult:
    """All figures of the run."""
    mains = [federated_student(students) for students in trained.values()]
    # The plan's whole promise is in each: the one whose patients lost most speaks for all.
    privacy = max((main.privacy or {} for main in mains), key=lambda block: block.get("epsilon") or 0.0)
    return RunResult(
        scenario=settings.name,
        seed=settings.seed,
        seconds=stages.seconds,
        tracks={
            track: _track_result(settings, population, trained[track], judged[track])
            for track, population in populations.items()
        },
        privacy=privacy,
        aggregation=AggregationResult.of(
            [report for main in mains for report in main.rounds],
            retried=sum(main.retried for main in mains),
            work_seconds=sum(main.work_seconds for main in mains),
        ),
    )


def _track_result(
    settings: SimulationSettings, population: Population, trained: Students, judged: Judgement
) -> TrackResult:
    track = population.track.name
    cases = test_cases(population.test, population)
    truths = [case.record.label[track] for case in cases]
    own = {
        site: [row for row, truth in enumerate(truths) if truth in {r.label[track] for r in patients.train}]
        for site, patients in population.sites.items()
    }
    methods: dict[str, MethodResult | MethodBySite] = {
        name: replace(
            _method(verdict, {}, None, _draws(settings.seed, name)), retrieval=judged.costs.get(name)
        )
        for name, verdict in judged.references.items()
    }
    for name, verdict in judged.students.items():
        rng = _draws(settings.seed, name)
        student = trained[name]
        if isinstance(verdict, Mapping) and isinstance(student, Mapping):
            methods[name] = {
                site: _method(one, {site: own[site]}, student[site], rng) for site, one in verdict.items()
            }
            methods[f"{name}_mean"] = _mean_method(verdict, rng)
        elif isinstance(verdict, Verdict) and isinstance(student, Trained):
            # A sweep's students are compared over epsilon; eight more columns of sites would hide the others.
            methods[name] = _method(verdict, {} if is_swept(name) else own, student, rng)
    return TrackResult(
        n_train=sum(len(patients.train) for patients in population.sites.values()),
        n_test=len(cases),
        n_answers=len(population.answers),
        unit=population.unit,
        n_test_units=len({case.record.patient_id for case in cases}),
        methods=methods,
    )


def _draws(seed: int, method: str) -> np.random.Generator:
    """What a method's intervals are drawn with: they do not depend on which other methods ran."""
    return np.random.default_rng([seed, *method.encode()])


def _method(
    verdict: Verdict, own: Mapping[SiteId, Sequence[int]], student: Trained | None, rng: np.random.Generator
) -> MethodResult:
    union, new = verdict.union, verdict.new
    return MethodResult(
        union=score(union.outcomes, rng, units=union.units),
        own_answers={
            site: score(union.outcomes.only(rows), rng, units=[union.units[row] for row in rows])
            for site, rows in own.items()
        },
        new_publications=score(new.outcomes, rng, units=new.units) if len(new.outcomes) else None,
        seconds=(student.seconds or None) if student else None,
        bytes_up=student.bytes_up if student else None,
        privacy=student.privacy if student else None,
    )


def _mean_method(verdict: Mapping[SiteId, Verdict], rng: np.random.Generator) -> MethodResult:
    """The mean over sites: a patient is drawn with the answers of all sites at once."""
    first = next(iter(verdict.values()))
    new = mean_over_sites({site: one.new.outcomes for site, one in verdict.items()})
    union = mean_over_sites({site: one.union.outcomes for site, one in verdict.items()})
    return MethodResult(
        union=score(union, rng, units=first.union.units),
        new_publications=score(new, rng, units=first.new.units) if len(new) else None,
    )
