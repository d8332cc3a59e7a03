"""Curves of a report as inline SVG that takes its colors from the page.

matplotlib draws with marker colors, which are then replaced by the page's CSS variables: one drawing serves
a light and a dark page, and print. Text stays text, so that it can be read out, found and scaled.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.calibration import BINS, CONFIDENCE_STEPS, ReliabilityBins

INCHES = (3.7, 2.5)
RELIABILITY_INCHES = (3.7, 4.3)
BEFORE_AFTER_INCHES = (3.7, 4.6)
# Colors that appear in no drawing otherwise; each stands for one of the page's.
TEXT, LINE = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_PAGE_COLORS = {TEXT: "currentColor", LINE: "var(--line)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES)
}
# Dashes as well as colors, for those who do not see the colors.
DASHES = ("solid", "dashed", "dotted", "dashdot", (0, (5, 1)), (0, (1, 1)))
HEADROOM = 1.12
# Points of several curves at one place stand this factor apart on a logarithmic axis.
ASIDE = 1.06
MARKERS = "osD^vP"
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: What the legend calls it.
        x: Places, as many as ``y``.
        y: Values.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class BarredCurve:
    """A line of a plot whose points have intervals.

    Attributes:
        label: What the legend calls it.
        x: Places, all > 0, as many as ``y``.
        y: Values.
        ends: Lower and upper end of each value's interval.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    ends: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value that does not depend on the place: a horizontal line, its interval a band.

    Attributes:
        label: What the legend calls it.
        y: The value.
        ends: Lower and upper end of its interval.
    """

    label: str
    y: float
    ends: Sequence[float]


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str) -> str:
    """Return lines over a common axis as SVG."""
    _require_series(len(curves))
    with mpl.rc_context(_STYLE | {"svg.hashsalt": repr((title, curves))}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
        for i, curve in enumerate(curves):
            # Markers on each of a hundred rounds would be a thick line.
            marker = MARKERS[i] if len(curve.x) <= 30 else ""
            axes.plot(curve.x, curve.y, color=SERIES[i], linestyle=DASHES[i], marker=marker, markersize=3,
                      label=curve.label)  # fmt: skip
        axes.set_ylim(0, HEADROOM * max((*(value for curve in curves for value in curve.y), 1e-12)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(curves) > 1:
            axes.legend()
        return _themed(figure)


def draw_reliability(bins_by_label: Mapping[str, ReliabilityBins]) -> str:
    """Return stated confidence against the share that was right as SVG; the diagonal is perfect calibration.

    A point's area grows with the number of its patients.
    """
    _require_series(len(bins_by_label))
    with mpl.rc_context(_STYLE | {"svg.hashsalt": repr(bins_by_label)}):
        figure = Figure(figsize=RELIABILITY_INCHES, layout="constrained")
        axes = figure.add_subplot(xlabel="stated confidence", ylabel="share that was right", aspect="equal")
        axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle="dotted")
        for i, (label, bins) in enumerate(bins_by_label.items()):
            points = reliability_points(bins)
            confidence, accuracy = [point[0] for point in points], [point[1] for point in points]
            areas = [12 + 120 * point[2] / max(1, sum(bins.n)) for point in points]
            axes.plot(confidence, accuracy, color=SERIES[i], linestyle=DASHES[i], alpha=0.5)
            axes.scatter(confidence, accuracy, s=areas, color=SERIES[i], marker=MARKERS[i], label=label)
        # A point in a corner must not be cut.
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        figure.legend(loc="outside lower center")
        return _themed(figure)


def draw_before_after(before: ReliabilityBins, after: ReliabilityBins) -> str:
    """Return the reliability of one student twice as SVG, and below it how many cases each bin holds."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": repr((before, after))}):
        figure = Figure(figsize=BEFORE_AFTER_INCHES, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle="dotted")
        for i, (label, bins) in enumerate((("before", before), ("after", after))):
            points = reliability_points(bins)
            above.plot([point[0] for point in points], [point[1] for point in points], color=SERIES[1 - i],
                       linestyle=DASHES[1 - i], marker=MARKERS[i], label=label)  # fmt: skip
            # Side by side within the bin that they count.
            places = [(place + 0.3 + 0.4 * i) / BINS for place in range(BINS)]
            below.bar(places, bins.n, width=0.4 / BINS, color=SERIES[1 - i], hatch="//" if i == 0 else None,
                      edgecolor=LINE, linewidth=0)  # fmt: skip
        above.set(ylabel="share that was right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        below.set(xlabel="stated confidence", ylabel="cases")
        below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        figure.legend(loc="outside lower center", ncols=2)
        return _themed(figure)


def draw_barred(
    curves: Sequence[BarredCurve], levels: Sequence[Level], *, title: str, x_label: str, y_label: str
) -> str:
    """Return lines with interval bars over a logarithmic axis, between levels, as SVG."""
    _require_series(len(curves) + len(levels))
    with mpl.rc_context(_STYLE | {"svg.hashsalt": repr((title, curves, levels))}):
        figure = Figure(figsize=RELIABILITY_INCHES, layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
        axes.set_xscale("log", base=2)
        for i, curve in enumerate(curves):
            # Side by side: bars at one place would hide each other.
            x = [place * ASIDE ** (i - (len(curves) - 1) / 2) for place in curve.x]
            axes.vlines(x, *zip(*curve.ends, strict=True), color=SERIES[i])
            axes.plot(x, curve.y, color=SERIES[i], linestyle=DASHES[i], marker=MARKERS[i], label=curve.label)
        for i, level in enumerate(levels, len(curves)):
            axes.axhspan(*level.ends, color=SERIES[i], alpha=0.15, linewidth=0)
            axes.axhline(level.y, color=SERIES[i], linestyle=DASHES[i], label=level.label)
        ends = [*(end for curve in curves for end in curve.ends), *(level.ends for level in levels)]
        axes.set_ylim(0, HEADROOM * max((*(high for _, high in ends), 1e-12)))
        places = sorted({place for curve in curves for place in curve.x})
        axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        axes.set_xticks([], minor=True)
        figure.legend(loc="outside lower center")
        return _themed(figure)


def reliability_points(bins: ReliabilityBins) -> list[tuple[float, float, int]]:
    """Return mean confidence, share right and number of patients of each bin that holds a patient."""
    return [
        (bins.confidence_sum[i] / CONFIDENCE_STEPS / bins.n[i], bins.correct[i] / bins.n[i], bins.n[i])
        for i in range(BINS)
        if bins.n[i]
    ]


def _themed(figure: Figure) -> str:
    """Return the figure as an ``<svg>`` element without any address, in the page's colors and fonts."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    # The style would reach the whole page, and the groups' ids would appear once in every drawing.
    svg = re.sub(r"<(metadata|style)[^>]*>.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows these namespaces by itself
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    svg = svg.replace("xlink:href", "href")
    for color, page_color in _PAGE_COLORS.items():
        svg = svg.replace(color, page_color)
    return svg.replace("<svg", '<svg aria-hidden="true"', 1).strip()


def _require_series(number: int) -> None:
    if not 1 <= number <= len(SERIES):
        raise ValueError(f"Expected 1 to {len(SERIES)} lines in a plot, got {number}")
