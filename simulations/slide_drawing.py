"""Tiles of stained tissue drawn from measures: how much of each dye lies where, and what light passes.

A tile is two maps of concentration, hematoxylin (nuclei, cartilage) and eosin (cytoplasm, fibers). The maps
come from measures of the tissue: how many nuclei of which shape, glands around lumina, fibers and where they
run, fat. A stain turns them into colors as light is absorbed by two dyes (Beer and Lambert): the darker, the
more dye. Lengths are given in pixels of a tile of 64 x 64; larger tiles show the same field in more pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIELD", "SMALLEST", "Stain", "draw_concentrations", "stain_tile"]

Map: TypeAlias = NDArray[np.float32]

FIELD = 64.0  # pixels: the side of the tile in which lengths are given
SMALLEST = 16  # pixels: below, a nucleus is less than a pixel
BUBBLE_RADIUS = 9.0  # of a fat cell
NUCLEUS_DYE = 1.1  # hematoxylin in a nucleus, in units of the stain's strength
RING = (0.55, 0.95)  # where in a gland without lumen its nuclei stand, from center to rim
CAMERA_NOISE = 2.5  # levels of 255
HALO = 1.6  # how far a halo reaches, in radii of its nucleus
WINDOWS = 4
WAVES = 5


@dataclass(frozen=True, kw_only=True)
class Stain:
    """What a laboratory's dyes and a scanner make of a tissue.

    Attributes:
        hematoxylin, eosin: Optical density of each dye in red, green and blue, of length 1.
        hematoxylin_strength, eosin_strength: Optical density of one unit of concentration.
        background: Red, green and blue of empty glass, 0 to 255.
        blur: Spread of the scanner's focus, pixels of a tile of 64.
    """

    hematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    hematoxylin_strength: float
    eosin_strength: float
    background: tuple[float, float, float]
    blur: float

    def __post_init__(self) -> None:
        if min(self.hematoxylin_strength, self.eosin_strength) <= 0:
            raise ValueError("Expected strengths above 0")
        if not all(0 < channel <= 255 for channel in self.background):
            raise ValueError(f"Expected a background above 0 and at most 255, got {self.background}")


def draw_concentrations(
    measures: Mapping[str, float], rng: np.random.Generator, size: int = 64
) -> tuple[Map, Map]:
    """Draw how much hematoxylin and eosin lie where, two float32 maps (size, size) of 0 and more.

    Args:
        measures: A value for each name in ``slides.MEASURES``.
        rng: Where the places of nuclei, glands and fibers come from.
        size: Height and width, pixels; ValueError below ``SMALLEST``.
    """
    if size < SMALLEST:
        raise ValueError(f"Expected a size of at least {SMALLEST} pixels, got {size}")
    axis = ((np.arange(size) + 0.5) * FIELD / size).astype(np.float32)
    course = rng.uniform(0, math.pi)  # along which fibers and long nuclei run
    cloud = _smooth(axis, rng, 14.0)
    eosin = measures["eosin"] * (1 + 0.18 * cloud) * _fibers(measures, axis, course, rng)
    blue = measures["basophilia"] * (1 + 0.25 * cloud)
    inside, lumen, ring = _glands(measures, axis, rng)
    eosin = eosin * (1 - 0.3 * inside)
    blue = blue + 0.18 * inside
    empty = np.maximum(lumen, _fat(measures["fat"], axis, rng))
    nuclei, halo = _nuclei(measures, axis, course, empty, ring, rng)
    clear = (1 - 0.93 * empty) * (1 - measures["halo"] * halo * (1 - nuclei))
    grain = 1 + 0.12 * rng.standard_normal((size, size), dtype=np.float32)
    return blue * clear * (1 - nuclei) + NUCLEUS_DYE * nuclei * grain, eosin * clear * (1 - 0.6 * nuclei)


def stain_tile(
    hematoxylin: Map, eosin: Map, stain: Stain, rng: np.random.Generator, *, thickness: float = 1.0
) -> NDArray[np.uint8]:
    """Return the colors of a tile, uint8 (size, size, 3).

    Guarantee: more dye never makes a channel lighter, but for a camera's noise of a few levels.
    """
    size = len(hematoxylin)
    dyes = np.stack([hematoxylin * stain.hematoxylin_strength, eosin * stain.eosin_strength], axis=-1)
    dyes = _blurred(thickness * dyes.astype(np.float32), stain.blur * size / FIELD)
    density = dyes @ np.array([stain.hematoxylin, stain.eosin], dtype=np.float32)
    light = np.array(stain.background, dtype=np.float32) * np.exp(-math.log(10) * density)
    noise = CAMERA_NOISE * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(light + noise + 0.5, 0, 255).astype(np.uint8)


def _smooth(axis: Map, rng: np.random.Generator, length: float) -> Map:
    """Draw a field that varies over about ``length`` pixels, (size, size), mean 0 and spread about 1."""
    waves = rng.normal(0.0, 2 * math.pi / (2 * length), (WAVES, 2)).astype(np.float32)
    phases = rng.uniform(0, 2 * math.pi, WAVES).astype(np.float32)
    rows, columns = waves[:, :1] * axis + phases[:, None], waves[:, 1:] * axis
    # cos(a + b) from the cosines of rows and columns: size, not size x size, of them are computed.
    field = np.cos(rows).T @ np.cos(columns) - np.sin(rows).T @ np.sin(columns)
    return field * np.float32(math.sqrt(2 / WAVES))


def _fibers(measures: Mapping[str, float], axis: Map, course: float, rng: np.random.Generator) -> Map:
    """What fibers multiply eosin by: bands along ``course``, the more wavy the less aligned."""
    across = axis * np.float32(math.cos(course)) - axis[:, None] * np.float32(math.sin(course))
    bend = (0.6 + 7.0 * (1 - measures["alignment"])) * _smooth(axis, rng, 12.0)
    bands = np.cos(2 * math.pi * (across + bend) / (2 * measures["fiber_width"]))
    return 1 + measures["fibers"] * (0.75 * bands + 0.25 * _smooth(axis, rng, 3.0))


def _centers(radius: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw centers about two radii apart that cover the field and its rim, (n, 2)."""
    rows = np.arange(-radius, FIELD + 2 * radius, 1.75 * radius)
    columns = np.arange(-radius, FIELD + 2 * radius, 2.0 * radius)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + radius * (np.arange(len(rows))[:, None] % 2)  # as honey bees do
    centers = np.stack([y.ravel(), x.ravel()], axis=1) - rng.uniform(0, 2 * radius, 2)
    return centers + rng.normal(0, 0.16 * radius, centers.shape)


def _nearest(centers: NDArray[np.float64], radii: NDArray[np.float64], axis: Map) -> Map:
    """How far each place is from the nearest center, in its radii, (size, size)."""
    scaled = axis / radii[:, None] - centers.T[:, :, None] / radii[:, None]
    squares = (scaled**2).astype(np.float32)
    return np.sqrt((squares[0][:, :, None] + squares[1][:, None, :]).min(axis=0))


def _glands(
    measures: Mapping[str, float], axis: Map, rng: np.random.Generator
) -> tuple[Map, Map, NDArray[np.float64]]:
    """Draw glands: what lies in one, what in a lumen, (size, size) each from 0 to 1; and their nuclei.

    Nuclei are (n, 3): row, column and the direction in which they point.
    """
    radius, share, wild = measures["gland_radius"], measures["glands"], measures["pleomorphism"]
    centers = _centers(radius, rng)
    centers = centers[rng.random(len(centers)) < share]
    if not len(centers):
        nothing = np.zeros((len(axis), len(axis)), dtype=np.float32)
        return nothing, nothing, np.empty((0, 3))
    radii = radius * rng.lognormal(-0.08, 0.1 + 0.3 * wild, len(centers))
    place = _nearest(centers, radii, axis) * (1 + (0.05 + 0.25 * wild) * _smooth(axis, rng, 8.0))
    inside = np.clip((1 - place) * radius + 0.5, 0, 1).astype(np.float32)
    hole = np.clip((measures["lumen"] - place) * radius + 0.5, 0, 1).astype(np.float32)
    lumen = hole if measures["lumen"] > 0 else np.zeros_like(hole)
    owner = rng.integers(len(centers), size=int(len(centers) * measures["density"] * radius / 60) + 1)
    turn = rng.uniform(0, 2 * math.pi, len(owner))
    least = max(RING[0], min(measures["lumen"] + 0.12, RING[1] - 0.1))
    out = rng.uniform(least, RING[1], len(owner)) * radii[owner]
    ring = np.stack(
        [centers[owner, 0] + out * np.sin(turn), centers[owner, 1] + out * np.cos(turn), turn], axis=1
    )
    return inside, lumen, ring


def _fat(share: float, axis: Map, rng: np.random.Generator) -> Map:
    """Draw fat cells, whose fat the laboratory washes out: 1 where nothing is left, (size, size)."""
    centers = _centers(BUBBLE_RADIUS, rng)
    centers = centers[rng.random(len(centers)) < share]
    if not len(centers):
        return np.zeros((len(axis), len(axis)), dtype=np.float32)
    radii = BUBBLE_RADIUS * rng.lognormal(0.05, 0.12, len(centers))
    return np.clip((0.97 - _nearest(centers, radii, axis)) * BUBBLE_RADIUS + 0.5, 0, 1)


def _nuclei(
    measures: Mapping[str, float],
    axis: Map,
    course: float,
    empty: Map,
    ring: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[Map, Map]:
    """Draw the nuclei of glands and those between: nuclei and what lies around them, (size, size), 0 to 1."""
    size, count = len(axis), int(rng.poisson(measures["density"]))
    loose = rng.uniform(-2, FIELD + 2, (count, 2))
    # Layers: nuclei crowd towards one side of the tile, as above a basal membrane.
    side = loose @ np.array([math.sin(course + math.pi / 2), math.cos(course + math.pi / 2)]) / FIELD
    side = (side - side.min()) / max(float(np.ptp(side)), 1e-6) if count else side
    kept = rng.random(count) < 1 - measures["layers"] * side
    kept &= rng.random(count) > measures["glands"] * 0.6  # where glands are, the ring has them
    wander = math.pi / 2 * (1 - measures["alignment"])
    angles = course + rng.uniform(-wander, wander, count)
    places = np.concatenate([np.column_stack([loose, angles])[kept], ring])
    cell = np.clip((places[:, :2] * size / FIELD).astype(int), 0, size - 1)
    places = places[empty[cell[:, 0], cell[:, 1]] < 0.5]
    radii = measures["radius"] * rng.lognormal(0.0, 0.08 + measures["pleomorphism"], len(places))
    stretch = np.sqrt(np.maximum(1.0, measures["elongation"] * rng.lognormal(0.0, 0.12, len(places))))
    dye = rng.uniform(0.75, 1.0, len(places))
    return _stamped(places, np.clip(radii, 0.7, 5.0), stretch, dye, size)


def _stamped(
    places: NDArray[np.float64],
    radii: NDArray[np.float64],
    stretch: NDArray[np.float64],
    dye: NDArray[np.float64],
    size: int,
) -> tuple[Map, Map]:
    """Ellipses and the halos around them, (size, size) each; where two meet the darker one counts."""
    scale = size / FIELD
    lengths, widths = radii * stretch * scale, radii / stretch * scale
    rim = math.ceil(HALO * float(lengths.max(initial=1.0))) + 1  # for those that stand half outside
    wide = size + 4 * rim
    found = np.zeros((2, wide * wide), dtype=np.float32)
    # The small ones in small windows: a few long nuclei would make all of them wait.
    for few in np.array_split(np.argsort(lengths), WINDOWS):
        if len(few):
            shapes = np.array([*places[few].T, lengths[few], widths[few], dye[few]])
            _stamp(found, shapes * np.array([[scale], [scale], [1], [1], [1], [1]]), rim, wide)
    cut = slice(2 * rim, 2 * rim + size)
    nuclei, around = found.reshape(2, wide, wide)[:, cut, cut]
    return nuclei, around


def _stamp(found: Map, shapes: NDArray[np.float64], rim: int, wide: int) -> None:
    """Add ellipses, (6, n): row, column, direction, length, width, dye; to flat maps, (2, wide * wide)."""
    reach = math.ceil(HALO * float(shapes[3].max())) + 1
    steps = np.arange(-reach, reach + 1)
    corner = np.clip(np.floor(shapes[:2]), -rim, wide - 3 * rim - 1).astype(int)
    # Single precision from here on: this is most of a tile's time.
    rest = (shapes[:2] - corner - 0.5).astype(np.float32)[:, :, None, None]
    dy, dx = steps.astype(np.float32)[:, None] - rest[0], steps.astype(np.float32) - rest[1]
    turned = np.array([np.sin(shapes[2]), np.cos(shapes[2]), *shapes[3:]], dtype=np.float32)
    sine, cosine, length, width, dark = turned[:, :, None, None]
    out = np.sqrt(((cosine * dx + sine * dy) / length) ** 2 + ((cosine * dy - sine * dx) / width) ** 2)
    index = (corner[0][:, None, None] + steps[:, None] + 2 * rim) * wide
    index = (index + corner[1][:, None, None] + steps + 2 * rim).ravel()
    np.maximum.at(found[0], index, (np.clip((1 - out) * width + 0.5, 0, 1) * dark).ravel())
    np.maximum.at(found[1], index, np.clip((HALO - out) * width + 0.5, 0, 1).ravel())


def _blurred(dyes: Map, spread: float) -> Map:
    """The maps (size, size, 2) out of focus by ``spread`` pixels."""
    if spread < 0.2:
        return dyes
    reach = max(1, math.ceil(2.5 * spread))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        rim = [(reach, reach) if one == axis else (0, 0) for one in range(3)]
        padded, length = np.pad(dyes, rim, mode="edge"), dyes.shape[axis]
        parts = [np.take(padded, range(k, k + length), axis=axis) for k in range(len(kernel))]
        dyes = np.tensordot(kernel, np.stack(parts), axes=1).astype(np.float32)
    return dyes
