import json
from pathlib import Path
from typing import Any

import pytest

from simulations.seeds import main, over_seeds, read_runs

RATES = ("top10", "invalid_rate", "ece", "coverage", "avoidance")


def scores(top1: float) -> dict[str, Any]:
    return {"n": 100, "top1": top1, **dict.fromkeys(RATES, 0.5), "interval": {"top1": [top1, top1]}}


def write_run(folder: Path, seed: int, federated: float, alone: tuple[float, float], **changes: Any) -> Path:
    methods = {
        "federated_orpo": scores(federated),
        "local_orpo": {"site-a": scores(alone[0]), "site-b": scores(alone[1])},
    }
    content = {
        "schema": 1,
        "scenario": "demo",
        "seed": seed,
        "tracks": {"rare_disease": {"methods": methods}},
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "0", 0, 0.50, (0.30, 0.35)),
        write_run(tmp_path / "1", 1, 0.60, (0.40, 0.20)),
        write_run(tmp_path / "2", 2, 0.70, (0.30, 0.35)),
    ]


def test_means_and_students_interval_over_seeds(runs: list[Path]) -> None:
    found = over_seeds(read_runs(runs), "rare_disease")
    top1 = found["methods"]["Federated student"]["top1"]
    assert top1["mean"] == pytest.approx(0.6)
    # t of two degrees of freedom is 4.303; the spread is 0.1.
    assert top1["interval"] == pytest.approx(
        [0.6 - 4.3027 * 0.1 / 3**0.5, 0.6 + 4.3027 * 0.1 / 3**0.5], abs=1e-4
    )
    assert found["methods"]["site-a alone"]["top1"]["runs"] == [0.3, 0.4, 0.3]


def test_the_gain_is_over_the_best_site_of_the_same_run(runs: list[Path]) -> None:
    found = over_seeds(read_runs(runs), "rare_disease")
    assert found["gain"]["runs"] == pytest.approx([0.15, 0.20, 0.35])
    assert found["least_gain"] == pytest.approx(0.15)


def test_a_rate_that_a_run_has_not_measured_has_no_mean(runs: list[Path]) -> None:
    content = json.loads((runs[1] / "results.json").read_text())
    content["tracks"]["rare_disease"]["methods"]["federated_orpo"]["ece"] = None
    (runs[1] / "results.json").write_text(json.dumps(content))
    assert over_seeds(read_runs(runs), "rare_disease")["methods"]["Federated student"]["ece"] is None


def test_the_command_prints_tables_or_one_object(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run) for run in runs]) == 0
    said = capsys.readouterr().out
    assert "mean of seeds 0, 1, 2" in said
    assert "23.3 points on average, 15.0 at least" in said
    assert main([*map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ({"seed": 0}, "runs: expected every seed once, got seeds 0, 0"),
        ({"seed": 1, "scenario": "other"}, "runs: expected one scenario"),
        (None, "runs: expected at least 2 folders of finished runs, got 1"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: dict[str, Any] | None, line: str
) -> None:
    folders = [write_run(tmp_path / "0", 0, 0.5, (0.3, 0.3))]
    if second is not None:
        folders.append(write_run(tmp_path / "1", second.pop("seed"), 0.5, (0.3, 0.3), **second))
    assert main([str(folder) for folder in folders]) == 1
    assert line in capsys.readouterr().err


def test_a_folder_without_results_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err
