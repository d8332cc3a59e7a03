import logging
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from client.refusals import reply_or_refusal
from client.worker_link import LONGEST_SOCKET, Handler, attach, attached, detach, remote, serve
from common.adapter import Adapter, AdapterMode, AdapterSpec, ModuleShape, tensor_key
from common.errors import BadMessageError, FederationError, SettingsError
from common.ids import RoundId
from common.messages import Message, PrepareTask, Ready, Refusal, TrainTask
from common.wire import size_of, to_bytes
from tests.fakes import RUN, SITES, TRACK

SITE = SITES[0]
CANARY = "Anna Example, born 1980-02-03"
PLAN_DIGEST = "0" * 64
PREPARE = PrepareTask(run_id=RUN, track=TRACK, plan_digest=PLAN_DIGEST)
READY = Ready(run_id=RUN, track=TRACK, site_id=SITE)
TIMEOUT_S = 20.0

# A worker that says its task has come, and is then stuck in it.
STUCK_WORKER = """
import sys, time
from pathlib import Path
from client.worker_link import serve

def handle(task):
    Path(sys.argv[2]).touch()
    time.sleep(60)

serve(handle, Path(sys.argv[1]), site="site-a").wait_for_termination(60)
"""

Serve = Callable[[Handler], Path]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serve]:
    servers: list[grpc.Server] = []

    def start(handler: Handler) -> Path:
        servers.append(serve(handler, tmp_path / "worker", site=SITE))
        return tmp_path / "worker"

    yield start
    for server in servers:
        server.stop(0).wait(TIMEOUT_S)


@pytest.fixture
def here() -> Iterator[None]:
    yield
    detach(SITE)


def ask(path: Path, task: Message = PREPARE) -> Message:
    return remote(path, timeout_s=TIMEOUT_S)(task)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def large_task() -> TrainTask:
    shape = ModuleShape(name="q_proj", in_features=2_500_000, out_features=3)
    spec = AdapterSpec(mode=AdapterMode.FFA, rank=2, alpha=4.0, modules=(shape,))
    tensors = {
        tensor_key(shape, block): np.full(spec.shape(shape, block), 0.5, dtype=np.float32)
        for block in spec.blocks
    }
    return TrainTask(
        run_id=RUN,
        round_id=RoundId(1),
        track=TRACK,
        plan_digest=PLAN_DIGEST,
        adapter=Adapter(spec=spec, tensors=tensors),
        sum_id=1,
        members=SITES,
        envelopes={},
        bin_accuracy=None,
    )


def test_a_worker_is_attached_once_and_found_by_name(here: None) -> None:
    with pytest.raises(FederationError, match="no worker is running for site site-a"):
        attached(SITE)
    attach(SITE, lambda message: message)
    assert callable(attached(SITE))
    with pytest.raises(ValueError, match="Expected no worker for site site-a yet"):
        attach(SITE, lambda message: message)


def test_a_task_goes_through_the_socket_and_its_answer_comes_back(served: Serve) -> None:
    tasks: list[Message] = []
    assert ask(served(lambda task: tasks.append(task) or READY)) == READY
    assert tasks == [PREPARE]


def test_a_message_of_20_mb_passes_both_ways(served: Serve) -> None:
    task = large_task()
    assert size_of(task) > 20_000_000
    assert to_bytes(ask(served(lambda message: message), task)) == to_bytes(task)


def test_only_the_owner_can_reach_the_socket(served: Serve, tmp_path: Path) -> None:
    path = served(lambda message: READY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tmp_path.chmod(0o750)
    with pytest.raises(SettingsError, match="a folder that only its owner may enter, got mode 750"):
        serve(lambda message: READY, tmp_path / "another", site=SITE)


def test_a_missing_folder_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    server = serve(lambda message: READY, tmp_path / "new" / "worker", site=SITE)
    server.stop(0).wait(TIMEOUT_S)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_federation_error_comes_back_as_a_refusal_with_its_reason(served: Serve) -> None:
    def refuse(task: Message) -> Message:
        raise FederationError("the plan is not approved here")

    assert ask(served(refuse)) == Refusal(
        run_id=RUN, site_id=SITE, reason="the plan is not approved here", cause="failed"
    )


def test_no_text_of_an_unexpected_error_leaves_the_worker(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(task: Message) -> Message:
        raise ValueError(CANARY)

    with caplog.at_level(logging.ERROR):
        reply = ask(served(fail))
    reason = "the task failed with ValueError; see the site's log"
    assert reply == Refusal(run_id=RUN, site_id=SITE, reason=reason, cause="failed")
    assert CANARY in caplog.text


def test_an_answer_that_is_no_message_tells_nothing(served: Serve) -> None:
    path = served(lambda task: CANARY)  # type: ignore[arg-type, return-value]
    with pytest.raises(FederationError, match=r"worker failed \(UNKNOWN\); see the site's log") as caught:
        ask(path)
    assert CANARY not in str(caught.value)


def test_bytes_that_are_no_message_do_not_reach_the_worker(served: Serve) -> None:
    tasks: list[Message] = []
    path = served(lambda task: tasks.append(task) or READY)
    with grpc.insecure_channel(f"unix:{path}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/consilium.Worker/Handle")(b"no message", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert tasks == []


def test_an_answer_of_another_service_is_refused(tmp_path: Path) -> None:
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: b"no message")
    handlers = [grpc.method_handlers_generic_handler("consilium.Worker", {"Handle": method})]
    server = grpc.server(ThreadPoolExecutor(1), handlers=handlers)
    server.add_insecure_port(f"unix:{tmp_path / 'worker'}")
    server.start()
    with pytest.raises(BadMessageError):
        ask(tmp_path / "worker")
    server.stop(0).wait(TIMEOUT_S)


def test_a_worker_that_is_not_running_is_named_by_its_socket(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"the worker at .*/worker is not running"):
        ask(tmp_path / "worker")


def test_a_worker_that_dies_in_a_task_is_named_by_its_socket(tmp_path: Path) -> None:
    path, begun = tmp_path / "worker", tmp_path / "begun"
    process = subprocess.Popen([sys.executable, "-c", STUCK_WORKER, str(path), str(begun)])
    try:
        wait_for(path.exists)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, path)
            wait_for(begun.exists)
            process.kill()
            with pytest.raises(FederationError, match=r"ended before it answered"):
                answer.result(TIMEOUT_S)
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


def test_a_worker_that_takes_too_long_is_not_waited_for(served: Serve) -> None:
    end = threading.Event()

    def handle(task: Message) -> Message:
        end.wait(TIMEOUT_S)
        return READY

    path = served(handle)
    with pytest.raises(FederationError, match=r"did not answer within 0\.2 s"):
        remote(path, timeout_s=0.2)(PREPARE)
    end.set()
    assert ask(path) == READY


def test_the_socket_of_a_dead_worker_is_replaced(served: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "worker"))
    assert ask(served(lambda task: READY)) == READY


def test_the_socket_of_a_live_worker_is_refused(served: Serve) -> None:
    path = served(lambda task: READY)
    with pytest.raises(FederationError, match="another worker is listening there"):
        serve(lambda task: PREPARE, path, site=SITE)
    assert ask(path) == READY


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "worker").write_text("notes")
    with pytest.raises(FederationError, match="the file is no socket"):
        serve(lambda task: READY, tmp_path / "worker", site=SITE)
    assert (tmp_path / "worker").read_text() == "notes"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    with pytest.raises(FederationError, match=r"a worker cannot listen there \(NotADirectoryError\)"):
        serve(lambda task: READY, tmp_path / "file" / "new" / "worker", site=SITE)


def test_a_path_may_have_letters_that_a_uri_may_not(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#é?"
    server = serve(lambda task: READY, path, site=SITE)
    assert path.is_socket()
    assert ask(path) == READY
    server.stop(0).wait(TIMEOUT_S)


def test_a_path_longer_than_the_system_allows_is_refused() -> None:
    path = Path("/") / ("x" * LONGEST_SOCKET)
    with pytest.raises(SettingsError, match="a path of at most 100 bytes, got 101"):
        serve(lambda task: READY, path, site=SITE)
    with pytest.raises(SettingsError, match="a path of at most 100 bytes, got 101"):
        remote(path)


def test_concurrent_tasks_are_done_one_after_another(served: Serve) -> None:
    lock = threading.Lock()
    overlaps: list[Message] = []

    def handle(task: Message) -> Message:
        if not lock.acquire(blocking=False):
            overlaps.append(task)
            return READY
        time.sleep(0.05)
        lock.release()
        return READY

    path = served(handle)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: ask(path), range(4))) == [READY] * 4
    assert overlaps == []


def test_a_worker_that_is_away_says_no_no(tmp_path: Path) -> None:
    answer = reply_or_refusal(lambda: remote(tmp_path / "nobody.sock", timeout_s=1.0)(PREPARE), RUN, SITES[0])
    assert isinstance(answer, Refusal)
    assert answer.cause == "away"
