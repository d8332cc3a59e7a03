import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.student.branches import PatientPairs, plain_log_probs
from client.student.dpo import dpo_losses, with_reference
from client.student.fit import fit_alone, local_fit
from client.student.losses import plan_losses
from client.student.model import Student, adapter_spec, load_base, make_student
from client.student.orpo import orpo_losses
from client.student.private import clipped_gradients, clipped_gradients_plain
from client.student.vision import FAMILIES
from common.adapter import Adapter, AdapterMode, Block, flatten, initial_adapter, tensor_shapes
from common.learning_plan import AdapterPlan, TrainingPlan
from tests.client.student.test_orpo import PATIENTS as IMITATING
from tests.client.student.tiny_vision import NAMES, TILES, entry

BETA = 0.3
PLAN = TrainingPlan(
    rounds=4,
    local_steps=3,
    patients_per_step=2,
    learning_rate=1e-2,
    max_prompt_tokens=64,
    loss="dpo",
    dpo_beta=BETA,
)
PATIENTS = [*IMITATING[:2], replace(IMITATING[0], patient_id="p4", prompt=(1, 47, 48))]
NO_CLIP = 1e6
BLOCKS = [
    (AdapterMode.FFA, 4, Block.B),
    (AdapterMode.FFA, 9, Block.B),
    (AdapterMode.ROLORA, 4, Block.A),
    (AdapterMode.ROLORA, 4, Block.B),
    (AdapterMode.CORE, 4, Block.CORE),
]


def filled(student: Student) -> Adapter:
    """An adapter without a zero, which would hide the other factors."""
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(student.spec).items()
    tensors = {key: rng.normal(size=shape, scale=0.3).astype(np.float32) for key, shape in shapes}
    return Adapter(spec=student.spec, tensors=tensors)


def plain_loss(student: Student, own: PatientPairs) -> torch.Tensor:
    """The loss written down pair by pair, one forward pass an answer, in float64."""

    def log_prob(answer: int) -> torch.Tensor:
        found = plain_log_probs(
            student.model, own.prompt, own.branches[answer], vision=student.vision, image=own.image
        )
        return found.double().sum()

    losses = []
    for winner, loser in own.pairs:
        assert loser is not None
        with torch.no_grad(), student.model.disable_adapter():
            reference = [log_prob(winner), log_prob(loser)]
        ratios = (log_prob(winner) - reference[0]) - (log_prob(loser) - reference[1])
        losses.append(torch.log1p(torch.exp(-BETA * ratios)))
    return torch.stack(losses).mean()


def factors_of(student: Student) -> list[torch.nn.Parameter]:
    factors = [p for name, p in student.model.named_parameters() if ".lora_" in name]
    for factor in factors:
        factor.requires_grad_(requires_grad=True)
    return factors


def assert_equals_the_plain_form(student: Student, entries: list[PatientPairs]) -> None:
    student.load(filled(student))
    student.model.double()
    referred = with_reference(student, entries)
    losses = dpo_losses(student.model, referred, dpo_beta=BETA, pad_id=0, vision=student.vision).loss
    ours = torch.autograd.grad(losses.sum(), factors_of(student))
    plain = torch.stack([plain_loss(student, own) for own in entries])
    # The pass without the adapter has left nothing that requires gradients.
    theirs = torch.autograd.grad(
        torch.stack([plain_with_gradient(student, own) for own in referred]).sum(), factors_of(student)
    )
    assert torch.allclose(losses.double(), plain, atol=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert max(float(gradient.abs().max()) for gradient in theirs) > 1e-3


def plain_with_gradient(student: Student, own: PatientPairs) -> torch.Tensor:
    """The loss with the references given, which need no second pass."""
    assert own.reference is not None
    gained = [
        plain_log_probs(student.model, own.prompt, branch, vision=student.vision, image=own.image).sum() - ref
        for branch, ref in zip(own.branches, own.reference, strict=True)
    ]
    losses = [torch.log1p(torch.exp(-BETA * (gained[w] - gained[r]))) for w, r in own.pairs if r is not None]
    return torch.stack(losses).mean()


def test_loss_and_gradients_equal_the_plain_form(student: Student) -> None:
    assert_equals_the_plain_form(student, PATIENTS)


@pytest.mark.parametrize("image_folder", FAMILIES, indirect=True)
def test_loss_and_gradients_with_images_equal_the_plain_form(sighted: Student) -> None:
    entries = [entry(sighted, f"p{n}", image, NAMES[: 2 + n]) for n, image in enumerate(TILES[:2])]
    assert_equals_the_plain_form(sighted, entries)


@torch.no_grad()
def answers_of(student: Student, own: PatientPairs) -> list[float]:
    return [float(plain_log_probs(student.model, own.prompt, branch).sum()) for branch in own.branches]


def test_the_reference_is_what_the_base_says_without_its_adapter(student: Student) -> None:
    before = [answers_of(student, own) for own in PATIENTS]
    # A fresh adapter changes nothing; this one does, and must not be heard.
    student.load(filled(student))
    referred = with_reference(student, PATIENTS)
    for own, expected, plain in zip(referred, before, PATIENTS, strict=True):
        assert own.reference == pytest.approx(expected, abs=1e-4)
        assert replace(own, reference=None) == plain
    assert answers_of(student, PATIENTS[0]) != pytest.approx(before[0], abs=0.1)


def test_the_reference_does_not_depend_on_the_borders_of_micro_batches(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = with_reference(student, PATIENTS)
    monkeypatch.setattr("client.student.batches.MICRO_BATCH_TOKENS", 1)
    for one, other in zip(together, with_reference(student, PATIENTS), strict=True):
        assert one.reference == pytest.approx(other.reference, abs=1e-4)


def test_what_is_trained_stays_so_while_the_reference_is_read(student: Student) -> None:
    student.load(filled(student))
    before = student.read()
    student.train_block(Block.B)
    with_reference(student, PATIENTS)
    trained = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_B" in name for name in trained)
    assert student.read() == before
    changed = orpo_losses(student.model, PATIENTS, orpo_lambda=0.1, pad_id=0).loss
    with student.model.disable_adapter():
        plain = orpo_losses(student.model, PATIENTS, orpo_lambda=0.1, pad_id=0).loss
    assert not torch.allclose(changed, plain, atol=1e-2)


def test_the_loss_is_log_2_where_the_adapter_changes_nothing(student: Student) -> None:
    losses = dpo_losses(student.model, with_reference(student, PATIENTS), dpo_beta=BETA, pad_id=0)
    assert losses.loss.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert losses.margin.tolist() == pytest.approx([0] * 3, abs=1e-4)


def test_a_patients_loss_does_not_depend_on_who_else_is_in_the_batch(student: Student) -> None:
    student.load(filled(student))
    referred = with_reference(student, PATIENTS)
    together = dpo_losses(student.model, referred, dpo_beta=BETA, pad_id=0).loss
    alone = [dpo_losses(student.model, [own], dpo_beta=BETA, pad_id=0).loss for own in referred]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_an_entry_without_a_reference_or_a_rejected_answer_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="Expected the reference of every entry"):
        dpo_losses(student.model, PATIENTS, dpo_beta=BETA, pad_id=0)
    with pytest.raises(ValueError, match="Expected a rejected answer in every pair"):
        dpo_losses(student.model, with_reference(student, IMITATING), dpo_beta=BETA, pad_id=0)
    with pytest.raises(ValueError, match="Expected a reference for each of 2 answers, got 1"):
        replace(PATIENTS[0], reference=(-1.0,))


def test_the_plan_says_which_loss(student: Student) -> None:
    student.load(filled(student))
    referred = with_reference(student, PATIENTS)
    preferring = plan_losses(student, referred, PLAN).loss
    assert torch.equal(preferring, dpo_losses(student.model, referred, dpo_beta=BETA, pad_id=0).loss)
    odds = plan_losses(student, referred, replace(PLAN, loss="orpo", dpo_beta=0.1, orpo_lambda=0.7)).loss
    assert torch.equal(odds, orpo_losses(student.model, referred, orpo_lambda=0.7, pad_id=0).loss)
    assert not torch.allclose(preferring, odds, atol=1e-2)


def make(student_folder: Any, mode: AdapterMode, rank: int, dtype: torch.dtype = torch.float32) -> Student:
    base, tokenizer = load_base(str(student_folder))
    plan = AdapterPlan(
        mode=mode, rank=rank, alpha=8.0, targets=("q_proj", "down_proj"), factors_digest="0" * 64
    )
    student = make_student(base, tokenizer, adapter_spec(base, plan))
    student.model.to(dtype)
    return student


@pytest.mark.parametrize(("mode", "rank", "block"), BLOCKS)
def test_a_local_fit_in_every_mode_moves_its_block_alone_and_prefers_what_was_chosen(
    base_folder: Any, mode: AdapterMode, rank: int, block: Block
) -> None:
    student = make(base_folder, mode, rank)
    # A has no gradient while B is zero; the others begin where a run begins.
    start = filled(student) if block is Block.A else initial_adapter(student.spec, 1)
    patients = with_reference(student, PATIENTS)
    plan = replace(PLAN, local_steps=12, patients_per_step=3)
    update = local_fit(student, start, block, patients, plan, round_id=1, seed=5)
    again = local_fit(student, update.adapter, block, patients, plan, round_id=1, seed=5)
    assert again.loss < update.loss - 0.05
    assert again.preferred > 0.9
    for other in Block:
        if student.spec.size(other):
            same = (flatten(update.adapter, other) == flatten(start, other)).all()
            assert same == (other is not block)


def test_a_student_alone_learns_to_prefer_too(student: Student) -> None:
    patients = with_reference(student, PATIENTS)
    update = fit_alone(
        student,
        initial_adapter(student.spec, 0),
        patients,
        replace(PLAN, rounds=8),
        patients_per_step=3,
        learning_rate=1e-2,
        seed=0,
    )
    assert update.loss < math.log(2)
    assert plan_losses(student, patients, PLAN).loss.max().item() < math.log(2)


@pytest.mark.parametrize("work", [clipped_gradients, clipped_gradients_plain])
@pytest.mark.parametrize(("mode", "rank", "block"), BLOCKS)
def test_under_privacy_each_patients_gradient_of_this_loss_is_clipped(
    base_folder: Any, mode: AdapterMode, rank: int, block: Block, work: Callable[..., Any]
) -> None:
    student = make(base_folder, mode, rank, torch.float64)
    adapter = filled(student)
    # The first patient has two notes, and the notes are not in order.
    entries = with_reference(student, [*PATIENTS, replace(PATIENTS[1], patient_id="p1")])
    student.load(adapter)
    factors, by_patient = student.train_block(block), []
    for patient in ("p1", "p2", "p4"):
        own = [one for one in entries if one.patient_id == patient]
        loss = torch.stack([plain_with_gradient(student, one) for one in own]).mean()
        parts = torch.autograd.grad(loss, factors)
        by_patient.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    for bound in (NO_CLIP, 0.2):
        right = sum(gradient * min(1.0, bound / np.linalg.norm(gradient)) for gradient in by_patient)
        found = work(student, adapter, block, entries, PLAN, clip_norm=bound)
        assert np.abs(found.total - right).max() < 1e-5
        assert np.abs(right).max() > 1e-3
        assert found.patients == 3
    assert found.clipped > 0
