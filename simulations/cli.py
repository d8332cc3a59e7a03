"""`consilium-simulate`: one run, a run for each of several seeds, or one for each variant."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from common.errors import FederationError
from simulations.compare import run_comparison, run_variants
from simulations.run import run_simulation
from simulations.settings import simulation_settings

CONFIG = "pkg://simulations.conf"


def main() -> None:
    """Run the command. Exit status: 0 all well, 1 a run that failed, 2 settings that make no sense."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Its bars, one for every model that is loaded or saved, would tear the run's own apart.
    disable_progress_bar()
    run = hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")(_guarded)
    run()


def _run_composed(config: DictConfig) -> None:
    read = OmegaConf.to_container(config, resolve=True)
    assert isinstance(read, dict)
    composed = {str(key): value for key, value in read.items()}
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        composed["out"] = str(Path(composed["out"]) / str(HydraConfig.get().job.num))
    settings = simulation_settings(composed)
    if settings.seeds:
        run_comparison(settings, Console())
    elif settings.variants:
        run_variants(composed, Console())
    else:
        run_simulation(settings, Console())


def _guarded(config: DictConfig) -> None:
    try:
        _run_composed(config)
    except ValueError as error:
        _end(error, 2)
    except (FederationError, OSError) as error:
        _end(error, 1)


def _end(error: Exception, status: int) -> None:
    print(f"consilium-simulate: {error}", file=sys.stderr)  # noqa: T201 - the command's own last word
    sys.exit(status)


if __name__ == "__main__":
    main()
