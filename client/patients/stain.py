"""One stain for all tiles: normalization by Macenko et al. 2009.

Laboratories stain hematoxylin and eosin in different colors and strengths, and a student that meets one
hospital's pink would learn the hospital. By Beer and Lambert's law optical density is a sum of two stains, so
a tile's pixels lie in a plane; its two edges are the tile's own stains, and their amounts are drawn again
with reference stains ("A method for normalizing histology slides for quantitative analysis", ISBI 2009).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.patients.photos import SlideRef, read_only, require_pixels

Floats = NDArray[np.float64]
Stain = Literal["keep", "macenko"]
"""Whether tiles are shown as they are, or brought to the reference's stains."""

LIGHT = 240.0
"""Intensity of a pixel that nothing stains."""
LEAST_DENSITY = 0.15
"""Optical density, in every channel, from which on a pixel counts as stained."""
LEAST_TISSUE = 0.02
"""Share of stained pixels without which a tile says nothing about its stains."""
LEAST_ANGLE_DEGREES = 5.0
"""Angle below which two stains are one: the reference's are 22 apart, those of 393 real tiles 6 to 54."""

_EDGE_PERCENTILE = 1.0
_MAXIMUM_PERCENTILE = 99.0
_REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
_REFERENCE_MAXIMA = np.array([1.9705, 1.0308])
# Fewer pixels have no percentiles.
_LEAST_PIXELS = 50


def normalize_stain(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The tile in the reference's stains, uint8, (height, width, 3), RGB, read-only.

    Guarantee: a tile with too little tissue, or of one stain only, comes back unchanged, for its stains
    cannot be told. The same pixels give the same result.
    """
    density = _density(require_pixels(pixels))
    stains = _stains(density)
    if stains is None:
        return read_only(pixels)
    # Least squares, as the normal equations' 2 x 3 matrix.
    amounts = density @ np.linalg.pinv(stains).T
    maxima = np.percentile(amounts, _MAXIMUM_PERCENTILE, axis=0)
    if not (maxima > 0).all():
        return read_only(pixels)
    redrawn = LIGHT * np.exp(-(amounts * (_REFERENCE_MAXIMA / maxima)) @ _REFERENCE_STAINS.T)
    return read_only(np.clip(np.rint(redrawn), 0, 255).astype(np.uint8).reshape(pixels.shape))


@dataclass(frozen=True)
class StainNormalized:
    """A tile whose stains are normalized when its pixels are asked for."""

    tile: SlideRef

    def pixels(self) -> NDArray[np.uint8]:
        """The normalized tile, uint8, (height, width, 3), RGB, read-only; BadFileError as of the tile."""
        return normalize_stain(self.tile.pixels())


def stain_normalized(ref: SlideRef) -> SlideRef:
    """The same tile in the reference's stains, computed when its pixels are asked for."""
    return StainNormalized(ref)


def _density(pixels: NDArray[np.uint8]) -> Floats:
    """Optical density, (pixels, 3)."""
    # One is added to all, since black has no logarithm.
    densities = -np.log((np.arange(256) + 1.0) / LIGHT)
    return np.asarray(densities[pixels.reshape(-1, 3)])


def _stains(density: Floats) -> Floats | None:
    """Hematoxylin and eosin of a tile as columns, (3, 2), unit vectors; None if they cannot be told."""
    tissue = density[(density >= LEAST_DENSITY).all(axis=1)]
    if len(tissue) < max(_LEAST_PIXELS, LEAST_TISSUE * len(density)):
        return None
    plane = _plane(tissue)
    projected = tissue @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    edges = np.percentile(angles, [_EDGE_PERCENTILE, 100 - _EDGE_PERCENTILE])
    if np.degrees(edges[1] - edges[0]) < LEAST_ANGLE_DEGREES:
        return None
    stains: Floats = plane @ np.array([np.cos(edges), np.sin(edges)])
    # Of the two, hematoxylin absorbs more red.
    return stains if stains[0, 0] > stains[0, 1] else stains[:, ::-1]


def _plane(tissue: Floats) -> Floats:
    """The two principal directions of the density as columns, (3, 2), the main one first."""
    _, vectors = np.linalg.eigh(tissue.T @ tissue)
    main, second = vectors[:, 2], vectors[:, 1]
    # Density is positive and so is its main direction; the sign of the other only swaps the edges.
    return np.stack([main * np.sign(main.sum()), second], axis=1)
