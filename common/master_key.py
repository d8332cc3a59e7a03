"""The key that wraps data keys: in a file, in an environment variable, or in an HSM or a KMS.

A command talks to the HSM or KMS; then the master key never enters this process. A master key wraps data
keys (AES key wrap, RFC 3394) and nothing else, so that it can be changed by writing one small file.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from common.durable import sync_folder
from common.errors import TamperedStoreError, UnsafeKeyError

KEY_SIZE = 32
KEY_LABEL = b"consilium master key id v1"
COMMAND_LIMIT_S = 30.0
LONGEST_ANSWER = 4096
# Beside a master key file while it is replaced.
NEXT_SUFFIX = ".next"


class MasterKey(Protocol):
    """What wraps data keys."""

    @property
    def name(self) -> str:
        """Tells one from another and nothing of the key itself."""
        ...

    def wrap(self, key: bytes) -> bytes:
        """The data key (32 bytes), wrapped. UnsafeKeyError."""
        ...

    def unwrap(self, wrapped: bytes, path: Path) -> bytes:
        """The data key; ``path`` is where the wrapped one came from. TamperedStoreError, UnsafeKeyError."""
        ...


class LocalKey:
    """A master key of 32 bytes in this process, from a file or the environment."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError(f"Expected a master key of {KEY_SIZE} bytes, got {len(key)}")
        self._key = key

    @property
    def name(self) -> str:
        """Its `key_id`."""
        return key_id(self._key)

    def wrap(self, key: bytes) -> bytes:
        """The data key, wrapped (RFC 3394)."""
        return aes_key_wrap(self._key, key)

    def unwrap(self, wrapped: bytes, path: Path) -> bytes:
        """The data key. TamperedStoreError."""
        try:
            return aes_key_unwrap(self._key, wrapped)
        except (InvalidUnwrap, ValueError) as error:
            raise TamperedStoreError(path) from error


class CommandKey:
    """A master key that stays in an HSM or a KMS: a program of the hospital's wraps and unwraps.

    It is run without a shell, with ``wrap`` or ``unwrap`` behind its own arguments, gets hexadecimal digits
    on its standard input and answers with such on its standard output and exit status 0, within 30 seconds.
    """

    def __init__(self, command: str, *, limit_s: float = COMMAND_LIMIT_S) -> None:
        """UnsafeKeyError unless ``command`` is a program and its arguments."""
        self._where = f"command:{command}"
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UnsafeKeyError(self._where, f"expected a program and its arguments ({error})") from error
        if not self._words:
            raise UnsafeKeyError(self._where, "expected a program and its arguments, got nothing")
        self._limit_s = limit_s

    @property
    def name(self) -> str:
        """The same for all commands: which key one of them uses shows only in what it unwraps."""
        return "command"

    def wrap(self, key: bytes) -> bytes:
        """The data key, wrapped by the command. UnsafeKeyError."""
        return self._run("wrap", key)

    def unwrap(self, wrapped: bytes, path: Path) -> bytes:
        """The data key. UnsafeKeyError if the command fails, TamperedStoreError if it gives no such key."""
        key = self._run("unwrap", wrapped)
        if len(key) != KEY_SIZE:
            raise TamperedStoreError(path)
        return key

    def _run(self, action: str, data: bytes) -> bytes:
        try:
            done = subprocess.run(
                [*self._words, action],
                input=data.hex() + "\n",
                stdout=subprocess.PIPE,
                # Not kept: what it complains about may be a key.
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=self._limit_s,
                check=False,
            )
        # Not chained: they hold what the command said.
        except subprocess.TimeoutExpired:
            raise UnsafeKeyError(self._where, f"{action}: no answer in {self._limit_s:g} seconds") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UnsafeKeyError(self._where, f"{action}: {reason}") from None
        if done.returncode != 0:
            raise UnsafeKeyError(self._where, f"{action}: expected exit status 0, got {done.returncode}")
        return self._answer(action, done.stdout.strip())

    def _answer(self, action: str, text: str) -> bytes:
        try:
            answer = bytes.fromhex(text) if len(text) <= LONGEST_ANSWER else b""
        except ValueError:
            answer = b""
        if not answer:
            reason = f"{action}: expected 1 to {LONGEST_ANSWER} hexadecimal digits on its output"
            raise UnsafeKeyError(self._where, reason)
        return answer


def open_master_key(where: str, home: Path, *, wanted: str | None = None) -> MasterKey:
    """The master key that a setting names.

    Args:
        where: ``file:PATH``, relative to ``home``; ``env:NAME``, 64 hexadecimal digits; ``command:PROGRAM``.
        home: The site's home folder.
        wanted: The `MasterKey.name` that is looked for: while a file is being replaced there are two.

    Raises:
        UnsafeKeyError: It is missing, no key, or open to others than its owner.
    """
    scheme, _, rest = where.partition(":")
    if scheme == "file":
        return _from_file(key_file(where, home), wanted)
    if scheme == "env":
        return LocalKey(_from_environment(rest))
    if scheme == "command":
        return CommandKey(rest)
    raise UnsafeKeyError(where, "expected file:PATH, env:NAME or command:PROGRAM")


def key_file(where: str, home: Path) -> Path:
    """The path that ``file:PATH`` names. UnsafeKeyError if it names none."""
    rest = where.partition(":")[2]
    if not rest:
        raise UnsafeKeyError(where, "expected file:PATH, got no path")
    return home / rest


def create_master_key(path: Path) -> None:
    """Write a new master key, readable by its owner only; FileExistsError if there is one already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(KEY_SIZE))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def read_master_key(path: Path) -> bytes:
    """The site's master key; UnsafeKeyError if it is missing, not a key, or open to others than its owner."""
    try:
        mode = path.stat().st_mode
        key = path.read_bytes()
    except OSError as error:
        raise UnsafeKeyError(path, "expected a master key, got a file that cannot be read") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UnsafeKeyError(path, f"expected mode 600, got {stat.S_IMODE(mode):o}")
    if len(key) != KEY_SIZE:
        raise UnsafeKeyError(path, f"expected {KEY_SIZE} bytes, got {len(key)}")
    return key


def key_id(key: bytes) -> str:
    """A name for a key that tells nothing of it: the first 16 hexadecimal digits of a labeled hash."""
    return hashlib.sha256(KEY_LABEL + key).hexdigest()[:16]


def next_file(path: Path) -> Path:
    """Where the successor of a master key file lies until it takes its place."""
    return path.with_name(path.name + NEXT_SUFFIX)


def _from_file(path: Path, wanted: str | None) -> LocalKey:
    key = LocalKey(read_master_key(path))
    if wanted not in (None, key.name) and next_file(path).exists():
        successor = LocalKey(read_master_key(next_file(path)))
        return successor if successor.name == wanted else key
    return key


def _from_environment(name: str) -> bytes:
    text = os.environ.get(name)
    if text is None:
        raise UnsafeKeyError(f"env:{name}", "expected a master key, the variable is not set")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        # Not chained, and no value: it may be a key with a slip in it.
        raise UnsafeKeyError(f"env:{name}", f"expected {2 * KEY_SIZE} hexadecimal digits") from None
    return key
