"""Flower's ClientApp: a thin messenger between the coordinator and the site's worker. No logic.

Flower may start a new process for every message, so nothing is kept here. The site's name comes from the
node's own configuration (``site="hospital-1"``), never from a message. What the worker cannot or will not
do goes back as a ``Refusal`` of one line.

Guarantee: no text of an unexpected error leaves the site, since it may quote a patient's data. The
coordinator gets its class, the site's own log the rest.
"""

from __future__ import annotations

import logging

from client.worker import attached
from common.errors import FederationError, SettingsError
from common.flower import NODE_CONFIG_SITE, from_record, run_name, site_record, to_record
from common.ids import RunId, SiteId, site_id
from common.messages import Message, refusal

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

logger = logging.getLogger(__name__)

app = ClientApp()


@app.query()
def introduce(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Say which site this node is."""
    return FlowerMessage(site_record(site_of(context)), reply_to=message)


@app.train()
@app.evaluate()
def work(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Hand a task to the site's worker, and its answer back."""
    reply = answer(message.content, site_of(context), run_name(context.run_id))
    return FlowerMessage(to_record(reply), reply_to=message)


def answer(record: RecordDict, site: SiteId, run: RunId) -> Message:
    """The worker's answer to the task in ``record``, or a ``Refusal`` with its reason."""
    try:
        return attached(site)(from_record(record))
    except FederationError as error:
        return refusal(run, site, str(error))
    except Exception as error:
        # Whatever it is, Flower would send its text to the coordinator and stop this process.
        logger.exception("%s: a task failed", site)
        return refusal(run, site, f"the task failed with {type(error).__name__}; see the site's log")


def site_of(context: Context) -> SiteId:
    """The site that the node's configuration names. SettingsError."""
    name = context.node_config.get(NODE_CONFIG_SITE)
    try:
        return site_id(str(name or ""))
    except ValueError as error:
        raise SettingsError(f"node config.{NODE_CONFIG_SITE}", repr(name), "the site's name") from error
