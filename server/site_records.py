"""What the coordinator keeps of every enrolled site: its keys, its certificates, and whether it was revoked.

sites/SITE.json       ``SiteRecord``
identities/SITE.json  its public identity (``common.pki``)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cryptography import x509

from common.canonical import plain
from common.certificates import Authority, serial_text
from common.durable import read_durable, write_durable
from common.errors import (
    BadFileError,
    SettingsError,
    SiteEnrolledError,
    SiteRevokedError,
    TooManyAttemptsError,
    UnknownSiteError,
)
from common.ids import SiteId, site_id
from common.locks import locked
from common.pki import PublicIdentity, read_public, write_public
from common.schema import build
from server.home import CoordinatorHome

KIND, SCHEMA = "site", 1
# A site renews once in a third of a certificate's life; a broken one must not grow its record for ever.
MOST_CERTIFICATES = 32


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """One enrolled site.

    Attributes:
        site: Its name.
        identity: Fingerprint of its public identity, which the other sites' administrators compare.
        node_key: Its SuperNode's public key, OpenSSH.
        certificates: End (ISO 8601) by serial number (hexadecimal) of those that have not ended.
        protocol: Version that it speaks with this coordinator.
        enrolled: When, ISO 8601.
        renewed: When it last renewed its certificate.
        revoked: When it was revoked; None while it takes part.
    """

    site: SiteId
    identity: str
    node_key: str
    certificates: Mapping[str, str]
    protocol: int
    enrolled: str
    renewed: str | None = None
    revoked: str | None = None

    def __post_init__(self) -> None:
        site_id(self.site)

    def ends(self) -> str:
        """When its last certificate ends, ISO 8601; nothing if all have."""
        return max(self.certificates.values(), default="")


def site_record(home: CoordinatorHome, site: SiteId) -> SiteRecord:
    """What is kept of a site. UnknownSiteError, BadFileError."""
    path = home.sites / f"{site_id(site)}.json"
    if not path.exists():
        raise UnknownSiteError(site)
    try:
        record = build(SiteRecord, read_durable(path, KIND, SCHEMA), "site")
    except SettingsError as error:
        raise BadFileError(path, str(error)) from error
    if record.site != site:
        raise BadFileError(path, f"holds the record of {record.site}; expected its name to say so")
    return record


def site_records(home: CoordinatorHome) -> tuple[SiteRecord, ...]:
    """All of them, revoked ones, too, by name. BadFileError."""
    return tuple(site_record(home, SiteId(path.stem)) for path in sorted(home.sites.glob("*.json")))


def active_site(home: CoordinatorHome, site: SiteId) -> SiteRecord:
    """The same of a site that takes part. UnknownSiteError, SiteRevokedError, BadFileError."""
    record = site_record(home, site)
    if record.revoked is not None:
        raise SiteRevokedError(site, record.revoked)
    return record


def site_identity(home: CoordinatorHome, site: SiteId) -> PublicIdentity:
    """The public identity with which a site enrolled. BadFileError."""
    return read_public(home.identities / f"{site_id(site)}.json")


def require_new(home: CoordinatorHome, site: SiteId) -> None:
    """SiteEnrolledError for a site that takes part already."""
    try:
        active_site(home, site)
    except (UnknownSiteError, SiteRevokedError):
        return
    raise SiteEnrolledError(site)


def add_site(
    home: CoordinatorHome,
    identity: PublicIdentity,
    *,
    node_key: str,
    certificate: x509.Certificate,
    protocol: int,
) -> SiteRecord:
    """Keep a site that enrols; the same certificate a second time changes nothing.

    Raises:
        SiteRevokedError: The site was revoked with this certificate.
        SiteEnrolledError: It takes part with another identity or other keys.
    """
    site = identity.site_id
    record = SiteRecord(
        site=site,
        identity=identity.fingerprint(),
        node_key=node_key,
        certificates=_named(certificate),
        protocol=protocol,
        enrolled=_now(),
    )
    with locked(home.sites / ".lock"):
        known = _known(home, site)
        if known is not None and serial_text(certificate.serial_number) in known.certificates:
            return active_site(home, site)
        if known is not None and known.revoked is None:
            raise SiteEnrolledError(site)
        home.identities.mkdir(parents=True, exist_ok=True)
        # First: whoever is in the records has an identity.
        write_public(identity, home.identities)
        _write(home, record)
    return record


def add_certificate(
    home: CoordinatorHome, authority: Authority, site: SiteId, csr_pem: bytes, *, days: float, protocol: int
) -> x509.Certificate:
    """A new certificate for a site that takes part.

    Guarantee: a site that is being revoked gets no certificate that outlives the revocation.

    Raises:
        UnknownSiteError: Never enrolled.
        SiteRevokedError: Revoked.
        TooManyAttemptsError: It holds more certificates than it can need.
        BadCertificateError: The request is refused.
    """
    with locked(home.sites / ".lock"):
        record = active_site(home, site)
        current = {serial: end for serial, end in record.certificates.items() if end > _now()}
        if len(current) >= MOST_CERTIFICATES:
            raise TooManyAttemptsError(f"{site}: certificates", MOST_CERTIFICATES)
        certificate = authority.sign_site(csr_pem, site, days)
        certificates = {**current, **_named(certificate)}
        _write(home, replace(record, certificates=certificates, renewed=_now(), protocol=protocol))
    return certificate


def revoke(home: CoordinatorHome, site: SiteId) -> SiteRecord:
    """End a site's part: all its certificates are on the list, its record says so; done twice, it stays.

    Raises:
        UnknownSiteError: Never enrolled.
    """
    with locked(home.sites / ".lock"):
        record = site_record(home, site)
        # First the list: it alone keeps the site out.
        Authority.open(home.authority).revoke(int(serial, 16) for serial in record.certificates)
        if record.revoked is None:
            record = replace(record, revoked=_now())
            _write(home, record)
    return record


def _known(home: CoordinatorHome, site: SiteId) -> SiteRecord | None:
    try:
        return site_record(home, site)
    except UnknownSiteError:
        return None


def _named(certificate: x509.Certificate) -> dict[str, str]:
    return {serial_text(certificate.serial_number): certificate.not_valid_after_utc.isoformat()}


def _write(home: CoordinatorHome, record: SiteRecord) -> None:
    home.sites.mkdir(parents=True, exist_ok=True)
    write_durable(home.sites / f"{record.site}.json", KIND, SCHEMA, plain(record))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
