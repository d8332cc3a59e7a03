import inspect
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as flower

from client.guard import Guard
from client.guard_app import (
    CONSORTIUM,
    EXECUTABLES,
    OTHERS,
    SITE_HOME,
    Door,
    check_bundle,
    home_of,
    install_executables,
    main,
)
from client.home import ConsortiumHome
from client.worker_link import attached, serve
from common.audit import read_entries
from common.canonical import canonical_json
from common.errors import FederationError, ForeignCodeError, SettingsError
from common.flower import from_record, site_of_record, to_record
from common.messages import Message, PrepareTask, Ready, Refusal
from common.plan_package import PlanPackage
from common.wire import SCHEMA
from tests.client.homes import CONSORTIUM as TRIAL
from tests.client.homes import NOW, SITE, approve, make_home, packaged, site_settings
from tests.fakes import RUN, TRACK, tiny_plan
from tests.messages import example

COMPONENTS = '[tool.flwr.app.components]\nserverapp = "server.app:app"\nclientapp = "client.app:app"\n'
READY = Ready(run_id=RUN, track=TRACK, site_id=SITE)


def bundle(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


GOOD = bundle({"pyproject.toml": COMPONENTS, ".info/CONTENT": "pyproject.toml,00,8"})


def test_a_bundle_without_code_that_names_the_installed_apps_is_let_through() -> None:
    check_bundle(GOOD)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            bundle({"pyproject.toml": COMPONENTS, "client/app.py": "x"}),
            "expected no code in it, got 'client/app.py'",
        ),
        (
            bundle({"pyproject.toml": COMPONENTS, "../app.py": ""}),
            r"expected no code in it, got '\.\./app\.py'",
        ),
        (bundle({"pyproject.toml": COMPONENTS, "lib.so": ""}), r"got 'lib\.so'"),
        (bundle({".info/CONTENT": ""}), r"expected one pyproject\.toml"),
        (bundle({"pyproject.toml": COMPONENTS.replace("client.app", "evil.app")}), "expected the components"),
        (bundle({"pyproject.toml": COMPONENTS + 'agentapp = "server.app:app"\n'}), "expected the components"),
        (bundle({"pyproject.toml": "[tool.flwr.app]\n"}), r"it cannot be read \(KeyError\)"),
        (bundle({"pyproject.toml": "not toml"}), r"it cannot be read \(TOMLDecodeError\)"),
        (bundle({"pyproject.toml": "#" * 100_000}), "of at most 65536 bytes"),
        (b"no zip", r"it cannot be read \(BadZipFile\)"),
        (bytes(10 * 2**20 + 1), "expected at most 10485760 bytes"),
    ],
    ids=[
        "code",
        "outside",
        "library",
        "empty",
        "other",
        "more",
        "none",
        "text",
        "large-file",
        "no-zip",
        "large",
    ],
)
def test_any_other_bundle_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ForeignCodeError, match=reason):
        check_bundle(content)


def test_the_names_that_are_replaced_are_in_flower_with_these_signatures() -> None:
    def names(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert names(flower.install_from_fab) == names(Door.look_at)[1:]
    assert names(flower.get_load_client_app_fn) == names(Door.load)[1:]
    source = inspect.getsource(flower.run_clientapp)
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert "reply_message = client_app(message=message, context=context)" in source
    assert names(flower.run_clientapp) == [
        *("runtime_api_address", "token", "insecure", "certificates", "parent_pid"),
        "runtime_dependency_install",
    ]


def test_the_guard_has_every_name_that_flower_may_start() -> None:
    assert set(EXECUTABLES) == set(TASK_TYPE_TO_COMMAND.values())


@pytest.fixture(scope="module")
def package() -> PlanPackage:
    return packaged(tiny_plan())


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, package: PlanPackage) -> ConsortiumHome:
    # Not tmp_path, which has the test's name in it: a socket's path is short.
    tmp_path = tmp_path_factory.mktemp("h")
    # A short path: a socket lies below it.
    home = make_home(tmp_path, package.plan)
    settings = {"schema": 1, "site": SITE, "cohort": "adults", "data": str(tmp_path / "data")}
    bases = {"bases": {TRACK: str(tmp_path / "bases")}}
    (tmp_path / "site.yaml").write_text(canonical_json({**settings, "models": bases}))
    return home


def test_executables_are_the_owners_alone_and_may_be_written_again(home: ConsortiumHome) -> None:
    for paths in (install_executables(home), install_executables(home)):
        assert [path.name for path in paths] == list(EXECUTABLES)
        for path in paths:
            assert path.stat().st_mode & 0o777 == 0o700
            assert path.parent == home.executables


def run(
    home: ConsortiumHome, name: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    install_executables(home)
    return subprocess.run(
        [str(home.executables / name), *arguments],
        env={
            **{key: value for key, value in os.environ.items() if key not in (SITE_HOME, CONSORTIUM)},
            **environment,
        },
        cwd=home.root,
        capture_output=True,
        text=True,
        timeout=60,
    )


def own(home: ConsortiumHome) -> dict[str, str]:
    return {SITE_HOME: str(home.root.parent.parent), CONSORTIUM: home.name}


@pytest.mark.parametrize("name", OTHERS)
def test_a_task_of_another_type_runs_nothing(home: ConsortiumHome, name: str) -> None:
    done = run(home, name, "--token", "abc", "--insecure", **own(home))
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"consilium guard: a run asked for a task of type {name}; "
        "this site runs flwr-clientapp alone, its own"
    ]
    assert done.stdout == ""
    (entry,) = read_entries(home.audit_file)
    assert (entry.event, entry.facts["kind"], entry.facts["error"]) == ("refused", name, "TaskTypeRefused")


def test_without_the_daemons_environment_nothing_runs(home: ConsortiumHome) -> None:
    assert run(home, "flwr-serverapp").returncode == 3
    done = run(home, "flwr-clientapp", "--token", "abc", "--insecure")
    assert done.returncode == 1
    assert "CONSILIUM_SITE_HOME: expected what the site's daemon sets" in done.stderr
    with pytest.raises(SettingsError, match=CONSORTIUM):
        home_of({SITE_HOME: "somewhere"})


def test_a_process_whose_superexec_is_gone_ends(home: ConsortiumHome) -> None:
    done = run(home, "flwr-clientapp", "--token", "abc", "--insecure", "--parent-pid", "1", **own(home))
    assert done.returncode == 1
    assert "SuperExec, process 1, is gone" in done.stderr


def test_a_python_with_an_odd_path_is_started_through_the_shell(
    home: ConsortiumHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "a python"
    link.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(link))
    install_executables(home)
    text = (home.executables / "flwr-model").read_text()
    assert text.startswith("#!/bin/sh\nexec '")


def test_flower_is_started_without_torch_and_without_the_accountant(home: ConsortiumHome) -> None:
    program = (
        "import sys; import client.guard_app, common.flower, client.app, client.guard, client.settings;"
        # Of a task under privacy, whose steps are counted.
        "import client.budget;"
        "from flwr.supernode.runtime import run_clientapp;"
        "print(sorted({'torch', 'scipy', 'dp_accounting', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("run_id", 7), ("node_id", 1), ("task_id", 1)):
        monkeypatch.setattr(TaskIdentity, f"_{name}", value)


class Flower:
    """Stands in for SuperNode: what is pulled, and what is pushed back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, message: FlowerMessage, fab: bytes) -> None:
        self.replies: list[FlowerMessage] = []
        self.status: list[str] = []
        self.context = Context(
            run_id=7, node_id=1, node_config={"site": "another"}, state=RecordDict(), run_config={}
        )
        self.installed: list[str] = []
        task = SimpleNamespace(fab_id="a/b", fab_version="1.0.0", run_id=7)
        pulled = (message, self.context, task, SimpleNamespace(content=fab, hash_str="0" * 64))
        silent = SimpleNamespace(start=self._nothing, stop=self._nothing, is_running=False)
        for name, replacement in {
            "pull_task_input": lambda client: pulled,
            "push_message": lambda client, reply, context: self.replies.append(reply),
            "HeartbeatSender": lambda function: silent,
            "register_signal_handlers": self._nothing,
            "event": self._nothing,
            "install_app_dependencies": lambda *_, **__: self.installed.append("dependencies"),
            "flwr_exit": lambda code, event_type: self.status.append(str(code)),
            # Put back after the test, whatever the guard put there.
            "install_from_fab": flower.install_from_fab,
            "get_load_client_app_fn": flower.get_load_client_app_fn,
        }.items():
            monkeypatch.setattr(flower, name, replacement)

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    @property
    def reply(self) -> Message:
        (reply,) = self.replies
        return from_record(reply.content)


def flower_message(message: Message, kind: str = "train") -> FlowerMessage:
    return FlowerMessage(to_record(message), dst_node_id=1, message_type=kind, ttl=30.0)


@pytest.fixture
def asked(home: ConsortiumHome) -> Iterator[list[Message]]:
    found: list[Message] = []

    def handle(message: Message) -> Message:
        found.append(message)
        return READY

    server = serve(handle, home.worker_socket, site=SITE)
    yield found
    server.stop(0).wait(10)


def start(monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, *arguments: str) -> None:
    for key, value in own(home).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("client.guard_app._end_with_parent", lambda: None)
    token = ["--token", "ab" * 16, "--insecure", "--runtime-api-address", "127.0.0.1:9"]
    assert main("flwr-clientapp", [*token, *arguments]) == 0


@pytest.fixture
def prepare(package: PlanPackage) -> PrepareTask:
    return PrepareTask(run_id=RUN, track=TRACK, plan_digest=package.plan.digest())


def test_an_approved_task_reaches_the_worker_and_its_answer_goes_back(
    monkeypatch: pytest.MonkeyPatch,
    home: ConsortiumHome,
    package: PlanPackage,
    prepare: PrepareTask,
    asked: list[Message],
) -> None:
    approve(home, site_settings(home.root.parent.parent), package)
    supernode = Flower(monkeypatch, flower_message(prepare), GOOD)
    start(monkeypatch, home)
    assert supernode.reply == READY
    assert asked == [prepare]
    with pytest.raises(FederationError, match="no worker is running"):
        attached(SITE)
    # Not what the node was started with, let alone what a run says.
    assert supernode.context.node_config == {"site": SITE}


def test_no_package_is_installed_whatever_the_command_line_says(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, prepare: PrepareTask, asked: list[Message]
) -> None:
    supernode = Flower(monkeypatch, flower_message(prepare), GOOD)
    start(monkeypatch, home, "--allow-runtime-dependency-installation")
    assert supernode.installed == []
    assert isinstance(supernode.reply, Refusal)


def test_an_unapproved_plan_is_refused_and_the_worker_hears_nothing(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, prepare: PrepareTask, asked: list[Message]
) -> None:
    supernode = Flower(monkeypatch, flower_message(prepare), GOOD)
    start(monkeypatch, home)
    assert isinstance(supernode.reply, Refusal)
    assert (supernode.reply.run_id, supernode.reply.site_id) == (RUN, SITE)
    assert "is not approved here: approved by 0 of 1 people" in supernode.reply.reason
    assert asked == []
    (entry,) = read_entries(home.audit_file)
    assert (entry.facts["place"], entry.facts["error"]) == ("guard", "PlanNotApprovedError")


def test_a_bundle_with_code_is_refused_and_none_of_it_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
    home: ConsortiumHome,
    package: PlanPackage,
    prepare: PrepareTask,
    asked: list[Message],
    tmp_path: Path,
) -> None:
    approve(home, site_settings(home.root.parent.parent), package)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    evil = bundle({"pyproject.toml": COMPONENTS, "client/app.py": "raise SystemExit('owned')"})
    supernode = Flower(monkeypatch, flower_message(prepare), evil)
    start(monkeypatch, home)
    assert isinstance(supernode.reply, Refusal)
    assert supernode.reply.reason == (
        "the run's app bundle is refused: expected no code in it, got 'client/app.py'"
    )
    assert asked == []
    assert not (tmp_path / "flower").exists()
    (entry,) = read_entries(home.audit_file)
    assert (entry.facts["run"], entry.facts["error"]) == ("run-1", "ForeignCodeError")


def test_a_message_of_another_protocol_version_is_refused_with_its_version(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, prepare: PrepareTask, asked: list[Message]
) -> None:
    message = flower_message(prepare)
    head = message.content["head"]
    now, before = (f'"schema":{schema}' for schema in (SCHEMA, SCHEMA - 1))
    head["json"] = str(head["json"]).replace(now, before)  # type: ignore[index, call-overload]
    supernode = Flower(monkeypatch, message, GOOD)
    start(monkeypatch, home)
    assert isinstance(supernode.reply, Refusal)
    assert "schema" in supernode.reply.reason
    assert asked == []
    (entry,) = read_entries(home.audit_file)
    assert entry.event == "refused"


def test_a_worker_that_is_not_running_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, package: PlanPackage, prepare: PrepareTask
) -> None:
    approve(home, site_settings(home.root.parent.parent), package)
    supernode = Flower(monkeypatch, flower_message(prepare), GOOD)
    start(monkeypatch, home)
    assert isinstance(supernode.reply, Refusal)
    assert supernode.reply.run_id == RUN
    assert "is not running" in supernode.reply.reason


def test_the_question_who_a_node_is_is_answered_from_the_home(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, prepare: PrepareTask
) -> None:
    supernode = Flower(monkeypatch, flower_message(prepare, "query"), GOOD)
    start(monkeypatch, home)
    (reply,) = supernode.replies
    assert site_of_record(reply.content) == SITE


def test_a_run_with_foreign_code_is_not_even_told_who_the_node_is(
    monkeypatch: pytest.MonkeyPatch, home: ConsortiumHome, prepare: PrepareTask
) -> None:
    supernode = Flower(monkeypatch, flower_message(prepare, "query"), b"no zip")
    start(monkeypatch, home)
    assert isinstance(supernode.reply, Refusal)


def test_tasks_of_several_processes_are_checked_alike(
    home: ConsortiumHome, package: PlanPackage, asked: list[Message]
) -> None:
    settings = site_settings(home.root.parent.parent)
    approve(home, settings, package)
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            guard = Guard(home, settings, lambda: NOW, place="guard")
            guard.check_task(example(PrepareTask, plan_digest=package.plan.digest(), run_id=f"run-{number}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    guard = Guard(home, settings, lambda: NOW)
    for number in range(8):
        assert guard._runs()[f"run-{number}"] == package.plan.digest()
    assert home.name == TRIAL
