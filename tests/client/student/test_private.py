import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from client.student.branches import PatientPairs
from client.student.model import Student, adapter_spec, load_base, make_student
from client.student.orpo import orpo_losses
from client.student.private import (
    ClippedSum,
    clipped_gradients,
    clipped_gradients_plain,
    require_separable,
)
from client.student.unit_lora import UnitSums
from common.adapter import (
    Adapter,
    AdapterMode,
    Block,
    flatten,
    initial_adapter,
    tensor_key,
    tensor_shapes,
    unflatten,
)
from common.learning_plan import AdapterPlan, TrainingPlan

PLAN = TrainingPlan(
    rounds=1, local_steps=1, patients_per_step=2, learning_rate=0.1, max_prompt_tokens=64, orpo_lambda=0.5
)
NO_CLIP = 1e6
BLOCKS = [
    (AdapterMode.FFA, Block.B),
    (AdapterMode.ROLORA, Block.A),
    (AdapterMode.ROLORA, Block.B),
    (AdapterMode.CORE, Block.CORE),
]
POISON = 99
"""A token whose embedding is no number in `poisoned`."""


def note(patient: str, length: int, answers: int = 2, first: int = 40) -> PatientPairs:
    """A note of ``length`` tokens with ``answers`` answers of 2 to 4 tokens; the first beats each other."""
    return PatientPairs(
        patient_id=patient,
        prompt=(1, *range(first, first + length - 1)),
        branches=tuple((*range(first + 20 + i, first + 21 + i + i % 3), 2) for i in range(answers)),
        pairs=tuple((0, i) for i in range(1, answers)) or ((0, None),),
    )


# One to five notes a patient, of different lengths, with one to three pairs, and not in order.
RAGGED = [
    note("a", 5),
    note("b", 12, 3, first=100),
    note("c", 3, 4, first=130),
    note("b", 4, 1, first=160),
    note("d", 9, 2, first=60),
    note("e", 7, 3, first=80),
    note("b", 20, 2, first=200),
    *(note("c", 2 + 3 * i, 1 + i, first=50 + 11 * i) for i in range(4)),
]


def make(base_folder: Path, mode: AdapterMode, dtype: torch.dtype = torch.float64) -> Student:
    torch.set_num_threads(1)
    base, tokenizer = load_base(str(base_folder))
    plan = AdapterPlan(mode=mode, rank=4, alpha=8.0, targets=("q_proj", "down_proj"), factors_digest="0" * 64)
    student = make_student(base, tokenizer, adapter_spec(base, plan))
    student.model.to(dtype)
    return student


def filled(student: Student, seed: int = 0) -> Adapter:
    """An adapter without a zero, which would hide the other factors."""
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(student.spec).items()
    tensors = {key: rng.normal(size=shape, scale=0.3).astype(np.float32) for key, shape in shapes}
    return Adapter(spec=student.spec, tensors=tensors)


def gradient_by_hand(
    student: Student, adapter: Adapter, block: Block, own: list[PatientPairs], plan: TrainingPlan
) -> NDArray[np.float64]:
    """The gradient of one patient's mean loss, one note at a time, by PEFT and autograd."""
    student.load(adapter)
    named = dict(student.model.named_parameters())
    end = {
        Block.A: "lora_A.default.weight",
        Block.B: "lora_B.default.weight",
        Block.CORE: "lora_A.default.core",
    }
    factors = [named[f"base_model.model.{module.name}.{end[block]}"] for module in student.spec.modules]
    for factor in factors:
        factor.requires_grad_(requires_grad=True)
    total = np.zeros(student.spec.size(block))
    for entry in own:
        losses = orpo_losses(
            student.model, [entry], orpo_lambda=plan.orpo_lambda, pad_id=0, nll_on=plan.nll_on
        ).loss
        parts = torch.autograd.grad(losses[0], factors)
        total += torch.cat([part.double().flatten() for part in parts]).numpy()
    return total / len(own)


def by_hand(
    student: Student,
    adapter: Adapter,
    block: Block,
    entries: list[PatientPairs],
    clip_norm: float,
    plan: TrainingPlan = PLAN,
) -> NDArray[np.float64]:
    """The clipped sum, written down."""
    total = np.zeros(student.spec.size(block))
    for patient in sorted({entry.patient_id for entry in entries}):
        own = [entry for entry in entries if entry.patient_id == patient]
        gradient = gradient_by_hand(student, adapter, block, own, plan)
        total += gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
    return total


def norm_of(result: ClippedSum) -> float:
    return float(np.linalg.norm(result.total))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("mode", "block"), BLOCKS)
def test_clipped_sums_equal_a_loop_over_patients(
    base_folder: Path, mode: AdapterMode, block: Block, checkpointing: bool
) -> None:
    student = make(base_folder, mode)
    adapter = filled(student)
    expected = {bound: by_hand(student, adapter, block, RAGGED, bound) for bound in (NO_CLIP, 1.0)}
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    if checkpointing:
        student.model.train()
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.register_forward_hook(count)
    for bound, right in expected.items():
        calls = 0
        found = clipped_gradients(student, adapter, block, RAGGED, PLAN, clip_norm=bound)
        plain = clipped_gradients_plain(student, adapter, block, RAGGED, PLAN, clip_norm=bound)
        # Two forward passes of ours (the patients with one note, those with several), eleven of the loop;
        # with checkpointing each is run once more on the way back.
        assert calls == (2 + len(RAGGED)) * (2 if checkpointing else 1)
        assert found.total.dtype == np.float64
        assert np.abs(found.total - plain.total).max() < 1e-10
        # The clip stays below its bound by less than 1e-6 of it.
        assert np.abs(found.total - right).max() < (1e-10 if bound == NO_CLIP else 1e-6)
        assert np.abs(right).max() > 0.01
        assert (found.patients, found.dropped) == (plain.patients, plain.dropped) == (5, 0)
        assert found.clipped == plain.clipped
    assert found.clipped > 0


@pytest.mark.parametrize("change", [{"nll_on": "sequence"}, {"orpo_lambda": 0.0}])
def test_the_plans_loss_is_the_one_that_is_clipped(base_folder: Path, change: dict[str, Any]) -> None:
    student = make(base_folder, AdapterMode.FFA)
    adapter = filled(student)
    plan = replace(PLAN, **change)
    right = by_hand(student, adapter, Block.B, RAGGED[:3], NO_CLIP, plan)
    for work in (clipped_gradients, clipped_gradients_plain):
        found = work(student, adapter, Block.B, RAGGED[:3], plan, clip_norm=NO_CLIP)
        other = work(student, adapter, Block.B, RAGGED[:3], PLAN, clip_norm=NO_CLIP)
        assert np.abs(found.total - right).max() < 1e-10
        assert np.abs(found.total - other.total).max() > 1e-3


def test_notes_are_summed_to_patients_before_the_clip_and_the_test_would_notice(base_folder: Path) -> None:
    student = make(base_folder, AdapterMode.FFA)
    adapter = filled(student)
    own = [note("a", 5), note("a", 5), note("a", 9, 3)]
    strangers = [replace(entry, patient_id=f"{i}") for i, entry in enumerate(own)]
    together, apart = (
        clipped_gradients(student, adapter, Block.B, entries, PLAN, clip_norm=0.1)
        for entries in (own, strangers)
    )
    assert (together.patients, together.clipped) == (1, 1)
    assert 0.0999 < norm_of(together) <= 0.1
    # Two of the three notes are the same: clipped one by one they pull at least twice as far.
    assert norm_of(apart) > 0.15
    right = by_hand(student, adapter, Block.B, own, 0.1)
    assert np.abs(together.total - right).max() < 1e-6
    assert np.abs(apart.total - right).max() > 1e-3


@pytest.fixture
def poisoned(base_folder: Path) -> Iterator[Student]:
    """A student to whom one token is no number."""
    student = make(base_folder, AdapterMode.FFA)

    def spoil(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == POISON)[..., None], math.nan)

    student.model.get_input_embeddings().register_forward_hook(spoil)
    return student


@pytest.mark.parametrize(
    "spoiled", [[note("x", 5, first=POISON)], [note("x", 4), note("x", 6, first=POISON)]]
)
def test_a_patient_whose_gradient_is_not_finite_has_no_part_and_spoils_nobodys(
    poisoned: Student, spoiled: list[PatientPairs]
) -> None:
    adapter = filled(poisoned)
    healthy = [note("a", 5), note("b", 4, 3), note("b", 7), note("c", 6)]
    for clip_norm in (NO_CLIP, 0.5):
        alone, plain, mixed = (
            work(poisoned, adapter, Block.B, entries, PLAN, clip_norm=clip_norm)
            for work, entries in (
                (clipped_gradients, healthy),
                (clipped_gradients_plain, healthy[:1] + spoiled + healthy[1:]),
                (clipped_gradients, healthy[:1] + spoiled + healthy[1:]),
            )
        )
        assert (mixed.patients, mixed.dropped, alone.dropped, plain.dropped) == (4, 1, 0, 1)
        assert mixed.clipped == plain.clipped == alone.clipped
        assert norm_of(alone) > 0.1
        np.testing.assert_allclose(mixed.total, alone.total, atol=1e-10)
        np.testing.assert_allclose(plain.total, alone.total, atol=1e-10)


@pytest.mark.parametrize(("mode", "block"), BLOCKS)
def test_an_empty_batch_gives_zeros(base_folder: Path, mode: AdapterMode, block: Block) -> None:
    student = make(base_folder, mode)
    for work in (clipped_gradients, clipped_gradients_plain):
        result = work(student, filled(student), block, [], PLAN, clip_norm=1.0)
        assert result.total.shape == (student.spec.size(block),)
        assert not result.total.any()
        assert (result.patients, result.clipped, result.dropped) == (0, 0, 0)


@pytest.mark.parametrize("tokens", [1, 40, 90])
@pytest.mark.parametrize("most", [1, 2])
def test_the_borders_of_micro_batches_and_parts_do_not_matter(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, most: int
) -> None:
    student = make(base_folder, AdapterMode.FFA)
    adapter = filled(student)
    whole, start = clipped_gradients(student, adapter, Block.B, RAGGED, PLAN, clip_norm=1.0), UnitSums.start
    monkeypatch.setattr("client.student.batches.MICRO_BATCH_TOKENS", tokens)
    monkeypatch.setattr("client.student.private.ACCUMULATOR_BYTES", most * 8 * student.spec.size(Block.B))
    held = []
    monkeypatch.setattr(UnitSums, "start", lambda self, n: held.append(n) or start(self, n))
    parts = clipped_gradients(student, adapter, Block.B, RAGGED, PLAN, clip_norm=1.0)
    assert np.abs(parts.total - whole.total).max() < 1e-10
    assert (parts.patients, parts.clipped, parts.dropped) == (whole.patients, whole.clipped, 0)
    # Never more patients' gradients at once, and each patient once.
    assert (max(held), sum(held)) == (most, 5)


def test_the_same_batch_gives_the_same_bytes(base_folder: Path) -> None:
    student = make(base_folder, AdapterMode.ROLORA, torch.float32)
    adapter = filled(student)
    totals = []
    for before in (Block.B, Block.A, Block.B):
        clipped_gradients(student, filled(student, 1), before, RAGGED[:4], PLAN, clip_norm=9.0)
        totals.append(clipped_gradients(student, adapter, Block.A, RAGGED, PLAN, clip_norm=1.0).total)
    assert len({total.tobytes() for total in totals}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_patients_part_is_longer_than_the_clip_norm(base_folder: Path, dtype: torch.dtype) -> None:
    student = make(base_folder, AdapterMode.FFA, dtype)
    adapter = filled(student)
    patients = [note("a", 5), note("b", 9, 3), note("b", 4)]
    for own in (patients[:1], patients[1:]):
        norm = norm_of(clipped_gradients(student, adapter, Block.B, own, PLAN, clip_norm=NO_CLIP))
        bounds = [norm, norm * (1 + 1e-9), norm * (1 - 1e-9), *(norm * 0.93**i for i in range(1, 8))]
        for clip_norm in (*bounds, 1e-12):
            result = clipped_gradients(student, adapter, Block.B, own, PLAN, clip_norm=clip_norm)
            assert clip_norm * (1 - 1e-6) < norm_of(result) <= clip_norm
            assert np.linalg.norm(result.total.astype(np.float32).astype(np.float64)) <= clip_norm
            assert result.clipped == (norm > clip_norm)
            plain = clipped_gradients_plain(student, adapter, Block.B, own, PLAN, clip_norm=clip_norm)
            assert norm_of(plain) <= clip_norm


def test_a_short_gradient_is_left_as_it_is(base_folder: Path) -> None:
    student = make(base_folder, AdapterMode.FFA)
    adapter = filled(student)
    whole = clipped_gradients(student, adapter, Block.B, RAGGED[:1], PLAN, clip_norm=NO_CLIP)
    hardly = clipped_gradients(student, adapter, Block.B, RAGGED[:1], PLAN, clip_norm=norm_of(whole) * 1.001)
    assert (whole.total == hardly.total).all()
    assert hardly.clipped == 0


@pytest.mark.parametrize(("mode", "block"), BLOCKS)
def test_every_tensor_of_the_active_block_moves_and_a_step_lowers_the_loss(
    base_folder: Path, mode: AdapterMode, block: Block
) -> None:
    student = make(base_folder, mode)
    # A has no gradient while B is zero; the others begin where a run begins.
    adapter = filled(student) if block is Block.A else initial_adapter(student.spec, 1)
    before = flatten(adapter, block)

    def loss() -> float:
        with torch.no_grad():
            return float(orpo_losses(student.model, RAGGED, orpo_lambda=0.5, pad_id=0).loss.sum())

    gradient = clipped_gradients(student, adapter, block, RAGGED, PLAN, clip_norm=1.0).total
    assert student.read() == adapter
    first = loss()
    moved = unflatten(adapter, block, before - 0.01 * gradient)
    student.load(moved)
    assert loss() < first
    for module in student.spec.modules:
        for other in Block:
            if student.spec.size(other):
                key = tensor_key(module, other)
                same = np.array_equal(moved.tensors[key], adapter.tensors[key])
                assert same == (other is not block), key


def test_autograd_sums_no_weight_gradient(base_folder: Path) -> None:
    student = make(base_folder, AdapterMode.FFA)
    clipped_gradients(student, filled(student), Block.B, RAGGED, PLAN, clip_norm=1.0)
    assert all(parameter.grad is None for parameter in student.model.parameters())


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_norm_that_bounds_nothing_is_refused(base_folder: Path, clip_norm: float) -> None:
    student = make(base_folder, AdapterMode.FFA)
    for work in (clipped_gradients, clipped_gradients_plain):
        with pytest.raises(ValueError, match="Expected clip_norm > 0 and finite"):
            work(student, filled(student), Block.B, RAGGED, PLAN, clip_norm=clip_norm)


def test_a_block_that_the_mode_does_not_have_is_refused(base_folder: Path) -> None:
    student = make(base_folder, AdapterMode.ROLORA)
    with pytest.raises(ValueError, match="Expected a block of the mode rolora, got core"):
        clipped_gradients(student, filled(student), Block.CORE, RAGGED, PLAN, clip_norm=1.0)


class Coupled(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**settings)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.LayerNorm(2))

    def append(self, module: nn.Module) -> "Coupled":
        self.inner.append(module)
        return self


def rotary(rope_type: Any) -> nn.Module:
    module = nn.Identity()
    module.rope_type = rope_type
    return module


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Coupled().append(nn.BatchNorm1d(2)), r"batch statistics at inner\.3"),
        (Coupled().append(nn.BatchNorm1d(2, track_running_stats=False).eval()), r"statistics at inner\.3"),
        (Coupled(output_router_logits=True), "router loss, .* output_router_logits True"),
        (Coupled(router_aux_loss_coef=0.001), "router loss, .* router_aux_loss_coef 0.001"),
        (Coupled(text_config=SimpleNamespace(output_router_logits=True)), "got output_router_logits True"),
        (Coupled().append(rotary("dynamic")), r"rope_type dynamic at inner\.3"),
        (Coupled().append(rotary({"full": "default", "far": "longrope"})), r"rope_type longrope at inner\.3"),
    ],
)
def test_what_couples_patients_is_refused_by_name(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, model: Coupled, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        require_separable(model)
    student = make(base_folder, AdapterMode.FFA)
    adapter = filled(student)
    monkeypatch.setattr(student.model, "named_modules", model.named_modules)
    monkeypatch.setattr(student.model, "config", model.config)
    for work in (clipped_gradients, clipped_gradients_plain):
        with pytest.raises(ValueError, match=what):
            work(student, adapter, Block.B, RAGGED, PLAN, clip_norm=1.0)


def test_what_does_not_couple_patients_is_accepted(base_folder: Path) -> None:
    require_separable(Coupled().append(nn.BatchNorm1d(2).eval()).append(rotary("yarn")))
    require_separable(Coupled(output_router_logits=False, router_aux_loss_coef=0.0).train())
    require_separable(make(base_folder, AdapterMode.FFA).model)
