"""Secure aggregation in plain Python, number by number: what the fast code must agree with. For tests only.

Integers and lists where the fast code has arrays, X25519 and HKDF from their RFCs; one block of AES is all
that a library does here. No care is taken of time, neither its amount nor what it gives away.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common.canonical import labeled_digest
from common.ids import SiteId
from common.secagg.keys import PAIR_MASK_LABEL, SELF_MASK_LABEL, Roster, SumSecrets
from common.secagg.sharing import PRIME, SHARE_SIZE

RING = 2**32
CURVE_PRIME = 2**255 - 19


def plain_keystream(key: bytes, words: int) -> list[int]:
    """The first words of AES-256-CTR from counter zero: the counters, encrypted one by one."""
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    octets = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(-(-words // 4)))
    return [int.from_bytes(octets[4 * word : 4 * word + 4], "little") for word in range(words)]


def plain_mask(words: Sequence[int], plus: Iterable[bytes] = (), minus: Iterable[bytes] = ()) -> list[int]:
    """The words with the masks of the keys ``plus`` added and those of ``minus`` taken away."""
    masked = list(words)
    for sign, keys in ((1, plus), (-1, minus)):
        for key in keys:
            stream = plain_keystream(key, len(masked))
            masked = [(word + sign * mask) % RING for word, mask in zip(masked, stream, strict=True)]
    return masked


def plain_hkdf(secret: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869, section 2)."""
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    expanded = block = b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), hashlib.sha256)
        expanded += block
    return expanded[:length]


def plain_x25519(private: bytes, public: bytes) -> bytes:
    """X25519 (RFC 7748, section 5), the letters as there; zeros for a public key of small order."""
    p = CURVE_PRIME
    k = int.from_bytes(private, "little") & (2**254 - 8) | 2**254
    u = int.from_bytes(public, "little") % 2**255
    x_2, z_2, x_3, z_3 = 1, 0, u, 1
    for t in range(254, -1, -1):
        if k >> t & 1:
            x_2, z_2, x_3, z_3 = x_3, z_3, x_2, z_2
        a, b, c, d = x_2 + z_2, x_2 - z_2, x_3 + z_3, x_3 - z_3
        e = a * a - b * b
        x_3, z_3 = (d * a + c * b) ** 2 % p, u * (d * a - c * b) ** 2 % p
        x_2, z_2 = a * a * b * b % p, e * (a * a + 121665 * e) % p
        if k >> t & 1:
            x_2, z_2, x_3, z_3 = x_3, z_3, x_2, z_2
    return (x_2 * pow(z_2, p - 2, p) % p).to_bytes(32, "little")


def plain_split(secret: bytes, coefficients: Sequence[int], shares: int) -> list[bytes]:
    """Shamir's shares at the places from 1: powers of the place times the coefficients, summed."""
    polynomial = [int.from_bytes(secret, "big"), *coefficients]
    places = range(1, shares + 1)
    values = (sum(c * place**power for power, c in enumerate(polynomial)) % PRIME for place in places)
    return [value.to_bytes(SHARE_SIZE, "big") for value in values]


def plain_join(shares: Mapping[int, bytes], *, at: int = 0) -> int:
    """What the shares' polynomial is at ``at``, zero being the secret's place: Neville's scheme."""
    x = list(shares)
    y = [int.from_bytes(share, "big") for share in shares.values()]
    for width in range(1, len(x)):
        for i in range(len(x) - width):
            j = i + width
            y[i] = ((x[j] - at) * y[i] + (at - x[i]) * y[i + 1]) * pow(x[j] - x[i], -1, PRIME) % PRIME
    return y[0] % PRIME


def plain_pack(words: Sequence[int], bits: int) -> list[int]:
    """The words' lowest bits, bit by bit: word ``plane * size + place`` is a plane's at a place."""
    if bits == 32:
        return list(words)
    size = -(-len(words) // 32)
    packed = [0] * (bits * size)
    for index, word in enumerate(words):
        plane, place = divmod(index, size)
        for bit in range(bits):
            row, column = divmod(plane * bits + bit, 32)
            packed[row * size + place] |= (word >> bit & 1) << column
    return packed


def plain_sum(vectors: Iterable[Sequence[int]]) -> list[int]:
    """The sum of the vectors modulo 2**32."""
    return [sum(column) % RING for column in zip(*vectors, strict=True)]


def plain_pair_key(private: bytes, public: bytes, transcript: bytes, pair: tuple[SiteId, SiteId]) -> bytes:
    """The key of the mask between two sites, the smaller name first."""
    info = labeled_digest(PAIR_MASK_LABEL, *(site.encode() for site in pair))
    return plain_hkdf(plain_x25519(private, public), salt=transcript, info=info)


def plain_self_key(seed: bytes, transcript: bytes, site: SiteId) -> bytes:
    """The key of a site's own mask."""
    return plain_hkdf(seed, salt=transcript, info=labeled_digest(SELF_MASK_LABEL, site.encode()))


def plain_masked_round(
    vectors: Mapping[SiteId, Sequence[int]],
    secrets: Mapping[SiteId, SumSecrets],
    *,
    roster: Roster,
    transcript: bytes,
    survivors: Sequence[SiteId],
) -> tuple[dict[SiteId, list[int]], list[int]]:
    """What each member of ``vectors`` sends, and what the coordinator is left with after unmasking."""
    selves = {site: plain_self_key(secrets[site].self_seed, transcript, site) for site in vectors}
    pairs = {
        (low, high): plain_pair_key(
            secrets[low].mask_key, roster.entry(high).mask_key, transcript, (low, high)
        )
        for low in vectors
        for high in vectors
        if low < high
    }
    masked = {}
    for site, words in vectors.items():
        plus = [selves[site], *(key for (low, _), key in pairs.items() if low == site)]
        minus = [key for (_, high), key in pairs.items() if high == site]
        masked[site] = plain_mask(words, plus, minus)
    # What a survivor added for a site that is lost has nothing to cancel against.
    added = [key for (low, high), key in pairs.items() if low in survivors and high not in survivors]
    taken = [key for (low, high), key in pairs.items() if high in survivors and low not in survivors]
    total = plain_sum(masked[site] for site in survivors)
    return masked, plain_mask(total, plus=taken, minus=[*(selves[site] for site in survivors), *added])
