from dataclasses import replace
from typing import Any

import pytest

from common.charges import TEACHERS, round_charge, teacher_charge
from common.guarantee import spendings, student_spending, teacher_spending
from common.learning_plan import TeacherPlan
from common.plan import RunPlan
from common.privacy.ledger import Charge
from common.privacy_plan import TeacherPrivacy
from tests.fakes import PRIVACY, RUN, TRACK, TRACK_PRIVACY, private_plan, tiny_plan

DP = TeacherPrivacy(noise_multiplier=1.5, sampling_rate=0.2, clip_norm=0.7, steps=10, learning_rate=0.1)
ROSTER = "ab" * 32


def charge(plan: RunPlan, **changes: Any) -> Charge:
    asked = {"run_id": RUN, "round_id": 3, "sum_id": 5, "roster_digest": ROSTER, **changes}
    return round_charge(plan, plan.tracks[0], **asked)


def test_a_round_is_charged_as_the_plan_has_it() -> None:
    plan = private_plan()
    assert charge(plan) == Charge(
        consortium="consilium",
        run_id=RUN,
        round_id=3,
        sum_id=5,
        track=TRACK,
        part="student",
        mechanism="rounded_normal",
        unit="patient",
        sampling_rate=0.1,
        clip_norm=0.5,
        noise_multiplier=2.0,
        steps=1,
        teacher="public",
        plan_digest=plan.digest(),
        roster_digest=ROSTER,
    )


@pytest.mark.parametrize("noise", ["rounded_normal", "discrete_gaussian"])
@pytest.mark.parametrize("mode", ["distributed", "local", "site"])
def test_all_rounds_charged_are_what_the_guarantee_is_made_of(mode: str, noise: str) -> None:
    track: dict[str, Any] = {}
    if mode == "site":
        track["privacy"] = replace(TRACK_PRIVACY, sampling_rate=1.0, population=4)
    if mode == "local":
        track["training"] = replace(private_plan().tracks[0].training, local_steps=3)
    plan = private_plan(privacy=replace(PRIVACY, mode=mode, noise=noise, epsilon=None), track=track)
    one = charge(plan).spending
    steps = 3 if mode == "local" else 1
    assert one.steps == steps
    assert one == student_spending(plan, plan.tracks[0], steps)
    (all_of_it,) = spendings(plan)
    assert replace(one, steps=4 * steps) == all_of_it
    assert charge(plan).unit == ("site" if mode == "site" else "patient")


def test_the_noise_is_charged_that_is_guaranteed_and_not_the_larger_one_of_all_shares() -> None:
    lossy = private_plan(privacy=replace(PRIVACY, late_losses=1, colluders=1))
    assert charge(lossy).noise_multiplier == charge(private_plan()).noise_multiplier == 2.0


def test_teachers_are_charged_all_at_once_and_before_any_run() -> None:
    teacher = TeacherPlan(privacy="dp", folds=4, modality_dropout=0.1, dp=DP)
    plan = private_plan(teacher=teacher, privacy=replace(PRIVACY, epsilon=50.0))
    made = teacher_charge(plan)
    assert made is not None
    assert (made.run_id, made.round_id, made.sum_id, made.roster_digest) == (TEACHERS, 0, 0, "")
    assert (made.part, made.mechanism, made.unit, made.teacher) == ("teacher", "opacus", "patient", "dp")
    # Three of four learn from each patient.
    assert (made.steps, made.noise_multiplier, made.sampling_rate, made.clip_norm) == (30, 1.5, 0.2, 0.7)
    assert made.spending == teacher_spending(plan)
    assert spendings(plan)[0] == made.spending


@pytest.mark.parametrize("privacy", ["public", "none"])
def test_a_teacher_that_adds_no_noise_is_not_charged(privacy: Any) -> None:
    teacher = TeacherPlan(privacy=privacy, modality_dropout=0.1)
    plan = private_plan(teacher=teacher, privacy=replace(PRIVACY, epsilon=None))
    assert teacher_charge(plan) is None
    # But every round says what the teacher was: with `none` no epsilon bounds it.
    assert charge(plan).teacher == privacy


def test_a_round_without_privacy_has_no_charge() -> None:
    with pytest.raises(ValueError, match="Expected a track with privacy, got one in mode none"):
        charge(tiny_plan())
