"""The coordinator's daemon: SuperLink, SuperExec, gateway and enrolment service, kept running.

SuperLink comes first, alone: nothing of Flower's listens but on a private address, and sites come in by the
gateway only once the nodes of all enrolled sites are registered. SuperLink's database holds messages on their
way and nothing that has to last: it begins anew whenever ``up`` starts and no run is at work.

Guarantees:
    One daemon runs in a home, and its processes end with it, however it ends.
    A process that dies is started again; a run outlives SuperLink, gateway and enrolment service.
    SuperLink's Control interface, which asks nobody who he is, never listens on a public address.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from common.audit import AuditLog
from common.children import ChildSpec, Restart
from common.daemon_lock import hold
from common.errors import FederationError, SuperLinkError
from common.monitoring import ChildrenCollector, Monitoring, failing_children, require_private
from common.pki import read_identity
from common.supervisor import Supervisor
from server.home import CoordinatorHome, HomeSettings
from server.nodes import Nodes
from server.status import LOCK_NAME, PROCESSES_NAME, CoordinatorCollector, state_bytes
from server.superlink import SuperLink, flower_environment, superexec_command, superlink_command

logger = logging.getLogger(__name__)

SUPERLINK, SUPEREXEC, GATEWAY, ENROLMENT = "superlink", "superexec", "gateway", "enrolment"
START_S = 120.0
TICK_S = 0.5
# Each look is a request to SuperLink; a change of the sites is seen at each tick.
LOOK_EVERY_S = 5.0
PROBE_S = 0.5
STOP_S = 10.0
RESTART = Restart(first_s=0.5, most_s=30.0)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The command lines of a coordinator's processes.

    Attributes:
        superlink: Flower's; the others wait for it.
        superexec: Starts ServerApps.
        gateway: Where sites' nodes come in.
        enrolment: Where sites enrol.
    """

    superlink: tuple[str, ...]
    superexec: tuple[str, ...]
    gateway: tuple[str, ...]
    enrolment: tuple[str, ...]


def coordinator_programs(home: CoordinatorHome, settings: HomeSettings) -> Programs:
    """What a coordinator runs."""
    root, private = str(home.root.resolve()), (settings.private_host, settings.superlink_port)
    return Programs(
        superlink=superlink_command(*private, home.state_file.resolve()),
        superexec=superexec_command(*private),
        gateway=(sys.executable, "-m", "server.gateway", root),
        enrolment=(sys.executable, "-m", "server.enrolment_process", root),
    )


class Daemon:
    """Runs a coordinator's processes until it is told to stop."""

    def __init__(
        self,
        home: CoordinatorHome,
        settings: HomeSettings,
        programs: Programs | None = None,
        link: SuperLink | None = None,
    ) -> None:
        """Of a home that was set up; ``link`` is to SuperLink. PublicAddressError, BadFileError."""
        require_private("coordinator.private_host", settings.private_host)
        read_identity(home.identity_file)
        self._home, self._settings = home, settings
        self._programs = programs or coordinator_programs(home, settings)
        self._link = link or SuperLink(settings.private_host, settings.superlink_port)
        self._audit = AuditLog(home.audit_file).append
        self._nodes = Nodes(home, self._link, self._audit)
        self._trouble: dict[str, str] = {}

    def run(self, stop: threading.Event, on_up: Callable[[], None] = lambda: None) -> None:
        """Keep the processes running; end them in order and return once ``stop`` is set.

        ``on_up`` is called once all of them are ready.

        Raises:
            AlreadyRunningError: Another daemon runs here.
            ChildNotReadyError: A process does not come up.
            OSError: The port for health and metrics is taken.
        """
        self._home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            hold(self._home.run / LOCK_NAME),
            Supervisor(self._home.logs, status_file=self._home.run / PROCESSES_NAME) as supervisor,
            self._monitoring(supervisor),
        ):
            self._start(supervisor)
            self._audit("up", processes=tuple(row.name for row in supervisor.status()))
            logger.info("up: sites reach the gateway on port %d", self._settings.gateway_port)
            on_up()
            self._keep(stop)
            self._end(supervisor)
            self._audit("down")
        self._link.close()

    def _monitoring(self, supervisor: Supervisor) -> Monitoring:
        registry = CollectorRegistry()
        registry.register(ChildrenCollector(supervisor.status))
        registry.register(CoordinatorCollector(self._home, self._settings.consortium))
        return Monitoring(
            self._settings.private_host,
            self._settings.health_port,
            failing=lambda: self._failing(supervisor),
            registry=registry,
        )

    def _failing(self, supervisor: Supervisor) -> Mapping[str, str]:
        rows = supervisor.status()
        missing = {SUPERLINK, SUPEREXEC, GATEWAY, ENROLMENT} - {row.name for row in rows}
        refused = {f"node of {site}": words for site, words in self._nodes.problems().items()}
        return {
            **dict.fromkeys(sorted(missing), "not started yet"),
            **failing_children(rows),
            **refused,
            **self._trouble,
        }

    def _start(self, supervisor: Supervisor) -> None:
        is_old = self._home.state_file.exists()
        self._start_superlink(supervisor)
        if is_old:
            self._begin_anew(supervisor)
        self._nodes.sync()
        bind, settings = self._settings.bind, self._settings
        for name, command, ready in (
            (SUPEREXEC, self._programs.superexec, None),
            (ENROLMENT, self._programs.enrolment, lambda: _listens(bind, settings.enrolment_port)),
            (GATEWAY, self._programs.gateway, lambda: _listens(bind, settings.gateway_port)),
        ):
            supervisor.start(self._spec(name, command, ready))
        for name in (SUPEREXEC, ENROLMENT, GATEWAY):
            supervisor.wait_ready(name, START_S)

    def _begin_anew(self, supervisor: Supervisor) -> None:
        """Drop SuperLink's database unless a run is at work; a node is registered again, a key may return."""
        before = state_bytes(self._home)
        at_work = self._link.unfinished_runs()
        if at_work:
            logger.info("SuperLink's database stays: %d runs are at work", len(at_work))
            return
        supervisor.stop(SUPERLINK, grace_s=STOP_S)
        for path in self._home.root.glob(f"{self._home.state_file.name}*"):
            path.unlink()
        logger.info("SuperLink's database begins anew: %d bytes freed", before)
        self._audit("state-begun-anew", freed_bytes=before)
        self._start_superlink(supervisor)

    def _start_superlink(self, supervisor: Supervisor) -> None:
        supervisor.start(self._spec(SUPERLINK, self._programs.superlink, self._link.is_healthy))
        supervisor.wait_ready(SUPERLINK, START_S)

    def _keep(self, stop: threading.Event) -> None:
        """Look after the nodes until told to stop."""
        seen, look_at = self._sites_version(), 0.0
        while not stop.wait(TICK_S):
            version, now = self._sites_version(), time.monotonic()
            if version == seen and now < look_at:
                continue
            seen, look_at = version, now + LOOK_EVERY_S
            self._sync()

    def _sync(self) -> None:
        try:
            self._nodes.sync()
            self._trouble = {}
        except SuperLinkError as error:
            # It is being started again; the next look may find it.
            self._trouble = {"nodes": str(error)}
            logger.warning("%s", error)
        except FederationError as error:
            self._trouble = {"sites": str(error)}
            logger.error("%s", error)

    def _sites_version(self) -> tuple[tuple[str, int], ...]:
        """What changes whenever a site enrols, renews or is revoked."""
        paths = sorted(self._home.sites.glob("*.json"))
        return tuple((path.name, path.stat().st_mtime_ns) for path in paths)

    def _end(self, supervisor: Supervisor) -> None:
        """First the way in; then runs, which have time to close their journals; SuperLink last."""
        for name in (GATEWAY, ENROLMENT, SUPEREXEC):
            supervisor.stop(name, grace_s=STOP_S)
        try:
            for run in self._link.unfinished_runs():
                self._link.stop_run(run.flower_id)
                logger.info("Flower's run %d was stopped; `resume` goes on with it", run.flower_id)
        except SuperLinkError as error:
            logger.warning("%s", error)

    def _spec(self, name: str, command: tuple[str, ...], ready: Callable[[], bool] | None) -> ChildSpec:
        return ChildSpec(
            name=name,
            command=command,
            environment=flower_environment(self._flower_home(name)),
            cwd=self._home.root.resolve(),
            restart=RESTART,
            ready=ready,
        )

    def _flower_home(self, name: str) -> Path:
        path = self._home.run.resolve() / "flower" / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path


def _listens(bind: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError:
        return False
    return True
