"""The site's daemon over stand-ins for its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.app import NODE_CONFIG_WORKER as APP_NODE_CONFIG_WORKER
from client.daemon import (
    HOST,
    NODE_CONFIG_WORKER,
    PROXY,
    SUPERNODE,
    WORKER,
    Daemon,
    Programs,
    child_environment,
    site_programs,
)
from client.home import ConsortiumHome, SiteHome
from client.init_command import settings_text
from client.settings import SiteSettings, read_settings
from client.status import proxy_port
from common.errors import AlreadyRunningError
from common.supervisor import Row, read_status

ROOT = Path(__file__).parents[2]
BOUND_S = 20.0

# Each writes what the real one would, and then waits.
WORKER_PROGRAM = """
import json, logging, os, pathlib, socket, sys, time
from common.logs import configure
path, status, fails = map(pathlib.Path, sys.argv[1:]); path.unlink(missing_ok=True)
metrics = "# TYPE consilium_worker_tasks counter\\nconsilium_worker_tasks_total{kind=\\"TrainTask\\"} 2.0\\n"
configure()
if fails.exists():
    try:
        json.loads("[" + pathlib.Path(fails.read_text()).read_text())
    except ValueError as error:
        logging.exception("a task failed")
listening = socket.socket(socket.AF_UNIX); listening.bind(str(path)); listening.listen()
told = {"state": "idle", "pid": os.getpid(), "metrics": metrics, "secret": os.environ.get("SECRET")}
status.write_text(json.dumps(told))
time.sleep(600)
"""
PROXY_PROGRAM = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
told = {"gateway": "hub.example:443", "state": "connected", "reason": ""}
path.write_text(json.dumps({**told, "port": int(pathlib.Path(sys.argv[2]).read_text())}))
time.sleep(600)
"""
SUPERNODE_PROGRAM = """
import json, os, pathlib, signal, socket, subprocess, sys
proxy, node, seen = sys.argv[1:]
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), os._exit(0)))
listening = socket.socket(); listening.bind(("127.0.0.1", int(node))); listening.listen()
kept = ("PATH", "CONSILIUM_SITE_HOME", "CONSILIUM_CONSORTIUM", "FLWR_HOME", "SECRET")
told = {"proxy": proxy, "child": child.pid, "env": {key: os.environ.get(key) for key in kept}}
pathlib.Path(seen + ".new").write_text(json.dumps(told)); os.replace(seen + ".new", seen)
child.wait()
"""


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> SiteHome:
    # Not tmp_path, which has the test's name in it: a socket's path is short.
    tmp_path = tmp_path_factory.mktemp("d")
    found = SiteHome(tmp_path / "home")
    consortium = found.consortium("trial")
    consortium.root.mkdir(mode=0o700, parents=True)
    found.settings_file.write_text(
        settings_text(
            {"site": "site-a", "cohort": "patients", "data": str(tmp_path), "master_key": "env:SECRET"}
        )
    )
    return found


def settings_of(home: SiteHome, **more: object) -> SiteSettings:
    return read_settings(home.settings_file, {"worker": {"restart_after_s": 0.05}, **more})


def stand_ins(consortium: ConsortiumHome, port: Path) -> Programs:
    def program(code: str, *arguments: object) -> tuple[str, ...]:
        return (sys.executable, "-c", code, *map(str, arguments))

    return Programs(
        worker=program(
            WORKER_PROGRAM, consortium.worker_socket, consortium.worker_status, port.with_name("fails")
        ),
        proxy=program(PROXY_PROGRAM, consortium.proxy_status, port),
        supernode=lambda proxy, node: program(SUPERNODE_PROGRAM, proxy, node, consortium.run / "seen.json"),
    )


@contextmanager
def running(home: SiteHome, **more: object) -> Iterator[ConsortiumHome]:
    consortium, stop = home.consortium("trial"), threading.Event()
    port = home.root / "port"
    if not port.exists():
        port.write_text("4001")
    daemon = Daemon(home, consortium, settings_of(home, **more), stand_ins(consortium, port))
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        eventually(
            lambda: {row.state for row in rows(consortium)} == {"running"} and len(rows(consortium)) == 3
        )
        yield consortium
    finally:
        stop.set()
        thread.join()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rows(consortium: ConsortiumHome) -> tuple[Row, ...]:
    found = read_status(consortium.processes_status)
    return found.rows if found else ()


def pid_of(consortium: ConsortiumHome, name: str) -> int | None:
    return next((row.pid for row in rows(consortium) if row.name == name), None)


def get(consortium: ConsortiumHome, path: str) -> tuple[int, str]:
    port = json.loads(consortium.daemon_status.read_text())["port"]
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def seen(consortium: ConsortiumHome) -> dict[str, object]:
    path = consortium.run / "seen.json"
    eventually(path.is_file)
    return dict(json.loads(path.read_text()))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_processes_run_and_say_so_and_end_with_the_daemon(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "ab" * 32)
    with running(home) as consortium:
        told = seen(consortium)
        assert told["proxy"] == "4001"
        environment = dict(told["env"])  # type: ignore[call-overload]
        assert environment["PATH"].split(os.pathsep)[:2] == [
            str(consortium.executables),
            str(Path(sys.executable).parent),
        ]
        assert environment["CONSILIUM_SITE_HOME"] == str(home.root)
        assert environment["CONSILIUM_CONSORTIUM"] == "trial"
        assert environment["FLWR_HOME"] == str(consortium.run / "flower")
        # The master key is for the worker alone.
        assert environment["SECRET"] is None
        assert json.loads(consortium.worker_status.read_text())["secret"] == "ab" * 32
        status, text = get(consortium, "/health")
        # The stand-ins made no certificate.
        assert (status, json.loads(text)["failing"]) == (503, {"certificate": "missing"})
        metrics = get(consortium, "/metrics")[1]
        for name in (WORKER, PROXY, SUPERNODE):
            assert f'consilium_process_up{{process="{name}"}} 1.0' in metrics
        assert 'consilium_worker_tasks_total{kind="TrainTask"} 2.0' in metrics
        pids = [row.pid for row in rows(consortium)]
    assert all(pid is not None and is_gone(pid) for pid in pids)
    assert is_gone(int(str(told["child"])))
    assert not consortium.daemon_status.exists()


def test_supernode_is_started_again_behind_the_proxy_s_new_port(home: SiteHome) -> None:
    with running(home) as consortium:
        seen(consortium)
        (home.root / "port").write_text("4002")
        old = pid_of(consortium, SUPERNODE)
        os.kill(pid_of(consortium, PROXY) or 0, signal.SIGKILL)
        eventually(lambda: seen(consortium)["proxy"] == "4002")
        eventually(lambda: pid_of(consortium, SUPERNODE) not in (None, old))


def test_what_a_killed_supernode_leaves_behind_ends(home: SiteHome) -> None:
    with running(home) as consortium:
        orphan = int(str(seen(consortium)["child"]))
        os.kill(pid_of(consortium, SUPERNODE) or 0, signal.SIGKILL)
        eventually(lambda: is_gone(orphan))
        eventually(lambda: seen(consortium)["child"] != orphan)


def test_one_daemon_runs_for_a_consortium(home: SiteHome) -> None:
    with running(home) as consortium, pytest.raises(AlreadyRunningError, match="held by process"):
        Daemon(home, consortium, settings_of(home), stand_ins(consortium, home.root / "port")).run(
            threading.Event()
        )


def test_its_processes_end_with_it_however_it_ends(home: SiteHome) -> None:
    consortium = home.consortium("trial")
    (home.root / "port").write_text("4001")
    program = (
        "import sys, threading, pathlib\n"
        "from client.daemon import Daemon\nfrom client.home import SiteHome\n"
        "from tests.client.test_daemon import settings_of, stand_ins\n"
        "home = SiteHome(pathlib.Path(sys.argv[1])); trial = home.consortium('trial')\n"
        "programs = stand_ins(trial, home.root / 'port')\n"
        "Daemon(home, trial, settings_of(home), programs).run(threading.Event())\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program, str(home.root)], cwd=ROOT)
    try:
        eventually(lambda: len(rows(consortium)) == 3 and pid_of(consortium, SUPERNODE) is not None)
        pids = [row.pid for row in rows(consortium)] + [int(str(seen(consortium)["child"]))]
    finally:
        daemon.kill()
        daemon.wait()
    eventually(lambda: all(pid is None or is_gone(pid) for pid in pids))


def test_the_real_programs_are_named_as_the_others_expect_them(home: SiteHome) -> None:
    consortium = home.consortium("trial")
    programs = site_programs(home, consortium, settings_of(home))
    assert programs.worker[-4:] == ("-m", "client.worker_process", str(home.root), "trial")
    assert programs.proxy[-4:] == ("-m", "client.outbound", str(home.root), "trial")
    command = programs.supernode(4001, 4002)
    assert command[command.index("--superlink") + 1] == "127.0.0.1:4001"
    assert command[command.index("--port") + 1] == "4002"
    assert command[command.index("--root-certificates") + 1] == str(consortium.loopback_certificate)
    assert command[command.index("--auth-supernode-private-key") + 1] == str(consortium.node_key)
    assert command[-1] == f'site="site-a" worker="{consortium.worker_socket}"'
    assert NODE_CONFIG_WORKER == APP_NODE_CONFIG_WORKER


def test_bytecode_is_kept_and_no_other_setting_is_lost(home: SiteHome) -> None:
    inherited = {"PYTHONDONTWRITEBYTECODE": "1", "SECRET": "x", "LANG": "C.UTF-8", "PATH": "/bin"}
    got = child_environment(home, home.consortium("trial"), settings_of(home), inherited)
    assert "PYTHONDONTWRITEBYTECODE" not in got
    assert "SECRET" not in got
    assert got["LANG"] == "C.UTF-8"
    assert got["PATH"].endswith(":/bin")
    assert got["FLWR_TELEMETRY_ENABLED"] == "0"


@pytest.mark.parametrize("content", ["", "[]", '{"port": "80"}', '{"port": 0}', "{"])
def test_a_status_that_names_no_port_is_none(home: SiteHome, content: str) -> None:
    consortium = home.consortium("trial")
    consortium.run.mkdir()
    assert proxy_port(consortium) is None
    consortium.proxy_status.write_text(content)
    assert proxy_port(consortium) is None
