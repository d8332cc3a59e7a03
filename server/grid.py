"""The link to sites over Flower's ``Grid``: the same for real SuperNodes and for one process.

Flower addresses nodes by number. Which site a node is, the node says itself when it is first seen, out of
its own configuration; nothing proves it. A name that is in use is not given twice, so that a newcomer
cannot push a site out. Identities that are pinned come with enrolment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from common.errors import FederationError
from common.flower import from_record, site_of_record, to_record
from common.ids import SiteId
from common.messages import EvaluateTask, Message, refusal

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

    def __init__(self, grid: Grid, *, query_timeout_s: float, poll_s: float = 0.5) -> None:
        """Use ``grid``; ask a new node for its name, and look for answers every ``poll_s`` seconds."""
        self._grid = grid
        self._query_timeout_s = query_timeout_s
        self._poll_s = poll_s
        self._site_by_node: dict[int, SiteId] = {}

    def sites(self) -> tuple[SiteId, ...]:
        """The sites whose nodes are online, by name; nodes not seen before are asked who they are."""
        online = set(self._grid.get_node_ids())
        self._site_by_node = {node: site for node, site in self._site_by_node.items() if node in online}
        self._introduce(sorted(online - set(self._site_by_node)))
        return tuple(sorted(self._site_by_node.values()))

    def wait_for(self, expected: tuple[SiteId, ...], timeout_s: float) -> tuple[SiteId, ...]:
        """The sites that are online as soon as all expected ones are, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while missing := sorted(set(expected) - set(self.sites())):
            if time.monotonic() >= deadline:
                logger.warning("Not online after %g s: %s", timeout_s, ", ".join(missing))
                break
            time.sleep(self._poll_s)
        return tuple(sorted(self._site_by_node.values()))

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Mapping[SiteId, Message]:
        """Send each site its task; return what came back in time.

        A node's error and an answer that cannot be read come back as a ``Refusal`` in the site's name. A
        site whose node is gone is missing, like one that does not answer.
        """
        nodes = {site: node for node, site in self._site_by_node.items() if site in tasks}
        # One record for one task, not for one site: all sites of a round get the same one.
        records = {id(task): to_record(task) for task in tasks.values()}
        messages = {
            node: _message(records[id(tasks[site])], node, _type_of(tasks[site]), timeout_s)
            for site, node in nodes.items()
        }
        replies = self._send(messages, timeout_s)
        return {
            site: _answer(tasks[site], site, replies[node]) for site, node in nodes.items() if node in replies
        }

    def _introduce(self, nodes: list[int]) -> None:
        """Ask nodes for their sites' names."""
        queries = {
            node: _message(RecordDict(), node, MessageType.QUERY, self._query_timeout_s) for node in nodes
        }
        for node, reply in sorted(self._send(queries, self._query_timeout_s).items()):
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

    def _send(self, messages: Mapping[int, FlowerMessage], timeout_s: float) -> dict[int, FlowerMessage]:
        """Replies by node."""
        node_by_id: dict[str, int] = {}
        for node, message in messages.items():
            # One by one: a push of several large messages may be refused as a whole, by an empty answer.
            node_by_id.update({pushed: node for pushed in self._grid.push_messages([message]) if pushed})
        replies: dict[int, FlowerMessage] = {}
        deadline = time.monotonic() + timeout_s
        while node_by_id:
            for reply in self._grid.pull_messages(list(node_by_id)):
                # An error comes from the SuperLink, not from the node: only the id tells whose it is.
                answered = node_by_id.pop(reply.metadata.reply_to_message_id, None)
                if answered is not None:
                    replies[answered] = reply
            if time.monotonic() >= deadline:
                break
            if node_by_id:
                time.sleep(min(self._poll_s, max(0.0, deadline - time.monotonic())))
        return replies


def _message(record: RecordDict, node: int, message_type: str, ttl: float) -> FlowerMessage:
    # ttl on every message: Flower's own 12 hours would let a late answer live on.
    return FlowerMessage(record, node, message_type, ttl=ttl)


def _type_of(task: Message) -> str:
    return MessageType.EVALUATE if isinstance(task, EvaluateTask) else MessageType.TRAIN


def _answer(task: Message, site: SiteId, reply: FlowerMessage) -> Message:
    if reply.has_error():
        return refusal(task.run_id, site, _words(reply.error.code))
    try:
        return from_record(reply.content)
    except FederationError as error:
        return refusal(task.run_id, site, str(error))


def _words(code: int) -> str:
    return f"Flower error {code}: {ERRORS.get(code, 'of a kind not known here')}"
