"""What public tiles teach those who learn to see: their kinds, their names, their measures.

Drawn tiles have a kind and measures; real ones have a name alone. Both are laid under the scanner in any
direction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from simulations.public_tiles import PublicTiles
from simulations.slides import TISSUES, public_tiles


def draw_lessons(
    tiles: int, size: int, seed: int, extra: PublicTiles | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Public tiles, drawn ones first: pixels, classes and, of the drawn ones, measures in spreads.

    A class is a kind of drawn tiles (places in ``slides.TISSUES``) or, after these, a name of real ones.
    """
    pixels, classes, table = public_tiles(seed, tiles, size=size)
    if extra is not None:
        names = sorted(set(extra.names))
        real = np.array([len(TISSUES) + names.index(name) for name in extra.names], dtype=np.int64)
        classes = np.concatenate([classes, real])
        pixels = np.concatenate([pixels, resized(extra.images, size)])
    return pixels, classes, _in_spreads(table)


def seeing_loss(found: Tensor, classes: Tensor, measured: Tensor, rows: Tensor) -> Tensor:
    """How far a head's outputs (n, attributes + classes) are from what tiles show.

    ``measured`` is (drawn tiles, attributes), in spreads. ``rows`` says which tile each output is of; tiles
    beyond the drawn ones are real, and nobody measured them.
    """
    attributes = measured.shape[1]
    loss = nn.functional.cross_entropy(found[:, attributes:], classes)
    drawn = rows < len(measured)
    if drawn.any():
        loss = loss + nn.functional.smooth_l1_loss(found[drawn, :attributes], measured[rows[drawn]])
    return loss


def batches(
    drawn: int, real: int, batch: int, rng: np.random.Generator, *, real_share: float
) -> Iterator[Tensor]:
    """Endless batches of places, int64 (batch,): drawn ones, and ``real_share`` of real ones if any.

    Guarantee: of each sort every tile comes once before any comes again, but for the rest of a round.
    """
    some = min(round(real_share * batch), real)
    ours, theirs = _rounds(np.arange(drawn), batch - some, rng), _rounds(drawn + np.arange(real), some, rng)
    while True:
        yield torch.from_numpy(np.concatenate([next(ours), next(theirs)]))


def _rounds(places: NDArray[np.int64], few: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Endless runs of ``few`` places in a drawn order; what is left of a round is left out."""
    if len(places) < few:
        raise ValueError(f"Expected at least {few} tiles, got {len(places)}")
    while not few:
        yield places[:0]
    while True:
        order = rng.permutation(places)
        for start in range(0, len(order) - few + 1, few):
            yield order[start : start + few]


def turned(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """The tiles (n, size, size, 3) as if laid otherwise under the scanner: all of them the same way."""
    flipped = pixels.flip(2) if rng.random() < 0.5 else pixels
    return torch.rot90(flipped, int(rng.integers(4)), (1, 2))


def resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Tiles, uint8 (n, height, width, 3), at another size."""
    if images.shape[1:3] == (size, size):
        return images
    to, how = (size, size), Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(one).resize(to, how)) for one in images])


def _in_spreads(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """The table with each column's mean taken off, in units of its spread."""
    spread = np.maximum(table.std(axis=0), np.float32(1e-6))
    return np.asarray((table - table.mean(axis=0)) / spread, dtype=np.float32)
