"""The table at the end of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.tracks import TRACKS, Modality
from simulations.standings import (
    NEW_PUBLICATIONS,
    Kind,
    Standing,
    charted,
    headline,
    own_answers,
    own_label,
    percent,
    percent_interval,
    standings,
)

REACH: Mapping[Modality, str] = {Modality.TEXT: "top10", Modality.IMAGE: "top5"}
"""How long a list is judged beside its first answer: diseases are many, tissues few."""


MORE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "car": "CAR",
        "free_top1_exact": "free top-1, exact name",
        "free_top1": "free top-1, synonyms too",
        "free_top10_exact": "free top-10, exact name",
        "free_top10": "free top-10, synonyms too",
        "abstained": "no answer",
        "ece_noise_floor": "ECE by chance",
        "class_ece": "class-wise ECE",
        "brier": "Brier",
        "nll": "NLL",
    }
)
"""Rates that a page has room for, with their headings; a run shows those that it has measured."""
SCORES = frozenset({"brier", "nll"})
"""Of these, what is no share of anything."""


def columns_of(name: str) -> dict[str, str]:
    """Return the rates that are shown of a track, with their headings."""
    reach = REACH[TRACKS[name].modality]
    return {
        "top1": "top-1",
        reach: reach.replace("top", "top-"),
        "invalid_rate": "invalid",
        "ece": "ECE",
        "coverage": "coverage",
        "avoidance": "avoidance",
    }


def more_columns(found: Sequence[Standing]) -> dict[str, str]:
    """Return the further rates that any of the methods has a figure for, with their headings."""
    return {
        rate: heading
        for rate, heading in MORE_COLUMNS.items()
        if any(standing.scores.get(rate) is not None for standing in found)
    }


def figure(rate: str, value: float | None) -> str:
    """Return a figure as people read it: a share in percent, a score as it is, a dash where there is none."""
    return f"{value:.3f}" if rate in SCORES and value is not None else percent(value)


def print_results(content: Mapping[str, Any], console: Console) -> None:
    """Print a run's comparison, track by track, and how its patients are protected."""
    for name, track in content["tracks"].items():
        console.print(union_table(name, track))
        disjoint = standings(track, NEW_PUBLICATIONS)
        if disjoint:
            console.print(scores_table(f"{name}: patients from new publications", disjoint, columns_of(name)))
        if own_answers(track):
            console.print(own_answers_table(name, track))
        console.print(Text(headline(track), style="bold"))
    console.print(Text(protection(content)))
    for what in content["privacy"].get("not_covered", ()):
        console.print(Text(f"  not covered: {what}"))


def union_table(name: str, track: Mapping[str, Any]) -> Table:
    """Return the comparison on the union test."""
    title = f"{name}: {cases_of(track)}, {track['n_answers']} answers"
    return scores_table(title, standings(track), columns_of(name))


def cases_of(track: Mapping[str, Any]) -> str:
    """Return what a track is tested on: ``960 test patients``, ``412 tiles of 190 test patients``."""
    unit, units = track.get("unit", "patient"), track.get("n_test_units", track["n_test"])
    of_units = f"{units:,} test {unit}s"
    return of_units if units == track["n_test"] else f"{track['n_test']:,} tiles of {of_units}"


def scores_table(title: str, found: tuple[Standing, ...], columns: Mapping[str, str]) -> Table:
    """Return one line a method; top-1 with its 95 % interval."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")  # a long name takes two lines, a figure never
    for heading in ("top-1", "95 %", *list(columns.values())[1:]):
        table.add_column(heading, justify="right", no_wrap=True)
    for standing in charted(found):
        rates = [percent(standing.scores[rate]) for rate in columns]
        interval = percent_interval(standing.scores["interval"].get("top1"))
        table.add_row(standing.label, rates[0], interval, *rates[1:], style=_style(standing))
    return table


def own_answers_table(name: str, track: Mapping[str, Any]) -> Table:
    """Return top-1 on each site's own answers, one line a site, one column a method."""
    by_site = own_answers(track)
    labels = {standing.method: own_label(standing) for found in by_site.values() for standing in found}
    table = Table(title=f"{name}: top-1 on each site's own answers", title_justify="left")
    for heading in ("site", "patients", *labels.values()):
        table.add_column(heading, justify="left" if heading == "site" else "right", no_wrap=heading == "site")
    for site, found in by_site.items():
        scores = {standing.method: standing.scores for standing in found}
        cells = [percent(scores[method]["top1"]) if method in scores else "–" for method in labels]
        table.add_row(site, str(found[0].scores["n"]), *cells)
    return table


def protection(content: Mapping[str, Any]) -> str:
    """Return one line on how the run's patients are protected."""
    aggregation, privacy = content["aggregation"]["mode"], content["privacy"]["mode"]
    line = f"Aggregation mode: {aggregation}. Privacy mode: {privacy}."
    if aggregation == "secagg-v1":
        line += " The coordinator saw only the sum of the sites' updates."
    seconds, work = content["aggregation"]["seconds"], content["aggregation"]["work_seconds"]
    if seconds:
        line += (
            f" Keys, masks, sums and messages took {max(0.0, 1 - work / seconds):.0%} of the rounds' time."
        )
    return f"{line} {content['privacy']['statement']}"


def _style(standing: Standing) -> str:
    if standing.is_winner_to_be:
        return "bold"
    return "dim" if standing.kind is Kind.BASE else ""
