"""What every command of the coordinator takes: its home."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.errors import NoCoordinatorError
from server.home import CoordinatorHome

HOME_VARIABLE = "CONSILIUM_HOME"
DEFAULT_HOME = "coordinator"


def add_home(parser: argparse.ArgumentParser) -> None:
    """``--home``."""
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME),
        metavar="DIR",
        help=f"the coordinator's home folder (default: ${HOME_VARIABLE}, else ./{DEFAULT_HOME})",
    )


def home_of(arguments: argparse.Namespace) -> CoordinatorHome:
    """The home that was named. NoCoordinatorError if none was made there."""
    home = CoordinatorHome(arguments.home.absolute())
    if not home.settings_file.is_file():
        raise NoCoordinatorError(home.root)
    return home
