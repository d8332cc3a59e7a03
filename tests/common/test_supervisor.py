"""Tests of the supervisor, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import supervisor as module
from common.errors import BadFileError, ChildNotReadyError, SettingsError
from common.processes import is_alive
from common.supervisor import ChildSpec, Event, Restart, Supervisor, read_status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parents[2]
BOUND_S = 15.0
QUICK = Restart(first_s=0.05, most_s=0.2, reset_s=60.0)
SLEEP = ("sleep", "60")

KEEPER = """\
import os, sys, time
from pathlib import Path
from common.supervisor import ChildSpec, Supervisor
folder = Path(sys.argv[1])
Supervisor(folder / "logs").start(
    ChildSpec(
        name="parent", command=("sh", "-c", "setsid sleep 60 & echo $! $$; wait"),
        environment=dict(os.environ), cwd=folder,
    )
)
time.sleep(60)
"""


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, events: list[Event]) -> Iterator[Supervisor]:
    found = Supervisor(tmp_path / "logs", status_file=tmp_path / "processes.json", on_event=events.append)
    yield found
    found.close(grace_s=0.5)


def spec(folder: Path, *command: str, name: str = "child", **more: object) -> ChildSpec:
    keys = {"restart": QUICK, **more}
    return ChildSpec(name=name, command=command, environment=dict(os.environ), cwd=folder, **keys)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of(supervisor: Supervisor) -> int:
    supervisor.wait_ready("child", BOUND_S)
    pid = supervisor.status()[0].pid
    assert pid is not None
    return pid


def test_a_child_that_dies_is_started_again_after_a_pause_that_doubles_up_to_a_minute(
    tmp_path: Path, supervisor: Supervisor, events: list[Event]
) -> None:
    supervisor.start(spec(tmp_path, "sh", "-c", "exit 3"))
    wait_for(lambda: sum(event.what == "restarting" for event in events) >= 4)
    assert [event.pause_s for event in events if event.what == "restarting"][:4] == [0.05, 0.1, 0.2, 0.2]
    assert supervisor.status()[0].last_exit == "3"
    restart = Restart()
    assert [restart.pause_s(deaths) for deaths in (1, 2, 3, 6, 7, 8, 1000)] == [1, 2, 4, 32, 60, 60, 60]


def test_a_life_of_a_minute_makes_the_pause_short_again(
    tmp_path: Path, supervisor: Supervisor, events: list[Event]
) -> None:
    restart = Restart(first_s=0.05, most_s=10.0, reset_s=0.1)
    supervisor.start(spec(tmp_path, "sleep", "0.3", restart=restart))
    wait_for(lambda: sum(event.what == "restarting" for event in events) >= 3)
    assert {event.pause_s for event in events if event.what == "restarting"} == {0.05}


def test_a_killed_child_is_started_again_and_the_status_says_so(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.start(spec(tmp_path, *SLEEP))
    first = pid_of(supervisor)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: supervisor.status()[0].restarts == 1)
    assert pid_of(supervisor) != first
    wait_for(lambda: (found := read_status(tmp_path / "processes.json")) and found.rows[0].restarts == 1)
    status = read_status(tmp_path / "processes.json")
    assert status is not None and status.alive
    assert (status.rows[0].name, status.rows[0].last_exit) == ("child", "SIGKILL")


def test_what_a_child_leaves_behind_ends_before_the_child_is_started_again(
    tmp_path: Path, supervisor: Supervisor, events: list[Event]
) -> None:
    # In a session of its own, with another parent: only the mark finds it.
    supervisor.start(spec(tmp_path, "sh", "-c", "setsid sleep 60 & echo $!; sleep 0.2"))
    wait_for(lambda: any(event.what == "orphans" for event in events))
    orphan = int((tmp_path / "logs" / "child.log").read_text().split()[0])
    assert not is_alive(orphan)


def test_when_the_supervisor_is_killed_its_children_are_gone_and_what_these_started(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "parent.log"
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(tmp_path)], cwd=ROOT)
    try:
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
    finally:
        keeper.kill()
        keeper.wait()
    for pid in map(int, log.read_text().split()):
        wait_for(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]


def test_a_child_that_holds_more_memory_than_its_limit_is_ended_and_started_again(
    tmp_path: Path, supervisor: Supervisor, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMORY_EVERY_S", 0.2)
    # The descendant's memory counts.
    hungry = f"{sys.executable} -c 'import time; held = b\"1\" * 10**8; time.sleep(60)' & wait"
    supervisor.start(spec(tmp_path, "sh", "-c", hungry, memory_limit_mb=60))
    wait_for(lambda: any(event.what == "restarting" for event in events))
    memory = next(event for event in events if event.what == "memory")
    assert memory.count is not None and memory.count > 60
    assert "ended for memory" in memory.line()


def test_a_modest_child_is_left_alone(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMORY_EVERY_S", 0.1)
    supervisor.start(spec(tmp_path, *SLEEP, memory_limit_mb=60))
    first = pid_of(supervisor)
    wait_for(lambda: supervisor.status()[0].memory_mb > 0)
    assert pid_of(supervisor) == first


def test_a_child_is_ready_when_it_says_so(tmp_path: Path, supervisor: Supervisor) -> None:
    flag = tmp_path / "ready"
    supervisor.start(spec(tmp_path, *SLEEP, ready=flag.exists))
    with pytest.raises(ChildNotReadyError, match=r"child: not ready after 0.3 s; see .*child.log"):
        supervisor.wait_ready("child", 0.3)
    assert supervisor.status()[0].state == "starting"
    flag.touch()
    supervisor.wait_ready("child", BOUND_S)


def test_a_check_that_raises_is_not_ready(tmp_path: Path, supervisor: Supervisor) -> None:
    def ready() -> bool:
        # As a port where nothing listens does.
        raise ConnectionRefusedError

    supervisor.start(spec(tmp_path, *SLEEP, ready=ready))
    with pytest.raises(ChildNotReadyError):
        supervisor.wait_ready("child", 0.5)


def test_a_child_that_ignores_the_request_to_end_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(spec(tmp_path, "sh", "-c", "trap '' TERM; echo set; sleep 60 & wait; wait"))
    log = tmp_path / "logs" / "child.log"
    wait_for(lambda: log.exists() and log.read_text() == "set\n")
    pid = pid_of(supervisor)
    supervisor.stop("child", grace_s=0.2)
    assert not is_alive(pid)
    assert (supervisor.status()[0].state, supervisor.status()[0].last_exit) == ("stopped", "SIGKILL")


def test_what_a_child_started_has_as_long_to_end_as_the_child(tmp_path: Path, supervisor: Supervisor) -> None:
    slow = 'trap "sleep 0.5; echo ended; exit" TERM; echo set; while true; do sleep 0.05; done'
    supervisor.start(spec(tmp_path, "sh", "-c", f"sh -c '{slow}' & trap exit TERM; wait"))
    log = tmp_path / "logs" / "child.log"
    wait_for(lambda: log.exists() and log.read_text() == "set\n")
    supervisor.stop("child", grace_s=10.0)
    assert log.read_text().endswith("ended\n")


def test_a_stopped_child_may_be_started_anew_and_a_running_one_not(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.start(spec(tmp_path, *SLEEP))
    with pytest.raises(ValueError, match="without a running child"):
        supervisor.start(spec(tmp_path, *SLEEP))
    supervisor.stop("child")
    supervisor.start(spec(tmp_path, *SLEEP))
    pid_of(supervisor)


def test_a_restart_has_no_pause(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(spec(tmp_path, *SLEEP, restart=Restart(first_s=60.0)))
    first = pid_of(supervisor)
    supervisor.restart("child")
    wait_for(lambda: supervisor.status()[0].restarts == 1)
    assert pid_of(supervisor) != first


def test_a_child_without_restart_stays_ended(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start(spec(tmp_path, "true", restart=None))
    wait_for(lambda: supervisor.status()[0].state == "stopped")
    assert supervisor.status()[0].restarts == 0


def test_a_program_that_is_not_there_dies_and_does_not_take_the_supervisor_along(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.start(spec(tmp_path, "/nowhere/program"))
    supervisor.start(spec(tmp_path / "no-folder", *SLEEP, name="homeless"))
    wait_for(lambda: [row.last_exit for row in supervisor.status()] == ["127", "No such file or directory"])
    assert "/nowhere/program: No such file" in (tmp_path / "logs" / "child.log").read_text()


def test_logs_are_private_appended_to_and_rotated_by_size(
    tmp_path: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 20)
    supervisor.start(spec(tmp_path, "sh", "-c", "echo 0123456789; sleep 0.05"))
    log = tmp_path / "logs" / "child.log"
    older = tmp_path / "logs" / "child.log.1"
    wait_for(older.exists)
    assert older.read_text() == "0123456789\n" * 2
    assert (log.stat().st_mode & 0o777, older.stat().st_mode & 0o777) == (0o600, 0o600)


def test_closing_ends_all_and_a_listener_that_fails_stops_nothing(tmp_path: Path) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError(event.name)

    with Supervisor(tmp_path / "logs", on_event=fail) as supervisor:
        supervisor.start(spec(tmp_path, *SLEEP))
        pid = pid_of(supervisor)
    assert not is_alive(pid)
    with pytest.raises(ValueError, match="open supervisor"):
        supervisor.start(spec(tmp_path, *SLEEP))


def test_a_supervisor_ends_what_an_earlier_one_left(tmp_path: Path) -> None:
    left = subprocess.Popen(
        SLEEP, env={**os.environ, "CONSILIUM_SUPERVISED_BY": f"{tmp_path / 'logs'}/worker"}
    )
    Supervisor(tmp_path / "logs").close()
    assert left.wait(BOUND_S) == -signal.SIGKILL


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "supervisor": 1, "children": [{}]}']
)
def test_a_status_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "processes.json").write_text(content)
    with pytest.raises(BadFileError):
        read_status(tmp_path / "processes.json")
    assert read_status(tmp_path / "nothing.json") is None


def test_bad_specs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected a name and a command"):
        spec(tmp_path, name="../child")
    with pytest.raises(SettingsError, match="first_s: expected a number > 0"):
        Restart(first_s=0.0)
