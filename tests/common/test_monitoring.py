"""Tests of health and metrics."""

import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.errors import PublicAddressError
from common.monitoring import ChildrenCollector, Monitoring, failing_children, require_private
from common.supervisor import Row

HOST = "127.0.0.1"


def row(name: str, **more: object) -> Row:
    keys = {
        "pid": 7,
        "state": "running",
        "restarts": 0,
        "since": "2026-11-29T10:00:00+00:00",
        "last_exit": None,
    }
    return Row(name=name, memory_mb=2.0, **(keys | more))  # type: ignore[arg-type]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_is_200_if_all_is_well_and_503_with_the_failing_parts_by_name() -> None:
    failing: dict[str, str] = {}
    with Monitoring(HOST, 0, failing=lambda: failing) as monitoring:
        assert get(monitoring.port, "/health") == (200, '{"status": "ok", "failing": {}}\n')
        failing["gateway"] = "waiting"
        status, content = get(monitoring.port, "/health?verbose")
    assert (status, json.loads(content)) == (503, {"status": "failing", "failing": {"gateway": "waiting"}})


def test_metrics_are_what_prometheus_reads() -> None:
    registry = CollectorRegistry()
    registry.register(ChildrenCollector(lambda: [row("worker", restarts=2), row("proxy", state="waiting")]))
    Gauge("consilium_sites_online", "sites", registry=registry).set(3)
    with Monitoring(HOST, 0, failing=dict, registry=registry) as monitoring:
        status, text = get(monitoring.port, "/metrics")
    assert status == 200
    lines = text.splitlines()
    assert 'consilium_process_up{process="worker"} 1.0' in lines
    assert 'consilium_process_up{process="proxy"} 0.0' in lines
    assert 'consilium_process_restarts_total{process="worker"} 2.0' in lines
    assert 'consilium_process_memory_bytes{process="worker"} 2.097152e+06' in lines
    assert "consilium_sites_online 3.0" in lines


def test_other_paths_and_methods_are_refused() -> None:
    with Monitoring(HOST, 0, failing=dict) as monitoring:
        assert get(monitoring.port, "/")[0] == 404
        with socket.create_connection((HOST, monitoring.port), timeout=5) as raw:
            raw.sendall(b"POST /health HTTP/1.0\r\n\r\n")
            assert b" 501 " in raw.recv(200)


def test_children_that_do_not_run_are_failing() -> None:
    rows = [row("a"), row("b", state="waiting", last_exit="SIGKILL"), row("c", state="starting")]
    assert failing_children(rows) == {
        "b": "waiting since 2026-11-29T10:00:00+00:00, ended last with SIGKILL",
        "c": "starting since 2026-11-29T10:00:00+00:00",
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1"])
def test_private_addresses_are_taken(host: str) -> None:
    require_private("private_host", host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "no such host"])
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(PublicAddressError, match="private_host: expected a private address"):
        require_private("private_host", host)
