"""The real processes of a coordinator and four hospitals: what they refuse, and a run with kills on the way.

One stand for all tests, which go on from one another in the order of the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from client.home import SiteHome
from common.plan_package import PlanPackage, read_package
from server.home import CoordinatorHome
from server.journal import read_progress
from server.superlink import SuperLink
from simulations.trial.__main__ import ALL_SITES, free_ports, stand_up
from simulations.trial.chaos import COORDINATOR_KINDS, SITE_KINDS, kill
from simulations.trial.equal import differing, simulated, trained
from simulations.trial.hospitals import NO_NOISE, make_hospitals
from simulations.trial.hosts import COORDINATOR, on_loopback
from simulations.trial.judge import judge
from simulations.trial.stand import CONSORTIUM, Stand
from tests.flower.deployment import missing_scripts

pytestmark = pytest.mark.skipif(
    bool(missing_scripts()), reason=f"needs Flower's scripts: {', '.join(missing_scripts())}"
)

RUN = "killed"
# Bounds for a busy machine; on a quiet one each takes a tenth.
RUN_S = 900.0
ROUND_S = 300.0
ROUNDS = 3


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    # Not in pytest's own folder, whose names are long: sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="ct"))
    overrides = [
        *NO_NOISE,
        ALL_SITES,
        f"plan.training.rounds={ROUNDS}",
        f"tracks.tissue_type.training.rounds={ROUNDS}",
        "plan.aggregation.timeout_s=60",
    ]
    try:
        hospitals = make_hospitals(folder / "given", overrides=overrides, cache=folder / "cache")
        with Stand(folder, on_loopback(hospitals.plan.sites), hospitals, free_ports()) as made:
            stand_up(made)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def audit(stand: Stand, site: str, event: str) -> list[dict]:
    lines = stand.site(site, "audit", "--json").json["lines"]
    return [line for line in lines if line["event"] == event]


def loads(stand: Stand, site: str) -> int:
    status = SiteHome(stand.home(site)).consortium(CONSORTIUM).worker_status
    return int(json.loads(status.read_text())["loads"])


def test_a_plan_that_nobody_approved_runs_nowhere(stand: Stand) -> None:
    other = read_package(stand.hospitals.package)
    other = PlanPackage(plan=replace(other.plan, name="not approved"), answers=other.answers)
    path = stand.folder / "other.json"
    path.write_text(other.to_json())
    adapters = [w for t, p in stand.hospitals.adapters.items() for w in ("--adapter", f"{t}={p}")]
    stand.coordinator("plan", str(path), *adapters)
    done = stand.run(other.plan.digest(), "unapproved", timeout_s=RUN_S)
    assert done.status == 3, done
    assert done.out.count("is not approved here") >= len(stand.sites)
    for site in stand.sites:
        assert "is not approved here" in audit(stand, site, "refused")[-1]["reason"]
        assert loads(stand, site) == 0


def test_the_code_of_a_run_is_refused_and_never_run(stand: Stand) -> None:
    out, mark = stand.folder / "foreign.json", stand.folder / "ran"
    project = (
        '[project]\nname = "consilium"\nversion = "0.1.0"\n[tool.flwr.app]\npublisher = "consilium"\n'
        '[tool.flwr.app.components]\nserverapp = "foreign_app:server_app"\n'
        'clientapp = "foreign_app:client_app"\n[tool.flwr.app.config]\nout = ""\nmark = ""\n'
    )
    files = {
        "pyproject.toml": project.encode(),
        "foreign_app.py": Path(__file__).with_name("foreign_app.py").read_bytes(),
    }
    content = build_fab_from_files(files)[0]
    settings = CoordinatorHome(stand.home(COORDINATOR)).settings()
    link = SuperLink(settings.private_host, settings.superlink_port)
    request = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
        override_config=user_config_to_proto({"out": str(out), "mark": str(mark)}),
    )
    # Whoever reaches the Control interface can do this much.
    link._client.StartRun(request)
    stand.wait_for(out.exists, "an end of the foreign run", RUN_S)
    answers = json.loads(out.read_text())
    assert len(answers) == len(stand.sites)
    assert all("the run's app bundle is refused" in answer for answer in answers)
    assert not mark.exists()
    for site in stand.sites:
        assert "foreign_app.py" in audit(stand, site, "refused")[-1]["reason"]
        assert loads(stand, site) == 0


def test_a_run_that_is_killed_on_the_way_ends_like_the_undisturbed_simulation(stand: Stand) -> None:
    digest = stand.hospitals.plan.digest()
    stand.coordinator("run", digest[:16], "--run", RUN, "--detach")
    for closed, (host, words) in enumerate(
        [
            ("site-b", SITE_KINDS["worker"]),
            (COORDINATOR, COORDINATOR_KINDS["serverapp"]),
            ("site-c", SITE_KINDS["supernode"]),
            (COORDINATOR, COORDINATOR_KINDS["coordinator"]),
        ]
    ):
        wait_for_round(stand, min(closed, ROUNDS - 1))
        kill(stand, host, words)
        go_on(stand)
    deadline = time.monotonic() + RUN_S
    while read_progress(stand.out(RUN)).run.status != "finished":
        assert time.monotonic() < deadline
        go_on(stand)
        time.sleep(1)
    found = judge(stand, RUN)
    assert found["faults"] == []
    assert differing(trained(stand, RUN), simulated(stand, stand.folder / "simulated")) == []


def wait_for_round(stand: Stand, number: int) -> None:
    """Until both tracks have closed the round, resuming the run where it stops."""
    deadline = time.monotonic() + ROUND_S
    while time.monotonic() < deadline:
        if (stand.out(RUN) / "run.json").exists():
            tracks = read_progress(stand.out(RUN)).tracks
            if len(tracks) == 2 and all(track.round_id >= number for track in tracks.values()):
                return
            go_on(stand)
        time.sleep(1)
    raise AssertionError(f"round {number} was not closed within {ROUND_S:g} s")


def go_on(stand: Stand) -> None:
    """`resume`, if nobody works on the run; what it says otherwise is no matter here."""
    progress = read_progress(stand.out(RUN))
    if not progress.held and progress.run.status != "finished":
        stand.coordinator("resume", RUN, "--detach", check=False)


def test_a_warm_message_costs_no_model_load(stand: Stand) -> None:
    log = SiteHome(stand.home("site-a")).consortium(CONSORTIUM).logs / "worker.log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    trained_by_round = [line for line in lines if line.get("what") == "TrainTask"]
    assert len(trained_by_round) >= ROUNDS
    assert all("load_s" not in line for line in trained_by_round)
    # Two bases and three eyes, once.
    assert loads(stand, "site-a") == 5


def test_a_revoked_site_reaches_nothing(stand: Stand) -> None:
    lost = "site-d"
    stand.coordinator("revoke", lost, "--reason", "a test", "--yes")

    def is_refused() -> bool:
        status = SiteHome(stand.home(lost)).consortium(CONSORTIUM).proxy_status
        return json.loads(status.read_text())["state"] == "refused"

    stand.wait_for(is_refused, "refusal of the gateway", ROUND_S)
    rows = {row["site"]: row for row in stand.coordinator("status", "--json").json["sites"]}
    assert rows[lost]["online"] is False
    assert rows[lost]["revoked"]
    digest = stand.hospitals.plan.digest()
    done = stand.coordinator("run", digest[:16], "--run", "without", check=False)
    assert done.status == 1
    assert lost in done.err
