"""The link to sites over Flower's ``Grid``: the same for real SuperNodes and for one process.

Flower addresses nodes by number. Which site a node is, the node says itself when it is first seen, out of
its own configuration; nothing proves it. A name that is in use is not given twice, so that a newcomer
cannot push a site out. Identities that are pinned come with enrolment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from common.errors import FederationError
from common.flower import Recorder, from_record, site_of_record
from common.ids import SiteId
from common.messages import EvaluateTask, Message

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Message as FlowerMessage
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

logger = logging.getLogger(__name__)

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

    def __init__(self, grid: Grid, *, query_ttl_s: float, poll_s: float = 0.5) -> None:
        """Use ``grid``; a node has ``query_ttl_s`` to say its name, and ``poll_s`` lies between two looks."""
        self._grid = grid
        self._query_ttl_s = query_ttl_s
        self._poll_s = poll_s
        self._site_by_node: dict[int, SiteId] = {}
        # Questions on the way, by message: the node, and when it will be asked again.
        self._queries: dict[str, tuple[int, float]] = {}

    def sites(self) -> tuple[SiteId, ...]:
        """The sites that are online and have said their names.

        Never waits: a node not seen before is asked, and is in the answer of a later call. A node that
        hangs would otherwise hold up every round.
        """
        online = set(self._grid.get_node_ids())
        self._site_by_node = {node: site for node, site in self._site_by_node.items() if node in online}
        self._ask_names(online)
        self._read_names()
        return tuple(sorted(self._site_by_node.values()))

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
        site_by_message = self._send(tasks, timeout_s)
        deadline = time.monotonic() + timeout_s
        while site_by_message:
            # One by one: all answers together may not fit in memory.
            for message_id in list(site_by_message):
                for _, reply in self._pull([message_id]):
                    site = site_by_message.pop(message_id)
                    answer = _answer(site, reply)
                    if answer is not None:
                        yield site, answer
            if time.monotonic() >= deadline:
                break
            if site_by_message:
                time.sleep(min(self._poll_s, max(0.0, deadline - time.monotonic())))

    def _send(self, tasks: Mapping[SiteId, Message], ttl: float) -> dict[str, SiteId]:
        """Push the tasks of the sites whose nodes are there; the site by the message's id."""
        recorder = Recorder()
        site_by_message: dict[str, SiteId] = {}
        for node, site in self._site_by_node.items():
            if site not in tasks:
                continue
            message_id = self._push(recorder.record(tasks[site]), node, _type_of(tasks[site]), ttl)
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
