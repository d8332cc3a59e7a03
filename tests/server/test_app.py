import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import client.app
import server.app
from client.worker import attach, detach
from common.adapter import load_adapter, save_adapter
from common.errors import BadFileError, DigestMismatchError, SettingsError, TooFewSurvivorsError
from simulations.grid import run_apps
from tests.fakes import SITES, TRACK, fake_sites, tiny_adapter, tiny_plan

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
    return {
        "plan": tiny_plan(rounds=2).to_json(),
        "adapters": str(tmp_path),
        "out": str(tmp_path / "out"),
        "retry_pause_s": 0.0,
        "connect_timeout_s": 0.05,
    }


@pytest.fixture(autouse=True)
def workers() -> Iterator[None]:
    for site, handler in fake_sites(tiny_plan()).items():
        attach(site, handler)
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
    assert {report["mode"] for report in result["rounds"]} == {"clear"}
    assert result["rounds"][0]["survivors"] == list(SITES)
    assert result["metrics"]["n"] == 40


def test_every_round_has_its_line_in_the_log(config: dict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="server.app"):
        run(config)
    lines = [record.getMessage() for record in caplog.records if record.name == "server.app"]
    assert lines[0] == "rare_disease: prepared; declined: none"
    assert lines[1].startswith("rare_disease: round 1 closed (block B, mode clear): 4 survivors, 0 dropouts")
    assert lines[3].startswith("rare_disease: evaluated: {'n': 40")


def test_all_tracks_of_a_plan_are_run(config: dict, tmp_path: Path) -> None:
    save_adapter(tiny_adapter(), tmp_path / "tissue_type.safetensors")
    plan = tiny_plan(rounds=1, tracks=(TRACK, "tissue_type"))
    run({**config, "plan": plan.to_json()})
    for track in (TRACK, "tissue_type"):
        assert (tmp_path / "out" / track / "adapter.safetensors").is_file()


def test_an_adapter_that_is_not_the_plans_is_refused_before_any_site_is_asked(
    config: dict, tmp_path: Path
) -> None:
    save_adapter(tiny_adapter(seed=1), tmp_path / f"{TRACK}.safetensors")
    asked = []
    detach(SITES[0])
    attach(SITES[0], lambda task: asked.append(task))
    with pytest.raises(DigestMismatchError, match=rf"{TRACK}\.safetensors"):
        run(config)
    assert asked == []


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
    assert not (tmp_path / "out").exists()


def test_a_site_that_declines_is_named_with_its_reason(config: dict, tmp_path: Path) -> None:
    detach(SITES[1])
    run(config)
    result = json.loads((tmp_path / "out" / TRACK / "rounds.json").read_text())
    assert "no worker is running for site site-b" in result["declined"]["site-b"]
    assert result["rounds"][0]["survivors"] == [SITES[0], SITES[2], SITES[3]]
