"""The plans of a sweep: one training under several promises, and once without any.

Every point has the sampling rate, the steps, the clip norm and the server's optimizer of the run's own plan;
noise multiplier and teacher follow from its epsilon. So two points of one epsilon differ in who draws the
noise, and in nothing else that anybody chose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from common.errors import SettingsError
from common.plan import RunPlan
from simulations.method_settings import MAIN, SweepPoint
from simulations.planning import AllModels, make_plan
from simulations.populations import Populations
from simulations.settings import PlanSettings, SimulationSettings

NO_NOISE = f"{MAIN}_no_noise"
SWEEP_FOLDER = "sweep"


def sweep_plans(
    settings: SimulationSettings, populations: Populations, models: AllModels
) -> dict[str, RunPlan]:
    """The plan of every student of the sweep that the run does not train anyway, by method.

    Raises:
        SettingsError: A point's teacher alone spends all of its epsilon.
    """
    if settings.sweep and len(populations) > 1:
        raise SettingsError("sweep", ", ".join(populations), "data of one track")
    chosen: dict[str, Callable[[PlanSettings], PlanSettings]] = {}
    if settings.sweep:
        points = {method_of(settings, point): partial(at_point, point=point) for point in settings.sweep}
        chosen = points | {no_noise_of(settings): without_noise}
    return {
        method: make_plan(
            f"{settings.name} {method}",
            {track: change(its) for track, its in settings.plans.items()},
            populations,
            models,
            settings.seed,
        )
        for method, change in chosen.items()
        if method != MAIN
    }


def method_of(settings: SimulationSettings, point: SweepPoint) -> str:
    """The method that a point is: the main one where the run's own plan makes the same promise."""
    own = settings.plan.privacy
    return MAIN if (own.mode, own.epsilon) == (point.mode, point.epsilon) else f"{MAIN}_{point.name}"


def no_noise_of(settings: SimulationSettings) -> str:
    """The method without noise that the points are compared with: the main one where its plan adds none."""
    return MAIN if settings.plan.privacy.mode == "none" else NO_NOISE


def is_swept(method: str) -> bool:
    """Whether a method is a sweep's, and not the main one."""
    return method == NO_NOISE or method.startswith((f"{MAIN}_distributed_", f"{MAIN}_local_"))


def at_point(settings: PlanSettings, point: SweepPoint) -> PlanSettings:
    """The settings with a point's promise; a DP teacher's share of epsilon stays what it is.

    Settings without noise that say how a teacher learns under privacy get such a teacher.
    """
    own = settings.privacy
    if own.epsilon is None:
        raise ValueError("Expected settings with an epsilon, got none")
    teacher = own.teacher
    if teacher is not None:
        teacher = replace(teacher, epsilon=teacher.epsilon * point.epsilon / own.epsilon)
        if own.mode == "none" and settings.teacher.privacy == "none":
            settings = replace(settings, teacher=replace(settings.teacher, privacy="dp"))
    promised = replace(own, mode=point.mode, epsilon=point.epsilon, teacher=teacher)
    if point.mode == "local":
        # A site's noise is whole there, whoever tells his own and whoever is lost.
        promised = replace(promised, colluders=0, late_losses=0)
    return replace(settings, privacy=promised)


def without_noise(settings: PlanSettings) -> PlanSettings:
    """The settings in privacy mode ``none``, which has no place for a DP teacher."""
    privacy = settings.teacher.privacy
    teacher = replace(settings.teacher, privacy="none" if privacy == "dp" else privacy)
    return replace(settings, teacher=teacher, privacy=replace(settings.privacy, mode="none"))


def noise_std(plan: RunPlan) -> float:
    """Standard deviation of the noise in a coordinate of a round's mean delta, all sites taking part.

    Of a sweep's plan, whose sites take one step a round; 0 without noise.
    """
    track, sites = plan.tracks[0], len(plan.sites)
    if track.privacy is None:
        return 0.0
    mechanism = plan.mechanism(track)
    if plan.privacy.mode == "local":
        return math.sqrt(sites) * mechanism.noise_std(1, 1) / track.privacy.divisor
    return mechanism.noise_std(sites, sites - plan.privacy.absent) / track.privacy.divisor
