"""What a trial is about: patients of four hospitals in folders, frozen models, a plan and its first adapters.

All of it is what hospitals would bring along: a folder of patients as an export would leave it, folders of
models, and files that the coordinator's administrator hands to ``consilium-coordinator plan``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from client.patients.importers.folder import write_folder
from client.patients.records import PatientRecord
from common.adapter import save_adapter
from common.atomic import write_atomically
from common.ids import SiteId
from common.plan import RunPlan
from common.plan_package import PlanPackage
from common.tracks import Modality
from simulations import tiny_eyes, tiny_slide_eye
from simulations.models import gather_models
from simulations.planning import AllModels, make_plan
from simulations.populations import Populations, everyone
from simulations.scenarios import populations_of
from simulations.settings import SimulationSettings, simulation_settings
from simulations.stages import quiet_stages

SCENARIO = "trial"
NO_NOISE = ("plan.privacy.mode=none", "plan.teacher.privacy=none")


def trial_settings(overrides: Sequence[str] = ()) -> SimulationSettings:
    """The scenario ``trial``, changed by Hydra's overrides. SettingsError."""
    with initialize_config_module("simulations.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose("config", overrides=[f"scenario={SCENARIO}", *overrides]), resolve=True
        )
    assert isinstance(composed, dict)
    return simulation_settings({str(key): value for key, value in composed.items()})


@dataclass(frozen=True, kw_only=True)
class Hospitals:
    """What the sites and the coordinator of a trial bring along.

    Attributes:
        settings: Of the scenario.
        populations: As drawn, by track.
        models: By track.
        plan: What they agree on.
        sources: By site, the folder of its patients, as its own people exported it.
        package: The plan's file.
        adapters: By track, the file that its training starts from.
        photo_encoder, slide_encoder: Folders of the teachers' eyes.
    """

    settings: SimulationSettings
    populations: Populations
    models: AllModels
    plan: RunPlan
    sources: Mapping[SiteId, Path]
    package: Path
    adapters: Mapping[str, Path]
    photo_encoder: Path
    slide_encoder: Path

    @property
    def bases(self) -> dict[str, Path]:
        """By track, the folder of the base model."""
        return {track: models.base.resolve() for track, models in self.models.items()}

    @property
    def note_encoder(self) -> Path:
        """What reads notes: the text student's own base."""
        return next(
            models.base.resolve()
            for track, models in self.models.items()
            if self.populations[track].track.modality is Modality.TEXT
        )


def make_hospitals(
    folder: Path, *, overrides: Sequence[str] = (), consortium: str = "trial", cache: Path | None = None
) -> Hospitals:
    """Draw the patients and write everything into ``folder``; models are cached, as a simulation's are."""
    settings = trial_settings(overrides)
    if cache is not None:
        settings = replace(settings, cache=cache)
    populations = populations_of(settings)
    models = gather_models(settings, populations, quiet_stages())
    plan = make_plan(settings.name, settings.plans, populations, models, settings.seed)
    plan = replace(plan, consortium=consortium)
    sources = {}
    for site, patients in sorted(everyone(populations).items()):
        sources[site] = folder / "sources" / site
        write_folder(sources[site], _shuffled_together(patients.train, patients.test))
    package = PlanPackage(plan=plan, answers={track: one.answers for track, one in populations.items()})
    path = folder / "plan.json"
    write_atomically(path, package.to_json() + "\n")
    adapters = {track: folder / f"{track}.safetensors" for track in models}
    for track, own in models.items():
        save_adapter(own.initial, adapters[track])
    cached = settings.cache.expanduser()
    return Hospitals(
        settings=settings,
        populations=populations,
        models=models,
        plan=plan,
        sources=sources,
        package=path,
        adapters=adapters,
        photo_encoder=tiny_eyes.tiny_eyes(cached, settings.eyes, settings.seed).resolve(),
        slide_encoder=tiny_slide_eye.tiny_slide_eye(cached, settings.slide_eye, settings.seed).resolve(),
    )


def _shuffled_together(*parts: Sequence[PatientRecord]) -> list[PatientRecord]:
    """All patients in the order of their ids: an export does not say who will be tested on."""
    return sorted((record for part in parts for record in part), key=lambda record: record.patient_id)
