"""The site's daemon: keeps worker, outbound proxy and SuperNode running for one consortium.

SuperNode talks to the proxy and takes its port on the command line, so it is started once the proxy listens,
and started anew where the proxy comes back on another port. Nothing of a patient passes through here.

Guarantees:
    One daemon runs for each consortium of a home.
    Its processes end with it, however it ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection, socket
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from client.home import PRIVATE_FOLDER, ConsortiumHome, SiteHome
from client.settings import SiteSettings
from client.status import (
    certificate_days,
    gateway_trouble,
    proxy_port,
    worker_at_work,
    worker_is_ready,
)
from common.atomic import write_atomically
from common.canonical import canonical_json
from common.daemon_lock import hold
from common.flower import NODE_CONFIG_SITE, QUIET
from common.monitoring import ChildrenCollector, Monitoring, failing_children
from common.supervisor import ChildSpec, Restart, Supervisor

logger = logging.getLogger(__name__)

WORKER, PROXY, SUPERNODE = "worker", "outbound", "supernode"
HOST = "127.0.0.1"
TICK_S = 0.2
PROBE_S = 0.2
# SuperNode waits for an answer in steps of its own; what it was doing is asked for again by the coordinator.
STOP_S = 10.0
# How often SuperNode's SuperExec asks for work; 1 s by default.
TASK_POLL_S = 0.2
# As in client.app, which stands above this module.
NODE_CONFIG_WORKER = "worker"
DAEMON_SCHEMA = 1
SITE_HOME, CONSORTIUM = "CONSILIUM_SITE_HOME", "CONSILIUM_CONSORTIUM"


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The command lines of a site's processes.

    Attributes:
        worker: Holds the models.
        proxy: Talks to the coordinator's gateway.
        supernode: Flower's, from the proxy's port and its own.
    """

    worker: tuple[str, ...]
    proxy: tuple[str, ...]
    supernode: Callable[[int, int], tuple[str, ...]]


def site_programs(home: SiteHome, consortium: ConsortiumHome, settings: SiteSettings) -> Programs:
    """What a site runs."""
    where = (str(home.root.resolve()), consortium.name)
    return Programs(
        worker=(sys.executable, "-P", "-m", "client.worker_process", *where),
        proxy=(sys.executable, "-P", "-m", "client.outbound", *where),
        supernode=lambda proxy, node: supernode_command(consortium, settings, proxy=proxy, node=node),
    )


def supernode_command(
    consortium: ConsortiumHome, settings: SiteSettings, *, proxy: int, node: int
) -> tuple[str, ...]:
    """``flower-supernode`` behind the proxy's port, its own interface on the port ``node``."""
    root = consortium.root.resolve()
    config = {
        NODE_CONFIG_SITE: str(settings.site),
        NODE_CONFIG_WORKER: str(consortium.worker_socket.resolve()),
    }
    return (
        str(Path(sys.executable).parent / "flower-supernode"),
        *("--superlink", f"{HOST}:{proxy}"),
        *("--root-certificates", str(root / consortium.loopback_certificate.name)),
        *("--auth-supernode-private-key", str(root / consortium.node_key.name)),
        *("--host", HOST, "--port", str(node)),
        # A JSON string is a TOML string too.
        *("--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())),
    )


def child_environment(
    home: SiteHome, consortium: ConsortiumHome, settings: SiteSettings, inherited: Mapping[str, str]
) -> dict[str, str]:
    """What SuperNode and the proxy run with: the guard first on the path, and no master key."""
    # Every message is a new process, which would compile Flower's libraries anew: seconds each.
    dropped = {"PYTHONDONTWRITEBYTECODE", _master_key_variable(settings)}
    kept = {key: value for key, value in inherited.items() if key not in dropped}
    path = (
        str(consortium.executables.resolve()),
        str(Path(sys.executable).parent),
        inherited.get("PATH", ""),
    )
    return {
        **kept,
        **QUIET,
        SITE_HOME: str(home.root.resolve()),
        CONSORTIUM: consortium.name,
        "FLWR_HOME": str(consortium.run.resolve() / "flower"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
        "PATH": os.pathsep.join(part for part in path if part),
        "PYTHONUNBUFFERED": "1",
        # The proxy reads the hospital's own from the settings; loopback is never behind one.
        "NO_PROXY": HOST,
    }


def _master_key_variable(settings: SiteSettings) -> str:
    scheme, _, name = settings.master_key.partition(":")
    return name if scheme == "env" else ""


class Daemon:
    """Runs a site's processes for one consortium until it is told to stop."""

    def __init__(
        self,
        home: SiteHome,
        consortium: ConsortiumHome,
        settings: SiteSettings,
        programs: Programs | None = None,
    ) -> None:
        """Of a site that is ready, see ``require_ready``; ``programs`` are ``site_programs`` by default."""
        self._home, self._consortium, self._settings = home, consortium, settings
        self._programs = programs or site_programs(home, consortium, settings)
        self._proxy_port = 0

    def run(self, stop: threading.Event) -> None:
        """Keep the processes running; end them in order and return once ``stop`` is set.

        Raises:
            AlreadyRunningError: Another daemon runs here.
            OSError: The port for health and metrics is taken.
        """
        run = self._consortium.run
        run.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        with hold(self._consortium.daemon_lock):
            # Of a proxy that is gone.
            self._consortium.proxy_status.unlink(missing_ok=True)
            supervisor = Supervisor(self._consortium.logs, status_file=self._consortium.processes_status)
            with supervisor, self._told(supervisor):
                supervisor.start(self._worker())
                supervisor.start(self._proxy())
                while not stop.wait(TICK_S):
                    self._follow_proxy(supervisor)
                self._stop(supervisor)

    @contextmanager
    def _told(self, supervisor: Supervisor) -> Iterator[None]:
        """Health and metrics, and their port in ``run/daemon.json``."""
        registry = CollectorRegistry()
        registry.register(ChildrenCollector(supervisor.status))
        registry.register(SiteCollector(self._consortium))
        file = self._consortium.daemon_status
        with Monitoring(
            HOST,
            self._settings.network.health_port,
            failing=lambda: self._failing(supervisor),
            registry=registry,
        ) as monitoring:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            content = {"schema": DAEMON_SCHEMA, "pid": os.getpid(), "port": monitoring.port, "since": started}
            write_atomically(file, canonical_json(content) + "\n", private=True)
            logger.info("%s: started; health on %s:%d", self._consortium.name, HOST, monitoring.port)
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
        logger.info("%s: stopped", self._consortium.name)

    def _failing(self, supervisor: Supervisor) -> dict[str, str]:
        rows = supervisor.status()
        failing = failing_children(rows)
        if SUPERNODE not in {row.name for row in rows}:
            failing[SUPERNODE] = f"waits for the port of {PROXY}"
        if (left := certificate_days(self._consortium)) is None or left <= 0:
            failing["certificate"] = "missing" if left is None else f"ended {-left:.1f} days ago"
        if (trouble := gateway_trouble(self._consortium)) is not None:
            failing["gateway"] = trouble
        return failing

    def _follow_proxy(self, supervisor: Supervisor) -> None:
        """Start SuperNode once the proxy's port is known; again, where it is another one."""
        port = proxy_port(self._consortium)
        if port is None or port == self._proxy_port:
            return
        if self._proxy_port:
            logger.info("the proxy came back on another port; SuperNode is started again")
            supervisor.stop(SUPERNODE, grace_s=STOP_S)
        self._proxy_port = port
        supervisor.start(self._supernode(port))

    def _stop(self, supervisor: Supervisor) -> None:
        """No new task first, then the one at work, then the way out."""
        running = {row.name for row in supervisor.status()}
        for name in (SUPERNODE, WORKER, PROXY):
            if name in running:
                supervisor.stop(name, grace_s=STOP_S)

    def _worker(self) -> ChildSpec:
        environment = child_environment(self._home, self._consortium, self._settings, os.environ)
        variable = _master_key_variable(self._settings)
        if variable in os.environ:
            environment[variable] = os.environ[variable]
        return self._spec(
            WORKER,
            self._programs.worker,
            environment,
            ready=lambda: worker_is_ready(self._consortium),
            memory_limit_mb=self._settings.worker.memory_limit_mb,
        )

    def _proxy(self) -> ChildSpec:
        environment = child_environment(self._home, self._consortium, self._settings, os.environ)
        return self._spec(
            PROXY,
            self._programs.proxy,
            environment,
            ready=lambda: proxy_port(self._consortium) is not None,
        )

    def _supernode(self, port: int) -> ChildSpec:
        node = self._settings.network.node_port or _free_port()
        environment = child_environment(self._home, self._consortium, self._settings, os.environ)
        Path(environment["FLWR_HOME"]).mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        command = self._programs.supernode(port, node)
        return self._spec(SUPERNODE, command, environment, ready=lambda: _listens(node))

    def _spec(
        self,
        name: str,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        *,
        ready: Callable[[], bool],
        memory_limit_mb: int = 0,
    ) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=command,
            environment=environment,
            cwd=self._home.root,
            restart=Restart(first_s=self._settings.worker.restart_after_s),
            memory_limit_mb=memory_limit_mb,
            ready=ready,
        )


class SiteCollector:
    """What a site tells of itself, for Prometheus: nothing that counts its patients."""

    def __init__(self, consortium: ConsortiumHome) -> None:
        """Read the consortium's files at each scrape."""
        self._consortium = consortium

    def collect(self) -> Iterator[Any]:
        """Days of the certificate, whether the gateway can be used, and what the worker counts."""
        left = certificate_days(self._consortium)
        yield GaugeMetricFamily(
            "consilium_certificate_days_left",
            "days until the site's certificate ends",
            value=float("nan") if left is None else left,
        )
        yield GaugeMetricFamily(
            "consilium_gateway_usable",
            "0 while the gateway cannot be reached, or refuses this site",
            value=float(gateway_trouble(self._consortium) is None),
        )
        text = (worker_at_work(self._consortium) or {}).get("metrics")
        if isinstance(text, str):
            yield from text_string_to_metric_families(text)


def _listens(port: int) -> bool:
    try:
        create_connection((HOST, port), timeout=PROBE_S).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
