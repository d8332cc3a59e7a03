"""Fine-tuning as it is done elsewhere: TRL's own trainers on a student's pairs.

Tokens, factors, optimizer, rate and schedule are those of ``client.student.fit.fit_alone``, and so are the
patients of every step; loss and loop are TRL's. The two means over a step differ where patients do: TRL's
goes over the tokens of all chosen answers (SFT) or over all pairs (DPO), ours over patients.

TRL writes into the model that it trains: it changes its forward, its settings and its mode. So it gets a copy
that has nothing in common with the student but the frozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from client.student.batches import draw_batches
from client.student.branches import IGNORED, PatientPairs
from client.student.fit import GRADIENT_CLIP, LocalUpdate, adamw, alone_factors
from client.student.model import Student
from common.adapter import Adapter
from common.errors import SettingsError
from common.learning_plan import TrainingPlan
from common.schedule import rate_factor

Row = dict[str, Any]
"""One answer, or one pair, with its prompt."""
Batch = list[list[PatientPairs]]
"""The entries of each patient of a step."""
Collate = Callable[[list[Row]], dict[str, Tensor]]


def fit_sft(
    student: Student,
    adapter: Adapter,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    patients_per_step: int,
    learning_rate: float,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> LocalUpdate:
    """Supervised fine-tuning on the chosen answers, by TRL's ``SFTTrainer``.

    Guarantee: the student is left as ``fit_alone`` leaves it, and nothing is written to the disk.

    Args:
        student: Of the adapter's specification; its adapter values are overwritten.
        adapter: Where training starts.
        patients: A site's pairs as tokens; rejected answers are not looked at.
        plan: Rounds and local steps, of which it takes as many, and the entries of a patient a step.
        patients_per_step: As of ``fit_alone``.
        learning_rate: The highest one of a cosine schedule.
        seed: Of the order of patients.
        on_progress: Called after each step.

    Raises:
        SettingsError: TRL is not installed.
        ValueError: A step's tiles have several shapes.
    """
    trl, unread = _library()

    def make(own: Student, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
        config = trl.SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        return trl.SFTTrainer(model=own.model, args=config, train_dataset=unread, **parts)

    collate = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=student.pad_id)
    batches = _batches(patients, plan, patients_per_step, seed)
    steps = [_rows(batch, _imitated) for batch in batches]
    trainer, adapter = _train(make, collate, steps, student, adapter, learning_rate, seed, on_progress)
    return _update(trainer, adapter, batches)


def fit_dpo(
    student: Student,
    adapter: Adapter,
    patients: Sequence[PatientPairs],
    plan: TrainingPlan,
    *,
    patients_per_step: int,
    learning_rate: float,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> LocalUpdate:
    """Direct preference optimization by TRL's ``DPOTrainer``, from the adapter that is given.

    The reference is the base without an adapter, as in ``client.student.dpo``, and β is the plan's. Arguments
    and guarantee are those of ``fit_sft``.

    Raises:
        SettingsError: TRL is not installed.
        ValueError: A pair has no rejected answer, or a step's tiles have several shapes.
    """
    trl, unread = _library()

    def make(own: Student, settings: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
        config = trl.DPOConfig(beta=plan.dpo_beta, **settings)
        # Without a reference of ours TRL would take the adapter that is given, not the base.
        reference = _copy(student.model)
        reference.base_model.disable_adapter_layers()
        return trl.DPOTrainer(
            model=own.model,
            ref_model=reference.get_base_model(),
            args=config,
            # A stream: a table would show bars of progress for its one row.
            train_dataset=unread.to_iterable_dataset(),
            **parts,
        )

    collate = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=student.pad_id)
    batches = _batches(patients, plan, patients_per_step, seed)
    steps = [_rows(batch, _preferred) for batch in batches]
    trainer, adapter = _train(make, collate, steps, student, adapter, learning_rate, seed, on_progress)
    return _update(trainer, adapter, batches)


def _library() -> tuple[Any, Any]:
    """TRL, and a table that a trainer accepts: it makes tokens of texts, and ours are tokens already."""
    try:
        import trl
        from datasets import Dataset
    except ModuleNotFoundError:
        raise SettingsError("trl", "no such package", "the extra `simulation` to be installed") from None
    return trl, Dataset.from_list([{"prompt": "-", "chosen": "-", "rejected": "-"}])


def _batches(patients: Sequence[PatientPairs], plan: TrainingPlan, size: int, seed: int) -> list[Batch]:
    """The patients of each step, as ``fit_alone`` draws them."""
    drawn = draw_batches(patients, size, seed=seed, first_step=0, images=plan.entries_per_step)
    return list(islice(drawn, plan.rounds * plan.local_steps))


def _rows(batch: Batch, rows_of: Callable[[PatientPairs], list[Row]]) -> list[Row]:
    return [row for own in batch for entry in own for row in rows_of(entry)]


def _train(
    make: Callable[[Student, Mapping[str, Any], Mapping[str, Any]], Any],
    collate: Collate,
    steps: list[list[Row]],
    student: Student,
    adapter: Adapter,
    learning_rate: float,
    seed: int,
    on_progress: Callable[[int], None] | None,
) -> tuple[Any, Adapter]:
    """Train a copy of the student, and let the student have what it learned: (trainer, adapter)."""
    # The copy is made of the factors as they are now, and of what may be trained of them.
    alone_factors(student, adapter)
    own = replace(student, model=_copy(student.model))
    parts = _parts(own, collate, learning_rate, len(steps), on_progress)
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        trainer = make(own, _settings(own, folder, len(steps), seed), parts)
        trainer.remove_callback(PrinterCallback)
        trainer.train_dataset = steps
        trainer.train()
    student.load(own.read())
    return trainer, student.read()


def _settings(own: Student, folder: str, steps: int, seed: int) -> dict[str, Any]:
    """Of the trainer: TRL's defaults are those of large models on several GPUs, with a report to a server."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        # A step's answers are one item: how many there are differs from step to step.
        "per_device_train_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "max_grad_norm": GRADIENT_CLIP,
        "max_length": None,
        "seed": seed % 2**32,
        "use_cpu": own.model.device.type == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _parts(
    own: Student,
    collate: Collate,
    learning_rate: float,
    steps: int,
    on_progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """What the trainer is made of besides model, settings and table."""
    optimizer = adamw([p for p in own.model.parameters() if p.requires_grad], learning_rate)

    def factor(done: int) -> float:
        # It is asked once more after the last step.
        return rate_factor("cosine", min(done, steps - 1), steps)

    return {
        "data_collator": lambda items: _with_images(collate(items[0]), items[0], own),
        "processing_class": deepcopy(own.tokenizer),
        "optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)),
        "callbacks": [_Progress(on_progress)] if on_progress is not None else [],
    }


def _update(trainer: Any, adapter: Adapter, batches: Sequence[Batch]) -> LocalUpdate:
    told = [line for line in trainer.state.log_history if "loss" in line]
    return LocalUpdate(
        adapter=adapter,
        patients=sum(map(len, batches)),
        pairs=sum(len(entry.pairs) for batch in batches for own in batch for entry in own),
        steps=len(batches),
        loss=float(np.mean([line["loss"] for line in told])),
        # SFT knows no rejected answer to prefer another to.
        preferred=float(np.mean([line.get("rewards/accuracies", 0.0) for line in told])),
    )


class _Progress(TrainerCallback):
    """Tells of every step."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        self._on_progress = on_progress

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self._on_progress(1)


def _copy(model: PeftModel) -> PeftModel:
    """The same model with factors of its own, on the same frozen weights."""
    frozen = {id(value): value for name, value in model.named_parameters() if ".lora_" not in name}
    return deepcopy(model, frozen)


def _imitated(entry: PatientPairs) -> list[Row]:
    """Each chosen answer once, as TRL's SFT reads it."""
    prompt = list(entry.prompt)
    answers = [list(entry.branches[chosen]) for chosen in dict.fromkeys(chosen for chosen, _ in entry.pairs)]
    return [
        {
            "input_ids": prompt + answer,
            "labels": [IGNORED] * len(prompt) + answer,
            "image": entry.image,
        }
        for answer in answers
    ]


def _preferred(entry: PatientPairs) -> list[Row]:
    """Each pair, as TRL's DPO reads it."""
    rows = []
    for chosen, rejected in entry.pairs:
        if rejected is None:
            raise ValueError("Expected a rejected answer in every pair, got none in one")
        rows.append(
            {
                "prompt_ids": list(entry.prompt),
                "chosen_ids": list(entry.branches[chosen]),
                "rejected_ids": list(entry.branches[rejected]),
                "image": entry.image,
            }
        )
    return rows


def _with_images(batch: dict[str, Tensor], rows: Sequence[Row], student: Student) -> dict[str, Tensor]:
    """The batch with what an image student's model gets of the images."""
    if student.vision is None:
        return batch
    shapes = len({student.vision.shapes(row["image"]) for row in rows})
    if shapes > 1:
        raise ValueError(f"Expected the tiles of a step in one shape, got {shapes}")
    # DPO has the chosen answers of all rows first, then the rejected ones.
    images = [row["image"] for row in rows] * (len(batch["input_ids"]) // len(rows))
    return batch | student.vision.plain_inputs(images, batch["input_ids"])
