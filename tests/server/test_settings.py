import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.plan import RUN_CONFIG_KEY
from common.settings import read_yaml
from server.settings import DEFAULTS, CoordinatorSettings

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
GIVEN = {"plan": "{}", "adapters": "start", "identities": "sites", "out": "runs/1"}


def test_a_run_gives_its_folders_and_the_defaults_do_the_rest() -> None:
    settings = CoordinatorSettings.from_run_config(GIVEN)
    folders = (settings.adapters, settings.identities, settings.out)
    assert folders == (Path("start"), Path("sites"), Path("runs/1"))
    assert (settings.attempts, settings.retry_pause_s, settings.connect_timeout_s) == (3, 10.0, 60.0)
    assert CoordinatorSettings.from_run_config({**GIVEN, "attempts": 1}).attempts == 1


def test_the_defaults_lie_beside_the_module() -> None:
    assert DEFAULTS.is_file()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attempts", 0),
        ("attempts", "many"),
        ("retry_pause_s", -1.0),
        ("connect_timeout_s", 0.0),
        ("resume", "yes"),
        ("extra", 1),
    ],
)
def test_a_wrong_or_unknown_setting_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"run config.*{key}"):
        CoordinatorSettings.from_run_config({**GIVEN, key: value})


def test_a_run_may_have_a_name_and_be_resumed_by_it() -> None:
    settings = CoordinatorSettings.from_run_config(
        {**GIVEN, "run": "trial-1", "resume": True, "nodes": "n.json"}
    )
    assert (settings.run, settings.resume, settings.nodes) == ("trial-1", True, Path("n.json"))
    with pytest.raises(SettingsError, match="1 to 40 lower-case letters"):
        CoordinatorSettings.from_run_config({**GIVEN, "run": "Trial 1"})
    with pytest.raises(SettingsError, match="the name of the run to resume, got none"):
        CoordinatorSettings.from_run_config({**GIVEN, "resume": True})


@pytest.mark.parametrize("folder", ["adapters", "identities", "out"])
def test_a_run_without_one_of_its_folders_is_refused(folder: str) -> None:
    for config in ({key: value for key, value in GIVEN.items() if key != folder}, {**GIVEN, folder: ""}):
        with pytest.raises(SettingsError, match=rf"run config\.{folder}: expected .*, got nothing"):
            CoordinatorSettings.from_run_config(config)


def test_flower_knows_every_key_and_the_same_defaults() -> None:
    config = tomllib.loads(PROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    assert set(config) == {RUN_CONFIG_KEY, *(field.name for field in fields(CoordinatorSettings))}
    defaults = read_yaml(DEFAULTS)
    assert config == {**dict.fromkeys(set(config) - set(defaults), ""), **defaults}
    settings = CoordinatorSettings.from_run_config(GIVEN)
    assert CoordinatorSettings.from_run_config({**config, **GIVEN}) == settings
