"""What a ledger says, for people: whole or not, added up, line by line. For site and coordinator alike."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from common.privacy.budget import epsilon_spent
from common.privacy.ledger import Entry, Ledger, export_lines

ACTIONS = ("verify", "show", "export")
DEFAULT_DELTA = 1e-5
SHOW_SCHEMA = 1


def add_report(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is shown, and how."""
    parser.add_argument(
        "--delta", type=_delta, default=DEFAULT_DELTA, help=f"of epsilon; {DEFAULT_DELTA:g} by default"
    )
    parser.add_argument("--json", action="store_true", help="show: one JSON object instead of a table")


def report(ledger: Ledger, action: str, delta: float, *, as_json: bool) -> None:
    """Print what one of ``ACTIONS`` prints. FederationError if the ledger is damaged or cut."""
    actions: dict[str, Callable[[], None]] = {
        "verify": lambda: _verify(ledger),
        "show": lambda: _show(ledger, delta, as_json=as_json),
        "export": lambda: _export(ledger),
    }
    actions[action]()


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
