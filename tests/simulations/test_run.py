import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from client.student.predict import load_student
from client.student.predictions import read_predictions
from common.errors import BadFileError, SettingsError
from simulations.method_settings import METHODS as ALL_METHODS
from simulations.results import without_times
from simulations.run import run_simulation
from simulations.settings import SimulationSettings
from tests.simulations.small import small_settings

# Calibrated students, DPO and documents are looked at in test_compare.py.
METHODS = tuple(
    name for name in ALL_METHODS if not name.startswith(("federated_orpo_", "rag_")) and "dpo" not in name
)


def run(out: Path, cache: Path, **changes: object) -> dict[str, object]:
    settings = replace(small_settings(), out=out, cache=cache, **changes)
    return run_simulation(settings, Console(quiet=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulation")


@pytest.fixture(scope="module")
def content(place: Path) -> dict[str, object]:
    return run(place / "grid", place / "cache", methods=METHODS)


def test_a_run_writes_all_that_its_interface_names(place: Path, content: dict[str, object]) -> None:
    out = place / "grid"
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    student = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "answers.json",
        "README.md",
        "student.json",
    }
    assert {f"students/rare_disease/{name}" for name in student} <= names
    assert {"results.json", "report.html", "plan.json"} <= names
    for method in ("base", "teacher", "federated_orpo", "pooled_orpo", "federated_sft", "local_orpo.site-a"):
        assert f"predictions/rare_disease/{method}.jsonl" in names
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(content))


def test_every_method_is_judged_on_the_same_patients(place: Path, content: dict[str, object]) -> None:
    track = content["tracks"]["rare_disease"]
    assert set(METHODS) <= set(track["methods"])
    cases = None
    for path in sorted((place / "grid" / "predictions" / "rare_disease").glob("*.jsonl")):
        predictions = read_predictions(path)
        assert len(predictions) == track["n_test"]
        cases = cases or [(one.case_id, one.truth) for one in predictions]
        assert [(one.case_id, one.truth) for one in predictions] == cases


def test_the_results_are_those_of_the_predictions(place: Path, content: dict[str, object]) -> None:
    predictions = read_predictions(place / "grid" / "predictions" / "rare_disease" / "federated_orpo.jsonl")
    right = [one.answers[0].id == one.truth for one in predictions]
    reported = content["tracks"]["rare_disease"]["methods"]["federated_orpo"]["top1"]
    assert reported == pytest.approx(sum(right) / len(right), abs=1e-6)


def test_the_same_seed_gives_the_same_results_over_either_link(
    place: Path, content: dict[str, object]
) -> None:
    again = run(place / "memory", place / "cache", methods=METHODS, link="memory")
    assert without_times(again) == without_times(content)


def test_another_seed_gives_other_results(place: Path, content: dict[str, object]) -> None:
    other = run(place / "other", place / "cache", seed=1, methods=("federated_orpo",))
    assert without_times(other)["tracks"] != without_times(content)["tracks"]


def test_the_released_student_answers_as_the_run_reported(place: Path, content: dict[str, object]) -> None:
    out = place / "grid"
    loaded = load_student(out / "students" / "rare_disease")
    assert loaded.card.method == "federated_orpo"
    assert (loaded.card.privacy, loaded.card.aggregation) == ("none", "secagg-v1")
    (answers,) = loaded.rank(["The patient was male who presented with seizure."], 5)
    assert len(answers) == 5


def test_any_folder_can_be_the_base(place: Path, content: dict[str, object], tmp_path: Path) -> None:
    folder = Path(load_student(place / "grid" / "students" / "rare_disease").card.base_model)
    empty = tmp_path / "cache"
    again = run(tmp_path / "out", empty, base_model=folder, methods=("federated_orpo",))
    assert not list(empty.glob("tiny-base-*"))
    methods = without_times(again)["tracks"]["rare_disease"]["methods"]
    assert methods["base"] == without_times(content)["tracks"]["rare_disease"]["methods"]["base"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["+extra=1"], "settings.extra: expected one of"),
        (["data.skew=high"], "data.skew: expected a finite number, got 'high'"),
        (["methods=[teacher]"], "methods: expected federated_orpo among them"),
        (["methods=[federated_orpo,magic]"], "methods: expected one of base"),
        (["threads=0"], "threads: expected a whole number >= 1, got 0"),
        (["link=pigeon"], "settings.link: expected one of grid, memory"),
        (["plan.training.rounds=0"], "settings.plan.training.rounds: expected a whole number >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(overrides: list[str], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        small_settings(overrides)
    assert line in str(caught.value)


def test_a_data_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    settings: SimulationSettings = small_settings(["data=phenopackets", f"data.root={tmp_path}"])
    with pytest.raises(BadFileError, match=r"cases\.jsonl\.gz: missing; data\.root"):
        run_simulation(replace(settings, out=tmp_path / "out"), Console(quiet=True))
