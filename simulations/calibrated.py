"""The finished federated student calibrated, in every way that is compared.

Each is the plan of a calibration alone: no training rounds, the finished adapter to begin with, the patients
that the data set aside. The federation runs it like any plan, over secure sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from client.student.evaluate import rank_cases
from common.calibration import fit_temperature
from common.calibration_plan import EFFECTIVE, CalibrationMethod, CalibrationPlan
from common.plan import RunPlan, TrackPlan
from simulations.comparisons import test_cases
from simulations.courses import Course
from simulations.kept import ByTrack, Trained
from simulations.planning import starting_from
from simulations.settings import SimulationSettings


def calibration_course(finished: Course, method: CalibrationMethod, students: ByTrack) -> Course:
    """The course that calibrates the federation's finished students by one method."""
    adapters = {track: _one(students, track).adapter for track in students}
    models = {track: replace(own, initial=adapters[track]) for track, own in finished.models.items()}
    plan = starting_from(_calibrating(finished.plan, finished.settings, method), adapters)
    return replace(finished, plan=plan, models=models, loss=f"orpo_{method}")


def _calibrating(plan: RunPlan, settings: SimulationSettings, method: CalibrationMethod) -> RunPlan:
    tracks = tuple(_calibrated_track(track, settings, method) for track in plan.tracks)
    return replace(plan, name=f"{plan.name} {method}", tracks=tracks)


def _calibrated_track(track: TrackPlan, settings: SimulationSettings, method: CalibrationMethod) -> TrackPlan:
    chosen = settings.calibration
    assert chosen is not None  # the settings refuse the method without
    own = {key: value for key, value in asdict(chosen).items() if key in EFFECTIVE[method]}
    calibration = CalibrationPlan(method=method, share=settings.data.calibration_share, **own)
    return replace(track, training=replace(track.training, rounds=0), calibration=calibration)


def pooled_temperature(finished: Course, students: ByTrack) -> Callable[[], ByTrack]:
    """How one machine with all sites' calibration patients would fit a temperature, as the reference."""

    def fit() -> ByTrack:
        return {track: _fitted(finished, track, _one(students, track)) for track in students}

    return fit


def _fitted(finished: Course, track: str, student: Trained) -> Trained:
    population, models = finished.populations[track], finished.models[track]
    plan = finished.plan.track(track)
    records = [r for site in sorted(population.sites) for r in population.sites[site].calibration]
    cases = test_cases(records, population)
    models.student.load(student.adapter)
    ranked = rank_cases(
        models.student,
        [case.prompt for case in cases],
        models.student.answer_trie(
            population.track.header, population.answers, lists=plan.preferences.chosen_length > 1
        ),
        top=finished.settings.evaluation.top,
        max_prompt_tokens=plan.training.max_prompt_tokens,
    )
    ids = population.answers.ids
    correct = np.array(
        [ids[one.answers[0]] == case.record.label[track] for one, case in zip(ranked, cases, strict=True)]
    )
    return replace(student, temperature=fit_temperature([np.array(one.scores) for one in ranked], correct))


def _one(students: ByTrack, track: str) -> Trained:
    student = students[track]
    assert isinstance(student, Trained)  # a federation's
    return student
