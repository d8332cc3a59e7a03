from pathlib import Path

import pytest

from client.approval import approve_site, approved_sites, make_identity, own_identity, public_file
from common.errors import BadFileError, DigestMismatchError
from common.ids import SiteId

A, B = SiteId("site-a"), SiteId("site-b")


def two_homes(folder: Path) -> tuple[Path, Path]:
    make_identity(folder / "a", A)
    make_identity(folder / "b", B)
    return folder / "a", folder / "b"


def test_a_site_is_approved_by_its_fingerprint(tmp_path: Path) -> None:
    a, b = two_homes(tmp_path)
    other = own_identity(b)
    assert approved_sites(a) == {}
    approve_site(a, public_file(b, other), other.public().fingerprint())
    assert approved_sites(a) == {B: other.public()}
    # The second time changes nothing.
    approve_site(a, public_file(b, other), other.public().fingerprint())


def test_another_fingerprint_is_refused_and_nothing_is_approved(tmp_path: Path) -> None:
    a, b = two_homes(tmp_path)
    with pytest.raises(DigestMismatchError, match="identity of site-b"):
        approve_site(a, public_file(b, own_identity(b)), "0" * 64)
    assert approved_sites(a) == {}


def test_another_key_under_an_approved_name_is_refused(tmp_path: Path) -> None:
    a, b = two_homes(tmp_path)
    approve_site(a, public_file(b, own_identity(b)), own_identity(b).public().fingerprint())
    make_identity(tmp_path / "impostor", B)
    impostor = own_identity(tmp_path / "impostor")
    with pytest.raises(BadFileError, match="another key is approved"):
        approve_site(a, public_file(tmp_path / "impostor", impostor), impostor.public().fingerprint())


def test_a_site_does_not_approve_its_own_name(tmp_path: Path) -> None:
    a, _ = two_homes(tmp_path)
    own = own_identity(a)
    with pytest.raises(BadFileError, match="which is this site itself"):
        approve_site(a, public_file(a, own), own.public().fingerprint())


def test_the_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    a, _ = two_homes(tmp_path)
    assert (a / "identity.json").stat().st_mode & 0o777 == 0o600
    assert own_identity(a).private_key.hex() not in (a / "public" / "site-a.json").read_text()
