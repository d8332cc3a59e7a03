"""A teacher under differential privacy.

What protects a patient is measured from outside, on heads that were trained: by how much a patient moves a
step, and how large the noise is. The same measures find teachers that were broken on purpose.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from client.patients.records import PatientRecord
from client.teacher import private
from client.teacher.fit import PatientTable, Teacher, tabulate
from client.teacher.private import PrivateHead, fit_private_teacher, train_head
from client.teacher.public import PublicNames
from client.teacher.rank import rank_patients
from client.teacher.sight import Sight
from common.learning_plan import TeacherPlan
from common.privacy.accountant import Spending, epsilon_of
from common.privacy.noise import poisson_sample
from common.privacy_plan import TeacherPrivacy
from common.tracks import RARE_DISEASE, TISSUE_TYPE, Answer, AnswerList, Eye

TRACK, OTHER = RARE_DISEASE.name, TISSUE_TYPE.name
WIDTH = 9
CLIP_NORM = 0.8
# What a step of a sum may be off by: its numbers lie on a grid.
GRID = CLIP_NORM / private.STEPS_PER_CLIP_NORM


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def answer_list(count: int, prefix: str = "D") -> AnswerList:
    return AnswerList(
        answers=tuple(Answer(id=f"{prefix}:{index}", name=f"{prefix} {index}") for index in range(count))
    )


ANSWERS = {TRACK: answer_list(5), OTHER: answer_list(3, "T")}


def dp_plan(modality_dropout: float = 0.0, **changes: Any) -> TeacherPlan:
    usual: dict[str, Any] = {"noise_multiplier": 2.0, "sampling_rate": 1.0, "clip_norm": CLIP_NORM}
    usual |= {"steps": 1, "learning_rate": 1.0}
    dp = TeacherPrivacy(**usual | changes)
    return TeacherPlan(privacy="dp", folds=2, modality_dropout=modality_dropout, dp=dp)


def site(
    count: int, *, seed: int = 0, noise: float = 0.5, classes: int = 5
) -> tuple[list[PatientRecord], Sight]:
    """Patients of one track, the other, or both, who bring a photo, a note, or both."""
    centers = np.random.default_rng(99).normal(size=(2, classes, WIDTH))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    ids = tuple(f"patient-{seed}-{index}" for index in range(count))
    brought = rng.integers(0, 3, count)
    present = {Eye.PHOTO: brought != 0, Eye.NOTE: brought != 1}
    vectors = {
        eye: ((center[labels] + noise * rng.normal(size=(count, WIDTH))) * present[eye][:, None]).astype("f4")
        for eye, center in zip(present, centers, strict=True)
    }
    records = []
    for index, (name, label) in enumerate(zip(ids, labels, strict=True)):
        both = {TRACK: f"D:{label}", OTHER: f"T:{label % 3}"}
        tracks = ((TRACK,), (TRACK, OTHER), (OTHER,))[index % 3]
        label_by_track = {track: both[track] for track in tracks}
        records.append(PatientRecord(patient_id=name, case_id=name, note="note", label=label_by_track))
    return records, Sight(patient_ids=ids, vectors=vectors, present=present)


def flat(head: Any) -> NDArray[np.float64]:
    """All weights of a head, one after the other."""
    weights = [tensor for name, tensor in sorted(head.state_dict().items()) if name.startswith("linear")]
    return torch.cat([weight.double().flatten() for weight in weights]).numpy()


def head_and_table(records: list[PatientRecord], sight: Sight, seed: int) -> tuple[PrivateHead, PatientTable]:
    """A head with weights of its own, as in the middle of training, and its patients."""
    head = PrivateHead(dict.fromkeys(sight.vectors, WIDTH), {track: len(a) for track, a in ANSWERS.items()})
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data.normal_(std=3.0, generator=generator)
    table = tabulate(records, sight, ANSWERS)
    scaled = {eye: head.standardized(eye, vectors) for eye, vectors in table.vectors.items()}
    return head, replace(table, vectors=scaled)


def step_sum(records: list[PatientRecord], sight: Sight, *, seed: int = 3, **changes: Any) -> Any:
    """What one step adds up of these patients, noise included, at weights that ``seed`` decides."""
    head, table = head_and_table(records, sight, seed)
    before = flat(head)
    plan = dp_plan(learning_rate=CLIP_NORM, **changes)
    assert plan.dp is not None
    train_head(head, table, plan.dp, plan.modality_dropout)
    return before - flat(head)


def without(records: list[PatientRecord], index: int) -> list[PatientRecord]:
    return records[:index] + records[index + 1 :]


def influences(records: list[PatientRecord], sight: Sight) -> NDArray[np.float64]:
    """By how much each patient moves a step's sum, L2."""
    everyone = step_sum(records, sight)
    moved = [everyone - step_sum(without(records, index), sight) for index in range(len(records))]
    return np.linalg.norm(moved, axis=1)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps without noise, so that sums can be compared."""
    monkeypatch.setattr(private, "rounded_normal", lambda std, size: np.zeros(size, dtype=np.int64))
    return


@pytest.mark.usefixtures("quiet")
def test_one_patient_moves_a_sum_by_at_most_the_clip_norm_whatever_the_number_of_tracks() -> None:
    records, sight = site(12)
    moved = influences(records, sight)
    bound = GRID * private.sensitivity(2 * WIDTH * 8)
    assert (moved <= bound).all()
    # The test has a grip: gradients are longer than the bound, or shorter and left as they are.
    assert (moved > 0.99 * CLIP_NORM).sum() >= 4
    assert (moved < 0.9 * CLIP_NORM).any()


@pytest.mark.usefixtures("quiet")
def test_a_teacher_that_does_not_clip_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    clipping = private.GradSampleModuleFastGradientClipping
    monkeypatch.setattr(
        private,
        "GradSampleModuleFastGradientClipping",
        lambda module, **arguments: clipping(module, **arguments | {"max_grad_norm": 1e9}),
    )
    assert influences(*site(12)).max() > 1.5 * CLIP_NORM


@pytest.mark.usefixtures("quiet")
def test_a_teacher_that_clips_track_by_track_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def clipped_apart(module: Any) -> Tensor:
        norms = torch.stack([parameter._norm_sample for parameter in module.trainable_parameters])
        return CLIP_NORM / norms.max(dim=0).values.clamp(min=CLIP_NORM)

    monkeypatch.setattr(
        private.GradSampleModuleFastGradientClipping, "get_clipping_coef", clipped_apart, raising=True
    )
    assert influences(*site(12)).max() > 1.1 * CLIP_NORM


@pytest.mark.usefixtures("quiet")
def test_a_sum_is_that_of_each_patients_clipped_gradient_and_of_nothing_else_that_is_his() -> None:
    records, sight = site(9)
    # One patient unlike all others: statistics of the patients would carry this to every row.
    sight.vectors[Eye.NOTE][3] *= 1e6
    alone = [step_sum([record], sight) for record in records]
    assert step_sum(records, sight) == pytest.approx(np.sum(alone, axis=0), abs=len(records) * GRID)
    for record, found in zip(records, alone, strict=True):
        head, table = head_and_table([record], sight, 3)
        loss = torch.zeros(())
        for track, logits in head(table.vectors, table.present).items():
            if track in record.label:
                loss = loss + functional.cross_entropy(logits, table.labels[track])
        gradient = torch.autograd.grad(
            loss, list(head.parameters()), allow_unused=True, materialize_grads=True
        )
        names = [name for name, _ in head.named_parameters()]
        ordered = [
            part.flatten() for _, part in sorted(zip(names, gradient, strict=True), key=lambda p: p[0])
        ]
        whole = torch.cat(ordered).numpy()
        assert found == pytest.approx(whole * min(1, CLIP_NORM / np.linalg.norm(whole)), abs=2e-6)


def test_removing_a_patient_leaves_what_is_learned_from_the_others_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, sight = site(8)
    sight.vectors[Eye.PHOTO][0] *= 1e6
    tables: list[PatientTable] = []
    monkeypatch.setattr(private, "train_head", lambda head, table, *rest: tables.append(table))
    for taught in (records, records[1:]):
        fit_private_teacher(taught, sight, answers=ANSWERS, plan=dp_plan(), names={TRACK: names_like(WIDTH)})
    with_him, without_him = tables
    for eye, vectors in without_him.vectors.items():
        assert torch.allclose(with_him.vectors[eye][1:], vectors, rtol=0, atol=1e-12)
        assert torch.equal(with_him.present[eye][1:], without_him.present[eye])
    for track, labels in without_him.labels.items():
        assert torch.equal(with_him.labels[track][1:], labels)


def noise_of(steps: int, **changes: Any) -> NDArray[np.float64]:
    """The weights of a teacher that nobody taught, in units of the clip norm."""
    wide = Sight(
        patient_ids=(),
        vectors={Eye.NOTE: np.zeros((0, 500), dtype=np.float32)},
        present={Eye.NOTE: np.zeros(0, dtype=np.bool_)},
    )
    teacher = fit_private_teacher(
        [], wide, answers={TRACK: answer_list(20)}, plan=dp_plan(steps=steps, **changes)
    )
    return flat(teacher.trunk)


def std_fits(draws: NDArray[np.float64], std: float) -> bool:
    """Whether a standard deviation could be ``std``; wrong once in a million."""
    return abs(float(np.sqrt(np.mean(draws**2))) / std - 1) < 5 / np.sqrt(2 * draws.size)


def test_noise_has_the_standard_deviation_of_the_plan_and_the_test_would_notice() -> None:
    draws = noise_of(1)
    assert std_fits(draws, 2.0)
    assert not std_fits(draws * 2 / 3, 2.0)
    assert not std_fits(draws * 3 / 2, 2.0)
    assert abs(draws.mean()) < 5 * 2.0 / np.sqrt(draws.size)


def test_each_step_adds_noise_of_its_own_and_there_are_exactly_as_many_as_planned() -> None:
    assert std_fits(noise_of(7), 2.0 * np.sqrt(7))
    assert std_fits(noise_of(7, learning_rate=0.5), 1.0 * np.sqrt(7))


def test_a_teacher_without_noise_or_with_the_same_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded = np.random.default_rng(0).normal(size=20 * 500)
    monkeypatch.setattr(private, "rounded_normal", lambda std, size: np.rint(std * seeded).astype(np.int64))
    assert std_fits(noise_of(1), 2.0)
    assert not std_fits(noise_of(7), 2.0 * np.sqrt(7))
    monkeypatch.setattr(private, "rounded_normal", lambda std, size: np.zeros(size, dtype=np.int64))
    assert not std_fits(noise_of(1), 2.0)


def test_noised_sums_lie_on_the_grid() -> None:
    steps = step_sum(*site(12)) / GRID
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_two_trainings_never_give_the_same_teacher() -> None:
    records, sight = site(12)
    digests = set()
    for _ in range(3):
        torch.manual_seed(0)
        digests.add(fit_private_teacher(records, sight, answers=ANSWERS, plan=dp_plan()).digest())
    assert len(digests) == 3


def test_each_step_takes_a_poisson_sample_and_a_step_on_nobody_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, sight = site(6)
    sizes: list[int] = []
    asked: list[tuple[int, float]] = []

    def poisson_sample_and_note(count: int, rate: float) -> NDArray[np.int64]:
        asked.append((count, rate))
        sample = poisson_sample(count, rate)
        sizes.append(len(sample))
        return sample

    monkeypatch.setattr(private, "poisson_sample", poisson_sample_and_note)
    fit_private_teacher(records, sight, answers=ANSWERS, plan=dp_plan(steps=150, sampling_rate=0.25))
    assert asked == [(6, 0.25)] * 150
    # Of the binomial law with mean 1.5 and variance 1.125; a shuffle in batches would have variance 0.
    assert abs(np.mean(sizes) - 1.5) < 5 * np.sqrt(1.125 / 150)
    assert 0.5 < np.var(sizes) < 2.2
    assert 0 in sizes
    # Empty samples alone: all noise, as with patients.
    sizes.clear()
    drawn = step_sum(records, sight, steps=20, sampling_rate=1e-9)
    assert sizes == [0] * 20
    assert std_fits(drawn / CLIP_NORM, 2.0 * np.sqrt(20))


def test_it_learns_what_the_accountant_allows() -> None:
    privacy = TeacherPrivacy(
        noise_multiplier=7.0, sampling_rate=1.0, clip_norm=0.5, steps=20, learning_rate=0.05
    )
    spending = Spending(sampling_rate=1.0, noise_multiplier=privacy.noise_multiplier, steps=privacy.steps)
    assert 1.9 < epsilon_of([spending], 1e-4) < 2.4
    plan = replace(dp_plan(), dp=privacy)
    records, sight = site(400)
    new, seen = site(300, seed=1)
    teacher = fit_private_teacher(records, sight, answers=ANSWERS, plan=plan)
    assert top1(teacher, new, seen) > 0.75
    assert top1(fit_private_teacher([], sight, answers=ANSWERS, plan=plan), new, seen) < 0.5


def top1(teacher: Teacher, records: list[PatientRecord], sight: Sight) -> float:
    """Of chance 1/5: the patients of the first track."""
    rankings = rank_patients(teacher, sight, TRACK)
    return float(
        np.mean(
            [
                each.answer_ids[0] == record.label[TRACK]
                for each, record in zip(rankings, records, strict=True)
                if TRACK in record.label
            ]
        )
    )


def test_a_teacher_ranks_like_any_other_and_remembers_whom_it_learned_from() -> None:
    records, sight = site(12)
    teacher = fit_private_teacher(records, sight, answers=ANSWERS, plan=dp_plan(steps=4))
    assert teacher.trained_on == set(sight.patient_ids)
    assert teacher.epochs == 4
    for track, answers in ANSWERS.items():
        for each in rank_patients(teacher, sight, track):
            assert sorted(each.answer_ids) == sorted(answers.ids)
            assert each.scores.dtype == np.float32
            assert each.teacher_digest == teacher.digest()


def test_an_eye_that_is_not_present_has_no_influence_and_rows_have_length_one() -> None:
    records, sight = site(12)
    head, table = head_and_table(records, sight, 0)
    joined = head.joined(table.vectors, table.present)
    assert torch.allclose(joined.norm(dim=1), torch.ones(12, dtype=torch.float64))
    garbage = {
        eye: torch.where(table.present[eye].unsqueeze(1), vectors, 7.0)
        for eye, vectors in table.vectors.items()
    }
    assert torch.equal(head.joined(garbage, table.present), joined)
    nobody = {eye: torch.zeros(12, dtype=torch.bool) for eye in table.present}
    assert not head.joined(table.vectors, nobody).any()


@pytest.mark.usefixtures("quiet")
def test_modality_dropout_hides_an_eye_of_a_patient_who_brings_two() -> None:
    records, sight = site(30)
    both = np.flatnonzero(sight.present[Eye.PHOTO] & sight.present[Eye.NOTE])

    def eyes_learned_from(dropout: float) -> set[int]:
        sums = (step_sum([records[index]], sight, modality_dropout=dropout) for index in both)
        return {int(np.any(each.reshape(8, 2, WIDTH), axis=(0, 2)).sum()) for each in sums}

    assert eyes_learned_from(0.0) == {2}
    assert eyes_learned_from(1 - 1e-9) == {1}


def test_nothing_of_the_patients_but_noised_steps_stays_with_a_teacher() -> None:
    records, sight = site(12)
    teacher = fit_private_teacher(records, sight, answers=ANSWERS, plan=dp_plan())
    head = teacher.trunk
    assert isinstance(head, PrivateHead)
    for parameter in head.parameters():
        assert not vars(parameter)
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not any(module._forward_hooks or module._backward_hooks for module in head.modules())


def anisotropic(count: int, seed: int) -> tuple[list[PatientRecord], Sight]:
    """Patients of one track whose notes have nearly everything in common."""
    records, sight = site(count, seed=seed)
    notes = np.concatenate([sight.vectors[Eye.NOTE], np.full((count, 1), 30, dtype=np.float32)], axis=1)
    records = [
        replace(record, label={TRACK: record.label.get(TRACK) or f"D:{index % 5}"})
        for index, record in enumerate(records)
    ]
    keep = [index for index in range(count) if sight.present[Eye.NOTE][index] and index % 3 != 2]
    seen = Sight(
        patient_ids=sight.patient_ids, vectors={Eye.NOTE: notes}, present={Eye.NOTE: sight.present[Eye.NOTE]}
    )
    return [records[index] for index in keep], seen.rows(np.array(keep, dtype=np.int64))


def names_like(width: int, count: int = 40) -> PublicNames:
    """Names whose vectors have nearly everything in common, as those of `anisotropic` notes."""
    vectors = np.random.default_rng(5).normal(size=(count, width)).astype(np.float32)
    vectors[:, -1] = 30 + 0.1 * vectors[:, -1]
    return PublicNames(answers=answer_list(5), owners=np.arange(count) % 5, vectors=vectors)


def test_public_names_take_out_what_all_notes_have_in_common() -> None:
    records, sight = anisotropic(300, 0)
    new, seen = anisotropic(300, 1)
    plan = dp_plan(noise_multiplier=4.0, steps=10, learning_rate=0.1)
    found = {
        names is None: top1(
            fit_private_teacher(
                records,
                sight,
                answers={TRACK: answer_list(5)},
                plan=plan,
                names={} if names is None else {TRACK: names},
            ),
            new,
            seen,
        )
        for names in (None, names_like(WIDTH + 1))
    }
    assert found[False] > found[True] + 0.2


def test_directions_are_evened_out_as_far_as_public_vectors_spread() -> None:
    head = PrivateHead({Eye.NOTE: 4}, {TRACK: 2})
    public = np.array([[9, 1, 0, 5], [-9, 1, 0, 5], [0, 1.01, 0, 5], [0, 0.99, 0, 5]], dtype=np.float32)
    head.even_out(Eye.NOTE, public)
    ones = torch.tensor([[1.0, 2.0, 1.0, 6.0]])
    found = head.standardized(Eye.NOTE, ones)[0] / head.standardized(Eye.NOTE, ones)[0, 2]
    assert found.tolist() == pytest.approx([0.1 / np.sqrt(1.01), 1, 1, 1], abs=1e-3)


def test_a_single_name_only_centers() -> None:
    head = PrivateHead({Eye.NOTE: 3}, {TRACK: 2})
    head.even_out(Eye.NOTE, np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
    assert head.standardized(Eye.NOTE, torch.tensor([[1.0, 2.0, 5.0]])).tolist() == [[0, 0, 1]]


def test_a_site_with_nobody_and_answers_that_nobody_has_are_trained_alike() -> None:
    records, sight = site(3)
    for taught in ([], records[:1]):
        teacher = fit_private_teacher(
            taught, sight, answers=ANSWERS, plan=dp_plan(steps=3, sampling_rate=0.5)
        )
        assert len(rank_patients(teacher, sight, OTHER)) == 3


def test_plans_and_patients_that_do_not_fit_are_refused() -> None:
    records, sight = site(6)
    for other in (TeacherPlan(modality_dropout=0.0), TeacherPlan(privacy="public", modality_dropout=0.0)):
        with pytest.raises(ValueError, match=f"Expected privacy dp and a track or more, got {other.privacy}"):
            fit_private_teacher(records, sight, answers=ANSWERS, plan=other)
    with pytest.raises(ValueError, match="got dp and 0"):
        fit_private_teacher(records, sight, answers={}, plan=dp_plan())
    with pytest.raises(ValueError, match="to have been seen, got 1 who were not"):
        fit_private_teacher(
            [replace(records[0], patient_id="stranger")], sight, answers=ANSWERS, plan=dp_plan()
        )
