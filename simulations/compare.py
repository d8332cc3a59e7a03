"""Several runs as one comparison: a run for each seed, or a run for each variant of the settings.

Each is an ordinary run with a folder of its own, so that it can be looked at, and gone on with, by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from common.canonical import plain
from common.errors import SettingsError
from simulations.evidence import write_evidence
from simulations.run import run_simulation
from simulations.settings import SimulationSettings, simulation_settings
from simulations.variants import write_variants

REFERENCE = "as_it_is"
"""What the run without changes is called among variants."""


def run_comparison(settings: SimulationSettings, console: Console) -> Path:
    """A run for each of ``settings.seeds``, and their evidence; the path of its page."""
    folders = []
    for seed in settings.seeds:
        console.rule(f"seed {seed}")
        folder = settings.out / f"seed-{seed}"
        run_simulation(
            replace(settings, seed=seed, seeds=(), out=folder, models_seed=settings.frozen_seed), console
        )
        folders.append(folder)
    page = write_evidence(folders, settings.out, console)
    console.print(f"Evidence: {page}")
    return page


def run_variants(composed: Mapping[str, Any], console: Console) -> Path:
    """A run as it is and one for each of its variants, with the main method alone; the path of the table.

    Args:
        composed: The composed configuration, from whose ``variants`` each run's own is made.
        console: Where runs tell how they go.
    """
    whole = simulation_settings(composed)
    folders = {}
    for name, changes in {REFERENCE: {}, **whole.variants}.items():
        console.rule(name.replace("_", " "))
        settings = variant_settings(composed, name, changes)
        run_simulation(settings, console)
        folders[name] = settings.out
    table = write_variants(folders, whole.variants, whole.out, console)
    console.print(f"Variants: {table}")
    return table


def variant_settings(
    composed: Mapping[str, Any], name: str, changes: Mapping[str, Any]
) -> SimulationSettings:
    """The settings of one variant. SettingsError names the key that is wrong, or unknown."""
    content = deepcopy({str(key): value for key, value in composed.items()})
    for key, value in {"variants": {}, **changes}.items():
        _put(content, key, plain(value), name)
    content["out"] = str(Path(str(composed["out"])) / name)
    return simulation_settings(content)


def _put(content: dict[str, Any], key: str, value: Any, variant: str) -> None:
    """Set a dotted key to a value, which replaces what stood there as a whole."""
    *path, last = key.split(".")
    place = content
    for part in path:
        below = place.get(part)
        if not isinstance(below, dict):
            raise SettingsError(f"variants.{variant}", repr(key), "dotted keys of the settings")
        place = below
    place[last] = value
