"""A site's answer to a training task under differential privacy: one noised vector and nothing else.

No weight and no count goes along: how many patients a site has is told by its patients. What the sum is
divided by is a constant of the plan.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from client.student.batches import entries_by_patient, some_of
from client.student.branches import PatientPairs
from client.student.fit import LocalUpdate
from client.student.model import Student
from client.student.private import clipped_gradients
from common.adapter import Adapter, Block, flatten, unflatten
from common.fixedpoint import Words
from common.plan import RunPlan, TrackPlan
from common.privacy.noise import poisson_sample
from common.privacy_plan import TrackPrivacy
from common.train_words import train_fixed_point

Vector = NDArray[np.float64]


def private_words(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    plan: RunPlan,
    track: TrackPlan,
    *,
    members: int,
    fit: Callable[[], LocalUpdate],
) -> Words:
    """The words that a site sends for a training task.

    Guarantee: a patient changes what is made before the noise by at most the plan's clip norm, and the noise
    is drawn from the operating system, afresh at each call.

    Args:
        student: Its adapter values are overwritten.
        adapter: Received in this round.
        block: The round's active block.
        patients: The site's pairs as tokens; entries of one patient id are one patient.
        plan: In another privacy mode than ``none``.
        track: Of the plan.
        members: Sites that share the noise of this sum (n).
        fit: Ordinary training, for mode ``site``.

    Raises:
        ValueError: The adapter is larger than the plan says, or the site has more patients than its cap.
    """
    privacy = _require_planned(adapter, block, patients, plan, track)
    if plan.privacy.mode == "distributed":
        descent = -_drawn_gradients(student, adapter, block, patients, track, privacy)
        return plan.mechanism(track).noised(descent, enough=members - plan.privacy.absent)
    if plan.privacy.mode == "local":
        return train_fixed_point(plan).encode(
            _noised_descent(student, adapter, block, patients, plan, track, privacy)
        )
    moved = flatten(fit().adapter, block).astype(np.float64) - flatten(adapter, block)
    clipped = moved * min(1.0, privacy.clip_norm / max(float(np.linalg.norm(moved)), 1e-30))
    return plan.mechanism(track).noised(clipped, enough=members - plan.privacy.absent)


def _require_planned(
    adapter: Adapter, block: Block, patients: Sequence[PatientPairs], plan: RunPlan, track: TrackPlan
) -> TrackPrivacy:
    """The track's privacy, where the plan's proofs hold for this adapter and these patients."""
    privacy, size = track.privacy, adapter.spec.size(block)
    if privacy is None:
        raise ValueError("Expected a track with privacy, got one in mode none")
    if size > privacy.dimension:
        raise ValueError(f"Expected a block of at most {privacy.dimension} numbers, got {size}")
    count, cap = len({entry.patient_id for entry in patients}), plan.aggregation.site_patients_cap
    if count > cap:
        # The number stays here: it would go to the coordinator in a refusal.
        raise ValueError(f"Expected at most site_patients_cap={cap} patients, got more")
    return privacy


def _drawn_gradients(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    track: TrackPlan,
    privacy: TrackPrivacy,
) -> Vector:
    """The clipped gradients of a Poisson sample of patients, summed."""
    each = list(entries_by_patient(patients).values())
    # Which of a patient's images or readings are looked at is between him and the clip: it needs no
    # accounting, and is by the operating system's lot like who is drawn.
    drawn = [
        entry
        for place in poisson_sample(len(each), privacy.sampling_rate)
        for entry in some_of(each[place], track.training.entries_per_step, [secrets.randbits(63)])
    ]
    return clipped_gradients(
        student, adapter, block, drawn, track.training, clip_norm=privacy.clip_norm
    ).total


def _noised_descent(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    plan: RunPlan,
    track: TrackPlan,
    privacy: TrackPrivacy,
) -> Vector:
    """Where some steps of DP-SGD lead, each with all of its noise: the delta of the block."""
    mechanism, divisor = plan.mechanism(track), privacy.divisor / len(plan.sites_of(track))
    start = flatten(adapter, block).astype(np.float64)
    here, at = start.copy(), adapter
    for _ in range(track.training.local_steps):
        gradient = _drawn_gradients(student, at, block, patients, track, privacy)
        noised = mechanism.decode(mechanism.noised(gradient, enough=1))
        here -= track.training.learning_rate * noised / divisor
        at = unflatten(adapter, block, here)
    return here - start
