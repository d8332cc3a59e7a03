"""Tiles of real tissue that are set aside for everybody: what a tiny base and a slide eye learn to see from.

No site has them, and nobody is tested on them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PublicTiles:
    """Some tiles of one size, with what they show.

    Attributes:
        images: uint8 (tiles, height, width, 3), RGB.
        names: Of each tile, an answer's name.
    """

    images: NDArray[np.uint8]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape, count = self.images.shape, len(self.names)
        if self.images.dtype != np.uint8 or len(shape) != 4 or shape[0] != count or shape[3] != 3:
            raise ValueError(f"Expected uint8 ({count}, height, width, 3), got {self.images.dtype} {shape}")

    def digest(self) -> str:
        """SHA-256 of tiles and names, 64 hexadecimal digits."""
        digest = hashlib.sha256(f"{self.images.shape} {self.names}\n".encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()
