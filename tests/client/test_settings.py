from pathlib import Path
from typing import Any

import pytest

from client.settings import read_settings
from common.errors import SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text("{schema: 1, site: site-a, cohort: adults, data: /srv/data}\n")
    return path


def test_a_short_file_gets_its_defaults(file: Path) -> None:
    settings = read_settings(file)
    assert (settings.approvals_needed, settings.cap, settings.worker.device) == (1, None, "auto")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_share": 1.0}, "test_share: expected a share between 0 and 1"),
        ({"approvals_needed": 3}, "approvals_needed: expected 1 or 2 people"),
        ({"master_key": "plain:abc"}, "master_key: expected file:PATH"),
        ({"tracks": ["x"]}, "tracks: expected tracks among"),
        ({"facial": "hide"}, "facial_terms: expected a file"),
        ({"cap": {"epsilon": 0, "delta": 1e-5}}, r"cap\.epsilon: expected a number > 0"),
        ({"worker": {"threads": 0}}, r"worker\.threads: expected a whole number >= 1"),
        ({"network": {"proxy_port": 65536}}, r"network\.proxy_port: expected a port"),
        ({"network": {"https_proxy": "ftp://user:secret@host"}}, r"network\.https_proxy"),
        ({"typo": 1}, "an unknown key"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(file: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as refused:
        read_settings(file, change)
    assert "secret" not in str(refused.value)
