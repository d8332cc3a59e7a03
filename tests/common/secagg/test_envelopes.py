from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.canonical import labeled_digest
from common.errors import BadEnvelopeError, BadRosterError
from common.ids import SiteId
from common.secagg.envelopes import ENVELOPE_SIZE, NONCE_SIZE, SHARES_LABEL, open_envelope, seal
from common.secagg.keys import Roster, SumContext
from common.secagg.reference import plain_hkdf, plain_x25519
from common.secagg.sharing import SHARE_SIZE
from tests.common.secagg.fixed import (
    APPROVED,
    OTHER_CONTEXTS,
    SECRETS,
    SMALL_ORDER,
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

SHARES = b"\1" * SHARE_SIZE, b"\2" * SHARE_SIZE
ROSTER = roster()


def sealed(sender: SiteId = A, receiver: SiteId = B) -> bytes:
    return seal(ROSTER, SECRETS[sender].envelope_key, sender=sender, receiver=receiver, shares=SHARES)


def opened(
    envelope: bytes,
    *,
    sender: SiteId = A,
    receiver: SiteId = B,
    by: SiteId | None = None,
    made: Roster = ROSTER,
) -> tuple[bytes, bytes]:
    """What ``by``, its receiver if nobody is named, finds in an envelope."""
    key = SECRETS[by or receiver].envelope_key
    return open_envelope(made, key, sender=sender, receiver=receiver, envelope=envelope)


@pytest.mark.parametrize(("sender", "receiver"), [(A, B), (B, A), (C, D), (D, A)])
def test_an_envelope_gives_its_receiver_both_shares(sender: SiteId, receiver: SiteId) -> None:
    envelope = sealed(sender, receiver)
    assert len(envelope) == ENVELOPE_SIZE == 160
    assert opened(envelope, sender=sender, receiver=receiver) == SHARES


def test_an_envelope_is_rfc8439_under_the_reference_s_key() -> None:
    envelope = sealed()
    header = labeled_digest(SHARES_LABEL, A.encode(), B.encode())
    shared = plain_x25519(SECRETS[B].envelope_key, ROSTER.entry(A).envelope_key)
    key = plain_hkdf(shared, salt=ROSTER.digest(), info=header)
    clear = ChaCha20Poly1305(key).decrypt(envelope[:NONCE_SIZE], envelope[NONCE_SIZE:], header)
    assert clear == b"".join(SHARES)


def test_the_same_shares_are_sealed_under_another_nonce_each_time() -> None:
    first, second = sealed(), sealed()
    assert first[:NONCE_SIZE] != second[:NONCE_SIZE]
    assert first[NONCE_SIZE:] != second[NONCE_SIZE:]


def test_a_changed_byte_anywhere_in_an_envelope_is_refused() -> None:
    envelope = sealed()
    for place in range(len(envelope)):
        with pytest.raises(BadEnvelopeError, match="from site-a to site-b does not open"):
            opened(with_bit_flipped(envelope, place))


@pytest.mark.parametrize("size", [0, NONCE_SIZE, ENVELOPE_SIZE - 1, ENVELOPE_SIZE + 1])
def test_an_envelope_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(BadEnvelopeError):
        opened((sealed() + b"\0")[:size])


def test_an_envelope_opens_for_its_receiver_only() -> None:
    envelope = sealed()
    for other in (C, D):
        with pytest.raises(BadEnvelopeError):
            opened(envelope, by=other)
        with pytest.raises(BadEnvelopeError):
            opened(envelope, receiver=other)


def test_an_envelope_opens_under_its_sender_s_name_only() -> None:
    for other in (C, D):
        with pytest.raises(BadEnvelopeError):
            opened(sealed(), sender=other)


def test_an_envelope_cannot_be_sent_back_to_its_sender() -> None:
    # Both have the same X25519 secret: only the names in the key tell the ways apart.
    with pytest.raises(BadEnvelopeError):
        opened(sealed(A, B), sender=B, receiver=A)


@pytest.mark.parametrize("other", OTHER_CONTEXTS.values(), ids=OTHER_CONTEXTS)
def test_an_envelope_opens_in_its_own_sum_only(other: SumContext) -> None:
    with pytest.raises(BadEnvelopeError):
        opened(sealed(), made=Roster(context=other, entries=ROSTER.entries))


@pytest.mark.parametrize("name", ["mask_key", "envelope_key", "seed_hash"])
def test_an_envelope_opens_in_its_own_roster_only(name: str) -> None:
    # A key of somebody who has no part in this envelope.
    other = roster(d=replace(signed_keys(D), **{name: secret("other")}))
    with pytest.raises(BadEnvelopeError):
        opened(sealed(), made=other)
    with pytest.raises(BadEnvelopeError):
        opened(sealed(), made=roster(A, B, C))


@pytest.mark.parametrize("point", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_an_envelope_key_of_small_order_is_a_bad_roster_on_both_ways(point: bytes) -> None:
    made = roster(b=signed_keys(B, envelope_key=point))
    own = SECRETS[A].envelope_key
    with pytest.raises(BadRosterError, match="a key of site-b is of small order"):
        made.verify(APPROVED)
    with pytest.raises(BadRosterError, match="envelope key of site-b is of small order") as refused:
        seal(made, own, sender=A, receiver=B, shares=SHARES)
    assert not tells(refused.value, own, *SHARES)
    with pytest.raises(BadRosterError, match="envelope key of site-b is of small order") as refused:
        open_envelope(made, own, sender=B, receiver=A, envelope=sealed())
    assert not tells(refused.value, own, *SHARES)


def test_a_refused_envelope_tells_no_key_and_no_share() -> None:
    with pytest.raises(BadEnvelopeError) as refused:
        opened(with_bit_flipped(sealed(), 50))
    assert not tells(refused.value, SECRETS[A].envelope_key, SECRETS[B].envelope_key, *SHARES)


def test_an_envelope_shows_none_of_its_shares() -> None:
    assert not any(share in sealed() for share in (SHARES[0][:8], SHARES[1][:8]))
