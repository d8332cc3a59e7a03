"""One differentially private step: gradients clipped patient by patient, beside the step without privacy.

All peers take the same batch in the same micro-batches through the same model and end with the same
optimizer. ``non_private`` is the step of ``client.student.fit``, ``ours`` clips by ``client.student.private``
and ``opacus`` by Opacus' hooks, on a batch with one row a patient: a row is what they can clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor

from client.student.batches import micro_batches
from client.student.branches import PatientPairs
from client.student.fit import ADAM_BETAS, GRADIENT_CLIP
from client.student.model import Student
from client.student.orpo import orpo_losses
from client.student.private import clipped_gradients, clipped_gradients_plain
from common.adapter import Adapter, Block, flatten
from common.learning_plan import TrainingPlan
from simulations.benchmarks._measure import in_turns, parser, peak_bytes, positive, report, with_model
from simulations.benchmarks.orpo_step import LAMBDA, draw_patients, make_llama_student

CLIP_NORM, NOISE_STD = 0.5, 0.5
BLOCK = Block.B
PLAN = TrainingPlan(
    rounds=1,
    local_steps=1,
    patients_per_step=1,
    learning_rate=1e-3,
    max_prompt_tokens=4096,
    orpo_lambda=LAMBDA,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = with_model(parser("private_step", __doc__))
    options.add_argument("--patients", type=positive, default=16, help="of the batch; default %(default)s")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    # Opacus' hooks stay on a model; the others must not pay for them.
    student, hooked = (make_llama_student(chosen.vocabulary, chosen.width, chosen.layers) for _ in range(2))
    patients = draw_patients(chosen.patients, chosen.prompt, chosen.vocabulary)
    values = measure(student, hooked, patients, chosen.repeats)
    report(f"Private step, {chosen.patients} patients", values, as_json=chosen.json)


def measure(
    student: Student, hooked: Student, patients: Sequence[PatientPairs], repeats: int
) -> dict[str, float | int]:
    """All figures of the benchmark; both students hold the same adapter, which no peer changes."""
    adapter = student.read()
    plain = NonPrivateStep(student, adapter)
    private = PrivateStep(student, adapter)
    opacus = OpacusStep(hooked, adapter)
    peers = {
        "non_private": lambda: plain.step(patients),
        "ours": lambda: private.step(patients),
        "opacus": lambda: opacus.step(patients),
    }
    seconds = in_turns(peers, repeats)
    memory = {name: peak_bytes(work) for name, work in peers.items()}
    reference = clipped_gradients_plain(student, adapter, BLOCK, patients, PLAN, clip_norm=CLIP_NORM)
    return {
        "patients": len(patients),
        "clipped": reference.clipped,
        **{f"{name}_s": taken for name, taken in seconds.items()},
        "overhead": seconds["ours"] / seconds["non_private"],
        "opacus_overhead": seconds["opacus"] / seconds["non_private"],
        **{f"{name}_peak_bytes": held for name, held in memory.items()},
        "memory_ratio": memory["ours"] / memory["non_private"],
        "opacus_memory_ratio": memory["opacus"] / memory["non_private"],
        "max_abs_diff": _difference(private.clipped(patients), reference.total),
        "opacus_max_abs_diff": _difference(opacus.clipped(patients), reference.total),
    }


def _difference(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(found - reference).max())


def _losses(student: Student, patients: Sequence[PatientPairs]) -> Iterator[Tensor]:
    """The patients' losses, micro-batch by micro-batch."""
    for part in micro_batches(patients):
        yield orpo_losses(
            student.model, part, orpo_lambda=LAMBDA, pad_id=student.pad_id, nll_on=PLAN.nll_on
        ).loss


def _optimizer(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    # Of rate zero: each turn measures the same step, which costs as much.
    return torch.optim.AdamW(weights, lr=0.0, betas=ADAM_BETAS, weight_decay=0.0, fused=True)


class NonPrivateStep:
    """The step of ``client.student.fit``."""

    def __init__(self, student: Student, adapter: Adapter) -> None:
        """Load the adapter's values."""
        student.load(adapter)
        self._student = student
        self._optimizer = _optimizer(student.train_block(BLOCK))

    def step(self, patients: Sequence[PatientPairs]) -> None:
        """Gradient of the mean loss, clipped as a whole, and the optimizer."""
        factors = self._student.train_block(BLOCK)
        self._optimizer.zero_grad()
        for losses in _losses(self._student, patients):
            (losses.sum() / len(patients)).backward()
        torch.nn.utils.clip_grad_norm_(factors, GRADIENT_CLIP)
        self._optimizer.step()
        # Else the other peers' turns would begin with these gradients in memory.
        self._optimizer.zero_grad()


class _NoisyStep:
    """Noise on a clipped sum, and the optimizer on the block as one vector."""

    def __init__(self, adapter: Adapter) -> None:
        self._weights = torch.tensor(flatten(adapter, BLOCK))
        self._optimizer = _optimizer([self._weights])
        self._rng = np.random.default_rng(0)

    def step(self, total: np.ndarray, patients: int) -> None:
        noisy = total + self._rng.normal(scale=NOISE_STD, size=total.size)
        self._weights.grad = torch.from_numpy((noisy / patients).astype(np.float32))
        self._optimizer.step()
        self._weights.grad = None


class PrivateStep:
    """The step with ``clipped_gradients``."""

    def __init__(self, student: Student, adapter: Adapter) -> None:
        """Take the adapter that every step starts from."""
        self._student, self._adapter = student, adapter
        self._noisy = _NoisyStep(adapter)

    def step(self, patients: Sequence[PatientPairs]) -> None:
        """Clipped sum, noise, optimizer."""
        self._noisy.step(self.clipped(patients), len(patients))

    def clipped(self, patients: Sequence[PatientPairs]) -> np.ndarray:
        """The clipped sum, (size of the block,)."""
        return clipped_gradients(
            self._student, self._adapter, BLOCK, patients, PLAN, clip_norm=CLIP_NORM
        ).total


class OpacusStep:
    """The step with Opacus' per-row gradients, which are per-patient ones where a patient is one row."""

    def __init__(self, student: Student, adapter: Adapter) -> None:
        """Put the hooks on the student's model, where they stay."""
        student.load(adapter)
        self._student, self._factors = student, student.train_block(BLOCK)
        # The hooks record nothing in evaluation; without dropout the two are the same.
        GradSampleHooks(student.model.train(), loss_reduction="sum", strict=False)
        self._noisy = _NoisyStep(adapter)

    def step(self, patients: Sequence[PatientPairs]) -> None:
        """Clipped sum, noise, optimizer."""
        self._noisy.step(self.clipped(patients), len(patients))

    def clipped(self, patients: Sequence[PatientPairs]) -> np.ndarray:
        """The clipped sum, (size of the block,), as Opacus' optimizer forms it."""
        totals = [torch.zeros_like(factor) for factor in self._factors]
        for losses in _losses(self._student, patients):
            losses.sum().backward()
            gradients = [_take_row_gradients(factor) for factor in self._factors]
            norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
            scales = (CLIP_NORM / (norms + 1e-6)).clamp(max=1.0)
            for total, one in zip(totals, gradients, strict=True):
                total += torch.einsum("i,i...", scales, one)
        return torch.cat([total.flatten() for total in totals]).numpy().astype(np.float64)


def _take_row_gradients(factor: Any) -> Tensor:
    """What the hooks left at a factor, (rows, *factor); nothing is left there afterwards."""
    taken: Tensor = factor.grad_sample
    factor.grad_sample = factor.grad = None
    return taken


if __name__ == "__main__":
    main()
