"""What a simulation is set up from: composed by Hydra, read into frozen dataclasses, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from client.teacher.fit import TeacherRecipe
from common.adapter import AdapterMode
from common.canonical import plain
from common.checks import require, require_once, require_whole
from common.errors import SettingsError
from common.learning_plan import PreferencePlan, ServerOptimizerPlan, Side, TeacherMode, TrainingPlan
from common.plan import AggregationPlan
from common.privacy.mechanism import Noise
from common.privacy_plan import PrivacyMode, Stop
from common.settings import load_settings
from common.tracks import TRACKS
from simulations.data_settings import DATA_KINDS, Data, rest_of
from simulations.method_settings import (
    CALIBRATIONS,
    MAIN,
    METHODS,
    AloneSettings,
    CalibrationSettings,
    EvaluationSettings,
    RetrievalSettings,
    SweepPoint,
)
from simulations.tiny_base import BaseRecipe
from simulations.tiny_eyes import EyesRecipe
from simulations.tiny_sight import SightRecipe
from simulations.tiny_slide_eye import SlideEyeRecipe

OWN_PARTS = frozenset({"adapter", "preferences", "training", "server_optimizer", "privacy"})
"""What may be said of one track alone, under ``tracks``; of ``privacy`` its ``clip_norm``."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The adapter of the student; as in ``AdapterPlan``, whose digest is computed."""

    mode: AdapterMode
    rank: int
    alpha: float
    targets: tuple[str, ...]
    side: Side = "language"


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The teachers; as in ``TeacherPlan``, without what is computed."""

    privacy: TeacherMode
    folds: int
    modality_dropout: float


@dataclass(frozen=True, kw_only=True)
class TeacherPrivacySettings:
    """How a teacher learns under privacy; as in ``TeacherPrivacy``, whose noise is computed.

    Attributes:
        epsilon: What the teachers alone may reveal, of all that the plan may.
        sampling_rate, clip_norm, steps, learning_rate: As in ``TeacherPrivacy``.
    """

    epsilon: float
    sampling_rate: float
    clip_norm: float
    steps: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """What is promised; as in ``PrivacyPlan`` and ``TrackPrivacy``, whose noise is computed from ``epsilon``.

    Attributes:
        mode, delta, colluders, late_losses, spare_steps, noise, stop: As in ``PrivacyPlan``.
        epsilon: Of teacher and student together.
        clip_norm: As in ``TrackPrivacy``.
        teacher: How a teacher learns whose privacy is ``dp``; otherwise it is not looked at, so that one
            word switches privacy off.
    """

    mode: PrivacyMode = "none"
    epsilon: float | None = None
    delta: float | None = None
    clip_norm: float | None = None
    colluders: int = 0
    late_losses: int = 0
    spare_steps: int = 0
    noise: Noise = "rounded_normal"
    stop: Stop = "fixed"
    teacher: TeacherPrivacySettings | None = None

    def __post_init__(self) -> None:
        if self.mode == "none":
            return
        for key in ("epsilon", "delta", "clip_norm"):
            if getattr(self, key) is None:
                raise SettingsError(key, "nothing", f"a number, since mode is {self.mode}")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The parts of the run's plan that are chosen, not computed."""

    purpose: str
    ethics_id: str
    expires: str
    adapter: AdapterSettings
    teacher: TeacherSettings
    preferences: PreferencePlan
    training: TrainingPlan
    server_optimizer: ServerOptimizerPlan
    aggregation: AggregationPlan
    privacy: PrivacySettings = field(default_factory=PrivacySettings)

    def __post_init__(self) -> None:
        # A plan of calibration alone has none; a simulation makes such plans itself.
        require_whole("training.rounds", self.training.rounds, 1)


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """All of a simulation.

    Attributes:
        name: Of the scenario.
        seed: Of everything, but for what ``models_seed`` decides.
        out: Folder of the results.
        cache: Folder of pretrained tiny models.
        threads: Of torch.
        link: ``grid`` drives the real ServerApp and ClientApp in this process; ``memory`` goes without.
        methods: What is compared; ``federated_orpo`` always runs.
        base_model: Folder of any Hugging Face causal model to use as base; null makes a tiny one.
        base: Recipe of the tiny base.
        image_base_model: Folder of any Hugging Face image-text-to-text model; null makes a tiny one.
        sight: Recipe of the tiny image-text-to-text base.
        slide_encoder: Name or folder of the teachers' slide encoder; null makes a tiny one.
        slide_eye: Recipe of the tiny slide encoder.
        other_diseases: Diseases outside of the plan that the tiny base learns about.
        eyes: Recipe of the tiny photo encoder.
        data: Where the patients come from.
        plan: What the sites agree on, where a track says nothing else.
        tracks: By track, what differs from ``plan``, as a mapping of its keys; see ``plans``.
        recipe: Of the teachers' training.
        alone: Of the students without a federation.
        evaluation: How students are judged.
        caps: By site, the most epsilon that it lets be taken from its patients; it refuses other plans.
        sweep: Promises to compare: one student each, and one without noise; none without a sweep.
        models_seed: Of the frozen models that are made, and of the public text they learn from; null takes
            ``seed``. Runs that differ in their seed then share them.
        calibration: Of the finished student, for the methods that calibrate it.
        retrieval: Of the methods with documents.
        seeds: A run for each of these seeds, put together as evidence at the end; without any, one run of
            ``seed``.
        variants: By name, what a variant of the run sets otherwise, by dotted key; each is a run of its own,
            put beside the run as it is. None without variants.
    """

    name: str
    seed: int
    out: Path
    cache: Path
    threads: int
    link: Literal["grid", "memory"]
    methods: tuple[str, ...]
    base_model: Path | None
    base: BaseRecipe
    image_base_model: Path | None = None
    sight: SightRecipe = field(default_factory=SightRecipe)
    slide_encoder: str | None = None
    slide_eye: SlideEyeRecipe = field(default_factory=SlideEyeRecipe)
    other_diseases: int
    eyes: EyesRecipe
    data: Data
    plan: PlanSettings
    tracks: Mapping[str, Any] = field(default_factory=dict)
    recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    alone: AloneSettings
    evaluation: EvaluationSettings
    caps: Mapping[str, float] = field(default_factory=dict)
    sweep: tuple[SweepPoint, ...] = ()
    models_seed: int | None = None
    calibration: CalibrationSettings | None = None
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    seeds: tuple[int, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def frozen_seed(self) -> int:
        """The seed of the frozen models."""
        return self.seed if self.models_seed is None else self.models_seed

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise SettingsError("methods", unknown[0], f"one of {', '.join(METHODS)}")
        if MAIN not in self.methods:
            raise SettingsError("methods", ", ".join(self.methods), "federated_orpo among them")
        if self.threads < 1:
            raise SettingsError("threads", self.threads, "a whole number >= 1")
        for name, change in self.tracks.items():
            _require_own(name, change)
        self._require_calibration()
        if self.seeds:
            require_once("seeds", [str(seed) for seed in self.seeds])
        require(not (self.seeds and self.variants), "variants", len(self.variants), "none beside seeds")
        if self.sweep:
            mode = self.plan.privacy.mode
            # One step a round at rate 1, which that mode asks for, is what the modes can be compared at.
            expected = "distributed or none, from whose plan the points of a sweep are made"
            require(mode in ("distributed", "none"), "plan.privacy.mode", mode, expected)
            for key in ("epsilon", "delta", "clip_norm"):
                value = getattr(self.plan.privacy, key)
                require(value is not None, f"plan.privacy.{key}", "nothing", "a number, for the sweep")
            require_once("sweep", [point.name for point in self.sweep])

    def _require_calibration(self) -> None:
        wanted = [name for name in CALIBRATIONS if f"federated_orpo_{name}" in self.methods]
        if not wanted:
            return
        require(self.calibration is not None, "calibration", "nothing", f"settings, for {', '.join(wanted)}")
        share = self.data.calibration_share
        require(share > 0, "data.calibration_share", share, f"more than 0, for {', '.join(wanted)}")

    @cached_property
    def plans(self) -> Mapping[str, PlanSettings]:
        """What is chosen for each track: ``plan``, and what ``tracks`` says of it. SettingsError."""
        return {
            name: load_settings(
                PlanSettings, plain(self.plan), self.tracks.get(name, {}), where=f"settings.tracks.{name}"
            )
            for name in TRACKS
        }


def simulation_settings(composed: Mapping[str, Any]) -> SimulationSettings:
    """The settings of a composed configuration. SettingsError with the key that is wrong."""
    data = composed.get("data")
    kind = data.get("name") if isinstance(data, Mapping) else None
    if kind not in DATA_KINDS:
        raise SettingsError("data.name", kind, f"one of {', '.join(DATA_KINDS)}")
    read = load_settings(DATA_KINDS[str(kind)], dict(data or {}), where="data")
    rest = {key: value for key, value in composed.items() if key != "data"}
    return load_settings(SimulationSettings, rest | {"data": rest_of(read)}, where="settings")


def _require_own(name: str, change: Mapping[str, Any]) -> None:
    """Refuse changes of one track to what all tracks have in common."""
    require(name in TRACKS, "tracks", repr(name), f"tracks among {', '.join(TRACKS)}")
    shared = sorted(set(change) - OWN_PARTS)
    shared += [f"privacy.{key}" for key in change.get("privacy", {}) if key != "clip_norm"]
    own = f"keys among {', '.join(sorted(OWN_PARTS))}: the rest is the plan's, for all tracks"
    require(not shared, f"tracks.{name}", ", ".join(shared), own)
