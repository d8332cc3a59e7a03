"""Tests of the drawings."""

import re

import numpy as np
import pytest

from common.calibration import ReliabilityBins
from simulations.plots import (
    SERIES,
    Curve,
    draw_before_after,
    draw_curves,
    draw_reliability,
    reliability_points,
)

CURVES = [Curve(label="block <B>", x=[1, 2, 3], y=[3, 2, 1]), Curve(label="block A", x=[1, 2], y=[1, 1])]


def test_drawing_takes_its_colors_and_fonts_from_the_page() -> None:
    svg = draw_curves(CURVES, title="Norm", x_label="round", y_label="norm")
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg
    assert "var(--series-1)" in svg
    for text in ("Norm", "round", "block &lt;B&gt;"):
        assert text in svg


def test_drawing_names_no_address_and_styles_nothing_but_itself() -> None:
    svg = draw_reliability({"student": ReliabilityBins.from_cases(np.array([0.2]), np.array([True]))})
    assert "http" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_same_data_give_the_same_drawing() -> None:
    first, second = (draw_curves(CURVES, title="t", x_label="x", y_label="y") for _ in range(2))
    assert first == second


def test_empty_bins_are_no_points() -> None:
    bins = ReliabilityBins.from_cases(np.array([0.25, 0.25, 0.9375]), np.array([True, False, True]))
    assert reliability_points(bins) == [(0.25, 0.5, 2), (0.9375, 1.0, 1)]
    assert reliability_points(ReliabilityBins()) == []


def test_before_and_after_stand_in_one_drawing_with_the_cases_of_every_bin() -> None:
    before = ReliabilityBins.from_cases(np.full(30, 0.95), np.arange(30) % 2 > 0)
    after = ReliabilityBins.from_cases(np.full(30, 0.55), np.arange(30) % 2 > 0)
    svg = draw_before_after(before, after)
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "http" not in svg
    for text in ("before", "after", "cases", "stated confidence"):
        assert text in svg
    assert svg != draw_before_after(after, before)


def test_more_lines_than_colors_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 6 lines"):
        draw_curves([CURVES[1]] * (len(SERIES) + 1), title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="1 to 6 lines"):
        draw_reliability({})
