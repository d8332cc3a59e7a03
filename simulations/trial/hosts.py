"""The hosts of a trial and what lies between them.

On the ``loopback`` all hosts are one machine. With ``namespaces`` each has a network namespace of its own
(Linux, root, ``ip`` and ``nft``) behind a bridge, and a firewall as hospitals have it: a site takes no
connection from outside and reaches the coordinator's two ports alone; the coordinator begins none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import FederationError

COORDINATOR = "coordinator"
LOOPBACK = "127.0.0.1"
NETWORK = "10.77.0"
COORDINATOR_PLACE, FIRST_SITE = 1, 11
TOOL_S = 30.0

_SITE_RULES = """
table inet consilium {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    ct state established,related accept
    ip daddr {coordinator} tcp dport {{ {ports} }} accept
  }}
}}
"""
_COORDINATOR_RULES = """
table inet consilium {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    tcp dport {{ {ports} }} accept
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    ct state established,related accept
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine of the trial.

    Attributes:
        name: The site's, or ``coordinator``.
        address: Where others reach it.
        prefix: What a command begins with to run there.
    """

    name: str
    address: str
    prefix: tuple[str, ...] = ()


Hosts = Mapping[str, Host]


def on_loopback(sites: Sequence[str]) -> Hosts:
    """All hosts on this machine's loopback."""
    return {name: Host(name=name, address=LOOPBACK) for name in (COORDINATOR, *sites)}


def why_no_namespaces() -> str:
    """Why this machine cannot have them; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"network namespaces need {' and '.join(missing)}"
    probe = subprocess.run(["ip", "netns", "list"], capture_output=True, timeout=TOOL_S)
    return "" if probe.returncode == 0 else "this kernel has no network namespaces"


@contextmanager
def in_namespaces(sites: Sequence[str], ports: Sequence[int]) -> Iterator[Hosts]:
    """A namespace for each host, removed with all that runs in it at the end.

    Args:
        sites: Their names.
        ports: Of the coordinator, that sites may reach.

    Raises:
        FederationError: The machine cannot have them.
    """
    reason = why_no_namespaces()
    if reason:
        raise FederationError(reason)
    mark = f"cns{os.getpid()}"
    places = {COORDINATOR: COORDINATOR_PLACE} | {site: FIRST_SITE + i for i, site in enumerate(sites)}
    names = {host: f"{mark}-{place}" for host, place in places.items()}
    hub = f"{mark}-hub"
    try:
        _ip("netns", "add", hub)
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for host, place in places.items():
            _connect(hub, names[host], place)
        _fence(names, ports)
        yield {
            host: Host(
                name=host,
                address=f"{NETWORK}.{place}",
                prefix=("ip", "netns", "exec", names[host]),
            )
            for host, place in places.items()
        }
    finally:
        for name in (*names.values(), hub):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=TOOL_S)


def _connect(hub: str, namespace: str, place: int) -> None:
    """A namespace with an address, at the end of a cable to the hub."""
    cable = f"v{place}"
    _ip("netns", "add", namespace)
    _ip("-n", hub, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("-n", hub, "link", "set", cable, "master", "br0", "up")
    _ip("-n", namespace, "addr", "add", f"{NETWORK}.{place}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")
    _ip("-n", namespace, "link", "set", "lo", "up")


def _fence(names: Mapping[str, str], ports: Sequence[int]) -> None:
    listed = ", ".join(map(str, ports))
    coordinator = f"{NETWORK}.{COORDINATOR_PLACE}"
    for host, namespace in names.items():
        rules = _COORDINATOR_RULES if host == COORDINATOR else _SITE_RULES
        _run(
            ("ip", "netns", "exec", namespace, "nft", "-f", "-"),
            rules.format(coordinator=coordinator, ports=listed),
        )


def _ip(*arguments: str) -> None:
    _run(("ip", *arguments))


def _run(command: Sequence[str], text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TOOL_S)
    if done.returncode:
        raise FederationError(f"{' '.join(command)}: {done.stderr.strip()}")
