import base64
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf import translation
from google.protobuf.descriptor import FieldDescriptor

from common.certificates import Authority
from common.enrolment_messages import read_node_key
from common.ids import SiteId
from server.gateway import main
from server.gateway_app import MOST_BODY_BYTES
from server.gateway_rules import CLOSED, FIELD_1, FLEET, NODE_KEY_HEADER, Sites, pem_of_node_key
from server.home import CoordinatorHome
from server.invitations import revoke_site
from server.site_records import site_record
from tests.network import (
    HOST,
    EnrolledSite,
    Upstream,
    coordinator,
    enrolled,
    resigned,
    running_gateway,
    running_upstream,
    trusting,
)

A, B = SiteId("site-a"), SiteId("site-b")
NODE = 7
HEARTBEAT = fleet_pb2.PullMessagesRequest(node=Node(node_id=NODE)).SerializeToString()


class World:
    """A gateway with two sites, and what is behind it."""

    def __init__(self, home: CoordinatorHome, upstream: Upstream, port: int, folder: Path) -> None:
        self.home, self.upstream, self.port, self.folder = home, upstream, port, folder
        self.a, self.b = enrolled(home, A, folder), enrolled(home, B, folder)

    def client(self, site: EnrolledSite | None = None, context: ssl.SSLContext | None = None) -> httpx.Client:
        verify = context or (site or self.a).context(self.home)
        return httpx.Client(base_url=f"https://{HOST}:{self.port}", verify=verify, trust_env=False)

    def activate(self, client: httpx.Client, site: EnrolledSite | None = None) -> None:
        own = site or self.a
        self.upstream.content = fleet_pb2.ActivateNodeResponse(node_id=NODE).SerializeToString()
        body = fleet_pb2.ActivateNodeRequest(public_key=own.node_pem, heartbeat_interval=30.0)
        answer = client.post("/v1/fleet/activate-node", content=body.SerializeToString(), headers=by(own))
        assert answer.status_code == 200, answer.text
        assert answer.content == self.upstream.content

    def pull(self, client: httpx.Client, site: EnrolledSite | None = None, body: bytes = HEARTBEAT):
        return client.post("/v1/fleet/pull-messages", content=body, headers=by(site or self.a))


def by(site: EnrolledSite) -> dict[str, str]:
    return {FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(site.node_pem).decode()}


def error_of(answer: httpx.Response) -> str:
    content = answer.json()
    assert list(content) == ["error"]
    return content["error"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = coordinator(tmp_path)
    with running_upstream() as upstream, running_gateway(home, upstream.port) as port:
        yield World(home, upstream, port, tmp_path)


def test_a_site_reaches_superlink_and_only_its_own_headers_go_along(world: World) -> None:
    world.upstream.headers = {"content-type": "application/x-protobuf", "x-more": "1"}
    with world.client() as client:
        world.activate(client)
        health = client.get("/health")
        extra = {"flwr-task-token": "x", "cookie": "y", "x-forwarded-for": "1.2.3.4", "flwr-timestamp": "now"}
        answer = client.post("/v1/fleet/pull-messages", content=HEARTBEAT, headers={**by(world.a), **extra})
    assert health.status_code == answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-protobuf"
    method, path, headers, body = world.upstream.got[-1]
    assert (method, path, body) == ("POST", "/v1/fleet/pull-messages", HEARTBEAT)
    assert headers["flwr-timestamp"] == "now"
    assert not {"flwr-task-token", "cookie", "x-forwarded-for"} & set(headers)
    assert [got[1] for got in world.upstream.got] == ["/v1/fleet/activate-node", "/health", path]


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_six_megabytes_pass_unchanged_both_ways(world: World, chunked: bool) -> None:
    big = bytes(range(256)) * (6 * 4096)
    body = message_pb2.PushObjectRequest(
        node=Node(node_id=NODE), run_id=1, object_id="a", object_content=big
    ).SerializeToString()
    with world.client() as client:
        world.activate(client)
        world.upstream.content = big[::-1]
        parts = iter([body[:10], body[10:], b""]) if chunked else body
        answer = client.post("/v1/fleet/push-object", content=parts, headers=by(world.a))
    assert answer.content == big[::-1]
    assert world.upstream.got[-1][3] == body


def test_without_a_client_certificate_nothing_is_answered(world: World) -> None:
    with (
        pytest.raises(httpx.TransportError, match="certificate required"),
        world.client(context=trusting(world.home)) as client,
    ):
        client.get("/health")
    assert not world.upstream.got


def test_a_certificate_of_another_authority_is_not_taken(world: World, tmp_path: Path) -> None:
    resigned(world.home, world.a, 9, Authority.create(tmp_path / "other", "rare"))
    with pytest.raises(httpx.TransportError, match="unknown ca"), world.client() as client:
        client.get("/health")
    assert not world.upstream.got


def test_a_certificate_that_has_ended_is_not_taken(world: World) -> None:
    resigned(world.home, world.a, -0.001)
    with pytest.raises(httpx.TransportError, match="certificate expired"), world.client() as client:
        client.get("/health")
    assert not world.upstream.got


def test_a_certificate_that_ends_while_its_connection_is_open_is_refused(world: World) -> None:
    from common.certificates import read_certificate

    certificate = read_certificate(world.a.certificate)
    authority = read_certificate(world.home.authority / "ca.crt")
    sites = Sites(world.home, authority)
    assert sites.site(certificate, certificate.not_valid_before_utc)[0] == A
    with pytest.raises(Exception, match="site-a: the certificate has ended; renew it"):
        sites.site(certificate, certificate.not_valid_after_utc)


def test_a_revocation_holds_on_an_open_connection_and_for_no_other_site(world: World) -> None:
    with world.client() as client, world.client(world.b) as other:
        assert client.get("/health").status_code == 200
        revoke_site(world.home, A)
        answer = client.get("/health")
        assert answer.status_code == 403
        assert error_of(answer) == "site-a: the certificate was revoked"
        assert other.get("/health").status_code == 200


def test_a_certificate_of_an_earlier_enrolment_or_of_no_record_is_refused(world: World) -> None:
    resigned(world.home, world.a, 9)
    with world.client() as client:
        answer = client.get("/health")
    assert error_of(answer) == "site-a: the certificate is of an earlier enrolment"
    (world.home.sites / "site-a.json").unlink()
    with world.client() as client:
        assert error_of(client.get("/health")) == "site-a is not enrolled here"


def test_without_a_readable_revocation_list_nobody_gets_in(world: World) -> None:
    (world.home.authority / "revoked.pem").write_text("none")
    with world.client() as client:
        answer = client.get("/health")
    assert answer.status_code == 503
    assert error_of(answer) == "the coordinator cannot read its own files"


NOT_FOR_SITES = [
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/runtime/pull-task"),
    ("POST", "/v1/fleet/../control/start-run"),
    ("POST", "/v1/fleet/%2e%2e/control/start-run"),
    ("POST", "/v1/fleet/pull-messages/../../control"),
    ("POST", "//v1/control/start-run"),
    ("POST", "//v1/fleet/pull-messages"),
    ("POST", "/v1//fleet/pull-messages"),
    ("POST", "/v1/%66leet/pull-messages"),
    ("POST", "/V1/FLEET/pull-messages"),
    ("POST", "/v1/fleet/pull-messages/"),
    ("POST", "/v1/fleet/"),
    ("POST", "/v1/fleet/something-new"),
    ("POST", "/v1/fleet/pull-messages?a=/v1/control"),
    ("POST", "/v1/fleet/pull-messages;/v1/control"),
    ("GET", "/health?a"),
    ("GET", "/health/"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "http://127.0.0.1/v1/control/start-run"),
]


def test_what_is_not_for_sites_is_refused_by_its_path(world: World) -> None:
    with world.client() as client:
        world.activate(client)
        for method, path in NOT_FOR_SITES:
            # As it is: httpx would take the dots out.
            raw = {"target": path.encode()}
            content = HEARTBEAT if method == "POST" else None
            answer = client.request(method, "/", content=content, headers=by(world.a), extensions=raw)
            assert answer.status_code == 403, path
            assert "not open to sites" in error_of(answer) or "expected no query" in error_of(answer)
    assert len(world.upstream.got) == 1


def test_a_site_cannot_register_a_node(world: World) -> None:
    with world.client() as client:
        for name in CLOSED:
            answer = client.post(f"/v1/fleet/{name}", content=b"", headers=by(world.a))
            assert answer.status_code == 403
            assert error_of(answer) == f"/v1/fleet/{name}: only the coordinator registers nodes"


def test_other_methods_are_refused(world: World) -> None:
    asked = [("GET", "/v1/fleet/pull-messages"), ("DELETE", "/health"), ("PUT", "/v1/fleet/get-run")]
    with world.client() as client:
        for method, path in asked:
            answer = client.request(method, path, headers=by(world.a))
            assert answer.status_code == 405
            assert f", got {method}" in error_of(answer)


def test_another_sites_node_key_does_not_pass_with_my_certificate(world: World) -> None:
    with world.client() as client:
        world.activate(client)
        stolen = world.pull(client, world.b)
        none = client.post("/v1/fleet/pull-messages", content=HEARTBEAT)
        both = client.post(
            "/v1/fleet/pull-messages",
            content=HEARTBEAT,
            headers=[*by(world.a).items(), *by(world.b).items()],
        )
    assert error_of(stolen) == "site-a: expected the node key that the site enrolled with"
    assert error_of(none) == "site-a: expected one node key, got 0"
    assert error_of(both) == "site-a: expected one node key, got 2"
    assert len(world.upstream.got) == 1


def test_a_body_that_speaks_for_another_node_is_never_whole_at_superlink(world: World) -> None:
    own, other = Node(node_id=NODE), Node(node_id=NODE + 1)
    others = fleet_pb2.PullMessagesRequest(node=other).SerializeToString()
    with world.client() as client:
        early = world.pull(client)
        world.activate(client)
        answers = [
            world.pull(client, body=others),
            # protobuf takes the last of two.
            world.pull(
                client, body=HEARTBEAT + fleet_pb2.PullMessagesRequest(node=other).SerializeToString()
            ),
            world.pull(client, body=HEARTBEAT + b"\x8a\x80\x00\x02\x08\x08"),
            world.pull(client, body=b""),
            world.pull(client, body=HEARTBEAT[:-1]),
            client.post(
                "/v1/fleet/activate-node",
                content=fleet_pb2.ActivateNodeRequest(public_key=world.b.node_pem).SerializeToString(),
                headers=by(world.a),
            ),
            client.post(
                "/v1/fleet/deactivate-node",
                content=fleet_pb2.DeactivateNodeRequest(node_id=other.node_id).SerializeToString(),
                headers=by(world.a),
            ),
        ]
        good = client.post(
            "/v1/fleet/deactivate-node",
            content=fleet_pb2.DeactivateNodeRequest(node_id=own.node_id).SerializeToString(),
            headers=by(world.a),
        )
    assert "was not activated" in error_of(early)
    assert [answer.status_code for answer in answers] == [403, 400, 400, 400, 400, 403, 403]
    assert error_of(answers[0]) == "site-a: pull-messages: speaks for another node than the site's"
    assert error_of(answers[1]) == "Bad message: expected one node"
    assert good.status_code == 200
    assert [got[1] for got in world.upstream.got] == ["/v1/fleet/activate-node", "/v1/fleet/deactivate-node"]


def test_a_gateway_that_starts_again_knows_the_nodes(world: World) -> None:
    with world.client() as client:
        world.activate(client)
    with running_gateway(world.home, world.upstream.port) as port:
        world.port = port
        with world.client() as client:
            assert world.pull(client).status_code == 200


def said(world: World, head: bytes) -> bytes:
    """The answer to bytes that no client would send."""
    with (
        socket.create_connection((HOST, world.port)) as plain,
        world.a.context(world.home).wrap_socket(plain, server_hostname=HOST) as wrapped,
    ):
        wrapped.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
        answer = bytearray()
        while part := wrapped.recv(65536):
            answer += part
    return bytes(answer)


def test_a_body_that_is_too_large_is_refused(world: World) -> None:
    key = b"flwr-public-key: " + base64.b64encode(world.a.node_pem) + b"\r\n"
    with world.client() as client:
        world.activate(client)
    answer = said(world, key + b"Content-Length: %d\r\n" % (MOST_BODY_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"expected a body of at most 67108864 bytes" in answer
    both = said(world, key + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n")
    assert both.startswith(b"HTTP/1.1 400 ")
    assert len(world.upstream.got) == 1


def test_a_superlink_that_is_down_gives_a_line_and_an_unhealthy_gateway(world: World, tmp_path: Path) -> None:
    with running_gateway(world.home, 1) as port:
        world.port = port
        with world.client() as client:
            answer = client.get("/health")
        status = json.loads((world.home.run / "gateway.json").read_text())
        address = f"http://{HOST}:{status['health_port']}"
        health = httpx.get(f"{address}/health", trust_env=False)
        metrics = httpx.get(f"{address}/metrics", trust_env=False).text
    assert answer.status_code == 502
    assert error_of(answer) == "SuperLink does not answer (ConnectError)"
    assert health.status_code == 503
    assert health.json()["failing"] == {"superlink": "SuperLink does not answer (ConnectError)"}
    assert 'consilium_gateway_refusals_total{reason="superlink",site="site-a"} 1.0' in metrics
    assert not (world.home.run / "gateway.json").exists()


def test_a_home_that_was_not_set_up_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 1
    assert "usage: python -m server.gateway HOME" in capfd.readouterr().err


def test_flowers_names_and_messages_are_those_that_the_gateway_relies_on(world: World) -> None:
    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == NODE_KEY_HEADER
    text = site_record(world.home, A).node_key
    assert pem_of_node_key(text) == public_key_to_bytes(read_node_key(text)) == world.a.node_pem
    tables: list[dict[tuple[str, str], type]] = [
        value
        for value in vars(translation).values()
        if isinstance(value, dict) and ("POST", "/v1/fleet/get-run") in value
    ]
    methods = {
        path.removeprefix(FLEET): request
        for (_, path), request in tables[0].items()
        if path.startswith(FLEET)
    }
    assert set(methods) == {*FIELD_1, *CLOSED}
    kinds: dict[str, Callable[[FieldDescriptor], bool]] = {
        "key": lambda field: field.name == "public_key" and field.type == FieldDescriptor.TYPE_BYTES,
        "number": lambda field: field.name == "node_id" and field.type == FieldDescriptor.TYPE_UINT64,
        "node": lambda field: field.message_type is Node.DESCRIPTOR,
    }
    for method, kind in FIELD_1.items():
        assert kinds[kind](methods[method].DESCRIPTOR.fields_by_number[1]), method
    assert [(field.number, field.name) for field in Node.DESCRIPTOR.fields] == [(1, "node_id")]
    answer = fleet_pb2.ActivateNodeResponse.DESCRIPTOR.fields_by_number[1]
    assert kinds["number"](answer)
