"""Certificates of the network: one authority a consortium, ECDSA on P-256.

They keep strangers off the wire and name the site at its other end. What a site trusts with its patients'
sums is another thing, the identities of ``common.pki``: a coordinator that made certificates for hospitals
of its own would gain nothing by it.

Files of the authority's folder, which belongs to the coordinator:

ca.key       private key, readable by its owner only
ca.crt       its certificate, which every site gets with its invitation
revoked.pem  the certificate revocation list, in the form that nginx reads, too

Not constrained by name: coordinators have whatever host name they have, and nobody trusts this authority
for anything but this consortium.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.atomic import write_atomically
from common.errors import BadCertificateError, BadFileError
from common.ids import NAME_PATTERN, SiteId, site_id
from common.locks import locked

DOMAIN = "consilium"
AUTHORITY_DAYS = 3650
SERVER_DAYS = 398
LOOPBACK_DAYS = 3650
MOST_PEM_BYTES = 16384
# A machine whose clock is a little behind must not find a new certificate of the future.
CLOCK_SKEW = timedelta(minutes=5)
GROUP = 4
_CURVES = (ec.SECP256R1, ec.SECP384R1)

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def new_key() -> Key:
    """A private key, ECDSA P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as PEM without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(path: Path) -> Key:
    """The private key in a PEM file. BadFileError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise BadFileError(path, error.strerror or type(error).__name__) from None
    # Not chained: what could not be read may be a key.
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadFileError(path, "expected a private key as PEM, without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadFileError(path, "expected an ECDSA key")
    return key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The certificate of a PEM text. BadCertificateError, naming ``what``."""
    try:
        if len(pem) > MOST_PEM_BYTES:
            raise BadCertificateError(what, f"expected at most {MOST_PEM_BYTES} bytes, got {len(pem)}")
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadCertificateError(what, "expected a certificate as PEM") from error


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file. BadFileError."""
    try:
        return parse_certificate(path.read_bytes(), "certificate")
    except OSError as error:
        raise BadFileError(path, error.strerror or type(error).__name__) from error
    except BadCertificateError as error:
        raise BadFileError(path, error.reason) from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def in_groups(digits: str) -> str:
    """Hexadecimal digits in groups of four, as people read them to each other."""
    return " ".join(digits[start : start + GROUP] for start in range(0, len(digits), GROUP))


def without_groups(text: str) -> str:
    """The digits back from what a person typed: no white space, no colons, lower case."""
    return "".join(text.split()).replace(":", "").lower()


def serial_text(serial: int) -> str:
    """A serial number as hexadecimal digits, as certificate tools print it."""
    return f"{serial:x}"


def host_of(site: SiteId, consortium: str) -> str:
    """The name in a site's certificate."""
    return f"{site}.sites.{consortium}.{DOMAIN}"


def site_of(certificate: x509.Certificate) -> SiteId:
    """The site whom a certificate names, in its subject and in its alternative name alike.

    Raises:
        BadCertificateError: It names none, or two.
    """
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (host,) = names.get_values_for_type(x509.DNSName)
        label, middle, consortium, domain = host.split(".")
        site = site_id(label)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise BadCertificateError("certificate", "names no site") from error
    if (middle, domain) != ("sites", DOMAIN) or [name.value for name in common] != [site]:
        raise BadCertificateError("certificate", f"expected the name of one site of {consortium}")
    return site


def days_left(certificate: x509.Certificate, now: datetime) -> float:
    """Days until a certificate ends; negative after."""
    return (certificate.not_valid_after_utc - now) / timedelta(days=1)


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether less than a third of a certificate's life is left."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < life / 3


def make_csr(key: Key, site: SiteId) -> bytes:
    """A request for a certificate, PEM, signed by the key that it is for."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def csr_key(pem: bytes) -> PublicKey:
    """The public key of a request, and nothing else of it: names and extensions are the authority's to set.

    Raises:
        BadCertificateError: It is no request, its signature is not by its key, or the key is a weak one.
    """
    what = "certificate request"
    if len(pem) > MOST_PEM_BYTES:
        raise BadCertificateError(what, f"expected at most {MOST_PEM_BYTES} bytes, got {len(pem)}")
    try:
        request = x509.load_pem_x509_csr(pem)
        key, is_signed = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadCertificateError(what, "expected a request as PEM") from error
    if not is_signed:
        raise BadCertificateError(what, "expected a signature by the key that it is for")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise BadCertificateError(what, "expected an ECDSA key on P-256 or P-384")
    return key


def loopback_certificate(key: Key, days: int = LOOPBACK_DAYS) -> x509.Certificate:
    """A self-signed certificate of this machine's loopback: ``localhost``, 127.0.0.1 and ::1."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    unsigned = _server(_builder(name, name, key.public_key(), days), ["localhost", "127.0.0.1", "::1"])
    return unsigned.sign(key, hashes.SHA256())


class Authority:
    """The authority of a consortium; owns the files of its folder."""

    def __init__(self, folder: Path, key: Key, certificate: x509.Certificate) -> None:
        self._folder, self._key, self.certificate = folder, key, certificate

    @classmethod
    def create(cls, folder: Path, consortium: str) -> Authority:
        """A new one. BadFileError if there is one already, ValueError for a name that is none."""
        if NAME_PATTERN.fullmatch(consortium) is None:
            raise ValueError(f"Expected a consortium's name, got {consortium!r}")
        if (folder / "ca.key").exists():
            raise BadFileError(
                folder / "ca.key", "an authority is here already; a new one would lock all out"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = new_key()
        authority = cls(folder, key, _authority_certificate(key, consortium))
        # The key last: an authority without it is made anew, one with it is whole.
        write_atomically(folder / "ca.crt", certificate_pem(authority.certificate))
        authority._write_revoked([])
        write_atomically(folder / "ca.key", key_pem(key), private=True)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The one in the folder. BadFileError."""
        key, certificate = read_key(folder / "ca.key"), read_certificate(folder / "ca.crt")
        if certificate.public_key() != key.public_key():
            raise BadFileError(folder / "ca.key", "is not the key of ca.crt")
        return cls(folder, key, certificate)

    @property
    def consortium(self) -> str:
        """Whose authority it is."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def sign_site(self, csr_pem: bytes, site: SiteId, days: float) -> x509.Certificate:
        """A certificate for a site, as a client only; of the request only its key is taken.

        Raises:
            BadCertificateError: As ``csr_key``.
        """
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
        builder = _builder(name, self.certificate.subject, csr_key(csr_pem), days)
        names = x509.SubjectAlternativeName([x509.DNSName(host_of(site, self.consortium))])
        builder = builder.add_extension(names, critical=False)
        return self._sign(_leaf(builder, ExtendedKeyUsageOID.CLIENT_AUTH))

    def sign_server(
        self, key: PublicKey, hosts: Sequence[str], days: float = SERVER_DAYS
    ) -> x509.Certificate:
        """A certificate for the coordinator's own services, under host names and addresses."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")])
        return self._sign(_server(_builder(name, self.certificate.subject, key, days), hosts))

    def revoke(self, serials: Iterable[int]) -> None:
        """Put serial numbers on the list of revoked certificates; those on it stay."""
        with locked(self._folder / ".lock"):
            known = RevocationList(self._folder / "revoked.pem", self.certificate).serials()
            self._write_revoked(sorted(known | set(serials)))

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())

    def _write_revoked(self, serials: Sequence[int]) -> None:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        # It is read where it is written, so its age tells nothing, and nginx refuses all behind an old one.
        builder = builder.last_update(now - CLOCK_SKEW).next_update(now + timedelta(days=AUTHORITY_DAYS))
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._key, hashes.SHA256())
        write_atomically(self._folder / "revoked.pem", signed.public_bytes(serialization.Encoding.PEM))


class RevocationList:
    """The revoked serial numbers in a file, read again whenever the file changes."""

    def __init__(self, path: Path, authority: x509.Certificate) -> None:
        self._path, self._authority = path, authority
        self._seen: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()

    def is_revoked(self, serial: int) -> bool:
        """Whether the certificate is on the list. BadFileError without a list that can be trusted."""
        return serial in self.serials()

    def serials(self) -> frozenset[int]:
        """All of them. BadFileError."""
        try:
            found = self._path.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version != self._seen:
                self._serials = self._read(self._path.read_bytes())
                self._seen = version
        except OSError as error:
            raise BadFileError(self._path, error.strerror or type(error).__name__) from error
        return self._serials

    def _read(self, pem: bytes) -> frozenset[int]:
        try:
            found = x509.load_pem_x509_crl(pem)
        except ValueError as error:
            raise BadFileError(self._path, "expected a revocation list as PEM") from error
        key = self._authority.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid(key):
            raise BadFileError(self._path, "expected a list that the consortium's authority signed")
        return frozenset(entry.serial_number for entry in found)


def _authority_certificate(key: Key, consortium: str) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, consortium)])
    builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(signs=True), critical=True).sign(key, hashes.SHA256())


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=days))
    builder = builder.serial_number(x509.random_serial_number())
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _server(builder: x509.CertificateBuilder, hosts: Sequence[str]) -> x509.CertificateBuilder:
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return _leaf(builder.add_extension(names, critical=False), ExtendedKeyUsageOID.SERVER_AUTH)


def _leaf(builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    return builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
