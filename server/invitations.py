"""What a coordinator needs before a site can enrol, and what it hands to one.

Everything is made once and stays; only the certificate of the coordinator's own services is made anew, when
less than a third of its life is left or the host has another name.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509

from common.atomic import write_atomically
from common.certificates import (
    Authority,
    certificate_pem,
    is_due,
    key_pem,
    new_key,
    read_certificate,
    read_key,
)
from common.enrolment_messages import Invitation, join_address
from common.errors import BadFileError, SettingsError
from common.ids import SiteId
from common.locks import locked
from common.pki import Identity, create_identity, read_identity
from server.home import CoordinatorHome, HomeSettings
from server.site_records import SiteRecord, require_new, revoke
from server.tokens import Tokens

COORDINATOR = SiteId("coordinator")


def make_coordinator(home: CoordinatorHome, settings: HomeSettings) -> Identity:
    """The coordinator's identity, with its authority and server certificate; what is there already stays.

    Raises:
        BadFileError: What is there cannot be read.
    """
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home.authority / "ca.key").exists():
        Authority.create(home.authority, settings.consortium)
    if not home.identity_file.exists():
        create_identity(home.identity_file, COORDINATOR)
    ensure_server_certificate(home, settings)
    return read_identity(home.identity_file)


def ensure_server_certificate(
    home: CoordinatorHome, settings: HomeSettings, now: datetime | None = None
) -> bool:
    """Make the certificate of gateway and enrolment anew where it is due or for another host; whether it was.

    Raises:
        BadFileError: The authority cannot be read.
    """
    # Gateway and enrolment service may find out at the same time.
    with locked(home.root / ".server.lock"):
        if _is_current(home, settings, now or datetime.now(UTC)):
            return False
        key = new_key()
        certificate = Authority.open(home.authority).sign_server(key.public_key(), [settings.host])
        # In this order: whoever reads the pair again looks at the certificate.
        write_atomically(home.server_key, key_pem(key), private=True)
        write_atomically(home.server_certificate, certificate_pem(certificate))
    return True


def make_invitation(
    home: CoordinatorHome, settings: HomeSettings, site: SiteId, now: datetime | None = None
) -> Invitation:
    """What a site needs to enrol, with a new token; older tokens for it are no longer good.

    Raises:
        SiteEnrolledError: The site takes part already.
        SettingsError: The name is the coordinator's own.
        BadFileError: The home was not set up.
    """
    if site == COORDINATOR:
        raise SettingsError("site", repr(site), "a name that is not the coordinator's own")
    require_new(home, site)
    tokens = Tokens(home.tokens_file)
    tokens.withdraw(site)
    token, ends = tokens.issue(site, settings.token_hours, now)
    return Invitation(
        consortium=settings.consortium,
        site=site,
        enrolment=join_address(settings.host, settings.enrolment_port),
        gateway=join_address(settings.host, settings.gateway_port),
        authority=certificate_pem(Authority.open(home.authority).certificate).decode(),
        coordinator=read_identity(home.identity_file).public().key.hex(),
        token=token,
        expires=ends.isoformat(timespec="seconds"),
    )


def revoke_site(home: CoordinatorHome, site: SiteId) -> SiteRecord:
    """End a site's part at once: certificates, enrolment, tokens. UnknownSiteError, BadFileError."""
    record = revoke(home, site)
    Tokens(home.tokens_file).withdraw(site)
    return record


def _is_current(home: CoordinatorHome, settings: HomeSettings, now: datetime) -> bool:
    try:
        certificate, key = read_certificate(home.server_certificate), read_key(home.server_key)
    except BadFileError:
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return (
        hosts == [settings.host]
        and certificate.public_key() == key.public_key()
        and not is_due(certificate, now)
    )
