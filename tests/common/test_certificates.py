import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificates import (
    Authority,
    RevocationList,
    certificate_pem,
    csr_key,
    days_left,
    fingerprint,
    in_groups,
    is_due,
    key_pem,
    loopback_certificate,
    make_csr,
    new_key,
    parse_certificate,
    read_certificate,
    read_key,
    site_of,
    without_groups,
)
from common.errors import BadCertificateError, BadFileError
from common.ids import SiteId

A = SiteId("site-a")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority", "rare")


def named(key: ec.EllipticCurvePrivateKey, *names: str, extension: bool = False) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    )
    if extension:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_sites_certificate_names_it_and_is_good_for_clients_only(authority: Authority) -> None:
    certificate = authority.sign_site(make_csr(new_key(), A), A, 90)
    certificate.verify_directly_issued_by(authority.certificate)
    assert site_of(certificate) == A
    assert purposes(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["site-a.sites.rare.consilium"]
    assert 89.9 < days_left(certificate, datetime.now(UTC)) < 90.1
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_of_a_request_only_the_key_is_taken(authority: Authority) -> None:
    key = new_key()
    certificate = authority.sign_site(named(key, "coordinator", "site-b", extension=True), A, 90)
    assert site_of(certificate) == A
    assert certificate.public_key() == key.public_key()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    pem = make_csr(new_key(), A)
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    # The last byte is of the signature.
    der[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadCertificateError, match="expected a signature by the key that it is for"):
        csr_key(broken)


def rsa_request() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (rsa_request(), "expected an ECDSA key on P-256 or P-384"),
        (named(ec.generate_private_key(ec.SECP192R1()), "site-a"), "expected an ECDSA key on P-256 or P-384"),
        (b"none", "expected a request as PEM"),
        (b"a" * 20000, "expected at most 16384 bytes, got 20000"),
        (key_pem(new_key()), "expected a request as PEM"),
    ],
)
def test_weak_keys_and_what_is_no_request_are_refused(pem: bytes, reason: str) -> None:
    with pytest.raises(BadCertificateError, match=reason) as caught:
        csr_key(pem)
    assert "PRIVATE" not in str(caught.value)


def test_a_server_certificate_names_hosts_and_addresses_and_no_site(authority: Authority) -> None:
    key = new_key().public_key()
    certificate = authority.sign_server(key, ["fed.example.org", "10.0.0.1", "::1"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert purposes(certificate) == [ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(BadCertificateError, match="site"):
        site_of(certificate)


def test_an_authority_opens_again_and_its_key_is_its_owners(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "authority"
    again = Authority.open(folder)
    assert again.certificate == authority.certificate
    assert again.consortium == "rare"
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    constraints = again.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_a_second_authority_a_mixed_one_and_a_nameless_one_are_refused(
    authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(BadFileError, match="an authority is here already"):
        Authority.create(tmp_path / "authority", "rare")
    with pytest.raises(ValueError, match="Expected a consortium's name"):
        Authority.create(tmp_path / "other", "No Name")
    (tmp_path / "authority" / "ca.key").write_bytes(key_pem(new_key()))
    with pytest.raises(BadFileError, match=r"is not the key of ca\.crt"):
        Authority.open(tmp_path / "authority")


def test_revoked_serials_are_on_a_list_that_is_read_again_when_it_changes(
    authority: Authority, tmp_path: Path
) -> None:
    first, second = (authority.sign_site(make_csr(new_key(), A), A, 90) for _ in range(2))
    path = tmp_path / "authority" / "revoked.pem"
    revoked = RevocationList(path, authority.certificate)
    assert not revoked.is_revoked(first.serial_number)
    authority.revoke([first.serial_number])
    assert revoked.is_revoked(first.serial_number)
    assert not revoked.is_revoked(second.serial_number)
    Authority.open(tmp_path / "authority").revoke([second.serial_number, second.serial_number])
    assert revoked.serials() == {first.serial_number, second.serial_number}


def test_a_list_that_is_gone_broken_or_anothers_is_refused(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "authority" / "revoked.pem"
    revoked = RevocationList(path, authority.certificate)
    assert revoked.serials() == frozenset()
    Authority.create(tmp_path / "other", "rare")
    path.write_bytes((tmp_path / "other" / "revoked.pem").read_bytes())
    with pytest.raises(BadFileError, match="expected a list that the consortium's authority signed"):
        revoked.is_revoked(1)
    path.write_text("none")
    with pytest.raises(BadFileError, match="expected a revocation list as PEM"):
        revoked.is_revoked(1)
    path.unlink()
    with pytest.raises(BadFileError, match="No such file"):
        revoked.is_revoked(1)


def test_a_certificate_is_due_when_less_than_a_third_of_its_life_is_left(authority: Authority) -> None:
    certificate = authority.sign_site(make_csr(new_key(), A), A, 90)
    end = certificate.not_valid_after_utc
    assert not is_due(certificate, end - timedelta(days=31))
    assert is_due(certificate, end - timedelta(days=29))
    assert is_due(certificate, end + timedelta(days=1))


def test_the_loopback_certificate_is_for_loopback_alone() -> None:
    key = new_key()
    certificate = loopback_certificate(key)
    certificate.verify_directly_issued_by(certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_fingerprints_are_read_in_groups_of_four(authority: Authority) -> None:
    digits = fingerprint(authority.certificate)
    assert in_groups("0123456789ab") == "0123 4567 89ab"
    assert without_groups(in_groups(digits)) == digits
    assert without_groups(" AB:cd\n12 ") == "abcd12"


def test_files_that_hold_no_key_and_no_certificate_are_refused_without_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(BadFileError, match="No such file"):
        read_key(path)
    with pytest.raises(BadFileError, match="No such file"):
        read_certificate(path)
    path.write_text("secret")
    for read in (read_key, read_certificate):
        with pytest.raises(BadFileError, match="expected a") as caught:
            read(path)
        assert "secret" not in str(caught.value)
    form = serialization.PrivateFormat.PKCS8
    other = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    path.write_bytes(other.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    with pytest.raises(BadFileError, match="expected an ECDSA key"):
        read_key(path)
    with pytest.raises(BadCertificateError, match="expected at most"):
        parse_certificate(b"a" * 20000, "certificate")


def test_a_certificate_of_two_names_names_no_site(authority: Authority) -> None:
    certificate = authority.sign_site(make_csr(new_key(), A), A, 90)
    assert parse_certificate(certificate_pem(certificate), "certificate") == certificate
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-b")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime.now(UTC))
    builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("site-a.sites.rare.consilium")])
    mixed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    with pytest.raises(BadCertificateError, match="expected the name of one site of rare"):
        site_of(mixed)
