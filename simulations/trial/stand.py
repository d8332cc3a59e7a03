"""A stand of daemons: types what the administrators type, and keeps running what their machines keep running.

Nothing here knows more than an administrator does: every step is a command of ``consilium-coordinator`` or
``consilium-site``, and what is read back is their ``--json``. ``systemd`` is played by ``common.supervisor``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from common.errors import FederationError
from common.ids import SiteId
from common.supervisor import ChildSpec, Restart, Supervisor
from simulations.trial.hospitals import Hospitals
from simulations.trial.hosts import COORDINATOR, Host, Hosts

BIN = Path(sys.executable).parent
CONSORTIUM = "trial"
ADMINISTRATOR = "trial-administrator"
# Who type at the same time: as many as a small machine has processors.
ADMINISTRATORS = 2
COMMAND_S = 180.0
POLL_S = 0.5
# A machine whose daemon died starts it again after this time.
RESTART_S = 0.5


class StepFailedError(FederationError):
    """A command of the trial ended otherwise than it should."""

    def __init__(self, command: Sequence[str], status: int, said: str) -> None:
        super().__init__(f"{' '.join(command)}: exit status {status}: {said.strip()[-2000:]}")
        self.status = status
        self.said = said


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the coordinator listens."""

    gateway: int
    enrolment: int
    superlink: int
    health: int


@dataclass(frozen=True)
class Done:
    """A command that ended.

    Attributes:
        status: Its exit status.
        out, err: What it printed.
    """

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


def _quietly(line: str) -> None:
    """Nobody looks."""


@dataclass
class Stand:
    """The coordinator and the sites of a trial.

    Attributes:
        folder: Holds a home for each of them, with a short name: sockets lie in it.
        hosts: Where they are.
        hospitals: What they bring along.
        ports: Of the coordinator.
        say: Told each line that a person would want to see on the way.
        timeline: What was done when, seconds since the beginning.
    """

    folder: Path
    hosts: Hosts
    hospitals: Hospitals
    ports: Ports
    say: Callable[[str], None] = _quietly
    timeline: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.supervisor = Supervisor(self.folder / "logs", status_file=self.folder / "daemons.json")

    def __enter__(self) -> Stand:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all daemons."""
        self.supervisor.close()

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The plan's."""
        return self.hospitals.plan.sites

    def home(self, name: str) -> Path:
        """The home of a site, or of the coordinator."""
        return self.folder / ("co" if name == COORDINATOR else name)

    def note(self, what: str) -> None:
        """Write down what was reached."""
        at = time.monotonic() - self._began
        self.timeline.append((at, what))
        self.say(f"{at:7.1f} s  {what}")

    def coordinator(self, *arguments: str, check: bool = True, timeout_s: float = COMMAND_S) -> Done:
        """A command of the coordinator's administrator."""
        words = ("consilium-coordinator", *arguments, "--home", str(self.home(COORDINATOR)))
        return self._run(self.hosts[COORDINATOR], words, check, timeout_s)

    def site(self, site: str, *arguments: str, check: bool = True, timeout_s: float = COMMAND_S) -> Done:
        """A command of a site's administrator."""
        words = ("consilium-site", *arguments, "--home", str(self.home(site)))
        return self._run(self.hosts[site], words, check, timeout_s)

    def found_consortium(self) -> None:
        """Initialise the coordinator and start it."""
        address, ports = self.hosts[COORDINATOR].address, self.ports
        self.coordinator(
            *("init", "--consortium", CONSORTIUM, "--host", address, "--bind", address),
            *("--gateway-port", str(ports.gateway), "--enrolment-port", str(ports.enrolment)),
            *("--superlink-port", str(ports.superlink), "--health-port", str(ports.health)),
        )
        self.start_coordinator()
        self.note("coordinator is up")

    def start_coordinator(self) -> None:
        """``consilium-coordinator up``, kept alive."""
        words = ("consilium-coordinator", "up", "--home", str(self.home(COORDINATOR)))
        self._keep(COORDINATOR, self.hosts[COORDINATOR], words)
        self.wait_for(lambda: self.coordinator("status", "--json", check=False).status == 0, "a coordinator")

    def set_up_site(self, site: SiteId) -> None:
        """From nothing to an enrolled site with its patients."""
        hospitals, data = self.hospitals, self.folder / f"{site}-data"
        data.mkdir(exist_ok=True)
        models = {
            **{f"models.bases.{track}": str(base) for track, base in hospitals.bases.items()},
            "models.photo_encoder": str(hospitals.photo_encoder),
            "models.slide_encoder": str(hospitals.slide_encoder),
            "models.note_encoder": str(hospitals.note_encoder),
            "worker.threads": str(hospitals.settings.threads),
            "worker.device": "cpu",
        }
        sets = [word for key, value in models.items() for word in ("--set", f"{key}={value}")]
        self.site(site, "init", "--site", site, "--data", str(data), *sets)
        self.site(site, "import", str(hospitals.sources[site]))
        invitation = self.folder / f"{site}.invitation"
        self.coordinator("enrol", site, "--out", str(invitation))
        self.site(site, "enrol", str(invitation), "--yes")
        self.note(f"{site} is enrolled")

    def at_each_site(self, act: Callable[[SiteId], object]) -> None:
        """Have the sites' administrators act, two at a time."""
        with ThreadPoolExecutor(max_workers=ADMINISTRATORS) as pool:
            for _ in pool.map(act, self.sites):
                pass

    def approve_everybody(self) -> None:
        """Every administrator approves the other sites, having read the fingerprints to one another."""
        read_aloud = {site: self.site(site, "identity", "--json").json["fingerprint"] for site in self.sites}

        def approve(site: SiteId) -> None:
            self.site(site, "sites", "--json")
            for other in self.sites:
                if other != site:
                    self.site(site, "approve-site", other, "--fingerprint", read_aloud[other])

        self.at_each_site(approve)
        self.note("sites approve one another")

    def offer_plan(self) -> str:
        """The coordinator offers the plan; its digest."""
        adapters = [
            word
            for track, path in self.hospitals.adapters.items()
            for word in ("--adapter", f"{track}={path}")
        ]
        self.coordinator("plan", str(self.hospitals.package), *adapters)
        self.note("the plan is offered")
        return self.hospitals.plan.digest()

    def approve_plan(self, site: SiteId, digest: str) -> None:
        """A site's administrator reads and approves the plan."""
        self.site(site, "plans", "--json")  # fetches what the coordinator offers
        self.site(site, "approve", digest[:16], "--by", ADMINISTRATOR, "--yes", "--digest", digest)

    def start_site(self, site: SiteId) -> None:
        """``consilium-site start``, kept alive."""
        words = ("consilium-site", "start", "--home", str(self.home(site)))
        self._keep(site, self.hosts[site], words)

    def wait_for_sites(self, timeout_s: float = COMMAND_S) -> None:
        """Until the coordinator sees all of them."""

        def online() -> bool:
            done = self.coordinator("status", "--json", check=False)
            return done.status == 0 and all(row["online"] for row in done.json["sites"])

        self.wait_for(online, "all sites online", timeout_s)
        self.note("all sites are online")

    def run(self, digest: str, name: str, *, timeout_s: float) -> Done:
        """Run the plan to its end."""
        return self._follow(("run", digest[:16], "--run", name), timeout_s)

    def resume(self, name: str, *, timeout_s: float) -> Done:
        """Go on with a run to its end."""
        return self._follow(("resume", name), timeout_s)

    def _follow(self, arguments: Sequence[str], timeout_s: float) -> Done:
        """A command of the coordinator's that tells how its run goes on, line by line."""
        words = ("consilium-coordinator", *arguments, "--home", str(self.home(COORDINATOR)))
        with subprocess.Popen(
            (*self.hosts[COORDINATOR].prefix, str(BIN / words[0]), *words[1:]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self._environment(),
        ) as process:
            assert process.stdout is not None
            late = threading.Timer(timeout_s, process.kill)
            late.start()
            lines = []
            for line in process.stdout:
                lines.append(line)
                self.say(f"           {line.rstrip()}")
            late.cancel()
        return Done(process.returncode, "".join(lines), "")

    def out(self, run: str) -> Path:
        """The folder of a run at the coordinator."""
        return self.home(COORDINATOR) / "runs" / run

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = COMMAND_S) -> None:
        """Return once it holds. FederationError if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                raise FederationError(f"no {what} within {timeout_s:g} s")
            time.sleep(POLL_S)

    def _keep(self, name: str, host: Host, words: Sequence[str]) -> None:
        self.supervisor.start(
            ChildSpec(
                name=name,
                command=(*host.prefix, str(BIN / words[0]), *words[1:]),
                environment=self._environment(),
                cwd=self.folder,
                restart=Restart(first_s=RESTART_S),
            )
        )

    def _run(self, host: Host, words: Sequence[str], check: bool, timeout_s: float) -> Done:
        command = (*host.prefix, str(BIN / words[0]), *words[1:])
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
        )
        done = Done(ended.returncode, ended.stdout, ended.stderr)
        if check and done.status:
            raise StepFailedError(words, done.status, done.err or done.out)
        return done

    def _environment(self) -> Mapping[str, str]:
        # Every message is a process of Flower's, which would compile its libraries anew: seconds each.
        return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
