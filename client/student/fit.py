"""A site's local update: some steps of the plan's loss on its own pairs, from the adapter received.

Only the round's active block is trained. Every step takes the next ``patients_per_step`` patients of a
shuffled pass over the site's patients, with all that each of them brings: an entry for every tile, or for
every reading of his note. His loss is the mean over those that a step looks at. The local optimizer starts
fresh each round: its state is made of patients' data and ends with the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.preferences.pairs import PreferencePair
from client.student.batches import draw_batches, micro_batches
from client.student.branches import PatientLosses, PatientPairs
from client.student.losses import plan_losses
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.adapter import Adapter, AdapterMode, Block
from common.learning_plan import TrainingPlan
from common.schedule import rate_factor

GRADIENT_CLIP = 1.0
ADAM_BETAS = (0.9, 0.98)


def encode_pairs(
    student: Student,
    pairs: Sequence[PreferencePair],
    *,
    max_prompt_tokens: int,
    imitate: bool = False,
    prompts: Mapping[str, Sequence[StudentPrompt]] | None = None,
) -> list[PatientPairs]:
    """Pairs as tokens, patients in order of first appearance.

    A patient is one entry for each of his prompts, with the same answers and pairs: one a reading of his note
    for a text student, one a tile for an image student. ``imitate`` leaves the rejected answers out:
    supervised fine-tuning on the chosen ones.

    Args:
        student: Whose tokens they are.
        pairs: Of all patients.
        max_prompt_tokens: The plan's.
        imitate: Whether to leave the rejected answers out.
        prompts: What is read of each patient, by patient id; the prompt of his pairs if not given.

    Raises:
        ValueError: A patient's pairs have different prompts, or nothing is read of a patient.
    """
    by_patient: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_patient.setdefault(pair.patient_id, []).append(pair)
    entries = []
    for patient_id, own in by_patient.items():
        read = [StudentPrompt(text=own[0].prompt)] if prompts is None else prompts.get(patient_id, ())
        if not read:
            raise ValueError("Expected at least one prompt for every patient with pairs, got none for one")
        entries += _encode(student, own, max_prompt_tokens, imitate, read)
    return entries


def _encode(
    student: Student,
    pairs: Sequence[PreferencePair],
    longest: int,
    imitate: bool,
    prompts: Sequence[StudentPrompt],
) -> list[PatientPairs]:
    if len({pair.prompt for pair in pairs}) != 1:
        raise ValueError("Expected one prompt for all pairs of a patient")
    branches: dict[str, int] = {}
    indices: dict[tuple[int, int | None], None] = {}
    for pair in pairs:
        chosen = branches.setdefault(pair.chosen, len(branches))
        rejected = None if imitate else branches.setdefault(pair.rejected, len(branches))
        indices[chosen, rejected] = None
    answers = tuple(student.answer_ids(text) for text in branches)
    return [
        PatientPairs(
            patient_id=pairs[0].patient_id,
            prompt=student.prompt_ids(prompt.text, longest, prompt.image),
            branches=answers,
            pairs=tuple(indices),
            image=prompt.image,
        )
        for prompt in prompts
    ]


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What a site's local work gave.

    Attributes:
        adapter: The received adapter with its active block trained.
        patients, pairs, steps: How much was used; a patient drawn twice is counted twice, and so are pairs
            that were read with two tiles.
        loss, preferred: Means over the steps; they stay at the site.
    """

    adapter: Adapter
    patients: int
    pairs: int
    steps: int
    loss: float
    preferred: float


def local_fit(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    round_id: int,
    seed: int,
) -> LocalUpdate:
    """Train one block of the received adapter for the plan's local steps.

    Guarantee: the same round from the same adapter gives the same update, whatever came before.

    Args:
        student: Of the adapter's specification; its adapter values are overwritten.
        adapter: Received in this round.
        block: The round's active block.
        patients: The site's pairs as tokens; entries with the same patient id are one patient.
        plan: Steps, rate, loss.
        round_id: 1 for the first; says where in its passes over the patients the site is.
        seed: Of the order of patients.
    """
    student.load(adapter)
    factors = student.train_block(block)
    batches = draw_batches(
        patients,
        plan.patients_per_step,
        seed=seed,
        first_step=(round_id - 1) * plan.local_steps,
        images=plan.entries_per_step,
    )
    return fit_steps(
        student,
        factors,
        batches,
        lambda part: plan_losses(student, part, plan),
        optimizer=local_optimizer(factors, plan),
        steps=plan.local_steps,
    )


def fit_alone(
    student: Student,
    adapter: Adapter,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    patients_per_step: int,
    learning_rate: float,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> LocalUpdate:
    """Train without a federation: what one site, or one machine with all data, would do.

    It takes as many steps as a site takes in the whole run, with AdamW throughout and a cosine schedule. The
    blocks are those that the federation trains: A and B at once in ``rolora``, else the only one.
    """
    factors = alone_factors(student, adapter)
    batches = draw_batches(patients, patients_per_step, seed=seed, first_step=0, images=plan.entries_per_step)
    steps = plan.rounds * plan.local_steps
    optimizer = adamw(factors, learning_rate)

    def before_step(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate_factor("cosine", step, steps)
        if on_progress is not None:
            on_progress(1)

    return fit_steps(
        student,
        factors,
        batches,
        lambda part: plan_losses(student, part, plan),
        optimizer=optimizer,
        steps=steps,
        before_step=before_step,
    )


def alone_factors(student: Student, adapter: Adapter) -> list[Tensor]:
    """The factors that a student trains alone, with the adapter's values in place."""
    student.load(adapter)
    alternating = adapter.spec.mode is AdapterMode.ROLORA
    blocks = (Block.A, Block.B) if alternating else (adapter.spec.active_block(1),)
    factors = [factor for block in blocks for factor in student.train_block(block)]
    for factor in factors:
        factor.requires_grad = True
    return factors


def adamw(factors: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of every training with AdamW."""
    return torch.optim.AdamW(factors, lr=learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True)


def local_optimizer(factors: list[Tensor], plan: TrainingPlan) -> torch.optim.Optimizer:
    """What a site takes its steps of a round with."""
    if plan.local_optimizer == "sgd":
        return torch.optim.SGD(factors, lr=plan.learning_rate)
    return adamw(factors, plan.learning_rate)


def fit_steps(
    student: Student,
    factors: list[Tensor],
    batches: Iterator[list[list[PatientPairs]]],
    losses_of: Callable[[list[PatientPairs]], PatientLosses],
    *,
    optimizer: torch.optim.Optimizer,
    steps: int,
    before_step: Callable[[int], None] | None = None,
) -> LocalUpdate:
    """Take the steps, each on the mean over its patients of what ``losses_of`` says of their entries."""
    losses, preferred, seen, pairs = [], [], 0, 0
    for step in range(steps):
        batch = next(batches)
        if before_step is not None:
            before_step(step)
        optimizer.zero_grad()
        loss, share = 0.0, 0.0
        entries = [entry for own in batch for entry in own]
        of_entry = {own[0].patient_id: 1 / len(own) for own in batch}
        for part in micro_batches(entries, student.vision):
            result = losses_of(part)
            weight = result.loss.new_tensor([of_entry[entry.patient_id] for entry in part])
            mean_part = (result.loss * weight).sum() / len(batch)
            mean_part.backward()
            loss += float(mean_part.detach())
            share += float((result.preferred * weight).sum()) / len(batch)
        torch.nn.utils.clip_grad_norm_(factors, GRADIENT_CLIP)
        optimizer.step()
        losses.append(loss)
        preferred.append(share)
        seen, pairs = seen + len(batch), pairs + sum(len(entry.pairs) for entry in entries)
    return LocalUpdate(
        adapter=student.read(),
        patients=seen,
        pairs=pairs,
        steps=steps,
        loss=float(np.mean(losses)),
        preferred=float(np.mean(preferred)),
    )
