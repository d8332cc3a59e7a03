"""How a task reaches the site's worker, which outlives the messages that it answers.

Flower starts a process for every message; the worker stays. It lives in the same process (simulations:
``attach``, ``attached``), or it listens on a Unix socket of the site's machine (``serve``, ``remote``), where
one call carries the bytes of one task there and those of its answer back.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import grpc

from client.refusals import reply_or_refusal
from common.errors import FederationError, SettingsError, WorkerAwayError
from common.ids import SiteId
from common.messages import Message
from common.wire import from_bytes, to_bytes

logger = logging.getLogger(__name__)

Handler = Callable[[Message], Message]

SERVICE, METHOD = "consilium.Worker", "Handle"

# The system's own limit, 108 with the closing zero on Linux and 104 elsewhere, less a margin.
LONGEST_SOCKET = 100

PRIVATE_FOLDER = 0o700
PRIVATE_SOCKET = 0o600
OTHERS = 0o077
PROBE_S = 1.0
# A task at work, some that wait for it (Flower sends one at a time), and what is asked beside them.
THREADS = 4

# An adapter may be larger than gRPC's usual 4 MB; -1 is no limit.
_UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

_HANDLERS: dict[SiteId, Handler] = {}


def attach(site_id: SiteId, handle: Handler) -> None:
    """Let ``handle`` answer the site's tasks in this process. ValueError if something does already."""
    if site_id in _HANDLERS:
        raise ValueError(f"Expected no worker for site {site_id} yet, got a second one")
    _HANDLERS[site_id] = handle


def detach(site_id: SiteId) -> None:
    """End it; a site without a worker is left as it is."""
    _HANDLERS.pop(site_id, None)


def attached(site_id: SiteId) -> Handler:
    """What answers the site's tasks in this process. FederationError if nothing does."""
    if site_id not in _HANDLERS:
        raise FederationError(f"no worker is running for site {site_id}")
    return _HANDLERS[site_id]


def serve(
    handle: Handler, path: Path, *, site: SiteId, beside: Callable[[grpc.Server], object] | None = None
) -> grpc.Server:
    """Let ``handle`` answer the site's tasks at the socket ``path``, one after another; the running server.

    ``beside`` may add services of its own, such as health, which are answered while a task is worked on.

    Guarantee: only its owner can enter the socket's folder, which is made where it is missing. What
    ``handle`` raises comes back as a ``Refusal``, see ``reply_or_refusal``.

    Raises:
        SettingsError: The path is too long, or the folder is open to others.
        FederationError: Another worker listens there, or the system does not let this one.
    """
    _require_short(path)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=f"worker-{site}"),
        handlers=[_method(_one_by_one(handle), site)],
        options=_UNLIMITED,
    )
    if beside is not None:
        beside(server)
    try:
        _make_private(path.parent)
        _clear(path)
        server.add_insecure_port(_address(path))
        path.chmod(PRIVATE_SOCKET)
    except (OSError, RuntimeError) as error:
        raise FederationError(f"{path}: a worker cannot listen there ({type(error).__name__})") from error
    server.start()
    return server


def remote(path: Path, *, timeout_s: float | None = None) -> Handler:
    """What hands a task to the worker at the socket ``path``, and returns its answer.

    It raises a WorkerAwayError where no worker answers within ``timeout_s``, and a BadMessageError where
    the answer is no message.

    Raises:
        SettingsError: The path is too long.
    """
    _require_short(path)

    def handle(task: Message) -> Message:
        with grpc.insecure_channel(_address(path), options=_UNLIMITED) as channel:
            try:
                answer = channel.unary_unary(f"/{SERVICE}/{METHOD}")(to_bytes(task), timeout=timeout_s)
            except grpc.RpcError as error:
                raise _error(path, error.code(), timeout_s) from error
        return from_bytes(answer)

    return handle


def _one_by_one(handle: Handler) -> Handler:
    """A worker holds one student and one teacher: a second task waits for the first."""
    alone = threading.Lock()

    def answer(task: Message) -> Message:
        with alone:
            return handle(task)

    return answer


def _method(handle: Handler, site: SiteId) -> grpc.GenericRpcHandler:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            task = from_bytes(request)
        except FederationError as error:
            # Without a run to refuse in.
            logger.warning("%s: %s", site, error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "")
        return to_bytes(reply_or_refusal(lambda: handle(task), task.run_id, site))

    return grpc.method_handlers_generic_handler(
        SERVICE, {METHOD: grpc.unary_unary_rpc_method_handler(answer)}
    )


def _error(path: Path, code: grpc.StatusCode, timeout_s: float | None) -> FederationError:
    """Why a call failed, by its code alone: gRPC's own text may quote what the worker raised."""
    if code is grpc.StatusCode.UNAVAILABLE:
        return WorkerAwayError(path, "is not running, or ended before it answered")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return WorkerAwayError(path, f"did not answer within {timeout_s} s")
    return FederationError(f"the worker at {path} failed ({code.name}); see the site's log")


def _address(path: Path) -> str:
    """The socket as gRPC names it: a URI, in which a path's odd characters are quoted."""
    return f"unix:{quote(str(path))}"


def _require_short(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > LONGEST_SOCKET:
        raise SettingsError(
            "the worker's socket", f"{size}: {path}", f"a path of at most {LONGEST_SOCKET} bytes"
        )


def _make_private(folder: Path) -> None:
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.getuid() or mode & OTHERS:
        raise SettingsError(
            f"{folder}", f"mode {mode:o}, owner {found.st_uid}", "a folder that only its owner may enter"
        )


def _clear(path: Path) -> None:
    """Remove the socket that a dead worker left. gRPC itself would take a live one's place as well."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FederationError(f"{path}: a worker cannot listen there: the file is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FederationError(f"{path}: another worker is listening there")
