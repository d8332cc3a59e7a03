"""Kills processes of a running federation at random instants, with SIGKILL, and has the run resumed.

The instants and the victims follow from a seed, what they hit does not: the daemons' timing is the machine's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import FederationError
from common.processes import family
from simulations.trial.hosts import COORDINATOR
from simulations.trial.stand import Stand

# What a command line of each kind of process holds.
COORDINATOR_KINDS: Mapping[str, str] = {
    "coordinator": "consilium-coordinator up",
    "superlink": "flower-superlink",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
    "gateway": "server.gateway",
    "enrolment": "server.enrolment_process",
}
SITE_KINDS: Mapping[str, str] = {
    "site": "consilium-site start",
    "worker": "client.worker_process",
    "supernode": "flower-supernode",
    "proxy": "client.outbound",
    "clientapp": "flwr-clientapp",
}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One that was made.

    Attributes:
        at_s: Seconds since the first.
        host: Where.
        kind: Of the process.
    """

    at_s: float
    host: str
    kind: str


@dataclass
class Killer:
    """Kills ``most`` processes, one every ``least_s`` to ``most_s`` seconds, from a thread of its own.

    Attributes:
        kills: Those that it made.
    """

    stand: Stand
    most: int
    seed: int
    # A round takes some 12 s, to go on after a coordinator's death some 30: the kills fall into all of a run.
    least_s: float = 8.0
    most_s: float = 60.0
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> Killer:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop killing."""
        self._stop.set()
        self._thread.join()

    @property
    def is_done(self) -> bool:
        """Whether all kills are made."""
        return len(self.kills) >= self.most

    def _run(self) -> None:
        rng, began = np.random.default_rng(self.seed), time.monotonic()
        while not self.is_done:
            if self._stop.wait(float(rng.uniform(self.least_s, self.most_s))):
                return
            host, kinds = self._choice(rng)
            kind = str(rng.choice(sorted(kinds)))
            if kill(self.stand, host, kinds[kind]):
                self.kills.append(Kill(at_s=time.monotonic() - began, host=host, kind=kind))

    def _choice(self, rng: np.random.Generator) -> tuple[str, Mapping[str, str]]:
        # Half of the kills are the coordinator's.
        if rng.random() < 0.5:
            return COORDINATOR, COORDINATOR_KINDS
        return str(rng.choice(list(self.stand.sites))), SITE_KINDS


def kill(stand: Stand, host: str, words: str) -> bool:
    """SIGKILL for the first process of a host whose command line has these words; whether there was one."""
    leader = next((row.pid for row in stand.supervisor.status() if row.name == host), None)
    if leader is None:
        return False
    for pid in sorted(family(leader)):
        if words in _command_line(pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return True
    return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def run_through(stand: Stand, digest: str, name: str, *, kills: int, seed: int, limit_s: float) -> Killer:
    """A run to its end through so many kills, resumed whenever it stops; what was killed.

    Raises:
        FederationError: It did not end in time, or before all kills were made.
    """
    deadline = time.monotonic() + limit_s
    with Killer(stand, kills, seed) as killer:
        done = stand.run(digest, name, timeout_s=limit_s)
        while done.status != 0:
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"{name}: not finished after {limit_s:g} s: {done.out[-500:]} {done.err[-500:]}"
                )
            time.sleep(2.0)
            if not (stand.out(name) / "run.json").exists():
                # Killed before the journal began: nothing was asked of anybody.
                done = stand.run(digest, name, timeout_s=limit_s)
                continue
            done = stand.resume(name, timeout_s=limit_s)
            stand.note(f"resumed: exit status {done.status}")
    return killer
