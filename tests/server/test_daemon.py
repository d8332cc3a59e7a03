"""Tests of the coordinator's daemon, with stand-ins for its processes and for SuperLink."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from common.audit import read_entries
from common.daemon_lock import hold
from common.errors import AlreadyRunningError, BadFileError, PublicAddressError
from common.ids import SiteId
from common.processes import is_alive
from server.daemon import Daemon, Programs, coordinator_programs
from server.home import CoordinatorHome, HomeSettings
from server.site_records import revoke
from server.status import is_up, process_rows
from server.superlink import SuperLink
from tests.flower.deployment import free_port
from tests.server.homes import FakeLink, enrolled, made_home

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
BOUND_S = 20.0
BERLIN, PARIS = SiteId("berlin"), SiteId("paris")
NAMES = ["superlink", "superexec", "enrolment", "gateway"]
LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"


@dataclass
class Running:
    """A daemon in a thread."""

    home: CoordinatorHome
    settings: HomeSettings
    link: FakeLink
    stop: threading.Event
    thread: threading.Thread

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in process_rows(self.home)}

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.settings.health_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(BOUND_S)
        assert not self.thread.is_alive()


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    ports = [
        part
        for key in ("gateway", "enrolment", "superlink", "health")
        for part in (f"--{key}-port", str(free_port()))
    ]
    return made_home(tmp_path / "home", *ports)


@contextmanager
def up(home: CoordinatorHome, link: FakeLink | None = None) -> Iterator[Running]:
    settings, link = home.settings(), link or FakeLink()
    programs = Programs(
        superlink=("sleep", "60"),
        superexec=("sleep", "60"),
        gateway=(sys.executable, "-c", LISTEN.format(port=settings.gateway_port)),
        enrolment=(sys.executable, "-c", LISTEN.format(port=settings.enrolment_port)),
    )
    daemon, stop, ready = (
        Daemon(home, settings, programs, cast(SuperLink, link)),
        threading.Event(),
        threading.Event(),
    )
    thread = threading.Thread(target=daemon.run, args=(stop, ready.set))
    thread.start()
    running = Running(home, settings, link, stop, thread)
    try:
        assert ready.wait(BOUND_S)
        yield running
    finally:
        running.end()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events(home: CoordinatorHome) -> list[str]:
    return [entry.event for entry in read_entries(home.audit_file)]


def test_its_processes_run_until_it_ends_and_end_with_it(home: CoordinatorHome) -> None:
    with up(home) as running:
        assert is_up(home)
        assert list(running.rows()) == NAMES
        assert running.get("/health") == (200, '{"status": "ok", "failing": {}}\n')
        pids = [row["pid"] for row in running.rows().values()]
    assert not is_up(home)
    assert not any(is_alive(pid) for pid in pids)
    assert running.link.closed
    assert events(home)[1:] == ["up", "down"]


def test_a_process_that_dies_is_started_again(home: CoordinatorHome) -> None:
    with up(home) as running:
        killed = running.rows()["gateway"]["pid"]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: (row := running.rows()["gateway"])["restarts"] == 1 and row["state"] == "running")
        assert running.rows()["gateway"]["last_exit"] == "SIGKILL"


def test_health_names_what_fails(home: CoordinatorHome) -> None:
    with up(home) as running:
        running.link.away = True
        os.kill(running.rows()["superlink"]["pid"], signal.SIGKILL)
        wait_for(lambda: running.get("/health")[0] == 503)
        assert "superlink" in json.loads(running.get("/health")[1])["failing"]
        running.link.away = False
        wait_for(lambda: running.get("/health")[0] == 200)


def test_one_daemon_runs_in_a_home(home: CoordinatorHome) -> None:
    with hold(home.run / "coordinator.lock"), pytest.raises(AlreadyRunningError):
        Daemon(home, home.settings(), link=cast(SuperLink, FakeLink())).run(threading.Event())


def test_superlink_never_listens_on_a_public_address(home: CoordinatorHome) -> None:
    for address in ("0.0.0.0", "8.8.8.8"):
        with pytest.raises(PublicAddressError, match=r"coordinator\.private_host: expected a private"):
            Daemon(home, replace(home.settings(), private_host=address))
    settings = replace(home.settings(), private_host="10.0.0.7")
    command = coordinator_programs(home, settings).superlink
    assert command[command.index("--host") + 1] == "10.0.0.7"


def test_a_home_that_was_not_set_up_is_refused(home: CoordinatorHome) -> None:
    home.identity_file.unlink()
    with pytest.raises(BadFileError):
        Daemon(home, home.settings())


def test_a_site_that_enrols_is_registered_and_one_that_is_revoked_is_taken_out(home: CoordinatorHome) -> None:
    enrolled(home, BERLIN)
    with up(home) as running:
        assert [node.site for node in running.link.nodes.values()] == [BERLIN]
        enrolled(home, PARIS)
        wait_for(lambda: len(running.link.nodes) == 2)
        revoke(home, BERLIN)
        wait_for(lambda: [node.site for node in running.link.nodes.values()] == [PARIS])
        assert 'consilium_site_online{site="paris"} 0.0' in running.get("/metrics")[1]


def test_superlinks_database_begins_anew_unless_a_run_is_at_work(home: CoordinatorHome) -> None:
    home.state_file.write_bytes(bytes(1000))
    home.state_file.with_name("state.db-wal").write_bytes(bytes(500))
    link = FakeLink()
    link.start_run({"run": "run-1"})
    with up(home, link):
        assert home.state_file.stat().st_size == 1000
    # Its end has stopped the run: whoever wants it resumes it.
    assert link.runs[1].status == "finished:stopped"
    with up(home, link):
        assert not list(home.root.glob("state.db*"))
    (freed,) = (entry.facts for entry in read_entries(home.audit_file) if entry.event == "state-begun-anew")
    assert freed == {"freed_bytes": 1500}
