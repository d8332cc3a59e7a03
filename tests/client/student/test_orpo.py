import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.experimental.orpo import ORPOTrainer

from client.student.branches import IGNORED, PatientPairs, pack, plain_log_probs, token_log_probs
from client.student.model import Student
from client.student.orpo import log1mexp, log_odds_ratio, orpo_losses

LAMBDA = 0.1
PATIENTS = [
    PatientPairs(
        patient_id="p1", prompt=(1, 40, 41, 42, 43), branches=((50, 51, 2), (60, 2)), pairs=((0, 1),)
    ),
    PatientPairs(
        patient_id="p2",
        prompt=(1, 44),
        branches=((52, 2), (53, 54, 55, 2), (61, 2)),
        pairs=((0, 1), (0, 2), (1, 2)),
    ),
    PatientPairs(patient_id="p3", prompt=(1, 45, 46), branches=((56, 57, 2),), pairs=((0, None),)),
]


def plain_loss(student: Student, patient: PatientPairs, nll_on: str) -> torch.Tensor:
    """The loss written down pair by pair, one forward pass an answer."""
    losses = []
    for winner, loser in patient.pairs:
        chosen = plain_log_probs(student.model, patient.prompt, patient.branches[winner])
        nll = -chosen.mean()
        if nll_on == "sequence":
            own = plain_log_probs(student.model, patient.prompt[:1], patient.prompt[1:])
            nll = -torch.cat([own, chosen]).mean()
        loss = nll
        if loser is not None:
            rejected = plain_log_probs(student.model, patient.prompt, patient.branches[loser])
            odds = torch.log(chosen.mean().exp() / (1 - chosen.mean().exp()))
            odds = odds - torch.log(rejected.mean().exp() / (1 - rejected.mean().exp()))
            loss = nll - LAMBDA * torch.nn.functional.logsigmoid(odds)
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("nll_on", ["answer", "sequence"])
def test_loss_and_gradients_equal_the_plain_form(student: Student, nll_on: str) -> None:
    student.model.double()
    factors = [p for name, p in student.model.named_parameters() if ".lora_" in name]
    with torch.no_grad():
        for factor in factors:
            factor.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    for factor in factors:
        factor.requires_grad_(requires_grad=True)
    fast = orpo_losses(student.model, PATIENTS, orpo_lambda=LAMBDA, pad_id=0, nll_on=nll_on).loss
    plain = torch.stack([plain_loss(student, patient, nll_on) for patient in PATIENTS])
    assert torch.allclose(fast, plain.to(fast.dtype), atol=1e-5)
    fast_gradients = torch.autograd.grad(fast.sum(), factors)
    plain_gradients = torch.autograd.grad(plain.sum(), factors)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(fast_gradients, plain_gradients, strict=True)) < 1e-5
    )
    assert max(float(gradient.abs().max()) for gradient in plain_gradients) > 1e-3


def test_token_log_probs_are_equal_to_running_each_prompt_with_each_answer_alone(student: Student) -> None:
    batch = pack(PATIENTS, pad_id=0)
    with torch.no_grad():
        found, _ = token_log_probs(student.model, batch)
        row = 0
        for patient in PATIENTS:
            for branch in patient.branches:
                alone = plain_log_probs(student.model, patient.prompt, branch)
                assert torch.allclose(found[row, : len(branch)], alone, atol=1e-5)
                assert not found[row, len(branch) :].any()
                row += 1


def test_a_patients_loss_does_not_depend_on_who_else_is_in_the_batch(student: Student) -> None:
    together = orpo_losses(student.model, PATIENTS, orpo_lambda=LAMBDA, pad_id=0).loss
    alone = [orpo_losses(student.model, [p], orpo_lambda=LAMBDA, pad_id=0).loss for p in PATIENTS]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_a_branch_sees_no_other_branch() -> None:
    batch = pack(PATIENTS[1:2], pad_id=0)
    visible = batch.mask[0, 0] == 0
    columns = batch.input_ids.shape[1]
    prompt = len(PATIENTS[1].prompt)
    first, second = range(prompt, prompt + 2), range(prompt + 2, prompt + 6)
    assert visible[:, 0].all()
    assert not any(visible[i, j] for i in second for j in first)
    assert not any(visible[i, j] for i in range(columns) for j in range(i + 1, columns))
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 2, 3]


@given(
    chosen=st.lists(st.floats(-40, -1e-6), min_size=1, max_size=8),
    rejected=st.lists(st.floats(-40, -1e-6), min_size=8, max_size=8),
)
@settings(deadline=None)
def test_odds_ratio_equals_trls(chosen: list[float], rejected: list[float]) -> None:
    ours_chosen, ours_rejected = torch.tensor(chosen), torch.tensor(rejected[: len(chosen)])
    trainer = SimpleNamespace(beta=LAMBDA, accelerator=SimpleNamespace(device="cpu"))
    theirs = ORPOTrainer.odds_ratio_loss(trainer, ours_chosen, ours_rejected)[0]
    ours = LAMBDA * torch.nn.functional.logsigmoid(log_odds_ratio(ours_chosen, ours_rejected))
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("x", [-1e-7, -1e-3, -0.5, -math.log(2), -1.0, -30.0])
def test_log1mexp_is_precise_near_zero_and_far_from_it(x: float) -> None:
    found = float(log1mexp(torch.tensor(x, dtype=torch.float64)))
    assert found == pytest.approx(math.log(-math.expm1(x)), rel=1e-9)


def test_log1mexp_has_a_finite_gradient_at_certainty() -> None:
    x = torch.zeros(1, requires_grad=True)
    log1mexp(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_prompts_first_token_and_padding_are_no_labels_of_the_sequence() -> None:
    batch = pack(PATIENTS[:2], pad_id=0, whole=True)
    assert batch.prompt_labels.tolist() == [[40, 41, 42, 43], [IGNORED, IGNORED, IGNORED, 44]]


@pytest.mark.parametrize(
    "wrong", [{"prompt": ()}, {"pairs": ()}, {"branches": ((), (5,))}], ids=["prompt", "pairs", "branch"]
)
def test_a_patient_without_prompt_pair_or_answer_is_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    whole = {"patient_id": "p", "prompt": (1,), "branches": ((4,), (5,)), "pairs": ((0, 1),)}
    with pytest.raises(ValueError, match="Expected a prompt"):
        PatientPairs(**(whole | wrong))
