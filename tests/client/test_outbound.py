import asyncio
import base64
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node

import client.outbound
from client.enrolment import enrol, needs_renewal, read_coordinator
from client.home import ConsortiumHome, SiteHome
from client.outbound import Answers, main, run
from common.certificates import Authority, certificate_pem, key_pem, make_csr, new_key, read_certificate
from common.ids import SiteId
from server.enrolment import serve
from server.gateway_rules import pem_of_node_key
from server.home import CoordinatorHome
from server.invitations import make_invitation, revoke_site
from server.site_records import add_certificate, site_record
from tests.network import (
    CONSORTIUM,
    HOST,
    WAIT_S,
    Upstream,
    coordinator,
    running_gateway,
    running_upstream,
    settings_of,
)

A = SiteId("site-a")
NODE = 7
PULL = fleet_pb2.PullMessagesRequest(node=Node(node_id=NODE)).SerializeToString()
PASSWORD = "do-not-log-me"


class World:
    """A coordinator with gateway and enrolment, and one site that enrolled."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.coordinator: CoordinatorHome = coordinator(folder)
        self.upstream: Upstream = stack.enter_context(running_upstream())
        self.gateway_port = stack.enter_context(running_gateway(self.coordinator, self.upstream.port))
        server, self.enrolment_port = serve(
            self.coordinator, settings_of(), lambda event, facts: None, port=0
        )
        stack.callback(lambda: server.stop(0).wait(WAIT_S))
        settings = settings_of(gateway_port=self.gateway_port, enrolment_port=self.enrolment_port)
        self.site: ConsortiumHome = SiteHome(folder / "site").consortium(CONSORTIUM)
        enrol(self.site, A, make_invitation(self.coordinator, settings, A))

    def client(self, port: int) -> httpx.Client:
        verify = ssl.create_default_context(cafile=str(self.site.loopback_certificate))
        return httpx.Client(base_url=f"https://{HOST}:{port}", verify=verify, trust_env=False, timeout=WAIT_S)

    def by(self) -> dict[str, str]:
        pem = pem_of_node_key(site_record(self.coordinator, A).node_key)
        return {"flwr-public-key": base64.b64encode(pem).decode()}

    def activate(self, client: httpx.Client) -> None:
        self.upstream.content = fleet_pb2.ActivateNodeResponse(node_id=NODE).SerializeToString()
        pem = pem_of_node_key(site_record(self.coordinator, A).node_key)
        body = fleet_pb2.ActivateNodeRequest(public_key=pem).SerializeToString()
        assert client.post("/v1/fleet/activate-node", content=body, headers=self.by()).status_code == 200

    def status(self) -> dict[str, object]:
        return json.loads(self.site.proxy_status.read_text())

    def resign(self, days: float, authority: Authority | None = None) -> None:
        """Another certificate in the site's place."""
        key = new_key()
        csr = make_csr(key, A)
        if authority is None and days > 0:
            signer = Authority.open(self.coordinator.authority)
            certificate = add_certificate(self.coordinator, signer, A, csr, days=days, protocol=3)
        else:
            certificate = (authority or Authority.open(self.coordinator.authority)).sign_site(csr, A, days)
        self.site.tls_key.write_bytes(key_pem(key))
        self.site.tls_certificate.write_bytes(certificate_pem(certificate))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path)


@contextmanager
def outbound(world: World, *, https_proxy: str | None = None, check_s: float = 3600.0) -> Iterator[int]:
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    ports: list[int] = []
    ready = threading.Event()
    failed: list[BaseException] = []

    def on_port(port: int) -> None:
        ports.append(port)
        ready.set()

    def work() -> None:
        try:
            loop.run_until_complete(
                run(world.site, stop=stop, https_proxy=https_proxy, check_s=check_s, on_port=on_port)
            )
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        assert not failed, failed
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        loop.close()
        assert not failed, failed


class Proxy:
    """A small HTTPS proxy: answers CONNECT, and carries."""

    def __init__(self, user: str = "") -> None:
        self.wanted = base64.b64encode(user.encode()).decode() if user else ""
        self.asked: list[str] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(near,), daemon=True).start()

    def _answer(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            part = near.recv(4096)
            if not part:
                return
            head += part
        lines = head.decode().split("\r\n")
        self.asked.append(lines[0])
        if self.wanted and f"Basic {self.wanted}" not in head.decode():
            near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            near.close()
            return
        host, _, port = lines[0].split()[1].rpartition(":")
        far = socket.create_connection((host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=self._carry, args=(near, far), daemon=True).start()
        self._carry(far, near)

    @staticmethod
    def _carry(source: socket.socket, to: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def no_proxy_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    # gRPC would go round the proxy to an address that these name.
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


def until(holds: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_six_megabytes_pass_both_ways_and_the_port_is_told(world: World) -> None:
    big = bytes(range(256)) * (6 * 4096)
    body = message_pb2.PushObjectRequest(node=Node(node_id=NODE), object_content=big).SerializeToString()
    with outbound(world) as port, world.client(port) as client:
        world.activate(client)
        world.upstream.content = big[::-1]
        answer = client.post("/v1/fleet/push-object", content=body, headers=world.by())
        assert answer.content == big[::-1]
        assert world.upstream.got[-1][3] == body
        assert world.status()["port"] == port
        assert world.status()["state"] == "connected"
    assert not world.site.proxy_status.exists()


def test_a_gateway_that_closes_behind_its_answer_is_heard_to_the_end(world: World) -> None:
    with outbound(world) as port, world.client(port) as client:
        for _ in range(3):
            answer = client.post("/v1/control/start-run", content=bytes(100_000))
            assert answer.status_code == 403
            assert "not open to sites" in answer.json()["error"]


def test_nothing_but_the_coordinators_authority_is_trusted(world: World, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", CONSORTIUM)
    world.site.authority_certificate.write_bytes(certificate_pem(other.certificate))
    with outbound(world) as port, world.client(port) as client:
        with pytest.raises(httpx.TransportError):
            client.get("/health")
        until(lambda: world.status()["state"] == "unreachable")
        assert "is not by the consortium's authority" in str(world.status()["reason"])
    assert not world.upstream.got


def test_a_refused_certificate_is_told_once_and_by_its_reason(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would be renewed at once.
    monkeypatch.setattr(client.outbound, "needs_renewal", lambda home: False)
    world.resign(-0.001)
    with outbound(world) as port, world.client(port) as supernode:
        for _ in range(3):
            with pytest.raises(httpx.TransportError):
                supernode.get("/health")
        until(lambda: world.status()["state"] == "refused")
        assert "it has ended; renew it" in str(world.status()["reason"])
        assert caplog.text.count("it has ended; renew it") == 1
        world.resign(9, Authority.create(tmp_path / "other", CONSORTIUM))
        with pytest.raises(httpx.TransportError):
            supernode.get("/health")
        until(lambda: "another authority signed it" in str(world.status()["reason"]))


def test_a_gateway_that_is_down_is_told_and_found_again(world: World) -> None:
    known = read_coordinator(world.site)
    port_of_nobody = socket.create_server((HOST, 0))
    from client.enrolment import KIND, SCHEMA
    from common.canonical import plain
    from common.durable import write_durable

    lost = replace(known, gateway=f"{HOST}:{port_of_nobody.getsockname()[1]}")
    port_of_nobody.close()
    write_durable(world.site.coordinator_file, KIND, SCHEMA, plain(lost))
    with outbound(world) as port, world.client(port) as client:
        with pytest.raises(httpx.TransportError):
            client.get("/health")
        until(lambda: world.status()["state"] == "unreachable")


def test_a_new_certificate_is_taken_up_without_a_restart(world: World) -> None:
    with outbound(world) as port:
        with world.client(port) as client:
            assert client.get("/health").status_code == 200
        world.resign(9)
        first = world.upstream.got[-1]
        with world.client(port) as client:
            assert client.get("/health").status_code == 200
        # Half a pair: the old one stays in use.
        world.site.tls_certificate.write_bytes(
            certificate_pem(
                Authority.open(world.coordinator.authority).sign_site(make_csr(new_key(), A), A, 5)
            )
        )
        with world.client(port) as client:
            assert client.get("/health").status_code == 200
    assert first[1] == "/health"


def test_a_certificate_is_renewed_before_its_end_twice(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    serials = []
    with caplog.at_level(logging.INFO, "client.outbound"):
        for _ in range(2):
            world.resign(0.001)
            assert needs_renewal(world.site, datetime.now(UTC) + timedelta(seconds=60))
            serials.append(read_certificate(world.site.tls_certificate).serial_number)
            with outbound(world, check_s=0.05) as port:
                until(lambda: read_certificate(world.site.tls_certificate).serial_number not in serials)
                with world.client(port) as client:
                    assert client.get("/health").status_code == 200
            serials.append(read_certificate(world.site.tls_certificate).serial_number)
    assert len(set(serials)) == 4
    assert caplog.text.count("the site's certificate was renewed") == 2
    assert not needs_renewal(world.site)


def test_a_revoked_site_is_not_renewed_and_gets_nowhere(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.resign(0.001)
    with outbound(world, check_s=3600) as port, world.client(port) as client:
        revoke_site(world.coordinator, A)
        assert "was revoked" in client.get("/health").json()["error"]
        until(lambda: world.status()["state"] == "refused")
        until(lambda: "the certificate was revoked" in str(world.status()["reason"]))
    with outbound(world, check_s=0.05):
        until(lambda: "could not be renewed" in caplog.text)
    assert "site-a was revoked at" in caplog.text


@pytest.mark.usefixtures("no_proxy_rules")
def test_everything_goes_through_the_hospitals_proxy_whose_password_is_in_no_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(f"user:{PASSWORD}")
    url = f"http://user:{PASSWORD}@{HOST}:{proxy.port}"
    world.resign(0.001)
    serial = read_certificate(world.site.tls_certificate).serial_number
    with caplog.at_level(logging.DEBUG), outbound(world, https_proxy=url, check_s=0.05) as port:
        until(lambda: read_certificate(world.site.tls_certificate).serial_number != serial)
        with world.client(port) as client:
            world.activate(client)
            world.upstream.content = bytes(1_000_000)
            answer = client.post("/v1/fleet/pull-messages", content=PULL, headers=world.by())
            assert len(answer.content) == 1_000_000
    proxy.close()
    targets = {line.split()[1] for line in proxy.asked}
    assert targets == {f"{HOST}:{world.gateway_port}", f"{HOST}:{world.enrolment_port}"}
    assert PASSWORD not in caplog.text


def test_a_proxy_that_refuses_is_named_without_its_password(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(f"user:{PASSWORD}")
    url = f"http://user:wrong-{PASSWORD}@{HOST}:{proxy.port}"
    with outbound(world, https_proxy=url) as port, world.client(port) as client:
        with pytest.raises(httpx.TransportError):
            client.get("/health")
        until(lambda: world.status()["state"] == "unreachable")
        reason = str(world.status()["reason"])
    proxy.close()
    assert reason == f"the hospital's proxy {HOST}:{proxy.port}: it asks for user and password"
    assert PASSWORD not in caplog.text


def test_a_connection_on_which_nothing_moves_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.outbound, "IDLE_S", 0.1)
    context = ssl.create_default_context(cafile=str(world.site.loopback_certificate))
    with (
        outbound(world) as port,
        socket.create_connection((HOST, port), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as wrapped,
    ):
        assert wrapped.recv(1) == b""


def test_a_site_that_has_not_enrolled_has_no_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "site.yaml").write_text("site: site-a\ncohort: all\ndata: data\n")
    assert main([str(tmp_path), CONSORTIUM]) == 1
    assert "coordinator.json: No such file or directory" in caplog.text
    assert main([str(tmp_path), "NOT A NAME"]) == 1


def test_answers_of_the_far_end_tell_whether_this_site_is_let_in() -> None:
    told: list[tuple[str, str]] = []
    answers = Answers(lambda state, reason: told.append((state, reason)))
    answers.follow(b"HTTP/1.1 200 OK\r\n\r\n{")
    answers.follow(b'{"error": "of an answer that is none of a refusal"}')
    answers.follow(b"HTTP/1.1 403 Forbidden\r\nx: y\r\n\r\n")
    answers.follow(b'{"error": "the certificate was revoked"}')
    answers.follow(b"HTTP/1.1 412 Precondition Failed\r\n\r\nno json")
    assert told == [
        ("connected", ""),
        ("refused", "this site's node is refused (HTTP 403)"),
        ("refused", "the certificate was revoked"),
        ("refused", "this site's node is refused (HTTP 412)"),
    ]
