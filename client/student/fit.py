"""A site's local update: some steps of ORPO on its own pairs, from the adapter received.

Only the round's active block is trained. Every step draws ``patients_per_step`` patients without
replacement from a shuffled pass over the site's patients; the next pass begins when one is used up. The
local optimizer starts fresh each round: its state is patients' data and stays in the round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.preferences.pairs import PreferencePair
from client.student.model import Student
from client.student.orpo import PatientPairs, orpo_losses
from common.adapter import Adapter, Block
from common.plan import TrainingPlan

GRADIENT_CLIP = 1.0
ADAM_BETAS = (0.9, 0.98)


def encode_pairs(
    student: Student, pairs: Sequence[PreferencePair], *, max_prompt_tokens: int, imitate: bool = False
) -> list[PatientPairs]:
    """Pairs as tokens, one entry a patient, patients in order of first appearance.

    ``imitate`` leaves the rejected answers out: supervised fine-tuning on the chosen ones.

    Raises:
        ValueError: A patient's pairs have different prompts.
    """
    by_patient: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_patient.setdefault(pair.patient_id, []).append(pair)
    return [_encode(student, own, max_prompt_tokens, imitate) for own in by_patient.values()]


def _encode(student: Student, pairs: Sequence[PreferencePair], longest: int, imitate: bool) -> PatientPairs:
    if len({pair.prompt for pair in pairs}) != 1:
        raise ValueError("Expected one prompt for all pairs of a patient")
    branches: dict[str, int] = {}
    indices: dict[tuple[int, int | None], None] = {}
    for pair in pairs:
        chosen = branches.setdefault(pair.chosen, len(branches))
        rejected = None if imitate else branches.setdefault(pair.rejected, len(branches))
        indices[chosen, rejected] = None
    return PatientPairs(
        patient_id=pairs[0].patient_id,
        prompt=student.prompt_ids(pairs[0].prompt, longest),
        branches=tuple(student.answer_ids(text) for text in branches),
        pairs=tuple(indices),
    )


@dataclass(frozen=True, kw_only=True)
class LocalUpdate:
    """What a site's local work gave.

    Attributes:
        adapter: The received adapter with its active block trained.
        patients, pairs, steps: How much was used; counts that repeat over passes are counted again.
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
    batches: Iterator[list[PatientPairs]],
    *,
    learning_rate: Callable[[int], float] | None = None,
    steps: int | None = None,
) -> LocalUpdate:
    """Train one block for the plan's local steps (or ``steps``).

    Args:
        student: Of the adapter's specification; its adapter values are overwritten.
        adapter: Received in this round.
        block: The round's active block.
        patients: The site's pairs as tokens.
        plan: Steps, learning rate, λ, where the NLL looks.
        batches: Endless, from ``draw_batches``.
        learning_rate: Rate of step i, where it is not the plan's constant one.
        steps: In place of the plan's local steps.
    """
    if not patients:
        raise ValueError("Expected at least one patient with pairs")
    student.load(adapter)
    factors = student.train_block(block)
    optimizer = torch.optim.AdamW(factors, lr=plan.learning_rate, betas=ADAM_BETAS, weight_decay=0.0)
    total = plan.local_steps if steps is None else steps
    losses, preferred, seen, pairs = [], [], 0, 0
    for step in range(total):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate if learning_rate is None else learning_rate(step)
        result = orpo_losses(
            student.model, batch, orpo_lambda=plan.orpo_lambda, pad_id=student.pad_id, nll_on=plan.nll_on
        )
        optimizer.zero_grad()
        result.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(factors, GRADIENT_CLIP)
        optimizer.step()
        losses.append(float(result.loss.detach().mean()))
        preferred.append(float(result.preferred.mean()))
        seen, pairs = seen + len(batch), pairs + sum(len(patient.pairs) for patient in batch)
    return LocalUpdate(
        adapter=student.read(),
        patients=seen,
        pairs=pairs,
        steps=total,
        loss=float(np.mean(losses)),
        preferred=float(np.mean(preferred)),
    )


def draw_batches(
    patients: Sequence[PatientPairs], size: int, rng: np.random.Generator
) -> Iterator[list[PatientPairs]]:
    """Endless batches of ``size`` patients (fewer where the site has fewer), pass after shuffled pass.

    Guarantee: within a pass no patient comes twice; a pass's last short batch is filled from the next one.
    """
    size = min(size, len(patients))
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(len(patients)).tolist()
        batch, waiting = waiting[:size], waiting[size:]
        yield [patients[index] for index in batch]


def patients_by_id(pairs: Sequence[PreferencePair]) -> Mapping[str, int]:
    """How many pairs each patient has."""
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.patient_id] = counts.get(pair.patient_id, 0) + 1
    return counts
