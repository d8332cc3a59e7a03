"""Child processes that are kept alive: each in a group of its own, with a log, started again if it dies.

Guarantees:
    A child that dies is started again after a pause that doubles up to a minute.
    What a child leaves behind ends before the child is started again.
    When the supervisor is gone, even by SIGKILL, its children are gone, and what these started.
    A child that holds more memory than its limit is ended and started again.

All children are started from one thread, which lives as long as the supervisor: Linux ends a child with the
thread that started it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from common.children import ChildSpec, Event, OnEvent, Restart, Row, State, Status, read_status, write_status
from common.errors import ChildNotReadyError
from common.processes import MARK, end, end_group, end_marked, family, is_alive, marked, resident_mb

__all__ = ["ChildSpec", "Event", "Restart", "Row", "Status", "Supervisor", "read_status"]

logger = logging.getLogger(__name__)

TICK_S = 0.2
MEMORY_EVERY_S = 2.0
WRITE_EVERY_S = 10.0
GRACE_S = 10.0
LOG_BYTES = 16 * 2**20
# Run in the child before the program: no Python code may run between fork and exec of a process with threads.
_STARTER = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr)
    os._exit(127)
"""


class Supervisor:
    """Starts children and keeps them alive, in a thread of its own, until it is closed."""

    def __init__(
        self, logs: Path, *, status_file: Path | None = None, on_event: OnEvent | None = None
    ) -> None:
        """Write what a child prints to ``{logs}/{name}.log``, and how all are to ``status_file``.

        Ends first what an earlier supervisor with the same ``logs`` left behind; there must be none that
        still runs. ``on_event`` is called from the supervisor's thread.
        """
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._logs = logs.resolve()
        self._status_file = status_file
        self._on_event = on_event
        self._children: dict[str, _Child] = {}
        self._events: list[Event] = []
        self._closing = False
        self._write_at = 0.0
        self._changed = threading.Condition()
        end_marked(self._mark)
        self._watch = _start_watch(self._mark)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Supervisor:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def start(self, spec: ChildSpec) -> None:
        """Have a child run from now on. ValueError if one of this name does."""
        with self._changed:
            old = self._children.get(spec.name)
            if self._closing or (old is not None and old.state != "stopped"):
                raise ValueError(f"Expected an open supervisor without a running {spec.name}")
            self._children[spec.name] = _Child(spec, self._logs / f"{spec.name}.log")
            self._changed.notify_all()

    def wait_ready(self, name: str, timeout_s: float) -> None:
        """Return once the child is ready. ChildNotReadyError after the time, or if it is stopped for good."""
        with self._changed:
            child = self._children[name]
            self._changed.wait_for(lambda: child.state in ("running", "stopped"), timeout_s)
            if child.state != "running":
                raise ChildNotReadyError(name, timeout_s, child.log)

    def restart(self, name: str) -> None:
        """End a child and start it again at once, with no pause; returns before it runs."""
        with self._changed:
            self._children[name].restart()
            self._changed.notify_all()

    def stop(self, name: str, *, grace_s: float = GRACE_S) -> None:
        """SIGTERM for a child's group, SIGKILL after ``grace_s``; return when it is gone."""
        with self._changed:
            child = self._children[name]
            child.end_by(time.monotonic() + grace_s)
            self._changed.notify_all()
            self._changed.wait_for(lambda: child.state == "stopped")

    def status(self) -> tuple[Row, ...]:
        """How the children are, in the order in which they were first started."""
        with self._changed:
            return tuple(child.row() for child in self._children.values())

    def close(self, *, grace_s: float = GRACE_S) -> None:
        """Stop all children together, and the supervisor."""
        with self._changed:
            for child in self._children.values():
                child.end_by(time.monotonic() + grace_s)
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._watch.stdin is not None:
            self._watch.stdin.close()
        self._watch.wait()

    @property
    def _mark(self) -> str:
        return str(self._logs)

    def _run(self) -> None:
        written: tuple[Row, ...] | None = None
        while True:
            with self._changed:
                for child in self._children.values():
                    child.tick(self._events.append, self._mark)
                rows, events = tuple(child.row() for child in self._children.values()), self._events
                self._events = []
                self._changed.notify_all()
                over = self._closing and all(row.state == "stopped" for row in rows)
            # Outside of the lock: a listener may ask for the status, and a disk may be slow.
            for event in events:
                self._tell(event)
            written = self._write(rows, written)
            if over:
                return
            with self._changed:
                self._changed.wait(TICK_S)

    def _write(self, rows: tuple[Row, ...], written: tuple[Row, ...] | None) -> tuple[Row, ...]:
        """Write the status if more than the memory has changed since it was ``written``."""
        plain = tuple(replace(row, memory_mb=0.0) for row in rows)
        now = time.monotonic()
        if self._status_file is not None and (plain != written or now >= self._write_at):
            self._write_at = now + WRITE_EVERY_S
            write_status(self._status_file, rows)
        return plain

    def _tell(self, event: Event) -> None:
        level = logging.WARNING if event.what in ("died", "memory", "orphans") else logging.INFO
        logger.log(level, event.line(), extra={"child": event.name, "what": event.what})
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        # Whatever a listener does, the children are looked after.
        except Exception:
            logger.exception("%s: a listener failed", event.name)


class _Child:
    """One child; touched under the supervisor's lock only, and started from its thread only."""

    def __init__(self, spec: ChildSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.state: State = "waiting"
        self._again = False
        self._process: subprocess.Popen[bytes] | None = None
        self._due = time.monotonic()
        self._kill_at: float | None = None
        self._told_to_end = False
        self._deaths = 0
        self._starts = 0
        self._born = 0.0
        self._since = _now()
        self._last_exit: str | None = None
        self._memory_mb = 0.0
        self._look_at = 0.0

    def row(self) -> Row:
        return Row(
            name=self.spec.name,
            pid=self._process.pid if self._process else None,
            state=self.state,
            restarts=max(0, self._starts - 1),
            since=self._since,
            last_exit=self._last_exit,
            memory_mb=round(self._memory_mb, 1),
        )

    def end_by(self, deadline: float) -> None:
        if self._process is None:
            self._become("stopped")
        elif self._kill_at is None:
            self._kill_at = deadline

    def restart(self) -> None:
        if self._process is None:
            self._due = time.monotonic()
            self._become("waiting")
        else:
            self._again = True

    def tick(self, tell: OnEvent, mark: str) -> None:
        now = time.monotonic()
        if self._process is not None:
            self._look_after(self._process, now, tell, mark)
        if self.state == "waiting" and now >= self._due:
            self._start(now, tell, mark)

    def _look_after(self, process: subprocess.Popen[bytes], now: float, tell: OnEvent, mark: str) -> None:
        # WNOWAIT: until it is collected, nobody else gets the number of its group.
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._collect(process, now, tell, mark)
            return
        self._end_if_asked(process, now)
        if self.state == "starting" and _is_ready(self.spec):
            self._become("running")
            tell(Event(name=self.spec.name, what="ready", pid=process.pid))
        if now >= self._look_at:
            self._look_at = now + MEMORY_EVERY_S
            _rotate(self.log)
            self._check_memory(process, tell)

    def _end_if_asked(self, process: subprocess.Popen[bytes], now: float) -> None:
        if self._again and self._kill_at is None:
            self._kill_at = now + GRACE_S
        if self._kill_at is None:
            return
        if not self._told_to_end:
            self._told_to_end = True
            end_group(process.pid, signal.SIGTERM)
        if now >= self._kill_at:
            end_group(process.pid)

    def _check_memory(self, process: subprocess.Popen[bytes], tell: OnEvent) -> None:
        members = family(process.pid)
        self._memory_mb = resident_mb(members)
        if 0 < self.spec.memory_limit_mb < self._memory_mb:
            tell(Event(name=self.spec.name, what="memory", pid=process.pid, count=self._memory_mb))
            end_group(process.pid)
            end(members)

    def _collect(self, process: subprocess.Popen[bytes], now: float, tell: OnEvent, mark: str) -> None:
        own = f"{mark}/{self.spec.name}"
        left = {pid for pid in marked(own) | family(process.pid) if pid != process.pid and is_alive(pid)}
        if left and self._kill_at is not None and now < self._kill_at:
            # They were told to end, too, and have as long as it had.
            return
        end_group(process.pid)
        end_marked(own)
        end(left)
        process.wait()
        self._process, self._memory_mb = None, 0.0
        self._last_exit = _exit_words(process.returncode)
        asked, self._kill_at, self._told_to_end = self._kill_at is not None, None, False
        if not asked:
            tell(Event(name=self.spec.name, what="died", pid=process.pid, exit=self._last_exit))
        if left and not asked:
            tell(Event(name=self.spec.name, what="orphans", count=len(left)))
        self._go_on(now, tell, asked=asked)

    def _go_on(self, now: float, tell: OnEvent, *, asked: bool) -> None:
        restart = self.spec.restart
        if self._again:
            self._again, self._due = False, now
            self._become("waiting")
        elif asked or restart is None:
            self._become("stopped")
            tell(Event(name=self.spec.name, what="stopped", exit=self._last_exit))
        else:
            self._deaths = 1 if now - self._born >= restart.reset_s else self._deaths + 1
            pause = restart.pause_s(self._deaths)
            self._due = now + pause
            self._become("waiting")
            tell(Event(name=self.spec.name, what="restarting", pause_s=pause))

    def _start(self, now: float, tell: OnEvent, mark: str) -> None:
        self._starts += 1
        self._born, self._look_at = now, now + MEMORY_EVERY_S
        try:
            self._process = self._popen(mark)
        except OSError as error:
            self._last_exit = error.strerror or type(error).__name__
            tell(Event(name=self.spec.name, what="died", exit=self._last_exit))
            self._go_on(now, tell, asked=False)
            return
        self._become("starting")
        tell(Event(name=self.spec.name, what="started", pid=self._process.pid))

    def _popen(self, mark: str) -> subprocess.Popen[bytes]:
        _rotate(self.log)
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _STARTER, str(os.getpid()), *self.spec.command],
                cwd=self.spec.cwd,
                env={**self.spec.environment, MARK: f"{mark}/{self.spec.name}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def _become(self, state: State) -> None:
        if state != self.state:
            self.state, self._since = state, _now()


def _is_ready(spec: ChildSpec) -> bool:
    if spec.ready is None:
        return True
    try:
        return spec.ready()
    # Not there yet, in one of many ways; whoever waits for it has a time limit.
    except Exception:
        return False


def _start_watch(mark: str) -> subprocess.Popen[bytes]:
    """Ends what bears the mark once this process is gone, by whatever signal."""
    # It bears no mark itself: it has to outlive whoever ended its parent.
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    return subprocess.Popen(
        [sys.executable, "-m", "common.processes", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _rotate(log: Path) -> None:
    """Keep one older log. Copied and cut, since the child goes on writing to the same file."""
    try:
        if log.stat().st_size > LOG_BYTES:
            older = log.with_name(f"{log.name}.1")
            shutil.copyfile(log, older)
            older.chmod(0o600)
            os.truncate(log, 0)
    except FileNotFoundError:
        return


def _exit_words(code: int) -> str:
    return str(code) if code >= 0 else signal.Signals(-code).name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
