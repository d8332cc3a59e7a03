"""The comparison's `report.html`: what wins, by how much, how surely, and at what price, pictures first.

Made from the content of ``evidence.json`` alone, for the people of a hospital: one file without outside
requests or script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.tracks import TRACKS
from simulations.before_after import bins_of
from simulations.evidence_tables import grids, tested
from simulations.findings import cards, findings, lead, not_known
from simulations.grids import PERCENT
from simulations.pages import render_template
from simulations.plots import draw_before_after, reliability_points
from simulations.side_by_side import ALL_SITES, ALONE, MAIN
from simulations.standings import Kind, calibration_of, epsilon_of, percent, percent_interval, points
from simulations.table import REACH

TEMPLATE_FILE = "evidence.html.j2"
_PARTS: Mapping[str, str] = {"union": "Patients of all sites", "new": "New publications"}
_NOISELESS = "No noise, no promise"


def render_page(block: Mapping[str, Any]) -> str:
    """The page.

    Guarantee: the page makes no request and runs no script; no text of the runs becomes markup.
    """
    filters = {
        "percent": percent,
        "percent_interval": percent_interval,
        "number": "{:,}".format,
        "points": points,
        "place": lambda rate: round(100 * rate, 2),
    }
    return render_template(
        TEMPLATE_FILE,
        filters,
        block=block,
        tracks=[_track(block, name, track) for name, track in block["tracks"].items()],
    )


def _track(block: Mapping[str, Any], name: str, track: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one track."""
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "tested": tested(track),
        "reach": REACH[TRACKS[name].modality].removeprefix("top"),
        "lead": lead(name, track),
        "cards": cards(name, track),
        "charts": [
            {"title": title, "rows": rows}
            for part, title in _PARTS.items()
            if (rows := _dots(track, part, [line for line in track["methods"] if _is_charted(line)]))
        ],
        "own": _own(track),
        "price": _price(track),
        "diagrams": _diagrams(track),
        "findings": findings(track),
        "not_known": not_known(block, track),
        "grids": grids(track, PERCENT),
    }


def _is_charted(line: Mapping[str, Any]) -> bool:
    """Whether the first picture has a method: of what each site has the main one, and nobody twice."""
    if line["site"] is not None:
        return bool(line["method"] == ALONE)
    return calibration_of(line["method"]) is None and not line["method"].startswith("teacher_")


def _dots(
    track: Mapping[str, Any],
    part: str,
    lines: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The lines that were judged on a test, each with its two dots; a figure that is missing has none."""
    rows = []
    for line in lines:
        found = line.get(part, {})
        dots = [found.get(name) for name in ("top1", f"top{track['reach']}")]
        if dots[0] is not None:
            rows.append(
                {
                    "label": (labels or {}).get(line["method"], line["label"]),
                    "kind": line["kind"],
                    "main": line["method"] == MAIN,
                    "first": dots[0],
                    "reach": dots[1],
                }
            )
    return rows


def _own(track: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each site alone and federated on its own answers, then all cases beside the best site alone."""
    rows = [
        {"label": line["site"].capitalize() if line["site"] == ALL_SITES else line["site"], **_between(line)}
        for line in track["own_answers"]
        if line["top"] == 1
    ]
    best = [
        {"label": "Every answer, best site alone", **_between(line)}
        for line in track["comparisons"]["union"]
        if line["top"] == 1 and line["second"] == f"best_{ALONE}"
    ]
    return rows + best


def _between(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "alone": line["second_rate"],
        "federated": line["first_rate"],
        "difference": line["difference"],
        "interval": line["interval"],
        "word": line["word"],
        "n": line["n"],
    }


def _price(track: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The federated student at each promise, between what needs none of the federation's patients."""
    private = [
        line for line in track["methods"] if epsilon_of(line["method"]) and line["kind"] == Kind.FEDERATED
    ]
    if not private:
        return []
    chosen = [MAIN, *(line["method"] for line in private), f"{ALONE}_mean", "base"]
    by_name = {line["method"]: line for line in track["methods"] if line["site"] is None}
    lines = [by_name[name] for name in chosen if name in by_name]
    return _dots(track, "union", lines, {MAIN: _NOISELESS})


def _diagrams(track: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reliability before and after each calibration, on each test, drawn and in numbers."""
    found = []
    for line in track["calibration"]:
        for part, title in _PARTS.items():
            if part in line:
                bins = {when: bins_of(line[part]["bins"][when]) for when in ("before", "after")}
                moved = " before, ".join(percent(line[part]["ece"][when]) for when in ("before", "after"))
                found.append(
                    {
                        "title": f"{line['label']}: {title.lower()}",
                        "alt": f"Calibration error {moved} after; the bins in numbers follow below.",
                        "svg": draw_before_after(bins["before"], bins["after"]),
                        "points": {when: reliability_points(one) for when, one in bins.items()},
                    }
                )
    return found
