"""What a simulation's plan promises, with the noise that it takes computed from the promise.

A hospital's plan states noise and promise both, and every site checks one against the other; here people name
epsilon, and the noise follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from common.adapter import AdapterSpec, Block
from common.checks import require
from common.disclosures import not_covered
from common.errors import SettingsError
from common.guarantee import by_colluders, guarantee, spendings, teacher_spending
from common.learning_plan import TeacherPlan
from common.plan import RunPlan, TrackPlan
from common.privacy.accountant import calibrate, epsilon_of
from common.privacy.budget import epsilon_spent
from common.privacy.ledger import Entry
from common.privacy_plan import PrivacyPlan, TeacherPrivacy, TrackPrivacy
from simulations.results import NO_PRIVACY
from simulations.settings import PlanSettings

FIRST_GUESS = 1.0
"""A noise multiplier that stands in until the right one is known."""
SMALLEST_TRIAL, LARGEST_TRIAL, TRIAL_STEP = 0.2, 200.0, 1e-3


def planned_privacy(settings: PlanSettings) -> PrivacyPlan:
    """What the settings promise to each patient, over all tracks."""
    chosen = settings.privacy
    if chosen.mode == "none":
        return PrivacyPlan()
    return PrivacyPlan(
        mode=chosen.mode,
        epsilon=chosen.epsilon if chosen.mode == "site" or settings.teacher.privacy != "none" else None,
        delta=chosen.delta,
        colluders=chosen.colluders,
        late_losses=chosen.late_losses,
        spare_steps=chosen.spare_steps,
        noise=chosen.noise,
        stop=chosen.stop,
    )


def planned_track(
    settings: PlanSettings, *, sites: int, patients: int, spec: AdapterSpec
) -> TrackPrivacy | None:
    """How a track of about so many ``patients`` of all its sites is protected; its noise is a guess."""
    chosen = settings.privacy
    if chosen.mode == "none":
        return None
    population = sites if chosen.mode == "site" else patients
    per_step = settings.training.patients_per_step * sites
    return TrackPrivacy(
        clip_norm=chosen.clip_norm or 0.0,
        noise_multiplier=FIRST_GUESS,
        sampling_rate=1.0 if chosen.mode == "site" else min(1.0, per_step / population),
        population=population,
        dimension=max(spec.size(block) for block in Block),
    )


def planned_teacher(settings: PlanSettings) -> TeacherPlan:
    """The teacher's plan with the noise that its part of epsilon takes. SettingsError."""
    teacher, chosen = settings.teacher, settings.privacy
    if chosen.mode == "none":
        expected = "none or public, since the plan's privacy mode is none"
        require(teacher.privacy != "dp", "teacher.privacy", teacher.privacy, expected)
    if teacher.privacy != "dp":
        return TeacherPlan(**vars(teacher))
    wanted, delta = chosen.teacher, chosen.delta
    if wanted is None or delta is None:
        raise SettingsError("privacy.teacher", "nothing", "how the teacher learns, since its privacy is dp")
    noise = calibrate(
        epsilon=wanted.epsilon,
        delta=delta,
        sampling_rate=wanted.sampling_rate,
        # A patient trains every teacher of the cross-fitting but the one that ranks him.
        steps=wanted.steps * (teacher.folds - 1),
    )
    return TeacherPlan(
        **vars(teacher),
        dp=TeacherPrivacy(
            noise_multiplier=noise,
            sampling_rate=wanted.sampling_rate,
            clip_norm=wanted.clip_norm,
            steps=wanted.steps,
            learning_rate=wanted.learning_rate,
        ),
    )


def calibrated(plan: RunPlan, epsilon: float | None) -> RunPlan:
    """The plan with the least noise that keeps to ``epsilon``, teacher and all students together.

    All tracks get one noise multiplier. A teacher without privacy adds nothing to the sum, since nothing is
    promised then.

    Raises:
        SettingsError: The teacher alone spends it all.
    """
    track = plan.tracks[0]
    if track.privacy is None or epsilon is None or plan.privacy.delta is None:
        return plan
    if plan.privacy.noise == "discrete_gaussian" or len(plan.tracks) > 1:
        return _calibrated_by_trial(plan, epsilon)
    besides = teacher_spending(plan) if plan.privacy.mode != "site" else None
    try:
        noise = calibrate(
            epsilon=epsilon,
            delta=plan.privacy.delta,
            sampling_rate=track.privacy.sampling_rate,
            steps=plan.steps(track),
            besides=() if besides is None else (besides,),
            by="rdp" if plan.privacy.stop == "filter" else "pld",
        )
    except ValueError as error:
        raise SettingsError("privacy.epsilon", epsilon, str(error)) from error
    return _with_noise(plan, noise)


def _calibrated_by_trial(plan: RunPlan, epsilon: float) -> RunPlan:
    """Bisection, where the accounting depends on the whole mechanism or on several."""
    low, high = SMALLEST_TRIAL, LARGEST_TRIAL
    while high / low > 1 + TRIAL_STEP:
        middle = math.sqrt(low * high)
        tried = _with_noise(plan, middle)
        found = epsilon_of(spendings(tried), tried.privacy.delta or 0.0)
        low, high = (low, middle) if found <= epsilon else (middle, high)
    if high == LARGEST_TRIAL:
        raise SettingsError("privacy.epsilon", epsilon, "more than the teacher alone reveals")
    return _with_noise(plan, high)


def _with_noise(plan: RunPlan, noise_multiplier: float) -> RunPlan:
    return replace(plan, tracks=tuple(_noised(track, noise_multiplier) for track in plan.tracks))


def _noised(track: TrackPlan, noise_multiplier: float) -> TrackPlan:
    if track.privacy is None:
        raise ValueError("Expected a track with privacy, got one in mode none")
    return replace(track, privacy=replace(track.privacy, noise_multiplier=noise_multiplier))


def privacy_block(plan: RunPlan, spent: Sequence[Entry], unit: str = "patient") -> dict[str, Any]:
    """What a run took from a patient, for ``results.json``: from what was charged, not from what was planned.

    Args:
        plan: The run's.
        spent: Entries of the ledger of the site that was charged most.
        unit: What a record stands for, where the data name no patients.
    """
    first, delta = plan.tracks[0], plan.privacy.delta
    if first.privacy is None or delta is None:
        return {**NO_PRIVACY, "unit": unit, "statement": NO_PRIVACY["statement"].replace("patient", unit)}
    steps = {track.track: _steps_of(spent, track.track) for track in plan.tracks}
    found = guarantee(plan, steps)
    named = found.unit if found.unit != "patient" else unit
    teachers = [entry for entry in spent if entry.charge.part == "teacher"]
    bounded = found.epsilon is not None
    return {
        "mode": plan.privacy.mode,
        "statement": replace(found, unit=named).sentence(),
        "epsilon": epsilon_spent(spent, delta, unit=plan.privacy.unit) if bounded else None,
        "delta": delta,
        "epsilon_teacher": epsilon_spent(teachers, delta) if bounded and found.unit == "patient" else None,
        "unit": named,
        "adjacency": "add or remove one",
        "sigma": first.privacy.noise_multiplier,
        "q": first.privacy.sampling_rate,
        "steps": steps[first.track],
        "clip_norm": first.privacy.clip_norm,
        "noise": plan.privacy.noise,
        "teacher": plan.teacher.privacy,
        "colluders": plan.privacy.colluders,
        "late_losses": plan.privacy.late_losses,
        "epsilon_promised": plan.privacy.epsilon,
        "epsilon_by_colluders": {str(n): e for n, e in by_colluders(plan, steps).items()},
        "tracks": {track.track: _track_block(track, steps[track.track]) for track in plan.tracks},
        "not_covered": list(not_covered()),
    }


def _steps_of(spent: Sequence[Entry], track: str) -> int:
    return sum(e.charge.steps for e in spent if (e.charge.part, e.charge.track) == ("student", track))


def _track_block(track: TrackPlan, steps: int) -> dict[str, Any]:
    privacy = track.privacy
    if privacy is None:
        raise ValueError("Expected a track with privacy, got one in mode none")
    return {
        "sigma": privacy.noise_multiplier,
        "q": privacy.sampling_rate,
        "steps": steps,
        "clip_norm": privacy.clip_norm,
    }


def most_charged(plan: RunPlan, ledgers: Iterable[Sequence[Entry]]) -> Sequence[Entry]:
    """The entries of the site whose patients lost most: what is said must hold for them too."""
    delta = plan.privacy.delta
    bounded = delta is not None and guarantee(plan).epsilon is not None

    def lost(entries: Sequence[Entry]) -> float:
        if bounded and delta is not None:
            return epsilon_spent(entries, delta, unit=plan.privacy.unit)
        return float(sum(entry.charge.steps for entry in entries))

    return max(ledgers, key=lost, default=())
