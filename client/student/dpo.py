"""Direct preference optimization (DPO), per patient, against the base without its adapter.

The loss of a pair is ``-log σ(β ((lp_w - ref_w) - (lp_l - ref_l)))`` with ``lp`` the summed log-probability
of an answer's tokens and ``ref`` the same by the reference (Rafailov et al. 2023, equation 7). The reference
is the frozen base: it never moves, so that each patient's part of it is computed once, when his pairs become
tokens. Like ORPO's the loss is a mean over nothing but the patient's own pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from client.student.batches import micro_batches
from client.student.branches import (
    IGNORED,
    PatientLosses,
    PatientPairs,
    branch_batch,
    index_pairs,
    token_log_probs,
)
from client.student.model import Student
from client.student.vision import Vision


def dpo_losses(
    model: nn.Module,
    patients: Sequence[PatientPairs],
    *,
    dpo_beta: float,
    pad_id: int,
    vision: Vision | None = None,
) -> PatientLosses:
    """Each entry's loss from one forward pass over prompts and branches.

    Guarantee: a patient's loss does not depend on who else is in the batch.

    Args:
        model: Of the student.
        patients: With their reference (``with_reference``), every pair with a rejected answer.
        dpo_beta: β, how strongly the student is held to the reference.
        pad_id: The student's.
        vision: The student's, where the entries hold images.

    Raises:
        ValueError: An entry has no reference, or a pair no rejected answer.
    """
    batch = branch_batch(model, patients, pad_id, vision=vision)
    device = batch.labels.device
    reference = _references(patients).to(device)
    total, length = token_log_probs(model, batch)[0].sum(-1), (batch.labels != IGNORED).sum(-1)
    pairs = index_pairs(patients, device)
    gained = total - reference
    margin = dpo_beta * (gained[pairs.chosen] - gained[pairs.rejected])
    return PatientLosses(
        loss=pairs.per_patient(-nn.functional.logsigmoid(margin)),
        nll=pairs.per_patient(-(total / length)[pairs.chosen]).detach(),
        margin=pairs.per_patient(margin).detach(),
        preferred=pairs.per_patient((margin > 0).float()).detach(),
    )


def _references(patients: Sequence[PatientPairs]) -> Tensor:
    """Those of all branches of the batch, (branches,)."""
    found: list[float] = []
    for patient in patients:
        if patient.reference is None:
            raise ValueError("Expected the reference of every entry, got none for one: see with_reference")
        if any(loser is None for _, loser in patient.pairs):
            raise ValueError("Expected a rejected answer in every pair, got none in one")
        found += patient.reference
    return torch.tensor(found)


@torch.no_grad()
def with_reference(student: Student, entries: Sequence[PatientPairs]) -> list[PatientPairs]:
    """The entries with their answers' log-probabilities by the base without its adapter.

    Guarantee: the adapter's values, and which of them require gradients, are afterwards what they were.
    """
    found: dict[int, tuple[float, ...]] = {}
    with _without_adapter(student):
        for part in micro_batches(entries, student.vision):
            batch = branch_batch(student.model, part, student.pad_id, vision=student.vision)
            totals = iter(token_log_probs(student.model, batch)[0].sum(-1).tolist())
            for entry in part:
                found[id(entry)] = tuple(next(totals) for _ in entry.branches)
    return [replace(entry, reference=found[id(entry)]) for entry in entries]


@contextmanager
def _without_adapter(student: Student) -> Iterator[None]:
    """Let the base answer alone."""
    # PEFT lets every factor require gradients when it puts the adapter back.
    before = [(parameter, parameter.requires_grad) for parameter in student.model.parameters()]
    try:
        with student.model.disable_adapter():
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
