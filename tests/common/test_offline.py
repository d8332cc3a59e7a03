"""Tests that the program keeps its libraries off the network."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
from common.offline import stay_offline
stay_offline()
import huggingface_hub.constants as hub
import flwr.supercore.telemetry as flower
print(hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY, flower.FLWR_TELEMETRY_ENABLED)
"""


def test_libraries_imported_afterwards_stay_offline() -> None:
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "0", "FLWR_TELEMETRY_ENABLED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert done.stdout.split() == ["True", "True", "0"]
