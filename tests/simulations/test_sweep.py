"""The plans of a sweep, the noise in them, and the picture of what they cost."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

import client.private_words
import simulations.planning
from client.private_words import private_words
from client.student.predictions import read_predictions
from client.student.private import ClippedSum
from common.adapter import Adapter, AdapterMode, AdapterSpec, Block, ModuleShape, initial_adapter
from common.errors import SettingsError
from common.guarantee import guarantee
from common.metrics import MetricCounts
from common.plan import RunPlan
from common.tracks import RARE_DISEASE, Answer, AnswerList
from server.aggregate import private_mean
from simulations.data_settings import PhenopacketData, SyntheticData
from simulations.method_settings import METHODS, SweepPoint
from simulations.plots import BarredCurve, Level, draw_barred
from simulations.results import NO_PRIVACY, predictions_path
from simulations.run import run_simulation
from simulations.scores import Outcomes
from simulations.settings import SimulationSettings, simulation_settings
from simulations.sweep import is_swept, method_of, noise_std, sweep_plans
from simulations.tradeoff import paired_difference, render_page
from tests.simulations.small import small_settings

SITES = 10
ROUNDED = 2e-2
# 150,000 draws tell a standard deviation to 0.2 %.
WIDTH = 75_000
POINTS = (
    SweepPoint(mode="distributed", epsilon=8.0),
    SweepPoint(mode="distributed", epsilon=2.0),
    SweepPoint(mode="local", epsilon=2.0),
)


def private_settings(*overrides: str, scenario: str = "private") -> SimulationSettings:
    with initialize_config_module("simulations.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose("config", overrides=[f"scenario={scenario}", *overrides]), resolve=True
        )
    assert isinstance(composed, dict)
    return simulation_settings({str(key): value for key, value in composed.items()})


@pytest.fixture(scope="module")
def scenario() -> SimulationSettings:
    return private_settings()


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(simulations.planning, "digest_base", lambda folder: ("1" * 64, "2" * 64))
    module = ModuleShape(name="q_proj", in_features=2, out_features=WIDTH)
    spec = AdapterSpec(mode=AdapterMode.FFA, rank=2, alpha=4.0, modules=(module,))
    return SimpleNamespace(base=Path("base"), initial=initial_adapter(spec, 0))


TRACK = RARE_DISEASE.name
POPULATION: Any = SimpleNamespace(
    track=RARE_DISEASE,
    sites={f"site-{letter}": SimpleNamespace(train=range(300)) for letter in "abcdefghij"},
    answers=AnswerList(answers=(Answer(id="OMIM:1", name="one"), Answer(id="OMIM:2", name="two"))),
)


@pytest.fixture
def plans(scenario: SimulationSettings, models: Any) -> dict[str, RunPlan]:
    return sweep_plans(replace(scenario, sweep=POINTS), {TRACK: POPULATION}, {TRACK: models})


def test_two_points_of_one_epsilon_differ_in_who_draws_the_noise_alone(plans: dict[str, RunPlan]) -> None:
    shared, own = plans["federated_orpo_distributed_eps_2"], plans["federated_orpo_local_eps_2"]
    assert (shared.privacy.mode, own.privacy.mode) == ("distributed", "local")
    assert shared.privacy.colluders == 1
    assert replace(own.privacy, mode="distributed", colluders=1) == shared.privacy
    assert own.tracks == shared.tracks
    assert own.aggregation == shared.aggregation


def test_a_point_spends_its_epsilon_and_its_teacher_a_quarter_of_it(plans: dict[str, RunPlan]) -> None:
    for method in ("federated_orpo_distributed_eps_2", "federated_orpo_local_eps_2"):
        held = guarantee(plans[method])
        assert held.epsilon is not None
        assert 1.95 < held.epsilon <= 2
        assert held.epsilon_teacher is not None
        assert 0.48 < held.epsilon_teacher <= 0.5


def test_the_reference_has_no_noise_and_equal_steps(plans: dict[str, RunPlan]) -> None:
    reference, point = plans["federated_orpo_no_noise"], plans["federated_orpo_local_eps_2"]
    (track,), (other,) = reference.tracks, point.tracks
    assert (reference.privacy.mode, reference.teacher.privacy, track.privacy) == ("none", "none", None)
    assert (track.training, track.server_optimizer, track.preferences) == (
        other.training,
        other.server_optimizer,
        other.preferences,
    )
    assert noise_std(reference) == 0


def test_the_point_that_is_the_runs_own_plan_is_not_trained_again(
    scenario: SimulationSettings, plans: dict[str, RunPlan]
) -> None:
    assert method_of(scenario, POINTS[0]) == "federated_orpo"
    assert set(plans) == {
        "federated_orpo_distributed_eps_2",
        "federated_orpo_local_eps_2",
        "federated_orpo_no_noise",
    }
    assert all(is_swept(method) for method in plans)
    assert not any(is_swept(method) for method in METHODS)


def test_without_a_sweep_there_is_nothing_to_train(scenario: SimulationSettings, models: Any) -> None:
    assert sweep_plans(replace(scenario, sweep=()), {TRACK: POPULATION}, {TRACK: models}) == {}


def test_the_scenario_asks_for_all_that_is_compared(scenario: SimulationSettings) -> None:
    asked = [(point.mode, point.epsilon) for point in scenario.sweep]
    assert asked == [(mode, epsilon) for mode in ("distributed", "local") for epsilon in (1, 2, 4, 8)]
    assert isinstance(scenario.data, SyntheticData)
    assert len(scenario.data.sites) == SITES
    real = private_settings(scenario="private_cases")
    assert isinstance(real.data, PhenopacketData)
    assert real.sweep == scenario.sweep


@pytest.mark.parametrize(("colluders", "late_losses"), [(0, 0), (1, 1)])
def test_own_noise_is_sqrt_n_minus_c_minus_d_times_shared_noise_within_2_percent(
    scenario: SimulationSettings,
    models: Any,
    monkeypatch: pytest.MonkeyPatch,
    colluders: int,
    late_losses: int,
) -> None:
    monkeypatch.setattr(client.private_words, "clipped_gradients", _nothing)
    privacy = replace(scenario.plan.privacy, colluders=colluders, late_losses=late_losses)
    settings = replace(scenario, plan=replace(scenario.plan, privacy=privacy), sweep=POINTS[1:])
    made = sweep_plans(settings, {TRACK: POPULATION}, {TRACK: models})
    stds = {}
    for mode in ("distributed", "local"):
        plan = made[f"federated_orpo_{mode}_eps_2"]
        stds[mode] = float(np.std(_one_step(plan, models.initial)))
        assert stds[mode] == pytest.approx(noise_std(plan), rel=ROUNDED)
    ratio = stds["local"] / stds["distributed"]
    assert ratio == pytest.approx(math.sqrt(SITES - colluders - late_losses), rel=ROUNDED)


def _nothing(student: Any, adapter: Adapter, block: Block, *args: Any, clip_norm: float) -> ClippedSum:
    """A step on no patient: what comes out is the noise."""
    return ClippedSum(total=np.zeros(adapter.spec.size(block)), patients=0, clipped=0, dropped=0)


def _one_step(plan: RunPlan, adapter: Adapter) -> np.ndarray:
    """The mean delta of one round of all sites, none of which drew a patient; (2 WIDTH,)."""
    (track,) = plan.tracks
    student: Any = None
    fit: Any = None
    words = [
        private_words(student, adapter, Block.B, (), plan, track, members=SITES, fit=fit) for _ in plan.sites
    ]
    total = reduce(np.add, words) & np.uint32((1 << plan.aggregation.word_bits) - 1)
    return private_mean(total, plan, track, SITES).delta


@pytest.mark.parametrize(
    ("epsilon", "name"), [(8.0, "local_eps_8"), (0.5, "local_eps_0-5"), (1e7, "local_eps_1e07")]
)
def test_a_point_has_a_name_for_files(tmp_path: Path, epsilon: float, name: str) -> None:
    assert SweepPoint(mode="local", epsilon=epsilon).name == name
    assert predictions_path(tmp_path, "rare_disease", f"federated_orpo_{name}").parent.is_dir()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["plan.privacy.mode=none", "plan.privacy.epsilon=null"], "plan.privacy.epsilon: expected a number"),
        (["plan.privacy.mode=local"], "plan.privacy.mode: expected distributed"),
        (["sweep=[{mode: local, epsilon: 1}, {mode: local, epsilon: 1.0}]"], "'local_eps_1' twice"),
        (["sweep=[{mode: local, epsilon: 0}]"], "epsilon: expected a number > 0"),
        (["sweep=[{mode: site, epsilon: 1}]"], "expected one of distributed, local"),
        (["sweep=[{mode: local}]"], "epsilon: expected a finite number, got nothing"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_by_name(overrides: list[str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        private_settings(*overrides)
    assert line in str(caught.value)


def test_a_point_whose_teacher_spends_it_all_is_refused_before_anything_is_trained(
    scenario: SimulationSettings, models: Any
) -> None:
    teacher = scenario.plan.privacy.teacher
    assert teacher is not None
    greedy = replace(scenario.plan.privacy, teacher=replace(teacher, epsilon=9.0))
    settings = replace(scenario, plan=replace(scenario.plan, privacy=greedy), sweep=POINTS[1:])
    with pytest.raises(SettingsError, match=r"privacy\.epsilon"):
        sweep_plans(settings, {TRACK: POPULATION}, {TRACK: models})


def outcomes(right: Sequence[bool]) -> Outcomes:
    return Outcomes.of([MetricCounts(n=1, top1=int(one), top5=1, top10=1) for one in right])


def test_a_paired_difference_is_that_of_the_rates_and_its_interval_that_of_the_pairs() -> None:
    first, second = [True] * 60 + [False] * 40, [True] * 40 + [False] * 60
    gain, (low, high) = paired_difference(outcomes(first), outcomes(second), "top1", np.random.default_rng(0))
    assert gain == pytest.approx(0.2)
    # Twenty of a hundred patients differ, all one way: the difference is a share, with a share's spread.
    spread = 1.96 * math.sqrt(0.2 * 0.8 / 100)
    assert (low, high) == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.02)


def test_methods_that_answer_alike_differ_by_nothing_whoever_is_drawn() -> None:
    same = outcomes([True, False, True])
    assert paired_difference(same, same, "top1", np.random.default_rng(0)) == (0.0, (0.0, 0.0))


def test_a_difference_over_other_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="same patients, got 1 and 2"):
        paired_difference(outcomes([True]), outcomes([True, True]), "top1", np.random.default_rng(0))


def test_a_drawing_has_every_epsilon_on_its_axis_and_every_line_in_its_legend() -> None:
    curve = BarredCurve(label="shared <noise>", x=[1, 2, 8], y=[0.2, 0.3, 0.5], ends=[(0.1, 0.3)] * 3)
    level = Level(label="no noise", y=0.6, ends=(0.5, 0.7))
    svg = draw_barred([curve], [level], title="top-1", x_label="ε", y_label="share")
    for text in ("shared &lt;noise&gt;", "no noise", ">1<", ">2<", ">8<"):
        assert text in svg
    assert "http" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    settings = small_settings(SMALL_SWEEP)
    run_simulation(replace(settings, out=place / "out", cache=place / "cache"), Console(quiet=True))
    return place / "out"


SMALL_SWEEP = (
    "data.sites={site-a: 12, site-b: 12, site-c: 12, site-d: 12}",
    "evaluation.free_cases=0",
    "plan.privacy.mode=distributed",
    "plan.teacher.privacy=public",
    "plan.training.patients_per_step=4",
    "plan.training.rounds=1",
    "plan.privacy.spare_steps=0",
    "methods=[federated_orpo]",
    "link=memory",
    "+sweep=[{mode: distributed, epsilon: 8}, {mode: local, epsilon: 8}]",
)


def test_a_run_writes_every_point_with_what_it_spent(folder: Path) -> None:
    block = json.loads((folder / "sweep.json").read_text())
    methods = json.loads((folder / "results.json").read_text())["tracks"]["rare_disease"]["methods"]
    found = [(point["mode"], point["epsilon"], point["method"]) for point in block["points"]]
    assert found == [
        ("distributed", 8.0, "federated_orpo"),
        ("local", 8.0, "federated_orpo_local_eps_8"),
    ]
    for point in block["points"]:
        assert 0 < point["epsilon_spent"] <= point["epsilon"]
        assert point["epsilon_spent"] == pytest.approx(
            methods[point["method"]]["privacy"]["epsilon"], abs=1e-6
        )
        assert point["top1"] == methods[point["method"]]["top1"]
    assert methods["federated_orpo_no_noise"]["privacy"] == dict(NO_PRIVACY)
    assert not (folder / "sweep" / "federated_orpo").exists()
    ledgers = sorted(folder.glob("sweep/*/sites/site-a/ledger.db"))
    assert [path.parents[2].name for path in ledgers] == ["federated_orpo_local_eps_8"]


def test_a_run_states_the_gain_where_both_modes_were_trained(folder: Path) -> None:
    (gain,) = json.loads((folder / "sweep.json").read_text())["gains"]
    right = {
        method: [
            one.answers[0].id == one.truth
            for one in read_predictions(folder / "predictions" / "rare_disease" / f"{method}.jsonl")
        ]
        for method in ("federated_orpo", "federated_orpo_local_eps_8")
    }
    shared, own = right.values()
    assert gain["epsilon"] == 8.0
    assert gain["top1"] == pytest.approx((sum(shared) - sum(own)) / len(own), abs=1e-6)
    assert gain["top1_interval"][0] <= gain["top1"] <= gain["top1_interval"][1]
    assert gain["noise_std_ratio"] == pytest.approx(math.sqrt(4 - 1), rel=ROUNDED)


def test_the_page_asks_for_nothing_and_shows_the_figures(folder: Path) -> None:
    page = (folder / "privacy.html").read_text()
    for needle in ("http:", "https:", "<script", "src=", "@import"):
        assert needle not in page
    block = json.loads((folder / "sweep.json").read_text())
    for point in block["points"]:
        assert f"{100 * point['top1']:.1f} %" in page
        assert point["statement"] in page
    assert "No ε is promised here" not in page


def test_the_page_says_so_where_no_epsilon_is_promised(folder: Path) -> None:
    block = json.loads((folder / "sweep.json").read_text())
    block["points"][0] |= {"epsilon_spent": None, "epsilon_teacher": None}
    page = render_page(block | {"scenario": "<b>"})
    assert "No ε is promised here" in page
    assert "&lt;b&gt;" in page
    assert "no bound" in page
