"""A federation of real Flower processes on this machine.

SuperLink, SuperExec, a SuperNode for each site, and the sites' workers, as between hospitals; only that all
talk over the loopback, without TLS, and that the workers are ``tests.flower.sites``. Every process has a
Flower home of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from client.app import NODE_CONFIG_WORKER
from common.flower import NODE_CONFIG_SITE, QUIET
from common.ids import SiteId
from common.plan import RunPlan
from tests.flower.processes import LOG_TAIL, POLL_S, Processes
from tests.flower.sites import PLAN, socket_of

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SCRIPTS = (
    *("flwr", "flower-superlink", "flower-superexec", "flower-supernode"),
    *("flwr-serverapp", "flwr-clientapp"),
)
FLWR = str(BIN / "flwr")
# -P: what lies beside the file is not to be found by its short name.
SHORT_SUPERNODE = (sys.executable, "-P", str(Path(__file__).with_name("supernode.py")))
# What a Flower App is made of; the rest of the repository stays out of Flower's reach.
APP = ("client", "common", "server", "pyproject.toml", "LICENSE", "README.md")
HOST = "127.0.0.1"
CLI = "cli"
CONNECTION = "loopback"
# Bounds for a busy machine; each takes some 5 s on a quiet one.
START_S = 120.0
COMMAND_S = 120.0
STARTED = re.compile(r"Successfully started run (\d+)")

# How often a SuperExec asks for work; 1 s by default.
TASK_POLL_S = 0.2


def missing_scripts() -> list[str]:
    """Flower's console scripts that are not beside this Python."""
    return [name for name in SCRIPTS if not (BIN / name).is_file()]


class Deployment:
    """A running federation of a plan's sites, ended on leaving the ``with`` block.

    Attributes:
        sites: The folder of ``tests.flower.sites``, whose files a test makes to steer the sites.
    """

    def __init__(self, folder: Path, plan: RunPlan, *, short_heartbeat: bool = False) -> None:
        """Use ``folder``, which has a short name: sockets lie in it.

        With a ``short_heartbeat`` a killed SuperNode is missed after 15 to 20 s, otherwise 37 to 60 s. A node
        that gets no processor for that long is missed as well.
        """
        self.sites = folder / "sites"
        self._folder = folder
        self._plan = plan
        self._supernode = SHORT_SUPERNODE if short_heartbeat else (str(BIN / "flower-supernode"),)
        self._port = free_port()
        self._runs = 0
        self._processes = Processes(folder / "logs")

    def __enter__(self) -> Deployment:
        """Start all; SuperNodes and their sites may still be on their way when it returns."""
        try:
            self._copy_app()
            self._start_sites()
            self._start_coordinator()
            for site in self._plan.sites:
                self.start_node(site)
        except BaseException:
            self._processes.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""
        self._processes.close()

    def start_node(self, site: SiteId) -> None:
        """Start the site's SuperNode. Without a key of its own it is a new node each time."""
        config = {NODE_CONFIG_SITE: site, NODE_CONFIG_WORKER: str(socket_of(self.sites, site))}
        self._start(
            node_name(site),
            *(*self._supernode, "--insecure", "--superlink", f"{HOST}:{self._port}"),
            *("--host", HOST, "--port", str(free_port())),
            *("--node-config", " ".join(f'{key}="{value}"' for key, value in config.items())),
        )

    def kill_node(self, site: SiteId) -> None:
        """SIGKILL for the site's SuperNode, its SuperExec and its ClientApp; the worker lives on."""
        self._processes.kill(node_name(site))

    def run(self, run_config: Mapping[str, str | int | float], timeout_s: float) -> Run:
        """Start a run that has to end within ``timeout_s``."""
        self._runs += 1
        name = f"run-{self._runs}"
        config = self._folder / f"{name}.toml"
        # A JSON string is a TOML string too. A plan is too long, and has too many quotes, for a command line.
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in run_config.items()]
        config.write_text("\n".join(lines) + "\n")
        command = (FLWR, "run", "app", CONNECTION, "--run-config", config.name, "--stream")
        self._start(name, *command, home=CLI)
        return Run(deployment=self, name=name, deadline=time.monotonic() + timeout_s)

    def log(self, name: str) -> str:
        """What a process has printed.

        ``superlink``, ``superexec``, ``sites``, ``node-site-a`` with the site's ClientApps, ``run-1`` with
        the run's ServerApp, which writes to no other place.
        """
        return self._processes.log(name)

    def has_ended(self, name: str) -> bool:
        """Whether that process is gone."""
        return self._processes.has_ended(name)

    def status(self, run_id: str) -> str:
        """What Flower says of a run, such as ``running``, ``finished:completed`` or ``finished:failed``."""
        done = subprocess.run(
            [FLWR, "list", CONNECTION, "--run-id", run_id, "--format", "json"],
            cwd=self._folder,
            env=self._environment(CLI),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        # A SuperLink that is not there now may be there again before the run has to be over.
        return str(json.loads(done.stdout)["runs"][0]["status"]) if done.returncode == 0 else "unknown"

    def _copy_app(self) -> None:
        for name in APP:
            source, target = ROOT / name, self._folder / "app" / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def _start_sites(self) -> None:
        self.sites.mkdir(mode=0o700)
        (self.sites / PLAN).write_text(self._plan.to_json())
        self._processes.start(
            "sites",
            [sys.executable, "-m", "tests.flower.sites", str(self.sites)],
            folder=ROOT,
            environment=os.environ,
        )
        sockets = [socket_of(self.sites, site) for site in self._plan.sites]
        self._processes.wait_for(
            lambda: all(path.is_socket() for path in sockets), "its sockets", of="sites", timeout_s=START_S
        )

    def _start_coordinator(self) -> None:
        home = self._home(CLI)
        lines = (f"[superlink.{CONNECTION}]", f'address = "{HOST}:{self._port}"', "insecure = true")
        (home / "config.toml").write_text("\n".join(lines) + "\n")
        self._start(
            "superlink",
            *(str(BIN / "flower-superlink"), "--insecure", "--host", HOST, "--port", str(self._port)),
            *("--isolation", "process", "--database", str(self._folder / "state.db")),
            "--disable-runtime-dependency-installation",
        )
        self._processes.wait_for(self._is_healthy, "a sign of health", of="superlink", timeout_s=START_S)
        self._start(
            "superexec",
            *(str(BIN / "flower-superexec"), "--insecure"),
            *("--runtime-api-address", f"{HOST}:{self._port}"),
        )

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._port}/health", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _start(self, name: str, *command: str, home: str = "") -> None:
        environment = self._environment(home or name)
        self._processes.start(name, command, folder=self._folder, environment=environment)

    def _environment(self, home: str) -> dict[str, str]:
        # Every message is a new process, which would compile Flower's libraries anew: seconds each.
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            **QUIET,
            "FLWR_HOME": str(self._home(home)),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
            # Flower starts its app processes by name.
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": HOST,
        }

    def _home(self, name: str) -> Path:
        home = self._folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that was started.

    Attributes:
        deployment: Where.
        name: Of its log.
        deadline: When it has to be over, by ``time.monotonic``.
    """

    deployment: Deployment
    name: str
    deadline: float

    def wait(self) -> str:
        """How it ended, as ``Deployment.status`` says it. AssertionError if it does not, in time."""
        while True:
            # The stream of the log ends with the run, or with its connection.
            if self.deployment.has_ended(self.name):
                status = self.deployment.status(self.run_id)
                if status.startswith("finished"):
                    return status
            assert time.monotonic() < self.deadline, f"{self.name} has not ended\n{self.log[-LOG_TAIL:]}"
            time.sleep(POLL_S)

    @property
    def run_id(self) -> str:
        """Flower's number of it."""
        found = STARTED.search(self.log)
        assert found is not None, f"{self.name} did not start\n{self.log[-LOG_TAIL:]}"
        return found[1]

    @property
    def log(self) -> str:
        """What its ServerApp has logged so far."""
        return self.deployment.log(self.name)


def node_name(site: SiteId) -> str:
    """The name of the site's SuperNode in ``Deployment.log``."""
    return f"node-{site}"


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
