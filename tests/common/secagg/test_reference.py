"""The plain reference on vectors of others, and on arithmetic a reader can follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.secagg.keys import public_key
from common.secagg.reference import (
    plain_hkdf,
    plain_join,
    plain_keystream,
    plain_mask,
    plain_masked_round,
    plain_pack,
    plain_split,
    plain_sum,
    plain_x25519,
)
from common.secagg.sharing import PRIME
from tests.common.secagg.fixed import SECRETS, SITES, SMALL_ORDER, TOPIC, A, B, C, D, roster, secret

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "secagg-v1"
# AES-256 of the counters 0, 1 and 2 under a key of zeros: H, the tag and the first block of ciphertext of
# test cases 13 and 14 of McGrew and Viega, "The Galois/Counter Mode of Operation" (2005), appendix B.
ZERO_KEY_BLOCKS = (
    "dc95c078a2408989ad48a21492842087",
    "530f8afbc74536b9a963b4f1c4cb738b",
    "cea7403d4d606b6e074ec5d3baf39d18",
)


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / name).read_text())["cases"]


def test_the_keystream_begins_at_counter_zero_and_its_words_are_little_endian() -> None:
    blocks = "".join(ZERO_KEY_BLOCKS)
    assert b"".join(word.to_bytes(4, "little") for word in plain_keystream(bytes(32), 12)).hex() == blocks
    assert plain_keystream(bytes(32), 1) == [0x78C095DC]
    assert plain_keystream(bytes(32), 0) == []
    # Not whole blocks.
    assert plain_keystream(bytes(32), 9) == plain_keystream(bytes(32), 12)[:9]


def test_masks_add_and_take_away_modulo_the_ring() -> None:
    mask = plain_keystream(secret("key"), 2)
    assert plain_mask([0, 0], plus=[secret("key")]) == mask
    assert plain_mask(mask, minus=[secret("key")]) == [0, 0]
    assert plain_mask([2**32 - mask[0], 1], plus=[secret("key")]) == [0, mask[1] + 1]


@pytest.mark.parametrize("case", cases("rfc5869.json"), ids=lambda case: case["name"])
def test_hkdf_agrees_with_rfc5869(case: dict[str, Any]) -> None:
    ikm, salt, info = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info"))
    assert plain_hkdf(ikm, salt=salt, info=info, length=case["length"]).hex() == case["okm"]


@pytest.mark.parametrize("case", cases("rfc7748.json"), ids=lambda case: case["name"])
def test_x25519_agrees_with_rfc7748(case: dict[str, Any]) -> None:
    output = plain_x25519(bytes.fromhex(case["scalar"]), bytes.fromhex(case["u"]))
    assert output.hex() == case["output"]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_x25519_gives_zeros_for_a_point_of_small_order_whoever_asks(point: bytes) -> None:
    assert {plain_x25519(secret(name), point) for name in "abc"} == {bytes(32)}
    # And for no other.
    assert plain_x25519(secret("a"), public_key(secret("b"))) != bytes(32)


def test_shares_that_a_reader_can_follow() -> None:
    # 5 + 3 x + 2 x**2 at 1, 2, 3 and 4.
    made = (5).to_bytes(32, "big")
    shares = plain_split(made, [3, 2], 4)
    assert [int.from_bytes(share, "big") for share in shares] == [10, 19, 32, 49]
    assert plain_join({1: shares[0], 3: shares[2], 4: shares[3]}) == 5
    assert plain_join({4: shares[3], 1: shares[0], 2: shares[1]}, at=3) == 32
    # Two of them make a line: 10 at 1 and 19 at 2 is 1 at 0.
    assert plain_join({1: shares[0], 2: shares[1]}) == 1
    assert plain_join({1: (PRIME + 4).to_bytes(66, "big")}) == 4


def test_packing_that_a_reader_can_follow() -> None:
    # Two words, planes of one: the second begins at bit 20 of the first word and ends in the next.
    assert plain_pack([0xABCDE, 0x12345], 20)[:3] == [0x345ABCDE, 0x12, 0]
    assert len(plain_pack([0xABCDE, 0x12345], 20)) == 20
    assert plain_pack([1, 2, 3], 32) == [1, 2, 3]
    assert plain_pack([], 20) == []


def test_a_sum_is_taken_column_by_column_modulo_the_ring() -> None:
    assert plain_sum([[1, 2**32 - 1], [2, 1], [3, 5]]) == [6, 5]


@pytest.mark.parametrize("survivors", [SITES, (A, B, C), (B, D), (C,)], ids="-".join)
def test_a_plain_round_leaves_the_survivors_plain_sum(survivors: tuple[str, ...]) -> None:
    made = roster()
    vectors = {site: [number, 7, 2**32 - number] for number, site in enumerate(SITES, 1)}
    masked, total = plain_masked_round(
        vectors,
        SECRETS,
        roster=made,
        transcript=made.transcript(SITES, TOPIC),
        survivors=survivors,
    )
    assert total == plain_sum(vectors[site] for site in survivors)
    assert not any(set(masked[site]) & set(vectors[site]) for site in SITES)
    # The masks of all pairs cancel, those of the sites themselves do not.
    assert plain_sum(masked.values()) != plain_sum(vectors.values())
    assert D in masked
