"""What a plan's mechanisms are written into a ledger as."""

from __future__ import annotations

from common.guarantee import student_spending, teacher_spending
from common.ids import RunId
from common.plan import RunPlan, TrackPlan
from common.privacy.ledger import Charge

OPACUS = "opacus"
ALL_TRACKS = "all"
"""What a teacher's charge names as its track: a site has one teacher."""
TEACHERS = RunId("teachers")
"""The run that a teacher is charged to: it is trained for a plan, before any run."""


def teacher_charge(plan: RunPlan) -> Charge | None:
    """A site's teachers, for all tracks at once; None if they take nothing from patients."""
    spending, dp = teacher_spending(plan), plan.teacher.dp
    if spending is None or dp is None:
        return None
    return Charge(
        consortium=plan.consortium,
        run_id=TEACHERS,
        round_id=0,
        sum_id=0,
        track=ALL_TRACKS,
        part="teacher",
        mechanism=OPACUS,
        unit="patient",
        sampling_rate=dp.sampling_rate,
        clip_norm=dp.clip_norm,
        noise_multiplier=dp.noise_multiplier,
        steps=spending.steps,
        teacher=plan.teacher.privacy,
        plan_digest=plan.digest(),
        roster_digest="",
    )


def round_charge(
    plan: RunPlan, track: TrackPlan, *, run_id: RunId, round_id: int, sum_id: int, roster_digest: str
) -> Charge:
    """One round of a track's student. ValueError in privacy mode ``none``."""
    if track.privacy is None:
        raise ValueError("Expected a track with privacy, got one in mode none")
    steps = track.training.local_steps if plan.privacy.mode == "local" else 1
    spending = student_spending(plan, track, steps)
    discrete = spending.discrete
    return Charge(
        consortium=plan.consortium,
        run_id=run_id,
        round_id=round_id,
        sum_id=sum_id,
        track=track.track,
        part="student",
        mechanism=plan.privacy.noise,
        unit=plan.privacy.unit,
        sampling_rate=spending.sampling_rate,
        clip_norm=track.privacy.clip_norm,
        noise_multiplier=spending.noise_multiplier,
        steps=steps,
        teacher=plan.teacher.privacy,
        plan_digest=plan.digest(),
        roster_digest=roster_digest,
        discrete=None
        if discrete is None
        else (discrete.share_std, discrete.shares, discrete.sensitivity, discrete.dimension),
    )
