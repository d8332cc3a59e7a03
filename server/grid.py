"""The link to sites over Flower's ``Grid``: the same for real SuperNodes and for one process.

Flower addresses nodes by number. Which site a node is, a list says that enrolment keeps (``read_nodes``):
then no other node is spoken to. Without one, in a simulation, the node says it itself when it is first seen,
and nothing proves it; a name that is in use is not given twice, so that a newcomer cannot push a site out.

A SuperLink that is away for a while costs time and not the run: what it was asked is asked again, until the
exchange's own deadline.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx

from common.canonical import read_object
from common.errors import BadFileError, FederationError, UnsupportedSchemaError
from common.flower import Recorder, from_record, site_of_record
from common.ids import SiteId, site_id
from common.messages import EvaluateTask, Message

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Message as FlowerMessage
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

logger = logging.getLogger(__name__)

T = TypeVar("T")

NODES_SCHEMA = 1
# Between two tries to reach a SuperLink that is away, doubled from try to try.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
SERVER_ERROR = 500
# What Flower's grid raises while its SuperLink is away; a status below 500 is an answer (``_require_away``).
AWAY = (httpx.HTTPError, ConnectionError, TimeoutError)

# What Flower's error codes mean. Its own reason is not passed on: it may quote what a site's code raised.
ERRORS: Mapping[int, str] = {
    1: "the app could not be loaded",
    2: "the app failed",
    3: "the task could not be fetched",
    4: "the answer could not be fetched, or came too late",
    5: "the node is not available",
    6: "a check before the app failed",
    7: "the app was not accepted",
    8: "the app's process ended",
}


class GridLink:
    """A ``SiteLink`` over a grid; knows which node is which site."""

    def __init__(
        self,
        grid: Grid,
        *,
        query_ttl_s: float,
        poll_s: float = 0.5,
        nodes: Mapping[int, SiteId] | None = None,
    ) -> None:
        """Use ``grid``.

        Args:
            grid: Flower's.
            query_ttl_s: Seconds that a node has to say its name.
            poll_s: Seconds between two looks for answers.
            nodes: The sites by node, where they are known: nobody is asked, and no other node admitted.
        """
        self._grid = grid
        self._query_ttl_s = query_ttl_s
        self._poll_s = poll_s
        self._nodes = nodes
        self._site_by_node: dict[int, SiteId] = {}
        # Questions on the way, by message: the node, and when it will be asked again.
        self._queries: dict[str, tuple[int, float]] = {}

    def sites(self) -> tuple[SiteId, ...]:
        """The sites that are online, and whose names are known.

        Never waits: a node not seen before is asked, and is in the answer of a later call. A node that
        hangs would otherwise hold up every round. While the SuperLink is away these are the last known.
        """
        try:
            self._look()
        except AWAY as error:
            _require_away(error)
            logger.warning("The SuperLink is away (%s); going by what it said last", type(error).__name__)
        return tuple(sorted(self._site_by_node.values()))

    def _look(self) -> None:
        """See which nodes are online."""
        online = set(self._grid.get_node_ids())
        if self._nodes is not None:
            self._site_by_node = {node: site for node, site in self._nodes.items() if node in online}
            return
        self._site_by_node = {node: site for node, site in self._site_by_node.items() if node in online}
        self._ask_names(online)
        self._read_names()

    def wait_for(self, expected: tuple[SiteId, ...], timeout_s: float) -> tuple[SiteId, ...]:
        """The sites that are there as soon as all expected ones are, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while missing := sorted(set(expected) - set(self.sites())):
            if time.monotonic() >= deadline:
                logger.warning("Not online after %g s: %s", timeout_s, ", ".join(missing))
                break
            time.sleep(self._poll_s)
        return tuple(sorted(self._site_by_node.values()))

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """Send each site its task; yield what comes back in time, as it comes.

        A site is missing, and the log says why, if its node is gone or reports an error, or if its answer
        cannot be read: none of these is the site's own word, so none is a refusal.
        """
        deadline = time.monotonic() + timeout_s
        site_by_message = self._send(tasks, timeout_s, deadline)
        while site_by_message:
            # One by one: all answers together may not fit in memory.
            for message_id in list(site_by_message):
                for _, reply in _patiently(partial(self._pull, [message_id]), deadline) or ():
                    site = site_by_message.pop(message_id)
                    answer = _answer(site, reply)
                    if answer is not None:
                        yield site, answer
            if time.monotonic() >= deadline:
                break
            if site_by_message:
                time.sleep(min(self._poll_s, max(0.0, deadline - time.monotonic())))

    def _send(self, tasks: Mapping[SiteId, Message], ttl: float, deadline: float) -> dict[str, SiteId]:
        """Push the tasks of the sites whose nodes are there; the site by the message's id."""
        recorder = Recorder()
        site_by_message: dict[str, SiteId] = {}
        for node, site in self._site_by_node.items():
            if site not in tasks:
                continue
            task = recorder.record(tasks[site]), node, _type_of(tasks[site]), ttl
            message_id = _patiently(partial(self._push, *task), deadline)
            if message_id:
                site_by_message[message_id] = site
        return site_by_message

    def _ask_names(self, online: set[int]) -> None:
        now = time.monotonic()
        self._queries = {
            message_id: (node, until)
            for message_id, (node, until) in self._queries.items()
            if node in online and now < until
        }
        asked = {node for node, _ in self._queries.values()}
        for node in sorted(online - asked - set(self._site_by_node)):
            message_id = self._push(RecordDict(), node, MessageType.QUERY, self._query_ttl_s)
            if message_id:
                self._queries[message_id] = (node, now + self._query_ttl_s)

    def _read_names(self) -> None:
        replies = {
            self._queries.pop(message_id)[0]: reply for message_id, reply in self._pull(list(self._queries))
        }
        for node, reply in sorted(replies.items()):
            if reply.has_error():
                logger.warning("Node %d did not say its name: %s", node, _words(reply.error.code))
                continue
            try:
                self._admit(node, site_of_record(reply.content))
            except FederationError as error:
                logger.warning("Node %d did not say its name: %s", node, error)

    def _admit(self, node: int, site: SiteId) -> None:
        if site in self._site_by_node.values():
            logger.warning("Node %d says it is %s, which is online already; not admitted", node, site)
            return
        self._site_by_node[node] = site

    def _push(self, record: RecordDict, node: int, message_type: str, ttl: float) -> str | None:
        """Send one message; its id, or None where it is not taken."""
        # ttl on every message: Flower's own 12 hours would let a late answer live on. One by one: a push
        # of several large messages may be refused as a whole.
        message = FlowerMessage(record, node, message_type, ttl=ttl)
        return next(iter(self._grid.push_messages([message])), None)

    def _pull(self, message_ids: list[str]) -> list[tuple[str, FlowerMessage]]:
        """What has come, by the id of the message that it answers.

        An error comes from the SuperLink, not from the node: only that id tells whose it is.
        """
        if not message_ids:
            return []
        answered = [
            (reply.metadata.reply_to_message_id, reply) for reply in self._grid.pull_messages(message_ids)
        ]
        return [(message_id, reply) for message_id, reply in answered if message_id in message_ids]


def read_nodes(path: Path) -> dict[int, SiteId]:
    """The sites by node, of a file ``{"schema": 1, "nodes": {"<node_id>": "<site>"}}``.

    Raises:
        BadFileError: It is missing, or damaged, or names a site twice.
        UnsupportedSchemaError: A newer version wrote it.
    """
    try:
        content = read_object(path.read_text(encoding="utf-8"), str(path))
        if isinstance(content.get("schema"), int) and content["schema"] > NODES_SCHEMA:
            raise UnsupportedSchemaError(str(path), content["schema"], NODES_SCHEMA)
        nodes = {int(node): site_id(site) for node, site in content["nodes"].items()}
    except OSError as error:
        raise BadFileError(path, error.strerror or type(error).__name__) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(path, 'expected {"schema": 1, "nodes": {"<node_id>": "<site>"}}') from error
    if content.get("schema") != NODES_SCHEMA or len(set(nodes.values())) < len(nodes):
        raise BadFileError(path, f"expected schema {NODES_SCHEMA} and every site once")
    return nodes


def _patiently(ask: Callable[[], T], deadline: float) -> T | None:
    """What Flower answers, asked again while its SuperLink is away; None if it is until the deadline."""
    pause = SHORTEST_PAUSE_S
    while True:
        try:
            return ask()
        except AWAY as error:
            _require_away(error)
            left = deadline - time.monotonic()
            logger.warning("The SuperLink is away (%s); %.1f s are left", type(error).__name__, max(left, 0))
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _require_away(error: Exception) -> None:
    """Raise the error again if it is a SuperLink's answer."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < SERVER_ERROR:
        raise error


def _type_of(task: Message) -> str:
    return MessageType.EVALUATE if isinstance(task, EvaluateTask) else MessageType.TRAIN


def _answer(site: SiteId, reply: FlowerMessage) -> Message | None:
    if reply.has_error():
        logger.warning("%s: %s", site, _words(reply.error.code))
        return None
    try:
        return from_record(reply.content)
    except FederationError as error:
        logger.warning("%s: %s", site, error)
        return None


def _words(code: int) -> str:
    return f"Flower error {code}: {ERRORS.get(code, 'of a kind not known here')}"
