"""A coordinator's home for tests: made by `init`, with sites that enrolled without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.adapter import save_adapter
from common.certificates import Authority, make_csr, new_key
from common.errors import SuperLinkError
from common.ids import SiteId
from common.pki import Identity
from common.plan import RunPlan
from common.plan_package import PlanPackage
from common.tracks import Answer, AnswerList
from server.cli import OK, main
from server.home import CoordinatorHome
from server.site_records import add_site
from server.superlink import FlowerRun, Node
from tests.fakes import SITES, TRACK, tiny_adapter, tiny_plan

CONSORTIUM = "trial"


def made_home(folder: Path, *more: str) -> CoordinatorHome:
    """A new coordinator's."""
    command = ["init", "--home", str(folder), "--consortium", CONSORTIUM, "--host", "127.0.0.1", *more]
    assert main(command) == OK
    return CoordinatorHome(folder)


def node_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def enrolled(home: CoordinatorHome, *sites: SiteId) -> None:
    """As if these sites had enrolled."""
    authority = Authority.open(home.authority)
    for site in sites:
        certificate = authority.sign_site(make_csr(new_key(), site), site, 90)
        identity = Identity.generate(site).public()
        add_site(home, identity, node_key=node_key(), certificate=certificate, protocol=1)


def packaged(**plan: Any) -> PlanPackage:
    """A plan of the consortium, with answers."""
    made = tiny_plan(tiny_adapter())
    answers = AnswerList(answers=(Answer(id="OMIM:154700", name="Marfan syndrome"),))
    tracks = tuple(replace(track, answers_digest=answers.digest()) for track in made.tracks)
    made = replace(made, **{"tracks": tracks, "consortium": CONSORTIUM, **plan})
    return PlanPackage(plan=made, answers={track.track: answers for track in made.tracks})


def offered(home: CoordinatorHome, folder: Path) -> RunPlan:
    """A plan that is offered to its sites, which have enrolled."""
    enrolled(home, *SITES)
    package = packaged()
    (folder / "plan.json").write_text(package.to_json())
    save_adapter(tiny_adapter(), folder / "start.safetensors")
    command = ["plan", str(folder / "plan.json"), "--adapter", f"{TRACK}={folder / 'start.safetensors'}"]
    assert main([*command, "--home", str(home.root)]) == OK
    return package.plan


class FakeLink:
    """A SuperLink in memory: nodes by key, runs by number; ``away`` and it answers nothing."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.runs: dict[int, FlowerRun] = {}
        self.started: list[dict[str, Any]] = []
        self.used: set[bytes] = set()
        self.away = False
        self.closed = False

    def is_healthy(self) -> bool:
        return not self.away

    def close(self) -> None:
        self.closed = True

    def register_node(self, public_key: bytes, site: SiteId) -> int:
        self._answer()
        if public_key in self.used:
            raise SuperLinkError(f"register the node of {site}", "fake", "status 412: already in use")
        self.used.add(public_key)
        number = 100 + len(self.used)
        self.nodes[number] = Node(
            node_id=number, site=site, online=False, public_key=public_key, last_seen=None
        )
        return number

    def unregister_node(self, node_id: int) -> None:
        self._answer()
        del self.nodes[node_id]

    def list_nodes(self) -> tuple[Node, ...]:
        self._answer()
        return tuple(self.nodes.values())

    def come_online(self, site: SiteId) -> None:
        for number, node in self.nodes.items():
            if node.site == site:
                self.nodes[number] = replace(node, online=True)

    def start_run(self, config: dict[str, Any]) -> int:
        self._answer()
        self.started.append(config)
        number = len(self.started)
        self.runs[number] = FlowerRun(flower_id=number, status="pending", details="", name=config["run"])
        return number

    def become(self, number: int, status: str, details: str = "") -> None:
        self.runs[number] = replace(self.runs[number], status=status, details=details)

    def run_status(self, flower_id: int) -> FlowerRun:
        self._answer()
        return self.runs[flower_id]

    def unfinished_runs(self) -> tuple[FlowerRun, ...]:
        self._answer()
        return tuple(run for run in self.runs.values() if not run.over)

    def stop_run(self, flower_id: int) -> None:
        self._answer()
        self.become(flower_id, "finished:stopped")

    def _answer(self) -> None:
        if self.away:
            raise SuperLinkError("do anything", "fake", "no answer")
