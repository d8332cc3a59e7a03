"""Several seeds, and several variants, become one comparison; what was trained is not trained again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console

import simulations.courses
from client.student.predictions import read_predictions
from common.errors import SettingsError
from simulations.compare import REFERENCE, run_comparison, run_variants, variant_settings
from simulations.evidence import EVIDENCE_FILE, PAGE_FILE, TABLES_FILE
from simulations.results import without_times
from simulations.settings import SimulationSettings, simulation_settings
from simulations.variants import TABLE_FILE, VARIANTS_FILE
from tests.simulations.small import SMALL

QUIET = Console(quiet=True)
QUICK = (
    *SMALL,
    "data.sites={site-a: 60, site-b: 50, site-c: 50, site-d: 40}",
    "data.test_per_answer=1",
    "threads=2",
)


def composed(scenario: str, overrides: Sequence[str] = ()) -> dict[str, object]:
    torch.set_num_threads(2)
    with initialize_config_module("simulations.conf", version_base="1.3"):
        found = OmegaConf.to_container(
            compose("config", overrides=[f"scenario={scenario}", *QUICK, *overrides]), resolve=True
        )
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def settings(place: Path) -> SimulationSettings:
    found = simulation_settings(composed("compare.quick"))
    return replace(found, out=place / "out", cache=place / "cache")


@pytest.fixture(scope="module")
def page(settings: SimulationSettings) -> Path:
    return run_comparison(settings, QUIET)


def test_the_quick_comparison_holds_every_method_of_the_large_one(
    settings: SimulationSettings, page: Path
) -> None:
    evidence = json.loads((settings.out / EVIDENCE_FILE).read_text())
    assert evidence["seeds"] == [0, 1] and page == settings.out / PAGE_FILE
    judged = {line["method"] for line in evidence["tracks"]["rare_disease"]["methods"]}
    assert set(settings.methods) <= judged
    assert {f"federated_orpo_distributed_eps_{epsilon}" for epsilon in (2, 8)} <= judged
    for file in (TABLES_FILE, PAGE_FILE):
        assert "Federated" in (settings.out / file).read_text()


def test_a_comparison_that_is_run_again_trains_nobody_and_finds_the_same(
    settings: SimulationSettings, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((settings.out / "seed-0" / "results.json").read_text())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a student was trained again")

    for name in ("federate", "fit_alone"):
        monkeypatch.setattr(simulations.courses, name, refuse)
    run_comparison(settings, QUIET)
    after = json.loads((settings.out / "seed-0" / "results.json").read_text())
    assert without_times(after)["tracks"].keys() == without_times(before)["tracks"].keys()
    for method, entry in without_times(before)["tracks"]["rare_disease"]["methods"].items():
        again = without_times(after)["tracks"]["rare_disease"]["methods"][method]
        assert again == entry, method


def test_calibration_is_on_patients_of_whom_no_pair_was_made_and_keeps_the_order(
    settings: SimulationSettings, page: Path
) -> None:
    folder = settings.out / "seed-0" / "predictions" / "rare_disease"
    plain = read_predictions(folder / "federated_orpo.jsonl")
    tempered = read_predictions(folder / "federated_orpo_temperature.jsonl")
    assert [[a.id for a in one.answers] for one in plain] == [[a.id for a in one.answers] for one in tempered]
    sheet = json.loads(
        (settings.out / "seed-0/trained/rare_disease/federated_orpo_temperature.json").read_text()
    )
    pooled = json.loads(
        (settings.out / "seed-0/trained/rare_disease/federated_orpo_pooled_temperature.json").read_text()
    )
    # The secure sum looks at a grid of eight temperatures an octave, and between them.
    assert sheet["temperature"] == pytest.approx(pooled["temperature"], rel=0.05)


def test_methods_with_documents_answer_the_cases_they_are_given(
    settings: SimulationSettings, page: Path
) -> None:
    results = json.loads((settings.out / "seed-0" / "results.json").read_text())
    methods = results["tracks"]["rare_disease"]["methods"]
    assert methods["rag_rag"]["n"] == settings.retrieval.cases
    assert 0 <= methods["rag_rag"]["retrieval"]["hit_rate"] <= 1
    assert methods["rag_base"]["retrieval"]["hit_rate"] is None
    assert methods["search"]["n"] == methods["federated_orpo"]["n"]
    assert methods["search"]["ece"] is None  # a search claims no confidence


def test_variants_stand_beside_the_run_as_it_is(place: Path) -> None:
    changes = {"larger": {"plan.adapter.rank": 3}, "fewer": {"data.sites": {f"site-{i}": 60 for i in "abc"}}}
    whole = composed("compare.quick", ["methods=[federated_orpo]", "sweep=[]", "seeds=[]"])
    table = run_variants(
        whole | {"variants": changes, "out": str(place / "variants"), "cache": str(place / "cache")}, QUIET
    )
    assert table == place / "variants" / TABLE_FILE and "| larger |" in table.read_text()
    rows = json.loads((place / "variants" / VARIANTS_FILE).read_text())["tracks"]["rare_disease"]
    assert [row["variant"] for row in rows] == [REFERENCE, "larger", "fewer"]
    assert "top1_difference" not in rows[0]["tests"]["union"]
    low, high = rows[1]["tests"]["union"]["top1_interval"]
    assert low <= rows[1]["tests"]["union"]["top1_difference"] <= high


def test_a_variant_replaces_what_it_names_and_nothing_else(place: Path) -> None:
    whole = composed("compare.quick")
    changed = variant_settings(whole, "few", {"data.sites": {"site-x": 3}, "plan.training.orpo_lambda": 0.5})
    assert dict(changed.data.sites) == {"site-x": 3}
    assert changed.plan.training.orpo_lambda == 0.5
    assert changed.out.name == "few" and not changed.variants
    assert changed.plan.training.rounds == simulation_settings(whole).plan.training.rounds


@pytest.mark.parametrize("key", ["plan.trainig.rounds", "plan.training.round", "name.x"])
def test_a_variant_of_an_unknown_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(SettingsError, match=key.rpartition(".")[2]):
        variant_settings(composed("compare.quick"), "odd", {key: 1})


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["seeds=[1,1]"], "seeds: expected every"),
        (["data.calibration_share=0"], "data.calibration_share: expected more than 0"),
        (["calibration=null"], "calibration: expected settings"),
        (["+variants.a.seed=1"], "variants: expected none beside seeds"),
        (["retrieval.cases=0"], "cases: expected a whole number >= 1"),
        (["data.calibration_share=1"], "calibration_share: expected"),
    ],
)
def test_settings_of_a_comparison_that_make_no_sense_are_refused_by_name(
    overrides: list[str], line: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        simulation_settings(composed("compare.quick", overrides))
    assert line in str(caught.value)
