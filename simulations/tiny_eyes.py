"""A tiny photo encoder pretrained on public faces: a stand-in for a face network on a machine of two cores.

A real architecture of ``timm``, saved as a folder that timm loads. It learns to measure drawn faces (how far
apart the eyes are, how long the nose is) whose random streams no site's patient shares, so that its vectors
are of faces and not of patients. Measures teach it faster than findings do: a face has all of the former and
few of the latter. Deterministic in recipe and seed, cached under a name that is its digest.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from common.canonical import canonical_json, plain
from common.schedule import rate_factor
from simulations.hospital import public_portraits

CODE_VERSION = 3
"""Part of every cached folder's digest: raised whenever this file or the drawing makes another encoder."""
WHOLE_FACE: Mapping[str, int | str | bool] = MappingProxyType(
    {
        "img_size": 64,
        "patch_size": 64,
        "embed_dim": 192,
        "depth": 2,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
    }
)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class EyesRecipe:
    """How a tiny photo encoder is made.

    Attributes:
        architecture: A model name of ``timm``.
        arguments: Of its construction. By default one patch as large as the face: drawn faces stand still,
            and a network that pools over places is slow to learn where a mouth is (mean R² of the measures
            after as many steps: 0.03 against 0.14).
        faces: Public faces it learns from.
        size: Height and width of a face, pixels.
        epochs, batch, learning_rate: Of the pretraining; the rate warms up, then falls as a cosine.
    """

    architecture: str = "vit_tiny_patch16_224"
    arguments: Mapping[str, int | str | bool] = field(default_factory=lambda: dict(WHOLE_FACE))
    faces: int = 6000
    size: int = 64
    epochs: int = 10
    batch: int = 64
    learning_rate: float = 1e-3


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
    save_encoder(folder, model, recipe.arguments, recipe.size)
    return folder


def save_encoder(folder: Path, model: nn.Module, arguments: Mapping[str, Any], size: int) -> None:
    """Write ``folder`` in the format that timm loads, unless another run has just made it.

    Args:
        folder: Where it goes; what lies around it is made too.
        model: A network of timm.
        arguments: Of its construction.
        size: Height and width of an image, pixels.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole: a run that is cut off leaves no half encoder behind.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        save_for_hf(
            model,
            str(made),
            model_args=dict(arguments),
            safe_serialization=True,
            data_config={"input_size": (3, size, size), "mean": MEAN, "std": STD},
        )
        if not folder.exists():
            shutil.move(made, folder)


def steps_of(recipe: EyesRecipe) -> int:
    """How many steps the pretraining takes."""
    return recipe.epochs * (recipe.faces // recipe.batch)


def pretrain(recipe: EyesRecipe, seed: int, *, on_progress: Callable[[int], None] | None = None) -> nn.Module:
    """A network that measures faces; the same bytes for the same arguments on one machine."""
    photos, measured = public_portraits(seed, recipe.faces, size=recipe.size)
    pixels, targets = torch.from_numpy(photos), torch.from_numpy(measured)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = timm.create_model(recipe.architecture, num_classes=targets.shape[1], **recipe.arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.1)
    rng = np.random.default_rng([seed, 5])
    steps, done = steps_of(recipe), 0
    model.train()
    for _ in range(recipe.epochs):
        order = torch.from_numpy(rng.permutation(recipe.faces))
        for start in range(0, recipe.faces - recipe.batch + 1, recipe.batch):
            rows = order[start : start + recipe.batch]
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_factor("cosine", done, steps)
            found = model(normalized(pixels[rows]))
            loss = nn.functional.smooth_l1_loss(found, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if on_progress is not None:
                on_progress(1)
    return model.eval()


def normalized(pixels: Tensor) -> Tensor:
    """uint8 (n, size, size, 3) -> float (n, 3, size, size), as the saved folder says."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
