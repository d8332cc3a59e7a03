"""The tables of several runs' evidence, for a text file and for a page alike.

A column that no line has a figure for is left out, and so is a table without lines; a figure that one line
lacks is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulations.before_after import worst_site
from simulations.grids import DECIMALS, NONE, Grid, Style, by_rival, dense, markdown_line, p_value

PART_NAMES: Mapping[str, str] = {
    "union": "test patients of all sites",
    "new": "new publications, which no site has",
}
_MEGABYTE = 1e6
_RETRIEVAL: Mapping[str, str] = {
    "hit_rate": "right document found",
    "compliance": "answers in the asked form",
    "abstained": "no answer",
    "tokens": "tokens a note",
    "tokens_cut": "tokens cut a note",
    "seconds": "seconds a note",
}

_COUNTED = frozenset({"tokens", "tokens_cut", "seconds"})


def markdown(block: Mapping[str, Any]) -> str:
    """All tables of the content of ``evidence.json`` as Markdown."""
    seeds = ", ".join(map(str, block["seeds"]))
    lines = [f"# {block['scenario']}, seeds {seeds}", ""]
    for name, track in block["tracks"].items():
        lines += [f"## {name}", "", tested(track), ""]
        for grid in grids(track, DECIMALS):
            lines += [f"**{grid.title}**", ""]
            lines += [
                markdown_line(grid.head),
                markdown_line(("---",) * len(grid.head)),
                *map(markdown_line, grid.rows),
                "",
            ]
            lines += [grid.note, ""] if grid.note else []
    return "\n".join(lines)


def tested(track: Mapping[str, Any]) -> str:
    """What a track is tested on, in a sentence."""
    unit, n, patients = track["unit"], track["n_cases"], track["n_patients"]
    sentence = (
        f"Over all seeds {sum(n['union']):,} answers of each method about {patients['union']:,} {unit}s of "
        f"the sites"
    )
    if patients["new"]:
        sentence += f", and {sum(n['new']):,} about {patients['new']:,} of new publications"
    return f"{sentence}; {track['n_answers']} possible answers."


def grids(track: Mapping[str, Any], style: Style) -> list[Grid]:
    """All tables of a track that have anything to show."""
    found = [
        _accuracy(track, style),
        _free(track, style),
        _confidence(track, style),
        *(_comparisons(track, part, style) for part in PART_NAMES),
        _own_answers(track, style),
        *(_privacy(track, part, style) for part in PART_NAMES),
        _calibration(track, style),
        _sites(track, style),
        _retrieval(track, style),
    ]
    return [grid for grid in map(dense, found) if grid.rows]


def method_rates(line: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The rates of a method on a test; empty where it was not judged on it."""
    found: Mapping[str, Any] = line.get(part, {})
    return found


def _rate(line: Mapping[str, Any], part: str, name: str, style: Style) -> str:
    found = method_rates(line, part).get(name)
    return NONE if found is None else style.rate(found["rate"])


def _ends(line: Mapping[str, Any], part: str, name: str, style: Style) -> str:
    ends = method_rates(line, part).get(name, {}).get("interval")
    return NONE if ends is None else style.ends(ends)


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _accuracy(track: Mapping[str, Any], style: Style) -> Grid:
    reach = f"top{track['reach']}"
    head = (
        "method",
        "cases",
        *(f"{new}{name}" for new in ("", "new: ") for name in ("top-1", "95 %", _top(track), "95 %")),
    )
    rows = [
        (
            line["label"],
            f"{line['union']['n']:,}" if "union" in line else NONE,
            *(
                cell(line, part, name, style)
                for part in PART_NAMES
                for name in ("top1", reach)
                for cell in (_rate, _ends)
            ),
        )
        for line in track["methods"]
    ]
    note = "Intervals: 95 %, over patients, each drawn with all of his answers in all seeds."
    return Grid(title="Accuracy", head=head, rows=tuple(rows), note=note)


def _top(track: Mapping[str, Any]) -> str:
    return f"top-{track['reach']}"


def _free(track: Mapping[str, Any], style: Style) -> Grid:
    names = {
        "invalid_rate": "invalid",
        "free_top1_exact": "top-1, exact name",
        "free_top1": "top-1, synonyms too",
        "free_top10_exact": "top-10, exact name",
        "free_top10": "top-10, synonyms too",
        "abstained": "no answer",
        "coverage": "coverage",
        "avoidance": "avoidance",
        "car": "CAR",
    }
    rows = [
        (line["label"], *(_rate(line, "union", name, style) for name in names)) for line in track["methods"]
    ]
    shown = tuple(row for row in rows if set(row[1:]) != {NONE})
    return Grid(
        title="Free answers, and agreement with the teacher", head=("method", *names.values()), rows=shown
    )


def _confidence(track: Mapping[str, Any], style: Style) -> Grid:
    names = {
        "ece": "ECE",
        "ece_noise_floor": "noise floor",
        "class_ece": "class-wise ECE",
        "brier": "Brier",
        "nll": "NLL",
    }
    rows = []
    for line in track["methods"]:
        found = method_rates(line, "union")
        rows.append(
            (
                line["label"],
                *(
                    _number(found.get(name, {}).get("rate"), "{:.3f}")
                    if name in ("brier", "nll")
                    else _rate(line, "union", name, style)
                    for name in names
                ),
                _number(line["epsilon"], "{:.2f}"),
                _number(line["seconds"], "{:.0f}"),
                _number(None if line["bytes_up"] is None else line["bytes_up"] / _MEGABYTE, "{:.1f}"),
            )
        )
    return Grid(
        title="Confidence and cost",
        head=("method", *names.values(), "ε", "seconds", "MB sent by a site"),
        rows=tuple(rows),
        note="Noise floor: the ECE that a perfectly calibrated method would show at so many cases.",
    )


def _comparisons(track: Mapping[str, Any], part: str, style: Style) -> Grid:
    return _paired_grid(
        f"The federated student against each other method, {PART_NAMES[part]}",
        [(pair[1]["label"], pair) for pair in by_rival(track["comparisons"][part])],
        track,
        style,
    )


def _paired_grid(
    title: str,
    pairs: Sequence[tuple[str, Mapping[int, Mapping[str, Any]]]],
    track: Mapping[str, Any],
    style: Style,
) -> Grid:
    tops = (1, track["reach"])
    head = ["against"]
    for top in tops:
        head += [f"top-{top}: difference (95 %)", "p, Holm", "in words"]
    rows = [
        (label, *(cell for top in tops for cell in _paired_cells(pair[top], style)), _ratio(pair[tops[1]]))
        for label, pair in pairs
    ]
    tests = sorted({line["test"] for _, pair in pairs for line in pair.values()})
    note = (
        f"Paired on the same cases; p: {', '.join(tests)}, corrected over all lines of this table."
        if tests
        else ""
    )
    return Grid(title=title, head=(*head, f"top-{tops[1]}: ratio (95 %)"), rows=tuple(rows), note=note)


def _paired_cells(line: Mapping[str, Any], style: Style) -> tuple[str, str, str]:
    return style.gain(line["difference"], line["interval"]), p_value(line["p_holm"]), line["word"]


def _ratio(line: Mapping[str, Any]) -> str:
    if line["ratio"] is None:
        return NONE
    low, high = line["ratio_interval"]
    return f"{line['ratio']:.3f} ({low:.3f}-{high:.3f})"


def _own_answers(track: Mapping[str, Any], style: Style) -> Grid:
    lines = {(line["site"], line["top"]): line for line in track["own_answers"]}
    head = ["site", "cases"]
    for top in (1, track["reach"]):
        head += [f"top-{top}: alone", "federated", "difference (95 %)", "p, Holm", "in words"]
    rows = []
    for site in dict.fromkeys(site for site, _ in lines):
        row = [site, f"{lines[site, 1]['n']:,}"]
        for top in (1, track["reach"]):
            line = lines[site, top]
            row += [
                style.rate(line["second_rate"]),
                style.rate(line["first_rate"]),
                *_paired_cells(line, style),
            ]
        rows.append(tuple(row))
    note = "Cases whose answer the site has training patients for, over all seeds."
    return Grid(title="On each site's own answers", head=tuple(head), rows=tuple(rows), note=note)


def _privacy(track: Mapping[str, Any], part: str, style: Style) -> Grid:
    pairs = [
        (f"ε {pair[1]['epsilon']:g} against {pair[1]['label']}", pair)
        for pair in by_rival(track["privacy_price"][part])
    ]
    return _paired_grid(f"What a promise costs, {PART_NAMES[part]}", pairs, track, style)


def _calibration(track: Mapping[str, Any], style: Style) -> Grid:
    rows = []
    for line in track["calibration"]:
        for part, name in PART_NAMES.items():
            if part in line:
                rows.append((f"{line['label']}, {name}", *_calibrated(line[part], style)))
    head = (
        "student", "ECE before", "ECE after", "noise floor", "after / before (95 %)",
        "top-1 after minus before (95 %)", "in words", "worst site before", "worst site after",
    )  # fmt: skip
    return Grid(title="Calibration", head=head, rows=tuple(rows))


def _calibrated(found: Mapping[str, Any], style: Style) -> tuple[str, ...]:
    ratio, ends = found["ratio"], found["ratio_interval"]
    accuracy = found["accuracy"]
    worst = [worst_site(found["sites"], when) for when in ("before", "after")]
    return (
        style.rate(found["ece"]["before"]),
        style.rate(found["ece"]["after"]),
        style.rate(found["floor"]["after"]),
        NONE if ratio is None or ends is None else f"{ratio:.2f} ({ends[0]:.2f}-{ends[1]:.2f})",
        style.gain(accuracy["difference"], accuracy["interval"]),
        accuracy["word"],
        *(NONE if one is None else f"{style.rate(one[1])} ({one[0]})" for one in worst),
    )


def _sites(track: Mapping[str, Any], style: Style) -> Grid:
    rows = [
        (
            f"{line['label']}, {site}",
            f"{one['n']:,.0f}",
            *(style.rate(one[key]) for key in ("before", "after", "floor")),
        )
        for line in track["calibration"]
        if "union" in line
        for site, one in line["union"]["sites"].items()
    ]
    head = ("student and site", "cases", "ECE before", "ECE after", "noise floor")
    return Grid(title="Calibration by site", head=head, rows=tuple(rows))


def _retrieval(track: Mapping[str, Any], style: Style) -> Grid:
    lines = [line for line in track["methods"] if line["retrieval"]]
    names = dict.fromkeys(name for line in lines for name in line["retrieval"])
    rows = [
        (line["label"], *(_retrieved(name, line["retrieval"].get(name), style) for name in names))
        for line in lines
    ]
    head = ("method", *(_RETRIEVAL.get(name, name.replace("_", " ")) for name in names))
    return Grid(title="Retrieval", head=head, rows=tuple(rows))


def _retrieved(name: str, value: float | None, style: Style) -> str:
    if value is None:
        return NONE
    return f"{value:.1f}" if name in _COUNTED else style.rate(value)
