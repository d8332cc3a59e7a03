"""What the gateway does with a request: let it through to SuperLink, or refuse it with a line.

Bodies are streamed both ways, and read as they pass (``server.node_field``). What is refused gets one line of
JSON, ``{"error": "..."}``, and is counted by site and reason.

Guarantee: a revocation holds from the next request on, on connections that are open already, too.
"""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime

import httpx
from prometheus_client import CollectorRegistry, Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from common.certificates import read_certificate
from common.errors import BadFileError, BadMessageError, GatewayRefusedError
from common.ids import SiteId
from server.gateway_rules import ACTIVATE, Nodes, Sites, open_method, own_node, require_node_key
from server.home import CoordinatorHome
from server.node_field import FieldOne

logger = logging.getLogger(__name__)

PEER = "peer_certificate"
NODES_NAME = "gateway_nodes.json"
# Flower sends arrays in objects of 5 MB; what is no array travels as one.
MOST_BODY_BYTES = 2**26
MOST_ACTIVATION_BYTES = 4096
CONNECT_S, ANSWER_S = 5.0, 120.0

_SENT = (b"content-type", b"content-length", b"accept", b"accept-encoding", b"user-agent", b"x-flwr-client")
_FLOWERS = b"flwr-"
# These speak to Flower's Runtime interface, which is not behind this door.
_NEVER_SENT = (b"flwr-task-token", b"flwr-superexec-")
_HOP_BY_HOP = (
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
)
_STATUS = {"certificate": 403, "method": 405, "too large": 413, "framing": 400, "body": 400}


class Gateway:
    """The application: lets through, or refuses with a line."""

    def __init__(self, home: CoordinatorHome, upstream: str, client: httpx.AsyncClient) -> None:
        """Stand in front of ``upstream``, an ``http://host:port``. BadFileError."""
        authority = read_certificate(home.authority / "ca.crt")
        self._sites, self._nodes = Sites(home, authority), Nodes(home.run / NODES_NAME)
        self._upstream, self._client = upstream, client
        self._refused: Tally[tuple[str, str]] = Tally()
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "consilium_gateway_requests", "let through", ["site"], registry=self.registry
        )
        self._refusals = Counter(
            "consilium_gateway_refusals", "refused", ["site", "reason"], registry=self.registry
        )
        self._failing = ""

    def failing(self) -> Mapping[str, str]:
        """What does not work, for ``GET /health`` of the gateway itself."""
        return {"superlink": self._failing} if self._failing else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        site = "unknown"
        try:
            peer = request.scope.get("state", {}).get(PEER)
            site, key = self._sites.site(peer, datetime.now(UTC))
            scope = request.scope
            method = open_method(request.method, scope["raw_path"], scope["query_string"])
            scan = None
            if method:
                require_node_key(SiteId(site), scope["headers"], key)
                scan = own_node(SiteId(site), method, key=key, nodes=self._nodes)
            response = await self._pass_on(request, SiteId(site), method, scan)
        except GatewayRefusedError as error:
            return self._refuse(site, error.kind, error.reason, _STATUS.get(error.kind, 403))
        except BadMessageError as error:
            return self._refuse(site, "body", str(error), 400)
        except BadFileError as error:
            logger.error("%s", error)
            return self._refuse(site, "files", "the coordinator cannot read its own files", 503)
        except httpx.TimeoutException:
            return self._fail(site, "SuperLink did not answer in time", 504)
        except httpx.TransportError as error:
            return self._fail(site, f"SuperLink does not answer ({type(error).__name__})", 502)
        self._requests.labels(site).inc()
        self._failing = ""
        return response

    async def _pass_on(self, request: Request, site: SiteId, method: str, scan: FieldOne | None) -> Response:
        headers = _sent(request.scope["headers"])
        content = None if scan is None else await _begun(_checked(request.stream(), scan))
        path = request.scope["raw_path"].decode("ascii")
        # Made by hand: a client's own request would bring headers that the site did not send.
        asked = httpx.Request(request.method, self._upstream + path, headers=headers, content=content)
        asked.extensions["timeout"] = httpx.Timeout(ANSWER_S, connect=CONNECT_S).as_dict()
        answer = await self._client.send(asked, stream=True)
        if method == ACTIVATE and answer.status_code == httpx.codes.OK:
            return await self._activated(answer, site)
        response = StreamingResponse(_body(answer), answer.status_code)
        response.raw_headers = _received(answer)
        return response

    async def _activated(self, answer: httpx.Response, site: SiteId) -> Response:
        """The answer that tells which node is the site's; read whole, before the site may use it."""
        content = bytearray()
        async for chunk in _body(answer):
            content += chunk
            if len(content) > MOST_ACTIVATION_BYTES:
                raise BadMessageError("SuperLink's answer to an activation is too long")
        self._nodes.learn(site, bytes(content))
        response = Response(bytes(content), answer.status_code)
        response.raw_headers = _received(answer)
        return response

    def _refuse(self, site: str, kind: str, reason: str, status: int) -> Response:
        self._refusals.labels(site, kind).inc()
        self._refused[site, kind] += 1
        count = self._refused[site, kind]
        # The 1st, 2nd, 4th, 8th...: a site that asks for ever does not fill the log.
        if count & (count - 1) == 0:
            logger.warning("refused, for the %d. time: %s", count, reason, extra={"site": site})
        # Whoever was refused may have a body under way, which nobody reads.
        return JSONResponse({"error": reason}, status, headers={"connection": "close"})

    def _fail(self, site: str, reason: str, status: int) -> Response:
        self._failing = reason
        return self._refuse(site, "superlink", reason, status)


async def _checked(stream: AsyncIterator[bytes], scan: FieldOne) -> AsyncIterator[bytes]:
    """The body as it comes; its last part, without which SuperLink does nothing, when all was checked."""
    size, held = 0, b""
    async for chunk in stream:
        size += len(chunk)
        if size > MOST_BODY_BYTES:
            raise GatewayRefusedError("too large", f"expected a body of at most {MOST_BODY_BYTES} bytes")
        if chunk:
            scan.feed(chunk)
            if held:
                yield held
            held = chunk
    scan.finish()
    yield held


async def _begun(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same parts, the first of them read: nothing goes to SuperLink before, not even an empty body."""
    first = await anext(parts)

    async def all_parts() -> AsyncIterator[bytes]:
        yield first
        async for part in parts:
            yield part

    return all_parts()


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _sent(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that SuperLink gets. GatewayRefusedError where two ends may see two ends of the body."""
    names = [name.lower() for name, _ in headers]
    if (b"transfer-encoding" in names and b"content-length" in names) or names.count(b"content-length") > 1:
        raise GatewayRefusedError("framing", "expected one length of the body")
    for name, value in headers:
        if name.lower() == b"content-length" and int(value) > MOST_BODY_BYTES:
            raise GatewayRefusedError("too large", f"expected a body of at most {MOST_BODY_BYTES} bytes")
    return [
        (name, value)
        for name, value in headers
        if (name.lower() in _SENT or name.lower().startswith(_FLOWERS))
        and not name.lower().startswith(_NEVER_SENT)
    ]


def _received(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    named = {name.strip().lower().encode() for name in answer.headers.get("connection", "").split(",")}
    return [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.lower() not in _HOP_BY_HOP and name.lower() not in named
    ]
