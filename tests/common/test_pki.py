import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from common.canonical import labeled_digest
from common.errors import BadFileError, BadSignatureError, DigestMismatchError
from common.ids import SiteId
from common.pki import (
    FINGERPRINT_LABEL,
    Identity,
    PublicIdentity,
    approve,
    create_identity,
    read_approved,
    read_identity,
    read_public,
    write_public,
)

A, B = SiteId("site-a"), SiteId("site-b")
# RFC 8032, section 7.1, test 2.
PRIVATE = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
OWN = Identity(site_id=A, private_key=PRIVATE)


def texts(error: BaseException | None) -> list[str]:
    """What a log could show of an error and of what lies behind it."""
    if error is None:
        return []
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [str(error), repr(error), *texts(behind)]


def test_a_signature_is_that_of_rfc_8032() -> None:
    assert OWN.public() == PublicIdentity(site_id=A, key=PUBLIC)
    assert OWN.sign(b"\x72") == SIGNATURE
    OWN.public().verify(b"\x72", SIGNATURE, "keys")


@pytest.mark.parametrize(
    ("statement", "signature"),
    [
        (b"\x73", SIGNATURE),
        (b"", SIGNATURE),
        (b"\x72", SIGNATURE[:-1] + b"\x01"),
        (b"\x72", SIGNATURE[:-1]),
        (b"\x72", b""),
        (b"\x72", Identity.generate(A).sign(b"\x72")),
    ],
    ids=["other statement", "no statement", "changed", "cut", "empty", "of another key"],
)
def test_what_a_site_did_not_sign_is_refused(statement: bytes, signature: bytes) -> None:
    with pytest.raises(BadSignatureError, match="keys of site-a: expected a signature by its approved key"):
        OWN.public().verify(statement, signature, "keys")


def test_a_key_that_is_no_point_signs_nothing() -> None:
    for key in (bytes([255]) * 32, b"\x02" + bytes(31)):
        with pytest.raises(BadSignatureError):
            PublicIdentity(site_id=A, key=key).verify(b"\x72", SIGNATURE, "keys")


def test_generated_identities_differ() -> None:
    assert Identity.generate(A).private_key != Identity.generate(A).private_key


def test_an_identity_never_prints_its_private_key() -> None:
    assert PRIVATE.hex() not in repr(OWN)
    assert repr(PRIVATE) not in repr(OWN)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_size_is_refused_without_its_text(size: int) -> None:
    with pytest.raises(ValueError, match=f"a private key of 32 bytes, got {size}$") as private:
        Identity(site_id=A, private_key=b"k" * size)
    with pytest.raises(ValueError, match=f"a public key of 32 bytes, got {size}$"):
        PublicIdentity(site_id=A, key=b"k" * size)
    assert "kkk" not in str(private.value)


def test_a_name_that_is_none_is_refused() -> None:
    for make in (
        lambda: Identity(site_id="Site A", private_key=PRIVATE),
        lambda: PublicIdentity(site_id="../a", key=PUBLIC),
    ):
        with pytest.raises(ValueError, match="Expected a site id"):
            make()


def test_a_fingerprint_is_of_name_and_key() -> None:
    public = OWN.public()
    assert public.fingerprint() == labeled_digest(FINGERPRINT_LABEL, b"site-a", PUBLIC).hex()
    others = (PublicIdentity(site_id=B, key=PUBLIC), Identity.generate(A).public())
    assert len({public.fingerprint(), *(other.fingerprint() for other in others)}) == 3


def test_an_identity_is_created_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    made = create_identity(path, A)
    assert read_identity(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(BadFileError, match="an identity is here already; a new one would lock this site out"):
        create_identity(path, A)
    assert path.read_bytes() == before


def test_what_is_written_for_others_holds_no_private_key(tmp_path: Path) -> None:
    path = write_public(OWN.public(), tmp_path)
    assert path == tmp_path / "site-a.json"
    assert read_public(path) == OWN.public()
    assert json.loads(path.read_text()) == {"schema": 1, "site_id": "site-a", "key": PUBLIC.hex()}


def bad_files(key: str) -> dict[str, object]:
    """Contents that are no identity; each with a key that must not be quoted, where it can have one."""
    good = {"schema": 1, "site_id": "site-a", key: PRIVATE.hex()}
    return {
        "empty": b"",
        "no utf-8": b"\xff" + PRIVATE.hex().encode(),
        "no json": PRIVATE.hex().encode(),
        "cut": json.dumps(good)[:-3].encode(),
        "a list": [good],
        "a key twice": f'{{"{key}": "{PRIVATE.hex()}", "{key}": "{PRIVATE.hex()}"}}'.encode(),
        "no schema": {name: value for name, value in good.items() if name != "schema"},
        "another schema": {**good, "schema": 0},
        "no name": {name: value for name, value in good.items() if name != "site_id"},
        "a bad name": {**good, "site_id": "Site A"},
        "the key as name": {**good, "site_id": PRIVATE.hex()},
        "a number as name": {**good, "site_id": 3},
        "no key": {name: value for name, value in good.items() if name != key},
        "a short key": {**good, key: PRIVATE.hex()[:-2]},
        "a long key": {**good, key: PRIVATE.hex() + "00"},
        "a key of odd letters": {**good, key: PRIVATE.hex()[:-1] + "x"},
        "a key of numbers": {**good, key: list(PRIVATE)},
        "both keys": {**good, "key": PUBLIC.hex(), "private_key": PRIVATE.hex()},
        "more than that": {**good, "note": "x"},
    }


@pytest.mark.parametrize("name", bad_files("key"))
@pytest.mark.parametrize(("read", "key"), [(read_identity, "private_key"), (read_public, "key")])
def test_a_file_that_holds_no_identity_is_refused_and_no_key_text_is_in_the_message(
    read: Callable[[Path], object], key: str, name: str, tmp_path: Path
) -> None:
    content = bad_files(key)[name]
    path = tmp_path / "site-a.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(BadFileError, match=r"site-a\.json: ") as caught:
        read(path)
    for text in texts(caught.value):
        assert PRIVATE.hex()[:8] not in text
        assert str(list(PRIVATE))[1:12] not in text


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BadFileError, match="not a readable identity"):
            read_identity(path)
        with pytest.raises(BadFileError, match="not a readable identity"):
            read_public(path)


def test_a_site_is_approved_by_its_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "approved"
    sent = write_public(OWN.public(), tmp_path)
    assert approve(sent, OWN.public().fingerprint(), folder) == OWN.public()
    assert read_approved(folder) == {A: OWN.public()}
    # Once more changes nothing.
    approve(sent, OWN.public().fingerprint(), folder)
    assert read_approved(folder) == {A: OWN.public()}


def test_another_fingerprint_approves_nobody(tmp_path: Path) -> None:
    sent = write_public(OWN.public(), tmp_path)
    for fingerprint in (Identity.generate(A).public().fingerprint(), "", OWN.public().fingerprint().upper()):
        with pytest.raises(DigestMismatchError, match="identity of site-a: expected digest"):
            approve(sent, fingerprint, tmp_path / "approved")
    assert not (tmp_path / "approved").exists()


def test_another_key_under_an_approved_name_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    folder, other = tmp_path / "approved", Identity.generate(A).public()
    approve(write_public(OWN.public(), tmp_path), OWN.public().fingerprint(), folder)
    sent = write_public(other, tmp_path)
    with pytest.raises(BadFileError, match="another key is approved for this site; remove the file"):
        approve(sent, other.fingerprint(), folder)
    assert read_approved(folder) == {A: OWN.public()}


def test_a_damaged_approval_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "approved"
    folder.mkdir()
    (folder / "site-a.json").write_text("{")
    with pytest.raises(BadFileError):
        approve(write_public(OWN.public(), tmp_path), OWN.public().fingerprint(), folder)
    assert (folder / "site-a.json").read_text() == "{"


def test_all_identities_of_a_folder_are_read_by_site(tmp_path: Path) -> None:
    public = [identity.public() for identity in (OWN, Identity.generate(B))]
    for identity in public:
        write_public(identity, tmp_path)
    (tmp_path / "notes.txt").write_text("no identity")
    assert read_approved(tmp_path) == {identity.site_id: identity for identity in public}
    assert read_approved(tmp_path / "none") == {}


def test_a_file_under_another_sites_name_is_refused(tmp_path: Path) -> None:
    write_public(OWN.public(), tmp_path).rename(tmp_path / "site-b.json")
    with pytest.raises(BadFileError, match=r"site-b\.json: holds the identity of site-a"):
        read_approved(tmp_path)


def test_one_damaged_file_refuses_the_folder(tmp_path: Path) -> None:
    write_public(OWN.public(), tmp_path)
    (tmp_path / "site-b.json").write_text("[]")
    with pytest.raises(BadFileError, match=r"site-b\.json"):
        read_approved(tmp_path)
