"""Numbers as words that add up without loss.

A site's floats become integers modulo 2**bits, so that a sum of words is the sum of the numbers,
whatever the order, and a mask that is added and taken away leaves no trace. The scale is chosen so
that the sum of all terms still fits: it never wraps (the ring of Bonawitz et al. 2017 is chosen so too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.ranges import in_ranges

WORD_BITS = 32
# With two threads the interpreter would be the limit in smaller blocks.
BLOCK = 65536

Words = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How a float is written as a word, for a sum of a known number of terms.

    Guarantee: the decoded sum of up to ``terms`` encoded vectors differs from the true sum (of the
    values, clipped to ``max_abs``) by at most ``terms / (2 * scale)`` per coordinate and never wraps.

    Attributes:
        bits: Words are integers modulo ``2**bits``, kept in uint32.
        scale: Steps per unit, a power of two, so that scaling is exact in float64.
        max_abs: Largest absolute value that is encoded; what lies beyond is clipped to it.
        terms: How many vectors may be summed.
    """

    bits: int = WORD_BITS
    scale: float
    max_abs: float
    terms: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= WORD_BITS:
            raise ValueError(f"Expected bits between 2 and {WORD_BITS}, got {self.bits}")
        if not 0 < self.max_abs < math.inf:
            raise ValueError(f"Expected max_abs > 0 and finite, got {self.max_abs}")
        if self.terms < 1:
            raise ValueError(f"Expected terms >= 1, got {self.terms}")
        if not (0 < self.scale < math.inf and math.frexp(self.scale)[0] == 0.5):
            raise ValueError(f"Expected scale to be a power of two, got {self.scale}")
        if not math.isfinite(self.max_abs * self.scale) or self._largest() * self.terms >= self._half():
            raise ValueError(
                f"Expected round(max_abs * scale) * terms < 2**{self.bits - 1}, "
                f"got max_abs {self.max_abs}, scale {self.scale}, terms {self.terms}"
            )

    @classmethod
    def for_sum(cls, max_abs: float, terms: int, bits: int = WORD_BITS) -> FixedPoint:
        """The finest fixed point whose sum of ``terms`` vectors never wraps."""
        if not 0 < max_abs < math.inf:
            raise ValueError(f"Expected max_abs > 0 and finite, got {max_abs}")
        if not 2 <= bits <= WORD_BITS:
            raise ValueError(f"Expected bits between 2 and {WORD_BITS}, got {bits}")
        largest = (1 << (bits - 1)) - 1
        if not 1 <= terms <= largest:
            raise ValueError(f"Expected terms between 1 and {largest}, got {terms}")
        share = largest // terms
        # One above the exponent that the logarithm suggests, then down to the first that fits.
        exponent = math.frexp(share)[1] - math.frexp(max_abs)[1] + 2
        while round(math.ldexp(max_abs, exponent)) > share:
            exponent -= 1
        try:
            scale = math.ldexp(1.0, exponent)
        except OverflowError as error:
            raise ValueError(f"Expected max_abs of a size that can be scaled, got {max_abs}") from error
        return cls(bits=bits, scale=scale, max_abs=float(max_abs), terms=terms)

    def encode(self, values: NDArray[np.floating[Any]]) -> Words:
        """Words of the values, rounded to the nearest step; same shape, two's complement modulo 2**bits."""
        numbers = np.asarray(values)
        flat = numbers.reshape(-1)
        words = np.empty(flat.shape, dtype=np.uint32)
        exact = self._exact_type(numbers)

        def encode_range(start: int, end: int) -> None:
            steps = np.empty(min(BLOCK, end - start), dtype=exact)
            # Block by block: what is computed on the way stays in the cache.
            for first in range(start, end, BLOCK):
                block = flat[first : min(first + BLOCK, end)]
                some = steps[: block.size]
                # Two looks are faster than a test of each value; what is no number fails the comparison.
                if -self.max_abs <= float(block.min()) and float(block.max()) <= self.max_abs:
                    np.multiply(block, exact(self.scale), out=some, dtype=exact)
                else:
                    _require_finite(block)
                    np.clip(block, exact(-self.max_abs), exact(self.max_abs), out=some)
                    np.multiply(some, exact(self.scale), out=some)
                np.rint(some, out=some)
                # All fit: what was clipped is below 2**31 (see `__post_init__`).
                np.copyto(words[first : first + block.size].view(np.int32), some, casting="unsafe")

        in_ranges(encode_range, flat.size, step=BLOCK)
        if self.bits < WORD_BITS:
            words &= np.uint32((1 << self.bits) - 1)
        return words.reshape(numbers.shape)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """The values of words, or of their sum."""
        _require_words(words)
        # Up to the top, so that the sign is where int32 has it, and down again.
        unused = WORD_BITS - self.bits
        steps = words.view(np.int32) if not unused else (words << np.uint32(unused)).view(np.int32) >> unused
        return steps.astype(np.float64) / self.scale

    def clipped(self, values: NDArray[np.floating[Any]]) -> int:
        """How many values lie beyond ``max_abs`` and would be clipped."""
        numbers = np.asarray(values)
        _require_finite(numbers)
        return int(np.count_nonzero(np.abs(numbers) > self.max_abs))

    def _largest(self) -> int:
        return round(self.max_abs * self.scale)

    def _exact_type(self, numbers: NDArray[np.floating[Any]]) -> type[np.floating[Any]]:
        """float32, which is faster, where it gives the same words: a power of two scales exactly."""
        narrow = numbers.dtype == np.float32 and float(np.float32(self.max_abs)) == self.max_abs
        return np.float32 if narrow and self.scale < float(np.finfo(np.float32).max) else np.float64

    def _half(self) -> int:
        return 1 << (self.bits - 1)


def add_words(total: Words, words: Words) -> Words:
    """Add ``words`` onto ``total`` in place, modulo 2**32; the changed ``total`` comes back."""
    _require_words(total)
    _require_words(words)
    if total.shape != words.shape:
        raise ValueError(f"Expected words of shape {total.shape}, got {words.shape}")
    flat, more = total.reshape(-1), words.reshape(-1)
    if not np.shares_memory(flat, total):
        return np.add(total, words, out=total)

    def add_range(start: int, end: int) -> None:
        np.add(flat[start:end], more[start:end], out=flat[start:end])

    in_ranges(add_range, flat.size, step=BLOCK)
    return total


def encode_counts(
    counts: Sequence[int] | NDArray[np.integer[Any]], *, terms: int = 1, bits: int = WORD_BITS
) -> Words:
    """Words of whole numbers that add up: each must fit even if ``terms`` sites send as much."""
    if terms < 1:
        raise ValueError(f"Expected terms >= 1, got {terms}")
    largest = ((1 << bits) - 1) // terms
    for count in counts:
        if not 0 <= int(count) <= largest or int(count) != count:
            raise ValueError(f"Expected counts between 0 and {largest}, got {count}")
    return np.array([int(count) for count in counts], dtype=np.uint32)


def decode_counts(words: Words) -> tuple[int, ...]:
    """The whole numbers of words, or of their sum."""
    _require_words(words)
    return tuple(int(word) for word in words)


def _require_finite(values: NDArray[np.floating[Any]]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(f"Expected finite values, got {np.count_nonzero(~finite)} that are not")


def _require_words(words: Words) -> None:
    if words.dtype != np.uint32:
        raise ValueError(f"Expected words of uint32, got {words.dtype}")
