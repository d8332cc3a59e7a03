"""What a site must not forget in the middle of a secure sum: its secrets, and what it has answered.

A site's daemon keeps it sealed (`sealed_sessions`): who reads its disk learns no share and no mask.

An answer is stored before it is sent. After a crash the same bytes go out again, or none: a second answer
under the same keys could give away what the first one hides.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from client.home import ConsortiumHome
from client.keys import Keyring, sealing_key
from common.atomic import write_atomically
from common.durable import sync_folder

SESSION_LABEL = "consilium session store v1"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


class SessionStore(Protocol):
    """Named byte strings that outlive a crash."""

    def read(self, name: str) -> bytes | None:
        """What is stored under the name; None if nothing is."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Store; when this returns, ``read`` gives it back even after a crash."""
        ...

    def erase(self, name: str) -> None:
        """Forget; nothing happens where nothing is stored."""
        ...

    def names(self) -> tuple[str, ...]:
        """All names under which something is stored, in order."""
        ...


class MemoryStore:
    """A store that lives as long as its process: for simulations, whose sites die with it."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """What is stored under the name; None if nothing is."""
        return self._contents.get(name)

    def write(self, name: str, content: bytes) -> None:
        """Store."""
        self._contents[name] = content

    def erase(self, name: str) -> None:
        """Forget."""
        self._contents.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(sorted(self._contents))


class FolderStore:
    """A store of one file for each name, readable by their owner only.

    Guarantee: after a crash at any instruction every name's content is whole, and every ``write`` that
    returned is there. What is erased is overwritten, which says nothing about copies that the file system
    or the disk may keep.
    """

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which is made if it is not there; what a crash left half-done is removed."""
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in made:
            # A file is as durable as the folder that names its folder.
            sync_folder(path.parent)
        self._folder = folder
        for path in folder.iterdir():
            if path.name.startswith("."):
                _overwrite(path)

    def read(self, name: str) -> bytes | None:
        """What is stored under the name; None if nothing is."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Store; file and folder are on the disk when this returns."""
        write_atomically(self._path(name), content, private=True)
        sync_folder(self._folder)

    def erase(self, name: str) -> None:
        """Overwrite with zeros and remove."""
        path = self._path(name)
        # Out of the way first, on the disk too: a crash in between must not leave zeros under the name.
        hidden = path.with_name(f".{name}.erased")
        try:
            path.replace(hidden)
        except FileNotFoundError:
            return
        sync_folder(self._folder)
        _overwrite(hidden)
        sync_folder(self._folder)

    def names(self) -> tuple[str, ...]:
        """All names, in order; what a crash left half-written is none of them."""
        return tuple(sorted(p.name for p in self._folder.iterdir() if _NAME.fullmatch(p.name)))

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"Expected a name of lower-case letters, digits, dots and hyphens, got {name!r}")
        return self._folder / name


class SealedStore:
    """A store over another one, in which nothing lies in clear.

    Guarantee: what is read is what was written under this name and for this place, or an error.
    """

    def __init__(self, store: SessionStore, keyring: Keyring, *, place: str) -> None:
        """Seal what goes into ``store``; ``place`` tells it from all other stores of this keyring."""
        self._store, self._keyring, self._place = store, keyring, place

    def read(self, name: str) -> bytes | None:
        """What is stored under the name; None if nothing is. TamperedStoreError, UnsupportedSchemaError."""
        sealed = self._store.read(name)
        label = self._label(name)
        return None if sealed is None else self._keyring.open_sealed(label, sealed, f"{self._place}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Store, sealed."""
        self._store.write(name, self._keyring.seal(self._label(name), content))

    def erase(self, name: str) -> None:
        """Forget; nothing happens where nothing is stored."""
        self._store.erase(name)

    def names(self) -> tuple[str, ...]:
        """All names, in order. They are not secret: a run, a sum and a stage."""
        return self._store.names()

    def reseal(self) -> int:
        """Seal anew what is under an old data key; how many names that were. TamperedStoreError.

        Guarantee: a crash leaves every name's content whole, under one of the keys.
        """
        old = [name for name in self.names() if self._is_old(name)]
        for name in old:
            self.write(name, self.read(name) or b"")
        return len(old)

    def _is_old(self, name: str) -> bool:
        sealed = self._store.read(name) or b""
        return sealing_key(sealed, f"{self._place}/{name}") != self._keyring.current

    def _label(self, name: str) -> str:
        return f"{SESSION_LABEL}\n{self._place}\n{name}"


def sealed_sessions(consortium: ConsortiumHome, track: str, keyring: Keyring) -> SealedStore:
    """The secure sums of one track at one consortium, sealed on the disk."""
    return SealedStore(FolderStore(consortium.sessions / track), keyring, place=f"{consortium.name}/{track}")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
