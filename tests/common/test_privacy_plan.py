import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from common.calibration_plan import CalibrationPlan
from common.errors import SettingsError
from common.guarantee import guarantee, spendings
from common.learning_plan import PreferencePlan, TeacherPlan
from common.plan import RunPlan, TrackPlan
from common.privacy_plan import PrivacyPlan, TeacherPrivacy, TrackPrivacy
from tests.fakes import PRIVACY, TRACK_PRIVACY, private_plan, tiny_plan

PLAN = private_plan()
DP = TeacherPrivacy(noise_multiplier=3.0, sampling_rate=0.1, clip_norm=1.0, steps=10, learning_rate=0.1)
DP_TEACHER = TeacherPlan(privacy="dp", folds=2, modality_dropout=0.1, dp=DP)
SITE = replace(PRIVACY, mode="site", epsilon=None)
SITE_TRACK = {"privacy": replace(TRACK_PRIVACY, sampling_rate=1.0, population=4)}
LOCAL = replace(PRIVACY, mode="local")

Change = Callable[[], RunPlan]


def with_training(**changes: Any) -> dict[str, Any]:
    return {"training": replace(PLAN.tracks[0].training, **changes)}


def in_mode(mode: str, **track: Any) -> RunPlan:
    if mode == "site":
        return private_plan(privacy=SITE, track={**SITE_TRACK, **track})
    return private_plan(privacy=replace(PRIVACY, mode=mode), track=track)


def with_teacher(privacy: str, promise: PrivacyPlan = PRIVACY, **track: Any) -> RunPlan:
    teacher = DP_TEACHER if privacy == "dp" else TeacherPlan(privacy=privacy, modality_dropout=0.1)
    return private_plan(privacy=promise, teacher=teacher, track=track)


def aborting(mode: str, lost: str) -> RunPlan:
    made = in_mode(mode)
    return replace(made, aggregation=replace(made.aggregation, lost_before_upload=lost))


def rejecting(where: str, promise: PrivacyPlan = PRIVACY) -> RunPlan:
    return private_plan(
        privacy=promise, track={"preferences": PreferencePlan(pairs_per_patient=1, reject_from=where)}
    )


def without_track_privacy(promise: PrivacyPlan) -> RunPlan:
    return private_plan(privacy=promise, track={"privacy": None})


def with_cap(patients: int, **track: Any) -> RunPlan:
    made = private_plan(track={"privacy": replace(TRACK_PRIVACY, **track)})
    return replace(made, aggregation=replace(made.aggregation, site_patients_cap=patients))


def calibrated(mode: str, method: str) -> RunPlan:
    rounds = {} if method == "temperature" else {"rounds": 2}
    return in_mode(mode, calibration=CalibrationPlan(method=method, share=0.2, **rounds))


NO_PROMISE = replace(PRIVACY, epsilon=None)

# What is accepted, what is refused for one difference, and the line.
RULES: dict[str, tuple[Change, Change, str]] = {
    "privacy of a track needs a mode": (
        tiny_plan,
        lambda: replace(tiny_plan(), tracks=(replace(tiny_plan().tracks[0], privacy=TRACK_PRIVACY),)),
        "tracks[0].privacy: expected nothing, since the plan's mode is none, got settings",
    ),
    "a mode needs a track's privacy": (
        private_plan,
        lambda: without_track_privacy(PRIVACY),
        "tracks[0].privacy: expected how sums are protected, since the mode is distributed, got nothing",
    ),
    "a plan that states an epsilon refuses teacher mode none": (
        lambda: with_teacher("public"),
        lambda: with_teacher("none"),
        "teacher.privacy: expected public or dp: with another teacher an epsilon is void, got none",
    ),
    "also in mode local": (
        lambda: with_teacher("dp", LOCAL),
        lambda: with_teacher("none", LOCAL),
        "teacher.privacy: expected public or dp: with another teacher an epsilon is void, got none",
    ),
    "where nothing is promised the teacher may be any": (
        lambda: with_teacher("none", NO_PROMISE),
        lambda: with_teacher("none", replace(NO_PROMISE, epsilon=100.0)),
        "teacher.privacy: expected public or dp: with another teacher an epsilon is void, got none",
    ),
    "what calibrates is covered or named": (
        lambda: calibrated("distributed", "cft"),
        lambda: calibrated("distributed", "rcft"),
        "tracks[0].calibration.method: expected temperature or cft: no accounting covers the others in "
        "privacy mode distributed, got rcft",
    ),
    "in mode local too": (
        lambda: calibrated("local", "temperature"),
        lambda: calibrated("local", "label_smoothing"),
        "tracks[0].calibration.method: expected temperature or cft: no accounting covers the others in "
        "privacy mode local, got label_smoothing",
    ),
    "in mode site too": (
        lambda: calibrated("site", "cft"),
        lambda: calibrated("site", "rcft"),
        "tracks[0].calibration.method: expected temperature or cft: no accounting covers the others in "
        "privacy mode site, got rcft",
    ),
    "answers are rejected from all": (
        lambda: rejecting("all"),
        lambda: rejecting("seen"),
        "tracks[0].preferences.reject_from: expected all: which answers a site has seen is told by its "
        "patients, got seen",
    ),
    "where nothing is promised they may be rejected from those seen": (
        lambda: rejecting("seen", NO_PROMISE),
        lambda: rejecting("seen", LOCAL),
        "tracks[0].preferences.reject_from: expected all: which answers a site has seen is told by its "
        "patients, got seen",
    ),
    "weights are uniform": (
        lambda: private_plan(track=with_training(weighting="uniform")),
        lambda: private_plan(track=with_training(weighting="patients")),
        "tracks[0].training.weighting: expected uniform: a weight by patients would tell their number, "
        "got patients",
    ),
    "in mode distributed a lost site aborts": (
        lambda: aborting("distributed", "abort"),
        lambda: aborting("distributed", "recover"),
        "tracks[0].aggregation.lost_before_upload: expected abort: the noise is divided among all of the "
        "roster, got recover",
    ),
    "in mode site a lost site aborts, in mode local it need not": (
        lambda: aborting("local", "recover"),
        lambda: aborting("site", "recover"),
        "tracks[0].aggregation.lost_before_upload: expected abort: the noise is divided among all of the "
        "roster, got recover",
    ),
    "steps on patients are plain": (
        lambda: in_mode("site", **with_training(local_optimizer="adamw")),
        lambda: in_mode("local", **with_training(local_optimizer="adamw")),
        "tracks[0].training.local_optimizer: expected sgd in privacy mode local, got adamw",
    ),
    "a secure sum is a step in mode distributed": (
        lambda: in_mode("local", **with_training(local_steps=2)),
        lambda: in_mode("distributed", **with_training(local_steps=2)),
        "tracks[0].training.local_steps: expected 1: in mode distributed a secure sum is an optimizer step, "
        "got 2",
    ),
    "the server's rate is the only one in mode distributed": (
        lambda: in_mode("local", **with_training(learning_rate=0.5)),
        lambda: in_mode("distributed", **with_training(learning_rate=0.5)),
        "tracks[0].training.learning_rate: expected 1: the server's rate is the only one in mode "
        "distributed, got 0.5",
    ),
    "every site takes part in every sum in mode site": (
        lambda: in_mode("site"),
        lambda: in_mode("site", privacy=replace(TRACK_PRIVACY, sampling_rate=0.5, population=4)),
        "tracks[0].privacy.sampling_rate: expected 1 of 4 sites in mode site, got 0.5 of 4",
    ),
    "of as many sites as there are in mode site": (
        lambda: in_mode("site"),
        lambda: in_mode("site", privacy=replace(TRACK_PRIVACY, sampling_rate=1.0, population=40)),
        "tracks[0].privacy.sampling_rate: expected 1 of 4 sites in mode site, got 1.0 of 40",
    ),
    "the rate is that of the patients of a step": (
        lambda: private_plan(track={"privacy": replace(TRACK_PRIVACY, population=60)}),
        lambda: private_plan(track={"privacy": replace(TRACK_PRIVACY, population=61)}),
        "tracks[0].training.patients_per_step: expected 1.5, what a site contributes to a step on average "
        "at the plan's sampling rate, got 1",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_privacy_accepts_one_plan_and_refuses_another_with_its_line(rule: str) -> None:
    accepted, refused, line = RULES[rule]
    assert accepted().tracks
    with pytest.raises(SettingsError) as caught:
        refused()
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("accepted", "refused", "line"),
    [
        # Steps of a clip norm are what is left of 2**31 by 4 sites' patients at their cap.
        (lambda: with_cap(16_000), lambda: with_cap(33_000), "clip norm of at least 16384 steps, got 8192.0"),
        (
            lambda: with_cap(100, noise_multiplier=100.0),
            lambda: with_cap(100, noise_multiplier=50_000.0),
            "a clip norm of at least 16384 steps",
        ),
        (
            lambda: private_plan(privacy=replace(PRIVACY, colluders=1, late_losses=1)),
            lambda: private_plan(privacy=replace(PRIVACY, colluders=2, late_losses=1)),
            "absent >= 0 and < least_shares, 3, got 3",
        ),
    ],
)
def test_a_plan_whose_ring_could_wrap_or_whose_noise_counts_on_nobody_is_refused(
    accepted: Change, refused: Change, line: str
) -> None:
    assert accepted().tracks
    with pytest.raises(SettingsError) as caught:
        refused()
    assert str(caught.value).startswith("tracks[0].privacy: expected ")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"delta": None}, "delta: expected a number, since mode is distributed, got nothing"),
        ({"delta": 0.0}, "delta: expected a number in (0, 1), got 0.0"),
        ({"delta": 1.0}, "delta: expected a number in (0, 1), got 1.0"),
        ({"epsilon": 0.0}, "epsilon: expected"),
        ({"epsilon": float("inf")}, "epsilon: expected"),
        ({"epsilon": None, "stop": "filter"}, "stop: expected fixed, without an epsilon, got filter"),
        ({"late_losses": -1}, "late_losses: expected a whole number >= 0, got -1"),
        ({"spare_steps": -1}, "spare_steps: expected a whole number >= 0, got -1"),
        ({"mode": "local", "colluders": 1}, "colluders: expected 0, since in mode local no site's noise"),
        ({"mode": "local", "late_losses": 1}, "late_losses: expected 0, since in mode local no site's noise"),
        ({"noise": "laplace"}, "noise: expected one of rounded_normal, discrete_gaussian"),
        ({"stop": "never"}, "stop: expected one of fixed, filter"),
    ],
)
def test_a_promise_that_cannot_be_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        replace(PRIVACY, **changes)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon", 1.0),
        ("delta", 1e-5),
        ("colluders", 1),
        ("late_losses", 1),
        ("spare_steps", 1),
        ("noise", "discrete_gaussian"),
        ("stop", "filter"),
    ],
)
def test_a_promise_without_a_mode_is_refused(key: str, value: object) -> None:
    assert PrivacyPlan() == PrivacyPlan(mode="none")
    with pytest.raises(SettingsError, match=f"{key}: expected .*, since it has no effect in mode none"):
        PrivacyPlan(**{key: value})


@pytest.mark.parametrize(
    ("made", "changes", "line"),
    [
        (TRACK_PRIVACY, {"clip_norm": 0.0}, "clip_norm: expected"),
        (TRACK_PRIVACY, {"noise_multiplier": 0.0}, "noise_multiplier: expected"),
        (TRACK_PRIVACY, {"noise_multiplier": float("nan")}, "noise_multiplier: expected"),
        (TRACK_PRIVACY, {"sampling_rate": 0.0}, "sampling_rate: expected a number > 0 and <= 1, got 0.0"),
        (TRACK_PRIVACY, {"sampling_rate": 1.5}, "sampling_rate: expected a number > 0 and <= 1, got 1.5"),
        (TRACK_PRIVACY, {"population": 0}, "population: expected a whole number >= 1, got 0"),
        (TRACK_PRIVACY, {"dimension": 0}, "dimension: expected a whole number >= 1, got 0"),
        (DP, {"noise_multiplier": 0.0}, "noise_multiplier: expected"),
        (DP, {"clip_norm": 0.0}, "clip_norm: expected"),
        (DP, {"learning_rate": 0.0}, "learning_rate: expected"),
        (DP, {"sampling_rate": 0.0}, "sampling_rate: expected a number > 0 and <= 1, got 0.0"),
        (DP, {"steps": 0}, "steps: expected a whole number >= 1, got 0"),
    ],
)
def test_numbers_that_protect_nobody_are_refused(made: Any, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        replace(made, **changes)
    assert str(caught.value).startswith(line)


def test_a_teacher_has_settings_of_its_privacy_exactly_if_it_is_dp() -> None:
    assert DP_TEACHER.dp == DP
    with pytest.raises(SettingsError, match="dp: expected how the teacher trains"):
        replace(DP_TEACHER, dp=None)
    with pytest.raises(SettingsError, match="dp: expected nothing, since privacy is public"):
        replace(DP_TEACHER, privacy="public")


def test_the_divisor_is_the_expected_number_of_patients() -> None:
    assert TRACK_PRIVACY.divisor == 0.1 * 40


def test_absent_are_colluders_and_late_losses() -> None:
    assert replace(PRIVACY, colluders=2, late_losses=1).absent == 3


def test_the_unit_is_a_site_in_mode_site_alone() -> None:
    units = {mode: replace(PRIVACY, mode=mode).unit for mode in ("distributed", "local", "site")}
    assert units == {"distributed": "patient", "local": "patient", "site": "site"}


def test_the_steps_that_are_paid_for_are_rounds_spare_ones_and_local_steps() -> None:
    spare = replace(PRIVACY, spare_steps=3)
    made = private_plan(privacy=spare)
    assert made.steps(made.tracks[0]) == 4 + 3
    local = private_plan(privacy=replace(spare, mode="local"), track=with_training(local_steps=5))
    assert local.steps(local.tracks[0]) == (4 + 3) * 5


def test_a_round_goes_on_without_so_many_as_may_be_lost_late_and_no_more() -> None:
    assert private_plan().least_survivors(4, 3) == 4
    assert private_plan(privacy=replace(PRIVACY, late_losses=1)).least_survivors(4, 3) == 3
    assert private_plan(privacy=replace(PRIVACY, late_losses=2)).least_survivors(4, 3) == 3
    recovering = aborting("local", "recover")
    assert recovering.least_survivors(4, 3) == 3


# Another value for each field, in a plan where it may have one.
OTHER: dict[str, tuple[RunPlan, Callable[[RunPlan], RunPlan]]] = {
    **{
        f"privacy.{key}": (base, lambda plan, key=key, value=value: _privacy(plan, **{key: value}))
        for key, value, base in (
            ("mode", "local", PLAN),
            ("epsilon", 3.5, PLAN),
            ("delta", 1e-6, PLAN),
            ("colluders", 1, PLAN),
            ("late_losses", 1, PLAN),
            ("spare_steps", 1, PLAN),
            ("noise", "discrete_gaussian", PLAN),
            ("stop", "filter", PLAN),
        )
    },
    **{
        f"track.{key}": (PLAN, lambda plan, key=key, value=value: _of_track(plan, **{key: value}))
        for key, value in (
            ("clip_norm", 0.25),
            ("noise_multiplier", 2.5),
            ("sampling_rate", 0.11),
            ("population", 41),
            ("dimension", 21),
        )
    },
    **{
        f"teacher.{key}": (
            private_plan(teacher=DP_TEACHER),
            lambda plan, key=key, value=value: _of_teacher(plan, **{key: value}),
        )
        for key, value in (
            ("noise_multiplier", 3.5),
            ("sampling_rate", 0.2),
            ("clip_norm", 0.5),
            ("steps", 11),
            ("learning_rate", 0.2),
        )
    },
}


def _privacy(plan: RunPlan, **changes: Any) -> RunPlan:
    return replace(plan, privacy=replace(plan.privacy, **changes))


def _track(plan: RunPlan, **changes: Any) -> RunPlan:
    return replace(plan, tracks=(replace(plan.tracks[0], **changes),))


def _of_track(plan: RunPlan, **changes: Any) -> RunPlan:
    privacy = plan.tracks[0].privacy
    assert privacy is not None
    return _track(plan, privacy=replace(privacy, **changes))


def _of_teacher(plan: RunPlan, **changes: Any) -> RunPlan:
    teacher = plan.teacher
    assert teacher.dp is not None
    return replace(plan, teacher=replace(teacher, dp=replace(teacher.dp, **changes)))


def test_every_field_of_privacy_is_in_the_digest() -> None:
    named = {
        *(f"privacy.{one.name}" for one in fields(PrivacyPlan)),
        *(f"track.{one.name}" for one in fields(TrackPrivacy)),
        *(f"teacher.{one.name}" for one in fields(TeacherPrivacy)),
    }
    assert set(OTHER) == named
    bases = {base.digest() for base, _ in OTHER.values()}
    changed = {change(base).digest() for base, change in OTHER.values()}
    assert len(changed) == len(OTHER)
    assert not changed & bases
    # And the settings themselves: whether there are any.
    assert len({tiny_plan().digest(), *bases}) == 3


@pytest.mark.parametrize("plan", [PLAN, private_plan(teacher=DP_TEACHER), in_mode("site")])
def test_a_plan_with_privacy_is_read_back_as_it_was(plan: RunPlan) -> None:
    assert RunPlan.from_json(plan.to_json()) == plan
    content = json.loads(plan.to_json())
    content["tracks"][0]["privacy"]["clip"] = 1
    with pytest.raises(SettingsError, match=r"plan\.tracks\[0\]\.privacy\.clip: expected one of clip_norm"):
        RunPlan.from_json(json.dumps(content))


def test_a_mechanism_has_room_for_all_patients_and_all_shares() -> None:
    (track,) = PLAN.tracks
    made = PLAN.mechanism(track)
    assert (made.most_patients, made.most_shares, made.least_enough) == (400, 4, 3)
    lossy = private_plan(privacy=replace(PRIVACY, late_losses=1))
    assert lossy.mechanism(lossy.tracks[0]).least_enough == 2
    local, site = in_mode("local"), in_mode("site")
    alone, whole = local.mechanism(local.tracks[0]), site.mechanism(site.tracks[0])
    assert (alone.most_patients, alone.most_shares, alone.least_enough) == (100, 1, 1)
    assert (whole.most_patients, whole.most_shares, whole.least_enough) == (4, 4, 3)
    plain: TrackPlan = tiny_plan().tracks[0]
    with pytest.raises(ValueError, match="Expected a track with privacy, got one in mode none"):
        tiny_plan().mechanism(plain)


@pytest.mark.parametrize(("mode", "steps"), [("distributed", 4 + 2 + 1), ("local", (4 + 2 + 1) * 3)])
def test_rounds_of_calibration_are_steps_that_the_plan_pays_for(mode: str, steps: int) -> None:
    cft = CalibrationPlan(method="cft", share=0.2, rounds=2)
    local = {} if mode == "distributed" else with_training(local_steps=3)
    promise = replace(PRIVACY, mode=mode, spare_steps=1, epsilon=None)
    plan = private_plan(privacy=promise, track={"calibration": cft, **local})
    assert plan.steps(plan.tracks[0]) == steps
    without = replace(plan, tracks=(replace(plan.tracks[0], calibration=None),))
    (more,), (fewer,) = spendings(plan), spendings(without)
    assert (more.steps, fewer.steps) == (steps, steps * 5 // 7)
    assert (guarantee(plan).epsilon or 0) > (guarantee(without).epsilon or 0)
