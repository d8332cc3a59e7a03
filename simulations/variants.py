"""Variants of a run beside the run as it is: the main method, on the same test cases.

``variants.json`` holds the figures, ``variants.md`` the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from common.atomic import write_atomically
from simulations.answered import TrackRun, named, pair_of, read_track
from simulations.cases import Part
from simulations.method_settings import MAIN
from simulations.paired import Paired, Word, compare, word_for
from simulations.results import RESULTS_FILE, read_results
from simulations.standings import percent

VARIANTS_SCHEMA = 1
VARIANTS_FILE, TABLE_FILE = "variants.json", "variants.md"
RATES = ("top1", "top10")
PARTS: Mapping[Part, str] = {"union": "all sites", "new": "new publications"}


def write_variants(
    folders: Mapping[str, Path], variants: Mapping[str, Mapping[str, Any]], out: Path, console: Console
) -> Path:
    """Put finished runs side by side, print them, and return the path of the table.

    Args:
        folders: Of the runs by name, the run as it is first.
        variants: What each of the others set otherwise.
        out: Gets both files.
        console: Gets the table.
    """
    block = variants_block(folders, variants)
    write_atomically(out / VARIANTS_FILE, json.dumps(block, indent=2, allow_nan=False) + "\n")
    write_atomically(out / TABLE_FILE, variants_text(block))
    console.print(variants_table(block))
    return out / TABLE_FILE


def variants_block(folders: Mapping[str, Path], variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``variants.json``: by track, each run's rates and how it differs from the first."""
    runs = {name: read_results(folder / RESULTS_FILE) for name, folder in folders.items()}
    tracks = next(iter(runs.values()))["tracks"]
    return {
        "schema": VARIANTS_SCHEMA,
        "seed": next(iter(runs.values()))["seed"],
        "tracks": {
            track: _rows({name: read_track(folders[name], runs[name], track) for name in runs}, variants)
            for track in tracks
        },
    }


def _rows(runs: Mapping[str, TrackRun], variants: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    first = next(iter(runs.values()))
    return [
        {
            "variant": name,
            "changes": dict(variants.get(name, {})),
            "seconds": run.results["methods"][MAIN].get("seconds"),
            "tests": {part: _beside(run, first, part) for part in PARTS if len(run.rows(part))},
        }
        for name, run in runs.items()
    ]


def _beside(run: TrackRun, first: TrackRun, part: Part) -> dict[str, Any]:
    """Rates of a run on a test, and its difference from the first run on the cases that both have."""
    result: dict[str, Any] = {}
    for rate in RATES:
        reach = int(rate.removeprefix("top"))
        answered = run.answered[MAIN, None]
        rows = run.rows(part)
        result[rate] = float(answered.right(reach)[rows].mean())
        paired = _paired(run, first, reach, part)
        if paired is not None and run is not first:
            result[f"{rate}_difference"] = paired.difference
            result[f"{rate}_interval"] = list(paired.interval)
            result[f"{rate}_word"] = str(word_for(paired.interval))
    return result


def _paired(run: TrackRun, first: TrackRun, reach: int, part: Part) -> Paired | None:
    """The run beside the first on the same cases, whatever order the runs hold them in."""
    both = pair_of([_joined(run, first)], named("variant"), named("reference"), reach, part)
    return None if both is None else compare(*both, np.random.default_rng(run.seed))


def _joined(run: TrackRun, first: TrackRun) -> TrackRun:
    """Both runs' main methods as two methods of one run: of the cases that both have."""
    place = {case.case_id: row for row, case in enumerate(run.cases)}
    kept = [row for row, case in enumerate(first.cases) if case.case_id in place]
    there = [place[first.cases[row].case_id] for row in kept]
    return replace(
        first,
        cases=tuple(first.cases[row] for row in kept),
        answered={
            ("variant", None): run.answered[MAIN, None].at(there),
            ("reference", None): first.answered[MAIN, None].at(kept),
        },
    )


def variants_text(block: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    lines: list[str] = []
    for track, rows in block["tracks"].items():
        lines += [f"## {track}", "", *_markdown(rows), ""]
    return "\n".join(lines)


def _markdown(rows: list[Mapping[str, Any]]) -> list[str]:
    heads = _heads(rows)
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    return [*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows)]


def variants_table(block: Mapping[str, Any]) -> Table:
    """The first track's table, for a terminal."""
    track, rows = next(iter(block["tracks"].items()))
    table = Table(title=f"{track}: the main method with one thing changed", title_justify="left")
    for head in _heads(rows):
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _heads(rows: list[Mapping[str, Any]]) -> list[str]:
    tests = rows[0]["tests"]
    heads = ["variant"]
    for part in tests:
        heads += [f"{PARTS[part]}: top-1", "difference (95 %)", "top-10"]
    return [*heads, "seconds"]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["variant"].replace("_", " ")]
    for test in row["tests"].values():
        cells += [percent(test["top1"]), _difference(test), percent(test["top10"])]
    return [*cells, "" if row["seconds"] is None else f"{row['seconds']:.0f}"]


def _difference(test: Mapping[str, Any]) -> str:
    if "top1_difference" not in test:
        return ""
    low, high = test["top1_interval"]
    mark = "" if test["top1_word"] == Word.EVEN else " *"
    return f"{100 * test['top1_difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){mark}"
