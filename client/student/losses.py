"""The loss that a plan trains a student with."""

from __future__ import annotations

from collections.abc import Sequence

from client.student.branches import PatientLosses, PatientPairs
from client.student.dpo import dpo_losses
from client.student.model import Student
from client.student.orpo import orpo_losses
from common.learning_plan import TrainingPlan


def plan_losses(student: Student, entries: Sequence[PatientPairs], plan: TrainingPlan) -> PatientLosses:
    """Each entry's loss, differentiable in the factors that require gradients.

    Guarantee: a patient's loss does not depend on who else is among the entries.

    Raises:
        ValueError: As of ``dpo_losses``.
    """
    if plan.loss == "dpo":
        return dpo_losses(
            student.model, entries, dpo_beta=plan.dpo_beta, pad_id=student.pad_id, vision=student.vision
        )
    return orpo_losses(
        student.model,
        entries,
        orpo_lambda=plan.orpo_lambda,
        pad_id=student.pad_id,
        nll_on=plan.nll_on,
        vision=student.vision,
    )
