"""Shares on their way: sealed by one site for another, carried by a coordinator that cannot read them.

ChaCha20-Poly1305 (RFC 8439) under a key of both sites' envelope keys. Sum, roster, sender, receiver and
what is inside are bound into the key, so that an envelope opens in its own place only.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.canonical import labeled_digest
from common.errors import BadEnvelopeError, BadRosterError
from common.ids import SiteId
from common.secagg.keys import Roster, agree
from common.secagg.sharing import SHARE_SIZE

SHARES_LABEL = "consilium secagg-v1 envelope of a seed share and a mask key share"
NONCE_SIZE = 12
TAG_SIZE = 16
ENVELOPE_SIZE = NONCE_SIZE + 2 * SHARE_SIZE + TAG_SIZE


def seal(
    roster: Roster, own_envelope_key: bytes, *, sender: SiteId, receiver: SiteId, shares: tuple[bytes, bytes]
) -> bytes:
    """The share of the sender's seed and that of its mask key, for the receiver's eyes only."""
    key, header = _key(roster, own_envelope_key, sender=sender, receiver=receiver, peer=receiver)
    # Drawn, though a key seals one envelope: a site that lost its memory must not repeat a nonce either.
    nonce = secrets.token_bytes(NONCE_SIZE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, b"".join(shares), header)


def open_envelope(
    roster: Roster, own_envelope_key: bytes, *, sender: SiteId, receiver: SiteId, envelope: bytes
) -> tuple[bytes, bytes]:
    """The share of the sender's seed and that of its mask key. BadEnvelopeError, BadRosterError."""
    if len(envelope) != ENVELOPE_SIZE:
        raise BadEnvelopeError(sender, receiver)
    key, header = _key(roster, own_envelope_key, sender=sender, receiver=receiver, peer=sender)
    try:
        shares = ChaCha20Poly1305(key).decrypt(envelope[:NONCE_SIZE], envelope[NONCE_SIZE:], header)
    except InvalidTag as error:
        raise BadEnvelopeError(sender, receiver) from error
    return shares[:SHARE_SIZE], shares[SHARE_SIZE:]


def _key(
    roster: Roster, own_envelope_key: bytes, *, sender: SiteId, receiver: SiteId, peer: SiteId
) -> tuple[bytes, bytes]:
    header = labeled_digest(SHARES_LABEL, sender.encode(), receiver.encode())
    try:
        key = agree(own_envelope_key, roster.entry(peer).envelope_key, salt=roster.digest(), info=header)
    except ValueError as error:
        raise BadRosterError(
            roster.context.sum_id, f"the envelope key of {peer} is of small order"
        ) from error
    return key, header
