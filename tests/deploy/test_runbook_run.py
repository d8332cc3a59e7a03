"""The runbook word by word: its blocks, one after another, in one shell, as a newcomer types them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from simulations.trial.__main__ import free_ports
from tests.deploy.test_runbook import PAGES, blocks
from tests.flower.deployment import missing_scripts

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LIMIT_S = 1800
ROUNDS = 2
# A run that has finished is not resumed, and says so.
MAY_FAIL = ("consilium-coordinator resume first",)
MARK = "== block"

pytestmark = [
    pytest.mark.skipif("CONSILIUM_SOAK" not in os.environ, reason="six minutes; `make soak` runs it"),
    pytest.mark.skipif(bool(missing_scripts()), reason="needs Flower's scripts"),
]


def script(trial: Path) -> str:
    """The blocks behind the installation, with ports of the test's own and fewer rounds."""
    ports = free_ports()
    found = [block for block in blocks(PAGES[0]) if "make .venv" not in block]
    lines = ["set -u", f"cd {ROOT}", f"export TRIAL={trial}"]
    for number, block in enumerate(found):
        block = block.replace(
            '--bind "$HOST"',
            f'--bind "$HOST" --gateway-port {ports.gateway} --enrolment-port {ports.enrolment} '
            f"--superlink-port {ports.superlink} --health-port {ports.health}",
        )
        block = block.replace(
            'simulations.trial.draw "$TRIAL"',
            f'simulations.trial.draw "$TRIAL" plan.training.rounds={ROUNDS} '
            f"tracks.tissue_type.training.rounds={ROUNDS}",
        )
        ignored = any(command in block for command in MAY_FAIL)
        # -E and ERR: a line that fails inside a loop or a function is found, too.
        lines += [
            f"echo '{MARK} {number}'",
            "trap - ERR" if ignored else f"trap 'echo failed {number}' ERR",
            block,
        ]
    return "set -E\n" + "\n".join(lines)


def test_a_newcomer_gets_four_sites_training() -> None:
    trial = Path(tempfile.mkdtemp(prefix="cn"))
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        done = subprocess.run(
            ["bash", "-c", script(trial / "t")],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        said = done.stdout[-6000:] + done.stderr[-3000:]
        assert not re.search(r"(?m)^failed \d+$", done.stdout), said
        assert f"round {ROUNDS} of {ROUNDS} closed: 4 sites" in done.stdout, said
        for track in ("rare_disease", "tissue_type"):
            assert (trial / "t" / "students" / track / "adapter_model.safetensors").is_file(), said
    finally:
        shutil.rmtree(trial, ignore_errors=True)
