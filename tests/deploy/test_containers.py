"""Images and compose: who may do what, and what is named the same everywhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import read_yaml
from server.home import DEFAULTS

ROOT = Path(__file__).parents[2]
IMAGES = sorted((ROOT / "deploy" / "images").glob("Containerfile.*"))
SITES = ("alpha", "beta", "gamma", "delta")
SITE_HEALTH = 8471


def compose() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def version() -> str:
    found = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def steps(path: Path) -> list[tuple[str, str]]:
    """An image's instructions, continued lines put together."""
    text = re.sub(r"(?m)^#.*\n", "", path.read_text()).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def of(path: Path, name: str) -> list[str]:
    return [rest for step, rest in steps(path) if step == name]


def test_there_is_an_image_for_each_role() -> None:
    assert [path.suffix for path in IMAGES] == [".coordinator", ".site-cpu", ".site-cuda"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_runs_as_nobody_and_says_how_it_is(path: Path) -> None:
    assert of(path, "USER") == ["10001:10001"]
    assert len(of(path, "HEALTHCHECK")) == 1
    assert of(path, "VOLUME") == ["/var/lib/consilium"]
    assert not of(path, "ADD")
    # Whatever is copied is named: no data, no home, nothing that happens to lie in the folder.
    for rest in of(path, "COPY"):
        assert not any(word in (".", "./", "runs") for word in rest.split()[:-1]), rest


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_built_in_two_stages_from_what_the_lock_names(path: Path) -> None:
    assert len(of(path, "FROM")) == 2
    role = path.suffix.removeprefix(".").replace("site-cuda", "site")
    built = of(path, "RUN")[0]
    assert f"deploy/requirements.sh {role} > locked.txt" in built
    assert built.count("--require-hashes --no-deps") == 2
    copied = {word for rest in of(path, "COPY") for word in rest.split() if not word.startswith("--")}
    for name in {word.rstrip("/") for word in copied if not word.startswith((".", "/"))} - {
        "deploy/requirements.sh"
    }:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_starts_a_command_that_the_project_installs(path: Path) -> None:
    (entry,) = of(path, "ENTRYPOINT")
    scripts = re.findall(r'(?m)^(consilium-[a-z]+) = "', (ROOT / "pyproject.toml").read_text())
    assert yaml.safe_load(entry)[-1] in scripts


def test_images_know_the_ports_of_the_settings() -> None:
    ports = read_yaml(DEFAULTS)
    coordinator, *sites = IMAGES
    assert of(coordinator, "EXPOSE") == [f"{ports['gateway_port']} {ports['enrolment_port']}"]
    assert f"127.0.0.1:{ports['health_port']}/health" in coordinator.read_text()
    for path in sites:
        assert not of(path, "EXPOSE")
        assert f"127.0.0.1:{SITE_HEALTH}/health" in path.read_text()


def test_four_hospitals_and_a_coordinator_are_composed() -> None:
    assert set(compose()["services"]) == {"coordinator", *SITES}


def test_no_service_opens_a_port_or_has_rights_that_it_does_not_need() -> None:
    for name, service in compose()["services"].items():
        assert (
            not {"ports", "privileged", "cap_add", "network_mode", "pid", "devices", "user"} & service.keys()
        ), name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"


def test_a_hospital_reaches_the_coordinator_and_nobody_else() -> None:
    services, networks = compose()["services"], compose()["networks"]
    assert services["coordinator"]["networks"] == list(SITES)
    for site in SITES:
        assert services[site]["networks"] == [site]
        assert networks[site] == {"internal": True}


def test_every_hospital_has_a_home_and_a_key_of_its_own_and_reads_patients_only() -> None:
    services = compose()["services"]
    for site in SITES:
        assert services[site]["env_file"] == [f"env/{site}.env"]
        home, data, models, _ = services[site]["volumes"]
        assert home == f"{site}:/var/lib/consilium"
        assert (data, models) == (f"./data/{site}:/data:ro", "./models:/models:ro")
        assert site in compose()["volumes"]


def test_images_are_named_with_this_version() -> None:
    for service in compose()["services"].values():
        assert service["image"].startswith(("consilium-coordinator:", "consilium-site:"))
        assert f"${{CONSILIUM_VERSION:-{version()}}}" in service["image"]
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_no_secret_is_in_the_repository() -> None:
    folder = ROOT / "deploy" / "compose"
    assert "env/*.env" in (folder / ".gitignore").read_text().split()
    for line in (folder / "env" / "site.env.example").read_text().splitlines():
        assert line.startswith("#") or shlex.split(line)[0].endswith("=")
