"""Files kept open between two readings, a bounded number of them.

To open a whole slide or an archive takes longer than to read one tile of it. A reference to a tile holds
only the path; the open file lives here, is shared by all tiles of it, and is closed when others came since.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet


class _Closable(Protocol):
    def close(self) -> None: ...


FileT = TypeVar("FileT", bound=_Closable)
# What tells one file from another that took its place: device, inode, size and time of the last change.
_Key = tuple[str, int, int, int, int]


class OpenFiles(Generic[FileT]):
    """The files that were read last, open.

    Guarantee: at most ``limit`` are open, one is read at a time, and a file that was replaced is opened anew.
    A process that forks starts with none: parent and child would move each other's place in the file.

    Args:
        opener: Opens a path; its errors pass through.
        limit: How many stay open, at least 1.
    """

    def __init__(self, opener: Callable[[Path], FileT], limit: int) -> None:
        if limit < 1:
            raise ValueError(f"Expected a limit of at least 1, got {limit}")
        self._opener = opener
        self._limit = limit
        self._lock = threading.RLock()
        self._files: OrderedDict[_Key, FileT] = OrderedDict()
        self._inherited: list[OrderedDict[_Key, FileT]] = []
        _known.add(self)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._files)

    @contextmanager
    def reading(self, path: Path) -> Iterator[FileT]:
        """The open file, nobody else's while it is read; OSError if there is none."""
        with self._lock:
            key = _key(path)
            file = self._files.pop(key, None) or self._open(path)
            try:
                yield file
            except BaseException:
                # A library's file that failed once may fail ever after; the next reading opens it anew.
                file.close()
                raise
            self._files[key] = file

    def close(self) -> None:
        """Close all of them; the next reading opens anew."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def forget(self) -> None:
        """Leave the open files to the parent process, of which this one is a fork."""
        # Kept, not closed: a lock inside a library may be held by a thread that the fork left behind.
        self._inherited.append(self._files)
        self._files = OrderedDict()
        self._lock = threading.RLock()

    def _open(self, path: Path) -> FileT:
        while len(self._files) >= self._limit:
            self._files.popitem(last=False)[1].close()
        return self._opener(path)


def _key(path: Path) -> _Key:
    status = path.stat()
    return str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _forget_all() -> None:
    for files in _known:
        files.forget()


_known: WeakSet[OpenFiles] = WeakSet()  # type: ignore[type-arg]  # of every kind
os.register_at_fork(after_in_child=_forget_all)
