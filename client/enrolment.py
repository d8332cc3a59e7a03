"""A site's way into a consortium: keys are made here, and never leave; the coordinator signs a certificate.

What the site knows of the coordinator comes with the invitation, which its administrator got over a channel
that he trusts: the consortium's authority and the coordinator's identity. A coordinator that shows others is
refused. Identities of other sites are only brought here (``offered/``); who approves them is the
administrator, by their fingerprints (``client.approval``).

coordinator.json     ``Coordinator``
offered/SITE.json    identities that the coordinator names; none of them is trusted for it
packages/DIGEST.json plans that are on offer; none of them is approved for it
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.approval import make_identity, own_identity
from client.home import ConsortiumHome
from client.hospital_proxy import HospitalProxy
from common.atomic import write_atomically
from common.canonical import plain
from common.certificates import (
    Key,
    certificate_pem,
    is_due,
    key_pem,
    loopback_certificate,
    make_csr,
    new_key,
    parse_certificate,
    read_certificate,
    read_key,
    site_of,
)
from common.durable import read_durable, write_durable
from common.enrolment_messages import (
    MOST_ANSWER_BYTES,
    SERVICE,
    DirectoryAnswer,
    DirectoryRequest,
    EnrolAnswer,
    EnrolRequest,
    Invitation,
    PackageAnswer,
    PackageRequest,
    RenewRequest,
    from_body,
    node_key_text,
    sign,
    to_body,
)
from common.errors import (
    BadCertificateError,
    BadFileError,
    DigestMismatchError,
    EnrolmentRefusedError,
    SettingsError,
    UnreachableError,
)
from common.ids import SiteId, site_id
from common.pki import Identity, PublicIdentity, write_public
from common.plan_package import PlanPackage, write_package
from common.schema import build
from common.versions import SPOKEN, ProtocolRange

KIND, SCHEMA = "coordinator", 1
COORDINATOR = SiteId("coordinator")
CALL_S = 30.0
# A directory names at most so many; more is a coordinator that fills the site's disk.
MOST_SITES, MOST_PACKAGES = 4096, 256

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """What a site keeps of its coordinator.

    Attributes:
        consortium: Its name.
        site: This site's name in it.
        enrolment: ``host:port`` of the enrolment service.
        gateway: ``host:port`` of the gateway.
        coordinator: The coordinator's Ed25519 public key, hexadecimal.
        protocol: The version that both speak.
    """

    consortium: str
    site: SiteId
    enrolment: str
    gateway: str
    coordinator: str
    protocol: int

    def identity(self) -> PublicIdentity:
        """The coordinator's public identity, which countersigns ledgers."""
        return PublicIdentity(site_id=COORDINATOR, key=bytes.fromhex(self.coordinator))


@dataclass(frozen=True, kw_only=True)
class Directory:
    """What the coordinator names: other sites' identities, and digests of plans; new ones apart.

    Attributes:
        identities: Of all other sites that take part, in ``offered/``.
        packages: Digests of all plans on offer, in ``packages/``.
        new_packages: Those that were not here before.
    """

    identities: tuple[PublicIdentity, ...]
    packages: tuple[str, ...]
    new_packages: tuple[str, ...]


def read_coordinator(home: ConsortiumHome) -> Coordinator:
    """What the site keeps of its coordinator. BadFileError if it has not enrolled."""
    try:
        return build(Coordinator, read_durable(home.coordinator_file, KIND, SCHEMA), "coordinator")
    except SettingsError as error:
        raise BadFileError(home.coordinator_file, str(error)) from error


def enrol(
    home: ConsortiumHome,
    site: SiteId,
    invitation: Invitation,
    *,
    https_proxy: str | None = None,
    protocol: ProtocolRange = SPOKEN,
) -> PublicIdentity:
    """Take part in a consortium; the site's public identity, whose fingerprint both ends compare.

    May be called again after a failure: keys that were made stay, and the same keys get the same certificate.

    Args:
        home: Where the consortium's files go; made where it is missing.
        site: This site's name.
        invitation: Of the coordinator.
        https_proxy: The hospital's proxy, ``http://[user:password@]host:port``.
        protocol: Versions that this build speaks.

    Raises:
        BadFileError: The site has enrolled here before.
        SettingsError: The invitation is for another site, or another consortium.
        UnreachableError: The coordinator does not answer, or is not the one of the invitation.
        EnrolmentRefusedError: It refuses; its reason goes with it.
        BadCertificateError: It answers with a certificate that is not the site's.
    """
    if home.coordinator_file.exists():
        raise BadFileError(home.coordinator_file, "enrolled already; remove the file to enrol anew")
    _require_ours(home, site, invitation)
    identity, key, node_key = _make_keys(home, site)
    request = EnrolRequest(
        consortium=invitation.consortium,
        site=site,
        token=invitation.token,
        csr=make_csr(key, site).decode(),
        identity=identity.public().key.hex(),
        node_key=node_key_text(node_key.public_key()),
        protocol=protocol,
    ).signed(identity, node_key)
    # The authority first: from here on it is what the site trusts.
    authority = parse_certificate(invitation.authority.encode(), "authority of the invitation")
    write_atomically(home.authority_certificate, certificate_pem(authority))
    with _calls(home, invitation.enrolment, https_proxy) as call:
        answer = call("Enrol", request, EnrolAnswer)
    if answer.coordinator != invitation.coordinator:
        raise BadCertificateError("coordinator", "answers with another identity than its invitation names")
    write_atomically(home.tls_certificate, _checked(answer, site, key, authority))
    known = Coordinator(
        consortium=invitation.consortium,
        site=site,
        enrolment=invitation.enrolment,
        gateway=invitation.gateway,
        coordinator=answer.coordinator,
        protocol=answer.protocol,
    )
    # Last: it says that all the rest is there.
    write_durable(home.coordinator_file, KIND, SCHEMA, plain(known))
    return identity.public()


def renew(
    home: ConsortiumHome, *, https_proxy: str | None = None, protocol: ProtocolRange = SPOKEN
) -> x509.Certificate:
    """A new certificate, for a new key, in place of the old one. Raises as ``enrol``."""
    known, identity = read_coordinator(home), own_identity(home.root)
    key = new_key()
    request = RenewRequest(
        consortium=known.consortium,
        site=known.site,
        at=int(time.time()),
        csr=make_csr(key, known.site).decode(),
        protocol=protocol,
    )
    with _calls(home, known.enrolment, https_proxy) as call:
        answer = call("Renew", sign(request, identity), EnrolAnswer)
    pem = _checked(answer, known.site, key, read_certificate(home.authority_certificate))
    # In this order: who reads the pair again looks at the certificate. A crash in between leaves a pair that
    # does not fit, which ``needs_renewal`` sees, and renewal asks for no old certificate.
    write_atomically(home.tls_key, key_pem(key), private=True)
    write_atomically(home.tls_certificate, pem)
    write_durable(home.coordinator_file, KIND, SCHEMA, plain(replace(known, protocol=answer.protocol)))
    return read_certificate(home.tls_certificate)


def needs_renewal(home: ConsortiumHome, now: datetime | None = None) -> bool:
    """Whether less than a third of the certificate's life is left, or its key is another. BadFileError."""
    certificate = read_certificate(home.tls_certificate)
    fits = certificate.public_key() == read_key(home.tls_key).public_key()
    return not fits or is_due(certificate, now or datetime.now(UTC))


def fetch_directory(home: ConsortiumHome, *, https_proxy: str | None = None) -> Directory:
    """Bring here which other sites take part, and the plans on offer. Nothing of it is approved.

    Raises:
        BadFileError: The site has not enrolled.
        UnreachableError: The coordinator does not answer.
        EnrolmentRefusedError: It refuses.
        DigestMismatchError: It sends another plan than it named.
        FederationError: It sends what is no identity and no plan.
    """
    known, identity = read_coordinator(home), own_identity(home.root)
    with _calls(home, known.enrolment, https_proxy) as call:
        asked = sign(
            DirectoryRequest(consortium=known.consortium, site=known.site, at=int(time.time())), identity
        )
        answer = call("Directory", asked, DirectoryAnswer)
        if len(answer.identities) > MOST_SITES or len(answer.packages) > MOST_PACKAGES:
            raise EnrolmentRefusedError(known.enrolment, "names more sites or plans than a consortium has")
        offered = _offer(home, answer)
        new = [digest for digest in answer.packages if not (home.packages / f"{digest}.json").exists()]
        for digest in new:
            wanted = PackageRequest(
                consortium=known.consortium, site=known.site, at=int(time.time()), digest=digest
            )
            package = PlanPackage.from_json(call("Package", sign(wanted, identity), PackageAnswer).package)
            if package.plan.digest() != digest:
                raise DigestMismatchError("plan on offer", package.plan.digest(), digest)
            write_package(package, home.packages)
    return Directory(identities=offered, packages=answer.packages, new_packages=tuple(new))


def _offer(home: ConsortiumHome, answer: DirectoryAnswer) -> tuple[PublicIdentity, ...]:
    """The identities as files; those of sites that no longer take part go."""
    try:
        offered = tuple(
            PublicIdentity(site_id=site_id(name), key=bytes.fromhex(key))
            for name, key in sorted(answer.identities.items())
        )
    except ValueError as error:
        raise BadCertificateError("directory", "expected names of sites and their keys") from error
    home.offered.mkdir(parents=True, exist_ok=True)
    for identity in offered:
        write_public(identity, home.offered)
    names = {f"{identity.site_id}.json" for identity in offered}
    for path in home.offered.glob("*.json"):
        if path.name not in names:
            path.unlink()
    return offered


def _require_ours(home: ConsortiumHome, site: SiteId, invitation: Invitation) -> None:
    if invitation.site != site:
        raise SettingsError("invitation.site", invitation.site, f"this site's name, {site}")
    if invitation.consortium != home.name:
        raise SettingsError("invitation.consortium", invitation.consortium, f"{home.name}, the folder's")


def _make_keys(home: ConsortiumHome, site: SiteId) -> tuple[Identity, Key, Key]:
    """Identity, TLS key and SuperNode's key; those that are here already are taken."""
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home.root / "identity.json").exists():
        make_identity(home.root, site)
    identity = own_identity(home.root)
    if identity.site_id != site:
        raise SettingsError("site", site, f"the name in identity.json, {identity.site_id}")
    if not home.tls_key.exists():
        write_atomically(home.tls_key, key_pem(new_key()), private=True)
    if not home.node_key.exists():
        _write_node_key(home, ec.generate_private_key(ec.SECP384R1()))
    if not home.loopback_certificate.exists():
        loopback = new_key()
        write_atomically(home.loopback_key, key_pem(loopback), private=True)
        write_atomically(home.loopback_certificate, certificate_pem(loopback_certificate(loopback)))
    return identity, read_key(home.tls_key), _read_node_key(home.node_key)


def _write_node_key(home: ConsortiumHome, key: Key) -> None:
    form = serialization.PrivateFormat.OpenSSH
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomically(home.node_public_key, node_key_text(key.public_key()) + "\n")
    write_atomically(home.node_key, text, private=True)


def _read_node_key(path: Path) -> Key:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    # Not chained: what could not be read may be a key.
    except (OSError, ValueError):
        raise BadFileError(path, "expected a private key of OpenSSH, without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise BadFileError(path, "expected an ECDSA key on P-384")
    return key


def _checked(answer: EnrolAnswer, site: SiteId, key: Key, authority: x509.Certificate) -> bytes:
    """The certificate's PEM, if it is this site's and the authority signed it. BadCertificateError."""
    certificate = parse_certificate(answer.certificate.encode(), "certificate")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadCertificateError("certificate", "is not signed by the consortium's authority") from error
    if site_of(certificate) != site or certificate.public_key() != key.public_key():
        raise BadCertificateError("certificate", f"expected one for {site} and its key")
    return certificate_pem(certificate)


class _Call:
    """One method of the service; what it refuses and why it fails become errors of ours."""

    def __init__(self, channel: grpc.Channel, address: str) -> None:
        self._channel, self._address = channel, address

    def __call__(self, method: str, request: object, answer: type[A]) -> A:
        try:
            data = self._channel.unary_unary(f"/{SERVICE}/{method}")(to_body(request), timeout=CALL_S)
        except grpc.RpcError as error:
            raise self._reason(error) from None
        return from_body(answer, data)

    def _reason(self, error: grpc.RpcError) -> UnreachableError | EnrolmentRefusedError:
        code, text = error.code(), _printable(error.details() or "")
        if code is grpc.StatusCode.UNAVAILABLE:
            if "CERTIFICATE_VERIFY_FAILED" in text or "Peer name" in text:
                return UnreachableError(self._address, "its certificate is not by the consortium's authority")
            return UnreachableError(self._address, "the coordinator does not answer, or the proxy refuses")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnreachableError(self._address, f"the coordinator did not answer within {CALL_S:g} s")
        return EnrolmentRefusedError(self._address, text or code.name)


@contextmanager
def _calls(home: ConsortiumHome, address: str, https_proxy: str | None) -> Iterator[_Call]:
    if https_proxy is not None:
        # Refused here, where its password is in no message.
        HospitalProxy(https_proxy)
    credentials = grpc.ssl_channel_credentials(home.authority_certificate.read_bytes())
    # Without a proxy of the settings gRPC would take one from the environment.
    way = ("grpc.http_proxy", https_proxy) if https_proxy else ("grpc.enable_http_proxy", 0)
    options = [("grpc.max_receive_message_length", MOST_ANSWER_BYTES), way]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield _Call(channel, address)


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor: the text comes from another machine."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
