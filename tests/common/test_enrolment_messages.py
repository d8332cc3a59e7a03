from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from common.enrolment_messages import (
    DirectoryRequest,
    EnrolRequest,
    PackageRequest,
    RenewRequest,
    from_body,
    join_address,
    node_key_text,
    sign,
    split_address,
    to_body,
    verify,
)
from common.errors import BadMessageError, BadSignatureError, SettingsError, UnsupportedSchemaError
from common.ids import SiteId
from common.pki import Identity
from common.versions import ProtocolRange

A = SiteId("site-a")
IDENTITY, NODE = Identity.generate(A), ec.generate_private_key(ec.SECP384R1())
ENROL = EnrolRequest(
    consortium="rare",
    site=A,
    token="token",
    csr="csr",
    identity=IDENTITY.public().key.hex(),
    node_key=node_key_text(NODE.public_key()),
    protocol=ProtocolRange(oldest=1, newest=3),
)
NAMES: dict[str, Any] = {"consortium": "rare", "site": A, "at": 100}
TIMED = [
    RenewRequest(**NAMES, csr="csr", protocol=ProtocolRange(oldest=1, newest=3)),
    DirectoryRequest(**NAMES),
    PackageRequest(**NAMES, digest="0" * 64),
]


def test_a_message_comes_back_from_its_bytes() -> None:
    signed = ENROL.signed(IDENTITY, NODE)
    assert from_body(EnrolRequest, to_body(signed)) == signed
    signed.verify()
    assert "token" not in repr(signed).replace("token=", "")
    for request in TIMED:
        again = from_body(type(request), to_body(sign(request, IDENTITY)))
        verify(again, IDENTITY.public(), 100.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"consortium": "other"},
        {"token": "other"},
        {"csr": "other"},
        {"protocol": ProtocolRange(oldest=2, newest=3)},
        {"site": "site-b"},
    ],
)
def test_both_keys_sign_all_of_a_request_to_enrol(changed: dict[str, Any]) -> None:
    with pytest.raises(BadSignatureError):
        replace(ENROL.signed(IDENTITY, NODE), **changed).verify()
    # The node's alone, too.
    resigned = replace(ENROL, **changed)
    half = replace(
        ENROL.signed(IDENTITY, NODE), **changed, signature=IDENTITY.sign(resigned.statement()).hex()
    )
    with pytest.raises(BadSignatureError):
        half.verify()


def test_what_one_request_signed_is_no_signature_of_another() -> None:
    for request in TIMED:
        for other in TIMED:
            if other is not request:
                taken = replace(other, signature=sign(request, IDENTITY).signature)
                with pytest.raises(BadSignatureError):
                    verify(taken, IDENTITY.public(), 100.0)


@given(data=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for kind in (EnrolRequest, RenewRequest, DirectoryRequest, PackageRequest):
        with pytest.raises((BadMessageError, UnsupportedSchemaError)):
            from_body(kind, data)


@given(port=st.integers(1, 65535), host=st.sampled_from(["a.example", "10.0.0.1", "::1"]))
def test_an_address_comes_back_from_its_text(host: str, port: int) -> None:
    assert split_address("gateway", join_address(host, port)) == (host, port)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1²", "[]:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="gateway: expected host:port"):
        split_address("gateway", address)
