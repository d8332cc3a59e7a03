"""What a process tells about itself: ``GET /health`` and, for Prometheus, ``GET /metrics``.

For an address that only the own network reaches. Nothing in an answer is about a patient: health is the names
of parts and a line for each that fails; metrics are numbers of processes, sites and rounds.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.errors import PublicAddressError
from common.supervisor import Row

REQUEST_S = 5.0
_MIB = 2**20

Failing = Callable[[], Mapping[str, str]]
"""The parts that do not work, by name, with a line each; none if all is well."""


def failing_children(rows: Sequence[Row]) -> dict[str, str]:
    """The children that do not run, or are not ready."""
    return {row.name: _why(row) for row in rows if row.state != "running"}


def require_private(key: str, host: str) -> None:
    """Refuse an address that others than the own network may reach. PublicAddressError."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise PublicAddressError(key, host, "no such address") from error
    for text in sorted(map(str, found)):
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.is_unspecified or not (address.is_private or address.is_link_local):
            raise PublicAddressError(key, host, f"{address} can be reached from outside")


class Monitoring:
    """Answers ``GET /health`` and ``GET /metrics`` in threads of its own until it is closed."""

    def __init__(
        self, host: str, port: int, *, failing: Failing, registry: CollectorRegistry | None = None
    ) -> None:
        """Listen on ``host`` and ``port`` (0 takes a free one). OSError if the port is taken."""
        self._registry = registry or CollectorRegistry()
        self._failing = failing
        self._server = _Server((host, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True)
        self._thread.start()

    def __enter__(self) -> Monitoring:
        """Itself; closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and content for a path."""
        if path == "/health":
            failing = dict(self._failing())
            content = {"status": "failing" if failing else "ok", "failing": failing}
            status = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
            return status, "application/json", (json.dumps(content) + "\n").encode()
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return HTTPStatus.NOT_FOUND, "text/plain", b"expected /health or /metrics\n"


class ChildrenCollector:
    """The children of a supervisor, for Prometheus: register it with a ``CollectorRegistry``."""

    def __init__(self, rows: Callable[[], Sequence[Row]]) -> None:
        """Ask ``rows`` at each scrape."""
        self._rows = rows

    def collect(self) -> Iterator[Any]:
        """Whether each child runs, how often it was started again, what memory it holds."""
        up = GaugeMetricFamily("consilium_process_up", "1 if the process runs", labels=["process"])
        restarts = CounterMetricFamily(
            "consilium_process_restarts", "how often it was started again", labels=["process"]
        )
        memory = GaugeMetricFamily(
            "consilium_process_memory_bytes", "held by it and what it started", labels=["process"]
        )
        for row in self._rows():
            up.add_metric([row.name], float(row.state == "running"))
            restarts.add_metric([row.name], row.restarts)
            memory.add_metric([row.name], row.memory_mb * _MIB)
        yield from (up, restarts, memory)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], monitoring: Monitoring) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.monitoring = monitoring


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S
    server_version = "consilium"
    sys_version = ""

    def do_GET(self) -> None:
        status, kind, content = self.server.monitoring.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: a scrape every few seconds would bury the log."""


def _why(row: Row) -> str:
    ended = f", ended last with {row.last_exit}" if row.last_exit is not None else ""
    return f"{row.state} since {row.since}{ended}"
