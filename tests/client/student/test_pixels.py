from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.patients.photos import ImageRef, SlideRef
from client.student.pixels import PixelCache

WORDS = 10
BYTES = 4 * WORDS


class Reader:
    """Counts how often each image is read; its tensor has one row more than its name says."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, image: SlideRef) -> dict[str, Tensor]:
        assert isinstance(image, ImageRef)
        assert image.path is not None
        self.read.append(image.path.name)
        return {"pixel_values": torch.zeros(1, WORDS)}


def images(count: int) -> list[ImageRef]:
    return [ImageRef(path=Path(f"{i}")) for i in range(count)]


def test_an_image_is_read_once_while_all_that_was_read_since_then_fits() -> None:
    reader = Reader()
    cache = PixelCache(reader, 3 * BYTES)
    one, two, three, four = images(4)
    for image in (one, two, three, one, two, three):
        cache.tensors(image)
    assert reader.read == ["0", "1", "2"]
    cache.tensors(one)
    cache.tensors(four)
    # Two was used longest ago.
    for image in (one, three, four):
        cache.tensors(image)
    assert reader.read == ["0", "1", "2", "3"]
    cache.tensors(two)
    assert reader.read[4:] == ["1"]


def test_the_cache_holds_at_most_its_bound() -> None:
    reader = Reader()
    cache = PixelCache(reader, 2 * BYTES)
    for image in images(5) * 2:
        cache.tensors(image)
        assert cache._bytes == BYTES * len(cache._kept) <= 2 * BYTES
    assert len(reader.read) == 10


def test_an_image_beyond_the_bound_is_read_and_not_kept() -> None:
    reader = Reader()
    cache = PixelCache(reader, BYTES - 1)
    (image,) = images(1)
    assert cache.tensors(image)["pixel_values"].shape == (1, WORDS)
    assert cache._bytes == 0
    assert not cache._kept


def test_shapes_are_known_when_the_pixels_are_gone() -> None:
    reader = Reader()
    cache = PixelCache(reader, 0)
    image = ImageRef(array=np.zeros((2, 2, 3), np.uint8))
    cache.keep(image, {"pixel_values": torch.zeros(7, 3, 2, 2), "image_grid_thw": torch.zeros(1, 3)})
    assert cache.shapes(image) == (("image_grid_thw", (3,)), ("pixel_values", (3, 2, 2)))
    assert reader.read == []


def test_keeping_an_image_again_counts_it_once() -> None:
    cache = PixelCache(Reader(), 3 * BYTES)
    (image,) = images(1)
    for _ in range(5):
        cache.keep(image, {"pixel_values": torch.zeros(1, WORDS)})
    assert cache._bytes == BYTES
