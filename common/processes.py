"""Processes of this machine, found by their parents, their group or a mark; and how to end them.

A program that is started with ``MARK`` in its environment hands it to all that it starts, so that what it
left behind is found even where it changed its parent, its group and its session. Linux only: elsewhere a
mark finds nothing.

``python -m common.processes MARK`` waits until its standard input ends, which is when whoever started it is
gone, and then ends all that bear the mark.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

MARK = "CONSILIUM_SUPERVISED_BY"
_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 2**20
# A process may start another while the list is being read.
_SWEEPS = 5


def marked(mark: str) -> frozenset[int]:
    """Numbers of this user's processes that were started with the mark or one below it (``mark/name``).

    This process is not among them.
    """
    return frozenset(pid for pid in _numbers() if pid != os.getpid() and _bears(pid, mark))


def end_marked(mark: str) -> int:
    """SIGKILL for all that bear the mark, until none is left; how many there were."""
    ended: set[int] = set()
    for _ in range(_SWEEPS):
        alive = {pid for pid in marked(mark) if is_alive(pid)}
        if not alive:
            break
        end(alive)
        ended |= alive
    return len(ended)


def end(pids: Iterable[int], how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes; those that are gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            continue


def end_group(group: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group, if there is anything in it."""
    try:
        os.killpg(group, how)
    except (ProcessLookupError, PermissionError):
        return


def family(leader: int) -> frozenset[int]:
    """A process and its descendants, and whoever is in a group of one of them."""
    parents, groups = {}, {}
    for pid in _numbers():
        fields = _stat(pid)
        if fields is not None:
            parents[pid], groups[pid] = int(fields[1]), int(fields[2])
    found = {leader}
    while more := {
        pid for pid in parents if pid not in found and (parents[pid] in found or groups[pid] in found)
    }:
        found |= more
    return frozenset(found)


def resident_mb(pids: Iterable[int]) -> float:
    """Memory that processes hold, in MiB; what they share is counted in each."""
    pages = 0
    for pid in pids:
        statm = _read(pid, "statm")
        pages += int(statm.split()[1]) if statm else 0
    return pages * _PAGE_BYTES / _MIB


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    if not _PROC.is_dir():
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    fields = _stat(pid)
    return fields is not None and fields[0] not in ("Z", "X")


def _bears(pid: int, mark: str) -> bool:
    wanted = f"{MARK}={mark}".encode()
    entries = (_read(pid, "environ") or b"").split(b"\0")
    return any(entry == wanted or entry.startswith(wanted + b"/") for entry in entries)


def _numbers() -> Iterator[int]:
    if _PROC.is_dir():
        yield from (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """State, parent, group and so on: what follows the name, which may hold anything."""
    content = _read(pid, "stat")
    return content.decode(errors="replace").rpartition(")")[2].split() if content else None


def _read(pid: int, name: str) -> bytes | None:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    # Gone meanwhile, or another user's.
    except OSError:
        return None


def main(argv: list[str]) -> int:
    """Wait for the end of standard input, then end all that bear the mark."""
    # What ends its parent by a key on the terminal, or by its group, must not end it first.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    end_marked(argv[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
