"""What a site may ask of SuperLink, and for whom: decisions of the gateway, without any network.

SuperLink itself believes what a request says about its node, and its other interfaces ask for no name at all.
So a request goes through if its certificate is a site's that takes part, its path is one that SuperNode
needs, its node key is the site's, and the node that its body speaks for is the site's, too.

The bodies are Flower's protobuf messages. Of them only field 1 is looked at, which in all of them is the node
or its key; a contract test holds that against Flower's own definitions.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from common.atomic import write_atomically
from common.canonical import canonical_json, read_object
from common.certificates import RevocationList, serial_text, site_of
from common.enrolment_messages import read_node_key
from common.errors import (
    BadCertificateError,
    BadFileError,
    BadMessageError,
    GatewayRefusedError,
    SettingsError,
    SiteRevokedError,
    UnknownSiteError,
)
from common.ids import SiteId
from server.home import CoordinatorHome
from server.node_field import FieldOne, Value, node_message
from server.site_records import active_site

# flwr.supercore.constant.FLEET_HTTP_PUBLIC_KEY_HEADER
NODE_KEY_HEADER = b"flwr-public-key"
FLEET = "/v1/fleet/"
HEALTH = b"/health"
ACTIVATE = "activate-node"
# What field 1 of each request is: the node's key, its number, or a message whose only field is its number.
FIELD_1: Mapping[str, str] = {
    ACTIVATE: "key",
    "deactivate-node": "number",
    "send-node-heartbeat": "node",
    "pull-messages": "node",
    "push-messages": "node",
    "get-run": "node",
    "get-fab": "node",
    "push-object": "node",
    "pull-object": "node",
    "confirm-message-received": "node",
}
# Sites are registered by the coordinator, which knows whose key it is.
CLOSED = ("register-node", "unregister-node")
NODES_SCHEMA = 1
_PATH = re.compile(rb"/v1/fleet/([a-z]+(?:-[a-z]+)*)")


def open_method(method: str, raw_path: bytes, query: bytes) -> str:
    """The Fleet method that a request asks for; nothing for ``GET /health``.

    The path is compared as it came, byte by byte: one that needs decoding, or has a dot, a slash or a query
    too many, is another path.

    Raises:
        GatewayRefusedError: The gateway does not open this.
    """
    shown = ascii(raw_path[:80])[2:-1]
    if query:
        raise GatewayRefusedError("path", f"{shown}: expected no query")
    if raw_path == HEALTH:
        if method != "GET":
            raise GatewayRefusedError("method", f"{shown}: expected GET, got {method[:16]}")
        return ""
    found = _PATH.fullmatch(raw_path)
    name = found.group(1).decode() if found else ""
    if name in CLOSED:
        raise GatewayRefusedError("registration", f"{shown}: only the coordinator registers nodes")
    if name not in FIELD_1:
        raise GatewayRefusedError("path", f"{shown}: not open to sites; expected {FLEET}... or /health")
    if method != "POST":
        raise GatewayRefusedError("method", f"{shown}: expected POST, got {method[:16]}")
    return name


class Sites:
    """Who is behind a certificate; asks the coordinator's files anew each time."""

    def __init__(self, home: CoordinatorHome, authority: x509.Certificate) -> None:
        self._home = home
        self._revoked = RevocationList(home.authority / "revoked.pem", authority)

    def site(self, certificate: x509.Certificate | None, now: datetime) -> tuple[SiteId, bytes]:
        """The site and its node key, PEM.

        Raises:
            GatewayRefusedError: No certificate of a site that takes part.
            BadFileError: The coordinator's files cannot be read; nobody gets in.
        """
        if certificate is None:
            raise GatewayRefusedError("certificate", "expected a client certificate")
        try:
            site = site_of(certificate)
        except BadCertificateError as error:
            raise GatewayRefusedError("certificate", str(error)) from error
        if self._revoked.is_revoked(certificate.serial_number):
            raise GatewayRefusedError("revoked", f"{site}: the certificate was revoked")
        # TLS has looked at this once; a connection may stay open for longer.
        if now >= certificate.not_valid_after_utc:
            raise GatewayRefusedError("expired", f"{site}: the certificate has ended; renew it")
        try:
            record = active_site(self._home, site)
        except (UnknownSiteError, SiteRevokedError) as error:
            raise GatewayRefusedError("site", str(error)) from error
        if serial_text(certificate.serial_number) not in record.certificates:
            raise GatewayRefusedError("site", f"{site}: the certificate is of an earlier enrolment")
        return site, pem_of_node_key(record.node_key)


def pem_of_node_key(text: str) -> bytes:
    """A node's key as Flower sends it, from its OpenSSH line. BadFileError."""
    try:
        key = read_node_key(text)
    except SettingsError as error:
        raise BadFileError("record of a site", str(error)) from error
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form)


def require_node_key(site: SiteId, headers: Sequence[tuple[bytes, bytes]], expected: bytes) -> None:
    """GatewayRefusedError unless Flower's header holds the site's node key, and nothing else, once."""
    given = [value for name, value in headers if name.lower() == NODE_KEY_HEADER]
    if len(given) != 1:
        raise GatewayRefusedError("node key", f"{site}: expected one node key, got {len(given)}")
    try:
        key = b64decode(given[0], validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if key != expected:
        raise GatewayRefusedError("node key", f"{site}: expected the node key that the site enrolled with")


class Nodes:
    """SuperLink's numbers of the sites' nodes, learned from its answers; kept for the next process."""

    def __init__(self, path: Path) -> None:
        """Read what was kept. BadFileError."""
        self._path = path
        self._nodes = self._read()

    def number(self, site: SiteId) -> int:
        """The site's node. GatewayRefusedError if it has not been activated."""
        if site not in self._nodes:
            raise GatewayRefusedError("node", f"{site}: its node was not activated; start SuperNode anew")
        return self._nodes[site]

    def learn(self, site: SiteId, answer: bytes) -> None:
        """Keep the number in SuperLink's answer to an activation. BadMessageError if it is none."""
        found: list[Value] = []
        scan = FieldOne(found.append)
        scan.feed(answer)
        scan.finish()
        number = found[0]
        if not isinstance(number, int):
            raise BadMessageError("expected the number of a node")
        if self._nodes.get(site) != number:
            self._nodes[site] = number
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = {"schema": NODES_SCHEMA, "nodes": self._nodes}
            write_atomically(self._path, canonical_json(content) + "\n")

    def _read(self) -> dict[SiteId, int]:
        try:
            content = read_object(self._path.read_text(encoding="utf-8"), "nodes")
            return {SiteId(site): int(number) for site, number in content["nodes"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadFileError(self._path, f"expected nodes by site ({type(error).__name__})") from error


def own_node(site: SiteId, method: str, *, key: bytes, nodes: Nodes) -> FieldOne:
    """What reads a body as it passes, and refuses one that speaks for another node than the site's."""
    kind = FIELD_1[method]
    expected: Value = key
    if kind != "key":
        number = nodes.number(site)
        expected = number if kind == "number" else node_message(number)

    def check(value: Value) -> None:
        if value != expected:
            raise GatewayRefusedError("node", f"{site}: {method}: speaks for another node than the site's")

    return FieldOne(check)
