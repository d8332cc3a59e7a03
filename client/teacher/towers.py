"""Vision models of ``transformers`` as eyes: the image tower of a CLIP-like model, or a plain encoder.

Pathology has several of them (PLIP is CLIP trained on slides and their captions). Only the tower is kept: its
projected embedding where the model has one, else its pooled output, else the mean of its last hidden states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "timm/", "local-dir:")
"""How names begin that ``timm`` fetches from a hub itself."""


@dataclass(frozen=True, kw_only=True)
class LoadedTower:
    """An image tower, frozen, and what its images must be like.

    Attributes:
        network: float (images, 3, height, width) -> (images, width).
        size: Height and width, pixels.
        mean, std: Of each color channel, for values in 0..1.
    """

    network: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Tower(nn.Module):
    """One vector an image from a model of ``transformers``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """float (images, 3, height, width) -> (images, width)."""
        if hasattr(self.model, "get_image_features"):
            return _pooled(self.model.get_image_features(pixel_values=pixels))
        return _pooled(self.model(pixel_values=pixels))


def is_tower(source: str) -> bool:
    """Whether a name or folder is a model of ``transformers``, and not one of ``timm``.

    A folder tells by its ``config.json``; a name by being none that ``timm`` knows or fetches.
    """
    if Path(source).is_dir():
        config = Path(source) / "config.json"
        return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))
    known = timm.is_model(source.partition(".")[0])
    return "/" in source and not known and not source.startswith(HUB_PREFIXES)


def load_tower(source: str) -> LoadedTower:
    """Load a frozen image tower with the preprocessing that its own processor states.

    Raises:
        ValueError: Its processor states no size or no mean and spread of colors.
    """
    model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
    processor: Any = AutoImageProcessor.from_pretrained(source)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        raise ValueError(f"Expected mean and spread of colors in the image processor of {source}, got none")
    return LoadedTower(
        network=Tower(model.eval().requires_grad_(requires_grad=False)),
        size=_size(processor, source),
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
    )


def _size(processor: Any, source: str) -> tuple[int, int]:
    """What the model looks at: the crop where images are cropped, else what they are resized to."""
    cropped = getattr(processor, "do_center_crop", False) and processor.crop_size
    size = dict(processor.crop_size if cropped else processor.size)
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise ValueError(f"Expected a size in the image processor of {source}, got {size}")


def _pooled(output: Any) -> Tensor:
    """One vector an image from whatever a model gives: a tensor, a pooled output, or hidden states."""
    if isinstance(output, Tensor):
        return output
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    hidden: Tensor = output.last_hidden_state
    return hidden.mean(dim=1)
