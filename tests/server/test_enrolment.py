import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.audit import read_entries
from common.certificates import make_csr, new_key, parse_certificate, site_of
from common.enrolment_messages import (
    MOST_REQUEST_BYTES,
    SERVICE,
    WINDOW_S,
    DirectoryRequest,
    EnrolAnswer,
    EnrolRequest,
    PackageRequest,
    RenewRequest,
    from_body,
    node_key_text,
    sign,
    to_body,
)
from common.errors import (
    BadCertificateError,
    BadMessageError,
    BadSignatureError,
    FederationError,
    ProtocolTooOldError,
    SettingsError,
    SiteEnrolledError,
    SiteRevokedError,
    StaleRequestError,
    TokenExpiredError,
    TokenSiteError,
    TokenUnknownError,
    TokenUsedError,
    TooManyAttemptsError,
    UnknownSiteError,
    UnsupportedSchemaError,
)
from common.ids import SiteId
from common.pki import Identity
from common.versions import SPOKEN, ProtocolRange
from server.enrolment import ADDRESSES_KEPT, BAD_TOKENS, BAD_TOKENS_S, Attempts, Enrolment, address_of, serve
from server.enrolment_process import STATUS_NAME, main, run
from server.home import CoordinatorHome
from server.invitations import make_invitation, revoke_site
from server.site_records import site_record
from server.tokens import Tokens
from tests.network import CONSORTIUM, HOST, WAIT_S, coordinator, enrolled, settings_of
from tests.server.homes import packaged

A, B = SiteId("site-a"), SiteId("site-b")
NOW = 1_800_000_000.0


class World:
    """An enrolment service whose clock stands still, and the keys of a site."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.home, self.now = home, NOW
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.service = Enrolment(
            home, settings_of(), lambda event, facts: self.events.append((event, facts)), lambda: self.now
        )
        self.identity, self.key = Identity.generate(A), new_key()
        self.node = ec.generate_private_key(ec.SECP384R1())

    def token(self, site: SiteId = A, hours: float = 1) -> str:
        now = datetime.fromtimestamp(self.now, UTC)
        return make_invitation(self.home, settings_of(token_hours=hours), site, now).token

    def request(self, token: str, **changed: Any) -> EnrolRequest:
        request = EnrolRequest(
            consortium=CONSORTIUM,
            site=A,
            token=token,
            csr=make_csr(self.key, A).decode(),
            identity=self.identity.public().key.hex(),
            node_key=node_key_text(self.node.public_key()),
            protocol=SPOKEN,
        )
        return replace(request, **changed).signed(self.identity, self.node)

    def enrol(self, token: str, **changed: Any) -> EnrolAnswer:
        return self.service.enrol(self.request(token, **changed), HOST)

    def renewal(self, **changed: Any) -> RenewRequest:
        request = RenewRequest(
            consortium=CONSORTIUM,
            site=A,
            at=int(self.now),
            csr=make_csr(new_key(), A).decode(),
            protocol=SPOKEN,
        )
        return sign(replace(request, **changed), self.identity)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(coordinator(tmp_path))


def test_a_site_with_a_token_gets_a_certificate_and_is_kept(world: World) -> None:
    answer = world.enrol(world.token())
    assert site_of(parse_certificate(answer.certificate.encode(), "certificate")) == A
    record = site_record(world.home, A)
    assert record.identity == world.identity.public().fingerprint()
    assert record.protocol == answer.protocol == SPOKEN.newest
    assert world.events == [("site_enrolled", {"site": A, "identity": record.identity, "address": HOST})]


def test_what_is_sent_twice_gets_the_same_certificate(world: World) -> None:
    token = world.token()
    first = world.enrol(token)
    # Signed anew, with the same keys.
    assert world.enrol(token) == first
    # A crash between token and record.
    (world.home.sites / "site-a.json").unlink()
    assert world.enrol(token) == first
    assert site_record(world.home, A).site == A


def other_node(world: World) -> dict[str, Any]:
    return {"node_key": node_key_text(ec.generate_private_key(ec.SECP384R1()).public_key())}


REFUSED: list[tuple[Callable[[World, str], Any], type[FederationError], str]] = [
    (lambda world, token: world.enrol("none"), TokenUnknownError, "site-a: the token is unknown"),
    (
        lambda world, token: world.enrol(world.token(B)),
        TokenSiteError,
        "site-a: the token was issued for another site",
    ),
    (
        lambda world, token: world.enrol(token, consortium="other"),
        BadMessageError,
        "expected consortium rare, got other",
    ),
    (
        lambda world, token: world.enrol(token, protocol=ProtocolRange(oldest=1, newest=SPOKEN.oldest - 1)),
        ProtocolTooOldError,
        "the oldest spoken here",
    ),
    (
        lambda world, token: world.enrol(token, protocol=ProtocolRange(oldest=99, newest=99)),
        UnsupportedSchemaError,
        "protocol: schema 99 is newer",
    ),
    (
        lambda world, token: world.enrol(token, identity=Identity.generate(A).public().key.hex()),
        BadSignatureError,
        "request to enrol of site-a",
    ),
    (
        lambda world, token: world.enrol(token, **other_node(world)),
        BadSignatureError,
        "node key of site-a",
    ),
    (
        lambda world, token: world.enrol(token, node_key="ssh-ed25519 AAAA"),
        SettingsError,
        "node_key: expected an OpenSSH public key, ECDSA P-384",
    ),
    (
        lambda world, token: world.enrol(
            token, node_key=node_key_text(ec.generate_private_key(ec.SECP256R1()).public_key())
        ),
        SettingsError,
        "node_key: expected an OpenSSH public key, ECDSA P-384",
    ),
    (
        lambda world, token: world.enrol(token, csr="none"),
        BadCertificateError,
        "expected a request as PEM",
    ),
    (
        lambda world, token: world.service.enrol(replace(world.request(token), site=B), HOST),
        BadSignatureError,
        "request to enrol of site-b",
    ),
    (
        lambda world, token: world.service.enrol(replace(world.request(token), signature="no"), HOST),
        BadSignatureError,
        "request to enrol of site-a",
    ),
]


@pytest.mark.parametrize(("ask", "error", "message"), REFUSED)
def test_a_request_that_is_refused_uses_no_token_and_enrols_nobody(
    world: World, ask: Callable[[World, str], Any], error: type[FederationError], message: str
) -> None:
    token = world.token()
    with pytest.raises(error, match=message) as caught:
        ask(world, token)
    assert token not in str(caught.value)
    assert not list(world.home.sites.glob("*.json"))
    assert world.enrol(token).certificate


def test_an_expired_token_is_refused(world: World) -> None:
    token = world.token()
    world.now += 3600
    with pytest.raises(TokenExpiredError, match="the token expired at"):
        world.enrol(token)


def test_a_token_used_twice_is_refused(world: World) -> None:
    token = world.token()
    world.enrol(token)
    world.identity = Identity.generate(A)
    with pytest.raises(TokenUsedError, match="was used already, with other keys"):
        world.enrol(token)
    assert site_record(world.home, A).identity != world.identity.public().fingerprint()


def test_two_tokens_enrol_a_site_once(world: World) -> None:
    first = world.token()
    second, _ = Tokens(world.home.tokens_file).issue(A, 1, datetime.fromtimestamp(world.now, UTC))
    world.enrol(first)
    world.key = new_key()
    with pytest.raises(SiteEnrolledError):
        world.enrol(second)


def test_a_revoked_site_comes_back_by_a_new_token_only(world: World) -> None:
    token = world.token()
    world.enrol(token)
    revoke_site(world.home, A)
    with pytest.raises(TokenUnknownError):
        world.enrol(token)
    with pytest.raises(SiteRevokedError):
        world.service.renew(world.renewal(), HOST)
    world.enrol(world.token())
    assert site_record(world.home, A).revoked is None


def test_bad_tokens_of_an_address_are_few(world: World) -> None:
    token = world.token()
    for _ in range(BAD_TOKENS):
        with pytest.raises(TokenUnknownError):
            world.enrol("guess")
    with pytest.raises(TooManyAttemptsError, match=r"127\.0\.0\.1: bad tokens: more than 10 in a while"):
        world.enrol(token)
    world.now += BAD_TOKENS_S
    assert world.enrol(token).certificate


def test_the_memory_of_bad_tokens_is_bounded() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(ADDRESSES_KEPT + 5):
        attempts.add(f"address-{number}")
    assert len(attempts._seen) == ADDRESSES_KEPT


def test_a_site_renews_twice_by_its_identity(world: World) -> None:
    first = world.enrol(world.token())
    second, third = (world.service.renew(world.renewal(), HOST) for _ in range(2))
    assert len({first.certificate, second.certificate, third.certificate}) == 3
    assert len(site_record(world.home, A).certificates) == 3
    assert [event for event, _ in world.events] == ["site_enrolled", "site_renewed", "site_renewed"]


def test_a_renewal_that_the_site_did_not_sign_now_is_refused(world: World) -> None:
    with pytest.raises(UnknownSiteError):
        world.service.renew(world.renewal(), HOST)
    world.enrol(world.token())
    for at in (NOW - WINDOW_S - 1, NOW + WINDOW_S + 1):
        with pytest.raises(StaleRequestError, match="time is 301 s from the clock here"):
            world.service.renew(world.renewal(at=int(at)), HOST)
    world.service.renew(world.renewal(at=int(NOW) - WINDOW_S), HOST)
    with pytest.raises(ProtocolTooOldError):
        world.service.renew(world.renewal(protocol=ProtocolRange(oldest=1, newest=1)), HOST)
    forged = replace(world.renewal(), csr=make_csr(new_key(), A).decode())
    with pytest.raises(BadSignatureError, match="RenewRequest of site-a"):
        world.service.renew(forged, HOST)
    # What was signed for one purpose is of no use for another.
    asked = DirectoryRequest(consortium=CONSORTIUM, site=A, at=int(NOW), signature=world.renewal().signature)
    with pytest.raises(BadSignatureError, match="DirectoryRequest of site-a"):
        world.service.directory(asked, HOST)


def test_the_directory_names_others_that_take_part_and_plans_on_offer(world: World) -> None:
    world.enrol(world.token())
    others = [enrolled(world.home, site, world.home.root.parent) for site in (B, SiteId("site-c"))]
    revoke_site(world.home, others[1].site)
    package = packaged()
    digest = package.plan.digest()
    world.home.packages.mkdir()
    (world.home.packages / f"{digest}.json").write_text(package.to_json())
    (world.home.packages / "notes.json").write_text("{}")
    asked = sign(DirectoryRequest(consortium=CONSORTIUM, site=A, at=int(NOW)), world.identity)
    answer = world.service.directory(asked, HOST)
    assert answer.identities == {B: others[0].identity.public().key.hex()}
    assert answer.packages == (digest,)
    wanted = PackageRequest(consortium=CONSORTIUM, site=A, at=int(NOW), digest=digest)
    assert world.service.package(sign(wanted, world.identity), HOST).package == package.to_json()
    missing = replace(wanted, digest="0" * 64)
    with pytest.raises(BadMessageError, match=f"no plan {'0' * 64} is on offer"):
        world.service.package(sign(missing, world.identity), HOST)
    with pytest.raises(SettingsError, match="digest"):
        replace(wanted, digest="../coordinator")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "a JSON object"),
        (b"{}", "schema"),
        (b'{"schema":1,"token":"secret","token":"secret"}', "every key once"),
        (b'{"schema":1,"token":"secret"}', "expected"),
    ],
)
def test_what_is_no_request_is_refused_and_not_quoted(body: bytes, reason: str) -> None:
    with pytest.raises(BadMessageError, match=reason) as caught:
        from_body(EnrolRequest, body)
    assert "secret" not in str(caught.value)


def test_a_request_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UnsupportedSchemaError):
        from_body(EnrolRequest, b'{"schema":2}')


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:3", "10.0.0.1"),
        ("ipv6:[2001:db8::1]:3", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::1%5D:3", "2001:db8::/64"),
        ("unix:", "unknown"),
    ],
)
def test_an_address_is_counted_without_its_port_and_ipv6_by_its_network(peer: str, address: str) -> None:
    assert address_of(peer) == address


@pytest.fixture
def served(world: World) -> Iterator[tuple[World, grpc.Channel]]:
    server, port = serve(
        world.home, settings_of(), lambda event, facts: world.events.append((event, facts)), port=0
    )
    credentials = grpc.ssl_channel_credentials((world.home.authority / "ca.crt").read_bytes())
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"{HOST}:{port}", credentials, options=options) as channel:
        yield world, channel
    server.stop(0).wait(WAIT_S)


def asked(channel: grpc.Channel, body: bytes, method: str = "Enrol") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=WAIT_S)
    return caught.value


def test_over_the_network_each_refusal_has_its_code_and_its_line(
    served: tuple[World, grpc.Channel],
) -> None:
    world, channel = served
    world.now = time.time()
    token = world.token()
    bad = asked(channel, to_body(world.request("none")))
    assert (bad.code(), bad.details()) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "site-a: the token is unknown; ask the coordinator for a new invitation",
    )
    broken = asked(channel, b"{")
    assert broken.code() is grpc.StatusCode.INVALID_ARGUMENT
    old = asked(channel, to_body(world.request(token, protocol=ProtocolRange(oldest=1, newest=1))))
    assert old.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "the oldest spoken here" in old.details()
    large = asked(channel, b" " * (MOST_REQUEST_BYTES + 1))
    assert large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert asked(channel, b"", "Other").code() is grpc.StatusCode.UNIMPLEMENTED
    body = channel.unary_unary(f"/{SERVICE}/Enrol")(to_body(world.request(token)), timeout=WAIT_S)
    assert from_body(EnrolAnswer, body).protocol == SPOKEN.newest
    (world.home.sites / "site-a.json").write_text("{")
    hidden = asked(channel, to_body(world.renewal()), "Renew")
    assert (hidden.code(), hidden.details()) == (
        grpc.StatusCode.INTERNAL,
        "failed; see the coordinator's log",
    )
    kinds = [event for event, _ in world.events]
    assert kinds.count("enrolment_refused") == 4
    assert token not in json.dumps([dict(facts) for _, facts in world.events])


def test_the_service_tells_its_health(served: tuple[World, grpc.Channel]) -> None:
    _, channel = served
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=WAIT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_process_writes_its_port_and_every_event(world: World) -> None:
    lines = "\n".join(
        f"{key}: {value}"
        for key, value in {
            "consortium": CONSORTIUM,
            "host": HOST,
            "bind": HOST,
            "enrolment_port": free_port(),
        }.items()
    )
    world.home.settings_file.write_text(lines)
    stop, status = threading.Event(), world.home.run / STATUS_NAME
    thread = threading.Thread(target=run, args=(world.home, stop), daemon=True)
    thread.start()
    try:
        while not status.exists():
            assert thread.is_alive()
            stop.wait(0.01)
        port = json.loads(status.read_text())["port"]
        credentials = grpc.ssl_channel_credentials((world.home.authority / "ca.crt").read_bytes())
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.secure_channel(f"{HOST}:{port}", credentials, options=options) as channel:
            asked(channel, to_body(world.request("none")))
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert not status.exists()
    (entry,) = read_entries(world.home.audit_file)
    assert entry.event == "enrolment_refused"
    assert entry.facts["what"] == "EnrolRequest"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_taken_port_and_a_home_that_was_not_set_up_are_refused(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FederationError, match="enrolment cannot listen there"):
            serve(world.home, settings_of(), lambda event, facts: None, port=port)
    assert main([]) == 2
    assert "usage: python -m server.enrolment_process HOME" in capfd.readouterr().err
