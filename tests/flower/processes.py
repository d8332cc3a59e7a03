"""Processes of a test: each in a group of its own, with a log, all ended when the test ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_S = 0.1
KILLED_S = 10.0
LOG_TAIL = 3000
PR_SET_PDEATHSIG = 1


class Processes:
    """Starts programs by name and ends them.

    Guarantee: ``close`` ends every process that was started, and what these started, since a group outlives
    its leader. On Linux they end with the test runner too, should it be killed before it comes to ``close``.
    """

    def __init__(self, logs: Path) -> None:
        """Write what ``name`` prints to ``{logs}/{name}.log``."""
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True)

    def start(
        self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Run ``command`` in ``folder``. A name may be used again once its process is killed."""
        if name in self._running:
            raise ValueError(f"Expected no process {name} yet, got a second one")
        with self._log_file(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def kill(self, name: str) -> None:
        """End a process and all of its group with SIGKILL."""
        self._kill([self._running.pop(name)])

    def has_ended(self, name: str) -> bool:
        """Whether the process itself is gone; its group may not be."""
        # WNOWAIT: see _kill.
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._running[name].pid, options) is not None

    def wait_for(self, condition: Callable[[], bool], what: str, *, of: str, timeout_s: float) -> None:
        """Return once ``condition`` holds. AssertionError if ``of`` ends or time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert not self.has_ended(of), f"{of} ended before {what}\n{self.log(of)[-LOG_TAIL:]}"
            assert time.monotonic() < deadline, f"{timeout_s:g} s without {what}\n{self.log(of)[-LOG_TAIL:]}"
            time.sleep(POLL_S)

    def log(self, name: str) -> str:
        """What the process has printed so far."""
        return self._log_file(name).read_text(errors="replace")

    def close(self) -> None:
        """Kill all that still run."""
        self._kill(list(self._running.values()))
        self._running.clear()

    def _kill(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            # Before wait(): until then nobody else gets the group's number, even if its leader is gone.
            os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.wait(KILLED_S)

    def _log_file(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
