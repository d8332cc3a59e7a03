"""Students of an earlier run are taken back for the very same plan and patients, and for no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.adapter import Adapter
from common.ids import site_id
from common.plan import RunPlan
from simulations.kept import KEPT_FOLDER, ByTrack, Keeper, Trained, recipe_of
from tests.fakes import tiny_adapter, tiny_plan

A, B = site_id("site-a"), site_id("site-b")


def student(seed: int) -> Trained:
    return Trained(adapter=tiny_adapter(seed=seed), seconds=1.5, temperature=1.25)


def never() -> ByTrack:
    raise AssertionError("a kept student was trained again")


def same(one: Adapter, other: Adapter) -> bool:
    return all(np.array_equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


@pytest.fixture
def plan() -> RunPlan:
    return tiny_plan()


def test_a_student_is_trained_once(tmp_path: Path, plan: RunPlan) -> None:
    (track,) = (one.track for one in plan.tracks)
    keeper = Keeper(folder=tmp_path, recipe=recipe_of(1))
    made = keeper.once("federated_orpo", plan, lambda: {track: replace(student(1), plan=plan, bytes_up=7)})
    found = keeper.once("federated_orpo", plan, never)
    assert same(found[track].adapter, made[track].adapter)
    assert replace(found[track], adapter=made[track].adapter) == made[track]


def test_students_of_single_sites_come_back_by_site(tmp_path: Path, plan: RunPlan) -> None:
    (track,) = (one.track for one in plan.tracks)
    keeper = Keeper(folder=tmp_path, recipe=recipe_of(1))
    keeper.once("local_orpo", plan, lambda: {track: {A: student(1), B: student(2)}})
    found = keeper.once("local_orpo", plan, never)[track]
    assert set(found) == {A, B} and same(found[B].adapter, student(2).adapter)


@pytest.mark.parametrize("change", ["plan", "recipe", "sheet", "adapter"])
def test_another_plan_or_recipe_or_a_damaged_file_trains_anew(
    tmp_path: Path, plan: RunPlan, change: str
) -> None:
    (track,) = (one.track for one in plan.tracks)
    Keeper(folder=tmp_path, recipe=recipe_of(1)).once("local_orpo", plan, lambda: {track: {A: student(1)}})
    path = tmp_path / KEPT_FOLDER / track / "local_orpo.site-a.safetensors"
    if change == "sheet":
        path.with_suffix(".json").write_text("{")
    if change == "adapter":
        path.write_bytes(path.read_bytes()[:50])
    keeper = Keeper(folder=tmp_path, recipe=recipe_of(2 if change == "recipe" else 1))
    asked = replace(plan, seed=plan.seed + 1) if change == "plan" else plan
    found = keeper.once("local_orpo", asked, lambda: {track: {A: student(3)}})
    assert same(found[track][A].adapter, student(3).adapter)
    assert same(keeper.once("local_orpo", asked, never)[track][A].adapter, student(3).adapter)


def test_one_lost_site_trains_all_of_a_method_anew(tmp_path: Path, plan: RunPlan) -> None:
    (track,) = (one.track for one in plan.tracks)
    keeper = Keeper(folder=tmp_path, recipe=recipe_of(1))
    keeper.once("local_orpo", plan, lambda: {track: {A: student(1), B: student(2)}})
    (tmp_path / KEPT_FOLDER / track / "local_orpo.site-b.json").unlink()
    found = keeper.once("local_orpo", plan, lambda: {track: {A: student(4), B: student(5)}})
    assert same(found[track][A].adapter, student(4).adapter)
