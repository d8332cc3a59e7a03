import dataclasses

import numpy as np
import pytest

from simulations.face_sketch import (
    FAINTEST,
    Look,
    Sketch,
    band,
    circle,
    curve,
    ellipse,
    lit,
    mix,
    moved,
    outline,
    taper,
    to_frame,
    turning,
)

STRAIGHT = Look(
    skin=(200, 160, 130),
    hair=(60, 40, 30),
    iris=(90, 60, 30),
    background=(10, 20, 30),
    cloth=(0, 0, 0),
    long_hair=False,
    roll=0.0,
    yaw=0.0,
    pitch=0.0,
    shift=(0.0, 0.0),
    scale=1.0,
    skew=0.0,
)
SQUARE = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def test_a_polygon_covers_its_place_and_nothing_else() -> None:
    sketch = Sketch()
    sketch.add(SQUARE, (250, 240, 230))
    pixels = np.asarray(sketch.render(STRAIGHT, 32))
    assert tuple(pixels[16, 16]) == (250, 240, 230)
    assert tuple(pixels[0, 0]) == (10, 20, 30)


def test_a_half_transparent_polygon_is_mixed_with_what_is_below() -> None:
    sketch = Sketch()
    sketch.add(SQUARE, (110, 120, 130), alpha=0.5)
    assert np.asarray(sketch.render(STRAIGHT, 32))[16, 16] == pytest.approx((60, 70, 80), abs=2)


def test_edges_are_antialiased() -> None:
    sketch = Sketch()
    sketch.add(ellipse(0, 0, 0.7, 0.7), (255, 255, 255))
    assert len(np.unique(np.asarray(sketch.render(STRAIGHT, 32))[:, :, 0])) > 3


def test_what_is_too_faint_to_see_is_left_out() -> None:
    sketch = Sketch()
    sketch.add(SQUARE, (1, 2, 3), alpha=FAINTEST)
    sketch.both(SQUARE, (1, 2, 3), alpha=FAINTEST)
    assert sketch.polygons == []
    assert (np.asarray(sketch.render(STRAIGHT, 16)) == (10, 20, 30)).all()


def test_both_mirrors_the_right_half() -> None:
    sketch = Sketch()
    sketch.both(np.array([(0.1, 0.0), (0.4, 0.0), (0.4, 0.3)]), (1, 2, 3))
    assert np.array_equal(sketch.polygons[1], np.array([(-0.1, 0.0), (-0.4, 0.0), (-0.4, 0.3)]))


def test_a_turn_of_the_head_moves_the_near_more_than_the_far() -> None:
    depths = np.array([0.2, -0.2])  # a nose before an ear
    turned = to_frame(np.zeros((2, 2)), depths, dataclasses.replace(STRAIGHT, yaw=0.2), 64)
    nose, ear = (turned - to_frame(np.zeros((2, 2)), depths, STRAIGHT, 64))[:, 0]
    assert nose > ear > 0


def test_turning_goes_from_x_towards_y() -> None:
    assert np.array([(1.0, 0.0)]) @ turning(np.pi / 2) == pytest.approx(np.array([(0.0, 1.0)]))


def test_curves_pass_through_their_anchors() -> None:
    anchors = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)]
    assert curve(*anchors, steps=4)[::4] == pytest.approx(np.array(anchors))
    assert outline(np.array(anchors), steps=4)[::4] == pytest.approx(np.array(anchors))


def test_shapes_lie_where_they_are_put() -> None:
    assert np.abs(circle()).max() == pytest.approx(1.0)
    assert ellipse(2, 3, 0.5, 0.25).mean(axis=0) == pytest.approx((2, 3))
    assert moved(SQUARE, 1, -1).mean(axis=0) == pytest.approx((1, -1))
    assert band(np.array([(0.0, 0.0), (1.0, 0.0)]), 0.5).tolist() == [[0, 0], [1, 0], [1, 0.5], [0, 0.5]]
    assert taper(3).tolist() == [0.0, 1.0, 0.0]


def test_colors_mix_and_light_never_leaves_the_range() -> None:
    assert mix((0, 100, 200), (100, 100, 100), 0.25) == (25, 100, 175)
    assert lit((250, 250, 250)) == (255, 255, 255)
    assert lit((50, 40, 30)) > (50, 40, 30)
