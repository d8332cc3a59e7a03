"""Odds-ratio preference optimization (ORPO), per patient.

The loss of a pair is ``nll(chosen) - λ log σ(log OR)`` with
``log OR = (lp_w - lp_l) - (log(1 - e^lp_w) - log(1 - e^lp_l))`` and ``lp`` the mean log-probability of an
answer's tokens (Hong et al. 2024, ORPO, equations 4-7). It is a mean over nothing but the patient's own
pairs, so that one patient's gradient can be clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from client.student.branches import (
    IGNORED,
    PatientLosses,
    PatientPairs,
    branch_batch,
    index_pairs,
    token_log_probs,
)
from client.student.vision import Vision

LOG_HALF = -math.log(2.0)


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` for x < 0, precise both near 0 and far from it (Maechler 2012)."""
    # Each branch gets an argument that is safe for it: the gradient of the branch not taken must be finite.
    near = x > LOG_HALF
    below = x.clamp(max=-torch.finfo(x.dtype).tiny)
    of_near = torch.log(-torch.expm1(torch.where(near, below, torch.full_like(x, LOG_HALF))))
    of_far = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, LOG_HALF), below)))
    return torch.where(near, of_near, of_far)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``log OR`` of mean token log-probabilities, any equal shape, fp32."""
    chosen, rejected = chosen.float(), rejected.float()
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def orpo_losses(
    model: nn.Module,
    patients: Sequence[PatientPairs],
    *,
    orpo_lambda: float,
    pad_id: int,
    nll_on: Literal["answer", "sequence"] = "answer",
    vision: Vision | None = None,
) -> PatientLosses:
    """Each entry's loss from one forward pass over prompts and branches.

    ``nll_on="sequence"`` takes the mean over the tokens of prompt and chosen answer, as TRL does, without
    those that stand for an image; the odds ratio always looks at the answer alone. ``vision`` is the
    student's, where the entries hold images.

    Guarantee: a patient's loss does not depend on who else is in the batch.
    """
    batch = branch_batch(model, patients, pad_id, vision=vision, whole=nll_on == "sequence")
    of_branches, of_prompts = token_log_probs(model, batch)
    total, length = of_branches.sum(-1), (batch.labels != IGNORED).sum(-1)
    mean = total / length
    pairs = index_pairs(patients, batch.labels.device)
    chosen, rejected = pairs.chosen, pairs.rejected
    prompt_total = of_prompts.sum(-1)[pairs.row]
    prompt_length = (batch.prompt_labels != IGNORED).sum(-1)[pairs.row]
    nll = -(total[chosen] + prompt_total) / (length[chosen] + prompt_length)
    # A pair without a rejected answer points at its own chosen one and is masked out.
    preference = (rejected != chosen).float()
    log_odds = log_odds_ratio(mean[chosen], mean[rejected]) * preference
    loss = nll - orpo_lambda * preference * nn.functional.logsigmoid(log_odds)
    return PatientLosses(
        loss=pairs.per_patient(loss),
        nll=pairs.per_patient(nll),
        margin=pairs.per_patient(log_odds).detach(),
        preferred=pairs.per_patient((log_odds > 0).float()).detach(),
    )
