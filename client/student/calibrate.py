"""The last stage of a student: what it claims is brought near to how often it is right.

After calibration-aware fine-tuning (arXiv 2505.01997), on patients of whom no pair was made:

    cft              likelihood of the right answer alone
    label_smoothing  the same against smoothed tokens
    rcft             likelihood of prompt and right answer + weight * pull
    pull             mean over patients of the sum over candidates j of (p_j - t_j)**2

``p`` is the softmax over the scores of the student's own best answers, the truth among them; ``t`` has the
pooled accuracy of the confidence's bin at the top, the rest shared out in p's order (``targets``). Unlike the
authors' code ours pulls the uppermost bin too, leaves those alone whose bin was empty, keeps the order of the
answers whatever the bin's accuracy is, and takes means over patients, so that ``weight`` means the same for
any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.student.batches import draw_batches
from client.student.branches import (
    IGNORED,
    PatientLosses,
    PatientPairs,
    branch_batch,
    token_log_probs,
)
from client.student.decode import build_trie, rank_by_beam, shared_prefix
from client.student.evaluate import SPARE_BEAMS, TOP, RankedCase, batches_by_length
from client.student.fit import LocalUpdate, fit_steps, local_optimizer
from client.student.losses import plan_losses
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.adapter import Adapter, Block
from common.calibration import ReliabilityBins
from common.calibration_plan import CalibrationPlan, ConfidenceScore
from common.learning_plan import TrainingPlan

Accuracies = Sequence[float | None]
"""By bin of the confidence; None for an empty one."""
SMALLEST_REST = 1e-9
"""What is left for the other answers where a bin is always right: the spread divides by it."""


def targets(p: NDArray[np.floating], accuracy: float) -> NDArray[np.float64]:
    """Where a case's confidences are pulled to, (K,) as ``p`` and in its order.

    The largest goes to ``accuracy``, at least 1/K. The others share the rest by ``tanh(g p_j) + 1`` with
    ``g = log(K - 1) / (p_2 (1 - accuracy))``, drawn together as far as the second would pass the first.

    Guarantee: they sum to 1, and of two answers the likelier one has no smaller target.

    Raises:
        ValueError: ``p`` is no distribution, or ``accuracy`` is no rate.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not len(p) or (p < 0).any() or abs(p.sum() - 1) > 1e-3:
        raise ValueError(f"Expected confidences that sum to 1, got shape {p.shape}, sum {p.sum():.4f}")
    if not 0 <= accuracy <= 1:
        raise ValueError(f"Expected an accuracy from 0 to 1, got {accuracy}")
    count, first = len(p), int(p.argmax())
    if count == 1:
        return np.ones(1)
    top = max(accuracy, 1 / count)
    found = np.empty(count)
    others = np.arange(count) != first
    found[first] = top
    found[others] = _shared_rest(p[others], top)
    return found


def _shared_rest(p: NDArray[np.float64], top: float) -> NDArray[np.float64]:
    """The targets of all answers but the first, whose target is ``top``; (K - 1,)."""
    rest, count, second = 1 - top, len(p), p.max()
    relative = p / second if second > 0 else np.ones(count)
    spread = np.tanh(math.log(count) * relative / max(rest, SMALLEST_REST)) + 1
    shares = rest * spread / spread.sum()
    even = rest / count
    # Evenly shared, none is above the first, which has 1/K or more.
    surplus, room = shares.max() - even, max(0.0, top - even)
    kept = 1.0 if surplus <= room else room / surplus
    return np.asarray(even + kept * (shares - even))


def bin_of(confidence: float) -> int:
    """Which of the reliability bins a confidence is in."""
    one = ReliabilityBins.from_cases(np.array([min(1.0, confidence)]), np.array([False]))
    return one.n.index(1)


def imitation(plan: TrainingPlan) -> TrainingPlan:
    """A training plan with the loss of cft: the likelihood of the right answer's tokens."""
    return replace(plan, loss="orpo", dpo_beta=TrainingPlan.dpo_beta, orpo_lambda=0.0, nll_on="answer")


def encode_cases(
    student: Student,
    cases: Sequence[tuple[str, StudentPrompt, int]],
    answers: Sequence[tuple[int, ...]],
    *,
    max_prompt_tokens: int,
) -> list[PatientPairs]:
    """Cases as tokens, an entry each, with the right answer as its only branch.

    Args:
        student: Whose tokens they are.
        cases: Patient id, prompt, and the place of the truth in the plan's answers.
        answers: Of the plan, from ``student.answer_tokens``.
        max_prompt_tokens: The plan's.
    """
    return [
        PatientPairs(
            patient_id=patient_id,
            prompt=student.prompt_ids(prompt.text, max_prompt_tokens, prompt.image),
            branches=(answers[truth],),
            pairs=((0, None),),
            image=prompt.image,
        )
        for patient_id, prompt, truth in cases
    ]


def calibrate_fit(
    student: Student,
    adapter: Adapter,
    block: Block,
    cases: Sequence[PatientPairs],
    plan: TrainingPlan,
    calibration: CalibrationPlan,
    *,
    answers: Sequence[tuple[int, ...]],
    round_id: int,
    seed: int,
    bin_accuracy: Accuracies | None = None,
) -> LocalUpdate:
    """Train one block of the received adapter for the local steps of a calibration round.

    Guarantee: the same round from the same adapter gives the same update, whatever came before.

    Args:
        student: Of the adapter's specification; its adapter values are overwritten.
        adapter: Received in this round.
        block: The round's active block.
        cases: From ``encode_cases``; entries with the same patient id are one patient.
        plan: Local steps, their optimizer and rate, patients a step; rounds of training before.
        calibration: How, by another method than ``temperature``.
        answers: All of the plan's, as tokens: rcft looks for candidates among them.
        round_id: Of the run; the first of calibration is the one after training.
        seed: Of the order of patients.
        bin_accuracy: Of rcft, as of the last measurement.

    Raises:
        ValueError: ``bin_accuracy`` is missing for rcft, or the method trains nothing.
    """
    student.load(adapter)
    drawn = draw_batches(
        cases,
        plan.patients_per_step,
        seed=seed,
        first_step=(round_id - plan.rounds - 1) * plan.local_steps,
        images=plan.entries_per_step,
    )
    batches = list(islice(drawn, plan.local_steps))
    if calibration.method == "rcft":
        batches = _with_candidates(student, batches, answers, calibration.candidates)
    factors, shared = student.train_block(block), _shared(answers)
    return fit_steps(
        student,
        factors,
        iter(batches),
        lambda part: calibration_losses(student, part, plan, calibration, bin_accuracy, shared=shared),
        optimizer=local_optimizer(factors, plan),
        steps=plan.local_steps,
    )


def calibration_losses(
    student: Student,
    entries: Sequence[PatientPairs],
    plan: TrainingPlan,
    calibration: CalibrationPlan,
    bin_accuracy: Accuracies | None = None,
    *,
    shared: int = 0,
) -> PatientLosses:
    """Each entry's loss from one forward pass over prompts and branches.

    ``shared`` is the number of tokens that all answers of the plan begin with: they have no part in the mean
    that a confidence may be made of.

    Guarantee: a patient's loss does not depend on who else is among the entries.

    Raises:
        ValueError: As of ``calibrate_fit``.
    """
    if calibration.method == "cft":
        return plan_losses(student, entries, imitation(plan))
    if calibration.method == "label_smoothing":
        return _likelihood(student, entries, smoothing=calibration.smoothing)
    if calibration.method != "rcft":
        raise ValueError(f"Expected a method that trains, got {calibration.method}")
    if bin_accuracy is None:
        raise ValueError("Expected the bins' accuracies for a round of rcft, got none")
    return _pulled(student, entries, calibration, bin_accuracy, shared)


def _likelihood(student: Student, entries: Sequence[PatientPairs], *, smoothing: float) -> PatientLosses:
    batch = branch_batch(student.model, entries, student.pad_id, vision=student.vision)
    of_branches, _ = token_log_probs(student.model, batch, smoothing=smoothing)
    mean = of_branches.sum(-1) / (batch.labels != IGNORED).sum(-1)
    nll = -mean[_places(entries)]
    return PatientLosses(loss=nll, nll=nll, margin=torch.zeros_like(nll), preferred=torch.zeros_like(nll))


def _pulled(
    student: Student,
    entries: Sequence[PatientPairs],
    calibration: CalibrationPlan,
    accuracies: Accuracies,
    shared: int,
) -> PatientLosses:
    batch = branch_batch(student.model, entries, student.pad_id, vision=student.vision, whole=True)
    of_branches, of_prompts = token_log_probs(student.model, batch)
    total, length = of_branches.sum(-1), (batch.labels != IGNORED).sum(-1)
    right = _places(entries)
    nll = -(total[right] + of_prompts.sum(-1)) / (length[right] + (batch.prompt_labels != IGNORED).sum(-1))
    scores = total
    if calibration.score == "mean":
        scores = of_branches[:, shared:].sum(-1) / (length - shared).clamp(min=1)
    of_cases = scores.split([len(entry.branches) for entry in entries])
    pull = torch.stack([case_pull(own, accuracies) for own in of_cases])
    first = [int(own.argmax()) == entry.pairs[0][0] for own, entry in zip(of_cases, entries, strict=True)]
    return PatientLosses(
        loss=nll + calibration.weight * pull,
        nll=nll,
        margin=torch.zeros_like(nll.detach()),
        preferred=nll.new_tensor(first).detach(),
    )


def case_pull(scores: Tensor, accuracies: Accuracies) -> Tensor:
    """How far a case's confidences are from their targets, squared; 0 if the bin was empty. Differentiable.

    Args:
        scores: (K,) of its candidates.
        accuracies: By bin of the largest confidence.
    """
    p = scores.float().softmax(-1)
    now = p.detach().cpu().double().numpy()
    accuracy = accuracies[bin_of(float(now.max()))]
    if accuracy is None:
        return p.sum() * 0.0
    wanted = p.new_tensor(targets(now / now.sum(), accuracy))
    return (p - wanted).square().sum()


def _places(entries: Sequence[PatientPairs]) -> list[int]:
    """Of each entry, which branch of the batch is the right answer."""
    starts = np.cumsum([0, *(len(entry.branches) for entry in entries[:-1])])
    return [int(start) + entry.pairs[0][0] for start, entry in zip(starts, entries, strict=True)]


Batches = list[list[list[PatientPairs]]]


def _with_candidates(
    student: Student, batches: Batches, answers: Sequence[tuple[int, ...]], count: int
) -> Batches:
    """The batches with the best answers of the student, as it is now, as branches of each entry."""
    # By identity: a patient may be drawn twice in a round, and is looked at once.
    apart = {id(entry): entry for batch in batches for own in batch for entry in own}
    found = dict(zip(apart, candidates(student, list(apart.values()), answers, count), strict=True))
    return [[[found[id(entry)] for entry in own] for own in batch] for batch in batches]


@torch.no_grad()
def candidates(
    student: Student, cases: Sequence[PatientPairs], answers: Sequence[tuple[int, ...]], count: int
) -> list[PatientPairs]:
    """The cases with the student's best answers as branches, best first, and the truth last if it is none.

    Args:
        student: With the adapter that answers.
        cases: From ``encode_cases``.
        answers: All of the plan's, as tokens.
        count: How many the student would list, fewer where the plan has fewer.
    """
    prefix, trie = shared_prefix(build_trie(answers))
    encoded = [(*case.prompt, *prefix) for case in cases]
    vision = student.vision
    shapes = [None if vision is None or case.image is None else vision.shapes(case.image) for case in cases]
    made: dict[int, PatientPairs] = {}
    for rows in batches_by_length(encoded, shapes):
        beams = rank_by_beam(
            student.model,
            [encoded[row] for row in rows],
            trie,
            beams=most_kept(count),
            pad_id=student.pad_id,
            vision=vision,
            images=[image for row in rows if (image := cases[row].image) is not None],
        )
        for row, ranked in zip(rows, beams, strict=True):
            made[row] = _branched(cases[row], [answers[answer] for answer, _ in ranked[:count]])
    return [made[row] for row in range(len(cases))]


def own_lengths(answers: Sequence[tuple[int, ...]]) -> list[int]:
    """How many tokens each answer has beyond those that all begin with, which a beam scores for none."""
    shared = _shared(answers)
    return [max(1, len(tokens) - shared) for tokens in answers]


def _shared(answers: Sequence[tuple[int, ...]]) -> int:
    return len(shared_prefix(build_trie(answers))[0])


def most_kept(count: int) -> int:
    """How many answers a beam keeps of which ``count`` are wanted: as many as an evaluation, or more."""
    return max(count, TOP + SPARE_BEAMS)


def _branched(case: PatientPairs, listed: list[tuple[int, ...]]) -> PatientPairs:
    (truth,) = case.branches
    branches = listed if truth in listed else [*listed, truth]
    return replace(case, branches=tuple(branches), pairs=((branches.index(truth), None),))


def as_confident(
    case: RankedCase, score: ConfidenceScore, lengths: Sequence[int], *, first: int | None = None
) -> RankedCase:
    """A case as its student orders and claims it by a plan's ``score``, at temperature 1.

    Args:
        case: As ``rank_cases`` gave it.
        score: Of the plan's calibration.
        lengths: Of each of the plan's answers, from ``own_lengths``.
        first: Of the answers kept, how many share a confidence of 1; all if None.
    """
    kept, scores = case.everything[:first], case.scores[:first]
    if score == "mean":
        means = [total / lengths[answer] for answer, total in zip(kept, scores, strict=True)]
        order = sorted(range(len(kept)), key=lambda place: -means[place])
        kept, scores = tuple(kept[i] for i in order), tuple(means[i] for i in order)
    return RankedCase.of(kept, scores, len(case.answers))
