from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from client.patients.photos import ImageRef
from client.patients.stain import LIGHT, normalize_stain, stain_normalized

SIDE = 96
# Optical densities of red, green and blue, as columns hematoxylin and eosin: the reference, a bluish
# laboratory and a reddish one.
REFERENCE = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
BLUISH = np.array([[0.70, 0.33], [0.65, 0.80], [0.30, 0.50]])
REDDISH = np.array([[0.50, 0.26], [0.76, 0.70], [0.42, 0.66]])


def amounts(seed: int = 0) -> NDArray[np.float64]:
    """How much of both stains each pixel holds: nuclei, fibers, both, and a border of glass."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, (SIDE, SIDE))
    hematoxylin = np.where(kind == 1, 0.02, rng.uniform(0.5, 1.6, (SIDE, SIDE)))
    eosin = np.where(kind == 0, 0.02, rng.uniform(0.4, 1.0, (SIDE, SIDE)))
    both = np.stack([hematoxylin, eosin], axis=2)
    both[: SIDE // 4] = 0
    return both


def stained(stains: NDArray[np.float64], strength: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    intensity = LIGHT * np.exp(-strength * amounts(seed) @ stains.T)
    return np.clip(np.rint(intensity), 0, 255).astype(np.uint8)


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_two_stainings_of_one_tissue_come_ten_times_closer() -> None:
    one, other = stained(BLUISH, 0.7), stained(REDDISH, 1.1)
    before = distance(one, other)
    after = distance(normalize_stain(one), normalize_stain(other))
    assert before > 20
    assert after < before / 10


def test_a_tile_in_the_reference_stains_hardly_changes_its_hue() -> None:
    pixels = stained(REFERENCE)
    density = -np.log((normalize_stain(pixels)[SIDE // 4 :].reshape(-1, 3) + 1.0) / LIGHT)
    _, residual, *_ = np.linalg.lstsq(REFERENCE, density.T, rcond=None)
    assert residual.sum() / (density**2).sum() < 1e-3


def test_normalizing_again_changes_next_to_nothing() -> None:
    once = normalize_stain(stained(BLUISH, 0.7))
    assert distance(stained(BLUISH, 0.7), once) > 10
    assert distance(once, normalize_stain(once)) < 1


def test_nuclei_stay_darker_in_red_than_fibers() -> None:
    # Hematoxylin comes first: were the stains swapped, fibers would turn blue and nuclei pink.
    pixels, held = normalize_stain(stained(BLUISH)), amounts()
    nuclei = (held[:, :, 0] > 1.0) & (held[:, :, 1] < 0.1)
    fibers = (held[:, :, 1] > 0.6) & (held[:, :, 0] < 0.1)
    assert pixels[nuclei][:, 0].mean() < 0.7 * pixels[fibers][:, 0].mean()


def test_the_same_pixels_in_any_order_give_the_same_colors() -> None:
    pixels = stained(REDDISH)
    assert (normalize_stain(pixels) == normalize_stain(pixels.copy())).all()
    turned = normalize_stain(np.ascontiguousarray(pixels[::-1, ::-1]))
    assert distance(turned[::-1, ::-1], normalize_stain(pixels)) < 0.01


def white() -> NDArray[np.uint8]:
    return np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)


def little_tissue() -> NDArray[np.uint8]:
    pixels = white()
    pixels[:12, :12] = stained(REFERENCE)[-12:, -12:]
    return pixels


def one_stain(noise: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    density = rng.uniform(0.5, 1.5, (SIDE, SIDE, 1)) * REFERENCE[:, 0]
    return (LIGHT * np.exp(-density) + rng.integers(-noise, noise + 1, density.shape)).astype(np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [
        white(),
        white()[:1, :1],
        np.zeros((SIDE, SIDE, 3), dtype=np.uint8),
        np.full((SIDE, SIDE, 3), (150, 90, 160), dtype=np.uint8),
        stained(REFERENCE)[-5:, -5:],
        little_tissue(),
        one_stain(0),
        one_stain(1),
    ],
    ids=["white", "one pixel", "black", "one color", "tiny", "little tissue", "one stain", "one noisy stain"],
)
def test_a_tile_with_too_little_tissue_or_of_one_stain_comes_back_unchanged(
    pixels: NDArray[np.uint8],
) -> None:
    assert (normalize_stain(pixels) == pixels).all()


def test_a_little_more_tissue_is_normalized() -> None:
    pixels = white()
    pixels[:24, :24] = stained(BLUISH)[-24:, -24:]
    assert distance(normalize_stain(pixels), pixels) > 1


def test_glass_stays_near_white() -> None:
    pixels = stained(BLUISH, 0.7)
    assert (normalize_stain(pixels)[: SIDE // 4] >= 230).all()


def test_noise_and_odd_shapes_give_pixels() -> None:
    rng = np.random.default_rng(0)
    for shape in ((64, 64, 3), (1, 400, 3), (400, 1, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        assert normalize_stain(pixels).shape == shape
        assert normalize_stain(pixels).dtype == np.uint8


def test_the_input_is_neither_changed_nor_writable_through_the_result() -> None:
    for pixels in (stained(BLUISH), white()):
        before = pixels.copy()
        with pytest.raises(ValueError, match="read-only"):
            normalize_stain(pixels)[0, 0, 0] = 1
        assert (pixels == before).all()


@pytest.mark.parametrize("array", [white()[:, :, 0], white().astype(float), white()[:0]])
def test_an_array_that_is_no_image_is_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        normalize_stain(array)


@dataclass
class Counting:
    """A tile that counts how often it is read."""

    count: int = 0

    def pixels(self) -> NDArray[np.uint8]:
        self.count += 1
        return stained(BLUISH)


def test_a_reference_normalizes_when_it_is_asked() -> None:
    tile = Counting()
    normalized = stain_normalized(tile)
    assert tile.count == 0
    assert (normalized.pixels() == normalize_stain(stained(BLUISH))).all()
    assert tile.count == 1


def test_references_to_the_same_tile_are_equal_and_print_no_path() -> None:
    one, same = (stain_normalized(ImageRef(array=stained(BLUISH))) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != stain_normalized(ImageRef(array=white()))
    assert repr(one) == "StainNormalized(tile=ImageRef(array of (96, 96, 3)))"
