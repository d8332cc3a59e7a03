"""How an image comes into a student: its place among the tokens, its pixels, and its positions.

All that differs between text and image students, and between families of image models, is here. The
processor of the model writes the prompt (chat template, one image, the question) and the pixel inputs; this
module adds what a batch with our own masks and branches needs besides:

- ``JOINED`` (Idefics3, SmolVLM): features take the place of image tokens; positions count as in text.
- ``GRID`` (Qwen2-VL, 2.5 and 3): the same with three position ids a token, of which those of an image token
  are its place in the picture (M-RoPE). What follows the image counts on from the largest of them.
- ``CROSS`` (Llama-3.2-Vision): one image token in the text, and layers that look at the picture from it on.

A model is read only if its family is known: another one may let image tokens see the tokens after them, and
our branches would then compute something else than the model does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from client.patients.photos import SlideRef
from client.student.pixels import ImageTensors, PixelCache, Shapes

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "aspect_ratio_ids",
                "aspect_ratio_mask")  # fmt: skip
CACHE_BYTES = 2**30
"""What the pixel inputs that wait for their next use may take."""
TAIL_TOKENS = 16
"""How many last tokens of a prompt survive truncation: the end of the question, where the answer begins."""
CLOSING_TOKENS = 1
"""What follows the last image token and belongs to the image."""


class Sight(Enum):
    """How a family of models looks at an image."""

    JOINED = "joined"
    GRID = "grid"
    CROSS = "cross"


FAMILIES: Mapping[str, Sight] = MappingProxyType(
    {
        "idefics3": Sight.JOINED,
        "smolvlm": Sight.JOINED,
        "qwen2_vl": Sight.GRID,
        "qwen2_5_vl": Sight.GRID,
        "qwen3_vl": Sight.GRID,
        "mllama": Sight.CROSS,
    }
)
"""By the ``model_type`` of a configuration."""


def sight_of(config: Any) -> Sight:
    """How a model of this configuration looks at an image; ValueError where it is not known."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Expected an image student of the families {', '.join(FAMILIES)}, "
            f"got model_type {config.model_type}"
        )
    return FAMILIES[config.model_type]


def cut_middle(ids: Sequence[int], longest: int, *, kept: int = 0) -> list[int]:
    """The ids, of which one over ``longest`` loses those before its last ``TAIL_TOKENS``.

    Raises:
        ValueError: The first ``kept`` ids, which stay, and the last leave no room to cut.
    """
    if len(ids) <= longest:
        return list(ids)
    needed = min(kept + TAIL_TOKENS, len(ids)) if kept else 0
    if longest < needed:
        raise ValueError(
            f"Expected max_prompt_tokens of at least {needed}, which an image and the end of the question "
            f"take, got {longest}"
        )
    return [*ids[: longest - TAIL_TOKENS], *ids[-TAIL_TOKENS:]]


class Vision:
    """Reads images for one model.

    Attributes:
        processor: Of the model: tokenizer, image processor and chat template.
        sight: How the model looks at an image.
    """

    def __init__(self, base: nn.Module, processor: Any) -> None:
        """For ``base``, a Hugging Face image-text-to-text model; ValueError if its family is not known."""
        self.processor = processor
        self.sight = sight_of(base.config)
        self._base: Any = base
        self._image_token = int(processor.image_token_id)
        self._cache = PixelCache(lambda image: _image_inputs(self._process("", image)), CACHE_BYTES)
        self._asked: WeakKeyDictionary[SlideRef, tuple[str, list[int]]] = WeakKeyDictionary()

    def prompt_ids(self, text: str, image: SlideRef, longest: int) -> list[int]:
        """Token ids of a prompt with its image, every image token at its place.

        Guarantee: a long prompt loses text and no piece of the image.

        Raises:
            ValueError: The image and the end of the question are longer than ``longest``.
            BadFileError: The image cannot be read.
        """
        ids = self._ids(text, image)
        last = len(ids) - ids[::-1].index(self._image_token)
        return cut_middle(ids, longest, kept=last + CLOSING_TOKENS)

    def _ids(self, text: str, image: SlideRef) -> list[int]:
        # A track asks one question of all images: to ask it again must not decode them again.
        asked = self._asked.get(image)
        if asked is not None and asked[0] == text:
            return asked[1]
        processed = self._process(text, image)
        self._cache.keep(image, _image_inputs(processed))
        ids: list[int] = processed["input_ids"][0].tolist()
        # A tokenizer that closes every text with the end token would end the prompt before the answer.
        if ids[-1] == self.processor.tokenizer.eos_token_id and not self._template:
            ids.pop()
        self._asked[image] = (text, ids)
        return ids

    def stands_for_image(self, ids: Tensor) -> Tensor:
        """Which ids stand for a piece of an image instead of a word."""
        return ids == self._image_token

    def shapes(self, image: SlideRef) -> Shapes:
        """Images of equal shapes can be in one batch."""
        return self._cache.shapes(image)

    def parts(self, image: SlideRef) -> int:
        """How many pictures the model makes of the image, each a row of its own in some of its layers."""
        pixels = dict(self.shapes(image))["pixel_values"]
        return math.prod(pixels[: {Sight.JOINED: 1, Sight.CROSS: 2, Sight.GRID: 0}[self.sight]])

    def inputs(self, images: Sequence[SlideRef], input_ids: Tensor) -> dict[str, Tensor]:
        """What the model gets besides ids, mask and positions, in the order of the images.

        Args:
            images: One for each row, all of the same shapes.
            input_ids: (rows, columns); no column but those of image tokens holds an image token's id.
        """
        tensors = [self._cache.tensors(image) for image in images]
        joined = {name: torch.cat([one[name] for one in tensors]) for name in tensors[0]}
        moved = {name: tensor.to(input_ids.device) for name, tensor in joined.items()}
        if self.sight is Sight.CROSS:
            moved["cross_attention_mask"] = self._looks(moved["aspect_ratio_mask"], input_ids)
        return moved

    def _looks(self, tiles: Tensor, input_ids: Tensor) -> Tensor:
        """Which columns look at which tiles: all from the image token on, (rows, columns, 1, tiles)."""
        seen = self.stands_for_image(input_ids).cumsum(-1) > 0
        return seen[:, :, None, None] * tiles[:, None]

    def further(self, prompt: Mapping[str, Tensor], columns: int) -> dict[str, Tensor]:
        """What the model gets with further columns, once the prompt is in its cache."""
        if self.sight is not Sight.CROSS:
            return {}
        # Every column after the image token sees what the prompt's last one saw.
        return {"cross_attention_mask": prompt["cross_attention_mask"][:, -1:].expand(-1, columns, -1, -1)}

    def positions(
        self, prompts: Sequence[Sequence[int]], images: Sequence[SlideRef], counted: Tensor
    ) -> Tensor:
        """Positions as the model counts them, (rows, columns) or (3, rows, columns).

        Args:
            prompts: Token ids.
            images: One for each prompt.
            counted: (rows, columns) positions as in text. The prompts end in the same column, the longest
                one's; all columns after it go on from the prompt's end.
        """
        if self.sight is not Sight.GRID:
            return counted
        end = max(map(len, prompts))
        placed = counted.expand(3, -1, -1).clone()
        for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            grid = self._grid(prompt, image).to(counted.device)
            placed[:, row, end - len(prompt) : end] = grid
            placed[:, row, end:] += grid.max() + 1 - len(prompt)
        return placed

    def _grid(self, prompt: Sequence[int], image: SlideRef) -> Tensor:
        """The model's own three positions of every token of a prompt, (3, tokens)."""
        ids = torch.tensor([list(prompt)])
        grid = self._cache.tensors(image)["image_grid_thw"]
        positions, _ = self._base.base_model.get_rope_index(
            ids, mm_token_type_ids=self.stands_for_image(ids).int(), image_grid_thw=grid
        )
        return positions[:, 0]

    def plain_inputs(self, images: Sequence[SlideRef], input_ids: Tensor) -> dict[str, Tensor]:
        """What the model's own forward pass needs, without a block mask or positions of ours.

        Args:
            images: One for each row, all of the same shapes.
            input_ids: (rows, columns).
        """
        inputs = self.inputs(images, input_ids)
        if self.sight is Sight.GRID:
            inputs["mm_token_type_ids"] = self.stands_for_image(input_ids).int()
        return inputs

    @property
    def _template(self) -> bool:
        return bool(self.processor.chat_template)

    def _process(self, text: str, image: SlideRef) -> Any:
        """The processor's whole output for one prompt with its image."""
        # From an array the processor would have to guess which dimension holds the channels.
        picture = Image.fromarray(image.pixels())
        if not self._template:
            joined = f"{self.processor.image_token}{text}"
            return self.processor(text=[joined], images=[[picture]], return_tensors="pt")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


def images_for(vision: Vision | None, images: Sequence[SlideRef | None], prompts: int) -> Sequence[SlideRef]:
    """The images of a batch of prompts, without those that are None.

    Raises:
        ValueError: A student that reads images has a prompt without one, or another student one with one.
    """
    given = [image for image in images if image is not None]
    if len(given) != (0 if vision is None else prompts):
        expected = "no image" if vision is None else "an image for every prompt"
        raise ValueError(f"Expected {expected}, got {len(given)} for {prompts} prompts")
    return given


def _image_inputs(processed: Mapping[str, Any]) -> ImageTensors:
    return {name: processed[name] for name in IMAGE_INPUTS if name in processed}


def language_modules(base: nn.Module, *, tower: bool) -> Iterable[tuple[str, nn.Module]]:
    """Names and modules of an image model's language model, and of its image tower if asked for.

    What joins the two, and the vocabulary's product, is part of neither.
    """
    model: Any = base
    roots = {model.get_decoder(), *([model.get_encoder(modality="image")] if tower else [])}
    names = [name for name, module in base.named_modules() if module in roots]
    for name, module in base.named_modules():
        if any(name.startswith(f"{root}.") for root in names):
            yield name, module
