"""What several seeds of one scenario show together: every method side by side, and what their difference is.

``evidence.json`` holds all figures, ``evidence.md`` the tables, ``report.html`` the page for the people of a
hospital. A method, or a figure, that no run has is left out; nothing that was not measured is shown as zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from common.atomic import write_atomically
from common.errors import FederationError
from simulations.answered import read_track
from simulations.evidence_page import render_page
from simulations.evidence_tables import markdown
from simulations.findings import lead
from simulations.results import rounded
from simulations.seeds import read_runs
from simulations.side_by_side import track_evidence

EVIDENCE_SCHEMA = 1
EVIDENCE_FILE, TABLES_FILE, PAGE_FILE = "evidence.json", "evidence.md", "report.html"


def write_evidence(folders: Sequence[Path], out: Path, console: Console) -> Path:
    """Write the three files of finished runs into ``out``, say what was found, and return the page's path.

    Raises:
        SettingsError: The runs do not belong together.
        OSError, BadFileError, UnsupportedSchemaError: A run's file is missing, damaged or too new.
    """
    block = gather_evidence(folders)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / EVIDENCE_FILE, json.dumps(block, indent=1, allow_nan=False) + "\n")
    write_atomically(out / TABLES_FILE, markdown(block))
    write_atomically(out / PAGE_FILE, render_page(block))
    for name, track in block["tracks"].items():
        console.print(Text(lead(name, track), style="bold"))
    return out / PAGE_FILE


def gather_evidence(folders: Sequence[Path]) -> dict[str, Any]:
    """The content of ``evidence.json``.

    Guarantee: the same runs give the same content.
    """
    contents = read_runs(folders, fewest=1)
    tracks = {}
    for track in contents[0]["tracks"]:
        runs = [read_track(folder, one, track) for folder, one in zip(folders, contents, strict=True)]
        tracks[track] = track_evidence(track, runs)
    content = {
        "schema": EVIDENCE_SCHEMA,
        "scenario": contents[0]["scenario"],
        "seeds": [one["seed"] for one in contents],
        "seconds": [sum(one["seconds"].values()) for one in contents],
        "privacy": contents[0]["privacy"],
        "aggregation": contents[0]["aggregation"]["mode"],
        "tracks": tracks,
    }
    whole: dict[str, Any] = rounded(content, "evidence")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0 all well, 1 runs that cannot be put together."""
    parser = argparse.ArgumentParser(prog="python -m simulations.evidence", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="folders of finished runs, one a seed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the three files go")
    chosen = parser.parse_args(arguments)
    try:
        page = write_evidence(chosen.runs, chosen.out, Console())
    except (OSError, ValueError, FederationError) as error:
        print(f"simulations.evidence: {error}", file=sys.stderr)  # noqa: T201 - the command's own last word
        return 1
    print(f"Report: {page}")  # noqa: T201 - the command's own last word
    return 0


if __name__ == "__main__":
    sys.exit(main())
