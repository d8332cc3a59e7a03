"""The workers of this process: what holds a site's models and answers its tasks.

A worker outlives the messages that it answers. It is attached under its site's name, and the client app
hands every task of that site to it.
"""

from __future__ import annotations

from collections.abc import Callable

from common.errors import FederationError
from common.ids import SiteId
from common.messages import Message

Handler = Callable[[Message], Message]

_HANDLERS: dict[SiteId, Handler] = {}


def attach(site_id: SiteId, handle: Handler) -> None:
    """Let ``handle`` answer the site's tasks. ValueError if a worker is attached already."""
    if site_id in _HANDLERS:
        raise ValueError(f"Expected no worker for site {site_id} yet, got a second one")
    _HANDLERS[site_id] = handle


def detach(site_id: SiteId) -> None:
    """End it; a site without a worker is left as it is."""
    _HANDLERS.pop(site_id, None)


def attached(site_id: SiteId) -> Handler:
    """What answers the site's tasks. FederationError if nothing does."""
    if site_id not in _HANDLERS:
        raise FederationError(f"no worker is running for site {site_id}")
    return _HANDLERS[site_id]
