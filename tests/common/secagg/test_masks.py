from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadRosterError
from common.ids import SiteId
from common.secagg.keys import Roster
from common.secagg.masks import BLOCK_WORDS, add_masks, mask_keys, mask_words, unmask_sum
from common.secagg.reference import plain_keystream, plain_mask, plain_masked_round, plain_sum
from tests.common.secagg.fixed import (
    SECRETS,
    SITES,
    SMALL_ORDER,
    TOPIC,
    A,
    B,
    C,
    D,
    roster,
    secret,
    signed_keys,
    tells,
)

KEYS = st.lists(st.binary(min_size=32, max_size=32), max_size=3)
NUMBERS = st.lists(st.integers(0, 2**32 - 1), max_size=70)
ROSTER = roster()
TRANSCRIPT = ROSTER.transcript(SITES, TOPIC)
LENGTH = 11


def words_of(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


def vector(site: SiteId, length: int = LENGTH) -> np.ndarray:
    return words_of(plain_keystream(secret(site, "vector"), length))


def masked(
    site: SiteId,
    *,
    members: Sequence[SiteId] = SITES,
    transcript: bytes = TRANSCRIPT,
    made: Roster = ROSTER,
    clear: np.ndarray | None = None,
) -> np.ndarray:
    words = vector(site) if clear is None else clear.copy()
    mask_words(words, roster=made, members=members, transcript=transcript, site=site, own=SECRETS[site])
    return words


def unmasked(survivors: Sequence[SiteId], members: Sequence[SiteId] = SITES) -> np.ndarray:
    """What a coordinator gets out of the survivors' words."""
    transcript = ROSTER.transcript(members, TOPIC)
    total = words_of(
        plain_sum(masked(site, members=members, transcript=transcript).tolist() for site in survivors)
    )
    unmask_sum(
        total,
        roster=ROSTER,
        transcript=transcript,
        seeds={site: SECRETS[site].self_seed for site in survivors},
        lost_mask_keys={site: SECRETS[site].mask_key for site in members if site not in survivors},
    )
    return total


@given(numbers=NUMBERS, plus=KEYS, minus=KEYS)
def test_masks_are_the_reference_s_word_by_word(
    numbers: list[int], plus: list[bytes], minus: list[bytes]
) -> None:
    words = words_of(numbers)
    add_masks(words, plus=plus, minus=minus)
    assert words.tolist() == plain_mask(numbers, plus, minus)


@pytest.mark.parametrize("length", [BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 2 * BLOCK_WORDS + 5])
def test_a_keystream_goes_on_from_block_to_block(length: int) -> None:
    words = np.zeros(length, dtype=np.uint32)
    add_masks(words, plus=[secret("key")])
    np.testing.assert_array_equal(words, plain_keystream(secret("key"), length))


@given(numbers=NUMBERS, keys=KEYS)
def test_opposite_masks_cancel(numbers: list[int], keys: list[bytes]) -> None:
    words = words_of(numbers)
    add_masks(words, plus=keys)
    add_masks(words, minus=keys)
    assert words.tolist() == numbers
    add_masks(words, plus=keys, minus=keys)
    assert words.tolist() == numbers


def test_a_part_of_an_array_is_masked_and_nothing_beside_it() -> None:
    words = np.zeros(20, dtype=np.uint32)
    add_masks(words[5:15], plus=[secret("key")])
    assert words[5:15].tolist() == plain_keystream(secret("key"), 10)
    assert not words[:5].any()
    assert not words[15:].any()


def looks_uniform(words: np.ndarray) -> bool:
    return bool(scipy.stats.kstest(words / 2**32, "uniform").pvalue > 0.01)


def looks_independent(words: np.ndarray) -> bool:
    """Whether the highest three bits of a word say nothing of those of the next."""
    first, second = words[:-1] >> np.uint32(29), words[1:] >> np.uint32(29)
    counts = np.bincount(8 * first + second, minlength=64).reshape(8, 8)
    return bool(scipy.stats.chi2_contingency(counts).pvalue > 0.01)


def test_without_the_key_the_words_look_uniform_and_independent_and_the_test_would_notice() -> None:
    words = np.zeros(20_000, dtype=np.uint32)
    add_masks(words, plus=[secret("key")])
    assert looks_uniform(words)
    assert looks_independent(words)
    assert scipy.stats.chisquare(np.bincount(words & np.uint32(255), minlength=256)).pvalue > 0.01
    # A stream that is a little short of the top, one that repeats half of its words, one that lost a bit.
    assert not looks_uniform((words * 0.97).astype(np.uint32))
    assert not looks_independent(np.where(np.arange(20_000) % 2, words, np.roll(words, -1)))
    lowest = words & np.uint32(254)
    assert scipy.stats.chisquare(np.bincount(lowest, minlength=256)).pvalue < 0.01


@pytest.mark.parametrize("site", SITES)
def test_without_the_secrets_of_the_site_and_of_its_peers_the_words_look_uniform(site: SiteId) -> None:
    clear = np.full(20_000, 5, dtype=np.uint32)
    assert not looks_uniform(clear)
    assert looks_uniform(masked(site, clear=clear))
    # The self mask alone hides a vector, and so do the pair masks alone: one of them may be taken away.
    plus, minus = mask_keys(ROSTER, SITES, TRANSCRIPT, site, SECRETS[site])
    for added, taken in ((plus[:1], []), (plus[1:], minus)):
        words = clear.copy()
        add_masks(words, plus=added, minus=taken)
        assert looks_uniform(words)


def test_the_sum_of_all_members_words_is_the_sum_of_their_vectors_and_self_masks() -> None:
    total = plain_sum(masked(site).tolist() for site in SITES)
    own = [mask_keys(ROSTER, SITES, TRANSCRIPT, site, SECRETS[site])[0][0] for site in SITES]
    selves = [plain_keystream(key, LENGTH) for key in own]
    assert total == plain_sum([*(vector(site).tolist() for site in SITES), *selves])


@pytest.mark.parametrize(
    "survivors", [sites for size in range(1, 5) for sites in combinations(SITES, size)], ids="-".join
)
def test_whoever_is_lost_the_survivors_plain_sum_is_left(survivors: tuple[SiteId, ...]) -> None:
    assert unmasked(survivors).tolist() == plain_sum(vector(site).tolist() for site in survivors)


@pytest.mark.parametrize("members", [(A, B, C), (B, C, D), (A, D)], ids="-".join)
def test_members_may_be_fewer_than_the_roster(members: tuple[SiteId, ...]) -> None:
    for survivors in (members, members[:-1]):
        expected = plain_sum(vector(site).tolist() for site in survivors)
        assert unmasked(survivors, members).tolist() == expected


@pytest.mark.parametrize("survivors", [SITES, (A, B, C), (B, C, D), (A, C)], ids="-".join)
def test_a_round_is_the_reference_s_site_by_site(survivors: tuple[SiteId, ...]) -> None:
    vectors = {site: vector(site).tolist() for site in SITES}
    plain, total = plain_masked_round(
        vectors, SECRETS, roster=ROSTER, transcript=TRANSCRIPT, survivors=survivors
    )
    assert {site: masked(site).tolist() for site in SITES} == plain
    assert unmasked(survivors).tolist() == total


def test_the_site_of_the_smaller_name_adds_and_the_other_takes_away() -> None:
    keys = {site: mask_keys(ROSTER, SITES, TRANSCRIPT, site, SECRETS[site]) for site in SITES}
    assert [(len(plus), len(minus)) for plus, minus in keys.values()] == [(4, 0), (3, 1), (2, 2), (1, 3)]
    added = [key for plus, _ in keys.values() for key in plus[1:]]
    assert sorted(added) == sorted(key for _, minus in keys.values() for key in minus)
    assert len(set(added)) == 6


def test_a_mask_for_another_transcript_does_not_cancel() -> None:
    other = ROSTER.transcript(SITES, b"u" * 32)
    words = [masked(site) for site in SITES[:3]] + [masked(D, transcript=other)]
    total = words_of(plain_sum(some.tolist() for some in words))
    seeds = {site: SECRETS[site].self_seed for site in SITES}
    unmask_sum(total, roster=ROSTER, transcript=TRANSCRIPT, seeds=seeds, lost_mask_keys={})
    expected = words_of(plain_sum(vector(site).tolist() for site in SITES))
    assert not (total == expected).any()


def test_no_two_transcripts_mask_with_the_same_keys() -> None:
    keys = []
    for transcript in (TRANSCRIPT, ROSTER.transcript(SITES, b"u" * 32), ROSTER.transcript(SITES[:3], TOPIC)):
        plus, minus = mask_keys(ROSTER, SITES, transcript, B, SECRETS[B])
        keys += [*plus, *minus]
    assert len(set(keys)) == 12


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(8, dtype=np.uint64),
        np.zeros(8, dtype=np.int32),
        np.zeros(8, dtype=np.float32),
        np.zeros(8, dtype=">u4"),
        np.zeros(16, dtype=np.uint32)[::2],
        # Each row would get the same mask.
        np.zeros((2, 4), dtype=np.uint32),
    ],
    ids=["uint64", "int32", "float32", "big-endian", "with-gaps", "two-axes"],
)
def test_other_arrays_than_contiguous_words_are_refused(words: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected contiguous words of uint32"):
        add_masks(words, plus=[secret("key")])
    assert not words.any()


@pytest.mark.parametrize("size", [0, 16, 31, 33])
@pytest.mark.parametrize("sign", ["plus", "minus"])
def test_a_key_of_another_size_is_refused_before_anything_is_masked(sign: str, size: int) -> None:
    words, key = np.zeros(4, dtype=np.uint32), (secret("key") + b"\1")[:size]
    with pytest.raises(ValueError, match="Expected a mask's key of 32 bytes") as refused:
        add_masks(words, **{sign: [secret("right"), key]})
    assert not words.any()
    assert not tells(refused.value, secret("key"), secret("right"))


@pytest.mark.parametrize("point", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_a_peer_s_mask_key_of_small_order_is_refused_before_anything_is_masked(point: bytes) -> None:
    made, words = roster(c=signed_keys(C, mask_key=point)), vector(A)
    with pytest.raises(BadRosterError, match="mask key of site-c is of small order") as refused:
        mask_words(words, roster=made, members=SITES, transcript=TRANSCRIPT, site=A, own=SECRETS[A])
    assert words.tolist() == vector(A).tolist()
    assert not tells(refused.value, *vars(SECRETS[A]).values())
    # Without that site there is nothing to refuse.
    masked(A, members=(A, B, D), made=made)


def test_ranges_masked_at_once_give_the_words_of_one_after_another() -> None:
    keys = [secret("plus"), secret("more")]
    length = 12 * BLOCK_WORDS + 5
    alone, together = np.zeros(length, dtype="<u4"), np.zeros(length, dtype="<u4")
    add_masks(alone, plus=keys, minus=[secret("minus")], threads=1)
    add_masks(together, plus=keys, minus=[secret("minus")], threads=3)
    assert (alone == together).all()
    # Not because the keystream came again: the second range is another one than the first.
    assert not (together[: 4 * BLOCK_WORDS] == together[4 * BLOCK_WORDS : 8 * BLOCK_WORDS]).all()
