"""Whole-slide images: tiles of the tissue, at one resolution, read when they are asked for.

A slide of 100,000 x 100,000 pixels is 30 GB when decoded. It is never decoded whole: tissue is looked for on
an overview from a reduced level, and a tile is read from the level nearest to its resolution. What OpenSlide
opens is a slide (SVS, NDPI, MRXS, tiled TIFF, DICOM and others); a plain TIFF, PNG or JPEG stays an image.

Tissue is what has color: saturation above Otsu's threshold (Otsu 1979, "A threshold selection method from
gray-level histograms", IEEE Trans. SMC 9(1)). A pen's mark has color too and counts as tissue.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openslide import (
    PROPERTY_NAME_MPP_X,
    PROPERTY_NAME_MPP_Y,
    OpenSlide,
    OpenSlideCache,
    OpenSlideError,
    OpenSlideUnsupportedFormatError,
)
from PIL import Image

from client.patients.open_files import OpenFiles
from client.patients.photos import as_rgb, read_only, require_regular
from client.patients.slide_trial import needs_trial, survives
from common.errors import BadFileError

MAX_SIDE = 2**18
"""A slide's largest side, pixels of level 0: 65 mm at 0.25 µm a pixel, a glass slide is 75 mm long."""
MAX_REGION_PIXELS = 2**24
"""What is decoded at once: a tile before it is resized, or one of the file's own tiles."""
MAX_OVERVIEW_PIXELS = 2**26
"""The pixels of the level that the overview is made from; read block by block."""
OVERVIEW_SIDE = 2048
MAX_OPEN = 8
CACHE_BYTES = 32 * 2**20
SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi"})
"""Names that promise a slide, so that a broken one is called that and not a bad photo."""

_MPP_RANGE = (0.02, 20.0)
_MPP_TOLERANCE = 0.1
_LEAST_SQUARE = 0.05
# A multiple of the overview's factor fits: MAX_SIDE / OVERVIEW_SIDE is 128.
_BLOCK_SIDE = 1024
# A level that misses the downsample asked for by a hair is the one that was meant.
_LEVEL_SLACK = 1.01
# Of 255. Below the floor is a scanner's white; above the ceiling Otsu has parted tissue from tissue, on a
# slide that holds nothing else.
_SATURATION_FLOOR = 15
_SATURATION_CEILING = 64


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a slide is cut.

    Attributes:
        microns_per_pixel: Resolution of a tile.
        size: A tile's height and width, pixels.
        least_tissue: Share of a tile that must be tissue.
        most_tiles: Where more tiles hold tissue, evenly spread ones among them are taken in reading order:
            those with the most tissue would all come from its densest part.
    """

    microns_per_pixel: float = 0.5
    size: int = 224
    least_tissue: float = 0.5
    most_tiles: int = 256

    def __post_init__(self) -> None:
        low, high = _MPP_RANGE
        if not low <= self.microns_per_pixel <= high:
            raise ValueError(f"Expected microns_per_pixel in {low} to {high}, got {self.microns_per_pixel}")
        if not 1 <= self.size <= math.isqrt(MAX_REGION_PIXELS):
            raise ValueError(f"Expected size in 1 to {math.isqrt(MAX_REGION_PIXELS)}, got {self.size}")
        if not 0 < self.least_tissue <= 1:
            raise ValueError(f"Expected least_tissue above 0 and at most 1, got {self.least_tissue}")
        if self.most_tiles < 1:
            raise ValueError(f"Expected most_tiles >= 1, got {self.most_tiles}")


@dataclass(frozen=True, kw_only=True, repr=False)
class TileRef:
    """One tile of a slide.

    Attributes:
        path: The slide.
        x: Left edge, pixels of level 0.
        y: Upper edge, pixels of level 0.
        extent: Height and width, pixels of level 0.
        size: Height and width of what `pixels` gives.
    """

    path: Path
    x: int
    y: int
    extent: int
    size: int

    def __post_init__(self) -> None:
        if min(self.x, self.y) < 0 or max(self.x, self.y) >= MAX_SIDE:
            raise ValueError(f"Expected x and y in 0 to {MAX_SIDE - 1}, got {self.x} and {self.y}")
        if not 1 <= self.extent <= MAX_SIDE:
            raise ValueError(f"Expected extent in 1 to {MAX_SIDE}, got {self.extent}")
        if not 1 <= self.size <= math.isqrt(MAX_REGION_PIXELS):
            raise ValueError(f"Expected size in 1 to {math.isqrt(MAX_REGION_PIXELS)}, got {self.size}")

    def pixels(self) -> NDArray[np.uint8]:
        """The tile, uint8, (size, size, 3), RGB, read-only, what the scanner left out white.

        Raises:
            BadFileError: The slide cannot be read.
        """
        with _reading(self.path) as slide:
            level, side = _level_of_tile(slide, self.path, self.extent, self.size)
            region = as_rgb(slide.read_region((self.x, self.y), level, (side, side)))
        # Pillow's bilinear filter widens with the reduction, so that nothing between two pixels is lost.
        tile = region.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return read_only(np.array(tile, dtype=np.uint8))

    def __repr__(self) -> str:
        # A path may hold a name, so it stays out of what a log may print.
        return f"TileRef(x={self.x}, y={self.y}, extent={self.extent}, size={self.size})"


def is_slide(path: Path) -> bool:
    """Whether OpenSlide knows the file's format, or it is DICOM; False for a plain image and for no file."""
    try:
        require_regular(path)
        return needs_trial(path) or OpenSlide.detect_format(path) is not None
    except (OSError, BadFileError, OpenSlideError):
        return False


def tile_slide(path: Path, tiling: Tiling | None = None) -> tuple[TileRef, ...]:
    """The tiles of a slide that hold tissue, row by row; `Tiling`'s own settings if none are given.

    Guarantee: memory stays bounded, however large the slide. A damaged slide in DICOM ends no process: its
    tiles were read in another one first.

    Raises:
        BadFileError: What is wrong with the slide, or that no tile of it holds tissue.
    """
    tiling = tiling or Tiling()
    with _refusals(path):
        require_regular(path)
        if needs_trial(path) and not survives(path, astuple(tiling)):
            raise BadFileError(path, "a damaged slide")
    return _tiles(path, tiling)


def try_tiles(path: Path, tiling: Tiling) -> None:
    """Cut the slide and read its tiles, in the process of `client.patients.slide_trial`."""
    with suppress(BadFileError):
        for tile in _tiles(path, tiling):
            tile.pixels()


def _tiles(path: Path, tiling: Tiling) -> tuple[TileRef, ...]:
    with _reading(path) as slide:
        width, height = slide.dimensions
        extent = round(tiling.size * tiling.microns_per_pixel / _microns_per_pixel(slide, path, tiling))
        if min(width, height) < extent:
            raise BadFileError(path, f"{width} x {height} pixels, too small for a tile of {extent}")
        _level_of_tile(slide, path, extent, tiling.size)
        is_tissue = _is_tissue(_overview(slide, path, extent))
    rows, columns = np.nonzero(_shares(is_tissue, (width, height), extent) >= tiling.least_tissue)
    if not len(rows):
        raise BadFileError(path, f"no tissue: no tile is tissue by a share of {tiling.least_tissue}")
    return tuple(
        TileRef(
            path=path, x=int(columns[i]) * extent, y=int(rows[i]) * extent, extent=extent, size=tiling.size
        )
        for i in _evenly_spread(len(rows), tiling.most_tiles)
    )


def _open(path: Path) -> OpenSlide:
    require_regular(path)
    slide = OpenSlide(path)
    try:
        _require_bounds(slide, path)
        slide.set_cache(_cache)
    except BaseException:
        slide.close()
        raise
    return slide


# One cache for all slides that are open: OpenSlide's own would be one each.
_cache = OpenSlideCache(CACHE_BYTES)
_slides: OpenFiles[OpenSlide] = OpenFiles(_open, MAX_OPEN)


@contextmanager
def _reading(path: Path) -> Iterator[OpenSlide]:
    with _refusals(path), _slides.reading(path) as slide:
        yield slide


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadFileError(path, "missing") from error
    except OSError as error:
        raise BadFileError(path, "not readable") from error
    except OpenSlideUnsupportedFormatError as error:
        raise BadFileError(path, "no slide of a format that OpenSlide knows") from error
    except OpenSlideError as error:
        # What OpenSlide says names the path.
        raise BadFileError(path, "a damaged slide") from error


def _require_bounds(slide: OpenSlide, path: Path) -> None:
    width, height = slide.dimensions
    if max(width, height) > MAX_SIDE:
        raise BadFileError(
            path, f"{width} x {height} pixels, a decompression bomb: a side has at most {MAX_SIDE}"
        )
    for level in range(slide.level_count):
        # Absent in a few formats, which bound their tiles themselves.
        sides = [
            slide.properties.get(f"openslide.level[{level}].tile-{side}", "1") for side in ("width", "height")
        ]
        if int(sides[0]) * int(sides[1]) > MAX_REGION_PIXELS:
            raise BadFileError(
                path, f"stored in tiles of {sides[0]} x {sides[1]} pixels, a decompression bomb"
            )


def _microns_per_pixel(slide: OpenSlide, path: Path, tiling: Tiling) -> float:
    """The slide's resolution; not guessed from the objective's power, for cameras differ as well."""
    x, y = (_number(slide.properties.get(name)) for name in (PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y))
    if x is None or y is None:
        raise BadFileError(path, "resolution unknown: no µm a pixel in the file")
    low, high = _MPP_RANGE
    if not (low <= x <= high and low <= y <= high):
        raise BadFileError(path, f"resolution of {x:.4g} x {y:.4g} µm a pixel, expected {low} to {high}")
    if abs(x / y - 1) > _LEAST_SQUARE:
        raise BadFileError(path, f"resolution of {x:.4g} x {y:.4g} µm a pixel, expected square pixels")
    if x > tiling.microns_per_pixel * (1 + _MPP_TOLERANCE):
        raise BadFileError(
            path, f"{x:.4g} µm a pixel, coarser than the {tiling.microns_per_pixel:.4g} asked for"
        )
    return x


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _level_of_tile(slide: OpenSlide, path: Path, extent: int, size: int) -> tuple[int, int]:
    """The level that a tile is read from, and the tile's side there."""
    level = slide.get_best_level_for_downsample(extent / size * _LEVEL_SLACK)
    side = max(1, round(extent / slide.level_downsamples[level]))
    if side * side > MAX_REGION_PIXELS:
        raise BadFileError(path, f"missing pyramid levels: a tile of {size} pixels would be read from {side}")
    return level, side


def _overview(slide: OpenSlide, path: Path, extent: int) -> Image.Image:
    """The whole slide in RGB, its larger side at most OVERVIEW_SIDE, read block by block."""
    level = _level_of_overview(slide, path)
    width, height = slide.level_dimensions[level]
    factor = math.ceil(max(width, height) / OVERVIEW_SIDE)
    if extent < slide.level_downsamples[level] * factor:
        raise BadFileError(
            path, f"missing pyramid levels: the one of {width} x {height} pixels is too coarse"
        )
    block = _BLOCK_SIDE // factor * factor
    overview = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)), "white")
    for y in range(0, height, block):
        for x in range(0, width, block):
            size = (min(block, width - x), min(block, height - y))
            part = as_rgb(slide.read_region(_at_level_0(slide, level, x, y), level, size))
            overview.paste(part.reduce(factor), (x // factor, y // factor))
    return overview


def _level_of_overview(slide: OpenSlide, path: Path) -> int:
    """The smallest level that fills an overview, else the largest."""
    sizes = slide.level_dimensions
    readable = [level for level, (width, height) in enumerate(sizes) if width * height <= MAX_OVERVIEW_PIXELS]
    if not readable:
        least = min(width * height for width, height in sizes)
        raise BadFileError(
            path, f"missing pyramid levels: the smallest has {least} pixels, above {MAX_OVERVIEW_PIXELS}"
        )
    filling = [level for level in readable if max(sizes[level]) >= OVERVIEW_SIDE]
    return max(filling) if filling else min(readable)


def _at_level_0(slide: OpenSlide, level: int, x: int, y: int) -> tuple[int, int]:
    downsample = slide.level_downsamples[level]
    return round(x * downsample), round(y * downsample)


def _is_tissue(overview: Image.Image) -> NDArray[np.bool_]:
    saturation = np.asarray(overview.convert("HSV"))[:, :, 1]
    threshold = min(max(_otsu(saturation), _SATURATION_FLOOR), _SATURATION_CEILING)
    return np.asarray(saturation > threshold)


def _otsu(values: NDArray[np.uint8]) -> int:
    """The threshold that parts 8-bit values into two classes with the largest variance between them."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    total_below = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = total_below / below - (total_below[-1] - total_below) / above
    return int(np.argmax(np.nan_to_num(below * above * gap**2)))


def _shares(is_tissue: NDArray[np.bool_], size: tuple[int, int], extent: int) -> NDArray[np.float32]:
    """The share of tissue in each whole tile, (rows, columns)."""
    (width, height), (overview_height, overview_width) = size, is_tissue.shape
    columns, rows = width // extent, height // extent
    covered = (0, 0, columns * extent / width * overview_width, rows * extent / height * overview_height)
    mask = Image.fromarray(is_tissue.astype(np.float32))
    return np.asarray(mask.resize((columns, rows), Image.Resampling.BOX, box=covered))


def _evenly_spread(count: int, most: int) -> NDArray[np.int64]:
    if count <= most:
        return np.arange(count)
    return np.arange(most) * count // most
