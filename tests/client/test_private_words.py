from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import client.private_words
import common.privacy.mechanism
from client.private_words import private_words
from client.student.branches import PatientPairs
from client.student.fit import LocalUpdate
from client.student.model import Student
from client.student.private import ClippedSum
from common.adapter import Adapter, Block, flatten, initial_adapter, unflatten
from common.charges import round_charge
from common.fixedpoint import Words
from common.learning_plan import TrainingPlan
from common.plan import RunPlan
from common.train_words import train_fixed_point
from tests.client.student import conftest as tiny_student
from tests.fakes import PRIVACY, RUN, TRACK_PRIVACY, private_plan, tiny_adapter, tiny_plan

base_folder, student = tiny_student.base_folder, tiny_student.student

SIZE = tiny_adapter().spec.size(Block.B)
CLIP = TRACK_PRIVACY.clip_norm


def entry(patient: str, length: int = 5, first: int = 40) -> PatientPairs:
    return PatientPairs(
        patient_id=patient,
        prompt=(1, *range(first, first + length)),
        branches=((60, 61, 2), (70, 71, 2)),
        pairs=((0, 1),),
    )


def patients(count: int) -> list[PatientPairs]:
    return [entry(f"p{number}") for number in range(count)]


def plan_of(mode: str = "distributed", *, rate: float = 1.0, **training: Any) -> RunPlan:
    """Every patient of about four is drawn in each step, if nothing else is said."""
    track: dict[str, Any] = {
        "privacy": replace(TRACK_PRIVACY, sampling_rate=rate, population=round(4 / rate))
    }
    if training:
        track["training"] = replace(private_plan().tracks[0].training, **training)
    return private_plan(track=track, privacy=replace(PRIVACY, mode=mode, epsilon=None))


def no_fit() -> LocalUpdate:
    raise AssertionError("ordinary training is for mode site")


def fitted(adapter: Adapter, moved: np.ndarray) -> LocalUpdate:
    to = unflatten(adapter, Block.B, flatten(adapter, Block.B) + moved)
    return LocalUpdate(adapter=to, patients=3, pairs=3, steps=1, loss=0.0, preferred=0.0)


class Drawn:
    """Stands in for the gradients: each patient pulls by 0.1 in all coordinates; keeps who was drawn."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.at: list[Adapter] = []

    def __call__(
        self,
        student: Student,
        adapter: Adapter,
        block: Block,
        drawn: Sequence[PatientPairs],
        plan: TrainingPlan,
        *,
        clip_norm: float,
    ) -> ClippedSum:
        assert clip_norm == CLIP
        who = sorted({one.patient_id for one in drawn})
        self.batches.append([one.patient_id for one in drawn])
        self.at.append(adapter)
        return ClippedSum(
            total=np.full(adapter.spec.size(block), 0.1 * len(who)), patients=len(who), clipped=0, dropped=0
        )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    made = Drawn()
    monkeypatch.setattr(client.private_words, "clipped_gradients", made)
    return made


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No noise; keeps the standard deviations that were asked for."""
    asked: list[float] = []

    def nothing(std: float, size: int) -> np.ndarray:
        asked.append(std)
        return np.zeros(size, dtype=np.int64)

    monkeypatch.setattr(common.privacy.mechanism, "rounded_normal", nothing)
    return asked


def words_of(
    plan: RunPlan, some: Sequence[PatientPairs], *, members: int = 4, fit: Any = no_fit, of: Any = None
) -> Words:
    adapter = tiny_adapter()
    return private_words(of, adapter, Block.B, some, plan, plan.tracks[0], members=members, fit=fit)


def decoded(plan: RunPlan, words: Words) -> np.ndarray:
    return plan.mechanism(plan.tracks[0]).decode(words)


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_the_words_are_the_vectors_whatever_the_site_has(count: int, drawn: Drawn) -> None:
    plan = plan_of(rate=0.5)
    words = words_of(plan, patients(count))
    assert (words.shape, words.dtype) == ((SIZE,), np.uint32)


def test_the_sum_goes_down_the_gradient_and_is_divided_by_nothing_of_the_sites(
    drawn: Drawn, silent: list[float]
) -> None:
    plan = plan_of()
    for count in (1, 2, 9):
        total = decoded(plan, words_of(plan, patients(count)))
        np.testing.assert_allclose(total, np.full(SIZE, -0.1 * count), atol=1e-6)


def test_averages_of_mode_local_divide_by_the_public_constant_and_never_by_a_count(
    drawn: Drawn, silent: list[float]
) -> None:
    plan = plan_of("local", learning_rate=0.5)
    for count in (1, 2, 9):
        delta = train_fixed_point(plan).decode(words_of(plan, patients(count)))
        # q N / n is 1 patient a site, however many there are.
        np.testing.assert_allclose(delta, np.full(SIZE, -0.5 * 0.1 * count), atol=1e-6)
    wider = replace(plan.tracks[0].training, patients_per_step=2)
    privacy = replace(TRACK_PRIVACY, sampling_rate=1.0, population=8)
    (track,) = plan.tracks
    double = replace(plan, tracks=(replace(track, training=wider, privacy=privacy),))
    delta = train_fixed_point(double).decode(words_of(double, patients(9)))
    np.testing.assert_allclose(delta, np.full(SIZE, -0.5 * 0.1 * 9 / 2), atol=1e-6)


def test_each_step_of_mode_local_starts_where_the_noised_one_before_ended(
    drawn: Drawn, silent: list[float]
) -> None:
    plan = plan_of("local", local_steps=3, learning_rate=0.5)
    delta = train_fixed_point(plan).decode(words_of(plan, patients(2)))
    np.testing.assert_allclose(delta, np.full(SIZE, -3 * 0.5 * 0.2), atol=1e-6)
    # All of the noise in each step, as if the site were alone.
    mechanism = plan.mechanism(plan.tracks[0])
    assert silent == [mechanism.share_std(1)] * 3
    start = flatten(tiny_adapter(), Block.B)
    for place, adapter in enumerate(drawn.at):
        np.testing.assert_allclose(flatten(adapter, Block.B), start - place * 0.1, atol=1e-6)


@pytest.mark.parametrize("members", [4, 3])
def test_a_share_of_noise_is_that_of_the_members_that_are_counted_on(
    members: int, drawn: Drawn, silent: list[float]
) -> None:
    plan = plan_of()
    lossy = replace(plan, privacy=replace(plan.privacy, late_losses=1))
    for one, enough in ((plan, members), (lossy, members - 1)):
        mechanism = one.mechanism(one.tracks[0])
        silent.clear()
        words_of(one, patients(2), members=members)
        assert silent == [mechanism.share_std(enough)]
        # So many shares are sigma times the sensitivity.
        assert silent[0] * np.sqrt(enough) == pytest.approx(2.0 * mechanism.sensitivity)


def test_noise_is_drawn_afresh_each_time(drawn: Drawn) -> None:
    plan = plan_of()
    first, second = (words_of(plan, patients(2)) for _ in range(2))
    assert (first != second).any()


def test_a_step_draws_each_patient_by_chance_and_brings_all_that_is_his(
    drawn: Drawn, silent: list[float]
) -> None:
    plan = plan_of(rate=0.5)
    some = [entry(f"p{number % 40}", first=40 + number // 40) for number in range(80)]
    for _ in range(60):
        words_of(plan, some)
    sizes = []
    for batch in drawn.batches:
        who = set(batch)
        # Both of his entries, or none.
        assert sorted(batch) == sorted([*who, *who])
        sizes.append(len(who))
    # 60 draws of 40 patients at 1/2: mean 20 with standard error 0.41, standard deviation 3.2.
    assert 18 < np.mean(sizes) < 22
    assert 2 < np.std(sizes) < 4.6
    assert len({tuple(batch) for batch in drawn.batches}) > 50


@pytest.mark.parametrize("records", [1, 40])
def test_a_patient_with_many_records_pulls_by_the_clip_norm_and_costs_the_same(
    records: int, student: Student, silent: list[float]
) -> None:
    adapter = initial_adapter(student.spec, 0)
    size = student.spec.size(Block.B)
    privacy = replace(TRACK_PRIVACY, clip_norm=1e-3, sampling_rate=1.0, population=4, dimension=size)
    plan = private_plan(track={"privacy": privacy}, privacy=replace(PRIVACY, epsilon=None))
    some = [entry("p0", 3 + number % 4, 40 + number) for number in range(records)]
    words = private_words(student, adapter, Block.B, some, plan, plan.tracks[0], members=4, fit=no_fit)
    pull = float(np.linalg.norm(decoded(plan, words)))
    step = 1 / plan.mechanism(plan.tracks[0]).scale
    # The bound is met, but for the rounding of a step a number.
    assert pull == pytest.approx(1e-3, abs=np.sqrt(size) * step)
    charge = round_charge(plan, plan.tracks[0], run_id=RUN, round_id=1, sum_id=1, roster_digest="ab" * 32)
    assert (charge.steps, charge.noise_multiplier) == (1, 2.0)


def test_two_patients_pull_as_two(student: Student, silent: list[float]) -> None:
    # What the test above would see if records were patients.
    adapter, size = initial_adapter(student.spec, 0), student.spec.size(Block.B)
    privacy = replace(TRACK_PRIVACY, clip_norm=1e-3, sampling_rate=1.0, population=4, dimension=size)
    plan = private_plan(track={"privacy": privacy}, privacy=replace(PRIVACY, epsilon=None))
    some = [entry("p0", 5, 40), entry("p1", 5, 40)]
    words = private_words(student, adapter, Block.B, some, plan, plan.tracks[0], members=4, fit=no_fit)
    assert np.linalg.norm(decoded(plan, words)) == pytest.approx(2e-3, rel=1e-2)


def site_plan() -> RunPlan:
    return private_plan(
        track={"privacy": replace(TRACK_PRIVACY, sampling_rate=1.0, population=4)},
        privacy=replace(PRIVACY, mode="site", epsilon=None),
    )


@pytest.mark.parametrize(("length", "kept"), [(0.1, 0.1), (0.5, 0.5), (7.0, 0.5), (0.0, 0.0)])
def test_mode_site_clips_the_whole_update(
    length: float, kept: float, drawn: Drawn, silent: list[float]
) -> None:
    plan, adapter = site_plan(), tiny_adapter()
    direction = np.arange(1, SIZE + 1) / np.linalg.norm(np.arange(1, SIZE + 1))
    words = words_of(plan, patients(5), fit=lambda: fitted(adapter, length * direction))
    np.testing.assert_allclose(decoded(plan, words), kept * direction, atol=1e-6)
    assert silent == [plan.mechanism(plan.tracks[0]).share_std(4)]
    assert drawn.batches == []


def test_an_update_of_mode_site_that_is_no_number_is_not_sent(drawn: Drawn) -> None:
    adapter = tiny_adapter()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            words_of(site_plan(), patients(1), fit=lambda bad=bad: fitted(adapter, np.full(SIZE, bad)))


@pytest.mark.parametrize("mode", ["distributed", "local", "site"])
def test_more_patients_than_the_cap_are_refused_without_their_number(mode: str, drawn: Drawn) -> None:
    plan = site_plan() if mode == "site" else plan_of(mode)
    capped = replace(plan, aggregation=replace(plan.aggregation, site_patients_cap=7))
    update = fitted(tiny_adapter(), np.zeros(SIZE))
    # Records are no patients.
    words_of(capped, [*patients(7), *patients(7)], fit=lambda: update)
    with pytest.raises(ValueError, match="site_patients_cap=7 patients, got more") as caught:
        words_of(capped, patients(23), fit=lambda: update)
    assert "23" not in str(caught.value)


def test_an_adapter_that_is_larger_than_the_plan_says_is_refused(drawn: Drawn) -> None:
    plan = plan_of()
    (track,) = plan.tracks
    assert track.privacy is not None
    for dimension, fits in ((SIZE, True), (SIZE - 1, False)):
        made = replace(plan, tracks=(replace(track, privacy=replace(track.privacy, dimension=dimension)),))
        if fits:
            words_of(made, patients(1))
            continue
        with pytest.raises(ValueError, match=f"Expected a block of at most {SIZE - 1} numbers, got {SIZE}"):
            words_of(made, patients(1))


def test_a_plan_without_privacy_has_no_private_words(drawn: Drawn) -> None:
    with pytest.raises(ValueError, match="Expected a track with privacy, got one in mode none"):
        words_of(tiny_plan(), patients(1))


def test_a_step_reads_one_of_a_patients_readings_and_in_time_each(
    drawn: Drawn, silent: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def reading(one: PatientPairs) -> PatientPairs:
        read.append(one.prompt[1])
        return one

    plan = plan_of(readings=2)
    some = [entry(f"p{number % 5}", first=40 + number // 5) for number in range(10)]
    gradients = client.private_words.clipped_gradients
    monkeypatch.setattr(
        client.private_words,
        "clipped_gradients",
        lambda student, adapter, block, batch, *rest, **named: gradients(
            student, adapter, block, [reading(one) for one in batch], *rest, **named
        ),
    )
    for _ in range(40):
        words_of(plan, some)
    assert all(sorted(batch) == [f"p{number}" for number in range(5)] for batch in drawn.batches)
    # 200 lots of a half.
    assert 60 < read.count(40) < 140
    assert read.count(40) + read.count(41) == 200
