import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dp_accounting
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from common.errors import SettingsError
from common.guarantee import (
    Guarantee,
    by_colluders,
    certify,
    guarantee,
    spendings,
    student_spending,
    teacher_spending,
)
from common.ids import SiteId
from common.learning_plan import TeacherPlan
from common.plan import RunPlan
from common.privacy.accountant import RdpFilter, Spending
from common.privacy_plan import TeacherPrivacy
from tests.fakes import PRIVACY, TRACK, TRACK_PRIVACY, private_plan, tiny_plan

DELTA = 1e-5
DP = TeacherPrivacy(noise_multiplier=1.5, sampling_rate=0.2, clip_norm=1.0, steps=10, learning_rate=0.1)


def student(noise: float, rate: float, steps: int) -> dp_accounting.DpEvent:
    return SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)


def of_library(events: Sequence[dp_accounting.DpEvent]) -> float:
    """The library's own accountant, at a grid of its own."""
    accountant = PLDAccountant(value_discretization_interval=3e-4)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(DELTA))


def dp_plan(*, folds: int = 3, rounds: int = 4, teacher: TeacherPrivacy = DP, **plan: Any) -> RunPlan:
    made = TeacherPlan(privacy="dp", folds=folds, modality_dropout=0.1, dp=teacher)
    training = replace(private_plan().tracks[0].training, rounds=rounds)
    promise = {"privacy": replace(PRIVACY, epsilon=50.0), **plan}
    return private_plan(teacher=made, track={"training": training}, **promise)


def with_noise(noise: float) -> dict[str, Any]:
    return {"privacy": replace(TRACK_PRIVACY, noise_multiplier=noise)}


@pytest.mark.parametrize(
    ("noise", "rate", "population", "rounds", "spare"),
    [(1.0, 0.1, 40, 30, 0), (2.0, 0.5, 8, 20, 5), (3.0, 1.0, 4, 30, 0)],
)
def test_epsilon_is_the_librarys_own_of_the_realized_events(
    noise: float, rate: float, population: int, rounds: int, spare: int
) -> None:
    track = {
        "privacy": replace(TRACK_PRIVACY, noise_multiplier=noise, sampling_rate=rate, population=population),
        "training": replace(private_plan().tracks[0].training, rounds=rounds),
    }
    plan = private_plan(track=track, privacy=replace(PRIVACY, epsilon=None, spare_steps=spare))
    found = guarantee(plan).epsilon
    assert found == pytest.approx(of_library([student(noise, rate, rounds + spare)]), rel=2e-3)
    # Of the steps that were taken, where fewer were.
    fewer = guarantee(plan, {TRACK: 2}).epsilon
    assert fewer == pytest.approx(of_library([student(noise, rate, 2)]), rel=2e-3)


def test_teacher_and_student_are_one_composition() -> None:
    plan = dp_plan(folds=3, rounds=30)
    # Two of three teachers learn from each patient.
    teacher, learner = student(1.5, 0.2, 20), student(2.0, 0.1, 30)
    found = guarantee(plan)
    assert found.epsilon == pytest.approx(of_library([teacher, learner]), rel=1e-3)
    assert found.epsilon_teacher == pytest.approx(of_library([teacher]), rel=1e-3)
    assert found.epsilon_teacher is not None
    assert found.epsilon is not None
    alone = guarantee(replace(plan, teacher=private_plan().teacher))
    assert alone.epsilon_teacher == 0
    assert alone.epsilon is not None
    assert max(found.epsilon_teacher, alone.epsilon) < found.epsilon < found.epsilon_teacher + alone.epsilon
    # Rounds that were not run are not counted; the teacher is.
    assert guarantee(plan, {TRACK: 0}).epsilon == found.epsilon_teacher


@pytest.mark.parametrize("folds", [2, 5])
def test_a_patient_trains_all_teachers_of_the_cross_fitting_but_one(folds: int) -> None:
    expected = Spending(sampling_rate=0.2, noise_multiplier=1.5, steps=10 * (folds - 1))
    assert teacher_spending(dp_plan(folds=folds)) == expected
    assert teacher_spending(private_plan()) is None


def test_a_patient_may_be_in_all_tracks() -> None:
    plan = private_plan()
    (track,) = plan.tracks
    both = replace(plan, tracks=(track, replace(track, track="tissue_type")))
    assert spendings(both) == spendings(plan) * 2
    assert guarantee(both).epsilon == pytest.approx(of_library([student(2.0, 0.1, 8)]), rel=1e-3)


def test_a_step_of_mode_local_is_a_step_of_each_site_and_rounds_have_several() -> None:
    training = replace(private_plan().tracks[0].training, local_steps=5)
    plan = private_plan(privacy=replace(PRIVACY, mode="local", spare_steps=1), track={"training": training})
    assert guarantee(plan).epsilon == pytest.approx(of_library([student(2.0, 0.1, 25)]), rel=1e-3)
    assert by_colluders(plan) == {}


def test_in_mode_site_the_unit_is_a_site_and_its_teacher_is_none_of_it() -> None:
    privacy = replace(TRACK_PRIVACY, sampling_rate=1.0, population=4, noise_multiplier=5.0)
    plan = private_plan(
        privacy=replace(PRIVACY, mode="site", epsilon=20.0),
        track={"privacy": privacy},
        teacher=TeacherPlan(privacy="none", modality_dropout=0.1),
    )
    found = certify(plan)
    assert (found.mode, found.unit, found.epsilon_teacher) == ("site", "site", None)
    assert found.epsilon == pytest.approx(of_library([student(5.0, 1.0, 4)]), rel=1e-3)


def test_nothing_is_bounded_without_a_mode_or_with_a_teacher_without_privacy() -> None:
    without = private_plan(
        privacy=replace(PRIVACY, epsilon=None),
        teacher=TeacherPlan(privacy="none", modality_dropout=0.1),
    )
    for plan in (tiny_plan(), without):
        found = certify(plan)
        assert (found.epsilon, found.epsilon_teacher) == (None, None)
        assert by_colluders(plan) == {}
        assert found.sentence() == (
            f"No bound on what the student tells about one patient (privacy mode {plan.privacy.mode})."
        )


def test_discrete_noise_is_accounted_by_its_own_bound() -> None:
    plan = private_plan(privacy=replace(PRIVACY, noise="discrete_gaussian"))
    (spent,) = spendings(plan)
    assert spent.discrete is not None
    mechanism = plan.mechanism(plan.tracks[0])
    numbers = (spent.discrete.shares, spent.discrete.dimension, spent.discrete.sensitivity)
    assert numbers == (4, 20, mechanism.sensitivity)
    assert spent.discrete.share_std == mechanism.share_std(4)
    found, tight = guarantee(plan).epsilon, guarantee(private_plan()).epsilon
    assert found is not None
    assert tight is not None
    # A bound for any sampled mechanism: looser, and never less.
    assert tight < found < math.inf


def test_by_colluders_is_the_epsilon_of_the_noise_that_they_do_not_know() -> None:
    plan = private_plan(privacy=replace(PRIVACY, colluders=1))
    found = by_colluders(plan)
    assert list(found) == [0, 1, 2, 3]
    # Shares are drawn for three members; with k colluders 4 - k are left.
    expected = of_library([student(2.0 * math.sqrt(1 / 3), 0.1, 4)])
    assert found[3] == pytest.approx(expected, rel=2e-3)
    assert found[1] == guarantee(plan).epsilon
    assert sorted(found.values()) == list(found.values())


def test_by_colluders_has_the_late_losses_gone_too() -> None:
    plan = private_plan(privacy=replace(PRIVACY, late_losses=1))
    found = by_colluders(plan, {TRACK: 2})
    assert list(found) == [0, 1, 2]
    assert found[0] == guarantee(plan, {TRACK: 2}).epsilon
    # Shares are drawn for three members, three are left, and two of them tell.
    two_tell = guarantee(private_plan(track=with_noise(2.0 * math.sqrt(1 / 3))), {TRACK: 2})
    assert found[2] == pytest.approx(two_tell.epsilon, rel=1e-6)


def test_a_plan_that_states_less_than_its_noise_gives_is_refused() -> None:
    held = guarantee(private_plan()).epsilon
    assert held is not None
    assert certify(private_plan(privacy=replace(PRIVACY, epsilon=held))).epsilon == held
    with pytest.raises(SettingsError) as caught:
        certify(private_plan(privacy=replace(PRIVACY, epsilon=held - 1e-6)))
    assert str(caught.value).startswith(
        f"plan.privacy.epsilon: expected at least {held:.4f}, what its noise and its steps give"
    )


def test_spare_steps_and_the_teacher_count_for_what_a_plan_may_state() -> None:
    held = guarantee(private_plan()).epsilon
    promise = replace(PRIVACY, epsilon=held)
    with pytest.raises(SettingsError, match=r"plan\.privacy\.epsilon"):
        certify(private_plan(privacy=replace(promise, spare_steps=1)))
    with pytest.raises(SettingsError, match=r"plan\.privacy\.epsilon"):
        certify(dp_plan(privacy=promise))


def test_a_plan_with_a_filter_may_state_what_leaves_room_for_a_first_round() -> None:
    filtering = replace(PRIVACY, stop="filter", epsilon=1.0)
    training = replace(private_plan().tracks[0].training, rounds=1000)
    plan = private_plan(privacy=filtering, track={"training": training})
    # Its thousand rounds would be more than it states, were they not stopped.
    with pytest.raises(SettingsError, match="what its noise and its steps give"):
        certify(replace(plan, privacy=replace(filtering, stop="fixed")))
    # Who may stop when he likes what he sees has what the filter proves, however few rounds it took.
    assert certify(plan).epsilon == guarantee(plan, {TRACK: 1}).epsilon == 1.0
    refused = (
        private_plan(privacy=replace(filtering, epsilon=0.01), track={"training": training}),
        dp_plan(privacy=filtering),
    )
    for one in refused:
        with pytest.raises(SettingsError, match="room for the teacher and a first round"):
            certify(one)


def test_with_a_filter_a_first_round_of_mode_local_is_all_its_steps() -> None:
    filtering = replace(PRIVACY, mode="local", stop="filter", epsilon=1.0)
    plan = private_plan(privacy=filtering)
    step = student_spending(plan, plan.tracks[0], 1)
    most = next(
        n
        for n in range(1, 10_000)
        if not RdpFilter(epsilon=1.0, delta=DELTA).admits([], replace(step, steps=n))
    )
    for steps, fits in ((most - 1, True), (most, False)):
        training = replace(plan.tracks[0].training, local_steps=steps)
        made = private_plan(privacy=filtering, track={"training": training})
        if fits:
            certify(made)
            continue
        with pytest.raises(SettingsError, match="room for the teacher and a first round"):
            certify(made)


def test_what_a_filter_admits_is_at_most_its_epsilon_by_the_librarys_own_accountant() -> None:
    plan = private_plan(privacy=replace(PRIVACY, stop="filter", epsilon=1.0))
    step, held = student_spending(plan, plan.tracks[0], 1), RdpFilter(epsilon=1.0, delta=DELTA)
    steps = next(n for n in range(1, 10_000) if not held.admits([replace(step, steps=n)], step))
    accountant = RdpAccountant().compose(student(2.0, 0.1, steps))
    assert 0.8 < float(accountant.get_epsilon(DELTA)) <= 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the coordinator and no site that took part."),
        ({"colluders": 1}, "the coordinator and one other site."),
        ({"colluders": 2}, "the coordinator and up to 2 other sites together."),
        ({"mode": "local"}, "the coordinator and all other sites together."),
    ],
)
def test_the_sentence_names_number_unit_delta_and_adversary(changes: dict[str, Any], words: str) -> None:
    found = Guarantee(
        **{
            "mode": "distributed",
            "unit": "patient",
            "epsilon": 2.345,
            "delta": 1e-5,
            "epsilon_teacher": 0.0,
            "colluders": 0,
            **changes,
        }
    )
    assert found.sentence() == (
        "epsilon = 2.35 at delta = 1e-05 for each patient (added or removed), teacher and student together, "
        f"against the public, {words}"
    )


def test_a_track_without_privacy_spends_nothing_that_could_be_named() -> None:
    with pytest.raises(ValueError, match="Expected a track with privacy"):
        student_spending(tiny_plan(), tiny_plan().tracks[0], 1)


FIVE = tuple(SiteId(f"site-{letter}") for letter in "abcde")


def two_tracks(noises: tuple[float, float] = (2.0, 3.0), **plan: Any) -> RunPlan:
    """Two tracks of four and of three sites, two of them in both; 4 and 6 steps at rates 0.1 and 0.2."""
    made = dp_plan(**plan)
    (text,) = made.tracks
    text = replace(text, sites=FIVE[:4], privacy=replace(TRACK_PRIVACY, noise_multiplier=noises[0]))
    image = replace(
        text,
        track="tissue_type",
        sites=FIVE[2:],
        training=replace(text.training, rounds=6, patients_per_step=2),
        privacy=replace(TRACK_PRIVACY, noise_multiplier=noises[1], sampling_rate=0.2, population=30),
    )
    return replace(made, sites=FIVE, tracks=(text, image))


def test_a_patient_of_two_tracks_pays_for_both_and_for_one_teacher() -> None:
    found = guarantee(two_tracks())
    teacher, text, image = student(1.5, 0.2, 20), student(2.0, 0.1, 4), student(3.0, 0.2, 6)
    assert found.epsilon == pytest.approx(of_library([teacher, text, image]), rel=2e-3)
    assert found.epsilon_teacher == pytest.approx(of_library([teacher]), rel=2e-3)
    assert "teacher and 2 students together" in found.sentence()


@pytest.mark.parametrize(("site", "steps"), [("site-a", [4]), ("site-c", [4, 6]), ("site-e", [6])])
def test_a_sites_patients_pay_for_its_own_tracks(site: str, steps: list[int]) -> None:
    teacher, *students = spendings(two_tracks(), site=SiteId(site))
    assert teacher.steps == 20
    assert [spending.steps for spending in students] == steps


def test_colluders_are_so_many_of_each_track() -> None:
    plan = two_tracks(privacy=replace(PRIVACY, epsilon=None, colluders=1))
    found = by_colluders(plan)
    # Of the smaller track's three sites one has to be left.
    assert set(found) == {0, 1, 2}
    assert found[1] == pytest.approx(guarantee(plan).epsilon)
    for number, of_text, of_image in ((0, 4 / 3, 3 / 2), (2, 2 / 3, 1 / 2)):
        text = student(2.0 * math.sqrt(of_text), 0.1, 4)
        image = student(3.0 * math.sqrt(of_image), 0.2, 6)
        expected = of_library([student(1.5, 0.2, 20), text, image])
        assert found[number] == pytest.approx(expected, rel=2e-3)
