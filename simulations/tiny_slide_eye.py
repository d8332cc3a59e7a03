"""A tiny slide encoder pretrained on public tiles: a stand-in for a pathology network on two cores.

A real architecture of ``timm``, saved as a folder that timm loads. It learns to measure drawn tiles and to
tell their kinds apart, and the names of real public tiles where there are any; no site's patient shares
their random streams, so that its vectors are of tissue and not of patients. Deterministic in recipe, public
tiles and seed, cached under a name that is its digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from common.canonical import canonical_json, plain
from common.schedule import rate_factor
from simulations.public_tiles import PublicTiles
from simulations.tile_lessons import batches, draw_lessons, seeing_loss, turned
from simulations.tiny_eyes import normalized, save_encoder

CODE_VERSION = 1
"""Part of every cached folder's digest: raised whenever this file or the drawing makes another encoder."""
SMALL: Mapping[str, Any] = MappingProxyType({"channels": (16, 32, 48, 96), "stem_width": 8})


@dataclass(frozen=True, kw_only=True)
class SlideEyeRecipe:
    """How a tiny slide encoder is made.

    Attributes:
        architecture: A model name of ``timm``. By default one that convolves: a nucleus is the same wherever
            it lies. Its batch normalization stands still once it is saved: patients never mix.
        arguments: Of its construction.
        tiles: Public tiles that are drawn for it.
        size: Height and width of a tile, pixels.
        epochs, batch, learning_rate: Of the pretraining; the rate warms up, then falls as a cosine. An epoch
            has as many steps as batches of drawn tiles fill.
        real_share: Share of a batch that real tiles make up where there are any.
    """

    architecture: str = "resnet10t"
    arguments: Mapping[str, Any] = field(default_factory=lambda: dict(SMALL))
    tiles: int = 3000
    size: int = 64
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 3e-3
    real_share: float = 0.5


def tiny_slide_eye(
    cache: Path,
    recipe: SlideEyeRecipe,
    seed: int,
    *,
    extra: PublicTiles | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """The folder of a tiny slide encoder: made now, or found in ``cache`` where it was made before.

    Args:
        cache: Where made folders stay.
        recipe: How it is made.
        seed: Decides everything else.
        extra: Real public tiles with their names, resized to the recipe's size.
        on_progress: Called with the number of steps just made; there are ``steps_of(recipe)``.
    """
    parts = [CODE_VERSION, plain(recipe), seed, extra.digest() if extra else "", torch.__version__]
    digest = hashlib.sha256(canonical_json([*parts, timm.__version__]).encode()).hexdigest()
    folder = cache / f"tiny-slide-eye-{digest[:20]}"
    if not (folder / "config.json").exists():
        model = pretrain(recipe, seed, extra=extra, on_progress=on_progress)
        save_encoder(folder, model, recipe.arguments, recipe.size)
    return folder


def steps_of(recipe: SlideEyeRecipe) -> int:
    """How many steps the pretraining takes."""
    return recipe.epochs * (recipe.tiles // recipe.batch)


def pretrain(
    recipe: SlideEyeRecipe,
    seed: int,
    *,
    extra: PublicTiles | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> nn.Module:
    """A network that knows tissue; the same bytes for the same arguments on one machine."""
    pixels, classes, measured = map(torch.from_numpy, draw_lessons(recipe.tiles, recipe.size, seed, extra))
    attributes = measured.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = attributes + int(classes.max()) + 1
        model: Any = timm.create_model(recipe.architecture, num_classes=outputs, **recipe.arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.05)
    rng = np.random.default_rng([seed, 9])
    steps = steps_of(recipe)
    real = len(pixels) - len(measured)
    rows_of = batches(recipe.tiles, real, recipe.batch, rng, real_share=recipe.real_share)
    model.train()
    for step, rows in zip(range(steps), rows_of, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor("cosine", step, steps)
        found = model(normalized(turned(pixels[rows], rng)))
        loss = seeing_loss(found, classes[rows], measured, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_progress is not None:
            on_progress(1)
    return model.eval()
