"""The sum of the patients' gradients, each clipped: what a site may add noise to.

The unit is the patient. All that he brings, answers, pairs and notes or tiles, is summed before the clip; a
clip row by row would let him pull as often as he has rows. His loss is the mean over his notes (or tiles) of
the plan's loss, which looks at nobody else (``client.student.losses``); what would couple patients behind its
back, such as batch statistics, is refused by ``require_separable``.

``clipped_gradients_plain`` is the slow form, one patient at a time by ordinary autograd; tests compare the
two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.student.batches import entries_by_patient, micro_batches
from client.student.branches import PatientPairs
from client.student.losses import plan_losses
from client.student.model import Student
from client.student.unit_lora import UnitSums, unit_lora
from client.student.vision import Vision
from common.adapter import Adapter, AdapterSpec, Block
from common.learning_plan import TrainingPlan

ACCUMULATOR_BYTES = 256 * 2**20
"""What the gradients of the patients that wait for their clip may take; one patient's always may."""
SAFETY = 1 - 2**-22
"""A clipped gradient stays so far below its bound that it is within it even when rounded to float32."""
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings that transformers computes anew when a batch has a long prompt."""
ROUTER_LOSSES = ("output_router_logits", "router_aux_loss_coef")
"""Settings of mixtures of experts whose auxiliary loss balances the load over the whole batch."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClippedSum:
    """The sum of the patients' clipped gradients; it has no noise yet, and nothing of it leaves the site.

    Attributes:
        total: (size of the block,) in the order of ``common.adapter.flatten``.
        patients: How many were summed.
        clipped: How many of them were longer than the bound.
        dropped: How many had a gradient that is not finite; they count as zero.
    """

    total: NDArray[np.float64]
    patients: int
    clipped: int
    dropped: int


def clipped_gradients(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    clip_norm: float,
) -> ClippedSum:
    """Sum over patients of the gradient of his loss, clipped to ``clip_norm`` in L2.

    Guarantee: no patient's part of the sum is longer than ``clip_norm``, whatever his notes say; one whose
    gradient is not finite has no part. An empty batch gives zeros.

    Args:
        student: Of the adapter's specification; its adapter values are overwritten.
        adapter: Where the gradient is taken.
        block: Whose gradient; the other factors get none.
        patients: The drawn patients' pairs; entries with the same patient id are one patient.
        plan: Which loss.
        clip_norm: L2 bound on one patient's part.
    """
    factors = _prepare(student, adapter, block, clip_norm)
    sums, clip = UnitSums(block), PatientClip(adapter.spec, block, clip_norm, factors[0].device)
    most = max(1, ACCUMULATOR_BYTES // (adapter.spec.size(block) * factors[0].element_size()))
    with unit_lora(student.model, sums):
        for part in _parts(patients, most, student.vision):
            notes = _sum_gradients(student, part, plan, sums)
            clip.add(sums.by_module, notes)
            sums.start(0)
    return clip.result()


def clipped_gradients_plain(
    student: Student,
    adapter: Adapter,
    block: Block,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    clip_norm: float,
) -> ClippedSum:
    """The same sum, one patient and one note at a time, by autograd through PEFT's own layers."""
    factors = _prepare(student, adapter, block, clip_norm)
    total, clipped, dropped = np.zeros(adapter.spec.size(block)), 0, 0
    by_patient = entries_by_patient(patients)
    for entries in by_patient.values():
        gradient = np.zeros_like(total)
        for entry in entries:
            loss = plan_losses(student, [entry], plan).loss.sum()
            parts = torch.autograd.grad(loss, factors)
            gradient += torch.cat([part.flatten() for part in parts]).double().cpu().numpy() / len(entries)
        norm = math.sqrt(float(np.square(gradient).sum()))
        if not math.isfinite(norm):
            dropped += 1
            continue
        clipped += norm > clip_norm
        total += gradient * min(1.0, SAFETY * clip_norm / norm if norm else 1.0)
    return ClippedSum(total=total, patients=len(by_patient), clipped=clipped, dropped=dropped)


def _prepare(student: Student, adapter: Adapter, block: Block, clip_norm: float) -> list[Tensor]:
    """The factors that are trained, in order, with the adapter's values in place."""
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"Expected clip_norm > 0 and finite, got {clip_norm}")
    require_separable(student.model)
    student.load(adapter)
    return student.train_block(block)


def require_separable(model: nn.Module) -> None:
    """Refuse a model in which one patient's gradient depends on who else is in the batch.

    Dropout is no such thing: it draws for each patient apart.

    Raises:
        ValueError: Names the module or the setting.
    """
    for name, module in model.named_modules():
        # In evaluation too, a norm that never learned its statistics takes those of the batch.
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(f"Expected nothing that couples patients, got batch statistics at {name}")
        types = getattr(module, "rope_type", None)
        for rope_type in types.values() if isinstance(types, dict) else [types]:
            if rope_type in LENGTH_DEPENDENT:
                raise ValueError(
                    f"Expected nothing that couples patients, got rope_type {rope_type} at {name}, "
                    "whose angles depend on the longest prompt of the batch"
                )
    config = getattr(model, "config", None)
    # An image model's language model has settings of its own.
    for settings in (config, getattr(config, "text_config", None)):
        for name in ROUTER_LOSSES:
            value = getattr(settings, name, None)
            if value:
                raise ValueError(f"Expected no router loss, which couples patients, got {name} {value}")


def _parts(entries: Sequence[PatientPairs], most: int, vision: Vision | None) -> Iterator[list[PatientPairs]]:
    """The entries in parts of at most ``most`` patients, each patient whole.

    Patients with one note are a part by micro-batch: their gradients then take memory only while the
    activations, which took more, are given back.
    """
    grouped = entries_by_patient(entries).values()
    for part in micro_batches([own[0] for own in grouped if len(own) == 1], vision):
        for first in range(0, len(part), most):
            yield part[first : first + most]
    # Neighbors of like length leave less padding to the micro-batches.
    several = [own for own in grouped if len(own) > 1]
    several.sort(key=lambda own: max(len(entry.prompt) for entry in own))
    for first in range(0, len(several), most):
        yield [entry for own in several[first : first + most] for entry in own]


def _sum_gradients(
    student: Student, entries: Sequence[PatientPairs], plan: TrainingPlan, sums: UnitSums
) -> list[int]:
    """Leave each patient's gradient, summed over his notes, in ``sums``; returns how many notes each has."""
    grouped = entries_by_patient(entries)
    number = {patient_id: index for index, patient_id in enumerate(grouped)}
    sums.start(len(grouped))
    for part in micro_batches(entries, student.vision):
        rows = [number[entry.patient_id] for entry in part]
        sums.expect(rows, student.model.device, pictures=_pictures(part, student.vision))
        plan_losses(student, part, plan).loss.sum().backward()
    return [len(own) for own in grouped.values()]


def _pictures(part: Sequence[PatientPairs], vision: Vision | None) -> int:
    """How many pictures the model makes of one row; all rows of a part have as many."""
    image = part[0].image
    return 1 if vision is None or image is None else vision.parts(image)


class PatientClip:
    """Clips patients' gradients and sums them, in float64."""

    def __init__(self, spec: AdapterSpec, block: Block, clip_norm: float, device: torch.device) -> None:
        self._clip_norm = clip_norm
        self._total = {
            module.name: torch.zeros(math.prod(spec.shape(module, block)), dtype=torch.float64, device=device)
            for module in spec.modules
        }
        self._patients = self._clipped = self._dropped = 0

    def add(self, by_module: Mapping[str, Tensor], notes: Sequence[int]) -> None:
        """Take in the gradients of some patients, (patients, *factor) by module, each a sum over his notes.

        The tensors are changed where a patient is dropped.
        """
        gradients = {name: gradient.flatten(1) for name, gradient in by_module.items()}
        norms = _norms(gradients.values())
        # The mean over notes is taken in the factors, in float64, and not in every number.
        of_notes = 1.0 / norms.new_tensor(notes)
        norms *= of_notes
        bad = ~norms.isfinite()
        # Before the clip: a factor would leave them what they are.
        if bad.any():
            for gradient in gradients.values():
                gradient[bad] = 0.0
            norms[bad] = 0.0
        factors = (SAFETY * self._clip_norm / norms).clamp(max=1.0) * of_notes
        for name, gradient in gradients.items():
            self._total[name] += factors @ gradient.double()
        self._patients += len(norms)
        self._clipped += int((norms > self._clip_norm).sum())
        self._dropped += int(bad.sum())

    def result(self) -> ClippedSum:
        """The sum so far."""
        total = torch.cat(list(self._total.values())).cpu().numpy()
        return ClippedSum(total=total, patients=self._patients, clipped=self._clipped, dropped=self._dropped)


def _norms(gradients: Iterable[Tensor]) -> Tensor:
    """L2 norm of each patient's gradient over all modules, (patients,), float64."""
    parts = [torch.linalg.vector_norm(one, dim=1, dtype=torch.float64) for one in gradients]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)
