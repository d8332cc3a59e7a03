"""What we rely upon in Flower, each in a test of its own, so that a new version is found out here.

One SuperLink serves all of them. Its ServerApp and ClientApps are ``tests/flower/probe.py``; nodes that need
no app of their own speak the Fleet interface from this process.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common.certificates import certificate_pem, key_pem, loopback_certificate, new_key
from common.errors import SuperLinkError
from common.flower import QUIET
from common.ids import SiteId
from server.gateway_rules import CLOSED, FIELD_1, NODE_KEY_HEADER
from server.grid import ERRORS
from server.superlink import (
    COMPLETED,
    SuperLink,
    flower_environment,
    node_key_pem,
    reach_directly,
    superexec_command,
    superlink_command,
)
from tests.flower.deployment import BIN, HOST, free_port, missing_scripts
from tests.flower.processes import Processes

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Array
from flwr.cli.build import build_fab_from_files
from flwr.common import constant as flower_constants
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore import telemetry, update_check
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.fab import Fab
from flwr.supercore.superexec import run_superexec
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime import run_clientapp

pytestmark = pytest.mark.skipif(bool(missing_scripts()), reason=f"not installed: {missing_scripts()}")
PROBE = Path(__file__).with_name("probe.py")
BOUND_S = 90.0
# SuperLink's own number in a message.
SUPERLINK_NODE = 1
REAL = SiteId("real")
# What SuperNode starts for a task: writes its name down, and does nothing of what it was asked for.
STAND_IN = '#!/bin/sh\necho "${0##*/}" >> "$STAND_IN_LOG"\n'


@dataclass(frozen=True)
class Flower:
    """A running SuperLink with a SuperExec."""

    folder: Path
    link: SuperLink
    processes: Processes
    port: int

    def fleet(self, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
        """What a SuperNode with this key says to SuperLink."""
        auth = NodeAuthHttpInterceptor(key, key.public_key())
        return FleetHttpClient.from_server_address(
            f"{HOST}:{self.port}", insecure=True, root_certificates=None, interceptors=[auth]
        )

    def take_one_and_leave(self, key: ec.EllipticCurvePrivateKey, number: int) -> None:
        """Pull a message and say goodbye without an answer to it."""
        deadline, client = time.monotonic() + BOUND_S, self.fleet(key)
        while not client.PullMessages(PullMessagesRequest(node=Node(node_id=number))).messages_list:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        client.DeactivateNode(DeactivateNodeRequest(node_id=number))

    def activate(self, key: ec.EllipticCurvePrivateKey) -> int:
        request = ActivateNodeRequest(public_key=node_key_pem(openssh(key)), heartbeat_interval=30)
        return int(self.fleet(key).ActivateNode(request).node_id)


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder, port = tmp_path_factory.mktemp("flower"), free_port()
    reach_directly(HOST)
    processes, link = Processes(folder / "logs"), SuperLink(HOST, port)
    environment = flower_environment(folder / "home")
    commands = {
        "superlink": superlink_command(HOST, port, folder / "state.db"),
        "superexec": superexec_command(HOST, port),
    }
    try:
        for name, command in commands.items():
            processes.start(name, command, folder=folder, environment=environment)
            processes.wait_for(link.is_healthy, "health", of="superlink", timeout_s=BOUND_S)
        yield Flower(folder, link, processes, port)
    finally:
        link.close()
        processes.close()


@pytest.fixture(scope="module")
def codeless(flower: Flower) -> int:
    """A run of the bundle without code, with a plan that is none."""
    return flower.link.start_run({"plan": "no plan", "run": "codeless"})


@pytest.fixture(scope="module")
def supernode(flower: Flower) -> Iterator[int]:
    """A real SuperNode behind TLS, its programs stand-ins; its number."""
    key, folder = ec.generate_private_key(ec.SECP384R1()), flower.folder
    number = flower.link.register_node(openssh(key), REAL)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (folder / "node.key").write_bytes(private)
    stand_ins = folder / "bin"
    stand_ins.mkdir()
    for name in TASK_TYPE_TO_COMMAND.values():
        (stand_ins / name).write_text(STAND_IN)
        (stand_ins / name).chmod(stat.S_IRWXU)
    with tls_in_front_of(flower.port, folder) as port:
        environment = flower_environment(folder / "node-home")
        flower.processes.start(
            "supernode",
            (
                *(str(BIN / "flower-supernode"), "--superlink", f"{HOST}:{port}"),
                *("--auth-supernode-private-key", str(folder / "node.key")),
                *("--root-certificates", str(folder / "loopback.crt")),
                *("--host", HOST, "--port", str(free_port())),
            ),
            folder=folder,
            environment={
                **environment,
                "PATH": f"{stand_ins}{os.pathsep}{environment['PATH']}",
                "STAND_IN_LOG": str(folder / "started.txt"),
            },
        )
        wait_for(lambda: any(node.online and node.site == REAL for node in flower.link.list_nodes()))
        yield number


@pytest.fixture(scope="module")
def probed(flower: Flower, supernode: int) -> dict[str, Any]:
    """What a ServerApp saw of a real node, and of others that do not answer, each for another reason."""
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("quiet", "gone", "absent")}
    nodes = {name: flower.link.register_node(openssh(key), SiteId(name)) for name, key in keys.items()}
    for name in ("quiet", "gone"):
        assert flower.activate(keys[name]) == nodes[name]
    leaver = threading.Thread(target=flower.take_one_and_leave, args=(keys["gone"], nodes["gone"]))
    leaver.start()
    out, content = flower.folder / "probe.json", probe_fab()
    config = {"out": str(out), "started": str(flower.folder / "started.txt")}
    request = StartRunRequest(
        fab=fab_to_proto(Fab("", content, {})),
        override_config=user_config_to_proto({**config, "nodes": json.dumps({**nodes, "real": supernode})}),
    )
    run = flower.link._client.StartRun(request).run_id
    wait_for(lambda: flower.link.run_status(run).over)
    leaver.join(BOUND_S)
    status = flower.link.run_status(run)
    assert status.status == COMPLETED, status.details
    return {"nodes": {**nodes, "real": supernode}, **json.loads(out.read_text())}


def test_a_bundle_without_code_runs_the_installed_server_app(flower: Flower, codeless: int) -> None:
    wait_for(lambda: flower.link.run_status(codeless).over)
    found = flower.link.run_status(codeless)
    assert (found.status, found.name) == ("finished:failed", "codeless")
    # Out of common.plan, by way of server.app: nothing of it was in the bundle. Flower passes the words on.
    assert "plan: expected JSON" in found.details


def test_the_runs_that_are_at_work_are_listed(flower: Flower, codeless: int) -> None:
    wait_for(lambda: flower.link.run_status(codeless).over)
    assert codeless not in {run.flower_id for run in flower.link.unfinished_runs()}
    with pytest.raises(SuperLinkError, match="could not ask for run 7"):
        flower.link.run_status(7)


def test_a_registered_node_keeps_its_number_and_its_name(flower: Flower) -> None:
    key = openssh(ec.generate_private_key(ec.SECP384R1()))
    number = flower.link.register_node(key, SiteId("berlin"))
    assert flower.link.register_node(key, SiteId("berlin")) == number
    found = {node.node_id: node for node in flower.link.list_nodes()}[number]
    assert (found.site, found.online, found.last_seen) == ("berlin", False, None)
    assert found.public_key == node_key_pem(key)


def test_an_unregistered_key_is_refused(flower: Flower) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        flower.activate(ec.generate_private_key(ec.SECP384R1()))
    assert refused.value.response.status_code == httpx.codes.PRECONDITION_FAILED


def test_a_node_speaks_for_itself_alone_even_without_the_flag_for_it(flower: Flower) -> None:
    keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(2)]
    numbers = [flower.link.register_node(openssh(key), SiteId(f"own-{n}")) for n, key in enumerate(keys)]
    flower.activate(keys[0])
    request = PullMessagesRequest(node=Node(node_id=numbers[0]))
    flower.fleet(keys[0]).PullMessages(request)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        flower.fleet(keys[1]).PullMessages(request)
    assert refused.value.response.status_code == httpx.codes.UNAUTHORIZED


def test_a_request_without_a_signature_is_refused(flower: Flower) -> None:
    bare = FleetHttpClient.from_server_address(f"{HOST}:{flower.port}", True, None, [])
    with pytest.raises(httpx.HTTPStatusError) as refused:
        bare.PullMessages(PullMessagesRequest(node=Node(node_id=1)))
    assert refused.value.response.status_code == httpx.codes.UNAUTHORIZED


def test_unregistering_takes_effect_at_once_and_the_key_never_comes_back(flower: Flower) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    number = flower.link.register_node(openssh(key), SiteId("leaving"))
    flower.activate(key)
    beat = SendNodeHeartbeatRequest(node=Node(node_id=number), heartbeat_interval=30)
    assert flower.fleet(key).SendNodeHeartbeat(beat).success
    flower.link.unregister_node(number)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        flower.fleet(key).SendNodeHeartbeat(beat)
    assert refused.value.response.status_code == httpx.codes.UNAUTHORIZED
    assert number not in {node.node_id for node in flower.link.list_nodes()}
    with pytest.raises(SuperLinkError, match="already in use"):
        flower.link.register_node(openssh(key), SiteId("leaving"))


def test_a_node_that_is_still_taken_for_online_cannot_come_back_yet(flower: Flower) -> None:
    # A SuperNode that was killed has to wait for its last heartbeat to be over, up to 60 s.
    key = ec.generate_private_key(ec.SECP384R1())
    flower.link.register_node(openssh(key), SiteId("killed"))
    flower.activate(key)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        flower.activate(key)
    assert refused.value.response.status_code == httpx.codes.PRECONDITION_FAILED


def test_a_supernode_behind_tls_is_admitted_by_a_superlink_without(flower: Flower, supernode: int) -> None:
    (found,) = (node for node in flower.link.list_nodes() if node.site == REAL)
    assert (found.node_id, found.online) == (supernode, True)


def test_the_grid_has_the_numbers_of_nodes_that_are_online(probed: dict[str, Any]) -> None:
    nodes = probed["nodes"]
    assert {nodes["real"], nodes["quiet"]} <= set(probed["online"])
    assert nodes["absent"] not in probed["online"]


def test_a_message_lives_as_long_as_its_ttl(probed: dict[str, Any]) -> None:
    assert probed["quiet"]["ttl_s"] <= probed["quiet"]["seconds"] < probed["quiet"]["ttl_s"] + 10


def test_an_error_names_the_message_that_it_answers_and_comes_from_superlink(probed: dict[str, Any]) -> None:
    for name in ("quiet", "gone", "absent"):
        assert probed[name]["reply_to"] == probed[name]["message_id"]
        assert probed[name]["source"] == SUPERLINK_NODE


def test_errors_have_the_codes_that_the_log_puts_into_words(probed: dict[str, Any]) -> None:
    codes = flower_constants.ErrorCode
    named = {name: probed[name]["code"] for name in ("quiet", "gone", "absent")}
    assert named == {
        "quiet": codes.MESSAGE_UNAVAILABLE,
        "gone": codes.NODE_UNAVAILABLE,
        "absent": codes.MESSAGE_UNAVAILABLE,
    }
    assert set(ERRORS) == {codes.__dict__[name] for name in vars(codes) if name.isupper()} - {codes.UNKNOWN}


def test_a_supernode_starts_what_is_first_on_its_path_by_the_name_of_the_task(
    flower: Flower, probed: dict[str, Any]
) -> None:
    assert set((flower.folder / "started.txt").read_text().split()) == {"flwr-clientapp"}


def test_a_task_is_started_under_one_of_six_names() -> None:
    assert sorted(TASK_TYPE_TO_COMMAND.values()) == [
        *("flwr-agentapp", "flwr-clientapp", "flwr-connector"),
        *("flwr-model", "flwr-serverapp", "flwr-simulation"),
    ]


def test_a_supernode_asks_for_paths_under_v1_fleet_only() -> None:
    paths = set(re.findall(r'path="([^"]+)"', inspect.getsource(FleetHttpClient)))
    assert paths == {f"/v1/fleet/{name}" for name in (*FIELD_1, *CLOSED)}


def test_the_headers_of_a_node_have_their_names() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    request = httpx.Request("POST", "http://superlink/v1/fleet/pull-messages")
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(
        Context(request), lambda context: httpx.Response(200, request=context.request)
    )
    assert {name for name in request.headers if name.startswith("flwr-")} == {
        *(NODE_KEY_HEADER.decode(), "flwr-signature", "flwr-timestamp"),
    }


@dataclass(frozen=True)
class Context:
    """What an interceptor is handed."""

    request: httpx.Request


def test_an_array_travels_as_npy_of_one_axis() -> None:
    array = Array(np.arange(3, dtype="<f4"))
    assert array.stype == "numpy.ndarray"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"
    assert array.data.startswith(b"\x93NUMPY\x01\x00v\x00" + header)
    assert array.data.endswith(np.arange(3, dtype="<f4").tobytes())


def test_a_client_app_process_installs_and_loads_by_functions_that_can_be_replaced() -> None:
    names = set(inspect.signature(run_clientapp.run_clientapp).parameters)
    assert {"runtime_api_address", "run_once", "token", "insecure"} <= names | {"run_once"}
    source = inspect.getsource(run_clientapp.run_clientapp)
    for name in ("install_from_fab", "get_load_client_app_fn"):
        assert callable(getattr(run_clientapp, name))
        assert f"{name}(" in source


def test_superexec_reads_how_often_to_ask_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2")
    assert run_superexec._get_task_poll_interval() == 0.2
    assert flower_environment(Path("/nowhere"))["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "0.2"


def test_telemetry_and_update_check_are_off() -> None:
    assert QUIET == {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    assert 'FLWR_TELEMETRY_ENABLED == "1"' in inspect.getsource(telemetry)
    assert update_check.FLWR_DISABLE_UPDATE_CHECK == "FLWR_DISABLE_UPDATE_CHECK"


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def probe_fab() -> bytes:
    pyproject = """\
[project]
name = "probe"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "consilium"
[tool.flwr.app.components]
serverapp = "probe:server_app"
clientapp = "probe:client_app"
[tool.flwr.app.config]
out = ""
nodes = ""
started = ""
"""
    files = {"pyproject.toml": pyproject.encode(), "probe.py": PROBE.read_bytes()}
    return build_fab_from_files(files)[0]


class tls_in_front_of:
    """TLS on a port of the loopback, passed on to another, as a site's outbound proxy does for SuperNode."""

    def __init__(self, port: int, folder: Path) -> None:
        key = new_key()
        (folder / "loopback.key").write_bytes(key_pem(key))
        (folder / "loopback.crt").write_bytes(certificate_pem(loopback_certificate(key)))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "loopback.crt", folder / "loopback.key")
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        started = asyncio.start_server(self._serve, HOST, 0, ssl=self._context)
        server = asyncio.run_coroutine_threadsafe(started, self._loop).result(BOUND_S)
        return int(server.sockets[0].getsockname()[1])

    def __exit__(self, *error: object) -> None:
        self._loop.set_exception_handler(lambda loop, context: None)
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(BOUND_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, self._port)
        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
