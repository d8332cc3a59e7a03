"""A table in words, and how its figures are told: what text files and pages have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.standings import percent, percent_interval, points

NONE = "–"
"""A figure that was not measured."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        title: What it is of.
        head: Headings; the first is of the lines' names.
        rows: Cells in words, as many as headings.
        note: What a reader has to know to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How figures are told.

    Attributes:
        rate: A rate.
        ends: An interval of a rate.
        points: A difference of two rates.
    """

    rate: Callable[[float], str]
    ends: Callable[[Sequence[float]], str]
    points: Callable[[float], str]

    def gain(self, difference: float, interval: Sequence[float]) -> str:
        """A difference with its interval."""
        return f"{self.points(difference)} ({self.points(interval[0])} to {self.points(interval[1])})"


DECIMALS = Style(
    rate="{:.3f}".format, ends=lambda ends: f"{ends[0]:.3f}-{ends[1]:.3f}", points="{:+.3f}".format
)
"""For text files: 0.573."""
PERCENT = Style(rate=percent, ends=percent_interval, points=points)
"""For pages: 57.3 %, and differences in percentage points."""


def dense(grid: Grid) -> Grid:
    """The table without the columns that no line has a figure for."""
    kept = [
        column
        for column in range(len(grid.head))
        if column == 0 or any(row[column] not in (NONE, "") for row in grid.rows)
    ]
    rows = tuple(tuple(row[column] for column in kept) for row in grid.rows)
    return Grid(title=grid.title, head=tuple(grid.head[i] for i in kept), rows=rows, note=grid.note)


def by_rival(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[int, Mapping[str, Any]]]:
    """The comparisons of each pair of methods, by reach, in their order."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["first"], line["second"]), {})[line["top"]] = line
    yield from found.values()


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def p_value(p: float) -> str:
    """A p-value as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
