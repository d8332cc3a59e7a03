import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client.enrolment import KIND, SCHEMA
from client.home import ConsortiumHome, SiteHome
from client.hosting import Activity
from client.keys import Keyring
from client.loaded_plan import LoadedPlan, Loader
from client.worker_link import remote
from client.worker_process import Reporter, WorkerProcess, is_healthy, main
from common.canonical import canonical_json
from common.durable import write_durable
from common.errors import FederationError, NotReadyError
from common.messages import Bundle, Message, PrepareTask, Ready, Refusal
from common.plan_package import PlanPackage
from tests.client.homes import CONSORTIUM, SITE, approve, make_home, packaged, site_settings
from tests.fakes import COORDINATOR, RUN, TRACK, FakeWork, tiny_plan
from tests.messages import example, train_task

PATIENCE_S = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def package() -> PlanPackage:
    return packaged(tiny_plan())


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, package: PlanPackage) -> ConsortiumHome:
    # Not tmp_path, which has the test's name in it: a socket's path is short.
    tmp_path = tmp_path_factory.mktemp("h")
    home = make_home(tmp_path, package.plan)
    home.root.chmod(0o700)
    bases = {"bases": {TRACK: str(tmp_path / "bases")}}
    content = {"schema": 1, "site": SITE, "cohort": "adults", "data": str(tmp_path / "data"), "models": bases}
    (tmp_path / "site.yaml").write_text(
        canonical_json({**content, "worker": {"device": "cpu", "threads": 1}})
    )
    Keyring.create(SiteHome(tmp_path), site_settings(tmp_path)).close()
    known = {
        "consortium": CONSORTIUM,
        "site": SITE,
        "enrolment": "127.0.0.1:1",
        "gateway": "127.0.0.1:2",
        "coordinator": COORDINATOR.public().key.hex(),
        "protocol": 1,
    }
    write_durable(home.coordinator_file, KIND, SCHEMA, known)
    return home


def status(home: ConsortiumHome) -> dict[str, Any]:
    return dict(json.loads(home.worker_status.read_text()))


def prepare(package: PlanPackage) -> PrepareTask:
    return PrepareTask(run_id=RUN, track=TRACK, plan_digest=package.plan.digest())


def worker_of(home: ConsortiumHome) -> WorkerProcess:
    root = SiteHome(home.root.parent.parent)
    return WorkerProcess(root, home, site_settings(root.root))


def test_the_program_serves_until_sigterm(home: ConsortiumHome, package: PlanPackage) -> None:
    root = str(home.root.parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "client.worker_process", root, home.name], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: process.poll() is not None or is_healthy(home.worker_socket))
        found = status(home)
        assert (found["state"], found["pid"], found["device"], found["plan"]) == (
            "idle",
            process.pid,
            "cpu",
            None,
        )
        assert found["rss_mb"] > 50
        reply = remote(home.worker_socket, timeout_s=PATIENCE_S)(prepare(package))
        assert isinstance(reply, Refusal)
        assert "is not approved here" in reply.reason
        wait_for(lambda: 'consilium_worker_refusals_total{cause="failed"} 1.0' in status(home)["metrics"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    assert status(home)["state"] == "stopping"
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["event"] for line in lines] == [
        "site-a: the worker listens, on cpu",
        "a message was answered",
        "the worker has stopped",
    ]


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (lambda home: home.coordinator_file.unlink(), "coordinator.json"),
        (lambda home: (home.root / "identity.json").unlink(), "not a readable identity"),
        (lambda home: (home.root.parent.parent / "keyring.json").unlink(), "keyring.json"),
        (lambda home: (home.root.parent.parent / "site.yaml").write_text("site: [1]"), "site"),
    ],
    ids=["coordinator", "identity", "keyring", "settings"],
)
def test_a_home_that_is_not_whole_is_one_line(
    home: ConsortiumHome,
    breaking: Callable[[ConsortiumHome], object],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    breaking(home)
    assert main([str(home.root.parent.parent), home.name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"].startswith("the worker cannot run: ")
    assert says in line


def test_a_home_of_another_site_is_refused(home: ConsortiumHome) -> None:
    root = home.root.parent.parent
    with pytest.raises(NotReadyError, match="site-b"):
        WorkerProcess(SiteHome(root), home, site_settings(root, site="site-b"))


def test_a_second_worker_is_refused_and_leaves_the_keys(home: ConsortiumHome) -> None:
    with worker_of(home):
        with pytest.raises(FederationError, match="another worker is listening there"):
            worker_of(home)
        assert is_healthy(home.worker_socket)
    assert not is_healthy(home.worker_socket)
    # Nobody holds them any more: they could be changed.
    root = home.root.parent.parent
    Keyring.open(SiteHome(root), site_settings(root), alone=True).close()


class Slow:
    """Hosts nothing: answers when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, *_: Any, **__: Any) -> Callable[[Message], Message]:
        return self.answer

    def answer(self, message: Message) -> Message:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        return Ready(run_id=RUN, track=TRACK, site_id=SITE)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow()
    monkeypatch.setattr("client.worker_process.Hosting", made)
    yield made
    made.go.set()


def test_the_worker_finishes_its_present_answer_before_it_stops(
    home: ConsortiumHome, package: PlanPackage, slow: Slow
) -> None:
    worker = worker_of(home)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(remote(home.worker_socket, timeout_s=PATIENCE_S), prepare(package))
        assert slow.begun.wait(PATIENCE_S)
        closing = pool.submit(worker.close)
        wait_for(lambda: status(home)["state"] == "stopping")
        assert not closing.done()
        slow.go.set()
        assert isinstance(answer.result(PATIENCE_S), Ready)
        closing.result(PATIENCE_S)


def test_health_is_told_while_a_task_is_worked_on(
    home: ConsortiumHome, package: PlanPackage, slow: Slow
) -> None:
    with worker_of(home), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(remote(home.worker_socket, timeout_s=PATIENCE_S), prepare(package))
        assert slow.begun.wait(PATIENCE_S)
        assert is_healthy(home.worker_socket, timeout_s=PATIENCE_S)
        slow.go.set()
        assert isinstance(answer.result(PATIENCE_S), Ready)


def test_messages_of_a_warm_plan_load_nothing_and_are_counted(
    home: ConsortiumHome, package: PlanPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(loader: Loader, asked: PlanPackage) -> LoadedPlan:
        loader.loads += 2
        work: Any = FakeWork(site=SITE, plan=asked.plan)
        return LoadedPlan(package=asked, workers={TRACK: work}, budget=None)

    monkeypatch.setattr(Loader, "load", load)
    approve(home, site_settings(home.root.parent.parent), package)
    with worker_of(home):
        ask = remote(home.worker_socket, timeout_s=PATIENCE_S)
        for _ in range(3):
            assert isinstance(ask(prepare(package)), Ready)
        refused = example(PrepareTask, plan_digest=package.plan.digest(), track="tissue_type")
        assert isinstance(ask(Bundle(parts=(prepare(package), refused))), Bundle)
        found = status(home)
    assert (found["state"], found["loads"], found["plans"]) == ("idle", 2, [package.plan.digest()])
    assert set(found["seconds"]) == {"prepare", "mask"}
    for line in (
        'consilium_worker_tasks_total{kind="PrepareTask"} 5.0',
        'consilium_worker_refusals_total{cause="failed"} 1.0',
        "consilium_worker_model_loads_total 2.0",
    ):
        assert line in found["metrics"]


def test_what_the_worker_is_at_stands_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.json"
    reporter = Reporter(file, "cpu")

    def read() -> dict[str, Any]:
        return dict(json.loads(file.read_text()))

    assert read()["state"] == "starting"
    reporter.say("idle")
    reporter.follow(Activity(state="training", plan="ab", run="run-1", track=TRACK, round=3, loads=2))
    found = read()
    assert (found["state"], found["plan"], found["round"]) == ("training", "ab", 3)
    reporter.follow(Activity(seconds={"train": 1.5, "mask": 0.5}, loads=2, plans=("ab",)))
    reporter.count(train_task(), example(Refusal, cause="budget"))
    found = read()
    assert (found["state"], found["round"], found["seconds"]) == ("idle", None, {"train": 1.5, "mask": 0.5})
    # Of a message of two parts, its parts together; the next message begins with nothing.
    reporter.follow(Activity(state="training", plan="ab", run="run-1", track=TRACK, round=3, loads=2))
    reporter.follow(Activity(seconds={"train": 1.0, "mask": 0.25}, loads=2))
    assert reporter.spent() == {"train_s": 2.5, "mask_s": 0.75}
    assert reporter.spent() == {}
    assert "consilium_worker_training_seconds_total 1.5" in found["metrics"]
    assert 'consilium_worker_tasks_total{kind="TrainTask"} 1.0' in found["metrics"]
    assert 'consilium_worker_refusals_total{cause="budget"} 1.0' in found["metrics"]
    assert file.stat().st_mode & 0o077 == 0
