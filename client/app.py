"""Flower's ClientApp: a thin messenger between the coordinator and the site's worker. No logic.

Flower starts a new process for every message, so nothing is kept here. The site's name comes from the
node's own configuration (``site="hospital-1"``), never from a message, and so does the place of its worker
(``worker="/run/consilium/worker.sock"``; without it, one attached in this process). What the worker cannot
or will not do goes back as a ``Refusal`` of one line.
"""

from __future__ import annotations

from pathlib import Path

from client.refusals import reply_or_refusal
from client.worker_link import Handler, attached, remote
from common.errors import SettingsError
from common.flower import NODE_CONFIG_SITE, from_record, run_name, site_record, to_record
from common.ids import SiteId, site_id

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

# The key of a node's configuration that holds the path of the worker's socket.
NODE_CONFIG_WORKER = "worker"

app = ClientApp()


@app.query()
def introduce(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Say which site this node is."""
    return FlowerMessage(site_record(site_of(context)), reply_to=message)


@app.train()
@app.evaluate()
def work(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Hand a task to the site's worker, and its answer back."""
    reply = reply_or_refusal(
        lambda: worker_of(context, message.metadata.ttl)(from_record(message.content)),
        run_name(context.run_id),
        site_of(context),
    )
    return FlowerMessage(to_record(reply), reply_to=message)


def worker_of(context: Context, timeout_s: float) -> Handler:
    """What answers the site's tasks, within ``timeout_s``. FederationError if nothing can."""
    path = context.node_config.get(NODE_CONFIG_WORKER)
    if path is None:
        return attached(site_of(context))
    if not isinstance(path, str) or not path:
        raise SettingsError(
            f"node config.{NODE_CONFIG_WORKER}", repr(path), "the path of the worker's socket"
        )
    return remote(Path(path), timeout_s=timeout_s)


def site_of(context: Context) -> SiteId:
    """The site that the node's configuration names. SettingsError."""
    name = context.node_config.get(NODE_CONFIG_SITE)
    try:
        return site_id(str(name or ""))
    except ValueError as error:
        raise SettingsError(f"node config.{NODE_CONFIG_SITE}", repr(name), "the site's name") from error
