"""A secret in n shares, any t of which give it back, and fewer of which tell nothing (Shamir 1979).

A share is the value of a random polynomial of degree t - 1 at the place of its owner, modulo the prime
2**521 - 1, which holds every secret of 32 bytes.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import combinations

PRIME = 2**521 - 1
SHARE_SIZE = 66
SECRET_SIZE = 32
MAX_TRIES = 500


def split(secret: bytes, *, shares: int, threshold: int) -> tuple[bytes, ...]:
    """The shares for the places 1 to ``shares``, 66 bytes each.

    Guarantee: fewer than ``threshold`` shares are independent of the secret.
    """
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"Expected a secret of {SECRET_SIZE} bytes, got {len(secret)}")
    if not 1 <= threshold <= shares:
        raise ValueError(f"Expected 1 <= threshold <= shares, got {threshold} of {shares}")
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return tuple(_evaluate(polynomial, place).to_bytes(SHARE_SIZE, "big") for place in range(1, shares + 1))


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of the shares, by place; None if what they give is no secret of 32 bytes."""
    weights = _weights(tuple(shares))
    numbers = (int.from_bytes(share, "big") for share in shares.values())
    value = sum(number * weight for number, weight in zip(numbers, weights, strict=True)) % PRIME
    return value.to_bytes(SECRET_SIZE, "big") if value < 1 << 8 * SECRET_SIZE else None


def recover(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool]
) -> tuple[bytes, tuple[int, ...]] | None:
    """The secret that ``is_right`` accepts, and the places that gave it, also where some shares are wrong.

    The first ``threshold`` shares are tried first: a caller puts those first that were right before. Then
    spare shares make up for wrong ones: all sets of places if there are at most ``MAX_TRIES``, as with a
    dozen sites, or else so many at random. None if no set gives the secret.
    """
    for places in _sets(tuple(shares), threshold):
        secret = join({place: shares[place] for place in places})
        if secret is not None and is_right(secret):
            return secret, places
    return None


@lru_cache(maxsize=256)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at zero. Kept: the secrets of a sum come from the same places."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)


def _sets(places: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    if math.comb(len(places), threshold) <= MAX_TRIES:
        yield from combinations(places, threshold)
        return
    yield places[:threshold]
    # A third of the places wrong would leave (2/3)**threshold of all sets right; a few wrong leave many.
    for _ in range(MAX_TRIES - 1):
        yield tuple(secrets.SystemRandom().sample(places, threshold))


def _evaluate(polynomial: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * place + coefficient) % PRIME
    return value
