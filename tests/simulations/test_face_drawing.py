import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from simulations.face_drawing import draw_face, head_half
from simulations.face_features import lids
from simulations.face_sketch import Look
from simulations.face_terms import MEASURES

LOOK = Look(
    skin=(214, 164, 128),
    hair=(60, 40, 30),
    iris=(90, 60, 30),
    background=(90, 140, 150),
    cloth=(40, 60, 110),
    long_hair=False,
    roll=0.0,
    yaw=0.0,
    pitch=0.0,
    shift=(0.0, 0.0),
    scale=1.0,
    skew=0.0,
)
MEAN = {name: measure.mean for name, measure in MEASURES.items()} | {"mouth_y": 0.54}
OF_THE_LOOK = {"skew", "fair", "blue_iris"}  # measures that reach the drawing through the look
NEEDS_AN_OPEN_MOUTH = {"teeth", "tooth_size", "tooth_gap"}


def pixels(measures: dict[str, float], look: Look = LOOK) -> NDArray[np.int64]:
    return np.asarray(draw_face(measures, look, 64)).astype(int)


def test_a_straight_normal_face_is_symmetric() -> None:
    face = pixels(MEAN)
    apart = np.abs(face - face[:, ::-1]).mean()
    assert apart < 3  # but for what a light leaves on one side of nose and eyes


@pytest.mark.parametrize("name", sorted(set(MEASURES) - OF_THE_LOOK - {"philtrum"}))
def test_every_measure_changes_the_drawing(name: str) -> None:
    base = MEAN | ({"gape": 0.5} if name in NEEDS_AN_OPEN_MOUTH else {})
    least = base | {name: MEASURES[name].least}
    most = base | {name: MEASURES[name].most}
    assert np.abs(pixels(most) - pixels(least)).max() > 20


@pytest.mark.parametrize("end", ["least", "most"])
def test_faces_at_the_limits_of_all_measures_are_still_drawn(end: str) -> None:
    extreme = {name: getattr(measure, end) for name, measure in MEASURES.items()} | {"mouth_y": 0.54}
    assert pixels(extreme).std() > 10


def test_the_head_runs_from_crown_to_chin() -> None:
    half = head_half(MEAN)
    assert half[0].tolist() == [0.0, -MEAN["crown"]]
    assert half[-1].tolist() == [0.0, MEAN["chin_y"]]
    assert (np.diff(half[:, 1]) > 0).all()


def test_drooping_lids_narrow_the_eye_and_wide_ones_open_it() -> None:
    def opening(**changes: float) -> float:
        upper, lower = lids(MEAN | changes)
        return float((lower - upper)[:, 1].max())

    assert opening(ptosis=0.8) < 0.7 * opening()
    assert opening(eye_open=0.09) > 1.3 * opening()


def test_slant_lifts_or_lowers_the_outer_corner() -> None:
    up, _ = lids(MEAN | {"slant": 0.3})
    down, _ = lids(MEAN | {"slant": -0.3})
    assert up[-1, 1] < up[0, 1]
    assert down[-1, 1] > down[0, 1]


def test_long_hair_and_a_turned_head_change_the_picture() -> None:
    for change in (
        {"long_hair": True},
        {"roll": 0.1},
        {"yaw": 0.1},
        {"pitch": 0.1},
        {"skew": 0.05},
        {"scale": 0.9},
    ):
        assert np.abs(pixels(MEAN, dataclasses.replace(LOOK, **change)) - pixels(MEAN)).mean() > 1
