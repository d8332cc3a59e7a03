"""Masks that cancel in the sum.

Every pair of sites shares a key. The site with the smaller name adds the mask grown from it, the other
subtracts it, and the coordinator's sum modulo 2**32 is left with neither. A mask of its own, which the
others help to take off, keeps a vector hidden that arrives after its site was given up
(Bonawitz et al. 2017, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from common.fixedpoint import Words
from common.ids import SiteId
from common.ranges import in_ranges
from common.secagg.keys import KEY_SIZE, Roster, SumSecrets, pair_mask_key, self_mask_key

# 256 KiB: a block of the vector and one of the keystream stay in a core's second cache together.
BLOCK_WORDS = 65536
WORD_SIZE = 4
AES_BLOCK = 16

_ZEROS = bytes(BLOCK_WORDS * WORD_SIZE)


def add_masks(
    words: Words, *, plus: Sequence[bytes] = (), minus: Sequence[bytes] = (), threads: int | None = None
) -> None:
    """Add the masks of the keys ``plus`` onto ``words`` and take away those of ``minus``, in place.

    A mask is the keystream of AES-256-CTR (SP 800-38A) as little-endian uint32, added modulo 2**32. The
    counter starts at zero, which it may since a key grows one mask only. Ranges of a long vector are masked
    at once, ``threads`` at most, as many as there are processors by default.

    Guarantee: without the key the words look uniform and independent.
    """
    if words.dtype != np.dtype("<u4") or words.ndim != 1 or not words.flags.c_contiguous:
        raise ValueError(f"Expected contiguous words of uint32, one axis, got {words.dtype} {words.shape}")

    def add_range(start: int, end: int) -> None:
        steps: list[tuple[CipherContext, np.ufunc]] = [(_keystream(key, start), np.add) for key in plus]
        steps += [(_keystream(key, start), np.subtract) for key in minus]
        # CTR wants room for one block less a byte beyond its output.
        buffer = bytearray(len(_ZEROS) + AES_BLOCK - 1)
        zeros, mask = memoryview(_ZEROS), np.frombuffer(buffer, dtype="<u4", count=BLOCK_WORDS)
        for first in range(start, end, BLOCK_WORDS):
            block = words[first : min(first + BLOCK_WORDS, end)]
            for keystream, combine in steps:
                keystream.update_into(zeros[: WORD_SIZE * len(block)], buffer)
                combine(block, mask[: len(block)], out=block)

    in_ranges(add_range, len(words), step=BLOCK_WORDS, threads=threads)


def mask_keys(
    roster: Roster, members: Sequence[SiteId], transcript: bytes, site: SiteId, own: SumSecrets
) -> tuple[list[bytes], list[bytes]]:
    """The keys of the masks that a site adds, and of those that it takes away.

    Raises:
        BadRosterError: A peer's key is of small order.
    """
    plus = [self_mask_key(transcript, site, own.self_seed)]
    minus: list[bytes] = []
    for peer in members:
        if peer != site:
            key = pair_mask_key(roster, transcript, site, own.mask_key, peer)
            (plus if site < peer else minus).append(key)
    return plus, minus


def mask_words(
    words: Words,
    *,
    roster: Roster,
    members: Sequence[SiteId],
    transcript: bytes,
    site: SiteId,
    own: SumSecrets,
) -> None:
    """Mask a site's vector in place.

    Guarantee: without the secrets of the site and of its peers the words look uniform, and the sum of
    all members' words is the sum of their vectors and self masks.
    """
    plus, minus = mask_keys(roster, members, transcript, site, own)
    add_masks(words, plus=plus, minus=minus)


def unmask_sum(
    total: Words,
    *,
    roster: Roster,
    transcript: bytes,
    seeds: dict[SiteId, bytes],
    lost_mask_keys: dict[SiteId, bytes],
) -> None:
    """Take all masks off the sum of the survivors' words, in place.

    Args:
        total: Sum of the masked words of all sites in ``seeds``, modulo 2**32.
        roster: The sum's.
        transcript: That the masks were bound to.
        seeds: Of the survivors' self masks.
        lost_mask_keys: Private mask keys of the members that are not in the sum: what survivors added
            for them was never taken away.
    """
    plus: list[bytes] = []
    minus = [self_mask_key(transcript, site, seed) for site, seed in seeds.items()]
    for lost, private in lost_mask_keys.items():
        for survivor in seeds:
            key = pair_mask_key(roster, transcript, lost, private, survivor)
            (minus if survivor < lost else plus).append(key)
    add_masks(total, plus=plus, minus=minus)


def _keystream(key: bytes, start: int) -> CipherContext:
    """The keystream from word ``start`` on, a multiple of the words of an AES block."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"Expected a mask's key of {KEY_SIZE} bytes, got {len(key)}")
    counter = (WORD_SIZE * start // AES_BLOCK).to_bytes(AES_BLOCK, "big")
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
