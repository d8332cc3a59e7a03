"""Tests of results.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsError, UnsupportedSchemaError
from simulations.results import (
    MethodResult,
    TrackResult,
    predictions_path,
    read_results,
    without_times,
    write_results,
)
from simulations.scores import RATES, Scores


def test_file_has_the_promised_form(sample_run: Any, tmp_path: Path) -> None:
    content = write_results(tmp_path, sample_run.result)
    assert read_results(tmp_path / "results.json") == content
    assert list(content) == ["schema", "scenario", "seed", "seconds", "tracks", "privacy", "aggregation"]
    assert (content["schema"], content["scenario"], content["seed"]) == (1, "demo", 7)
    assert set(content["privacy"]) == {
        "mode", "statement", "epsilon", "delta", "epsilon_teacher", "unit", "sigma", "q", "steps",
    }  # fmt: skip
    assert content["privacy"]["mode"] == "none"
    assert content["privacy"]["epsilon"] is None
    assert content["aggregation"]["mode"] == "secagg-v1"
    # Four rounds of 1.2 MB: three sites in the first three sums, two in the last.
    assert content["aggregation"]["bytes_up_per_site"] == 3 * 400_000 + 600_000
    assert [content["aggregation"][key] for key in ("rounds", "dropped", "retried", "seconds")] == [
        4,
        1,
        1,
        200,
    ]
    assert content["aggregation"]["work_seconds"] == 2.0
    track = content["tracks"]["rare_disease"]
    assert {"n_train", "n_test", "n_answers", "unit", "n_test_units", "methods"} == set(track)
    for name in ("top1", "top10", "invalid_rate", "ece", "coverage", "avoidance", "interval"):
        assert name in track["methods"]["federated_orpo"]
        assert name in track["methods"]["local_orpo"]["site-a"]
    assert track["methods"]["federated_orpo"]["own_answers"]["site-b"]["n"] == 20
    assert track["methods"]["federated_orpo"]["new_publications"]["n"] == 10
    assert track["methods"]["local_orpo_mean"]["top1"] == pytest.approx(0.4)


def test_without_times_two_runs_differ_in_nothing_that_is_left(sample_run: Any) -> None:
    slower = dataclasses.replace(
        sample_run.result,
        seconds={"data": 99.0},
        aggregation=dataclasses.replace(sample_run.result.aggregation, seconds=1.0, work_seconds=0.5),
    )
    assert slower.as_dict() != sample_run.result.as_dict()
    assert without_times(slower.as_dict()) == without_times(sample_run.result.as_dict())
    assert 'seconds"' not in json.dumps(without_times(slower.as_dict()))
    other = dataclasses.replace(sample_run.result, seed=8)
    assert without_times(other.as_dict()) != without_times(sample_run.result.as_dict())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_every_number_is_finite_or_refused_with_its_place(
    sample_run: Any, tmp_path: Path, number: float
) -> None:
    scores = Scores(n=1, rates=dict.fromkeys(RATES, number), interval={})
    track = TrackResult(n_train=1, n_test=1, n_answers=2, methods={"base": MethodResult(union=scores)})
    broken = dataclasses.replace(sample_run.result, tracks={"rare_disease": track})
    with pytest.raises(ValueError, match=r"results\.tracks\.rare_disease\.methods\.base\.top1"):
        write_results(tmp_path, broken)
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_file_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method"):
        TrackResult(n_train=1, n_test=1, n_answers=1, methods={"../base": {}})
    with pytest.raises(ValueError, match="method"):
        predictions_path(tmp_path, "rare_disease", "../base")
    with pytest.raises(ValueError, match="track"):
        predictions_path(tmp_path, "..", "base")


def test_predictions_have_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "predictions" / "rare_disease"
    assert predictions_path(tmp_path, "rare_disease", "base") == folder / "base.jsonl"
    assert (
        predictions_path(tmp_path, "rare_disease", "local_orpo", "site-a")
        == folder / "local_orpo.site-a.jsonl"
    )
    assert folder.is_dir()


def test_results_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"schema": 2}')
    with pytest.raises(UnsupportedSchemaError):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(SettingsError):
        read_results(path)
