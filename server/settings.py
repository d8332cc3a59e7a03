"""What the coordinator's own administrator sets: folders and waiting times. Nothing that changes a guarantee.

All that does is in the ``RunPlan``, which every site approves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.ids import RunId, run_id
from common.plan import RUN_CONFIG_KEY
from common.settings import load_settings, read_yaml

DEFAULTS = Path(__file__).parent / "conf" / "coordinator.yaml"


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings:
    """How one run is held.

    Attributes:
        adapters: Folder of the initial adapters, ``{track}.safetensors`` for each track of the plan.
        identities: Folder of the public identities of the plan's sites, ``{site_id}.json`` for each.
        out: The run's folder: its journal, and for each track a folder with the final adapter and the
            rounds' reports.
        attempts: How often a round that loses too many sites is tried before the run ends.
        retry_pause_s: Seconds between two attempts.
        connect_timeout_s: Seconds that a run waits for the sites of its plan, and for a node's name.
        identity: The coordinator's own identity, which countersigns the sites' ledgers; needed where the plan
            spends a privacy budget.
        run: The run's name; one made of Flower's number if not given.
        resume: Whether the run of that name, in ``out``, goes on; begun if it never was.
        nodes: File of the sites by Flower's node, see ``server.grid.read_nodes``; without it the nodes say
            their names themselves.
        ledger: Folder of the coordinator's ledger, and of what it remembers of the sites' ledgers, if it is
            kept over several runs; ``out`` if not given.
    """

    adapters: Path
    identities: Path
    out: Path
    attempts: int
    retry_pause_s: float
    connect_timeout_s: float
    identity: Path | None = None
    run: RunId | None = None
    resume: bool = False
    nodes: Path | None = None
    ledger: Path | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Expected attempts >= 1, got {self.attempts}")
        if self.retry_pause_s < 0:
            raise ValueError(f"Expected retry_pause_s >= 0, got {self.retry_pause_s}")
        if not self.connect_timeout_s > 0:
            raise ValueError(f"Expected connect_timeout_s > 0, got {self.connect_timeout_s}")
        if self.run is not None:
            run_id(self.run)
        if self.resume and self.run is None:
            raise ValueError("Expected the name of the run to resume, got none")

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> CoordinatorSettings:
        """The defaults, overridden by a Flower run's configuration without its plan. SettingsError."""
        # Flower knows only keys that have a default (pyproject.toml), and none of its types means "none".
        given = {key: value for key, value in run_config.items() if key != RUN_CONFIG_KEY and value != ""}
        return load_settings(cls, read_yaml(DEFAULTS), given, where="run config")
