"""`consilium-site`: what a hospital's own people run, on the hospital's own machine.

``predict`` lets a trained student answer for a file of notes or a folder of images; ``check-data`` says what
of a data folder is accepted and why the rest is not. ``identity`` and ``approve-site`` keep the keys that
secure aggregation trusts. ``ledger`` says what was taken from the site's patients. None sends anything
anywhere. Exit status: 0 all well, 1 a student, a folder or a ledger that cannot be used, 2 a command that
makes no sense, 3 done, but a line or a file was refused.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.approval import approve_site, approved_sites, make_identity, own_identity, public_file
from client.ledger_commands import DESCRIPTION, add_ledger, run_ledger
from client.patients.records import SMALLEST_KEY, PatientRecord, PatientSet
from client.predict_command import DESCRIPTION as PREDICT
from client.predict_command import LoadStudent, add_predict, check_predict, run_predict
from common.errors import FederationError, one_line
from common.ids import SiteId, site_id
from common.offline import stay_offline

OK, UNUSABLE, USAGE, REFUSED = 0, 1, 2, 3
CHECK_SCHEMA = 1

_CHECK_DATA = """\
Read a folder of patients (patients.jsonl with photos/, notes/ and slides/ beside it), or of tiles with a
manifest (manifest.csv with the tiles or their zips beside it), as training would, and list what is
accepted and what is refused, with file, line and reason. Nothing is changed, and no content of the folder
is printed."""
_IDENTITY = """\
Show who this site is: its name, the fingerprint of its key, the file to send to the other sites and to
the coordinator, and which sites are approved. With --site a new identity is made first."""
_APPROVE_SITE = """\
Approve another site's identity. Ask its administrator for the fingerprint over another channel (the
telephone, a letter) and type what he reads: the file alone proves nothing. Secure aggregation takes part
only with approved sites."""
_STATUS = """\
exit status:
  0  all well
  1  the student, the folder, the file, the identity or the ledger cannot be used
  2  the command is not understood, or a file it names is not there
  3  done, but something was refused; each refusal has its line"""


ReadFolder = Callable[[Path], PatientSet]


def main(
    argv: Sequence[str] | None = None, *, load: LoadStudent | None = None, read: ReadFolder | None = None
) -> int:
    """Run one command and return its exit status; SystemExit for help and for usage errors."""
    stay_offline()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "predict":
        check_predict(parser, arguments)
        return _predict(arguments, load)
    if arguments.command == "identity":
        return _identity(arguments)
    if arguments.command == "approve-site":
        return _approve_site(arguments)
    if arguments.command == "ledger":
        return _ledger(arguments)
    if not arguments.folder.is_dir():
        parser.error(f"no folder {arguments.folder}")
    return _check_data(arguments, read or _read_folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="consilium-site",
        description="Consilium at one hospital. It runs on this machine alone: nothing is sent or fetched.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_predict(_command(commands, "predict", "answer for notes or images with a trained student", PREDICT))
    _add_check_data(_command(commands, "check-data", "say what of a data folder can be used", _CHECK_DATA))
    identity = _command(commands, "identity", "show or make this site's identity", _IDENTITY)
    _add_home(identity)
    identity.add_argument("--site", type=_site, metavar="NAME", help="make a new identity of this name")
    approving = _command(commands, "approve-site", "approve another site's identity", _APPROVE_SITE)
    approving.add_argument("file", type=Path, metavar="FILE", help="the other site's public identity")
    approving.add_argument(
        "--fingerprint",
        required=True,
        metavar="HEX",
        help="as its administrator reads it; spaces are allowed",
    )
    _add_home(approving)
    add_ledger(_command(commands, "ledger", "what was taken from this site's patients", DESCRIPTION))
    return parser


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, brief: str,
             description: str) -> argparse.ArgumentParser:  # fmt: skip
    return commands.add_parser(
        name,
        help=brief,
        description=description,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_check_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder that holds patients.jsonl, or manifest.csv"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="this site's home folder")


def _site(text: str) -> SiteId:
    try:
        return site_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _predict(arguments: argparse.Namespace, load: LoadStudent | None) -> int:
    try:
        refused = run_predict(arguments, load)
    except (OSError, ValueError, FederationError) as error:
        return _unusable(error)
    return REFUSED if refused else OK


def _check_data(arguments: argparse.Namespace, read: ReadFolder) -> int:
    try:
        patients = read(arguments.folder)
    except (OSError, ValueError, FederationError) as error:
        return _unusable(error)
    if arguments.json:
        print(json.dumps(_report(patients), ensure_ascii=False))  # noqa: T201
    else:
        _print_tables(arguments.folder, patients)
    return REFUSED if patients.problems else OK


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


def _identity(arguments: argparse.Namespace) -> int:
    home: Path = arguments.home
    try:
        identity = make_identity(home, arguments.site) if arguments.site else own_identity(home)
        approved = approved_sites(home)
    except (OSError, FederationError) as error:
        return _unusable(error)
    print(f"site         {identity.site_id}")  # noqa: T201
    print(f"fingerprint  {_spaced(identity.public().fingerprint())}")  # noqa: T201
    print(f"public file  {public_file(home, identity)}")  # noqa: T201
    for site, public in approved.items():
        print(f"approved     {site}  {_spaced(public.fingerprint())}")  # noqa: T201
    return OK


def _approve_site(arguments: argparse.Namespace) -> int:
    fingerprint = "".join(arguments.fingerprint.lower().split())
    try:
        approved = approve_site(arguments.home, arguments.file, fingerprint)
    except (OSError, FederationError) as error:
        return _unusable(error)
    print(f"approved     {approved.site_id}  {_spaced(approved.fingerprint())}")  # noqa: T201
    return OK


def _ledger(arguments: argparse.Namespace) -> int:
    try:
        run_ledger(arguments)
    except (OSError, FederationError) as error:
        return _unusable(error)
    return OK


def _spaced(fingerprint: str) -> str:
    """In groups of four, as people read it to each other."""
    return " ".join(fingerprint[i : i + 4] for i in range(0, len(fingerprint), 4))


def _unusable(error: Exception) -> int:
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}"
    print(f"consilium-site: {one_line(reason) or type(error).__name__}", file=sys.stderr)  # noqa: T201
    return UNUSABLE


def _read_folder(folder: Path) -> PatientSet:
    from client.patients.importers.folder import PATIENTS_FILE, read_folder
    from client.patients.importers.tiles import MANIFESTS, read_tiles

    tiles = any((folder / name).is_file() for name in MANIFESTS)
    if tiles and not (folder / PATIENTS_FILE).exists():
        # Any key will do for pseudonyms that nobody sees.
        return read_tiles(folder, key=bytes(SMALLEST_KEY))
    # Without a key for pseudonyms: nothing that is printed names a patient.
    return read_folder(folder, key=None)


if __name__ == "__main__":
    sys.exit(main())
