"""The site's way out: SuperNode's connections, carried to the gateway under the site's certificate.

    python -m client.outbound HOME CONSORTIUM [--port 0]

SuperNode loads no client certificate. It speaks TLS to this proxy on loopback, and the proxy speaks mutual
TLS 1.3 to the gateway, directly or through the hospital's HTTPS proxy. Bytes are carried as they are, a
connection for a connection; what one end sent before it closed reaches the other.

The certificate is renewed here when its time comes, and taken up from the disk for the next connection.
``run/outbound.json`` names the port, and whether the gateway could be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import ssl
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from client.enrolment import needs_renewal, read_coordinator, renew
from client.home import ConsortiumHome, SiteHome
from client.hospital_proxy import HospitalProxy, Streams
from client.settings import read_settings
from common.atomic import write_atomically
from common.canonical import canonical_json
from common.enrolment_messages import split_address
from common.errors import BadFileError, FederationError, UnreachableError, one_line
from common.logs import configure

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
STATUS_SCHEMA = 1
CHUNK = 65536
CONNECT_S = 20.0
# A message may be thought about for long, but SuperNode asks every few seconds.
IDLE_S = 300.0
CLOSE_S = 5.0
CHECK_S = 3600.0
FAILED = 1

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
# The gateway's 403; SuperLink's 401 and 412 for a node that it does not know, or no longer.
_REFUSED = frozenset({401, 403, 412})

# What the gateway's TLS says of a certificate that it does not take.
_REFUSALS = {
    "CERTIFICATE_EXPIRED": "the gateway refuses this site's certificate: it has ended; renew it",
    "CERTIFICATE_REQUIRED": "the gateway asks for a certificate",
    "UNKNOWN_CA": "the gateway refuses this site's certificate: another authority signed it",
    "CERTIFICATE_VERIFY_FAILED": "the gateway's certificate is not by the consortium's authority",
}


class Gateway:
    """Connections to the gateway, under the certificate that lies on the disk at the time."""

    def __init__(self, home: ConsortiumHome, address: str, proxy: HospitalProxy | None) -> None:
        """Read the certificate. BadFileError, SettingsError for an address that is none."""
        self._home, self.address, self._proxy = home, address, proxy
        self._host, self._port = split_address("gateway", address)
        self._seen = self._version()
        self._context = self._load()

    async def connect(self) -> Streams:
        """A connection, its other end verified. UnreachableError."""
        try:
            async with asyncio.timeout(CONNECT_S):
                return await self._connect()
        except ssl.SSLError as error:
            raise UnreachableError(self.address, tls_reason(error)) from error
        except TimeoutError as error:
            raise UnreachableError(self.address, f"no connection within {CONNECT_S:g} s") from error
        except OSError as error:
            raise UnreachableError(self.address, error.strerror or type(error).__name__) from error

    async def _connect(self) -> Streams:
        context = self._current()
        if self._proxy is None:
            return await asyncio.open_connection(
                self._host, self._port, ssl=context, server_hostname=self._host, limit=CHUNK
            )
        reader, writer = await self._proxy.connect(self._host, self._port)
        try:
            await writer.start_tls(context, server_hostname=self._host)
        except BaseException:
            writer.close()
            raise
        return reader, writer

    def _current(self) -> ssl.SSLContext:
        version = self._version()
        if version != self._seen:
            try:
                self._context = self._load()
                self._seen = version
                logger.info("the site's new certificate is in use")
            except BadFileError as error:
                # Key and certificate are replaced one after the other; the old pair is good until then.
                logger.warning("the old certificate stays in use: %s", error)
        return self._context

    def _version(self) -> tuple[int, int]:
        try:
            found = self._home.tls_certificate.stat()
        except OSError as error:
            raise BadFileError(self._home.tls_certificate, error.strerror or type(error).__name__) from error
        return found.st_mtime_ns, found.st_ino

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return _loaded(context, self._home.tls_certificate, self._home.tls_key, self._home)


class Outbound:
    """The proxy: a listener on loopback, and what its connections are at."""

    def __init__(self, home: ConsortiumHome, gateway: Gateway) -> None:
        """Carry to ``gateway``."""
        self._home, self._gateway = home, gateway
        self._state, self._reason, self._port = "waiting", "", 0
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self, port: int) -> asyncio.Server:
        """Take SuperNode's connections on ``port`` (0: a free one). BadFileError, OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _loaded(context, self._home.loopback_certificate, self._home.loopback_key, None)
        server = await asyncio.start_server(self._carry, LOOPBACK, port, ssl=context, limit=CHUNK)
        self._port = server.sockets[0].getsockname()[1]
        self._tell()
        logger.info("the way out is at %s:%d", LOOPBACK, self._port)
        return server

    async def close(self, server: asyncio.Server) -> None:
        """End all connections."""
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._home.proxy_status.unlink(missing_ok=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            out_reader, out_writer = await self._gateway.connect()
            answers = Answers(self._become)
            refused = await _both_ways((reader, writer), (out_reader, out_writer), answers.follow)
            if refused:
                self._become("refused", refused)
        except FederationError as error:
            self._become("unreachable", str(error))
        except asyncio.CancelledError:
            # By ``close`` alone; asyncio would log a handler that ends so as a mistake.
            return
        finally:
            try:
                await _closed(writer)
            finally:
                self._open.discard(task)

    def _become(self, state: str, reason: str) -> None:
        """Once a change, not once a connection: SuperNode comes back every few seconds."""
        if (state, reason) == (self._state, self._reason):
            return
        self._state, self._reason = state, reason
        level = logging.INFO if state == "connected" else logging.WARNING
        logger.log(level, "the gateway at %s: %s", self._gateway.address, reason or state)
        self._tell()

    def _tell(self) -> None:
        content = {
            "schema": STATUS_SCHEMA,
            "pid": os.getpid(),
            "port": self._port,
            "gateway": self._gateway.address,
            "state": self._state,
            "reason": self._reason,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._home.proxy_status, canonical_json(content) + "\n")


async def keep_in_date(home: ConsortiumHome, https_proxy: str | None, *, check_s: float = CHECK_S) -> None:
    """Renew the certificate when its time comes, for ever; a renewal that fails is tried again."""
    while True:
        try:
            if needs_renewal(home):
                certificate = await asyncio.to_thread(renew, home, https_proxy=https_proxy)
                end = certificate.not_valid_after_utc.date().isoformat()
                logger.info("the site's certificate was renewed; it ends on %s", end)
        except (FederationError, OSError) as error:
            logger.warning("the site's certificate could not be renewed: %s", error)
        await asyncio.sleep(check_s)


async def run(
    home: ConsortiumHome,
    *,
    stop: asyncio.Event,
    port: int = 0,
    https_proxy: str | None = None,
    check_s: float = CHECK_S,
    on_port: Callable[[int], None] = lambda port: None,
) -> None:
    """Be the site's way out until ``stop`` is set.

    Args:
        home: Of a site that enrolled.
        stop: Ends it.
        port: On loopback; 0 takes a free one.
        https_proxy: The hospital's, ``http://[user:password@]host:port``.
        check_s: Seconds between two looks at the certificate's end.
        on_port: Is told the port.

    Raises:
        BadFileError: The site has not enrolled.
        SettingsError: The proxy's address is none.
        OSError: The port is taken.
    """
    proxy = HospitalProxy(https_proxy) if https_proxy else None
    outbound = Outbound(home, Gateway(home, read_coordinator(home).gateway, proxy))
    server = await outbound.listen(port)
    on_port(server.sockets[0].getsockname()[1])
    renewing = asyncio.create_task(keep_in_date(home, https_proxy, check_s=check_s))
    try:
        await stop.wait()
    finally:
        renewing.cancel()
        await outbound.close(server)


class Answers:
    """What the far end's HTTP answers on one connection say of this site: whether it is let in, or why not.

    A certificate that was revoked while a connection was open is refused inside of it, where TLS has no say.
    """

    def __init__(self, become: Callable[[str, str], None]) -> None:
        """Tell ``become`` a state, ``connected`` or ``refused``, and a reason."""
        self._become = become
        self._refused = 0

    def follow(self, data: bytes) -> None:
        """The next bytes that came from the far end."""
        head, _, body = data.partition(b"\r\n\r\n")
        found = _STATUS_LINE.match(head)
        if found is None:
            # More of an answer; a refusal's reason often comes behind its head.
            if self._refused and data.startswith(b"{"):
                self._become("refused", _reason(data, self._refused))
            return
        status = int(found[1])
        self._refused = status if status in _REFUSED else 0
        if self._refused:
            self._become("refused", _reason(body, status))
        else:
            self._become("connected", "")


def _reason(body: bytes, status: int) -> str:
    """The gateway's own words, else the status: to a node that it does not know SuperLink gives one alone."""
    try:
        return one_line(str(json.loads(body)["error"]))
    except (ValueError, KeyError, TypeError):
        return f"this site's node is refused (HTTP {status})"


def tls_reason(error: ssl.SSLError) -> str:
    """Why TLS failed, in words for an administrator."""
    for name, reason in _REFUSALS.items():
        if name in str(error.reason or ""):
            return reason
    return f"TLS failed ({error.reason or type(error).__name__})"


async def _both_ways(near: Streams, far: Streams, on_answer: Callable[[bytes], None]) -> str:
    """Carry until one end closes or nothing moves; what the far end's TLS refused, if it did.

    ``on_answer`` is called with what comes from the far end: in TLS 1.3 a client that is refused learns it
    only then.
    """
    moved = asyncio.Event()

    def asked(data: bytes) -> None:
        moved.set()

    def answered(data: bytes) -> None:
        moved.set()
        on_answer(data)

    up = asyncio.create_task(_pump(near[0], far[1], asked))
    down = asyncio.create_task(_pump(far[0], near[1], answered))
    watch = asyncio.create_task(_until_idle(moved))
    try:
        done, _ = await asyncio.wait({up, down, watch}, return_when=asyncio.FIRST_COMPLETED)
        if up in done and up.exception() is not None:
            # The gateway takes no more of a request: why, may be on its way.
            await asyncio.wait({down}, timeout=CLOSE_S)
        for task in (task for task in (up, down) if task.done()):
            error = task.exception()
            if isinstance(error, ssl.SSLError):
                return tls_reason(error)
            if error is not None and not isinstance(error, OSError):
                raise error
    finally:
        for task in (up, down, watch):
            task.cancel()
        await asyncio.gather(up, down, watch, return_exceptions=True)
        await _closed(far[1])
    return ""


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_data: Callable[[bytes], None]
) -> None:
    while data := await reader.read(CHUNK):
        on_data(data)
        writer.write(data)
        # Waits while the other end is slow: no more than a few chunks lie here.
        await writer.drain()


async def _until_idle(moved: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        while True:
            moved.clear()
            # Not wait_for, which in Python 3.11 may swallow the cancellation that ends this.
            async with asyncio.timeout(IDLE_S):
                await moved.wait()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close behind what was written. Over TLS neither end can close one direction alone."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()


def _loaded(
    context: ssl.SSLContext, certificate: Path, key: Path, home: ConsortiumHome | None
) -> ssl.SSLContext:
    try:
        context.load_cert_chain(certificate, key)
        if home is not None:
            context.load_verify_locations(home.authority_certificate)
    # Not chained: what could not be read may be a key.
    except (OSError, ssl.SSLError):
        raise BadFileError(certificate, f"expected a certificate and its key in {key.name}") from None
    return context


async def _serve(home: ConsortiumHome, port: int, https_proxy: str | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    await run(home, stop=stop, port=port, https_proxy=https_proxy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the way out of a site's consortium; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m client.outbound", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("home", type=Path, help="the site's home folder")
    parser.add_argument("consortium", help="its name")
    parser.add_argument("--port", type=int, help="on loopback; 0 takes a free one; else that of site.yaml")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    configure()
    try:
        home = SiteHome(given.home)
        network = read_settings(home.settings_file).network
        port = network.proxy_port if given.port is None else given.port
        asyncio.run(_serve(home.consortium(given.consortium), port, network.https_proxy))
    except (FederationError, OSError) as error:
        logger.error("%s", error)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
