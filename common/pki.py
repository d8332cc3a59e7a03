"""Who a site is: one Ed25519 key, made at the site, and approved by the administrators of the others.

A coordinator cannot make up a hospital: what a site accepts from the others is signed by keys that its own
administrator approved one by one, having compared the fingerprint over a second channel. Certificates for
the network's encryption come with enrolment and prove none of this.

Files, all JSON: a site's own ``identity.json`` (readable by its owner only), and one
``{site_id}.json`` for every public identity in a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.atomic import write_atomically
from common.canonical import canonical_json, labeled_digest, read_object
from common.checks import require_schema
from common.errors import BadFileError, BadSignatureError, DigestMismatchError, SettingsError
from common.ids import SiteId, site_id

IDENTITY_SCHEMA = 1
KEY_SIZE = 32
SIGNATURE_SIZE = 64
FINGERPRINT_LABEL = "consilium site identity v1"


@dataclass(frozen=True, kw_only=True)
class PublicIdentity:
    """What others know of a site.

    Attributes:
        site_id: Its name.
        key: Ed25519 public key, 32 bytes.
    """

    site_id: SiteId
    key: bytes

    def __post_init__(self) -> None:
        site_id(self.site_id)
        if len(self.key) != KEY_SIZE:
            raise ValueError(f"Expected a public key of {KEY_SIZE} bytes, got {len(self.key)}")

    def fingerprint(self) -> str:
        """What two administrators read to each other: 64 hexadecimal digits of name and key."""
        return labeled_digest(FINGERPRINT_LABEL, self.site_id.encode(), self.key).hex()

    def verify(self, statement: bytes, signature: bytes, what: str) -> None:
        """BadSignatureError, naming ``what``, unless this site signed the statement."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, statement)
        except (InvalidSignature, ValueError) as error:
            raise BadSignatureError(self.site_id, what) from error


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A site's own identity; never leaves it.

    Attributes:
        site_id: Its name.
        private_key: Ed25519 private key, 32 bytes.
    """

    site_id: SiteId
    private_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        site_id(self.site_id)
        if len(self.private_key) != KEY_SIZE:
            raise ValueError(f"Expected a private key of {KEY_SIZE} bytes, got {len(self.private_key)}")

    @classmethod
    def generate(cls, site: SiteId) -> Identity:
        """A new one, from the operating system's randomness."""
        return cls(site_id=site, private_key=Ed25519PrivateKey.generate().private_bytes_raw())

    def public(self) -> PublicIdentity:
        """What others may know."""
        key = Ed25519PrivateKey.from_private_bytes(self.private_key).public_key().public_bytes_raw()
        return PublicIdentity(site_id=self.site_id, key=key)

    def sign(self, statement: bytes) -> bytes:
        """The signature (64 bytes) of a statement, which is a labeled digest."""
        return Ed25519PrivateKey.from_private_bytes(self.private_key).sign(statement)


def create_identity(path: Path, site: SiteId) -> Identity:
    """A new identity in a new file, readable by its owner only. BadFileError if there is one already."""
    if path.exists():
        raise BadFileError(path, "an identity is here already; a new one would lock this site out")
    identity = Identity.generate(site)
    content = {"schema": IDENTITY_SCHEMA, "site_id": site, "private_key": identity.private_key.hex()}
    write_atomically(path, canonical_json(content) + "\n", private=True)
    return identity


def read_identity(path: Path) -> Identity:
    """A site's own identity. BadFileError, UnsupportedSchemaError."""
    name, key = _read(path, "private_key")
    return Identity(site_id=name, private_key=key)


def write_public(identity: PublicIdentity, folder: Path) -> Path:
    """Write ``{site_id}.json`` into the folder; its path."""
    path = folder / f"{identity.site_id}.json"
    content = {"schema": IDENTITY_SCHEMA, "site_id": identity.site_id, "key": identity.key.hex()}
    write_atomically(path, canonical_json(content) + "\n")
    return path


def read_public(path: Path) -> PublicIdentity:
    """A public identity. BadFileError, UnsupportedSchemaError."""
    name, key = _read(path, "key")
    return PublicIdentity(site_id=name, key=key)


def approve(path: Path, fingerprint: str, folder: Path) -> PublicIdentity:
    """Take the identity at ``path`` among those in ``folder``, if it has this fingerprint.

    Raises:
        BadFileError: The file holds no identity, or another key is approved under the same name.
        DigestMismatchError: The fingerprint is another one.
    """
    identity = read_public(path)
    if identity.fingerprint() != fingerprint:
        raise DigestMismatchError(f"identity of {identity.site_id}", identity.fingerprint(), fingerprint)
    place = folder / f"{identity.site_id}.json"
    if place.exists() and read_public(place) != identity:
        raise BadFileError(place, "another key is approved for this site; remove the file to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    write_public(identity, folder)
    return identity


def read_approved(folder: Path) -> Mapping[SiteId, PublicIdentity]:
    """All identities of a folder by site. BadFileError for a file that holds none, or another's."""
    approved: dict[SiteId, PublicIdentity] = {}
    for path in sorted(folder.glob("*.json")):
        identity = read_public(path)
        if path.name != f"{identity.site_id}.json":
            raise BadFileError(path, f"holds the identity of {identity.site_id}; expected its name to say so")
        approved[identity.site_id] = identity
    return approved


def _read(path: Path, key: str) -> tuple[SiteId, bytes]:
    try:
        content = read_object(path.read_text(encoding="utf-8"), "identity")
        # Before its keys, some of which this version may not know.
        require_schema(str(path), content.get("schema"), IDENTITY_SCHEMA)
        if set(content) != {"schema", "site_id", key}:
            raise BadFileError(path, f"expected schema {IDENTITY_SCHEMA}, site_id and {key}, nothing else")
        value = bytes.fromhex(content[key])
        if len(value) != KEY_SIZE:
            raise BadFileError(path, f"{key}: expected {2 * KEY_SIZE} hexadecimal digits")
        return site_id(content["site_id"]), value
    # Not chained: what was refused may be a key.
    except (OSError, UnicodeDecodeError, SettingsError) as error:
        raise BadFileError(path, f"not a readable identity ({type(error).__name__})") from None
    except (ValueError, TypeError):
        raise BadFileError(path, f"expected a site's name and {2 * KEY_SIZE} hexadecimal digits") from None
