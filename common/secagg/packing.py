"""Words of fewer than 32 bits on their way: their bits side by side, without gaps.

A vector is cut into 32 planes of equal length, the last filled up with zeros. The words at one place of
all planes have 32 times ``bits`` bits, which fill exactly ``bits`` words of 32: plane after plane from the
lowest bit up. Whole planes are shifted at once, which NumPy does at the speed of memory.
"""

from __future__ import annotations

import numpy as np

from common.fixedpoint import WORD_BITS, Words

SMALLEST_BITS = 16


def packed_size(length: int, bits: int) -> int:
    """Words of 32 bits that ``length`` words of ``bits`` bits are packed into."""
    _require_bits(bits)
    return length if bits == WORD_BITS else bits * _plane_size(length)


def pack(words: Words, bits: int) -> Words:
    """The lowest ``bits`` bits of every word, packed; the words themselves if ``bits`` is 32."""
    _require_bits(bits)
    if bits == WORD_BITS:
        return words
    size = _plane_size(len(words))
    planes = np.zeros((WORD_BITS, size), dtype=np.uint32)
    planes.reshape(-1)[: len(words)] = words
    planes &= np.uint32((1 << bits) - 1)
    packed = np.zeros((bits, size), dtype=np.uint32)
    for plane in range(WORD_BITS):
        place, shift = divmod(plane * bits, WORD_BITS)
        packed[place] |= planes[plane] << np.uint32(shift)
        if shift + bits > WORD_BITS:
            packed[place + 1] |= planes[plane] >> np.uint32(WORD_BITS - shift)
    return packed.reshape(-1)


def unpack(packed: Words, bits: int, length: int) -> Words:
    """The ``length`` words of ``bits`` bits that were packed. ValueError if it is not so many."""
    if len(packed) != packed_size(length, bits):
        raise ValueError(f"Expected {packed_size(length, bits)} packed words, got {len(packed)}")
    if bits == WORD_BITS:
        return packed
    size = _plane_size(length)
    rows = packed.reshape(bits, size)
    planes = np.empty((WORD_BITS, size), dtype=np.uint32)
    for plane in range(WORD_BITS):
        place, shift = divmod(plane * bits, WORD_BITS)
        np.right_shift(rows[place], np.uint32(shift), out=planes[plane])
        if shift + bits > WORD_BITS:
            planes[plane] |= rows[place + 1] << np.uint32(WORD_BITS - shift)
    planes &= np.uint32((1 << bits) - 1)
    return planes.reshape(-1)[:length]


def _plane_size(length: int) -> int:
    return -(-length // WORD_BITS)


def _require_bits(bits: int) -> None:
    if not SMALLEST_BITS <= bits <= WORD_BITS:
        raise ValueError(f"Expected bits between {SMALLEST_BITS} and {WORD_BITS}, got {bits}")
