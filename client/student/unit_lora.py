"""Gradients of LoRA factors patient by patient, at the price of an ordinary backward pass.

A patient's gradient must be known before it can be clipped, so the sum over a batch's rows that autograd
forms is of no use. ``UnitLora`` is the adapter's branch of a layer as one autograd function: its backward
keeps the products of the rows apart (one batched product instead of one product, as many multiplications)
and adds each row to its patient's own sum. The weight gradient of the whole batch is never formed
(Bu et al. 2023, book-keeping, with the gradients of the small factors at hand instead of their norms).

While ``unit_lora`` is open, PEFT's LoRA layers run this branch; PEFT's own is back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from client.student.model import ADAPTER, CoredLinear, module_name
from common.adapter import Block


class UnitSums:
    """One block's gradients, summed for each patient by the backward passes since ``start``.

    Attributes:
        block: Whose gradients are kept.
        by_module: (patients, *factor) by the module's name; a module that no backward pass came through is
            absent.
        rows: How many rows the next forward pass has.
        pictures: How many pictures of a row stand one after another where a layer takes pictures for rows.
    """

    def __init__(self, block: Block) -> None:
        """Without patients yet."""
        self.block = block
        self.start(0)

    def start(self, patients: int) -> None:
        """Forget all sums; the next ones are of ``patients`` patients."""
        self.by_module: dict[str, Tensor] = {}
        self.rows, self.pictures = 0, 1
        self._patients = patients

    def expect(self, patient_of_row: Sequence[int], device: torch.device, *, pictures: int = 1) -> None:
        """Say whose the rows of the next forward pass are, as numbers below ``patients``.

        ``pictures`` is into how many an image model cuts the image of a row, the same for every row.
        """
        self.rows, self.pictures = len(patient_of_row), pictures
        self._order = list(patient_of_row)
        self._index = torch.tensor(self._order, dtype=torch.long, device=device)

    def add(self, module: str, of_rows: Tensor) -> None:
        """Add the rows' gradients, (rows, *factor), to their patients' sums."""
        if module not in self.by_module:
            if self._order == list(range(self._patients)):
                self.by_module[module] = of_rows
                return
            self.by_module[module] = of_rows.new_zeros(self._patients, *of_rows.shape[1:])
        sums = self.by_module[module]
        if len(set(self._order)) == len(self._order):
            sums.index_add_(0, self._index, of_rows)
            return
        # One by one: a GPU's index_add_ takes the rows of one patient in any order.
        for row, patient in enumerate(self._order):
            sums[patient].add_(of_rows[row])


class UnitLora(torch.autograd.Function):
    """``base + scaling * B M A x`` of one layer, M left out where there is no core.

    Its backward gives the gradients of base and x, and leaves that of the active factor in ``UnitSums``.
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, a: Tensor, core: Tensor | None, b: Tensor,
        scaling: float, module: str, sums: UnitSums,
    ) -> Tensor:  # fmt: skip
        """(rows, columns, out) from base of that shape and x, (rows, columns, in)."""
        low = x @ a.T
        middle = low if core is None else low @ core.T
        # Scaled here, in rank columns, rather than in the wider output.
        scaled = middle * scaling
        ctx.save_for_backward({Block.A: x, Block.CORE: low, Block.B: scaled}[sums.block], a, core, b)
        ctx.scaling, ctx.module, ctx.sums = scaling, module, sums
        return torch.addmm(base.flatten(0, 1), scaled.flatten(0, 1), b.T).view_as(base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of base and x alone: those of the factors are summed nowhere but in ``UnitSums``."""
        kept, a, core, b = ctx.saved_tensors
        of_middle = (of_output @ b) * ctx.scaling
        of_low = of_middle if core is None else of_middle @ core
        left = {Block.A: of_low, Block.CORE: of_middle, Block.B: of_output}[ctx.sums.block]
        ctx.sums.add(ctx.module, torch.bmm(left.transpose(1, 2), kept))
        of_x = of_low @ a if ctx.needs_input_grad[1] else None
        return of_output, of_x, None, None, None, None, None, None


@contextmanager
def unit_lora(model: nn.Module, sums: UnitSums) -> Iterator[None]:
    """Let the LoRA layers of ``model`` leave their gradients in ``sums``.

    Guarantee: PEFT's forward is back afterwards, whatever happened.

    Raises:
        ValueError: A layer is more than one plain adapter on a linear module.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        _require_plain(name, layer)
    # Other libraries put a forward on the object, too.
    before = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.forward = partial(_forward, layer, module_name(name), sums)
        yield
    finally:
        for name, layer in layers.items():
            layer.__dict__.pop("forward", None)
            if before[name] is not None:
                layer.forward = before[name]


def _require_plain(name: str, layer: Any) -> None:
    factors = [*layer.lora_A.values(), *layer.lora_B.values()]
    linear = all(isinstance(one, nn.Linear) for one in (*factors, layer.get_base_layer()))
    if len(factors) != 2 or not linear or any(one.bias is not None for one in factors):
        raise ValueError(f"Expected one LoRA adapter without bias on a linear module, got another at {name}")
    if layer.lora_variant or layer.merged or layer.disable_adapters:
        raise ValueError(f"Expected plain LoRA, active and not merged, got another at {name}")


def _forward(layer: Any, module: str, sums: UnitSums, x: Tensor) -> Tensor:
    """What PEFT's layer computes, by the branch that keeps patients apart."""
    # A row is known by its place. Tokens of all patients in one list, as an expert or the vocabulary's
    # product gets them, cannot be told apart, even if there are by chance as many as rows.
    if x.ndim != 3 or len(x) not in (sums.rows, sums.rows * sums.pictures):
        raise ValueError(
            f"Expected {sums.rows} rows of tokens at {module}, got shape {tuple(x.shape)}: without rows "
            "patients cannot be told apart, and the layer cannot be adapted under privacy"
        )
    result = layer.base_layer(x)
    # A row's pictures stand one after another: together they are the row.
    x, base = x.reshape(sums.rows, -1, x.shape[-1]), result.reshape(sums.rows, -1, result.shape[-1])
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].weight
    core = a.core if isinstance(a, CoredLinear) else None
    x = layer.lora_dropout[ADAPTER](x.to(b.dtype))
    output = UnitLora.apply(base.to(b.dtype), x, a.weight, core, b, layer.scaling[ADAPTER], module, sums)
    return output.to(result.dtype).view_as(result)
