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
from datasets import Dataset
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
UNREAD = [{"prompt": "-", "chosen": "-", "rejected": "-"}]
"""TRL's trainers make tokens of texts when they are set up; ours are tokens, and come afterwards."""


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
    trl = _library()

    def make(settings: Mapping[str, Any], parts: Mapping[str, Any], own: Student) -> Any:
        config = trl.SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, **settings)
        return trl.SFTTrainer(model=own.model, args=config, train_dataset=Dataset.from_list(UNREAD), **parts)

    collate = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=student.pad_id)
    course = _Course(student, adapter, patients, plan, patients_per_step, learning_rate, seed)
    return course.fit(make, _imitated, collate, on_progress)


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
    trl = _library()

    def make(settings: Mapping[str, Any], parts: Mapping[str, Any], own: Student) -> Any:
        config = trl.DPOConfig(beta=plan.dpo_beta, **settings)
        # Without a reference of ours TRL would take the adapter that is given, not the base.
        reference = _copy(student.model)
        reference.base_model.disable_adapter_layers()
        # A stream, since a table would show bars of progress for its one row.
        unread = Dataset.from_list(UNREAD).to_iterable_dataset()
        return trl.DPOTrainer(
            model=own.model, ref_model=reference.get_base_model(), args=config, train_dataset=unread, **parts
        )

    collate = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=student.pad_id)
    course = _Course(student, adapter, patients, plan, patients_per_step, learning_rate, seed)
    return course.fit(make, _preferred, collate, on_progress)


def _library() -> Any:
    try:
        import trl
    except ModuleNotFoundError:
        raise SettingsError("trl", "no such package", "the extra `simulation` to be installed") from None
    return trl


class _Course:
    """One training by one of TRL's trainers."""

    def __init__(
        self,
        student: Student,
        adapter: Adapter,
        patients: Sequence[PatientPairs],
        plan: TrainingPlan,
        patients_per_step: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        self._student, self._learning_rate, self._seed = student, learning_rate, seed
        drawn = draw_batches(
            patients, patients_per_step, seed=seed, first_step=0, images=plan.entries_per_step
        )
        self._batches = list(islice(drawn, plan.rounds * plan.local_steps))
        # TRL's copy is made of the factors as they are now, and of what may be trained of them.
        alone_factors(student, adapter)

    def fit(
        self,
        make: Callable[[Mapping[str, Any], Mapping[str, Any], Student], Any],
        rows_of: Callable[[PatientPairs], list[Row]],
        collate: Callable[[list[Row]], dict[str, Tensor]],
        on_progress: Callable[[int], None] | None,
    ) -> LocalUpdate:
        """Train a copy of the student; the student gets what it learned."""
        own = replace(self._student, model=_copy(self._student.model))
        steps = [[row for mine in batch for one in mine for row in rows_of(one)] for batch in self._batches]
        with TemporaryDirectory() as folder, torch.random.fork_rng():
            trainer = make(self._settings(folder), self._parts(own, collate, on_progress), own)
            trainer.remove_callback(PrinterCallback)
            trainer.train_dataset = steps
            trained = trainer.train()
        self._student.load(own.read())
        # SFT knows no rejected answer to prefer another to.
        preferred = [one.get("rewards/accuracies", 0.0) for one in trainer.state.log_history if "loss" in one]
        return LocalUpdate(
            adapter=self._student.read(),
            patients=sum(map(len, self._batches)),
            pairs=sum(len(one.pairs) for batch in self._batches for mine in batch for one in mine),
            steps=len(steps),
            loss=trained.training_loss,
            preferred=float(np.mean(preferred)),
        )

    def _settings(self, folder: str) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "max_steps": len(self._batches),
            # A step's answers are one item: how many there are differs from step to step.
            "per_device_train_batch_size": 1,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "max_grad_norm": GRADIENT_CLIP,
            "max_length": None,
            "seed": self._seed % 2**32,
            "use_cpu": self._student.model.device.type == "cpu",
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
        self,
        own: Student,
        collate: Callable[[list[Row]], dict[str, Tensor]],
        on_progress: Callable[[int], None] | None,
    ) -> dict[str, Any]:
        factors = [parameter for parameter in own.model.parameters() if parameter.requires_grad]
        optimizer, total = adamw(factors, self._learning_rate), len(self._batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            # It is asked once more after the last step.
            optimizer, lambda step: rate_factor("cosine", min(step, total - 1), total)
        )  # fmt: skip
        return {
            "data_collator": lambda items: _with_images(collate(items[0]), items[0], own),
            "processing_class": deepcopy(own.tokenizer),
            "optimizers": (optimizer, schedule),
            "callbacks": [_Progress(on_progress)] if on_progress is not None else [],
        }


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
