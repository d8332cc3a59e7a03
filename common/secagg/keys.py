"""Keys of one secure sum: made for it, signed, bound to everything that its sites must agree on.

Two X25519 pairs a site and a sum. The mask key is the one that other sites can give back when its owner is
lost; the envelope key seals shares and is never shared out. Both die with the sum, so that an identity
that is stolen later opens nothing that was recorded before.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.canonical import labeled_digest
from common.errors import BadRosterError, UnapprovedSiteError
from common.ids import RunId, SiteId, site_id
from common.pki import SIGNATURE_SIZE, Identity, PublicIdentity

KEY_SIZE = 32
CONTEXT_LABEL = "consilium secagg-v1 sum"
KEYS_LABEL = "consilium secagg-v1 keys"
SEED_LABEL = "consilium secagg-v1 self mask seed"
ROSTER_LABEL = "consilium secagg-v1 roster"
TRANSCRIPT_LABEL = "consilium secagg-v1 transcript"
PAIR_MASK_LABEL = "consilium secagg-v1 pair mask"
SELF_MASK_LABEL = "consilium secagg-v1 self mask"


# Of small order is a key that no private key at all makes a secret with; this one keeps none.
_ANY_KEY = X25519PrivateKey.from_private_bytes(bytes(range(KEY_SIZE)))


@dataclass(frozen=True, kw_only=True)
class SumContext:
    """Which secure sum it is. A number is used once for a run and track, for sums that fail too."""

    run_id: RunId
    track: str
    sum_id: int
    plan_digest: str

    def digest(self) -> bytes:
        """32 bytes that name the sum."""
        parts = (self.run_id, self.track, str(self.sum_id), self.plan_digest)
        return labeled_digest(CONTEXT_LABEL, *(part.encode() for part in parts))


@dataclass(frozen=True, kw_only=True)
class SumSecrets:
    """What one site keeps to itself of one sum; 32 bytes each, never printed."""

    mask_key: bytes = field(repr=False)
    envelope_key: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SumSecrets:
        """Fresh ones, from the operating system's randomness."""
        return cls(
            mask_key=X25519PrivateKey.generate().private_bytes_raw(),
            envelope_key=X25519PrivateKey.generate().private_bytes_raw(),
            self_seed=secrets.token_bytes(KEY_SIZE),
        )


@dataclass(frozen=True, kw_only=True)
class SignedKeys:
    """What a site tells of its secrets, signed by its identity.

    Attributes:
        site_id: Whose keys they are.
        mask_key: X25519 public key, 32 bytes.
        envelope_key: X25519 public key, 32 bytes.
        seed_hash: Of the self mask's seed, 32 bytes; what is reconstructed later must have it.
        signature: Ed25519, 64 bytes, of the above and the sum's context.
    """

    site_id: SiteId
    mask_key: bytes
    envelope_key: bytes
    seed_hash: bytes
    signature: bytes

    def __post_init__(self) -> None:
        site_id(self.site_id)
        for value in (self.mask_key, self.envelope_key, self.seed_hash):
            if len(value) != KEY_SIZE:
                raise ValueError(f"Expected keys and hash of {KEY_SIZE} bytes, got {len(value)}")
        if len(self.signature) != SIGNATURE_SIZE:
            raise ValueError(f"Expected a signature of {SIGNATURE_SIZE} bytes, got {len(self.signature)}")

    def parts(self) -> tuple[bytes, ...]:
        """All but the signature."""
        return self.site_id.encode(), self.mask_key, self.envelope_key, self.seed_hash

    def verify(self, context: SumContext, approved: Mapping[SiteId, PublicIdentity]) -> None:
        """UnapprovedSiteError, BadSignatureError; BadRosterError if all others would know a key's secrets."""
        if self.site_id not in approved:
            raise UnapprovedSiteError(self.site_id)
        statement = labeled_digest(KEYS_LABEL, context.digest(), *self.parts())
        approved[self.site_id].verify(statement, self.signature, "keys")
        for key in (self.mask_key, self.envelope_key):
            if has_small_order(key):
                raise BadRosterError(context.sum_id, f"a key of {self.site_id} is of small order")


def sign_keys(context: SumContext, own: SumSecrets, identity: Identity) -> SignedKeys:
    """The public half of a site's secrets, signed."""
    site = identity.site_id
    mask_key, envelope_key = public_key(own.mask_key), public_key(own.envelope_key)
    commitment = seed_hash(context, site, own.self_seed)
    statement = labeled_digest(
        KEYS_LABEL, context.digest(), site.encode(), mask_key, envelope_key, commitment
    )
    return SignedKeys(
        site_id=site,
        mask_key=mask_key,
        envelope_key=envelope_key,
        seed_hash=commitment,
        signature=identity.sign(statement),
    )


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The signed keys of all sites of one sum, in the order of their names.

    Guarantee: a roster holds no site twice, no key twice, and at least two sites; whether each entry was
    signed is for ``verify``.
    """

    context: SumContext
    entries: tuple[SignedKeys, ...]

    def __post_init__(self) -> None:
        names = [entry.site_id for entry in self.entries]
        if names != sorted(set(names)):
            raise BadRosterError(self.context.sum_id, "expected each site once, in the order of the names")
        keys = {key for entry in self.entries for key in (entry.mask_key, entry.envelope_key)}
        if len(keys) != 2 * len(self.entries):
            raise BadRosterError(self.context.sum_id, "expected no key twice")
        if len(names) < 2:
            raise BadRosterError(self.context.sum_id, f"expected at least 2 sites, got {len(names)}")

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """All sites, by name."""
        return tuple(entry.site_id for entry in self.entries)

    @property
    def threshold(self) -> int:
        """Shares that give a secret back."""
        return share_threshold(len(self.entries))

    def entry(self, site: SiteId) -> SignedKeys:
        """The keys of one site of the roster."""
        return self.entries[self.position(site) - 1]

    def position(self, site: SiteId) -> int:
        """The site's place, from 1: where its shares are taken."""
        return self.sites.index(site) + 1

    def verify(self, approved: Mapping[SiteId, PublicIdentity]) -> None:
        """Check every entry. UnapprovedSiteError, BadSignatureError, BadRosterError."""
        for entry in self.entries:
            entry.verify(self.context, approved)

    def digest(self) -> bytes:
        """32 bytes that name the roster: the sum and everybody's keys."""
        parts = (part for entry in self.entries for part in entry.parts())
        return labeled_digest(ROSTER_LABEL, self.context.digest(), *parts)

    def transcript(self, members: Sequence[SiteId], topic: bytes) -> bytes:
        """32 bytes that name all that the masks of a sum are bound to.

        Args:
            members: The sites of the roster whose shares arrived, which are those that add masks.
            topic: Names the work: adapter, round, plan.
        """
        names = (member.encode() for member in members)
        return labeled_digest(TRANSCRIPT_LABEL, self.digest(), topic, *names)


def share_threshold(sites: int) -> int:
    """floor(2n/3) + 1: no two sets of so many sites have only a third of them in common."""
    return 2 * sites // 3 + 1


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def has_small_order(public: bytes) -> bool:
    """Whether a key agrees on the same secret with everybody (RFC 7748, section 6.1)."""
    try:
        _ANY_KEY.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return True
    return False


def seed_hash(context: SumContext, site: SiteId, self_seed: bytes) -> bytes:
    """The commitment to a self mask's seed; the seed has 256 bits, so that the hash tells nothing."""
    return labeled_digest(SEED_LABEL, context.digest(), site.encode(), self_seed)


def agree(private: bytes, public: bytes, *, salt: bytes, info: bytes) -> bytes:
    """A key (32 bytes) that both owners of a pair of keys get: HKDF-SHA256 over X25519 (RFC 5869, 7748).

    ValueError for a public key of small order, which would give a key that everybody knows.
    """
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return derive(shared, salt=salt, info=info)


def derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256."""
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=info).derive(secret)


def pair_mask_key(
    roster: Roster, transcript: bytes, owner: SiteId, own_mask_key: bytes, peer: SiteId
) -> bytes:
    """The key of the mask between two sites; the same from either side.

    Raises:
        BadRosterError: The peer's key is of small order.
    """
    low, high = sorted((owner, peer))
    info = labeled_digest(PAIR_MASK_LABEL, low.encode(), high.encode())
    try:
        return agree(own_mask_key, roster.entry(peer).mask_key, salt=transcript, info=info)
    except ValueError as error:
        raise BadRosterError(roster.context.sum_id, f"the mask key of {peer} is of small order") from error


def self_mask_key(transcript: bytes, site: SiteId, self_seed: bytes) -> bytes:
    """The key of a site's own mask."""
    info = labeled_digest(SELF_MASK_LABEL, site.encode())
    return derive(self_seed, salt=transcript, info=info)
