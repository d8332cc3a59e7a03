import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

import client.enrolment
from client.approval import approve_site, approved_sites, own_identity
from client.enrolment import enrol, fetch_directory, needs_renewal, read_coordinator, renew
from client.home import ConsortiumHome, SiteHome
from common.certificates import (
    Authority,
    certificate_pem,
    key_pem,
    new_key,
    read_certificate,
    read_key,
    site_of,
)
from common.enrolment_messages import (
    DirectoryAnswer,
    EnrolAnswer,
    Invitation,
    PackageAnswer,
    read_node_key,
)
from common.errors import (
    BadCertificateError,
    BadFileError,
    DigestMismatchError,
    EnrolmentRefusedError,
    SettingsError,
    UnreachableError,
)
from common.ids import SiteId
from common.pki import read_identity, read_public
from common.versions import SPOKEN, ProtocolRange
from server.enrolment import serve
from server.home import CoordinatorHome
from server.invitations import make_invitation, revoke_site
from server.site_records import site_record
from tests.network import CONSORTIUM, HOST, WAIT_S, coordinator, settings_of
from tests.server.homes import packaged

A, B = SiteId("site-a"), SiteId("site-b")


class World:
    """A coordinator's enrolment service, and the homes of sites."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.coordinator: CoordinatorHome = coordinator(folder)
        server, port = serve(self.coordinator, settings_of(), lambda event, facts: None, port=0)
        stack.callback(lambda: server.stop(0).wait(WAIT_S))
        self.settings = settings_of(enrolment_port=port, gateway_port=8443)

    def invitation(self, site: SiteId = A) -> Invitation:
        return make_invitation(self.coordinator, self.settings, site)

    def home(self, site: SiteId = A) -> ConsortiumHome:
        return SiteHome(self.folder / site).consortium(CONSORTIUM)

    def enrolled(self, site: SiteId = A) -> ConsortiumHome:
        enrol(self.home(site), site, self.invitation(site))
        return self.home(site)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_site_enrols_and_both_ends_have_the_same_fingerprint(world: World) -> None:
    public = enrol(world.home(), A, world.invitation())
    home, record = world.home(), site_record(world.coordinator, A)
    assert public.fingerprint() == record.identity == own_identity(home.root).public().fingerprint()
    known = read_coordinator(home)
    assert (known.consortium, known.site, known.gateway) == (CONSORTIUM, A, "127.0.0.1:8443")
    assert known.protocol == record.protocol == SPOKEN.newest
    assert known.identity() == read_identity(world.coordinator.identity_file).public()
    certificate = read_certificate(home.tls_certificate)
    assert site_of(certificate) == A
    assert certificate.public_key() == read_key(home.tls_key).public_key()
    assert home.node_public_key.read_text().strip() == record.node_key
    private = serialization.load_ssh_private_key(home.node_key.read_bytes(), None)
    assert private.public_key() == read_node_key(record.node_key)
    assert (
        read_certificate(home.loopback_certificate).public_key() == read_key(home.loopback_key).public_key()
    )
    for path in (home.tls_key, home.node_key, home.loopback_key, home.root / "identity.json"):
        assert mode(path) == 0o600
    assert not needs_renewal(home)


def test_a_lost_answer_is_asked_for_again_with_the_same_keys(world: World) -> None:
    home, invitation = world.home(), world.invitation()
    first = enrol(home, A, invitation)
    certificate = home.tls_certificate.read_bytes()
    # As if the answer had not come.
    home.coordinator_file.unlink()
    home.tls_certificate.unlink()
    assert enrol(home, A, invitation) == first
    assert home.tls_certificate.read_bytes() == certificate


def test_a_site_enrols_once_and_where_it_is_invited(world: World) -> None:
    home, invitation = world.enrolled(), None
    with pytest.raises(BadFileError, match="enrolled already"):
        enrol(home, A, invitation)  # type: ignore[arg-type]
    other = world.invitation(B)
    with pytest.raises(SettingsError, match=r"invitation\.site: expected this site's name"):
        enrol(world.home(B), A, other)
    elsewhere = SiteHome(world.folder / "site-c").consortium("elsewhere")
    with pytest.raises(SettingsError, match=r"invitation\.consortium"):
        enrol(elsewhere, B, other)
    with pytest.raises(SettingsError, match="the name in identity"):
        (world.folder / "site-b" / "consortia" / CONSORTIUM).mkdir(parents=True)
        (world.home(B).root / "identity.json").write_bytes((home.root / "identity.json").read_bytes())
        enrol(world.home(B), B, other)


def test_a_refusal_comes_with_the_coordinators_reason(world: World) -> None:
    invitation = world.invitation()
    with pytest.raises(EnrolmentRefusedError, match="refused: site-a: the token is unknown"):
        enrol(world.home(), A, replace(invitation, token="none"))
    old = ProtocolRange(oldest=1, newest=1)
    with pytest.raises(EnrolmentRefusedError, match="refused: protocol: the other end speaks up to 1"):
        enrol(world.home(), A, invitation, protocol=old)
    assert not world.home().coordinator_file.exists()
    assert enrol(world.home(), A, invitation).site_id == A


def test_who_is_not_the_coordinator_of_the_invitation_gets_no_token(world: World, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", CONSORTIUM)
    invitation = replace(world.invitation(), authority=certificate_pem(other.certificate).decode())
    with pytest.raises(UnreachableError, match="is not by the consortium's authority"):
        enrol(world.home(), A, invitation)
    with pytest.raises(BadCertificateError, match="answers with another identity than its invitation names"):
        enrol(world.home(), A, replace(world.invitation(), coordinator="0" * 64))
    with pytest.raises(BadCertificateError, match="authority of the invitation"):
        enrol(world.home(), A, replace(invitation, authority="none"))
    assert not world.home().coordinator_file.exists()


def test_a_coordinator_that_does_not_answer_is_named(world: World) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1: the coordinator does not answer"):
        enrol(world.home(), A, replace(world.invitation(), enrolment=f"{HOST}:1"))


def test_a_certificate_that_is_not_the_sites_is_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = world.enrolled()
    before = home.tls_certificate.read_bytes()
    good = EnrolAnswer(
        certificate=before.decode(),
        authority=home.authority_certificate.read_text(),
        coordinator="0" * 64,
        protocol=3,
    )
    monkeypatch.setattr(client.enrolment._Call, "__call__", lambda self, method, request, answer: good)
    # Of the old key.
    with pytest.raises(BadCertificateError, match="expected one for site-a and its key"):
        renew(home)
    other = Authority.create(world.folder / "other", CONSORTIUM)
    home.authority_certificate.write_bytes(certificate_pem(other.certificate))
    with pytest.raises(BadCertificateError, match="is not signed by the consortium's authority"):
        renew(home)
    assert home.tls_certificate.read_bytes() == before


def test_a_certificate_is_renewed_twice_and_when_its_key_was_lost(world: World) -> None:
    home = world.enrolled()
    end = read_certificate(home.tls_certificate).not_valid_after_utc
    assert not needs_renewal(home, end - timedelta(days=31))
    assert needs_renewal(home, end - timedelta(days=29))
    serials = {read_certificate(home.tls_certificate).serial_number}
    for _ in range(2):
        serials.add(renew(home).serial_number)
        assert read_certificate(home.tls_certificate).public_key() == read_key(home.tls_key).public_key()
    assert len(serials) == 3
    # A crash between key and certificate.
    home.tls_key.write_bytes(key_pem(new_key()))
    assert needs_renewal(home, datetime.now(UTC))
    renew(home)
    assert not needs_renewal(home)


def test_a_revoked_site_is_told_so(world: World) -> None:
    home = world.enrolled()
    revoke_site(world.coordinator, A)
    for ask in (renew, fetch_directory):
        with pytest.raises(EnrolmentRefusedError, match="refused: site-a was revoked at"):
            ask(home)


def test_the_directory_brings_identities_and_plans_and_approves_none(world: World) -> None:
    a, b = world.enrolled(A), world.enrolled(B)
    package = packaged()
    digest = package.plan.digest()
    world.coordinator.packages.mkdir()
    (world.coordinator.packages / f"{digest}.json").write_text(package.to_json())
    first, second = fetch_directory(a), fetch_directory(a)
    assert [identity.site_id for identity in first.identities] == [B]
    assert first.packages == first.new_packages == second.packages == (digest,)
    assert second.new_packages == ()
    assert (a.packages / f"{digest}.json").read_text() == package.to_json() + "\n"
    assert read_public(a.offered / "site-b.json") == own_identity(b.root).public()
    assert approved_sites(a.root) == {}
    approve_site(a.root, a.offered / "site-b.json", own_identity(b.root).public().fingerprint())
    revoke_site(world.coordinator, B)
    assert fetch_directory(a).identities == ()
    assert not list(a.offered.glob("*.json"))
    # What the administrator approved is the administrator's to take back.
    assert list(approved_sites(a.root)) == [B]


@pytest.mark.parametrize(
    ("identities", "packages", "error"),
    [
        ({"../b": "0" * 64}, (), BadCertificateError),
        ({"site-b": "00"}, (), BadCertificateError),
        ({"site-b": "no"}, (), BadCertificateError),
        ({f"s-{number}": "0" * 64 for number in range(5000)}, (), EnrolmentRefusedError),
        ({}, ("../plan",), SettingsError),
        ({}, ("0" * 64,), DigestMismatchError),
    ],
)
def test_a_directory_that_is_none_is_refused(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    identities: dict[str, str],
    packages: tuple[str, ...],
    error: type[Exception],
) -> None:
    home = world.enrolled()
    answers = {
        DirectoryAnswer: DirectoryAnswer(identities=identities, packages=packages),
        PackageAnswer: PackageAnswer(package=packaged().to_json()),
    }
    monkeypatch.setattr(
        client.enrolment._Call, "__call__", lambda self, method, request, answer: answers[answer]
    )
    with pytest.raises(error):
        fetch_directory(home)
    assert not list(home.root.glob("packages/*"))
    assert not list(home.root.glob("*.json.tmp"))


def test_what_another_machine_says_moves_no_cursor() -> None:
    assert client.enrolment._printable("a\x1b[2Jb\r\n") == "a [2Jb  "


def test_a_site_that_has_not_enrolled_is_told(world: World) -> None:
    with pytest.raises(BadFileError, match=r"coordinator\.json"):
        renew(world.home())
    home = world.enrolled()
    home.node_key.write_text("none")
    home.coordinator_file.unlink()
    with pytest.raises(BadFileError, match="expected a private key of OpenSSH"):
        enrol(home, A, replace(world.invitation(B), site=A))
