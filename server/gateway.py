"""The one door from the sites to SuperLink, as a process: ``python -m server.gateway HOME``.

Mutual TLS 1.3, with the consortium's authority and no other. What then goes through is decided for each
request anew (``server.gateway_app``, ``server.gateway_rules``). Counts of requests and refusals, and ``GET
/health``, are on the private address, at the port after the supervisor's; ``run/gateway.json`` names both
ports.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography import x509
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.atomic import write_atomically
from common.canonical import canonical_json
from common.errors import BadFileError, FederationError
from common.logs import configure
from common.monitoring import Monitoring
from server.gateway_app import PEER, Gateway
from server.home import CoordinatorHome, HomeSettings
from server.invitations import ensure_server_certificate

logger = logging.getLogger(__name__)

STATUS_SCHEMA = 1
STATUS_NAME = "gateway.json"
# SuperNode's client closes an idle connection after 5 s; the end that sends must be the one that closes.
KEEP_ALIVE_S = 75
MOST_CONNECTIONS = 1024
CHECK_S = 60.0
FAILED = 1


class GatewayProtocol(H11Protocol):
    """HTTP of uvicorn, which does not tell an application who its peer is: ``scope["state"][PEER]`` does."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the certificate once; its connection ends with it."""
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True) if connection is not None else None
        found = x509.load_der_x509_certificate(der) if der else None
        self.app_state = {**self.app_state, PEER: found}


class TellingTls(ssl.SSLObject):
    """TLS that tells a peer why its certificate is refused: asyncio ends the connection without the alert."""

    _has_failed = False

    def do_handshake(self) -> None:
        """As ever; a failure counts only when what tells of it was sent."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            if self._has_failed:
                raise
            self._has_failed = True
            # asyncio sends what lies ready, and comes back when the peer answers, leaves, or lets time pass.
            raise ssl.SSLWantReadError from error


def server_context(home: CoordinatorHome) -> ssl.SSLContext:
    """TLS of the gateway: 1.3, and clients of the consortium's authority only. BadFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = TellingTls
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # A session that is taken up again would not be asked for its certificate.
    context.num_tickets = 0
    try:
        context.load_cert_chain(home.server_certificate, home.server_key)
        context.load_verify_locations(home.authority / "ca.crt")
    except (OSError, ssl.SSLError) as error:
        raise BadFileError(home.server_certificate, "expected certificate and key of the gateway") from error
    return context


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def serve(
    home: CoordinatorHome,
    settings: HomeSettings,
    stop: asyncio.Event,
    *,
    listener: socket.socket,
    upstream: str,
    health_port: int,
) -> None:
    """Stand in front of SuperLink until ``stop`` is set.

    Args:
        home: Set up, with sites in it as they come.
        settings: For the certificate, and the private address of health and metrics.
        stop: Ends it.
        listener: Where sites come in.
        upstream: SuperLink's ``http://host:port``.
        health_port: Of ``GET /health`` and ``GET /metrics``; 0 takes a free one.

    Raises:
        BadFileError: The home was not set up.
        OSError: The health port is taken.
    """
    context = server_context(home)
    # No connection is kept: SuperLink may close an idle one in the instant in which it is used again.
    limits = httpx.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=0)
    transport = httpx.AsyncHTTPTransport(limits=limits)
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        gateway = Gateway(home, upstream, client)
        config = uvicorn.Config(
            gateway,
            http=GatewayProtocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
            limit_concurrency=MOST_CONNECTIONS,
        )
        config.load()
        config.ssl = context
        server = _Server(config)
        with Monitoring(
            settings.private_host, health_port, failing=gateway.failing, registry=gateway.registry
        ) as monitoring:
            port = listener.getsockname()[1]
            with _status(home, {"port": port, "health_port": monitoring.port}):
                logger.info("the gateway listens on port %d", port)
                watching = asyncio.create_task(_watch(home, settings, context, stop, server))
                await server.serve(sockets=[listener])
                stop.set()
                await watching


async def _watch(
    home: CoordinatorHome,
    settings: HomeSettings,
    context: ssl.SSLContext,
    stop: asyncio.Event,
    server: uvicorn.Server,
) -> None:
    """End the server when it is time; until then keep the gateway's certificate in date."""
    seen = home.server_certificate.stat().st_mtime_ns
    while not stop.is_set():
        try:
            async with asyncio.timeout(CHECK_S):
                await stop.wait()
        except TimeoutError:
            seen = _in_date(home, settings, context, seen)
    server.should_exit = True


def _in_date(home: CoordinatorHome, settings: HomeSettings, context: ssl.SSLContext, seen: int) -> int:
    """Take a certificate that was made anew, by whichever process; when it was made."""
    try:
        ensure_server_certificate(home, settings)
        found = home.server_certificate.stat().st_mtime_ns
        if found != seen:
            context.load_cert_chain(home.server_certificate, home.server_key)
        return found
    except (FederationError, OSError) as error:
        logger.error("the gateway's certificate stays the old one: %s", error)
        return seen


@contextmanager
def _status(home: CoordinatorHome, ports: Mapping[str, int]) -> Iterator[None]:
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home.run / STATUS_NAME
    content: dict[str, Any] = {"schema": STATUS_SCHEMA, "pid": os.getpid(), **ports}
    write_atomically(path, canonical_json(content) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def run(home: CoordinatorHome) -> None:
    """The gateway of a home, until SIGTERM or SIGINT. FederationError, OSError."""
    settings = home.settings()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    ensure_server_certificate(home, settings)
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    host = f"[{settings.private_host}]" if ":" in settings.private_host else settings.private_host
    with socket.create_server((settings.bind, settings.gateway_port), family=family) as listener:
        await serve(
            home,
            settings,
            stop,
            listener=listener,
            upstream=f"http://{host}:{settings.superlink_port}",
            health_port=settings.health_port + 1,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the home that is named; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1:
        print("usage: python -m server.gateway HOME", file=sys.stderr)  # noqa: T201
        return 2
    configure()
    try:
        asyncio.run(run(CoordinatorHome(Path(given[0]))))
    except (FederationError, OSError) as error:
        logger.error("%s", error)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
