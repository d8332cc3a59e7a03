"""Every sample is read by the code that reads the real file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from client.settings import read_settings
from common.plan_package import read_package
from common.settings import read_yaml
from server.home import DEFAULTS, CoordinatorHome

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "deploy" / "samples"


def test_the_sample_of_a_site_is_read_as_its_settings() -> None:
    settings = read_settings(SAMPLES / "site.yaml")
    assert (settings.site, settings.approvals_needed, settings.network.health_port) == ("charite", 2, 8471)


def test_the_sample_of_a_coordinator_is_read_as_its_settings_and_says_the_defaults(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "coordinator.yaml", tmp_path / "coordinator.yaml")
    settings = CoordinatorHome(tmp_path).settings()
    for key, value in read_yaml(DEFAULTS).items():
        assert getattr(settings, key) == value, key


def test_the_sample_of_a_plan_is_a_plan_with_its_answers() -> None:
    package = read_package(SAMPLES / "plan.json")
    assert len(package.plan.sites) == 4
    assert {track.track for track in package.plan.tracks} == {"rare_disease", "tissue_type"}


def test_prometheus_scrapes_the_ports_of_the_samples() -> None:
    config = yaml.safe_load((SAMPLES / "prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    health = read_yaml(DEFAULTS)["health_port"]
    assert targets == {
        "consilium-coordinator": [f"127.0.0.1:{health}"],
        "consilium-gateway": [f"127.0.0.1:{health + 1}"],
        "consilium-site": [f"127.0.0.1:{read_settings(SAMPLES / 'site.yaml').network.health_port}"],
    }
    assert (SAMPLES / config["rule_files"][0]).is_file()


def metrics_in_code() -> set[str]:
    folders = (ROOT / name for name in ("client", "common", "server"))
    text = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    return set(re.findall(r'"(consilium_[a-z_]+)"', text))


def test_every_alert_asks_for_a_metric_that_is_measured_and_says_what_to_do() -> None:
    rules = yaml.safe_load((SAMPLES / "alerts.yml").read_text())["groups"][0]["rules"]
    assert len(rules) >= 5
    measured = metrics_in_code()
    for rule in rules:
        named = re.findall(r"consilium_[a-z_]+", rule["expr"])
        assert named or "up{" in rule["expr"]
        # A counter's name ends in _total where it is scraped.
        assert {name.removesuffix("_total") for name in named} <= measured, rule["alert"]
        assert rule["annotations"]["summary"]
        assert "action" in rule["annotations"]


@pytest.mark.parametrize(
    "line", ["site: Charité", "quantum: true", "approvals_needed: 3", "master_key: vault:a"]
)
def test_a_slip_in_a_sample_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    key = line.partition(":")[0]
    kept = [
        each for each in (SAMPLES / "site.yaml").read_text().splitlines() if not each.startswith(f"{key}:")
    ]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match="site"):
        read_settings(path)
