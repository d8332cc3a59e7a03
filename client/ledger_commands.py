"""`consilium-site ledger`: what was taken from a site's patients, for its privacy officer."""

from __future__ import annotations

import argparse
from pathlib import Path

from client.home import SiteHome
from client.settings import read_settings
from common.ledger_report import ACTIONS, add_report, report
from common.privacy.ledger import Ledger

DESCRIPTION = """\
What was taken from the patients of one cohort, over all coordinators. `verify` checks that the ledger is
whole: no entry was cut, changed or put in another order, and every head that a coordinator countersigned
is still there. `show` adds it up. `export` writes one line of JSON for each entry. No entry tells of a
patient."""


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
    add_report(parser)


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
        report(ledger, arguments.action, arguments.delta, as_json=arguments.json)
    finally:
        ledger.close()


def _place(arguments: argparse.Namespace) -> tuple[Path, str]:
    if arguments.file is not None:
        return arguments.file, arguments.cohort
    home = SiteHome(arguments.home)
    cohort: str = arguments.cohort or read_settings(home.settings_file).cohort
    return home.ledger_file(cohort), cohort
