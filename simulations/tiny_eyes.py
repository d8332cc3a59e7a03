"""A tiny photo encoder pretrained on public faces: a stand-in for a face network on a machine of two cores.

A real architecture of ``timm``, saved as a folder that timm loads. It learns which findings a drawn face
shows, from faces whose random streams no site's patient shares, so that its vectors are of faces and not of
patients. Deterministic in recipe and seed, cached under a name that is its digest.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from common.canonical import canonical_json, plain
from common.schedule import rate_factor
from simulations.hospital import public_faces

CODE_VERSION = 2
"""Part of every cached folder's digest: raised whenever this file or the drawing makes another encoder."""
MOST_SHIFT = 3
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class EyesRecipe:
    """How a tiny photo encoder is made.

    Attributes:
        architecture: A model name of ``timm``.
        faces: Public faces it learns from.
        size: Height and width of a face, pixels.
        epochs, batch, learning_rate: Of the pretraining; the rate warms up, then falls as a cosine.
    """

    architecture: str = "test_resnet"
    faces: int = 6000
    size: int = 64
    epochs: int = 8
    batch: int = 64
    learning_rate: float = 3e-3


def tiny_eyes(
    cache: Path, recipe: EyesRecipe, seed: int, *, on_progress: Callable[[int], None] | None = None
) -> Path:
    """The folder of a tiny photo encoder: made now, or found in ``cache`` where it was made before.

    ``on_progress`` is called with the number of steps just made; there are ``steps_of(recipe)``.
    """
    parts = [CODE_VERSION, plain(recipe), seed, torch.__version__, timm.__version__]
    digest = hashlib.sha256(canonical_json(parts).encode()).hexdigest()
    folder = cache / f"tiny-eyes-{digest[:20]}"
    if (folder / "config.json").exists():
        return folder
    model = pretrain(recipe, seed, on_progress=on_progress)
    cache.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole: a run that is cut off leaves no half encoder behind.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        save_for_hf(
            model,
            str(made),
            safe_serialization=True,
            data_config={"input_size": (3, recipe.size, recipe.size), "mean": MEAN, "std": STD},
        )
        if not folder.exists():
            shutil.move(made, folder)
    return folder


def steps_of(recipe: EyesRecipe) -> int:
    """How many steps the pretraining takes."""
    return recipe.epochs * (recipe.faces // recipe.batch)


def pretrain(recipe: EyesRecipe, seed: int, *, on_progress: Callable[[int], None] | None = None) -> nn.Module:
    """A network that says which findings a face shows; the same bytes for the same arguments."""
    photos, shown = public_faces(seed, recipe.faces, size=recipe.size)
    pixels, targets = torch.from_numpy(photos), torch.from_numpy(shown).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = timm.create_model(recipe.architecture, num_classes=targets.shape[1])
    # Starting from how often each finding is shown saves the steps that would otherwise learn just that.
    shares = targets.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        model.get_classifier().bias.copy_(torch.logit(shares))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    rng = np.random.default_rng([seed, 5])
    steps, done = steps_of(recipe), 0
    model.train()
    for _ in range(recipe.epochs):
        order = torch.from_numpy(rng.permutation(recipe.faces))
        for start in range(0, recipe.faces - recipe.batch + 1, recipe.batch):
            rows = order[start : start + recipe.batch]
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_factor("cosine", done, steps)
            logits = model(_moved(normalized(pixels[rows]), rng))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if on_progress is not None:
                on_progress(1)
    return model.eval()


def _moved(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch shifted by a few pixels, and mirrored half the time."""
    shift = rng.integers(-MOST_SHIFT, MOST_SHIFT + 1, size=2).tolist()
    images = torch.roll(images, shift, dims=(2, 3))
    return images.flip(3) if rng.random() < 0.5 else images


def normalized(pixels: Tensor) -> Tensor:
    """uint8 (n, size, size, 3) -> float (n, 3, size, size), as the saved folder says."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
