from dataclasses import replace
from pathlib import Path

import pytest

from common.certificates import Authority, RevocationList, make_csr, new_key, serial_text
from common.errors import (
    BadCertificateError,
    BadFileError,
    SiteEnrolledError,
    SiteRevokedError,
    TooManyAttemptsError,
    UnknownSiteError,
)
from common.ids import SiteId
from common.pki import Identity
from server.home import CoordinatorHome
from server.site_records import (
    MOST_CERTIFICATES,
    active_site,
    add_certificate,
    add_site,
    require_new,
    revoke,
    site_identity,
    site_record,
    site_records,
)
from tests.network import coordinator

A, B = SiteId("site-a"), SiteId("site-b")


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return coordinator(tmp_path)


def added(home: CoordinatorHome, site: SiteId) -> Identity:
    identity = Identity.generate(site)
    certificate = Authority.open(home.authority).sign_site(make_csr(new_key(), site), site, 90)
    record = add_site(home, identity.public(), node_key="key", certificate=certificate, protocol=3)
    assert add_site(home, identity.public(), node_key="key", certificate=certificate, protocol=3) == record
    return identity


def renewed(home: CoordinatorHome, site: SiteId, days: float = 90) -> int:
    authority = Authority.open(home.authority)
    csr = make_csr(new_key(), site)
    return add_certificate(home, authority, site, csr, days=days, protocol=4).serial_number


def test_a_site_is_kept_with_its_identity(home: CoordinatorHome) -> None:
    identity = added(home, A)
    added(home, B)
    record = site_record(home, A)
    assert record.identity == identity.public().fingerprint()
    assert (record.protocol, record.renewed, record.revoked) == (3, None, None)
    assert site_identity(home, A) == identity.public()
    assert [found.site for found in site_records(home)] == [A, B]
    assert record.ends() in record.certificates.values()


def test_a_site_that_takes_part_cannot_be_added_again(home: CoordinatorHome) -> None:
    added(home, A)
    with pytest.raises(SiteEnrolledError, match="site-a is enrolled already; revoke it first"):
        added(home, A)
    with pytest.raises(SiteEnrolledError):
        require_new(home, A)
    require_new(home, B)


def test_a_site_that_is_revoked_gets_no_certificate_that_outlives_the_revocation(
    home: CoordinatorHome,
) -> None:
    added(home, A)
    added(home, B)
    renewed(home, A)
    record = revoke(home, A)
    assert record.revoked is not None
    assert revoke(home, A) == record
    listed = RevocationList(home.authority / "revoked.pem", Authority.open(home.authority).certificate)
    assert {serial_text(serial) for serial in listed.serials()} == set(record.certificates)
    assert len(record.certificates) == 2
    with pytest.raises(SiteRevokedError, match="site-a was revoked at"):
        renewed(home, A)
    assert active_site(home, B).revoked is None


def test_a_revoked_site_may_enrol_anew_but_not_with_its_old_certificate(home: CoordinatorHome) -> None:
    identity = Identity.generate(A)
    certificate = Authority.open(home.authority).sign_site(make_csr(new_key(), A), A, 90)
    add_site(home, identity.public(), node_key="key", certificate=certificate, protocol=3)
    revoke(home, A)
    with pytest.raises(SiteRevokedError):
        add_site(home, identity.public(), node_key="key", certificate=certificate, protocol=3)
    added(home, A)
    assert active_site(home, A).identity != identity.public().fingerprint()


def test_certificates_that_have_ended_are_forgotten_and_too_many_refused(home: CoordinatorHome) -> None:
    added(home, A)
    renewed(home, A, -0.001)
    assert len(site_record(home, A).certificates) == 2
    for _ in range(MOST_CERTIFICATES - 1):
        renewed(home, A)
    record = site_record(home, A)
    assert len(record.certificates) == MOST_CERTIFICATES
    assert record.protocol == 4
    with pytest.raises(TooManyAttemptsError, match="site-a: certificates: more than 32 in a while"):
        renewed(home, A)


def test_unknown_sites_and_other_files_are_refused(home: CoordinatorHome) -> None:
    with pytest.raises(UnknownSiteError, match="site-a is not enrolled here"):
        revoke(home, A)
    added(home, A)
    (home.sites / "site-b.json").write_bytes((home.sites / "site-a.json").read_bytes())
    with pytest.raises(BadFileError, match="holds the record of site-a"):
        site_record(home, B)
    (home.sites / "site-b.json").write_text('{"kind":"site","schema":1}')
    with pytest.raises(BadFileError, match="expected"):
        site_records(home)
    with pytest.raises(BadCertificateError):
        add_certificate(home, Authority.open(home.authority), A, b"none", days=1, protocol=3)
    assert replace(site_record(home, A), certificates={}).ends() == ""
    for path in ("../coordinator", "a/b", ""):
        with pytest.raises(ValueError, match="site id"):
            site_record(home, SiteId(path))
