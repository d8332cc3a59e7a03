"""One ORPO step: the prompt read once for all answers of a patient, beside TRL's ORPOTrainer.

TRL runs the prompt once with the chosen answer and once with the rejected one and computes the vocabulary's
logits in every column. Both peers here compute TRL's loss (``nll_on: sequence``); ``answer_only`` is the loss
that the scenarios use, whose likelihood looks at the chosen answer alone. Tokens are those of the plain form:
prompt and answer of every pair, both answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from client.student.batches import micro_batches
from client.student.branches import IGNORED, PatientPairs, plain_log_probs
from client.student.model import Student, adapter_spec, make_student
from client.student.orpo import log_odds_ratio, orpo_losses
from common.adapter import AdapterMode, Block
from common.learning_plan import AdapterPlan
from simulations.benchmarks._measure import in_turns, parser, peak_bytes, positive, report, with_model
from simulations.tiny_base import BEGIN, END, PAD

LAMBDA = 0.1
PAD_ID, BEGIN_ID, END_ID = 0, 1, 2
NllOn = Literal["answer", "sequence"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = with_model(parser("orpo_step", __doc__))
    options.add_argument("--patients", type=positive, default=16, help="of the batch; default %(default)s")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    student = make_llama_student(chosen.vocabulary, chosen.width, chosen.layers)
    patients = draw_patients(chosen.patients, chosen.prompt, chosen.vocabulary)
    values = measure(student, patients, chosen.repeats)
    report(f"ORPO step, {chosen.patients} patients", values, as_json=chosen.json)


def measure(student: Student, patients: Sequence[PatientPairs], repeats: int) -> dict[str, float | int]:
    """All figures of the benchmark."""
    factors = student.train_block(Block.B)
    trl = TrlStep(student, patients)
    peers = {
        "ours": lambda: our_step(student, patients, "sequence"),
        "answer_only": lambda: our_step(student, patients, "answer"),
        "trl": trl.step,
    }
    seconds = in_turns(peers, repeats)
    memory = {name: peak_bytes(work) for name, work in peers.items()}
    tokens = plain_tokens(patients)
    loss, gradients = differences(student, factors, patients)
    return {
        "patients": len(patients),
        "tokens": tokens,
        **{f"{name}_tokens_per_s": tokens / taken for name, taken in seconds.items()},
        "ratio_to_trl": seconds["trl"] / seconds["ours"],
        "answer_only_ratio_to_trl": seconds["trl"] / seconds["answer_only"],
        **{f"{name}_peak_bytes": held for name, held in memory.items()},
        "peak_ratio_to_trl": memory["ours"] / memory["trl"],
        "max_abs_diff_loss": loss,
        "max_abs_diff_gradients": gradients,
    }


def make_llama_student(vocabulary: int, width: int, layers: int) -> Student:
    """A Llama with random weights and an adapter as the scenarios use it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        attn_implementation="sdpa",
    )
    base = LlamaForCausalLM(config)
    base.requires_grad_(requires_grad=False)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    plan = AdapterPlan(mode=AdapterMode.FFA, rank=32, alpha=64.0, targets=targets, factors_digest="0" * 64)
    student = make_student(base, _word_tokenizer(), adapter_spec(base, plan))
    # B starts at zero and would hide an error in A's part of the product.
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)
    return student


def _word_tokenizer() -> PreTrainedTokenizerFast:
    words = {PAD: PAD_ID, BEGIN: BEGIN_ID, END: END_ID, "a": 3, "b": 4}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token=PAD)),
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
    )


def draw_patients(count: int, prompt: int, vocabulary: int) -> list[PatientPairs]:
    """Patients with one pair each; prompts vary by half around their mean, as notes do."""
    rng = np.random.default_rng(0)

    def words(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(5, vocabulary, size=length).tolist())

    drawn = []
    for number in range(count):
        length = int(rng.integers(max(1, prompt // 2), prompt * 3 // 2 + 1))
        branches = tuple((*words(int(rng.integers(2, 7))), END_ID) for _ in range(2))
        drawn.append(
            PatientPairs(
                patient_id=str(number), prompt=(BEGIN_ID, *words(length)), branches=branches, pairs=((0, 1),)
            )
        )
    return drawn


def plain_tokens(patients: Sequence[PatientPairs]) -> int:
    """Tokens of prompt and answer over both answers of every pair."""
    return sum(
        len(one.prompt) + len(one.branches[branch])
        for one in patients
        for pair in one.pairs
        for branch in pair
        if branch is not None
    )


def our_step(student: Student, patients: Sequence[PatientPairs], nll_on: NllOn) -> None:
    """Loss and gradients of a batch, in the parts that training takes."""
    student.model.zero_grad()
    for part in micro_batches(patients):
        losses = orpo_losses(student.model, part, orpo_lambda=LAMBDA, pad_id=student.pad_id, nll_on=nll_on)
        (losses.loss.sum() / len(patients)).backward()


class TrlStep:
    """The same batch through TRL's own trainer object."""

    def __init__(self, student: Student, patients: Sequence[PatientPairs]) -> None:
        """Make the trainer; its collator pads the batch as in training."""
        self._model = student.model
        with tempfile.TemporaryDirectory() as folder:
            self._trainer = ORPOTrainer(
                model=student.model,
                args=ORPOConfig(
                    output_dir=folder,
                    beta=LAMBDA,
                    report_to=[],
                    use_cpu=True,
                    disable_tqdm=True,
                    remove_unused_columns=False,
                ),
                train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["a"]}),
                processing_class=student.tokenizer,
            )
        self._batch = self._trainer.data_collator([_trl_row(one) for one in patients])

    def step(self) -> None:
        """Loss and gradients of the whole batch."""
        self._model.zero_grad()
        loss, _ = self._trainer.get_batch_loss_metrics(self._model, self._batch)
        loss.backward()


def _trl_row(patient: PatientPairs) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_input_ids": list(patient.prompt)}
    row["prompt_attention_mask"] = [1] * len(patient.prompt)
    for side, branch in zip(("chosen", "rejected"), patient.branches, strict=True):
        ids = [*patient.prompt, *branch]
        row[f"{side}_input_ids"] = ids
        row[f"{side}_attention_mask"] = [1] * len(ids)
        row[f"{side}_labels"] = [IGNORED] * len(patient.prompt) + list(branch)
    return row


def differences(
    student: Student, factors: Sequence[Tensor], patients: Sequence[PatientPairs]
) -> tuple[float, float]:
    """Largest difference of (losses, gradients) between our step and one forward pass an answer, fp32."""
    ours = orpo_losses(
        student.model, patients, orpo_lambda=LAMBDA, pad_id=student.pad_id, nll_on="sequence"
    ).loss
    plain = torch.stack([_plain_loss(student, patient) for patient in patients])
    of_ours = torch.autograd.grad(ours.mean(), factors)
    of_plain = torch.autograd.grad(plain.mean(), factors)
    gaps = [float((a - b).abs().max()) for a, b in zip(of_ours, of_plain, strict=True)]
    return float((ours - plain).detach().abs().max()), max(gaps)


def _plain_loss(student: Student, patient: PatientPairs) -> Tensor:
    chosen, rejected = (plain_log_probs(student.model, patient.prompt, one) for one in patient.branches)
    prompt = plain_log_probs(student.model, patient.prompt[:1], patient.prompt[1:])
    odds = log_odds_ratio(chosen.mean(), rejected.mean())
    return -torch.cat([prompt, chosen]).mean() - LAMBDA * torch.nn.functional.logsigmoid(odds)


if __name__ == "__main__":
    main()
