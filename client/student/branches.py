"""A patient's prompt read once, with his answers as branches of it.

A patient's pairs share one prompt, and the prompt is the long part. So it is run once: every distinct
answer of the patient is a *branch* that sees the prompt but not the other branches (position ids restart
after the prompt, a block mask keeps the branches apart), and the vocabulary's logits are computed only
where a label may stand. ``plain_log_probs`` is the slow form, one prompt with one answer at a time; tests
compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from client.patients.photos import SlideRef
from client.student.vision import Vision, images_for


@dataclass(frozen=True, kw_only=True)
class PatientPairs:
    """One patient's pairs as tokens; for an image student, his pairs with one of his tiles.

    Attributes:
        patient_id: The unit that is clipped under differential privacy.
        prompt: Token ids of the prompt, at least one.
        branches: Token ids of each distinct answer, its end-of-sequence token included.
        pairs: (chosen, rejected) as indices into ``branches``; rejected is ``None`` where an answer is
            only imitated (supervised fine-tuning).
        image: The tile that the prompt's image tokens stand for; none for a text student.
        reference: How likely each answer is to the base without its adapter, as the summed log-probability of
            its tokens; only where the loss compares with it.
    """

    patient_id: str
    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int | None], ...]
    image: SlideRef | None = None
    reference: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompt or not self.pairs or not all(self.branches):
            raise ValueError("Expected a prompt, at least one pair and no empty answer")
        if self.reference is not None and len(self.reference) != len(self.branches):
            raise ValueError(
                f"Expected a reference for each of {len(self.branches)} answers, got {len(self.reference)}"
            )


@dataclass(frozen=True, kw_only=True)
class BranchBatch:
    """Several patients' prompts and branches, ready for one forward pass.

    Prompts are padded on the left, so that all branches begin in the same column.

    Attributes:
        input_ids: (patients, columns), int64.
        position_ids: The same, or (3, patients, columns) where the model counts an image's rows and columns.
        mask: (patients, 1, columns, columns), additive, in the model's dtype.
        labels: (branches, longest) token ids, -100 where a branch has ended.
        at: (branches, longest) column that predicts the label.
        row: (branches,) the patient of each branch.
        prompt_labels: (patients, prompt columns - 1) ids of the prompts' own next tokens, -100 where padded;
            without a column unless the prompt's likelihood counts too.
        images: What the model gets of the images; nothing for a text student.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    labels: Tensor
    at: Tensor
    row: Tensor
    prompt_labels: Tensor
    images: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> BranchBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)}
        images = {name: tensor.to(device) for name, tensor in self.images.items()}
        return replace(self, **moved, images=images)


IGNORED = -100
RESCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models (Gemma, Granite, Cohere) whose logits are more than a product of hidden states."""


def pack(
    patients: Sequence[PatientPairs], pad_id: int, *, dtype: torch.dtype = torch.float32, whole: bool = False
) -> BranchBatch:
    """Lay out prompts and branches: ``[left padding | prompt | branch 1 | branch 2 | ... | padding]``.

    ``whole`` makes labels of the prompts' tokens as well, for ``nll_on: sequence``.
    """
    prompt_columns = max(len(patient.prompt) for patient in patients)
    branch_columns = max(sum(map(len, patient.branches)) for patient in patients)
    columns = prompt_columns + branch_columns
    ids = torch.full((len(patients), columns), pad_id, dtype=torch.long)
    positions = torch.zeros((len(patients), columns), dtype=torch.long)
    # Segment 0 is the prompt, 1, 2, ... are the branches, -1 is padding.
    segment = torch.full((len(patients), columns), -1, dtype=torch.long)
    labels: list[list[int]] = []
    at: list[list[int]] = []
    row: list[int] = []
    for index, patient in enumerate(patients):
        length = len(patient.prompt)
        start = prompt_columns - length
        ids[index, start:prompt_columns] = torch.tensor(patient.prompt)
        positions[index, start:prompt_columns] = torch.arange(length)
        segment[index, start:prompt_columns] = 0
        column = prompt_columns
        for number, branch in enumerate(patient.branches, start=1):
            end = column + len(branch)
            ids[index, column:end] = torch.tensor(branch)
            positions[index, column:end] = length + torch.arange(len(branch))
            segment[index, column:end] = number
            labels.append(list(branch))
            # The first label is predicted by the prompt's last column, the others by the label before.
            at.append([prompt_columns - 1, *range(column, end - 1)])
            row.append(index)
            column = end
    longest = max(map(len, labels))
    prompt_labels = torch.where(segment == 0, ids, IGNORED)[:, 1:prompt_columns]
    # A prompt's first token has nothing before it that could predict it.
    first = torch.tensor([prompt_columns - len(patient.prompt) for patient in patients])
    prompt_labels[first > 0, first[first > 0] - 1] = IGNORED
    return BranchBatch(
        input_ids=ids,
        position_ids=positions,
        mask=_branch_mask(segment, dtype),
        labels=torch.tensor([line + [IGNORED] * (longest - len(line)) for line in labels]),
        at=torch.tensor([line + [0] * (longest - len(line)) for line in at]),
        row=torch.tensor(row),
        prompt_labels=prompt_labels if whole else prompt_labels[:, :0],
    )


def branch_batch(
    model: nn.Module,
    patients: Sequence[PatientPairs],
    pad_id: int,
    *,
    vision: Vision | None = None,
    whole: bool = False,
) -> BranchBatch:
    """The patients packed, with their images, where the model is and in its dtype."""
    parameter = next(model.parameters())
    packed = pack(patients, pad_id, dtype=parameter.dtype, whole=whole)
    return with_images(packed, patients, vision).to(parameter.device)


def with_images(batch: BranchBatch, patients: Sequence[PatientPairs], vision: Vision | None) -> BranchBatch:
    """The packed batch with its images as the model looks at them; ValueError as of ``images_for``."""
    images = images_for(vision, [patient.image for patient in patients], len(patients))
    if vision is None:
        return batch
    prompts = [patient.prompt for patient in patients]
    return replace(
        batch,
        position_ids=vision.positions(prompts, images, batch.position_ids),
        images=vision.inputs(images, batch.input_ids),
        prompt_labels=batch.prompt_labels.masked_fill(vision.stands_for_image(batch.prompt_labels), IGNORED),
    )


def _branch_mask(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """Who may look at whom: a column sees the earlier columns of its own segment and of the prompt."""
    columns = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    to_prompt = (segment[:, None, :] == 0) & (segment[:, :, None] >= 0)
    causal = torch.ones(columns, columns, dtype=torch.bool).tril()
    # Padding sees itself and nothing else: a row without any visible column would give NaN.
    itself = torch.eye(columns, dtype=torch.bool)
    visible = ((same | to_prompt) & (segment[:, None, :] >= 0) & causal) | itself
    mask = torch.zeros(visible.shape, dtype=dtype)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def token_log_probs(model: nn.Module, batch: BranchBatch, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens of every branch and of every prompt, fp32.

    Returns (branches, longest), 0 where a branch has ended, and (patients, prompt columns - 1), 0 where
    padded; the latter has no column unless the batch was packed ``whole``. With ``smoothing`` a branch's
    token has this share of the mean log-probability of all tokens in place of its own.

    Guarantee: equal to running each prompt with each answer alone.
    """
    of_states = _states(model, batch)
    rows = torch.arange(len(batch.input_ids), device=batch.input_ids.device)[:, None]
    columns = torch.arange(batch.prompt_labels.shape[1], device=batch.input_ids.device)[None]
    return (
        _label_log_probs(
            of_states, batch.row[:, None].expand_as(batch.labels), batch.at, batch.labels, smoothing
        ),
        _label_log_probs(
            of_states,
            rows.expand_as(batch.prompt_labels),
            columns.expand_as(batch.prompt_labels),
            batch.prompt_labels,
        ),
    )


def _states(model: nn.Module, batch: BranchBatch) -> Callable[[Tensor, Tensor], Tensor]:
    """Runs the model; what comes back gives the logits at (rows, columns), each (n,), as (n, vocabulary)."""
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
        **batch.images,
    }
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if batch.images:
        # The decoder alone would never see the image. No family read here rescales its logits.
        hidden = causal.base_model(**inputs).last_hidden_state
        return _product(causal, hidden)
    if any(getattr(causal.config, name, None) is not None for name in RESCALED_LOGITS):
        logits = causal(**inputs).logits
        return lambda rows, columns: logits[rows, columns]
    # The vocabulary's product where a label stands and nowhere else: with short answers it would cost more
    # than the rest of the model otherwise.
    return _product(causal, causal.get_decoder()(**inputs).last_hidden_state)


def _product(causal: Any, hidden: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    head = causal.get_output_embeddings()
    return lambda rows, columns: head(hidden[rows, columns])


def _label_log_probs(
    logits_at: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Log-probability of each label, 0 where it is ignored."""
    real = labels != IGNORED
    log_probs = torch.zeros(labels.shape, device=labels.device)
    if not bool(real.any()):
        return log_probs
    logits = logits_at(rows[real], columns[real]).float()
    losses = nn.functional.cross_entropy(logits, labels[real], reduction="none", label_smoothing=smoothing)
    return log_probs.masked_scatter(real, -losses)


def plain_log_probs(
    model: nn.Module,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    vision: Vision | None = None,
    image: SlideRef | None = None,
) -> Tensor:
    """Token log-probabilities of one answer after one prompt, (len(answer),): the reference.

    An image student reads the prompt with its image, by the model's own masks and positions.
    """
    ids = torch.tensor([[*prompt, *answer]])
    images = {} if vision is None or image is None else vision.plain_inputs([image], ids)
    logits = model(input_ids=ids, use_cache=False, **images).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class PatientLosses:
    """What one forward pass says of each patient, (patients,) each.

    Attributes:
        loss: The patient's mean loss over his pairs, differentiable.
        nll: Mean negative log-likelihood of the chosen answers' tokens; differentiable where it is a part of
            the loss.
        margin: How much likelier the chosen answers are by the loss's own measure (ORPO's log odds ratio,
            DPO's margin against the reference), mean; 0 where no pair has a rejected answer.
        preferred: Share of pairs whose margin is above 0.
    """

    loss: Tensor
    nll: Tensor
    margin: Tensor
    preferred: Tensor


@dataclass(frozen=True, kw_only=True)
class PairIndex:
    """The pairs of a whole batch, (pairs,) each.

    Attributes:
        chosen, rejected: Branches of the batch; a pair without a rejected answer has its chosen one twice.
        row: The patient.
        weight: 1 / pairs of that patient.
        patients: How many there are.
    """

    chosen: Tensor
    rejected: Tensor
    row: Tensor
    weight: Tensor
    patients: int

    def per_patient(self, of_pairs: Tensor) -> Tensor:
        """The mean over each patient's pairs, (patients,)."""
        zeros = torch.zeros(self.patients, device=self.row.device)
        return zeros.index_add(0, self.row, of_pairs * self.weight)


def index_pairs(patients: Sequence[PatientPairs], device: torch.device) -> PairIndex:
    """Where the pairs of a batch that ``pack`` made of ``patients`` stand."""
    chosen, rejected, row, weight = [], [], [], []
    first = 0
    for index, patient in enumerate(patients):
        for winner, loser in patient.pairs:
            chosen.append(first + winner)
            rejected.append(first + (winner if loser is None else loser))
            row.append(index)
            weight.append(1 / len(patient.pairs))
        first += len(patient.branches)
    return PairIndex(
        chosen=torch.tensor(chosen, device=device),
        rejected=torch.tensor(rejected, device=device),
        row=torch.tensor(row, device=device),
        weight=torch.tensor(weight, device=device),
        patients=len(patients),
    )
