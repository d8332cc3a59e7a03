"""Several runs of one scenario beside each other: means over seeds, and how far seeds differ.

A run's own intervals say how far another draw of test patients would move a figure. Runs of other seeds also
draw other splits, other models and other orders; the interval here is Student's, over the runs' figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from common.errors import FederationError, SettingsError
from simulations.results import RESULTS_FILE, read_results
from simulations.standings import Kind, Standing, percent, percent_interval, standings
from simulations.table import columns_of

LEVEL = 0.95
FEWEST_RUNS = 2
WIDE = 160


def read_runs(folders: Sequence[Path], fewest: int = FEWEST_RUNS) -> list[dict[str, Any]]:
    """The results of runs that differ in their seed alone, as far as results tell.

    Raises:
        SettingsError: Fewer than ``fewest`` runs, two of one seed, or runs of several scenarios or tracks.
        OSError, UnsupportedSchemaError: A file that is missing, or newer than this version.
    """
    runs = [read_results(folder / RESULTS_FILE) for folder in folders]
    if len(runs) < fewest:
        raise SettingsError("runs", len(runs), f"at least {fewest} folders of finished runs")
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise SettingsError("runs", f"seeds {', '.join(map(str, seeds))}", "every seed once")
    kinds = {(run["scenario"], tuple(run["tracks"])) for run in runs}
    if len(kinds) > 1:
        raise SettingsError("runs", "; ".join(sorted(str(kind) for kind in kinds)), "one scenario")
    return runs


def over_seeds(runs: Sequence[Mapping[str, Any]], track: str) -> dict[str, Any]:
    """Mean and interval of each rate of each method of a track, and what the federation gained.

    A method that is not in every run is left out. ``gain`` is the federated student's top-1 minus that of the
    best site alone in the same run, ``least_gain`` the smallest of all runs.
    """
    found = [{(s.method, s.site): s for s in standings(run["tracks"][track])} for run in runs]
    everywhere = [key for key in found[0] if all(key in one for one in found)]
    methods = {
        found[0][key].label: {
            rate: _spread([one[key].scores[rate] for one in found]) for rate in columns_of(track)
        }
        for key in everywhere
    }
    gains = [_gain(list(one.values())) for one in found]
    known = [gain for gain in gains if gain is not None]
    whole = len(known) == len(gains)
    return {
        "methods": methods,
        "gain": _spread(known) if whole else None,
        "least_gain": min(known) if whole else None,
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, 95 % interval of the mean and single values; None where a run has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    mean = fmean(known)
    half = float(student_t.ppf((1 + LEVEL) / 2, len(known) - 1)) * stdev(known) / len(known) ** 0.5
    return {"mean": mean, "interval": [mean - half, mean + half], "runs": known}


def _gain(found: Sequence[Standing]) -> float | None:
    federated = next((one for one in found if one.is_winner_to_be), None)
    alone = [one.scores["top1"] for one in found if one.kind is Kind.LOCAL and one.method == "local_orpo"]
    if federated is None or not alone:
        return None
    return float(federated.scores["top1"]) - max(alone)


def seeds_table(track: str, summary: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    """One line a method: the mean of each rate, and the interval of top-1."""
    columns = columns_of(track)
    table = Table(title=f"{track}: mean of seeds {', '.join(map(str, seeds))}", title_justify="left")
    for heading in ("method", "top-1", "95 %", *list(columns.values())[1:]):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for label, rates in summary["methods"].items():
        means = [percent(None if rates[rate] is None else rates[rate]["mean"]) for rate in columns]
        interval = percent_interval(None if rates["top1"] is None else rates["top1"]["interval"])
        table.add_row(label, means[0], interval, *means[1:])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0 all well, 1 runs that cannot be put together."""
    parser = argparse.ArgumentParser(prog="python -m simulations.seeds", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders of finished runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    chosen = parser.parse_args(arguments)
    try:
        runs = read_runs(chosen.runs)
    except (OSError, ValueError, FederationError) as error:
        print(f"simulations.seeds: {error}", file=sys.stderr)  # noqa: T201 - the command's own last word
        return 1
    found = {track: over_seeds(runs, track) for track in runs[0]["tracks"]}
    if chosen.json:
        print(json.dumps({"seeds": [run["seed"] for run in runs], "tracks": found}))  # noqa: T201
        return 0
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # in a pipe no figure is cut short
    for track, summary in found.items():
        console.print(seeds_table(track, summary, [run["seed"] for run in runs]))
        if summary["gain"] is not None:
            gain, least = summary["gain"], summary["least_gain"]
            console.print(
                f"Federated minus the best site alone, top-1: {100 * gain['mean']:.1f} points on average, "
                f"{100 * least:.1f} at least.",
                soft_wrap=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
