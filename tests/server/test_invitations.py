import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from common.certificates import Authority, read_certificate, read_key
from common.enrolment_messages import read_invitation, write_invitation
from common.errors import (
    BadFileError,
    SettingsError,
    SiteEnrolledError,
    TokenUnknownError,
    UnsupportedSchemaError,
)
from common.ids import SiteId
from common.pki import read_identity
from server.home import CoordinatorHome
from server.invitations import COORDINATOR, ensure_server_certificate, make_coordinator, make_invitation
from server.tokens import Tokens
from tests.network import coordinator, enrolled, settings_of

A = SiteId("site-a")


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return coordinator(tmp_path)


def test_a_coordinator_is_made_once_and_stays(home: CoordinatorHome) -> None:
    identity = make_coordinator(home, settings_of())
    certificate = read_certificate(home.server_certificate)
    assert make_coordinator(home, settings_of()) == identity
    assert identity.site_id == COORDINATOR
    assert read_certificate(home.server_certificate) == certificate
    certificate.verify_directly_issued_by(Authority.open(home.authority).certificate)
    assert stat.S_IMODE(home.server_key.stat().st_mode) == 0o600


def test_the_coordinators_certificate_is_made_anew_for_another_host_and_when_it_is_due(
    home: CoordinatorHome,
) -> None:
    assert not ensure_server_certificate(home, settings_of())
    assert ensure_server_certificate(home, settings_of(host="fed.example.org"))
    certificate = read_certificate(home.server_certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    late = datetime.now(UTC) + timedelta(days=390)
    assert ensure_server_certificate(home, settings_of(host="fed.example.org"), late)
    # A crash between key and certificate.
    home.server_certificate.write_text("half")
    assert ensure_server_certificate(home, settings_of())
    key = read_key(home.server_key)
    assert read_certificate(home.server_certificate).public_key() == key.public_key()


def test_an_invitation_names_all_that_a_site_needs_and_travels_as_a_file(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    settings = settings_of(gateway_port=8443, enrolment_port=8444)
    now = datetime(2026, 11, 29, tzinfo=UTC)
    invitation = make_invitation(home, settings, A, now)
    assert (invitation.enrolment, invitation.gateway) == ("127.0.0.1:8444", "127.0.0.1:8443")
    assert invitation.expires == "2026-11-29T01:00:00+00:00"
    assert invitation.coordinator == read_identity(home.identity_file).public().key.hex()
    assert invitation.token not in repr(invitation)
    path = tmp_path / "invitation.json"
    write_invitation(invitation, path)
    assert read_invitation(path) == invitation
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_invitation_replaces_the_one_before(home: CoordinatorHome) -> None:
    first = make_invitation(home, settings_of(), A)
    make_invitation(home, settings_of(), A)
    with pytest.raises(TokenUnknownError):
        Tokens(home.tokens_file).redeem(first.token, A, "request", lambda: "certificate")


def test_neither_an_enrolled_site_nor_the_coordinator_is_invited(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    enrolled(home, A, tmp_path)
    with pytest.raises(SiteEnrolledError):
        make_invitation(home, settings_of(), A)
    with pytest.raises(SettingsError, match="a name that is not the coordinator's own"):
        make_invitation(home, settings_of(), COORDINATOR)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enrolment", "nowhere"),
        ("gateway", "host:0"),
        ("gateway", "host:65536"),
        ("gateway", ":1"),
        ("coordinator", "00"),
        ("consortium", "No"),
        ("site", "No"),
        ("token", 3),
    ],
)
def test_a_changed_invitation_is_refused_by_its_key_and_without_its_token(
    home: CoordinatorHome, tmp_path: Path, key: str, value: object
) -> None:
    from common.canonical import plain
    from common.durable import write_durable

    invitation = make_invitation(home, settings_of(gateway_port=8443, enrolment_port=8444), A)
    path = tmp_path / "invitation.json"
    write_durable(path, "invitation", 1, {**plain(invitation), key: value})
    with pytest.raises(BadFileError, match="expected") as caught:
        read_invitation(path)
    assert invitation.token not in str(caught.value)


def test_an_invitation_of_a_newer_version_and_no_invitation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "invitation.json"
    path.write_text('{"kind":"invitation","schema":2}')
    with pytest.raises(UnsupportedSchemaError):
        read_invitation(path)
    path.write_text('{"kind":"invitation","schema":1}')
    with pytest.raises(BadFileError, match=r"invitation\."):
        read_invitation(path)
