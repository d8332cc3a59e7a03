"""Tensors of images, kept while they fit.

Decoding and resizing a tile takes longer than reading it from memory, and every pass over the patients reads
each tile again. What was used longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor

from client.patients.photos import SlideRef

ImageTensors: TypeAlias = Mapping[str, Tensor]
"""A processor's tensors of one image, by the name of the model's argument; dimension 0 counts images or parts
of images, so that several images are joined along it."""
Shapes: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""The shapes without dimension 0, by name. Images of the same shapes can be joined."""


class PixelCache:
    """The tensors of the images used last, at most ``bound`` bytes of them.

    Guarantee: an image is read once while all that was read since then fits in the bound.
    """

    def __init__(self, read: Callable[[SlideRef], ImageTensors], bound: int) -> None:
        """Empty; ``read`` decodes an image and gives its tensors."""
        self._read, self._bound, self._bytes = read, bound, 0
        self._kept: OrderedDict[SlideRef, ImageTensors] = OrderedDict()
        # Shapes are asked for before the pixels are needed: they stay when the pixels go.
        self._shapes: WeakKeyDictionary[SlideRef, Shapes] = WeakKeyDictionary()

    def tensors(self, image: SlideRef) -> ImageTensors:
        """The image's tensors; BadFileError if its file cannot be read."""
        if image in self._kept:
            self._kept.move_to_end(image)
            return self._kept[image]
        tensors = self._read(image)
        self.keep(image, tensors)
        return tensors

    def shapes(self, image: SlideRef) -> Shapes:
        """What must be equal in two images that are joined."""
        if image not in self._shapes:
            self.tensors(image)
        return self._shapes[image]

    def keep(self, image: SlideRef, tensors: ImageTensors) -> None:
        """Take in tensors that were read elsewhere; those used longest ago make room."""
        self._shapes[image] = tuple(sorted((name, tuple(t.shape[1:])) for name, t in tensors.items()))
        self._drop(image)
        self._kept[image] = tensors
        self._bytes += _bytes(tensors)
        while self._bytes > self._bound:
            self._drop(next(iter(self._kept)))

    def _drop(self, image: SlideRef) -> None:
        self._bytes -= _bytes(self._kept.pop(image, {}))


def _bytes(tensors: ImageTensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
