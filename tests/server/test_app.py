import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import client.app
import server.app
from client.track_sessions import TrackSessions
from client.worker_link import attach, detach
from common.adapter import load_adapter, save_adapter
from common.errors import (
    BadFileError,
    DigestMismatchError,
    RunExistsError,
    SettingsError,
    TooFewSurvivorsError,
    UnapprovedSiteError,
)
from common.ids import SiteId
from common.messages import Message
from common.pki import IDENTITY_SCHEMA, Identity, write_public
from common.plan import RunPlan
from common.privacy.ledger import Ledger
from server.app import make_app
from server.journal import read_progress
from server.rounds import TrackState, run_round
from simulations.grid import FIRST_NODE, run_apps
from simulations.link import MemoryLink
from tests.fakes import (
    COORDINATOR,
    SITES,
    TRACK,
    fake_budgets,
    fake_identities,
    fake_sites,
    private_plan,
    private_state,
    private_works,
    tiny_adapter,
    tiny_plan,
)

PLAN = tiny_plan(rounds=2)

IMPORT_CHECK = """
import sys
import server.app, server.evaluation
heavy = {"torch", "transformers", "peft", "trl", "opacus", "timm", "datasets"} & set(sys.modules)
assert not heavy, heavy
from flwr.supercore import telemetry
assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
"""


@pytest.fixture
def config(tmp_path: Path) -> dict[str, str | float | int]:
    save_adapter(tiny_adapter(), tmp_path / f"{TRACK}.safetensors")
    (tmp_path / "identities").mkdir()
    for identity in fake_identities(PLAN).values():
        write_public(identity.public(), tmp_path / "identities")
    return {
        "plan": PLAN.to_json(),
        "adapters": str(tmp_path),
        "identities": str(tmp_path / "identities"),
        "out": str(tmp_path / "out"),
        "retry_pause_s": 0.0,
        "connect_timeout_s": 0.05,
    }


def employ(handlers: dict[SiteId, Callable[[Message], Message]]) -> None:
    for site, handler in handlers.items():
        detach(site)
        attach(site, handler)


@pytest.fixture(autouse=True)
def workers() -> Iterator[None]:
    employ(fake_sites(PLAN))
    yield
    for site in SITES:
        detach(site)


def run(config: dict[str, str | float | int], sites: tuple[str, ...] = SITES) -> None:
    run_apps(server.app.app, client.app.app, sites=sites, run_config=config)


def test_importing_the_server_app_leaves_torch_out_and_flower_quiet() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_CHECK], check=True)


def test_a_run_leaves_its_adapter_and_the_reports_of_its_rounds(config: dict, tmp_path: Path) -> None:
    run(config)
    folder = tmp_path / "out" / TRACK
    result = json.loads((folder / "rounds.json").read_text())
    assert result["schema"] == 1
    assert result["adapter_id"] == load_adapter(folder / "adapter.safetensors").digest()
    assert [report["round_id"] for report in result["rounds"]] == [1, 2]
    assert {report["mode"] for report in result["rounds"]} == {"secagg-v1"}
    assert [(report["sum_id"], report["exchanges"]) for report in result["rounds"]] == [(1, 4), (2, 2)]
    assert result["rounds"][0]["survivors"] == list(SITES)
    assert result["metrics"]["n"] == 40


def test_every_round_has_its_line_in_the_log(config: dict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="server.app"):
        run(config)
    lines = [record.getMessage() for record in caplog.records if record.name == "server.app"]
    assert [line.partition(":")[0] for line in lines] == [
        "prepared; declined",
        *["round closed"] * 2,
        "evaluated",
    ]
    assert "block B, 4 sites, 0 lost, 4 exchanges" in lines[1]
    assert '"n":40' in lines[3]


def sites_of_all_tracks(plan: RunPlan) -> dict[SiteId, Callable[[Message], Message]]:
    """For each site, what hands a task to the session of its track."""
    by_track = {track.track: fake_sites(plan, track=track.track) for track in plan.tracks}
    return {
        site: TrackSessions(site, {track: sites[site] for track, sites in by_track.items()})
        for site in plan.sites
    }


def test_all_tracks_of_a_plan_are_run(config: dict, tmp_path: Path) -> None:
    save_adapter(tiny_adapter(), tmp_path / "tissue_type.safetensors")
    plan = tiny_plan(rounds=1, tracks=(TRACK, "tissue_type"))
    employ(sites_of_all_tracks(plan))
    run({**config, "plan": plan.to_json()})
    for track in (TRACK, "tissue_type"):
        assert (tmp_path / "out" / track / "adapter.safetensors").is_file()


def test_an_adapter_that_is_not_the_plans_is_refused_before_any_site_is_asked(
    config: dict, tmp_path: Path
) -> None:
    save_adapter(tiny_adapter(seed=1), tmp_path / f"{TRACK}.safetensors")
    asked: list[Message] = []
    employ(dict.fromkeys(SITES, asked.append))
    with pytest.raises(DigestMismatchError, match=rf"{TRACK}\.safetensors"):
        run(config)
    assert asked == []


def test_a_site_that_nobody_approved_is_refused_before_any_site_is_asked(
    config: dict, tmp_path: Path
) -> None:
    asked: list[Message] = []
    employ(dict.fromkeys(SITES, asked.append))
    (tmp_path / "identities" / "site-c.json").unlink()
    with pytest.raises(UnapprovedSiteError, match="site-c is not approved here"):
        run(config)
    (tmp_path / "identities" / "site-c.json").write_text("{}")
    with pytest.raises(BadFileError, match=r"site-c\.json"):
        run(config)
    assert asked == []


def test_a_site_with_another_identity_than_the_approved_one_takes_no_part(
    config: dict, tmp_path: Path
) -> None:
    write_public(Identity.generate(SITES[1]).public(), tmp_path / "identities")
    run(config)
    result = json.loads((tmp_path / "out" / TRACK / "rounds.json").read_text())
    assert result["rounds"][0]["survivors"] == [SITES[0], SITES[2], SITES[3]]


def test_a_missing_adapter_file_is_named(config: dict, tmp_path: Path) -> None:
    (tmp_path / f"{TRACK}.safetensors").unlink()
    with pytest.raises(BadFileError, match=rf"{TRACK}\.safetensors"):
        run(config)


def test_a_run_without_a_plan_is_refused(config: dict) -> None:
    with pytest.raises(SettingsError, match="plan"):
        run({key: value for key, value in config.items() if key != "plan"})


def test_a_run_that_too_few_sites_join_ends_with_the_reason(config: dict, tmp_path: Path) -> None:
    with pytest.raises(TooFewSurvivorsError, match="2 sites survived, 3 needed"):
        run(config, SITES[:2])
    record = read_progress(tmp_path / "out").run
    assert (record.status, record.reason) == ("failed", "Round 1: 2 sites survived, 3 needed")


def test_a_site_that_declines_is_named_with_its_reason(config: dict, tmp_path: Path) -> None:
    detach(SITES[1])
    run(config)
    result = json.loads((tmp_path / "out" / TRACK / "rounds.json").read_text())
    assert "no worker is running for site site-b" in result["declined"]["site-b"]
    assert result["rounds"][0]["survivors"] == [SITES[0], SITES[2], SITES[3]]


def test_a_private_round_has_its_line_in_the_log_without_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = private_plan()
    sites = fake_sites(plan, private_works(plan), budgets=fake_budgets(plan, tmp_path))
    state = run_round(private_state(plan), MemoryLink(sites))
    with caplog.at_level(logging.INFO, logger="server.app"):
        log = server.app.StateLog()
        log(state)
        log(state)
    first, record = caplog.records
    assert first.getMessage() == "prepared, goes on after round 1; declined: none"
    assert "4 sites, 0 lost" in record.getMessage()
    assert "patients" not in record.getMessage()


def private_config(config: dict, tmp_path: Path) -> dict:
    plan = private_plan()
    path = tmp_path / "coordinator.json"
    own = {"schema": IDENTITY_SCHEMA, "site_id": COORDINATOR.site_id}
    path.write_text(json.dumps({**own, "private_key": COORDINATOR.private_key.hex()}))
    employ(fake_sites(plan, private_works(plan), budgets=fake_budgets(plan, tmp_path)))
    return {**config, "plan": plan.to_json(), "identity": str(path)}


def test_a_private_run_leaves_the_ledger_and_the_heads_of_the_sites(config: dict, tmp_path: Path) -> None:
    run(private_config(config, tmp_path))
    ledger = Ledger.open(tmp_path / "out" / "ledger.db", "all patients of consilium")
    assert [entry.charge.round_id for entry in ledger.entries()] == [1, 2, 3, 4]
    heads = json.loads((tmp_path / "out" / "ledger_heads" / f"{TRACK}.json").read_text())
    for site in SITES:
        own = Ledger.open(tmp_path / f"{site}.db", f"patients of {site}").entries()
        assert heads[site] == own[-1].digest
    assert server.app.load_heads(tmp_path / "out", TRACK) == heads
    result = json.loads((tmp_path / "out" / TRACK / "rounds.json").read_text())
    assert {report["patients"] for report in result["rounds"]} == {None}
    assert all(report["noise_std"] > 0 for report in result["rounds"])


def test_a_private_run_without_the_coordinators_identity_is_refused(config: dict, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"identity: expected the file of the coordinator's own identity"):
        run({key: value for key, value in private_config(config, tmp_path).items() if key != "identity"})


def test_a_run_goes_on_under_its_own_name_where_it_was_left(config: dict, tmp_path: Path) -> None:
    named = {**config, "run": "trial-1"}
    folder = tmp_path / "out"
    seen: list[TrackState] = []

    def stop_after_a_round(state: TrackState) -> None:
        if state.history:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_apps(
            make_app(stop_after_a_round), client.app.app, sites=SITES, run_config={**named, "attempts": 1}
        )
    assert read_progress(folder).run.status == "stopped"
    with pytest.raises(RunExistsError, match="trial-1 was begun here; resume it"):
        run(named)
    resumed = {**named, "resume": True}
    run_apps(make_app(seen.append), client.app.app, sites=SITES, run_config=resumed, run_id=2)
    assert [state.round_id for state in seen] == [1, 2, 2]
    result = json.loads((folder / TRACK / "rounds.json").read_text())
    assert (result["run_id"], [report["sum_id"] for report in result["rounds"]]) == ("trial-1", [1, 2])
    assert read_progress(folder).run.flower_runs == (1, 2)
    # Everything is done: no site is asked, and what came out is written again.
    (folder / TRACK / "rounds.json").unlink()
    employ(dict.fromkeys(SITES, None))
    run(resumed)
    assert json.loads((folder / TRACK / "rounds.json").read_text()) == result


def nodes_file(path: Path, nodes: dict[str, str], schema: int = 1) -> str:
    path.write_text(json.dumps({"schema": schema, "nodes": nodes}))
    return str(path)


def test_a_run_that_knows_its_nodes_asks_none_for_its_name(config: dict, tmp_path: Path) -> None:
    # The fourth node says it is site-d, and is no site of this consortium.
    nodes = {str(FIRST_NODE + place): site for place, site in enumerate(SITES[:3])}
    run({**config, "nodes": nodes_file(tmp_path / "nodes.json", nodes)})
    result = json.loads((tmp_path / "out" / TRACK / "rounds.json").read_text())
    assert result["rounds"][0]["survivors"] == list(SITES[:3])


def test_a_list_of_nodes_that_cannot_be_read_ends_the_run_with_its_reason(
    config: dict, tmp_path: Path
) -> None:
    with pytest.raises(BadFileError, match=r"nodes\.json"):
        run({**config, "nodes": str(tmp_path / "nodes.json")})
    assert read_progress(tmp_path / "out").run.status == "failed"


def test_a_ledger_that_is_kept_over_runs_has_a_folder_of_its_own(config: dict, tmp_path: Path) -> None:
    home = tmp_path / "home"
    run({**private_config(config, tmp_path), "ledger": str(home)})
    assert (home / "ledger.db").is_file()
    assert set(server.app.load_heads(home, TRACK)) == set(SITES)
    assert not (tmp_path / "out" / "ledger.db").exists()
