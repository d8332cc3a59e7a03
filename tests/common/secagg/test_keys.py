from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadRosterError, BadSignatureError, UnapprovedSiteError
from common.ids import SiteId
from common.secagg.keys import (
    Roster,
    SignedKeys,
    SumContext,
    SumSecrets,
    agree,
    derive,
    pair_mask_key,
    public_key,
    seed_hash,
    self_mask_key,
    share_threshold,
)
from common.secagg.reference import plain_hkdf, plain_pair_key, plain_self_key, plain_x25519
from tests.common.secagg.fixed import (
    APPROVED,
    CONTEXT,
    IDENTITIES,
    OTHER_CONTEXTS,
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
    with_bit_flipped,
)

KEYS_OF_32 = st.binary(min_size=32, max_size=32)
other_contexts = pytest.mark.parametrize("other", OTHER_CONTEXTS.values(), ids=OTHER_CONTEXTS)
small_orders = pytest.mark.parametrize("point", SMALL_ORDER, ids=range(len(SMALL_ORDER)))


def test_fresh_secrets_are_three_different_ones_each_time() -> None:
    drawn = [SumSecrets.generate() for _ in range(3)]
    values = {value for own in drawn for value in vars(own).values()}
    assert len(values) == 9
    assert {len(value) for value in values} == {32}


def test_secrets_and_identities_do_not_print_what_they_hold() -> None:
    own, identity = SECRETS[A], IDENTITIES[A]
    assert not tells(own, *vars(own).values())
    assert not tells(identity, identity.private_key)
    assert not tells(roster(), *(value for some in SECRETS.values() for value in vars(some).values()))
    # The test would notice.
    assert tells(vars(own), own.mask_key)
    assert tells(ValueError(f"got {own.self_seed.hex()}"), own.self_seed)


def test_signed_keys_are_the_public_half_of_the_secrets_and_verify() -> None:
    keys, own = signed_keys(A), SECRETS[A]
    assert (keys.site_id, keys.mask_key, keys.envelope_key) == (
        A,
        public_key(own.mask_key),
        public_key(own.envelope_key),
    )
    assert keys.seed_hash == seed_hash(CONTEXT, A, own.self_seed)
    keys.verify(CONTEXT, APPROVED)


@pytest.mark.parametrize("name", ["mask_key", "envelope_key", "seed_hash", "signature"])
def test_a_changed_byte_anywhere_in_signed_keys_is_refused(name: str) -> None:
    keys = signed_keys(A)
    value = getattr(keys, name)
    for place in range(len(value)):
        changed = replace(keys, **{name: with_bit_flipped(value, place)})
        with pytest.raises(BadSignatureError, match="keys of site-a"):
            changed.verify(CONTEXT, APPROVED)


def test_swapped_keys_are_refused() -> None:
    keys = signed_keys(A)
    swapped = replace(keys, mask_key=keys.envelope_key, envelope_key=keys.mask_key)
    with pytest.raises(BadSignatureError):
        swapped.verify(CONTEXT, APPROVED)


def test_keys_of_one_site_under_another_s_name_are_refused() -> None:
    with pytest.raises(BadSignatureError, match="site-b"):
        replace(signed_keys(A), site_id=B).verify(CONTEXT, APPROVED)


def test_keys_of_a_site_that_is_not_approved_are_refused() -> None:
    others = {site: identity for site, identity in APPROVED.items() if site != A}
    with pytest.raises(UnapprovedSiteError, match="site-a"):
        signed_keys(A).verify(CONTEXT, others)


def test_keys_that_another_key_signed_are_refused() -> None:
    with pytest.raises(BadSignatureError):
        signed_keys(A).verify(CONTEXT, {**APPROVED, A: replace(APPROVED[B], site_id=A)})


@pytest.mark.parametrize("name", ["mask_key", "envelope_key", "seed_hash", "signature"])
def test_signed_keys_refuse_a_part_of_another_size(name: str) -> None:
    keys = signed_keys(A)
    for value in (b"", getattr(keys, name)[1:], getattr(keys, name) + b"\0"):
        with pytest.raises(ValueError, match="Expected"):
            replace(keys, **{name: value})


def test_signed_keys_refuse_what_is_no_name() -> None:
    with pytest.raises(ValueError, match="Expected a site id"):
        replace(signed_keys(A), site_id=SiteId("Site A"))


@other_contexts
def test_every_field_of_the_context_changes_everything_that_is_bound_to_it(other: SumContext) -> None:
    assert other.digest() != CONTEXT.digest()
    assert seed_hash(other, A, SECRETS[A].self_seed) != seed_hash(CONTEXT, A, SECRETS[A].self_seed)
    with pytest.raises(BadSignatureError):
        signed_keys(A).verify(other, APPROVED)
    # The same entries: what differs comes from the context alone.
    here, there = roster(), Roster(context=other, entries=roster().entries)
    transcripts = here.transcript(SITES, TOPIC), there.transcript(SITES, TOPIC)
    assert here.digest() != there.digest()
    assert transcripts[0] != transcripts[1]
    pair = [pair_mask_key(here, transcript, A, SECRETS[A].mask_key, B) for transcript in transcripts]
    assert pair[0] != pair[1]
    own = [self_mask_key(transcript, A, SECRETS[A].self_seed) for transcript in transcripts]
    assert own[0] != own[1]


def test_a_context_s_digest_tells_where_one_field_ends_and_the_next_begins() -> None:
    moved = replace(CONTEXT, track=f"{CONTEXT.track}7", sum_id=0), replace(CONTEXT, sum_id=70)
    assert len({context.digest() for context in (*moved, CONTEXT)}) == 3


def test_a_seed_s_hash_names_its_site_and_its_seed() -> None:
    hashes = {seed_hash(CONTEXT, site, secret(seed)) for site in (A, B) for seed in ("1", "2")}
    assert len(hashes) == 4


def test_a_roster_holds_no_site_twice_no_key_twice_and_at_least_two_sites() -> None:
    a, b, c = (signed_keys(site) for site in (A, B, C))
    assert Roster(context=CONTEXT, entries=(a, b)).sites == (A, B)
    for entries in ((a, a), (a, a, b), (b, a), (a, c, b)):
        with pytest.raises(BadRosterError, match="each site once, in the order of the names"):
            Roster(context=CONTEXT, entries=entries)
    twice = [
        replace(b, mask_key=a.mask_key),
        replace(b, envelope_key=a.envelope_key),
        replace(b, mask_key=a.envelope_key),
        replace(b, envelope_key=b.mask_key),
    ]
    for entry in twice:
        with pytest.raises(BadRosterError, match="no key twice"):
            Roster(context=CONTEXT, entries=(a, entry, c))
    for entries in ((), (a,)):
        with pytest.raises(BadRosterError, match="at least 2 sites"):
            Roster(context=CONTEXT, entries=entries)


def test_a_roster_gives_each_site_its_place_from_1_and_its_keys() -> None:
    made = roster()
    assert [made.position(site) for site in SITES] == [1, 2, 3, 4]
    assert [made.entry(site) for site in SITES] == list(made.entries)
    with pytest.raises(ValueError, match="not in tuple"):
        made.position(SiteId("site-x"))


def test_a_roster_is_verified_entry_by_entry() -> None:
    roster().verify(APPROVED)
    wrong = roster(d=replace(signed_keys(D), signature=signed_keys(C).signature))
    with pytest.raises(BadSignatureError, match="site-d"):
        wrong.verify(APPROVED)
    with pytest.raises(UnapprovedSiteError, match="site-c"):
        roster().verify({site: key for site, key in APPROVED.items() if site != C})


@pytest.mark.parametrize("name", ["mask_key", "envelope_key", "seed_hash"])
@pytest.mark.parametrize("site", SITES)
def test_a_roster_s_digest_changes_with_every_key_and_hash_in_it(site: SiteId, name: str) -> None:
    changed = roster(**{site[-1]: replace(signed_keys(site), **{name: secret("other")})})
    assert changed.digest() != roster().digest()


def test_a_roster_s_digest_changes_with_its_sites() -> None:
    rosters = (roster(), roster(A, B, C), roster(A, B, D), roster(A, B))
    assert len({made.digest() for made in rosters}) == 4


def test_a_transcript_names_roster_members_and_topic() -> None:
    made = roster()
    transcripts = [
        made.transcript(SITES, TOPIC),
        made.transcript((A, B, C), TOPIC),
        made.transcript((B, A, C, D), TOPIC),
        made.transcript((), TOPIC),
        made.transcript(SITES, b"u" * 32),
        made.transcript(SITES, b""),
        roster(A, B, C).transcript((A, B, C), TOPIC),
        # Names cannot slip from one place to the next.
        made.transcript((SiteId("site-asite-b"), C, D), TOPIC),
    ]
    assert len(set(transcripts)) == len(transcripts)
    assert transcripts[0] == roster().transcript(list(SITES), TOPIC)


@given(sites=st.integers(2, 256))
def test_no_two_sets_of_threshold_many_sites_have_only_a_third_of_them_in_common(sites: int) -> None:
    threshold = share_threshold(sites)
    # The smallest that two sets of t among n can have in common is 2t - n.
    assert 3 * (2 * threshold - sites) > sites
    assert threshold <= sites
    assert 3 * (2 * (threshold - 1) - sites) <= sites


def test_thresholds_of_small_rosters() -> None:
    assert [share_threshold(sites) for sites in (2, 3, 4, 5, 6, 9, 10)] == [2, 3, 3, 4, 5, 7, 7]


@given(mine=KEYS_OF_32, yours=KEYS_OF_32, salt=st.binary(max_size=80), info=st.binary(max_size=80))
def test_both_owners_agree_on_the_reference_s_key(
    mine: bytes, yours: bytes, salt: bytes, info: bytes
) -> None:
    key = agree(mine, public_key(yours), salt=salt, info=info)
    assert key == agree(yours, public_key(mine), salt=salt, info=info)
    assert key == plain_hkdf(plain_x25519(mine, public_key(yours)), salt=salt, info=info)
    assert key != agree(mine, public_key(yours), salt=salt + b"\1", info=info)
    assert key != agree(mine, public_key(yours), salt=salt, info=info + b"\0")


@given(key=KEYS_OF_32, salt=st.binary(max_size=80), info=st.binary(max_size=80))
def test_derived_keys_are_the_reference_s(key: bytes, salt: bytes, info: bytes) -> None:
    assert derive(key, salt=salt, info=info) == plain_hkdf(key, salt=salt, info=info)


@small_orders
def test_a_point_of_small_order_gives_no_key(point: bytes) -> None:
    assert plain_x25519(secret("any"), point) == bytes(32)
    with pytest.raises(ValueError, match="shared key") as refused:
        agree(secret("any"), point, salt=b"", info=b"")
    assert not tells(refused.value, secret("any"))


@small_orders
def test_a_mask_key_of_small_order_is_a_bad_roster(point: bytes) -> None:
    made = roster(d=signed_keys(D, mask_key=point))
    # Its owner did sign it.
    with pytest.raises(BadRosterError, match="a key of site-d is of small order"):
        made.verify(APPROVED)
    transcript = made.transcript(SITES, TOPIC)
    with pytest.raises(BadRosterError, match="mask key of site-d is of small order") as refused:
        pair_mask_key(made, transcript, A, SECRETS[A].mask_key, D)
    assert not tells(refused.value, SECRETS[A].mask_key)
    assert pair_mask_key(made, transcript, A, SECRETS[A].mask_key, B)


@pytest.mark.parametrize("pair", [(A, B), (B, D), (C, D)])
def test_both_sites_of_a_pair_grow_the_reference_s_mask_key(pair: tuple[SiteId, SiteId]) -> None:
    made, (low, high) = roster(), pair
    transcript = made.transcript(SITES, TOPIC)
    key = pair_mask_key(made, transcript, low, SECRETS[low].mask_key, high)
    assert key == pair_mask_key(made, transcript, high, SECRETS[high].mask_key, low)
    assert key == plain_pair_key(SECRETS[low].mask_key, made.entry(high).mask_key, transcript, pair)


def test_mask_keys_differ_by_pair_site_kind_and_transcript() -> None:
    made, keys = roster(), []
    for transcript in (made.transcript(SITES, TOPIC), made.transcript(SITES, b"u" * 32)):
        keys += [self_mask_key(transcript, site, SECRETS[site].self_seed) for site in SITES]
        keys += [self_mask_key(transcript, A, SECRETS[B].self_seed)]
        keys += [
            pair_mask_key(made, transcript, low, SECRETS[low].mask_key, high)
            for low in SITES
            for high in SITES
            if low < high
        ]
    assert len(set(keys)) == len(keys) == 22


@given(seed=KEYS_OF_32, transcript=KEYS_OF_32)
def test_a_site_s_own_mask_key_is_the_reference_s(seed: bytes, transcript: bytes) -> None:
    assert self_mask_key(transcript, A, seed) == plain_self_key(seed, transcript, A)


def test_public_keys_are_the_reference_s() -> None:
    nine = (9).to_bytes(32, "little")
    for own in SECRETS.values():
        assert public_key(own.mask_key) == plain_x25519(own.mask_key, nine)


def test_no_secret_is_in_what_signed_keys_tell() -> None:
    keys: SignedKeys = signed_keys(A)
    own = vars(SECRETS[A]).values()
    assert not any(value in (keys.mask_key, keys.envelope_key, keys.seed_hash) for value in own)
    assert not tells(keys, *own)
