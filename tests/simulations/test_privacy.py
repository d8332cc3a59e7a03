"""What a simulation's plan promises, and what is said of it afterwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.adapter import Block
from common.charges import round_charge, teacher_charge
from common.errors import SettingsError
from common.guarantee import guarantee, teacher_spending
from common.ids import RunId
from common.learning_plan import TeacherPlan
from common.plan import RunPlan
from common.privacy.accountant import epsilon_of
from common.privacy.ledger import Entry, Ledger
from common.privacy_plan import PrivacyPlan, TeacherPrivacy, TrackPrivacy
from simulations.privacy import (
    calibrated,
    most_charged,
    planned_privacy,
    planned_teacher,
    planned_track,
    privacy_block,
)
from simulations.results import NO_PRIVACY
from simulations.settings import PlanSettings
from tests.fakes import private_plan, tiny_adapter, tiny_plan
from tests.simulations.small import small_settings

SPEC = tiny_adapter().spec
STEPS_OF_TEACHER = 5
DP = TeacherPrivacy(
    noise_multiplier=4.0, sampling_rate=0.5, clip_norm=1.0, steps=STEPS_OF_TEACHER, learning_rate=0.1
)
DP_TEACHER = TeacherPlan(privacy="dp", folds=2, modality_dropout=0.0, dp=DP)


@pytest.fixture(scope="module")
def settings() -> PlanSettings:
    """A teacher of epsilon 2 and 5 steps, four patients a step and site, epsilon 8 in all."""
    return small_settings(
        [
            "plan.privacy.mode=distributed",
            "plan.teacher.privacy=dp",
            f"plan.privacy.teacher.steps={STEPS_OF_TEACHER}",
            "plan.privacy.teacher.epsilon=2.0",
        ]
    ).plan


def with_teacher(settings: PlanSettings, privacy: Any, **plan: Any) -> PlanSettings:
    return replace(
        settings,
        teacher=replace(settings.teacher, privacy=privacy),
        privacy=replace(settings.privacy, **plan),
    )


def planned(settings: PlanSettings, *, sites: int = 4, patients: int = 160) -> TrackPrivacy:
    found = planned_track(settings, sites=sites, patients=patients, spec=SPEC)
    assert found is not None
    return found


def test_a_step_draws_the_planned_patients_of_all_sites_in_expectation(settings: PlanSettings) -> None:
    track = planned(settings)
    assert track.sampling_rate == 4 * 4 / 160
    assert track.divisor == 16
    assert track.population == 160
    assert track.dimension == max(SPEC.size(Block.A), SPEC.size(Block.B))


def test_fewer_patients_than_a_step_takes_are_all_drawn(settings: PlanSettings) -> None:
    assert planned(settings, patients=10).sampling_rate == 1.0


def test_a_teacher_takes_its_part_of_epsilon_and_hardly_less(settings: PlanSettings) -> None:
    teacher = planned_teacher(settings)
    spending = teacher_spending(replace(private_plan(), teacher=teacher))
    assert spending is not None
    # Two folds: who is ranked by one teacher trained the other.
    assert spending.steps == STEPS_OF_TEACHER
    assert 1.98 < epsilon_of([spending], 1e-5) <= 2
    less = replace(spending, noise_multiplier=spending.noise_multiplier - 0.01)
    assert epsilon_of([less], 1e-5) > 2


def test_nothing_is_promised_where_the_teacher_learns_without_privacy(settings: PlanSettings) -> None:
    assert planned_privacy(with_teacher(settings, "none")).epsilon is None
    assert planned_privacy(with_teacher(settings, "public")).epsilon == 8
    assert planned_privacy(settings).epsilon == 8


def test_in_mode_site_the_sites_are_the_population_and_teachers_do_not_matter(settings: PlanSettings) -> None:
    chosen = with_teacher(settings, "none", mode="site")
    track, plan = planned(chosen), planned_privacy(chosen)
    assert (track.sampling_rate, track.population) == (1.0, 4)
    assert (plan.unit, plan.epsilon) == ("site", 8)


def test_in_mode_none_there_is_nothing_to_promise(settings: PlanSettings) -> None:
    chosen = with_teacher(settings, "none", mode="none")
    assert planned_privacy(chosen) == PrivacyPlan()
    assert planned_track(chosen, sites=4, patients=160, spec=SPEC) is None
    with pytest.raises(SettingsError, match=r"teacher\.privacy: expected none or public"):
        planned_teacher(with_teacher(settings, "dp", mode="none"))


def test_a_private_teacher_without_settings_is_refused(settings: PlanSettings) -> None:
    with pytest.raises(SettingsError, match=r"privacy\.teacher: expected how the teacher learns"):
        planned_teacher(with_teacher(settings, "dp", teacher=None))


@pytest.mark.parametrize("teacher", [DP_TEACHER, TeacherPlan(privacy="public", modality_dropout=0.0)])
def test_the_noise_is_the_least_that_keeps_teacher_and_student_within_epsilon(teacher: TeacherPlan) -> None:
    plan = calibrated(private_plan(teacher=teacher), 3.0)
    held = guarantee(plan).epsilon
    assert held is not None
    assert 2.97 < held <= 3
    beyond = guarantee(_with_noise(plan, _noise(plan) - 0.01)).epsilon
    assert beyond is not None
    assert beyond > 3


def test_a_teacher_costs_the_student_noise() -> None:
    public = TeacherPlan(privacy="public", modality_dropout=0.0)
    noises = [_noise(calibrated(private_plan(teacher=t), 3.0)) for t in (public, DP_TEACHER)]
    assert noises[0] < noises[1]


def test_a_plan_that_a_filter_stops_gets_more_noise() -> None:
    fixed = private_plan()
    stopped = replace(fixed, privacy=replace(fixed.privacy, stop="filter"))
    assert _noise(calibrated(stopped, 3.0)) > _noise(calibrated(fixed, 3.0))


def test_a_teacher_that_spends_it_all_is_refused() -> None:
    plan = private_plan(teacher=replace(DP_TEACHER, dp=replace(DP, noise_multiplier=0.5)))
    with pytest.raises(SettingsError, match=r"privacy\.epsilon"):
        calibrated(plan, 3.0)


def test_without_an_epsilon_and_without_privacy_a_plan_stays_as_it_is() -> None:
    assert calibrated(private_plan(), None) == private_plan()
    assert calibrated(tiny_plan(), 3.0) == tiny_plan()


def _noise(plan: RunPlan) -> float:
    (track,) = plan.tracks
    assert track.privacy is not None
    return track.privacy.noise_multiplier


def _with_noise(plan: RunPlan, noise: float) -> RunPlan:
    (track,) = plan.tracks
    assert track.privacy is not None
    return replace(plan, tracks=(replace(track, privacy=replace(track.privacy, noise_multiplier=noise)),))


def charged(plan: RunPlan, path: Path, *, rounds: int) -> tuple[Entry, ...]:
    """The ledger of a site that took part in so many rounds."""
    (track,) = plan.tracks
    ledger = Ledger.create(path, "simulated patients")
    teacher = teacher_charge(plan)
    charges = [] if teacher is None else [teacher]
    charges += [
        round_charge(plan, track, run_id=RunId("run-1"), round_id=r, sum_id=r, roster_digest="0" * 64)
        for r in range(1, rounds + 1)
    ]
    return tuple(ledger.charge(charge) for charge in charges)


def test_what_is_said_is_what_was_charged_and_not_what_was_planned(tmp_path: Path) -> None:
    plan = private_plan(teacher=DP_TEACHER)
    assert plan.steps(plan.tracks[0]) == 4
    block = privacy_block(plan, charged(plan, tmp_path / "ledger.db", rounds=3))
    teacher = teacher_spending(plan)
    assert teacher is not None
    assert block["steps"] == 3
    assert block["epsilon"] == pytest.approx(guarantee(plan, {"rare_disease": 3}).epsilon)
    assert block["epsilon"] < guarantee(plan).epsilon
    assert block["epsilon_teacher"] == pytest.approx(epsilon_of([teacher], 1e-5))
    assert f"epsilon = {block['epsilon']:.2f}" in block["statement"]
    assert (block["sigma"], block["q"], block["clip_norm"]) == (2.0, 0.1, 0.5)
    assert (block["mode"], block["teacher"], block["unit"]) == ("distributed", "dp", "patient")


def test_more_colluders_are_told_more(tmp_path: Path) -> None:
    plan = private_plan()
    block = privacy_block(plan, charged(plan, tmp_path / "ledger.db", rounds=2))
    found = [block["epsilon_by_colluders"][str(colluders)] for colluders in range(4)]
    assert found[0] == pytest.approx(block["epsilon"])
    assert found == sorted(found)
    assert found[0] < found[3]


def test_no_number_is_named_where_the_teacher_learned_without_privacy(tmp_path: Path) -> None:
    plan = private_plan(
        teacher=TeacherPlan(modality_dropout=0.0),
        privacy=PrivacyPlan(mode="distributed", delta=1e-5),
    )
    block = privacy_block(plan, charged(plan, tmp_path / "ledger.db", rounds=2))
    assert (block["epsilon"], block["epsilon_teacher"], block["epsilon_promised"]) == (None, None, None)
    assert block["statement"].startswith("No bound")
    assert block["epsilon_by_colluders"] == {}
    assert block["steps"] == 2


def test_without_privacy_the_block_says_none() -> None:
    assert privacy_block(tiny_plan(), ()) == dict(NO_PRIVACY)


def test_the_site_that_was_asked_for_most_steps_speaks_for_all(tmp_path: Path) -> None:
    plan = private_plan()
    ledgers = [charged(plan, tmp_path / f"{rounds}.db", rounds=rounds) for rounds in (1, 3, 2)]
    assert most_charged(plan, ledgers) == ledgers[1]
    assert most_charged(plan, []) == ()
