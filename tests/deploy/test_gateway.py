"""nginx before the coordinator: what it passes and what it refuses, with the consortium's certificates."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.certificates import Authority, certificate_pem, key_pem, make_csr, new_key
from common.ids import SiteId
from common.settings import read_yaml
from server.gateway_rules import CLOSED, FIELD_1
from server.home import DEFAULTS

GATEWAY = Path(__file__).parents[2] / "deploy" / "gateway"
HOME = "/var/lib/consilium/coordinator"
NGINX = shutil.which("nginx")
START_S = 20.0


def text_of(name: str) -> str:
    return (GATEWAY / name).read_text()


def test_the_samples_use_the_coordinators_ports() -> None:
    ports = read_yaml(DEFAULTS)
    for name in ("nginx.conf", "nginx-stream.conf"):
        listened = {int(port) for port in re.findall(r"listen (?:[\d.]+:)?(\d+)", text_of(name))}
        assert listened == {ports["gateway_port"], ports["enrolment_port"]}, name
    assert f"server 127.0.0.1:{ports['superlink_port']};" in text_of("nginx.conf")


def test_the_sample_opens_the_methods_of_the_gateway_and_no_other() -> None:
    opened = re.search(r"location ~ \^/v1/fleet/\(([a-z|-]+)\)\$", text_of("nginx.conf"))
    assert opened is not None
    assert set(opened[1].split("|")) == set(FIELD_1)
    for name in CLOSED:
        assert f"location = /v1/fleet/{name} {{ return 403; }}" in text_of("nginx.conf")


def test_the_sample_says_what_it_cannot_do() -> None:
    assert "CANNOT" in text_of("nginx.conf")
    for line in ("ssl_verify_client on;", "ssl_protocols TLSv1.3;", "authority/revoked.pem;"):
        assert line in text_of("nginx.conf")


def block(text: str, name: str) -> str:
    """A block of the outermost level, with its braces."""
    start = text.index(f"\n{name} {{") + 1
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0 and text[place] == "}":
            return text[start : place + 1]
    raise AssertionError(f"{name} does not end")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local(text: str, folder: Path, port: int, upstream: int) -> str:
    """The sample over a folder and ports of the test."""
    moved = text.replace(HOME, str(folder)).replace("/var/log/nginx", str(folder))
    moved = moved.replace("/run/nginx.pid", str(folder / "nginx.pid"))
    moved = moved.replace("192.0.2.10:8443", f"127.0.0.1:{port}").replace(
        "127.0.0.1:8460", f"127.0.0.1:{upstream}"
    )
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return moved.replace("http {\n", f"http {{\n{paths}").replace(
        "worker_processes auto;", "worker_processes 1;"
    )


class Upstream(BaseHTTPRequestHandler):
    """Stands for SuperLink: answers everything, with the path that it got."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        content = self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's home, with certificates of two sites, one of them revoked, and a stranger's."""
    home = tmp_path_factory.mktemp("home")
    authority = Authority.create(home / "authority", "north")
    key = new_key()
    (home / "server.key").write_bytes(key_pem(key))
    (home / "server.crt").write_bytes(certificate_pem(authority.sign_server(key.public_key(), ["127.0.0.1"])))
    stranger = Authority.create(home / "other", "north")
    for name, signer in (("alpha", authority), ("beta", authority), ("stranger", stranger)):
        own = new_key()
        certificate = signer.sign_site(make_csr(own, SiteId(name)), SiteId(name), 1)
        (home / f"{name}.pem").write_bytes(key_pem(own) + certificate_pem(certificate))
        if name == "beta":
            authority.revoke([certificate.serial_number])
    return home


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """nginx over the sample's http part; its port."""
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port, path = free_port(), folder / "nginx.conf"
    text = text_of("nginx.conf")
    path.write_text(local(text.replace(block(text, "stream"), ""), folder, port, upstream.server_address[1]))
    tested = subprocess.run(
        [NGINX, "-t", "-c", str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert tested.returncode == 0, tested.stderr
    process = subprocess.Popen([NGINX, "-c", str(path), "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        upstream.shutdown()
        upstream.server_close()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.05)
        else:
            return


def ask(port: int, folder: Path, who: str | None, path: str, method: str = "POST") -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(folder / "authority" / "ca.crt"))
    if who is not None:
        context.load_cert_chain(folder / f"{who}.pem")
    connection = HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    with closing(connection):
        connection.request(method, path, body=b"body" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("method", FIELD_1)
def test_a_site_reaches_what_its_node_needs(method: str, port: int, folder: Path) -> None:
    assert ask(port, folder, "alpha", f"/v1/fleet/{method}") == (200, f"/v1/fleet/{method}")


def test_a_site_reaches_the_health(port: int, folder: Path) -> None:
    assert ask(port, folder, "alpha", "/health", "GET") == (200, "/health")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *((f"/v1/fleet/{name}", "POST") for name in CLOSED),
        ("/v1/control/start-run", "POST"),
        ("/v1/runtime/pull-messages", "POST"),
        ("/v1/fleet/", "POST"),
        ("/v1/fleet/pull-messages/", "POST"),
        ("/v1/fleet/pull-messages?node=1", "POST"),
        ("/v1/fleet/../control/start-run", "POST"),
        ("/v1/fleet/x/../pull-messages", "POST"),
        ("/v1/fleet/pull%2Dmessages", "POST"),
        ("/v1//fleet/pull-messages", "POST"),
        ("/v1/fleet/pull-messages", "GET"),
        ("/health", "POST"),
        ("/", "GET"),
    ],
)
def test_a_site_reaches_nothing_else(path: str, method: str, port: int, folder: Path) -> None:
    assert ask(port, folder, "alpha", path, method)[0] == 403


@pytest.mark.parametrize("who", [None, "beta", "stranger"])
def test_without_a_certificate_of_the_consortium_nobody_comes_in(
    who: str | None, port: int, folder: Path
) -> None:
    try:
        status, text = ask(port, folder, who, "/v1/fleet/pull-messages")
    except (ssl.SSLError, ConnectionError):
        return
    assert status == 400
    assert "/v1/fleet" not in text


def test_the_streams_are_understood(tmp_path: Path) -> None:
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    for number, text in enumerate(
        (text_of("nginx-stream.conf"), "events {}\n" + block(text_of("nginx.conf"), "stream"))
    ):
        path = tmp_path / f"{number}.conf"
        moved = text.replace("/var/log/nginx", str(tmp_path)).replace("/run/nginx.pid", str(tmp_path / "pid"))
        path.write_text(moved)
        done = subprocess.run(
            [NGINX, "-t", "-c", str(path)], capture_output=True, text=True, timeout=30, check=False
        )
        if 'unknown directive "stream"' in done.stderr:
            pytest.skip("this nginx has no stream module")
        assert done.returncode == 0, done.stderr
