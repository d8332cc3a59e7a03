"""The live system, as hospitals run it, only nearer: see ``tests.flower.deployment``."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.session import SiteSession
from common.adapter import Adapter, load_adapter, save_adapter
from common.ids import SiteId
from common.pki import write_public
from common.plan import RunPlan
from server.rounds import run_track
from simulations.link import MemoryLink
from tests.fakes import COUNTS, SITES, TRACK, fake_identities, fake_sites, tiny_adapter, tiny_plan, tiny_state
from tests.flower.deployment import ROOT, Deployment, Run, missing_scripts, node_name
from tests.flower.processes import Processes

needs_flower = pytest.mark.skipif(
    bool(missing_scripts()), reason=f"needs Flower's scripts: {', '.join(missing_scripts())}"
)

# What the real daemons do through kills is in tests/simulations/trial, in every run of the suite.
soak_only = pytest.mark.skipif("CONSILIUM_SOAK" not in os.environ, reason="two minutes; `make soak` runs it")

ROUNDS = 2
# Bounds for a busy machine: where nothing is late, nothing waits for them.
EXCHANGE_S = 180.0
RUN_S = 600.0
ENDED_S = 10.0

# What a SuperNode logs when an answer is delivered.
SENT = "Sent successfully"
# Leaves a child behind and ends.
ORPHAN = "sleep 60 & echo $!"

KEEPER = """
import os, sys, time
from pathlib import Path
from tests.flower.processes import Processes

processes = Processes(Path(sys.argv[1]))
processes.start("sleep", ["sh", "-c", "echo $$; exec sleep 60"], folder=Path(), environment=os.environ)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not tmp_path, which has the test's name in it: a socket's path is short.
    return tmp_path_factory.mktemp("f")


@needs_flower
@soak_only
def test_a_supernode_killed_after_its_upload_stays_in_the_sum(folder: Path) -> None:
    """Two rounds; in the second one SuperNode is gone before the masks come off. t = 3 of 4 sites."""
    plan = tiny_plan(rounds=ROUNDS, timeout_s=EXCHANGE_S)
    lost = SITES[3]
    with Deployment(folder, plan, short_heartbeat=True) as deployment:
        run = deployment.run(run_config(folder, "out", plan), timeout_s=RUN_S)
        steer = Steer(deployment, run)
        steer.wait_for_line("answered", SITES, "1")
        steer.hold(SITES)
        steer.wait_for_line("asked", (lost,), "2")
        steer.let_upload(lost)
        deployment.kill_node(lost)
        steer.go(SITES)
        assert run.wait() == "finished:completed", run.log
    expected = run_track(
        tiny_state(rounds=ROUNDS, timeout_s=EXCHANGE_S),
        MemoryLink(fake_sites(plan)),
        on_state=lambda state: None,
    )
    # The same adapter as if nothing had happened, and the same as over the link in memory.
    assert adapter_of(folder / "out").digest() == expected.adapter.digest()
    rounds, evaluated = result_of(folder / "out")
    assert [report["survivors"] for report in rounds] == [list(SITES)] * ROUNDS
    assert [report["exchanges"] for report in rounds] == [4, 2]
    # Whoever is gone is no member of the next sum.
    assert evaluated["n"] == 3 * COUNTS.n


@needs_flower
@soak_only
def test_a_supernode_killed_before_its_upload_is_recovered(folder: Path) -> None:
    lost, left = SITES[3], SITES[:3]
    recover = tiny_plan(rounds=1, timeout_s=EXCHANGE_S)
    expected = run_track(
        tiny_state(rounds=1, timeout_s=EXCHANGE_S),
        MemoryLink(fake_sites_without(recover, lost)),
        on_state=lambda state: None,
    )
    with Deployment(folder, recover, short_heartbeat=True) as deployment:
        lose_before_upload(deployment, deployment.run(run_config(folder, "a", recover), timeout_s=RUN_S))
        rounds, _ = result_of(folder / "a")
        assert [(r["survivors"], list(r["dropouts"]), r["exchanges"]) for r in rounds] == [
            (list(left), [lost], 5)
        ]
        assert adapter_of(folder / "a").digest() == expected.adapter.digest()


@needs_flower
@soak_only
def test_a_round_that_loses_a_supernode_is_tried_again(folder: Path) -> None:
    lost, left = SITES[3], SITES[:3]
    abort = tiny_plan(rounds=1, timeout_s=EXCHANGE_S, lost_before_upload="abort")
    expected = run_track(
        tiny_state(rounds=1, timeout_s=EXCHANGE_S),
        MemoryLink(fake_sites_without(abort, lost)),
        on_state=lambda state: None,
    )
    with Deployment(folder, abort, short_heartbeat=True) as deployment:
        config = {**run_config(folder, "out", abort), "attempts": 2, "retry_pause_s": 0.0}
        lose_before_upload(deployment, deployment.run(config, timeout_s=RUN_S))
    rounds, _ = result_of(folder / "out")
    # The same sum, but of a roster of three with fresh keys: nobody is lost in it.
    assert [(r["survivors"], r["dropouts"], r["sum_id"]) for r in rounds] == [(list(left), {}, 3)]
    assert adapter_of(folder / "out").digest() == expected.adapter.digest()


def lose_before_upload(deployment: Deployment, run: Run) -> None:
    """Kill a SuperNode while its site is at work, and see the run end."""
    lost, steer = SITES[3], Steer(deployment, run)
    steer.hold((lost,))
    steer.wait_for_line("asked", (lost,), "1")
    deployment.kill_node(lost)
    assert run.wait() == "finished:completed", run.log
    steer.go((lost,))


@dataclass(frozen=True)
class Steer:
    """Holds sites up and sees what they do, by the files of ``tests.flower.sites``."""

    deployment: Deployment
    run: Run

    def hold(self, sites: Sequence[SiteId]) -> None:
        for site in sites:
            (self.deployment.sites / f"hold-{site}").touch()

    def go(self, sites: Sequence[SiteId]) -> None:
        for site in sites:
            (self.deployment.sites / f"go-{site}").touch()

    def wait_for_line(self, what: str, sites: Sequence[SiteId], line: str) -> None:
        files = [self.deployment.sites / f"{what}-{site}" for site in sites]
        self._wait(lambda: all(f.exists() and line in f.read_text().split() for f in files), what)

    def let_upload(self, site: SiteId) -> None:
        """Let a site that is held answer, and wait until its SuperNode has delivered the answer."""
        name = node_name(site)
        sent = self.deployment.log(name).count(SENT)
        self.go((site,))
        self._wait(lambda: self.deployment.log(name).count(SENT) > sent, f"an upload of {site}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            assert not self.deployment.has_ended(self.run.name), f"no {what}\n{self.run.log}"
            assert time.monotonic() < self.run.deadline, f"no {what}\n{self.run.log}"
            time.sleep(0.1)


def run_config(folder: Path, out: str, plan: RunPlan) -> dict[str, str | float]:
    save_adapter(tiny_adapter(), folder / f"{TRACK}.safetensors")
    (folder / "identities").mkdir()
    for identity in fake_identities(plan).values():
        write_public(identity.public(), folder / "identities")
    return {
        "plan": plan.to_json(),
        "adapters": str(folder),
        "identities": str(folder / "identities"),
        "out": str(folder / out),
        "connect_timeout_s": EXCHANGE_S,
    }


def fake_sites_without(plan: RunPlan, lost: SiteId) -> dict[SiteId, SiteSession]:
    return {site: session for site, session in fake_sites(plan).items() if site != lost}


def adapter_of(out: Path) -> Adapter:
    return load_adapter(out / TRACK / "adapter.safetensors")


def result_of(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    content = json.loads((out / TRACK / "rounds.json").read_text())
    return content["rounds"], content["metrics"]


def test_closing_ends_what_a_process_left_behind(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "logs")
    processes.start("orphan", ["sh", "-c", ORPHAN], folder=tmp_path, environment=os.environ)
    wait_for(lambda: processes.has_ended("orphan"))
    orphan = int(processes.log("orphan"))
    assert is_alive(orphan)
    processes.close()
    wait_for(lambda: not is_alive(orphan))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal at the parent's death")
def test_processes_end_with_a_test_runner_that_is_killed(tmp_path: Path) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, str(tmp_path / "logs")], cwd=ROOT)
    log = tmp_path / "logs" / "sleep.log"
    try:
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
    finally:
        keeper.kill()
        keeper.wait(ENDED_S)
    sleeper = int(log.read_text())
    wait_for(lambda: not is_alive(sleeper))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDED_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead, and may stay one where process 1 does not collect them.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
