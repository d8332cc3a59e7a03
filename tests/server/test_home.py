from pathlib import Path

import pytest

from common.errors import SettingsError
from server.home import CoordinatorHome


def home(folder: Path, text: str) -> CoordinatorHome:
    (folder / "coordinator.yaml").write_text(text)
    return CoordinatorHome(folder)


def test_a_short_file_gets_its_defaults(tmp_path: Path) -> None:
    settings = home(tmp_path, "{consortium: north, host: coordinator}").settings()
    assert (settings.gateway_port, settings.private_host) == (8443, "127.0.0.1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("gateway_port: 0", "gateway_port: expected a port"),
        ("token_hours: 0", "token_hours: expected a number > 0"),
        ("certificate_days: 0", "certificate_days: expected a whole number >= 1"),
        ("typo: 1", "an unknown key"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(tmp_path: Path, change: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        home(tmp_path, f"{{consortium: north, host: coordinator, {change}}}").settings()


def test_a_consortium_that_cannot_be_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="consortium: expected lower-case letters"):
        home(tmp_path, "{consortium: North Sea, host: coordinator}").settings()
