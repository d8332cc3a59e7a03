"""`consilium-site check-data`: what the program accepts of a data folder, and why not the rest."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.patients.records import SMALLEST_KEY, PatientRecord, PatientSet

CHECK_SCHEMA = 1

CHECK_DATA = """\
Read a folder of patients (patients.jsonl with photos/, notes/ and slides/ beside it), or of tiles with a
manifest (manifest.csv with the tiles or their zips beside it), as training would, and list what is
accepted and what is refused, with file, line and reason. Nothing is changed, and no content of the folder
is printed."""

ReadFolder = Callable[[Path], PatientSet]


def add_check_data(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder that holds patients.jsonl, or manifest.csv"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def check_data_folder(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse a folder that is not there."""
    if not arguments.folder.is_dir():
        parser.error(f"no folder {arguments.folder}")


def run_check_data(arguments: argparse.Namespace, read: ReadFolder | None = None) -> int:
    """Read, print, and return how many things were refused.

    Raises:
        OSError, ValueError, FederationError: The folder cannot be used.
    """
    patients = (read or _read_folder)(arguments.folder)
    if arguments.json:
        print(json.dumps(_report(patients), ensure_ascii=False))  # noqa: T201
    else:
        _print_tables(arguments.folder, patients)
    return len(patients.problems)


def _report(patients: PatientSet) -> dict[str, object]:
    return {
        "schema": CHECK_SCHEMA,
        "accepted": dict(_accepted(patients.records)),
        "refused": [
            {"file": problem.file, "line": problem.line, "reason": problem.reason}
            for problem in patients.problems
        ],
    }


def _accepted(records: Sequence[PatientRecord]) -> list[tuple[str, int]]:
    """Return what the accepted patients bring, as (what, number of patients)."""
    labeled = Counter(track for record in records for track in record.label)
    return [
        ("patients", len(records)),
        ("with a note", sum(record.note is not None for record in records)),
        ("with a photo", sum(record.photo is not None for record in records)),
        ("with slides", sum(bool(record.slides) for record in records)),
        ("tiles of slides", sum(len(record.slides) for record in records)),
        ("withdrawn", sum(record.withdrawn for record in records)),
        *((f"with an answer for {track}", labeled[track]) for track in sorted(labeled)),
    ]


def _print_tables(folder: Path, patients: PatientSet) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # in a pipe a reason is never broken into lines
    accepted = Table("accepted", "patients", box=None)
    accepted.columns[1].justify = "right"
    for what, number in _accepted(patients.records):
        accepted.add_row(what, str(number))
    console.print(
        Text(f"{folder}: {len(patients.records)} patients accepted, {len(patients.problems)} refusals")
    )
    console.print(accepted)
    if not patients.problems:
        return
    # Text, because a reason may hold brackets that would be read as markup.
    refused = Table("refused: file", "line", "reason", box=None)
    for problem in patients.problems:
        line = "" if problem.line is None else str(problem.line)
        refused.add_row(Text(problem.file), line, Text(problem.reason))
    console.print(refused)


def _read_folder(folder: Path) -> PatientSet:
    from client.patients.importers.folder import PATIENTS_FILE, read_folder
    from client.patients.importers.tiles import MANIFESTS, read_tiles

    tiles = any((folder / name).is_file() for name in MANIFESTS)
    if tiles and not (folder / PATIENTS_FILE).exists():
        # Any key will do for pseudonyms that nobody sees.
        return read_tiles(folder, key=bytes(SMALLEST_KEY))
    # Without a key for pseudonyms: nothing that is printed names a patient.
    return read_folder(folder, key=None)
