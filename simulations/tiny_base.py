"""Tiny base models pretrained on public text: a stand-in for a foundation model on a machine of two cores.

A small model of the real Llama architecture and a tokenizer, saved as an ordinary Hugging Face folder: any
other folder can be put in its place by one setting. They are deterministic in text, recipe and seed, cached
under a name that is their digest, and never see a patient.

The tokenizer's units are phrases: merges cross the spaces of a finding or a disease name, so that a note of
twenty findings is some forty tokens instead of two hundred. On a CPU that is the difference between an
evening and minutes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from client.preferences.answers import INSTRUCTIONS, write_answers, write_prompt
from client.student.branches import PatientPairs
from client.student.orpo import orpo_losses
from common.canonical import canonical_json, plain
from common.schedule import rate_factor
from common.tracks import RARE_DISEASE
from simulations.public_text import PublicNotes, PublicText

CODE_VERSION = 1
"""Part of every cached folder's digest: raised whenever this file would make another model."""
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
HEADER = write_answers(RARE_DISEASE.header, ["X"]).removesuffix("X")
LONGEST_PROMPT = 160
LONGEST_SENTENCE = 64
BATCHES_AHEAD = 16


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """How a tiny base is built.

    Attributes:
        vocabulary: Entries of the tokenizer.
        width, layers, heads: Of the Llama.
        steps, batch, learning_rate: Of the pretraining; the rate warms up, then falls as a cosine.
        sentence_share: Share of batches that are plain sentences; the others are drawn notes with the name
            of the disease as answer.
    """

    vocabulary: int = 8000
    width: int = 256
    layers: int = 2
    heads: int = 4
    steps: int = 1500
    batch: int = 64
    learning_rate: float = 2e-3
    sentence_share: float = 0.08


def tiny_base(
    cache: Path,
    text: PublicText,
    recipe: BaseRecipe,
    seed: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """The folder of a tiny base: made now, or found in ``cache`` where it was made before."""
    folder = cache / f"tiny-base-{_digest(text, recipe, seed)[:20]}"
    if (folder / "config.json").exists():
        return folder
    tokenizer = build_tokenizer(text, recipe.vocabulary)
    model = pretrain(text, tokenizer, recipe, seed, on_progress=on_progress)
    cache.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole: a run that is cut off leaves no half model behind.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        if not folder.exists():
            shutil.move(made, folder)
    return folder


def _digest(text: PublicText, recipe: BaseRecipe, seed: int) -> str:
    # The same recipe gives other last digits under another version of torch.
    parts = [CODE_VERSION, plain(recipe), text.digest(), seed, torch.__version__]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def build_tokenizer(text: PublicText, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose words are whole phrases."""
    tokenizer = Tokenizer(models.BPE())
    # In a list of findings the last "and" and the words before the first one count as commas, so that a
    # finding is the same tokens wherever it stands. Only inside a sentence that ends with a full stop: answer
    # names are never touched.
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r" and (?=[^,.:\n]*\.)"), ", "),
            normalizers.Replace(Regex(r"(?<=presented with) |(?<=not found:) "), ", "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\. |\.$|\n"), "isolated"),
            pre_tokenizers.Split(Regex(r", "), "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=64,
    )
    tokenizer.train_from_iterator(_tokenizer_text(text), trainer)
    # Fixed text that stands in every prompt and every answer: one token each.
    fixed = [f"\n{INSTRUCTIONS[RARE_DISEASE.name]}\n", HEADER]
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in fixed])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    return fast


def _tokenizer_text(text: PublicText) -> Iterator[str]:
    """Phrases, each as often as it should weigh."""
    for identifier, label in sorted(text.labels.items()):
        inside = label[0].lower() + label[1:] if label[1:2].islower() else label
        for _ in range(min(60, 5 + text.mentions[identifier])):
            yield f", {inside}"
        yield inside
    others = {disease.name for disease in text.diseases if not disease.planned}
    for name in text.names:
        for _ in range(2 if name in others else 20):
            yield name
    # A tenth of the sentences: enough for the words between, without pushing rarer findings out.
    yield from text.sentences[::10]
    notes = PublicNotes(text, np.random.default_rng(0))
    for _ in range(2000):
        yield notes.draw()[0]


def pretrain(
    text: PublicText,
    tokenizer: PreTrainedTokenizerFast,
    recipe: BaseRecipe,
    seed: int,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> LlamaForCausalLM:
    """A Llama pretrained for ``recipe.steps`` steps; the same bytes for the same arguments on one machine."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=round(recipe.width * 8 / 3 / 16) * 16,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # Drawn from a generator of its own, without touching the one that the process shares.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    batches = _batches(text, tokenizer, recipe, np.random.default_rng([seed, 2]))
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor("cosine", step, recipe.steps)
        losses = orpo_losses(model, next(batches), orpo_lambda=0.0, pad_id=tokenizer.pad_token_id)
        optimizer.zero_grad()
        losses.loss.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_progress is not None:
            on_progress(1)
    return model.eval()


def _batches(
    text: PublicText, tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, rng: np.random.Generator
) -> Iterator[list[PatientPairs]]:
    """Endless batches of notes or of sentences, of like length inside; without diseases sentences only."""
    while not text.diseases:
        yield _sentence_batch(text, tokenizer, recipe, rng)
    notes = PublicNotes(text, rng)
    while True:
        drawn = [notes.draw() for _ in range(recipe.batch * BATCHES_AHEAD)]
        prompts = tokenizer([write_prompt(RARE_DISEASE, note) for note, _ in drawn])["input_ids"]
        answers = tokenizer([write_answers(RARE_DISEASE.header, [name]) for _, name in drawn])["input_ids"]
        ready = [
            _imitate((tokenizer.bos_token_id, *prompt[-LONGEST_PROMPT:]), answer, tokenizer.eos_token_id)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        ready.sort(key=lambda entry: len(entry.prompt))
        grouped = [ready[i : i + recipe.batch] for i in range(0, len(ready), recipe.batch)]
        for k in rng.permutation(len(grouped)):
            if text.sentences and rng.random() < recipe.sentence_share:
                yield _sentence_batch(text, tokenizer, recipe, rng)
            yield grouped[int(k)]


def _sentence_batch(
    text: PublicText, tokenizer: PreTrainedTokenizerFast, recipe: BaseRecipe, rng: np.random.Generator
) -> list[PatientPairs]:
    chosen = [text.sentences[int(k)] for k in rng.integers(len(text.sentences), size=recipe.batch)]
    encoded = tokenizer(chosen)["input_ids"]
    return [
        _imitate((tokenizer.bos_token_id,), ids[:LONGEST_SENTENCE], tokenizer.eos_token_id) for ids in encoded
    ]


def _imitate(prompt: tuple[int, ...], answer: list[int], end_id: int) -> PatientPairs:
    return PatientPairs(patient_id="public", prompt=prompt, branches=((*answer, end_id),), pairs=((0, None),))
