"""The coordinator's hand on Flower's SuperLink: starts runs, registers the nodes of enrolled sites.

Over Flower's Control interface, which has no authentication of its own, hence on a private address. A run is
started from an app bundle (FAB) that holds no code, only the names of the ServerApp and the ClientApp, which
both ends take from their own installed packages.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from common.errors import BadFileError, SuperLinkError
from common.flower import QUIET
from common.ids import SiteId, site_id

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors.http import RuntimeVersionHttpInterceptor

Value = str | int | float | bool

APP_NAME = "consilium"
COMPONENTS: Mapping[str, str] = MappingProxyType(
    {"serverapp": "server.app:app", "clientapp": "client.app:app"}
)
RUN_CONFIG: Mapping[str, Value] = MappingProxyType(
    {
        "plan": "",
        "adapters": "",
        "identities": "",
        "identity": "",
        "out": "",
        "run": "",
        "nodes": "",
        "resume": False,
        "ledger": "",
        "attempts": 3,
        "retry_pause_s": 10.0,
        "connect_timeout_s": 60.0,
    }
)
"""The keys of a run's configuration, with what Flower takes where one is not given."""
# How often a SuperExec asks for work, seconds; 1 by default.
TASK_POLL_S = 0.2
FINISHED = "finished"
COMPLETED = "finished:completed"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered SuperNode.

    Attributes:
        node_id: Flower's number of it.
        site: Its name, given when it was registered; None for a stranger's.
        online: Whether it was heard of in the last minute.
        public_key: ECDSA public key, PEM.
        last_seen: When it last came, or was heard of until, UTC, ISO 8601; None if it never was.
    """

    node_id: int
    site: SiteId | None
    online: bool
    public_key: bytes
    last_seen: str | None


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run of Flower's.

    Attributes:
        flower_id: Flower's number of it.
        status: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed`` or
            ``finished:stopped``.
        details: Flower's words on a failure; they may be empty.
        name: The run's own, out of its configuration; empty if it was given none.
    """

    flower_id: int
    status: str
    details: str
    name: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended, in one way or another."""
        return self.status.startswith(FINISHED)


class SuperLink:
    """The Control interface of a SuperLink. Every method may raise SuperLinkError."""

    def __init__(self, host: str, port: int) -> None:
        """Talk to the SuperLink at a private address; nothing is sent yet."""
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reach_directly(host)
        self._client = ControlHttpClient.from_server_address(
            self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            answer = httpx.get(f"http://{self.address}/health", timeout=1.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    def start_run(self, config: Mapping[str, Value]) -> int:
        """Start a run; Flower's number of it. ValueError for a key that is none of ``RUN_CONFIG``."""
        unknown = sorted(set(config) - set(RUN_CONFIG))
        if unknown:
            raise ValueError(f"Expected keys among {', '.join(RUN_CONFIG)}, got {', '.join(unknown)}")
        content = codeless_fab()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        with self._errors("start a run"):
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise SuperLinkError("start a run", self.address, "no run was started")
        return int(answer.run_id)

    def run_status(self, flower_id: int) -> FlowerRun:
        """How a run is. SuperLinkError if SuperLink knows no such run."""
        with self._errors(f"ask for run {flower_id}"):
            answer = self._client.ListRuns(ListRunsRequest(run_id=flower_id))
        if flower_id not in answer.run_dict:
            raise SuperLinkError(f"ask for run {flower_id}", self.address, "no such run")
        return _run_of(answer.run_dict[flower_id])

    def unfinished_runs(self) -> tuple[FlowerRun, ...]:
        """All runs that have not ended."""
        with self._errors("ask for the runs"):
            answer = self._client.ListRuns(ListRunsRequest())
        runs = (_run_of(found) for found in answer.run_dict.values())
        return tuple(run for run in runs if not run.over)

    def stop_run(self, flower_id: int) -> None:
        """Stop a run; its ServerApp ends, wherever it is."""
        with self._errors(f"stop run {flower_id}"):
            self._client.StopRun(StopRunRequest(run_id=flower_id))

    def register_node(self, public_key: bytes, site: SiteId) -> int:
        """Admit the node with this key (OpenSSH or PEM) under a site's name; Flower's number of it.

        Guarantee: a key that is registered already keeps its number.
        """
        pem = node_key_pem(public_key)
        try:
            with self._errors(f"register the node of {site}"):
                answer = self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=site))
            return int(answer.node_id)
        except SuperLinkError:
            for node in self.list_nodes():
                if node.public_key == pem:
                    return node.node_id
            raise

    def unregister_node(self, node_id: int) -> None:
        """Take a node out: it is refused from now on, in the middle of whatever it does."""
        with self._errors(f"unregister node {node_id}"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def list_nodes(self) -> tuple[Node, ...]:
        """All registered nodes."""
        with self._errors("ask for the nodes"):
            answer = self._client.ListNodes(ListNodesRequest())
        return tuple(_node_of(found) for found in answer.nodes_info if found.status != "unregistered")

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise SuperLinkError(what, self.address, _reason(error.response)) from error
        except (httpx.HTTPError, ValueError) as error:
            raise SuperLinkError(what, self.address, f"no answer ({type(error).__name__})") from error


def superlink_command(host: str, port: int, database: Path) -> tuple[str, ...]:
    """Flower's SuperLink, which keeps what is on its way in ``database``."""
    return (
        *(_program("flower-superlink"), "--insecure", "--host", host, "--port", str(port)),
        *("--isolation", "process", "--database", str(database)),
        "--disable-runtime-dependency-installation",
    )


def superexec_command(host: str, port: int) -> tuple[str, ...]:
    """What starts ServerApps: a process of its own, so that a run outlives a SuperLink that is killed."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return (_program("flower-superexec"), "--insecure", "--runtime-api-address", address)


def flower_environment(flower_home: Path) -> dict[str, str]:
    """What Flower's processes are started with: telemetry off, this Python's programs first."""
    # Flower starts a process for each task, which would compile its libraries anew: seconds each.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        **QUIET,
        "FLWR_HOME": str(flower_home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
        # Flower starts its app processes by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def reach_directly(host: str) -> None:
    """Keep this process, and those that it starts, from asking a proxy for a private address."""
    known = [entry for entry in os.environ.get("NO_PROXY", "").split(",") if entry]
    if host not in known:
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join([*known, host])


def codeless_fab() -> bytes:
    """An app bundle without code: the same bytes each time."""
    return build_fab_from_files({"pyproject.toml": _pyproject().encode()})[0]


def _pyproject() -> str:
    config = "\n".join(f"{key} = {_toml(value)}" for key, value in RUN_CONFIG.items())
    components = "\n".join(f'{key} = "{value}"' for key, value in COMPONENTS.items())
    return f"""\
[project]
name = "{APP_NAME}"
version = "1.0.0"
description = "Names the apps that each end has installed; holds no code"
license = "Apache-2.0"
dependencies = []

[tool.uv]
default-groups = []

[tool.flwr.app]
publisher = "{APP_NAME}"

[tool.flwr.app.components]
{components}

[tool.flwr.app.config]
{config}
"""


def _toml(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def node_key_pem(public_key: bytes) -> bytes:
    """A node's public key (OpenSSH or PEM) as Flower keeps it. BadFileError."""
    try:
        load = (
            serialization.load_ssh_public_key
            if public_key.startswith(b"ecdsa-")
            else serialization.load_pem_public_key
        )
        key = load(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadFileError("node key", f"expected a public key ({type(error).__name__})") from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise BadFileError("node key", f"expected an ECDSA key, got {type(key).__name__}")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _run_of(found: Any) -> FlowerRun:
    status = found.status
    name = f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)
    given = found.override_config["run"].string if "run" in found.override_config else ""
    return FlowerRun(flower_id=int(found.run_id), status=name, details=str(status.details), name=str(given))


def _node_of(found: Any) -> Node:
    try:
        site: SiteId | None = site_id(str(found.name))
    except ValueError:
        site = None
    seen = found.last_deactivated_at or found.last_activated_at or None
    return Node(
        node_id=int(found.node_id),
        site=site,
        online=found.status == "online",
        public_key=bytes(found.public_key),
        last_seen=seen,
    )


def _reason(response: httpx.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        return f"status {response.status_code}"
    words = content.get("public_message") or content.get("detail") if isinstance(content, dict) else None
    return f"status {response.status_code}: {words}" if words else f"status {response.status_code}"
