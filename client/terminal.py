"""What a site's commands say to people and to scripts: ``common.terminal``, and the home."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.terminal import (
    LABEL_WIDTH,
    NOT_RUNNING,
    OK,
    REFUSED,
    UNUSABLE,
    USAGE,
    Command,
    add_json,
    confirm,
    say,
    say_json,
    say_table,
)

__all__ = [
    "LABEL_WIDTH",
    "NOT_RUNNING",
    "OK",
    "REFUSED",
    "UNUSABLE",
    "USAGE",
    "Command",
    "add_home",
    "add_json",
    "confirm",
    "say",
    "say_json",
    "say_table",
]


def add_home(parser: argparse.ArgumentParser, *, consortium: bool = True) -> None:
    """``--home``, and ``--consortium`` for what is kept for each of them apart."""
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="this site's home folder")
    if consortium:
        parser.add_argument(
            "--consortium", metavar="NAME", help="which federation, where this site is in several"
        )
