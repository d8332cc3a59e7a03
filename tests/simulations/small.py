"""A simulation small enough for a test: four sites, a base and eyes that were hardly trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from simulations.data_settings import SyntheticData
from simulations.models import gather_models
from simulations.planning import Models
from simulations.populations import Population
from simulations.scenarios import synthetic_population
from simulations.settings import SimulationSettings, simulation_settings
from simulations.stages import quiet_stages

PATIENTS = (
    "data=notes_only",
    "data.sites={site-a: 70, site-b: 60, site-c: 50, site-d: 50}",
    "data.test_per_answer=1",
)
SMALL = (
    "base={vocabulary: 600, width: 32, layers: 1, heads: 2, steps: 2, batch: 4}",
    "eyes={faces: 32, epochs: 1, batch: 16}",
    "+recipe={hidden: 16, most_epochs: 2, patience: 1}",
    "plan.teacher.folds=2",
    "plan.teacher.privacy=none",
    "plan.privacy.mode=none",
    "plan.training.rounds=2",
    "plan.training.patients_per_step=4",
    "plan.adapter.rank=2",
    "evaluation.free_cases=3",
    "evaluation.max_answer_tokens=4",
    "data.calibration_share=0.2",
    "calibration={rounds: 2, refresh: 1, candidates: 4}",
    "retrieval={cases: 3, longest_step: 3, longest_answer: 6}",
)


def small_settings(overrides: Sequence[str] = (), **replaced: object) -> SimulationSettings:
    torch.set_num_threads(2)
    patients = () if any(one.startswith("data=") for one in overrides) else PATIENTS
    with initialize_config_module("simulations.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose("config", overrides=["scenario=demo", *patients, *SMALL, *overrides]), resolve=True
        )
    assert isinstance(composed, dict)
    return simulation_settings({str(key): value for key, value in composed.items()} | replaced)


def small_population() -> Population:
    data = small_settings().data
    assert isinstance(data, SyntheticData)
    return synthetic_population(data, 0)


def small_models(cache: Path, population: Population) -> Models:
    settings = small_settings()
    settings = replace(settings, cache=cache)
    track = population.track.name
    return gather_models(settings, {track: population}, quiet_stages())[track]
