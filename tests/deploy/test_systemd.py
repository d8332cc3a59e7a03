"""The units start what is installed, and shut out what a daemon does not need."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = ("consilium-coordinator.service", "consilium-site@.service")
# `systemd-analyze security`: 0 is safe, 10 is not. A web server without hardening has 9.6.
MOST_EXPOSED = 2.5
ONCE = {
    "ProtectSystem": "strict",
    "ProtectProc": "invisible",
    "ProtectHome": "true",
    "NoNewPrivileges": "true",
    "PrivateTmp": "true",
    "UMask": "0077",
    "LimitCORE": "0",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "StateDirectoryMode": "0700",
}


def unit(name: str) -> dict[str, list[str]]:
    """The keys of [Service], each with all of its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_read_as_an_ini_file(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    assert set(parser.sections()) == {"Unit", "Service", "Install"}
    assert parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_hardened(name: str) -> None:
    keys = unit(name)
    for key, value in ONCE.items():
        assert keys[key] == [value], key
    assert keys["SystemCallFilter"][0] == "@system-service"
    (folder,) = keys["StateDirectory"]
    assert keys["ReadWritePaths"] == [f"/var/lib/{folder}"]
    assert keys["User"] == keys["Group"] != ["root"]


@pytest.mark.parametrize(
    ("name", "program"), zip(NAMES, ("consilium-coordinator up", "consilium-site start"), strict=True)
)
def test_a_unit_starts_an_installed_command_over_its_own_folder(name: str, program: str) -> None:
    keys = unit(name)
    (command,) = keys["ExecStart"]
    assert command.startswith(f"/opt/consilium/bin/{program} --home {keys['ReadWritePaths'][0]}")


def test_a_site_names_its_consortium_and_no_key() -> None:
    keys = unit("consilium-site@.service")
    assert keys["ExecStart"][0].endswith("--consortium %i")
    assert not [value for value in keys.get("Environment", []) if "KEY" in value]


def runnable(name: str, folder: Path) -> Path:
    """A copy that starts a program which is on every machine."""
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (UNITS / name).read_text())
    copy = folder / name.replace("@.", "@north.")
    copy.write_text(text)
    return copy


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze on this machine")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_a_unit(name: str, tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", str(runnable(name, tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_a_unit_little_exposed(name: str, tmp_path: Path) -> None:
    done = analyze(
        "security", "--offline=true", f"--threshold={int(10 * MOST_EXPOSED)}", str(runnable(name, tmp_path))
    )
    assert done.returncode == 0, done.stdout[-500:]
