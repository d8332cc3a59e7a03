"""`consilium-coordinator ledger`: what was asked of patients, all plans together."""

from __future__ import annotations

import argparse

from common.ledger_report import ACTIONS, add_report, report
from common.privacy.ledger import Ledger
from common.terminal import OK, Command
from server.arguments import add_home, home_of
from server.budget import LEDGER_FILE
from server.status import coordinator_cohort

_LEDGER = """\
What this coordinator asked the sites to take from their patients. The sites' own ledgers are the source of
truth, and they refuse by themselves. `verify` checks that this one is whole: no entry was cut, changed or put
in another order. `show` adds it up. `export` writes one line of JSON for each entry."""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=ACTIONS)
    add_home(parser)
    add_report(parser)


def _run(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    ledger = Ledger.open(home.root / LEDGER_FILE, coordinator_cohort(home.settings().consortium))
    try:
        report(ledger, arguments.action, arguments.delta, as_json=arguments.json)
    finally:
        ledger.close()
    return OK


LEDGER = Command(name="ledger", brief="what was asked of patients", description=_LEDGER, add=_add, run=_run)
