"""Helm charts, without Helm: what they ask for is in their values, and a site only goes out.

Nothing here is rendered. A template is read for the values that it names and for its brackets; where its
lines of logic are taken out and its values put in as text, what is left has to be YAML.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import read_yaml
from server.home import DEFAULTS

CHARTS = Path(__file__).parents[2] / "deploy" / "helm"
NAMES = ("coordinator", "site")
TEMPLATES = sorted(CHARTS.glob("*/templates/*"))
VERSION = re.compile(r'(?m)^version = "(.+)"$')


def values(chart: str) -> dict[str, Any]:
    content = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    assert isinstance(content, dict)
    return content


def documents(path: Path) -> list[dict[str, Any]]:
    """What the template would be with all of its branches."""
    lines = [line for line in path.read_text().splitlines() if not re.fullmatch(r"\s*\{\{-? .*\}\}", line)]
    text = re.sub(r"\{\{[^}]*toJson[^}]*\}\}", "{}", "\n".join(lines))
    text = re.sub(r"\{\{[^}]*\| quote \}\}", '"text"', text)
    return [each for each in yaml.safe_load_all(re.sub(r"\{\{[^}]*\}\}", "text", text)) if each]


@pytest.mark.parametrize("chart", NAMES)
def test_a_chart_has_its_head_in_this_version(chart: str) -> None:
    head = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
    assert head["apiVersion"] == "v2"
    assert head["name"] == f"consilium-{chart}"
    found = VERSION.search((CHARTS.parents[1] / "pyproject.toml").read_text())
    assert found is not None
    assert head["version"] == head["appVersion"] == found[1]
    assert str(values(chart)["image"]["tag"]).startswith(found[1])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_a_templates_brackets_and_blocks_are_balanced(path: Path) -> None:
    text = path.read_text()
    assert text.count("{{") == text.count("}}")
    opened = re.findall(r"\{\{-? (if|range|with) ", text)
    ended = re.findall(r"\{\{-? end \}\}", text)
    assert len(opened) == len(ended)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_a_template_asks_only_for_values_that_there_are(path: Path) -> None:
    named = re.findall(r"\.Values((?:\.\w+)+)", path.read_text())
    for name in named:
        place: Any = values(path.parents[1].name)
        for key in name.strip(".").split("."):
            assert isinstance(place, dict), name
            assert key in place, name
            place = place[key]


def leaves(content: Any, path: str = "") -> list[str]:
    if isinstance(content, dict) and content:
        return [name for key, item in content.items() for name in leaves(item, f"{path}.{key}")]
    return [path]


@pytest.mark.parametrize("chart", NAMES)
def test_no_value_is_without_effect(chart: str) -> None:
    text = "\n".join(path.read_text() for path in TEMPLATES if path.parents[1].name == chart)
    named = set(re.findall(r"\.Values((?:\.\w+)+)", text))
    for leaf in leaves(values(chart)):
        assert any(leaf == name or leaf.startswith(f"{name}.") for name in named), leaf


@pytest.mark.parametrize("chart", NAMES)
def test_every_value_at_the_top_is_explained_or_plain(chart: str) -> None:
    text = (CHARTS / chart / "values.yaml").read_text()
    assert text.count("# ") >= len(values(chart))


@pytest.mark.parametrize("path", [each for each in TEMPLATES if each.suffix == ".yaml"], ids=str)
def test_a_template_without_its_logic_is_kubernetes_yaml(path: Path) -> None:
    for document in documents(path):
        assert {"apiVersion", "kind", "metadata"} <= document.keys()


@pytest.mark.parametrize("chart", NAMES)
def test_pods_have_no_rights_and_one_of_each_runs(chart: str) -> None:
    (document,) = documents(CHARTS / chart / "templates" / "statefulset.yaml")
    assert document["spec"]["replicas"] == 1
    pod = document["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in (*pod["initContainers"], *pod["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context


@pytest.mark.parametrize("chart", NAMES)
def test_a_pod_is_ready_when_its_health_says_so(chart: str) -> None:
    text = (CHARTS / chart / "templates" / "statefulset.yaml").read_text()
    assert "/health" in text
    assert "startupProbe" in text
    assert "readinessProbe" in text


def test_a_site_only_goes_out() -> None:
    text = (CHARTS / "site" / "templates" / "networkpolicy.yaml").read_text()
    assert "ingress: []" in text
    assert "policyTypes: [Ingress, Egress]" in text
    # No service leads to a site but the one that its numbers are read from.
    kinds = [each["kind"] for path in TEMPLATES if path.parents[1].name == "site" and path.suffix == ".yaml"
             for each in documents(path)]  # fmt: skip
    assert kinds.count("Service") == 1
    assert values("site")["metrics"]["enabled"] is False


def test_the_coordinator_calls_nobody() -> None:
    assert "egress: []" in (CHARTS / "coordinator" / "templates" / "networkpolicy.yaml").read_text()


def test_ports_are_those_of_the_settings() -> None:
    ports = read_yaml(DEFAULTS)
    named = values("coordinator")["ports"]
    assert {name: named[name] for name in named} == {
        "gateway": ports["gateway_port"],
        "enrolment": ports["enrolment_port"],
        "health": ports["health_port"],
    }
    assert values("site")["networkPolicy"]["to"]["ports"] == [ports["gateway_port"], ports["enrolment_port"]]


def test_the_master_key_is_in_a_secret_and_in_no_value() -> None:
    assert set(values("site")["masterKey"]) == {"secretName", "secretKey"}
    text = (CHARTS / "site" / "templates" / "statefulset.yaml").read_text()
    assert "secretKeyRef" in text
