"""The words of a tiny model that sees: its tokenizer, its prompts, and what it may say of a drawn tile.

The tokenizer's units are phrases: an instruction, an answer's header and a name are one token each, so that
an answer is three tokens instead of thirty. The processor is that of Idefics3, with a chat template of its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

from client.preferences.answers import write_answers, write_prompt
from common.tracks import TISSUE_TYPE
from simulations.slides import ATTRIBUTES, TISSUES

PAD, BEGIN, END = "<pad>", "<s>", "<end_of_utterance>"
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"  # as Idefics3's processor says
USER, ASSISTANT = "User:", "\nAssistant:"
TEMPLATE = (
    BEGIN + "{% for message in messages %}{{ message['role'].capitalize() + ':' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE + "' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '" + END + "\n' if not loop.last else '" + END + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}"
)
HEADER = write_answers(TISSUE_TYPE.header, ["X"]).removesuffix("X")
DESCRIBE = "Describe this image.\n"
LEVELS = ("low", "middling", "high")
TOLD = 5  # attributes a caption
VOCABULARY = 1200
MEAN, STD = 0.5, 0.25
IGNORED = -100  # what Hugging Face's losses leave out


def build_tokenizer(names: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose words are whole names: an answer's name is one token, or few."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n\d+\. "), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END, IMAGE, AROUND, WHOLE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=64,
    )
    ranks = [f"\n{rank}. " for rank in range(1, 21)]
    tokenizer.train_from_iterator(
        [text for text in (*sorted({*names, *TISSUES.names}), *ranks) for _ in "12"], trainer
    )
    # Fixed text that stands in every prompt and every answer: one token each.
    fixed = [USER, ASSISTANT, write_prompt(TISSUE_TYPE), DESCRIBE, HEADER, *phrases()]
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, size: int, image_tokens: int) -> Any:
    """The processor of Idefics3 for whole small tiles: no crops, ``image_tokens`` tokens each."""
    side = {"longest_edge": size}
    pixels = Idefics3ImageProcessor(
        do_image_splitting=False, size=side, max_image_size=side, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    return Idefics3Processor(pixels, tokenizer, image_seq_len=image_tokens, chat_template=TEMPLATE)


def write_captions(
    kinds: NDArray[np.int64], table: NDArray[np.float32], rng: np.random.Generator
) -> list[str]:
    """What a public atlas says of drawn tiles: the plate, and a few attributes in words.

    A plate has a number for each kind, and not the name that a plan calls it by. Of an attribute a third of
    all tiles is low and a third is high; a caption tells ``TOLD`` of them, one after the other as they stand
    in ``slides.ATTRIBUTES``, beginning anywhere.
    It begins as answers do: what a small network learns to look for at one word it does not look for at
    another.
    """
    places = np.stack([np.searchsorted(np.quantile(column, (1 / 3, 2 / 3)), column) for column in table.T])
    captions = []
    for kind, row, start in zip(kinds, places.T, rng.integers(len(ATTRIBUTES), size=len(kinds)), strict=True):
        told = [(start + more) % len(ATTRIBUTES) for more in range(TOLD)]
        said = [_phrase(LEVELS[row[one]], ATTRIBUTES[one]) for one in told]
        captions.append("".join([HEADER, _plate(int(kind)), *said]))
    return captions


def phrases() -> list[str]:
    """All that captions are made of."""
    plates = [_plate(kind) for kind in range(len(TISSUES))]
    return [*plates, *(_phrase(level, name) for name in ATTRIBUTES for level in LEVELS)]


def _plate(kind: int) -> str:
    return f"plate {kind + 1}: "


def _phrase(level: str, attribute: str) -> str:
    return f"{level} {attribute.replace('_', ' ')}, "


def read_prompt(processor: Any, text: str) -> list[int]:
    """The tokens of an image and a text, as the chat template and the processor write them."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    written = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    side = processor.image_processor.size["longest_edge"]
    blank = Image.new("RGB", (side, side))
    return list(processor(text=[written], images=[[blank]])["input_ids"][0])


def pad_texts(texts: Sequence[tuple[list[int], list[int]]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Tokens and labels of prompts with what follows them, (n, longest) each; prompts are not learned."""
    longest = max(len(prompt) + len(text) for prompt, text in texts)
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    labels = torch.full((len(texts), longest), IGNORED)
    for row, (prompt, text) in enumerate(texts):
        ids[row, : len(prompt) + len(text)] = torch.tensor([*prompt, *text])
        labels[row, len(prompt) : len(prompt) + len(text)] = torch.tensor(text)
    return ids, labels
