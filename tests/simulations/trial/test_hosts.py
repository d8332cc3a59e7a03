"""Sites go out to the coordinator's two ports, and nobody comes in."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import FederationError
from simulations.trial.hosts import COORDINATOR, Host, in_namespaces, on_loopback, why_no_namespaces

OPEN, CLOSED = 8443, 9000
LIMIT_S = 20

LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
listener.settimeout(15)
try:
    listener.accept()
except OSError:
    pass
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.5).close()
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""


def test_on_the_loopback_all_hosts_are_one() -> None:
    hosts = on_loopback(["site-a", "site-b"])
    assert set(hosts) == {COORDINATOR, "site-a", "site-b"}
    assert {(host.address, host.prefix) for host in hosts.values()} == {("127.0.0.1", ())}


def test_without_the_rights_or_the_tools_namespaces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(FederationError, match="need root"), in_namespaces(["site-a"], [OPEN]):
        pass
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(FederationError, match="need ip and nft"), in_namespaces(["site-a"], [OPEN]):
        pass


@contextmanager
def listening(host: Host, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [*host.prefix, sys.executable, "-c", LISTEN, host.address, str(port)], stdout=subprocess.PIPE
    )
    killer = threading.Timer(LIMIT_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.kill()
        process.wait()
        killer.cancel()


def tried(source: Host, target: Host, port: int) -> str:
    command = [*source.prefix, sys.executable, "-c", CONNECT, target.address, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces() or "there are some")
def test_a_site_reaches_the_open_ports_alone_and_is_reached_by_nobody() -> None:
    with in_namespaces(["site-a", "site-b"], [OPEN]) as hosts:
        coordinator, a, b = hosts[COORDINATOR], hosts["site-a"], hosts["site-b"]
        with listening(coordinator, OPEN):
            assert tried(a, coordinator, OPEN) == "reached"
        with listening(coordinator, CLOSED):
            assert tried(a, coordinator, CLOSED) == "TimeoutError"
        with listening(a, OPEN):
            assert tried(coordinator, a, OPEN) == "TimeoutError"
            assert tried(b, a, OPEN) == "TimeoutError"
