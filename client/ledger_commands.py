"""`consilium-site ledger`: what was taken from a site's patients, for its privacy officer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.home import SiteHome
from client.settings import read_settings
from common.privacy.budget import epsilon_spent
from common.privacy.ledger import Entry, Ledger, export_lines

DESCRIPTION = """\
What was taken from the patients of one cohort, over all coordinators. `verify` checks that the ledger is
whole: no entry was cut, changed or put in another order, and every head that a coordinator countersigned
is still there. `show` adds it up. `export` writes one line of JSON for each entry. No entry tells of a
patient."""
ACTIONS = ("verify", "show", "export")
DEFAULT_DELTA = 1e-5
SHOW_SCHEMA = 1


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="the ledger, such as HOME/cohorts/NAME/ledger.db; with --home the one of its cohort",
    )
    parser.add_argument("--home", type=Path, metavar="DIR", help="this site's home folder, instead of FILE")
    parser.add_argument(
        "--cohort",
        metavar="NAME",
        help="whose patients it is about; with --home that of site.yaml by default",
    )
    parser.add_argument(
        "--delta", type=_delta, default=DEFAULT_DELTA, help=f"of epsilon; {DEFAULT_DELTA:g} by default"
    )
    parser.add_argument("--json", action="store_true", help="show: one JSON object instead of a table")


def check_ledger(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse a command that does not say which ledger it means."""
    if (arguments.file is None) == (arguments.home is None):
        parser.error("name the ledger by FILE, or by --home")
    if arguments.file is not None and arguments.cohort is None:
        parser.error("name whose patients FILE is about with --cohort")


def run_ledger(arguments: argparse.Namespace) -> None:
    """Do it. FederationError if the ledger is damaged, cut, older than it was, or another cohort's."""
    file, cohort = _place(arguments)
    ledger = Ledger.open(file, cohort)
    try:
        actions: dict[str, Callable[[], None]] = {
            "verify": lambda: _verify(ledger),
            "show": lambda: _show(ledger, arguments.delta, as_json=arguments.json),
            "export": lambda: _export(ledger),
        }
        actions[arguments.action]()
    finally:
        ledger.close()


def _place(arguments: argparse.Namespace) -> tuple[Path, str]:
    if arguments.file is not None:
        return arguments.file, arguments.cohort
    home = SiteHome(arguments.home)
    cohort: str = arguments.cohort or read_settings(home.settings_file).cohort
    return home.ledger_file(cohort), cohort


def _verify(ledger: Ledger) -> None:
    ledger.verify()
    print(f"whole        {len(ledger.entries())} entries, head {ledger.head()}")  # noqa: T201


def _export(ledger: Ledger) -> None:
    for line in export_lines(ledger):
        sys.stdout.write(f"{line}\n")


def _show(ledger: Ledger, delta: float, *, as_json: bool) -> None:
    entries = ledger.entries()
    plans = [_plan_row(digest, entries, delta) for digest in _plans(entries)]
    total = {
        "schema": SHOW_SCHEMA,
        "cohort": ledger.cohort,
        "entries": len(entries),
        "delta": delta,
        "unit": "patient",
    }
    whole: dict[str, Any] = {**total, "epsilon": _finite(epsilon_spent(entries, delta)), "plans": plans}
    if as_json:
        print(json.dumps(whole, indent=1))  # noqa: T201
        return
    table = Table(title=f"{ledger.cohort}: {len(entries)} entries", title_justify="left")
    for heading in ("plan", "consortium", "track", "steps", "teacher", "epsilon"):
        table.add_column(heading)
    for row in plans:
        cells = (row["plan_digest"][:12], row["consortium"], row["tracks"], row["steps"], row["teacher"])
        table.add_row(*map(str, cells), _shown(row["epsilon"]))
    Console().print(table)
    print(f"epsilon      {_shown(whole['epsilon'])} at delta {delta:g}, each patient, all plans together")  # noqa: T201


def _plans(entries: tuple[Entry, ...]) -> list[str]:
    return list(dict.fromkeys(entry.charge.plan_digest for entry in entries))


def _plan_row(digest: str, entries: tuple[Entry, ...], delta: float) -> dict[str, Any]:
    own = [entry for entry in entries if entry.charge.plan_digest == digest]
    unit = own[0].charge.unit
    return {
        "plan_digest": digest,
        "consortium": own[0].charge.consortium,
        "tracks": " ".join(sorted({entry.charge.track for entry in own})),
        "unit": unit,
        "steps": sum(entry.charge.steps for entry in own if entry.charge.part == "student"),
        "teacher": own[0].charge.teacher,
        "epsilon": _finite(epsilon_spent(own, delta, unit=unit)),
    }


def _finite(epsilon: float) -> float | None:
    """JSON has no infinity: null is no bound."""
    return epsilon if epsilon < float("inf") else None


def _shown(epsilon: float | None) -> str:
    return "no bound" if epsilon is None else f"{epsilon:.3f}"


def _delta(text: str) -> float:
    try:
        delta = float(text)
    except ValueError:
        delta = 0.0
    if not 0 < delta < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return delta
