"""The students of a comparison, by method: how each is trained, and which are kept from an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

from common.calibration_plan import CalibrationMethod
from common.ids import SiteId
from common.plan import RunPlan
from simulations.calibrated import calibration_course, pooled_temperature
from simulations.courses import Course
from simulations.kept import ByTrack, Keeper, Trained, recipe_of
from simulations.method_settings import CALIBRATIONS, MAIN, POOLED_TEMPERATURE
from simulations.planning import AllModels, dpo_plan, halved, imitation_plan, starting_from
from simulations.populations import Populations
from simulations.settings import SimulationSettings
from simulations.stages import Stages
from simulations.sweep import SWEEP_FOLDER, sweep_plans

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
    """Every student of ``settings.methods`` and of its sweep, by track and method; kept ones as they are."""
    trained: dict[str, dict[str, Trained | Mapping[SiteId, Trained]]] = {
        track: {"base": Trained(adapter=models[track].initial)} for track in populations
    }
    # Before the first training: a point whose promise cannot be kept is then refused at once.
    swept = sweep_plans(settings, populations, models)
    keeper = Keeper(folder=settings.out, recipe=recipe_of(settings.data, settings.recipe, settings.alone))

    def add(method: str, of: RunPlan, train: Callable[[], ByTrack]) -> None:
        for track, one in keeper.once(method, of, train).items():
            trained[track][method] = one

    start = Course(
        settings=settings, plan=plan, populations=populations, models=models, loss="orpo", stages=stages
    )
    for course in (start, replace(start, plan=imitation_plan(plan), loss="sft")):
        for name, train in course.trainings().items():
            if name in settings.methods:
                add(name, course.plan, train)
    for name, train in _preferring(start).items():
        if name in settings.methods:
            add(name, dpo_plan(plan), train)
    for name, its_plan in swept.items():
        # A folder for each: the same patients spend a budget in every one, and only one would be given out.
        apart = replace(settings, out=settings.out / SWEEP_FOLDER / name, link="memory")
        course = replace(start, settings=apart, plan=its_plan, loss=name.removeprefix("federated_"))
        add(name, its_plan, course.train_federated)
    finished: ByTrack = {track: own[MAIN] for track, own in trained.items()}
    for name in CALIBRATIONS:
        method = f"{MAIN}_{name}"
        if method not in settings.methods:
            continue
        if name == POOLED_TEMPERATURE:
            # Of this very student: one that was trained anew may differ, under noise.
            adapters = {track: federated_student(own).adapter for track, own in trained.items()}
            add(method, starting_from(start.plan, adapters), pooled_temperature(start, finished))
        else:
            course = calibration_course(start, cast(CalibrationMethod, name), finished)
            add(method, course.plan, course.train_federated)
    return trained


def _preferring(start: Course) -> dict[str, Callable[[], ByTrack]]:
    """How the students of DPO are trained: half of the steps on labels, the other half by DPO.

    DPO begins with a student that answers in the right form already, as MINT's runs do. Its reference is the
    base without an adapter, so that the pairs of all starts are the same.
    """
    warm = replace(start, plan=halved(imitation_plan(start.plan), first=True), loss="sft_half")
    second = replace(start, plan=dpo_plan(start.plan), loss="dpo")

    def federated() -> ByTrack:
        first = warm.train_federated()
        adapters = {track: one.adapter for track, one in first.items()}
        models = {track: replace(own, initial=adapters[track]) for track, own in start.models.items()}
        course = replace(second, plan=starting_from(second.plan, adapters), models=models)
        return {track: _joined(first[track], one) for track, one in course.train_federated().items()}

    def local() -> ByTrack:
        first = warm.train_local()
        starts = {track: {site: one.adapter for site, one in own.items()} for track, own in first.items()}
        trained = second.train_local(starts)
        return {
            track: {site: _joined(first[track][site], one) for site, one in own.items()}
            for track, own in trained.items()
        }

    return {"federated_dpo": federated, "local_dpo": local}


def _joined(first: Trained, second: Trained) -> Trained:
    """The second student, with what both trainings took."""
    sent = [one.bytes_up for one in (first, second) if one.bytes_up is not None]
    return replace(
        second,
        seconds=first.seconds + second.seconds,
        bytes_up=sum(sent) if sent else None,
        rounds=(*first.rounds, *second.rounds),
        retried=first.retried + second.retried,
        work_seconds=first.work_seconds + second.work_seconds,
    )


def federated_student(trained: Students) -> Trained:
    """The student that a track is about."""
    one = trained["federated_orpo"]
    assert isinstance(one, Trained)  # one student for all sites
    return one
