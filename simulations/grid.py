"""Flower's ServerApp and ClientApp in one process: the live code, without SuperLink, SuperNodes or Ray.

``LocalGrid`` is a ``Grid`` that keeps a message until its reply is pulled, and calls the client app then: one
site after another, and never two replies in memory. What Flower's processes set up for their apps (task
identity, context, message ids, an error reply for an app that raises) is set up here the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from common.flower import NODE_CONFIG_SITE
from common.ids import SiteId

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Context, Error, RecordDict, UserConfigValue
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SUPERLINK_NODE = 1
FIRST_NODE = 1001
APP_RAISED = 2
NODE_UNAVAILABLE = 5


class LocalGrid(Grid):
    """A grid of sites that live in this process."""

    def __init__(self, client_app: ClientApp, sites: Iterable[SiteId], *, run_id: int = 1) -> None:
        """Give every site a node, whose configuration holds the site's name."""
        self._client_app = client_app
        self._run = Run.create_empty(run_id)
        self._contexts = {
            node: _context(run_id, node, {NODE_CONFIG_SITE: site}, {})
            for node, site in enumerate(sites, FIRST_NODE)
        }
        self._waiting: dict[str, FlowerMessage] = {}
        self._pushed = 0

    def set_run(self, run: Run) -> None:
        """Work in another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> FlowerMessage:
        """A message from the server app to a node."""
        return FlowerMessage(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        """Take the messages; their ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        """Have the nodes do what these messages ask, one after another; the replies, each once."""
        for message_id in message_ids:
            if message_id in self._waiting:
                yield self._reply(self._waiting.pop(message_id))

    def send_and_receive(
        self, messages: Iterable[FlowerMessage], *, timeout: float | None = None
    ) -> Iterable[FlowerMessage]:
        """The replies to messages. They are there at once, so that ``timeout`` is never reached."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _push(self, message: FlowerMessage) -> str:
        self._pushed += 1
        message_id = f"message-{self._pushed}"
        # As Flower's own grid does it: the field has no setter.
        message.metadata.__dict__["_message_id"] = message_id
        self._waiting[message_id] = message
        return message_id

    def _reply(self, message: FlowerMessage) -> FlowerMessage:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return FlowerMessage(Error(NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
        with task_identity(run_id=context.run_id, node_id=context.node_id, task_id=self._pushed):
            try:
                return self._client_app(message, context)
            except Exception as error:
                # As Flower's own process does it, text of the error included.
                return FlowerMessage(Error(APP_RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)


def run_apps(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    sites: Iterable[SiteId],
    run_config: Mapping[str, UserConfigValue],
    run_id: int = 1,
) -> None:
    """Run both apps to the end, as Flower would. Raises what the server app raises."""
    grid = LocalGrid(client_app, sites, run_id=run_id)
    with task_identity(run_id=run_id, node_id=SUPERLINK_NODE, task_id=0):
        server_app(grid, _context(run_id, SUPERLINK_NODE, {}, run_config))


@contextmanager
def task_identity(*, run_id: int, node_id: int, task_id: int) -> Iterator[None]:
    """Be this task of Flower's for a while: a message takes its sender from a class, not from an argument."""
    names = ("_run_id", "_node_id", "_task_id")
    before: dict[str, Any] = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def _context(
    run_id: int,
    node_id: int,
    node_config: Mapping[str, UserConfigValue],
    run_config: Mapping[str, UserConfigValue],
) -> Context:
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )
