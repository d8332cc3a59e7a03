from pathlib import Path

import pytest

from common.errors import SettingsError
from server.settings import DEFAULTS, CoordinatorSettings

GIVEN = {"plan": "{}", "adapters": "start", "out": "runs/1"}


def test_a_run_gives_its_folders_and_the_defaults_do_the_rest() -> None:
    settings = CoordinatorSettings.from_run_config(GIVEN)
    assert (settings.adapters, settings.out) == (Path("start"), Path("runs/1"))
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
        ("extra", 1),
    ],
)
def test_a_wrong_or_unknown_setting_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"run config.*{key}"):
        CoordinatorSettings.from_run_config({**GIVEN, key: value})


def test_a_run_without_an_output_folder_is_refused() -> None:
    with pytest.raises(SettingsError, match="out"):
        CoordinatorSettings.from_run_config({"plan": "{}", "adapters": "start"})
