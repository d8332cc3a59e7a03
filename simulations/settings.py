"""What a simulation is set up from: composed by Hydra, read into frozen dataclasses, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.teacher.fit import TeacherRecipe
from common.adapter import AdapterMode
from common.errors import SettingsError
from common.plan import AggregationPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.settings import load_settings
from simulations.tiny_base import BaseRecipe
from simulations.tiny_eyes import EyesRecipe

METHODS = ("base", "teacher", "linear_model", "linear_model_with_exclusions", "local_orpo", "pooled_orpo",
           "federated_orpo", "local_sft", "pooled_sft", "federated_sft")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """Patients drawn from the casebook of syndromes.

    Attributes:
        name: ``synthetic``.
        sites: Training patients by site.
        skew, seen_share, test_per_answer: As in ``make_hospitals``.
    """

    name: Literal["synthetic"]
    sites: Mapping[str, int]
    skew: float
    seen_share: float
    test_per_answer: int


@dataclass(frozen=True, kw_only=True)
class PhenopacketData:
    """Real published cases, split over sites by publication.

    Attributes:
        name: ``phenopackets``.
        root: Folder that holds ``phenopackets``, ``hpo`` and ``faces``.
        min_cases: Diseases with fewer cases are left out.
        sites: Share of the cases by site.
        test_share: Share of each disease's cases that are tested on.
        new_publications_share: Share of all cases held out as whole publications.
        most_cases: Take no more than this many cases, for a quick look; null takes all.
    """

    name: Literal["phenopackets"]
    root: Path
    min_cases: int
    sites: Mapping[str, float]
    test_share: float
    new_publications_share: float
    most_cases: int | None = None


DATA_KINDS: Mapping[str, type[SyntheticData | PhenopacketData]] = {
    "synthetic": SyntheticData,
    "phenopackets": PhenopacketData,
}


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The adapter of the student; as in ``AdapterPlan``, whose digest is computed."""

    mode: AdapterMode
    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The parts of the run's plan that are chosen, not computed."""

    purpose: str
    ethics_id: str
    expires: str
    adapter: AdapterSettings
    teacher: TeacherPlan
    preferences: PreferencePlan
    training: TrainingPlan
    server_optimizer: ServerOptimizerPlan
    aggregation: AggregationPlan


@dataclass(frozen=True, kw_only=True)
class AloneSettings:
    """How the students without a federation are trained; data, steps and loss are the plan's.

    Attributes:
        learning_rate: Of AdamW over both blocks, with a cosine schedule.
    """

    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How students are judged.

    Attributes:
        top: Answers of a list.
        free_cases: Cases that are also decoded freely, for the invalid-answer rate.
        max_answer_tokens: Longest free answer.
        teacher_top: Length of the teacher's top and bottom lists for coverage and avoidance.
    """

    top: int
    free_cases: int
    max_answer_tokens: int
    teacher_top: int


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """All of a simulation.

    Attributes:
        name: Of the scenario.
        seed: Of everything.
        out: Folder of the results.
        cache: Folder of pretrained tiny models.
        threads: Of torch.
        link: ``grid`` drives the real ServerApp and ClientApp in this process; ``memory`` goes without.
        methods: What is compared; ``federated_orpo`` always runs.
        base_model: Folder of any Hugging Face causal model to use as base; null makes a tiny one.
        base: Recipe of the tiny base.
        other_diseases: Diseases outside of the plan that the tiny base learns about.
        eyes: Recipe of the tiny photo encoder.
        data: Where the patients come from.
        plan: What the sites agree on.
        recipe: Of the teachers' training.
        alone: Of the students without a federation.
        evaluation: How students are judged.
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
    other_diseases: int
    eyes: EyesRecipe
    data: SyntheticData | PhenopacketData
    plan: PlanSettings
    recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    alone: AloneSettings
    evaluation: EvaluationSettings

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown:
            raise SettingsError("methods", unknown[0], f"one of {', '.join(METHODS)}")
        if "federated_orpo" not in self.methods:
            raise SettingsError("methods", ", ".join(self.methods), "federated_orpo among them")
        if self.threads < 1:
            raise SettingsError("threads", self.threads, "a whole number >= 1")


def simulation_settings(composed: Mapping[str, Any]) -> SimulationSettings:
    """The settings of a composed configuration. SettingsError with the key that is wrong."""
    data = composed.get("data")
    kind = data.get("name") if isinstance(data, Mapping) else None
    if kind not in DATA_KINDS:
        raise SettingsError("data.name", kind, f"one of {', '.join(DATA_KINDS)}")
    read = load_settings(DATA_KINDS[str(kind)], dict(data or {}), where="data")
    rest = {key: value for key, value in composed.items() if key != "data"}
    return load_settings(SimulationSettings, rest | {"data": rest_of(read)}, where="settings")


def rest_of(data: SyntheticData | PhenopacketData) -> dict[str, Any]:
    """The data's settings as plain values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(data).items()}
