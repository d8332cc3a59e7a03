"""The site's keys at rest: data keys, wrapped by the master key, and the key of the patients' pseudonyms.

All of them are in ``keyring.json``, where they are worth nothing without the master key
(``common.master_key``). A data key seals (AES-256-GCM) under a label, so that what was sealed for one place
does not open in another. There is one data key, but for a rotation that is under way.

The pseudonym key is never changed. Withdrawals, splits and stored pairs know a patient by his pseudonym
alone: under another key everybody would be somebody new, and whoever withdrew would be back.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.home import SiteHome
from client.settings import SiteSettings
from common.canonical import canonical_json
from common.durable import lock_file, read_durable, write_durable
from common.errors import (
    BadFileError,
    KeysInUseError,
    RotationUnfinishedError,
    SettingsError,
    TamperedStoreError,
    UnsupportedSchemaError,
    WrongKeyError,
)
from common.master_key import (
    KEY_SIZE,
    MasterKey,
    create_master_key,
    key_file,
    key_id,
    open_master_key,
    read_master_key,
)
from common.schema import build

__all__ = ["Keyring", "create_master_key", "key_id", "read_master_key"]

KIND = "consilium keyring"
KEYRING_SCHEMA = 1
SEAL_VERSION = 1
NONCE_SIZE = 12
PSEUDONYM_LABEL = "consilium pseudonym key v1"
# Version, number of the data key; both are bound to the content.
_HEAD_SIZE = 1 + 4
_IN_USE = "the keys are in use; stop this site's daemon first (consilium-site start)"
_CHANGING = "the keys are being changed; wait until consilium-site rotate-keys has ended"


@dataclass(frozen=True, kw_only=True)
class _WrappedKey:
    """A data key in the file: what it is called, and itself, wrapped, in base64."""

    id: str
    wrapped: str


@dataclass(frozen=True, kw_only=True)
class _KeyringFile:
    """What the file holds; data keys by their number."""

    master_key: str
    current: int
    data_keys: Mapping[str, _WrappedKey]
    pseudonym_key: str


class Keyring:
    """The keys of one home, open. Close it, or use it in a ``with``: nobody changes keys that are in use.

    Attributes:
        master: What wraps them in the file.
        pseudonym_key: 32 bytes of the patients' pseudonyms; the same for the life of the home.
    """

    def __init__(
        self, path: Path, master: MasterKey, keys: Mapping[int, bytes], pseudonym_key: bytes, lock: IO[bytes]
    ) -> None:
        self.master, self.pseudonym_key = master, pseudonym_key
        self._path, self._keys, self._lock = path, dict(keys), lock

    @classmethod
    def create(cls, home: SiteHome, settings: SiteSettings) -> Keyring:
        """A new keyring in a new home; a master key that is to be in a file is made if it is not there.

        Raises:
            BadFileError: There is one already.
            UnsafeKeyError: The master key cannot be used.
        """
        lock = _lock(home, alone=True)
        path = home.keyring_file
        if path.exists():
            lock.close()
            raise BadFileError(path, "a keyring is here already; without it nothing sealed here opens again")
        master = make_master_key(settings.master_key, home.root)
        keyring = cls(path, master, {1: os.urandom(KEY_SIZE)}, os.urandom(KEY_SIZE), lock)
        keyring.save(master)
        keyring.close()
        return cls.open(home, settings)

    @classmethod
    def open(
        cls, home: SiteHome, settings: SiteSettings, *, alone: bool = False, master_key: str | None = None
    ) -> Keyring:
        """The keys of a home.

        Args:
            home: The site's.
            settings: They say where the master key is.
            alone: To change the keys: nobody else may have them open, and a rotation may be unfinished.
            master_key: Where the master key was, if the settings name another already.

        Raises:
            BadFileError, UnsupportedSchemaError: The file is missing, damaged, or a newer version's.
            UnsafeKeyError, WrongKeyError: The master key cannot be used, or is another one.
            TamperedStoreError: The keys are not those that were written.
            KeysInUseError: Somebody changes the keys, or is at work with those that are to be changed.
            RotationUnfinishedError: Not ``alone``, and a change of the data key was interrupted.
        """
        lock = _lock(home, alone=alone)
        try:
            keyring = _opened(home, master_key or settings.master_key, lock)
            if len(keyring.numbers) > 1 and not alone:
                raise RotationUnfinishedError(home.keyring_file)
        except BaseException:
            lock.close()
            raise
        return keyring

    @property
    def data_key(self) -> bytes:
        """The current data key (32 bytes), which preference pairs are stored under."""
        return self._keys[self.current]

    @property
    def current(self) -> int:
        """The current data key's number: the highest."""
        return max(self._keys)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all data keys; more than one while a rotation is under way."""
        return tuple(sorted(self._keys))

    def key(self, number: int) -> bytes:
        """The data key of this number, among `numbers`."""
        return self._keys[number]

    def seal(self, label: str, content: bytes) -> bytes:
        """The content, encrypted under the current data key, for the place that the label names.

        Guarantee: it opens under the same label only, and only as it was sealed.
        """
        return _seal(self.current, self.data_key, label, content)

    def open_sealed(self, label: str, sealed: bytes, where: Path | str = "") -> bytes:
        """What was sealed under the label.

        Raises:
            TamperedStoreError: It was changed, sealed under another label, or by another site.
            UnsupportedSchemaError: A newer version sealed it.
        """
        number = sealing_key(sealed, where or label)
        if number not in self._keys:
            raise TamperedStoreError(where or label)
        return _open(self._keys[number], label, sealed, where or label)

    def add_key(self) -> None:
        """Begin a rotation: a new data key seals from now on, the others still open."""
        self._keys[self.current + 1] = os.urandom(KEY_SIZE)
        self.save(self.master)

    def drop_old_keys(self) -> None:
        """End a rotation: what is still under an old data key is lost."""
        self._keys = {self.current: self.data_key}
        self.save(self.master)

    def save(self, master: MasterKey) -> None:
        """Write the keyring, wrapped by this master key from now on. UnsafeKeyError."""
        wrapped = {
            str(number): {"id": key_id(key), "wrapped": _to_text(master.wrap(key))}
            for number, key in self._keys.items()
        }
        content = {"master_key": master.name, "current": self.current, "data_keys": wrapped}
        sealed = _seal(self.current, self.data_key, _label(content), self.pseudonym_key)
        write_durable(
            self._path, KIND, KEYRING_SCHEMA, {**content, "pseudonym_key": _to_text(sealed)}, private=True
        )
        self.master = master

    def close(self) -> None:
        """Let others change the keys."""
        self._lock.close()

    def __enter__(self) -> Keyring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_master_key(where: str, home: Path) -> MasterKey:
    """The master key that a setting names; in a file it is made if it is not there. UnsafeKeyError."""
    if where.startswith("file:") and not key_file(where, home).exists():
        create_master_key(key_file(where, home))
    return open_master_key(where, home)


def sealing_key(sealed: bytes, where: Path | str) -> int:
    """The number of the data key that sealed this. TamperedStoreError, UnsupportedSchemaError."""
    if len(sealed) < _HEAD_SIZE + NONCE_SIZE:
        raise TamperedStoreError(where)
    if sealed[0] > SEAL_VERSION:
        raise UnsupportedSchemaError(str(where), sealed[0], SEAL_VERSION)
    return int.from_bytes(sealed[1:_HEAD_SIZE], "big")


def _opened(home: SiteHome, where: str, lock: IO[bytes]) -> Keyring:
    path = home.keyring_file
    content = read_durable(path, KIND, KEYRING_SCHEMA)
    try:
        found = build(_KeyringFile, content, str(path))
        wrapped = {int(number): key for number, key in found.data_keys.items()}
    except (SettingsError, ValueError):
        raise BadFileError(path, "damaged: expected a keyring; restore its newest copy") from None
    master = open_master_key(where, home.root, wanted=found.master_key)
    if master.name != found.master_key:
        raise WrongKeyError(path, master.name, found.master_key)
    keys = {number: _unwrapped(master, key, path) for number, key in wrapped.items()}
    if not keys or max(keys) != found.current:
        raise TamperedStoreError(path)
    head = {name: value for name, value in content.items() if name != "pseudonym_key"}
    sealed = _from_text(found.pseudonym_key, path)
    return Keyring(path, master, keys, _open(keys[found.current], _label(head), sealed, path), lock)


def _unwrapped(master: MasterKey, found: _WrappedKey, path: Path) -> bytes:
    key = master.unwrap(_from_text(found.wrapped, path), path)
    if key_id(key) != found.id:
        # A command may unwrap without a check of its own.
        raise TamperedStoreError(path)
    return key


def _lock(home: SiteHome, *, alone: bool) -> IO[bytes]:
    if not home.root.is_dir():
        raise BadFileError(home.root, "expected a site's home folder, made by consilium-site init")
    # Beside the file, which is replaced whole.
    lock = lock_file(home.root / ".keyring.lock", shared=not alone)
    if lock is None:
        raise KeysInUseError(home.keyring_file, _IN_USE if alone else _CHANGING)
    return lock


def _label(head: Mapping[str, Any]) -> str:
    """The pseudonym key opens only beside the very keys it was written with."""
    return f"{PSEUDONYM_LABEL}\n{canonical_json(head)}"


def _seal(number: int, key: bytes, label: str, content: bytes) -> bytes:
    head = bytes([SEAL_VERSION]) + number.to_bytes(4, "big")
    nonce = os.urandom(NONCE_SIZE)
    return head + nonce + AESGCM(key).encrypt(nonce, content, head + label.encode())


def _open(key: bytes, label: str, sealed: bytes, where: Path | str) -> bytes:
    head, nonce = sealed[:_HEAD_SIZE], sealed[_HEAD_SIZE : _HEAD_SIZE + NONCE_SIZE]
    try:
        return AESGCM(key).decrypt(nonce, sealed[_HEAD_SIZE + NONCE_SIZE :], head + label.encode())
    except (InvalidTag, ValueError) as error:
        raise TamperedStoreError(where) from error


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TamperedStoreError(path) from error
