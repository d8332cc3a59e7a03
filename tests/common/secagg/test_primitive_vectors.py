"""The primitives of secure aggregation on other people's vectors: the library's, and our use of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg import envelopes, masks
from common.secagg.keys import agree, derive, public_key
from tests.common.secagg.fixed import A, B, roster

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "secagg-v1"


def cases(name: str) -> list[Any]:
    loaded = json.loads((VECTORS / name).read_text())["cases"]
    return [pytest.param(case, id=case["name"].replace(" ", "-")) for case in loaded]


def octets(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("case", cases("rfc7748.json"))
def test_x25519_agrees_with_rfc7748(case: dict[str, Any]) -> None:
    scalar, u, output = octets(case, "scalar", "u", "output")
    private = X25519PrivateKey.from_private_bytes(scalar)
    assert private.exchange(X25519PublicKey.from_public_bytes(u)) == output


def test_x25519_refuses_a_point_of_small_order() -> None:
    private = X25519PrivateKey.generate()
    with pytest.raises(ValueError, match="shared key"):
        private.exchange(X25519PublicKey.from_public_bytes(bytes(32)))


@pytest.mark.parametrize("case", cases("rfc5869.json"))
def test_hkdf_sha256_agrees_with_rfc5869(case: dict[str, Any]) -> None:
    ikm, salt, info, prk, okm = octets(case, "ikm", "salt", "info", "prk", "okm")
    assert HKDF.extract(SHA256(), salt, ikm) == prk
    assert HKDF(SHA256(), length=case["length"], salt=salt, info=info).derive(ikm) == okm


@pytest.mark.parametrize("case", [*cases("rfc3686.json"), *cases("sp800-38a.json")])
def test_aes256_ctr_of_zeros_is_the_published_keystream(case: dict[str, Any]) -> None:
    key, counter_block, plaintext, ciphertext = octets(
        case, "key", "counter_block", "plaintext", "ciphertext"
    )
    keystream = bytearray(len(plaintext))
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter_block)).encryptor()
    assert encryptor.update_into(bytes(len(plaintext)), keystream) == len(plaintext)
    assert bytes(a ^ b for a, b in zip(keystream, plaintext, strict=True)) == ciphertext


@pytest.mark.parametrize("case", cases("rfc8439.json"))
def test_chacha20_poly1305_agrees_with_rfc8439(case: dict[str, Any]) -> None:
    key, nonce, aad, plaintext, ciphertext, tag = octets(
        case, "key", "nonce", "aad", "plaintext", "ciphertext", "tag"
    )
    aead = ChaCha20Poly1305(key)
    assert aead.encrypt(nonce, plaintext, aad) == ciphertext + tag
    assert aead.decrypt(nonce, ciphertext + tag, aad) == plaintext


@pytest.mark.parametrize("case", cases("rfc8439.json"))
@pytest.mark.parametrize("changed", ["ciphertext", "tag", "aad"])
def test_chacha20_poly1305_refuses_what_was_changed(case: dict[str, Any], changed: str) -> None:
    key, nonce, *_ = octets(case, "key", "nonce")
    parts = {name: bytearray.fromhex(case[name]) for name in ("ciphertext", "tag", "aad")}
    parts[changed][0] ^= 1
    with pytest.raises(InvalidTag):
        ChaCha20Poly1305(key).decrypt(nonce, bytes(parts["ciphertext"] + parts["tag"]), bytes(parts["aad"]))


@pytest.mark.parametrize("case", cases("rfc7748.json"))
def test_agreed_keys_are_derived_from_the_output_of_rfc7748(case: dict[str, Any]) -> None:
    scalar, u, output = octets(case, "scalar", "u", "output")
    assert agree(scalar, u, salt=b"salt", info=b"info") == derive(output, salt=b"salt", info=b"info")


def test_a_public_key_is_rfc7748_s_multiple_of_nine() -> None:
    (case,) = (case.values[0] for case in cases("rfc7748.json") if case.id == "iterated-once-from-9")
    assert case["u"] == "09" + 31 * "00"
    assert public_key(bytes.fromhex(case["scalar"])).hex() == case["output"]


@pytest.mark.parametrize("case", cases("rfc5869.json"))
def test_derived_keys_are_the_first_32_bytes_of_rfc5869(case: dict[str, Any]) -> None:
    ikm, salt, info, okm = octets(case, "ikm", "salt", "info", "okm")
    assert derive(ikm, salt=salt, info=info) == okm[:32]


@pytest.mark.parametrize("case", [*cases("rfc3686.json"), *cases("sp800-38a.json")])
def test_masks_are_the_published_keystream_from_its_counter(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, counter_block, plaintext, ciphertext = octets(
        case, "key", "counter_block", "plaintext", "ciphertext"
    )
    # Ours starts at zero; the RFC's vectors do not.
    monkeypatch.setattr(masks.modes, "CTR", lambda zeros, ctr=modes.CTR: ctr(counter_block))
    words = np.zeros(len(plaintext) // 4, dtype="<u4")
    masks.add_masks(words, plus=[key])
    assert bytes(a ^ b for a, b in zip(words.tobytes(), plaintext, strict=True)) == ciphertext


def test_masks_begin_at_counter_zero() -> None:
    words = np.zeros(12, dtype="<u4")
    masks.add_masks(words, plus=[bytes(32)])
    # McGrew and Viega, "The Galois/Counter Mode of Operation" (2005), appendix B, test cases 13 and 14: H,
    # the tag and the ciphertext are AES-256 of 0, 1 and 2 under a key of zeros.
    blocks = (
        "dc95c078a2408989ad48a21492842087",
        "530f8afbc74536b9a963b4f1c4cb738b",
        "cea7403d4d606b6e074ec5d3baf39d18",
    )
    assert words.tobytes().hex() == "".join(blocks)


@pytest.mark.parametrize("case", cases("rfc8439.json"))
def test_envelopes_are_sealed_and_opened_as_in_rfc8439(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, nonce, aad, plaintext, ciphertext, tag = octets(
        case, "key", "nonce", "aad", "plaintext", "ciphertext", "tag"
    )
    half = len(plaintext) // 2
    monkeypatch.setattr(envelopes, "_key", lambda *args, **kwargs: (key, aad))
    monkeypatch.setattr(envelopes.secrets, "token_bytes", lambda size: nonce[:size])
    monkeypatch.setattr(envelopes, "ENVELOPE_SIZE", len(nonce + ciphertext + tag))
    monkeypatch.setattr(envelopes, "SHARE_SIZE", half)
    shares = plaintext[:half], plaintext[half:]
    between = {"sender": A, "receiver": B}
    envelope = envelopes.seal(roster(), bytes(32), **between, shares=shares)
    assert envelope == nonce + ciphertext + tag
    assert envelopes.open_envelope(roster(), bytes(32), **between, envelope=envelope) == shares
