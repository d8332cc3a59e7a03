"""Which SuperNode is which site: enrolled sites' nodes are registered with SuperLink, others are taken out.

Guarantees:
    A node is registered if and only if its key is that of an enrolled site that was not revoked.
    A site that was revoked is refused from the next look on, in the middle of whatever it does.

Written into the coordinator's ``run/``: ``nodes.json``, the sites by node, for ServerApps (``server.grid``),
and how the sites are (``server.presence``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from common.atomic import write_atomically
from common.errors import SuperLinkError
from common.ids import SiteId
from server.home import CoordinatorHome
from server.presence import SITES_SCHEMA, Presence, read_presence, sites_file
from server.site_records import site_records
from server.superlink import Node, SuperLink, node_key_pem

logger = logging.getLogger(__name__)

NODES_SCHEMA = 1
Audit = Callable[..., object]
"""Is told of an event: its name, and facts about it."""


class Nodes:
    """Keeps SuperLink's nodes those of the enrolled sites."""

    def __init__(self, home: CoordinatorHome, link: SuperLink, audit: Audit) -> None:
        """Of a coordinator's home; nothing is done yet."""
        self._home, self._link, self._audit = home, link, audit
        self._refused: dict[SiteId, str] = {}
        self._written: Mapping[int, SiteId] | None = None

    def sync(self) -> Mapping[SiteId, Presence]:
        """Register and take out what has to be; how the sites are. SuperLinkError, BadFileError."""
        wanted = self._wanted()
        nodes = {node.public_key: node for node in self._link.list_nodes()}
        for key, node in nodes.items():
            if key not in wanted:
                self._take_out(node)
        site_by_node: dict[int, SiteId] = {}
        for key, site in wanted.items():
            number = nodes[key].node_id if key in nodes else self._register(key, site)
            if number is not None:
                site_by_node[number] = site
        self._write_nodes(site_by_node)
        return self._write_presence(site_by_node, nodes.values())

    def problems(self) -> Mapping[SiteId, str]:
        """The sites whose nodes SuperLink does not take, with its words."""
        return dict(self._refused)

    def _wanted(self) -> dict[bytes, SiteId]:
        records = (record for record in site_records(self._home) if record.revoked is None)
        return {node_key_pem(record.node_key.encode()): record.site for record in records}

    def _take_out(self, node: Node) -> None:
        try:
            self._link.unregister_node(node.node_id)
        except SuperLinkError:
            # `revoke` may have done it a moment ago.
            if any(other.node_id == node.node_id for other in self._link.list_nodes()):
                raise
            return
        site = node.site or "a stranger"
        logger.warning("%s: its node %d was taken out", site, node.node_id)
        self._audit("node-taken-out", site=site, node=str(node.node_id))

    def _register(self, key: bytes, site: SiteId) -> int | None:
        try:
            number = self._link.register_node(key, site)
        except SuperLinkError as error:
            # The others' nodes must not wait for one that cannot be helped here.
            if self._refused.get(site) != error.reason:
                logger.error("%s: %s", site, error)
                self._audit("node-refused", site=site, reason=error.reason)
            self._refused[site] = error.reason
            return None
        self._refused.pop(site, None)
        logger.info("%s: its node %d is registered", site, number)
        self._audit("node-registered", site=site, node=str(number))
        return number

    def _write_nodes(self, site_by_node: Mapping[int, SiteId]) -> None:
        if site_by_node == self._written:
            return
        content = {"schema": NODES_SCHEMA, "nodes": {str(node): site for node, site in site_by_node.items()}}
        write_atomically(self._home.run / "nodes.json", json.dumps(content, indent=1) + "\n")
        self._written = dict(site_by_node)

    def _write_presence(self, site_by_node: Mapping[int, SiteId], nodes: Any) -> Mapping[SiteId, Presence]:
        before, now = read_presence(self._home), datetime.now(UTC).isoformat(timespec="seconds")
        online = {node.node_id for node in nodes if node.online}
        found = {
            site: Presence(
                online=node in online,
                last_seen=now if node in online else before[site].last_seen if site in before else None,
                node=node,
            )
            for node, site in site_by_node.items()
        }
        content = {"schema": SITES_SCHEMA, "sites": {site: asdict(one) for site, one in found.items()}}
        write_atomically(sites_file(self._home), json.dumps(content, indent=1) + "\n")
        return found
