import json
from dataclasses import replace
from typing import Any

import pytest

from common.calibration_plan import EFFECTIVE, CalibrationPlan
from common.errors import SettingsError
from common.plan import RunPlan
from tests.fakes import tiny_plan

OTHERS: dict[str, Any] = {
    "rounds": 2, "learning_rate": 0.5, "refresh": 2, "weight": 2.0, "smoothing": 0.2, "candidates": 4
}  # fmt: skip
RCFT = CalibrationPlan(method="rcft", share=0.2, rounds=2)


def plan_of(method: Any, **changes: Any) -> CalibrationPlan:
    rounds = {} if method == "temperature" else {"rounds": 1}
    return CalibrationPlan(**{"method": method, "share": 0.2, **rounds, **changes})


@pytest.mark.parametrize("method", EFFECTIVE)
def test_each_method_takes_what_it_looks_at_and_refuses_the_rest(method: Any) -> None:
    for key, value in OTHERS.items():
        if key in EFFECTIVE[method]:
            assert getattr(plan_of(method, **{key: value}), key) == value
        else:
            with pytest.raises(SettingsError, match=rf"{key}: expected .*no effect on {method}, got"):
                plan_of(method, **{key: value})


@pytest.mark.parametrize("method", EFFECTIVE)
def test_every_method_sets_patients_aside_and_has_a_score(method: Any) -> None:
    assert plan_of(method, score="mean").score == "mean"
    for share in (0, 1, -0.1):
        with pytest.raises(SettingsError, match="share: expected a number > 0 and < 1"):
            plan_of(method, share=share)


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("cft", {"rounds": 0}, "rounds: expected a whole number >= 1, got 0"),
        ("rcft", {"refresh": 0}, "refresh: expected a whole number >= 1, got 0"),
        ("rcft", {"candidates": 1}, "candidates: expected a whole number >= 2, got 1"),
        ("rcft", {"weight": 0}, "weight: expected a number > 0, got 0"),
        ("cft", {"learning_rate": 0}, "learning_rate: expected a number > 0, got 0"),
        ("label_smoothing", {"smoothing": 1}, "smoothing: expected a number > 0 and < 1, got 1"),
        ("platt", {}, "method: expected one of temperature, label_smoothing, cft, rcft, got 'platt'"),
        ("rcft", {"score": "max"}, "score: expected one of sum, mean, got 'max'"),
    ],
)
def test_a_bad_value_is_refused_with_one_clear_line(method: Any, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan_of(method, **changes)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(("refresh", "fresh"), [(1, [1, 2, 3, 4]), (2, [1, 3]), (3, [1, 4]), (9, [1])])
def test_bins_are_taken_anew_before_the_first_round_and_every_so_many(refresh: int, fresh: list[int]) -> None:
    assert [n for n in range(1, 5) if replace(RCFT, refresh=refresh).refreshes(n)] == fresh
    assert not any(plan_of("cft").refreshes(n) for n in range(1, 5))


def test_a_plan_counts_rounds_of_both_and_trains_for_none_only_to_calibrate() -> None:
    assert tiny_plan(rounds=3, calibration=RCFT).tracks[0].all_rounds == 5
    assert tiny_plan(rounds=0, calibration=RCFT).tracks[0].all_rounds == 2
    assert tiny_plan(rounds=3).tracks[0].all_rounds == 3
    with pytest.raises(SettingsError, match=r"training.rounds: expected a whole number >= 1, got 0"):
        tiny_plan(rounds=0)


def test_a_calibration_is_in_the_digest_and_comes_back_from_json() -> None:
    plans = [tiny_plan(calibration=one) for one in (None, RCFT, replace(RCFT, refresh=2))]
    assert len({plan.digest() for plan in plans}) == 3
    for plan in plans:
        assert RunPlan.from_json(plan.to_json()) == plan
    content = json.loads(plans[1].to_json())
    content["tracks"][0]["calibration"]["share"] = 2
    with pytest.raises(SettingsError, match=r"^plan.tracks\[0\].calibration.share: expected"):
        RunPlan.from_json(json.dumps(content))


def test_a_site_sets_patients_aside_once_for_all_tracks() -> None:
    plan = tiny_plan(tracks=("rare_disease", "tissue_type"), calibration=RCFT)
    other = replace(plan.tracks[1], calibration=replace(RCFT, share=0.3))
    with pytest.raises(SettingsError, match=r"tracks\[1\].calibration.share: expected 0.2, as of the other"):
        replace(plan, tracks=(plan.tracks[0], other))
    alone = replace(plan, tracks=(replace(plan.tracks[0], calibration=None), other))
    assert alone.tracks[1].calibration is not None
