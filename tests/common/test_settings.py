from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common.errors import SettingsError
from common.settings import load_settings, read_yaml


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    width: int = 32
    rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Site:
    home: Path
    device: Device = Device.CPU
    approved: tuple[str, ...] = ()
    teacher: Teacher = Teacher()
    label: str = ""

    def __post_init__(self) -> None:
        if not self.approved:
            raise ValueError("Expected at least one approved plan, got none")


BASE = {"home": "/srv/site", "approved": ["a", "b"], "teacher": {"width": 16}}


def test_a_later_layer_wins_key_by_key_and_a_list_is_replaced_whole() -> None:
    site = load_settings(Site, BASE, {"device": "cuda", "teacher": {"rate": 1}, "approved": ["c"]})
    assert site == Site(
        home=Path("/srv/site"), device=Device.CUDA, approved=("c",), teacher=Teacher(width=16, rate=1.0)
    )


def test_a_frozen_dataclass_with_defaults_comes_from_no_layer_at_all() -> None:
    assert load_settings(Teacher) == Teacher()


def test_interpolations_are_resolved_after_the_merge() -> None:
    site = load_settings(Site, BASE, {"label": "${home}/x"}, {"home": "/data"})
    assert site.label == "/data/x"


def test_a_composed_configuration_is_a_layer_too() -> None:
    assert (
        load_settings(Site, OmegaConf.create(BASE), {"label": "${device}", "device": "cuda"}).label == "cuda"
    )


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        (
            {"extra": 1},
            "site.extra: expected one of home, device, approved, teacher, label, got an unknown key",
        ),
        ({"teacher": {"widht": 1}}, "site.teacher.widht: expected one of width, rate, got an unknown key"),
    ],
)
def test_an_unknown_key_is_refused_never_dropped(layer: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Site, BASE, layer, where="site")
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ({"teacher": {"width": "16"}}, "settings.teacher.width: expected a whole number, got '16'"),
        ({"teacher": 3}, "settings.teacher: expected a mapping of Teacher's keys, got 3"),
        ({"device": "tpu"}, "settings.device: expected one of cpu, cuda, got 'tpu'"),
        ({"home": None}, "settings.home: expected a path, got nothing"),
        ({"approved": []}, "settings: expected at least one approved plan, got none"),
        (
            {"label": "${nowhere}"},
            "settings.label: expected a value that can be merged, got Interpolation key",
        ),
        (
            {"label": "???"},
            "settings.label: expected a value that can be merged, got Missing mandatory value",
        ),
        ({"label": "${"}, "settings.label: expected a value that can be merged, got "),
    ],
)
def test_a_refused_value_is_named(layer: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Site, BASE, layer)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SettingsError, match=r"settings.home: expected a path, got nothing"):
        load_settings(Site, {"approved": ["a"]})


def test_yaml_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("rate: 1e-3\nlabel: ${home}/x\napproved: [a]\n7: seven\n", encoding="utf-8")
    assert read_yaml(path) == {"rate": 1e-3, "label": "${home}/x", "approved": ["a"], "7": "seven"}
    path.write_text("", encoding="utf-8")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1\nb: 2\n", r":2: expected YAML, got "),
        (b"a: 1\na: 2\n", r":2: expected YAML, got found duplicate key"),
        (b"- 1\n", r": expected a mapping of keys, got a list"),
        (b"a: \xff\n", r": expected YAML, got "),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"site.yaml{reason}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none.yaml: expected a readable file, got No such file"):
        read_yaml(tmp_path / "none.yaml")
