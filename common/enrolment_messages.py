"""What site and coordinator say to each other outside of runs: enrol, renew, look up the others.

Bodies are canonical JSON with a schema. Whatever a site claims is under a signature by its Ed25519 identity
over one digest of all of it, with the consortium in it: what was said to one coordinator is of no use at
another. Time stands in what may be asked again, as seconds since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.canonical import canonical_json, labeled_digest, plain, read_object
from common.checks import require, require_digest, require_schema
from common.durable import read_durable, write_durable
from common.errors import (
    BadFileError,
    BadMessageError,
    BadSignatureError,
    SettingsError,
    StaleRequestError,
)
from common.ids import NAME_PATTERN, SiteId, site_id
from common.pki import Identity, PublicIdentity
from common.schema import build
from common.versions import ProtocolRange

SERVICE = "consilium.Enrolment"
SCHEMA = 1
# A request holds keys and a certificate request, none of which is large.
MOST_REQUEST_BYTES = 2**16
# A package of a plan is the largest answer (``common.plan_package``).
MOST_ANSWER_BYTES = 2**26 + 2**20
# How far the clocks of site and coordinator may be apart.
WINDOW_S = 300
HIGHEST_PORT = 65535
INVITATION_KIND, INVITATION_SCHEMA = "invitation", 1

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class EnrolRequest:
    """A site's wish to take part.

    Attributes:
        consortium: Which.
        site: The name that its invitation is for.
        token: Of the invitation.
        csr: Request for a certificate, PEM.
        identity: Ed25519 public key, hexadecimal.
        node_key: SuperNode's public key, OpenSSH, ECDSA P-384.
        protocol: Versions that the site speaks.
        signature: Of ``statement`` by the identity, hexadecimal.
        node_signature: Of ``statement`` by the node's key, hexadecimal.
    """

    consortium: str
    site: SiteId
    token: str = field(repr=False)
    csr: str
    identity: str
    node_key: str
    protocol: ProtocolRange
    signature: str = ""
    node_signature: str = ""

    def __post_init__(self) -> None:
        _require_names(self.consortium, self.site)
        require_digest("identity", self.identity)

    def statement(self) -> bytes:
        """What both keys sign: all but the signatures."""
        return _statement("enrol", replace(self, signature="", node_signature=""))

    def public(self) -> PublicIdentity:
        """The identity that the site shows."""
        return PublicIdentity(site_id=self.site, key=bytes.fromhex(self.identity))

    def signed(self, identity: Identity, node_key: ec.EllipticCurvePrivateKey) -> EnrolRequest:
        """The same with both signatures."""
        statement = self.statement()
        by_node = node_key.sign(statement, ec.ECDSA(hashes.SHA384()))
        return replace(self, signature=identity.sign(statement).hex(), node_signature=by_node.hex())

    def verify(self) -> None:
        """BadSignatureError unless whoever asks holds both private keys; SettingsError for other keys."""
        statement = self.statement()
        self.public().verify(statement, _signature(self.signature), "request to enrol")
        try:
            key = read_node_key(self.node_key)
            key.verify(_signature(self.node_signature), statement, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature as error:
            raise BadSignatureError(self.site, "node key") from error


@dataclass(frozen=True, kw_only=True)
class EnrolAnswer:
    """What a site gets when it enrols, and when it renews.

    Attributes:
        certificate: Its certificate, PEM.
        authority: The certificate of who signed it, PEM.
        coordinator: The coordinator's Ed25519 public key, hexadecimal.
        protocol: The version that both speak from now on.
    """

    certificate: str
    authority: str
    coordinator: str
    protocol: int


@dataclass(frozen=True, kw_only=True)
class RenewRequest:
    """A site's wish for a new certificate; needs no old one, which may have ended.

    Attributes:
        consortium: Which.
        site: Who asks.
        at: Seconds since 1970, UTC.
        csr: Request for a certificate, PEM.
        protocol: Versions that the site speaks.
        signature: Of ``statement`` by the site's identity, hexadecimal.
    """

    consortium: str
    site: SiteId
    at: int
    csr: str
    protocol: ProtocolRange
    signature: str = ""

    def __post_init__(self) -> None:
        _require_names(self.consortium, self.site)

    def statement(self) -> bytes:
        """What is signed: all but the signature."""
        return _statement("renew", replace(self, signature=""))


@dataclass(frozen=True, kw_only=True)
class DirectoryRequest:
    """Who else takes part, and which plans are on offer?"""

    consortium: str
    site: SiteId
    at: int
    signature: str = ""

    def __post_init__(self) -> None:
        _require_names(self.consortium, self.site)

    def statement(self) -> bytes:
        """What is signed: all but the signature."""
        return _statement("directory", replace(self, signature=""))


@dataclass(frozen=True, kw_only=True)
class DirectoryAnswer:
    """The other sites' Ed25519 public keys (hexadecimal) by site, and the digests of the plans on offer."""

    identities: Mapping[str, str]
    packages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """The package of a plan, please, by the plan's digest."""

    consortium: str
    site: SiteId
    at: int
    digest: str
    signature: str = ""

    def __post_init__(self) -> None:
        _require_names(self.consortium, self.site)
        require_digest("digest", self.digest)

    def statement(self) -> bytes:
        """What is signed: all but the signature."""
        return _statement("package", replace(self, signature=""))


@dataclass(frozen=True, kw_only=True)
class PackageAnswer:
    """A package (``common.plan_package``) as its JSON."""

    package: str


TimedRequest = RenewRequest | DirectoryRequest | PackageRequest
T = TypeVar("T", RenewRequest, DirectoryRequest, PackageRequest)


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """What a coordinator hands to a site's administrator, over a channel that both trust.

    Attributes:
        consortium: Its name.
        site: The name that the site gets.
        enrolment: ``host:port`` of the enrolment service.
        gateway: ``host:port`` of the gateway.
        authority: The consortium's certificate, PEM: whoever shows another one is not the coordinator.
        coordinator: The coordinator's Ed25519 public key, hexadecimal.
        token: Good for one enrolment.
        expires: When the token ends, ISO 8601.
    """

    consortium: str
    site: SiteId
    enrolment: str
    gateway: str
    authority: str
    coordinator: str
    token: str = field(repr=False)
    expires: str

    def __post_init__(self) -> None:
        _require_names(self.consortium, self.site)
        require_digest("coordinator", self.coordinator)
        for key in ("enrolment", "gateway"):
            split_address(key, getattr(self, key))


def write_invitation(invitation: Invitation, path: Path) -> None:
    """Put an invitation into a file, readable by its owner only: whoever reads it first may use it."""
    write_durable(path, INVITATION_KIND, INVITATION_SCHEMA, plain(invitation), private=True)


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file. BadFileError, UnsupportedSchemaError."""
    try:
        return build(Invitation, read_durable(path, INVITATION_KIND, INVITATION_SCHEMA), "invitation")
    except SettingsError as error:
        raise BadFileError(path, f"{error.key}: expected {error.expected}") from None


def sign(request: T, identity: Identity) -> T:
    """The same with its signature."""
    return replace(request, signature=identity.sign(request.statement()).hex())


def verify(request: TimedRequest, identity: PublicIdentity, now: float) -> None:
    """Refuse what the site did not sign, or signed at another time.

    Raises:
        BadSignatureError: Another key signed it, or other words.
        StaleRequestError: It is older than ``WINDOW_S``, or from as far in the future.
    """
    identity.verify(request.statement(), _signature(request.signature), type(request).__name__)
    away = abs(int(now) - request.at)
    if away > WINDOW_S:
        raise StaleRequestError(request.site, away, WINDOW_S)


def to_body(message: Any) -> bytes:
    """A message as bytes."""
    return canonical_json({**plain(message), "schema": SCHEMA}).encode()


def from_body(schema: type[M], data: bytes) -> M:
    """The message back. BadMessageError, UnsupportedSchemaError."""
    what = schema.__name__
    try:
        content = read_object(data.decode(), what)
        require_schema(what, content.pop("schema", None), SCHEMA)
        return build(schema, content, what)
    except UnicodeDecodeError as error:
        raise BadMessageError(f"{what}: expected UTF-8") from error
    # Not chained, and without the value: it may be a token.
    except SettingsError as error:
        raise BadMessageError(f"{error.key}: expected {error.expected}") from None


def read_node_key(text: str) -> ec.EllipticCurvePublicKey:
    """SuperNode's public key from its OpenSSH line. SettingsError unless it is ECDSA P-384."""
    expected = "an OpenSSH public key, ECDSA P-384"
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError("node_key", "another text", expected) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SettingsError("node_key", "another key", expected)
    return key


def node_key_text(key: ec.EllipticCurvePublicKey) -> str:
    """The OpenSSH line of a public key."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def split_address(key: str, address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` (``[v6]:port``). SettingsError, naming ``key``."""
    host, divider, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) <= HIGHEST_PORT
    require(bool(divider and bare) and is_port, key, repr(address), "host:port")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """``host:port`` back, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _statement(what: str, request: Any) -> bytes:
    return labeled_digest(f"consilium {what} v{SCHEMA}", canonical_json(request).encode())


def _signature(digits: str) -> bytes:
    """The signature's bytes; none, which nobody signed, where the text is no hexadecimal."""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _require_names(consortium: str, site: str) -> None:
    expected = "lower-case letters, digits and hyphens"
    require(NAME_PATTERN.fullmatch(consortium) is not None, "consortium", repr(consortium), expected)
    site_id(site)
