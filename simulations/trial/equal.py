"""The same plan over the same patients in one process: a federation of daemons has to end like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from client.home import SiteHome
from client.keys import Keyring
from client.loaded_plan import load_eyes, read_site
from client.settings import SiteSettings, read_settings
from client.site_patients import SitePatients
from client.teacher.fit import TeacherRecipe
from client.teacher.sight import Memory
from common.adapter import Adapter, load_adapter
from common.ids import SiteId
from common.plan_package import read_package
from server.rounds import TrackState
from simulations.federation import federate, make_workers
from simulations.trial.stand import Stand


def simulated(stand: Stand, folder: Path) -> Mapping[str, Adapter]:
    """The adapters of a simulation, by track, with what the sites' homes hold; ``folder`` is its scratch."""
    hospitals = stand.hospitals
    package = read_package(hospitals.package)
    torch.set_num_threads(hospitals.settings.threads)
    patients: dict[SiteId, SitePatients] = {}
    for site in package.plan.sites:
        home, settings = SiteHome(stand.home(site)), _settings(stand, site)
        keyring = Keyring.open(home, settings)
        try:
            patients[site] = read_site(settings, package, key=keyring.pseudonym_key)
        finally:
            keyring.close()
    memory = Memory(load_eyes(_settings(stand, package.plan.sites[0]).models))
    models = {track: replace(own, memory=memory) for track, own in hospitals.models.items()}
    populations = {
        track: replace(population, sites=patients) for track, population in hospitals.populations.items()
    }
    workers = make_workers(package.plan, populations, models, folder / "sites", TeacherRecipe())
    ended = federate(
        package.plan,
        workers,
        models,
        link="memory",
        folder=folder / "coordinator",
        home=folder / "sites",
        on_state=_quietly,
    )
    return {track: one.state.adapter for track, one in ended.items()}


def trained(stand: Stand, run: str) -> Mapping[str, Adapter]:
    """The adapters that a run of the daemons ended with, by track."""
    return {
        track.track: load_adapter(stand.out(run) / track.track / "adapter.safetensors")
        for track in stand.hospitals.plan.tracks
    }


def _settings(stand: Stand, site: str) -> SiteSettings:
    return read_settings(SiteHome(stand.home(site)).settings_file)


def _quietly(state: TrackState) -> None:
    """Nobody looks."""


def differing(one: Mapping[str, Adapter], other: Mapping[str, Adapter]) -> list[str]:
    """The tracks whose adapters differ in any bit."""
    return sorted(track for track in one if one[track].digest() != other[track].digest())
