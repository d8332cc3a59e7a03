"""Preference pairs at rest: encrypted at the site, whole or not there at all.

A pair holds a note and a pseudonym. Each file has a key of its own (AES-256-GCM), wrapped (AES key wrap,
RFC 3394) by a key that lies elsewhere: a daemon's data key (`client.keys`), a simulation's master key. The
head of the file, which says what it is and for which teacher and plan, can be read without a key; it is
bound to the content, so that neither can be changed or exchanged.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from client.preferences.pairs import PreferencePair
from common.atomic import write_atomically
from common.canonical import canonical_json, read_object
from common.errors import (
    BadFileError,
    DigestMismatchError,
    SettingsError,
    TamperedStoreError,
    UnsafeKeyError,
    UnsupportedSchemaError,
    WrongKeyError,
)
from common.master_key import KEY_SIZE, create_master_key, key_id, read_master_key

__all__ = [
    "KEY_SIZE",
    "StoredPairs",
    "TamperedStoreError",
    "UnsafeKeyError",
    "WrongKeyError",
    "create_master_key",
    "load_pairs",
    "read_master_key",
    "rekey_pairs",
    "save_pairs",
]

SCHEMA = 1
KIND = "consilium preference pairs"
NONCE_SIZE = 12


@dataclass(frozen=True, kw_only=True, repr=False)
class StoredPairs:
    """Pairs of one track, and where they come from.

    Attributes:
        pairs: In the order they were made.
        teacher_digest: Of the teachers that ranked (`client.teacher.rank.teachers_digest`).
        plan_digest: Of the run's plan.
    """

    pairs: tuple[PreferencePair, ...]
    teacher_digest: str
    plan_digest: str


def save_pairs(stored: StoredPairs, path: Path, *, master_key: bytes) -> None:
    """Write pairs encrypted, in place of what was there.

    Guarantee: no plaintext reaches the disk, and after an error the old file is untouched.
    """
    _require_key(master_key)
    data_key = AESGCM.generate_key(bit_length=8 * KEY_SIZE)
    head = {
        "kind": KIND,
        "schema": SCHEMA,
        "teacher_digest": stored.teacher_digest,
        "plan_digest": stored.plan_digest,
        "master_key": key_id(master_key),
        "data_key": _to_text(aes_key_wrap(master_key, data_key)),
    }
    nonce = os.urandom(NONCE_SIZE)
    content = canonical_json([asdict(pair) for pair in stored.pairs]).encode()
    sealed = AESGCM(data_key).encrypt(nonce, content, canonical_json(head).encode())
    write_atomically(path, canonical_json({**head, "content": _to_text(nonce + sealed)}), private=True)


def load_pairs(path: Path, *, master_key: bytes, plan_digest: str) -> StoredPairs:
    """Read the pairs of a plan.

    Guarantee: what is read back is what was written, or an error.

    Raises:
        BadFileError: No store of pairs.
        UnsupportedSchemaError: Written by a newer version.
        DigestMismatchError: Pairs of another plan.
        WrongKeyError: Written under another master key.
        TamperedStoreError: Changed since it was written.
    """
    _require_key(master_key)
    head = _read_head(path)
    sealed = _from_text(head.pop("content"), path)
    if head["plan_digest"] != plan_digest:
        raise DigestMismatchError(f"{path}: plan", head["plan_digest"], plan_digest)
    if head["master_key"] != key_id(master_key):
        raise WrongKeyError(path, key_id(master_key), head["master_key"])
    try:
        data_key = aes_key_unwrap(master_key, _from_text(head["data_key"], path))
        content = AESGCM(data_key).decrypt(
            sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], canonical_json(head).encode()
        )
    except (InvalidUnwrap, InvalidTag, ValueError) as error:
        raise TamperedStoreError(path) from error
    return StoredPairs(
        pairs=tuple(PreferencePair(**each) for each in json.loads(content)),
        teacher_digest=head["teacher_digest"],
        plan_digest=head["plan_digest"],
    )


def rekey_pairs(path: Path, *, old_key: bytes, new_key: bytes) -> bool:
    """Encrypt stored pairs anew, under another key; whether they were not under it already.

    Guarantee: a crash leaves the pairs whole, under one of the two keys.

    Raises:
        WrongKeyError: They are under neither key.
        BadFileError, UnsupportedSchemaError, TamperedStoreError: As `load_pairs`.
    """
    head = _read_head(path)
    if head["master_key"] == key_id(new_key):
        return False
    stored = load_pairs(path, master_key=old_key, plan_digest=head["plan_digest"])
    save_pairs(stored, path, master_key=new_key)
    return True


def _read_head(path: Path) -> dict[str, Any]:
    """The file as a JSON object, every key there and of its type."""
    try:
        head = read_object(path.read_bytes().decode(), str(path))
    except FileNotFoundError as error:
        raise BadFileError(path, "missing") from error
    except (UnicodeDecodeError, SettingsError) as error:
        raise BadFileError(path, "expected a store of preference pairs, got something else") from error
    schema = head.get("schema")
    if head.get("kind") != KIND or not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BadFileError(path, "expected a store of preference pairs, got something else")
    if schema > SCHEMA:
        raise UnsupportedSchemaError(str(path), schema, SCHEMA)
    names = {"kind", "schema", "teacher_digest", "plan_digest", "master_key", "data_key", "content"}
    if head.keys() != names or not all(isinstance(head[name], str) for name in names - {"schema"}):
        raise TamperedStoreError(path)
    return head


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TamperedStoreError(path) from error


def _require_key(master_key: bytes) -> None:
    if len(master_key) != KEY_SIZE:
        raise ValueError(f"Expected a master key of {KEY_SIZE} bytes, got {len(master_key)}")
