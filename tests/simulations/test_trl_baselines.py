import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.student.branches import PatientPairs
from client.student.dpo import dpo_losses, with_reference
from client.student.fit import LocalUpdate, alone_factors, fit_alone
from client.student.model import Student, adapter_spec, load_base, make_student
from common.adapter import Adapter, AdapterMode, Block, flatten, initial_adapter
from common.errors import SettingsError
from common.learning_plan import AdapterPlan, TrainingPlan
from simulations.trl_baselines import fit_dpo, fit_sft
from tests.client.student import conftest as students
from tests.client.student.tiny_vision import NAMES, TILES, entry

base_folder, image_folder, sighted = students.base_folder, students.image_folder, students.sighted

PLAN = TrainingPlan(
    rounds=2, local_steps=3, patients_per_step=2, learning_rate=1e-2, max_prompt_tokens=64, orpo_lambda=0.0
)
PREFERRING = replace(PLAN, loss="dpo", orpo_lambda=0.1, dpo_beta=0.5)
PATIENTS = [
    PatientPairs(
        patient_id=f"p{n}",
        prompt=(1, *range(40, 44 + n)),
        branches=((50 + n, 60 + n, 2), (70 + n, 80 + n, 2)),
        pairs=((0, 1),),
    )
    for n in range(5)
]
IMITATED = [replace(one, pairs=((0, None),)) for one in PATIENTS]


def student_of(base_folder: Path, mode: AdapterMode = AdapterMode.FFA) -> Student:
    base, tokenizer = load_base(str(base_folder))
    plan = AdapterPlan(mode=mode, rank=4, alpha=8.0, targets=("q_proj", "down_proj"), factors_digest="0" * 64)
    return make_student(base, tokenizer, adapter_spec(base, plan))


def moved(adapter: Adapter) -> Adapter:
    """An adapter that changes what the base says."""
    rng = np.random.default_rng(3)
    tensors = {key: value + 0.1 * rng.normal(size=value.shape) for key, value in adapter.tensors.items()}
    return replace(adapter, tensors={key: value.astype(np.float32) for key, value in tensors.items()})


def by(
    fit: Callable[..., LocalUpdate],
    student: Student,
    adapter: Adapter,
    own: list[PatientPairs],
    **changes: Any,
) -> LocalUpdate:
    plan = changes.pop("plan", PLAN)
    how: dict[str, Any] = {"patients_per_step": 2, "learning_rate": 1e-2, "seed": 4} | changes
    return fit(student, adapter, own, plan, **how)


@pytest.mark.parametrize("mode", AdapterMode)
def test_sft_by_trl_takes_the_steps_that_ours_takes(base_folder: Path, mode: AdapterMode) -> None:
    student = student_of(base_folder, mode)
    start = moved(initial_adapter(student.spec, 0))
    # Answers of one length: TRL's mean over tokens is then ours over patients.
    theirs, ours = (by(fit, student, start, IMITATED) for fit in (fit_sft, fit_alone))
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-5)
    assert (theirs.steps, theirs.patients, theirs.pairs) == (ours.steps, ours.patients, ours.pairs)
    for key, value in ours.adapter.tensors.items():
        assert np.abs(theirs.adapter.tensors[key] - value).max() < 1e-4, key


@pytest.mark.parametrize("mode", AdapterMode)
def test_dpo_by_trl_takes_the_steps_that_ours_takes(base_folder: Path, mode: AdapterMode) -> None:
    student = student_of(base_folder, mode)
    start = moved(initial_adapter(student.spec, 0))
    theirs = by(fit_dpo, student, start, PATIENTS, plan=PREFERRING)
    ours = by(fit_alone, student, start, with_reference(student, PATIENTS), plan=PREFERRING)
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-5)
    assert theirs.preferred == pytest.approx(ours.preferred)
    assert abs(theirs.loss - math.log(2)) > 0.1
    for key, value in ours.adapter.tensors.items():
        assert np.abs(theirs.adapter.tensors[key] - value).max() < 1e-4, key


def test_trls_gradient_of_a_step_is_ours(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(base_folder)
    start = moved(initial_adapter(student.spec, 0))
    # Plain steps: how far they lead is the gradient itself, which AdamW would rescale.
    monkeypatch.setattr(
        "simulations.trl_baselines.adamw", lambda factors, lr: torch.optim.SGD(factors, lr=lr)
    )
    monkeypatch.setattr("simulations.trl_baselines.GRADIENT_CLIP", 1e9)
    plan, referred = replace(PREFERRING, rounds=1, local_steps=1), with_reference(student, PATIENTS)
    update = by(fit_dpo, student, start, PATIENTS, plan=plan, patients_per_step=5, learning_rate=1.0)
    theirs = flatten(start, Block.B) - flatten(update.adapter, Block.B)
    factors = alone_factors(student, start)
    losses = dpo_losses(student.model, referred, dpo_beta=0.5, pad_id=student.pad_id).loss
    assert update.loss == pytest.approx(losses.mean().item(), abs=1e-5)
    gradients = torch.autograd.grad(losses.mean(), factors)
    ours = torch.cat([gradient.flatten() for gradient in gradients]).numpy()
    assert np.abs(ours).max() > 0.01
    assert np.abs(theirs - ours).max() < 1e-5


def test_dpo_starts_at_log_2_where_the_adapter_changes_nothing(base_folder: Path) -> None:
    student = student_of(base_folder)
    start = initial_adapter(student.spec, 0)
    first = replace(PREFERRING, rounds=1, local_steps=1)
    assert by(fit_dpo, student, start, PATIENTS, plan=first).loss == pytest.approx(math.log(2), abs=1e-6)
    # The reference is the base, also where training starts from an adapter that says something else.
    changed = by(fit_dpo, student, moved(start), PATIENTS, plan=first)
    assert abs(changed.loss - math.log(2)) > 0.1


@pytest.mark.parametrize(("fit", "plan"), [(fit_sft, PLAN), (fit_dpo, PREFERRING)])
def test_some_steps_lower_the_loss_and_move_the_active_block_alone(
    base_folder: Path, fit: Callable[..., LocalUpdate], plan: TrainingPlan
) -> None:
    student = student_of(base_folder)
    start = initial_adapter(student.spec, 0)
    before = {name: value.clone() for name, value in student.model.state_dict().items() if "lora" not in name}
    told: list[int] = []
    long = replace(plan, rounds=10)
    update = by(fit, student, start, PATIENTS, plan=long, on_progress=told.append, patients_per_step=5)
    once = replace(plan, rounds=1, local_steps=1)
    after = by(fit, student, update.adapter, PATIENTS, plan=once, patients_per_step=5)
    assert after.loss < update.loss * 0.9
    assert told == [1] * 30
    assert (flatten(update.adapter, Block.A) == flatten(start, Block.A)).all()
    assert (flatten(update.adapter, Block.B) != flatten(start, Block.B)).any()
    assert all((student.model.state_dict()[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize("fit", [fit_sft, fit_dpo])
def test_a_training_leaves_the_students_model_lots_and_screen_as_they_were(
    base_folder: Path, fit: Callable[..., LocalUpdate], capfd: pytest.CaptureFixture[str]
) -> None:
    student = student_of(base_folder)
    base = student.model.get_base_model()
    capfd.readouterr()
    before, state = dict(vars(base)), torch.random.get_rng_state()
    config = base.config.to_dict()
    update = by(fit, student, initial_adapter(student.spec, 0), PATIENTS)
    assert vars(base).keys() == before.keys()
    assert base.config.to_dict() == config
    assert list(student.model.peft_config) == ["default"]
    assert not student.model.training
    assert (torch.random.get_rng_state() == state).all()
    assert student.read() == update.adapter
    assert capfd.readouterr() == ("", "")


def test_trls_mean_goes_over_tokens_and_ours_over_patients(base_folder: Path) -> None:
    student = student_of(base_folder)
    start, once = initial_adapter(student.spec, 0), replace(PLAN, rounds=1, local_steps=1)
    short, long = IMITATED[0], replace(IMITATED[1], branches=((*range(50, 60), 2),))
    alone = [by(fit_alone, student, start, [one], plan=once).loss for one in (short, long)]
    together = by(fit_sft, student, start, [short, long], plan=once).loss
    assert together == pytest.approx((3 * alone[0] + 11 * alone[1]) / 14, abs=1e-5)
    assert together != pytest.approx(np.mean(alone), abs=1e-3)


def test_a_step_reads_the_prompts_that_ours_reads(base_folder: Path) -> None:
    student = student_of(base_folder)
    start = initial_adapter(student.spec, 0)
    plan = replace(PLAN, readings=2)
    read = [replace(one, prompt=(*one.prompt, 90 + n)) for one in IMITATED for n in range(2)]
    theirs, ours = (by(fit, student, start, read, plan=plan) for fit in (fit_sft, fit_alone))
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-5)
    assert (theirs.patients, theirs.pairs) == (ours.patients, ours.pairs) == (12, 12)


def test_a_pair_without_a_rejected_answer_is_refused(base_folder: Path) -> None:
    student = student_of(base_folder)
    with pytest.raises(ValueError, match="Expected a rejected answer in every pair"):
        by(fit_dpo, student, initial_adapter(student.spec, 0), IMITATED, plan=PREFERRING)


@pytest.mark.parametrize("fit", [fit_sft, fit_dpo])
def test_without_trl_one_line_says_what_to_install(
    base_folder: Path, fit: Callable[..., LocalUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    student = student_of(base_folder)
    with pytest.raises(SettingsError, match="trl: expected the extra `simulation` to be installed"):
        by(fit, student, initial_adapter(student.spec, 0), PATIENTS)


@pytest.mark.parametrize(("fit", "plan"), [(fit_sft, PLAN), (fit_dpo, PREFERRING)])
def test_an_image_student_is_trained_by_trl_on_what_it_sees(
    sighted: Student, fit: Callable[..., LocalUpdate], plan: TrainingPlan
) -> None:
    entries = [
        replace(entry(sighted, f"p{n}", image, NAMES[:2], extra=extra), branches=((50, 51, 2), (60, 61, 2)))
        for n, (image, extra) in enumerate(zip(TILES[:2], ("", "of a man: "), strict=True))
    ]
    start = moved(initial_adapter(sighted.spec, 0))
    theirs = by(fit, sighted, start, entries, plan=plan)
    if fit is fit_sft:
        entries = [replace(one, pairs=((0, None),)) for one in entries]
    else:
        entries = with_reference(sighted, entries)
    ours = by(fit_alone, sighted, start, entries, plan=plan)
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-4)


@pytest.mark.parametrize("image_folder", ["idefics3"], indirect=True)
def test_tiles_that_one_batch_cannot_hold_are_refused(sighted: Student) -> None:
    entries = [entry(sighted, f"p{n}", image, NAMES[:2]) for n, image in enumerate(TILES[1:3])]
    with pytest.raises(ValueError, match="Expected the tiles of a step in one shape, got 2"):
        by(fit_sft, sighted, initial_adapter(sighted.spec, 0), entries)
