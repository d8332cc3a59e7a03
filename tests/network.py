"""A coordinator on loopback and sites that enrolled with it, for tests of the network."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import Request
from starlette.responses import Response

from common.certificates import certificate_pem, key_pem, make_csr, new_key, read_certificate
from common.enrolment_messages import EnrolRequest, node_key_text
from common.ids import SiteId
from common.pki import Identity
from common.versions import SPOKEN
from server.enrolment import Enrolment
from server.gateway import serve
from server.gateway_rules import pem_of_node_key
from server.home import CoordinatorHome, HomeSettings
from server.invitations import make_coordinator, make_invitation

CONSORTIUM = "rare"
HOST = "127.0.0.1"
WAIT_S = 20.0


def settings_of(**given: object) -> HomeSettings:
    """Settings on loopback; ports that matter are taken free by whoever listens."""
    settings = HomeSettings(
        consortium=CONSORTIUM,
        host=HOST,
        bind=HOST,
        gateway_port=1,
        enrolment_port=1,
        private_host=HOST,
        superlink_port=1,
        health_port=1,
        certificate_days=90,
        token_hours=1,
    )
    return replace(settings, **given)  # type: ignore[arg-type]


def coordinator(folder: Path, **given: object) -> CoordinatorHome:
    """A coordinator's home, set up."""
    home = CoordinatorHome(folder / "coordinator")
    make_coordinator(home, settings_of(**given))
    return home


@dataclass(frozen=True, kw_only=True)
class EnrolledSite:
    """A site's files, and what it proves who it is with."""

    site: SiteId
    folder: Path
    identity: Identity
    node_pem: bytes

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.crt"

    def serial(self) -> int:
        return read_certificate(self.certificate).serial_number

    def context(self, home: CoordinatorHome) -> ssl.SSLContext:
        """TLS of a client with the site's certificate."""
        context = trusting(home)
        context.load_cert_chain(self.certificate, self.folder / "tls.key")
        return context


def trusting(home: CoordinatorHome) -> ssl.SSLContext:
    """TLS of a client without a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(home.authority / "ca.crt")
    return context


def enrolled(
    home: CoordinatorHome, site: SiteId, folder: Path, settings: HomeSettings | None = None
) -> EnrolledSite:
    """A site that enrolled, without any network."""
    settings = settings or settings_of()
    place = folder / site
    place.mkdir()
    identity, key, node = Identity.generate(site), new_key(), ec.generate_private_key(ec.SECP384R1())
    invitation = make_invitation(home, settings, site)
    request = EnrolRequest(
        consortium=CONSORTIUM,
        site=site,
        token=invitation.token,
        csr=make_csr(key, site).decode(),
        identity=identity.public().key.hex(),
        node_key=node_key_text(node.public_key()),
        protocol=SPOKEN,
    ).signed(identity, node)
    answer = Enrolment(home, settings, lambda event, facts: None).enrol(request, HOST)
    (place / "tls.key").write_bytes(key_pem(key))
    (place / "tls.crt").write_text(answer.certificate)
    return EnrolledSite(
        site=site, folder=place, identity=identity, node_pem=pem_of_node_key(request.node_key)
    )


def resigned(home: CoordinatorHome, site: EnrolledSite, days: float, authority: object = None) -> None:
    """Give the site another certificate for the same name."""
    from common.certificates import Authority

    signer = authority if isinstance(authority, Authority) else Authority.open(home.authority)
    key = new_key()
    (site.folder / "tls.key").write_bytes(key_pem(key))
    certificate = signer.sign_site(make_csr(key, site.site), site.site, days)
    site.certificate.write_bytes(certificate_pem(certificate))


@dataclass
class Upstream:
    """Stands for SuperLink: records what it got, and answers as it is told."""

    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    content: bytes = b"\x08\x07"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    port: int = 0

    async def __call__(self, scope, receive, send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.got.append((request.method, request.url.path, dict(request.headers), body))
        await Response(self.content, self.status, dict(self.headers))(scope, receive, send)


class _Quiet(uvicorn.Server):
    started_event: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_event.set()


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    """An upstream in a thread, on a free port."""
    upstream = Upstream()
    listener = socket.create_server((HOST, 0))
    upstream.port = listener.getsockname()[1]
    server = _Quiet(uvicorn.Config(upstream, lifespan="off", log_config=None, access_log=False))
    server.started_event = threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert server.started_event.wait(WAIT_S)
    yield upstream
    server.should_exit = True
    thread.join(WAIT_S)
    listener.close()


@contextmanager
def running_gateway(home: CoordinatorHome, upstream_port: int) -> Iterator[int]:
    """A gateway in a thread; the port it listens on."""
    listener = socket.create_server((HOST, 0))
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            loop.run_until_complete(
                serve(
                    home,
                    settings_of(),
                    stop,
                    listener=listener,
                    upstream=f"http://{HOST}:{upstream_port}",
                    health_port=0,
                )
            )
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        # The socket listens already: whoever connects waits until the gateway takes the connection.
        yield listener.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        listener.close()
        loop.close()
        assert not failed, failed
