"""`consilium-site`: what a hospital's own people run, on the hospital's own machine.

``predict`` lets a trained student answer for a file of notes or a folder of images; ``check-data`` says what
of a data folder is accepted and why the rest is not. ``identity`` and ``approve-site`` keep the keys that
secure aggregation trusts. ``ledger`` says what was taken from the site's patients. None sends anything
anywhere. Exit status: 0 all well, 1 a student, a folder or a ledger that cannot be used, 2 a command that
makes no sense, 3 done, but a line or a file was refused.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from client.approval import approve_site, approved_sites, make_identity, own_identity, public_file
from client.data_commands import CHECK_DATA, ReadFolder, add_check_data, check_data_folder, run_check_data
from client.ledger_commands import DESCRIPTION, add_ledger, run_ledger
from client.predict_command import DESCRIPTION as PREDICT
from client.predict_command import LoadStudent, add_predict, check_predict, run_predict
from common.errors import FederationError, one_line
from common.ids import SiteId, site_id
from common.offline import stay_offline

OK, UNUSABLE, USAGE, REFUSED = 0, 1, 2, 3

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
    check_data_folder(parser, arguments)
    return _check_data(arguments, read)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="consilium-site",
        description="Consilium at one hospital. It runs on this machine alone: nothing is sent or fetched.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_predict(_command(commands, "predict", "answer for notes or images with a trained student", PREDICT))
    add_check_data(_command(commands, "check-data", "say what of a data folder can be used", CHECK_DATA))
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


def _check_data(arguments: argparse.Namespace, read: ReadFolder | None) -> int:
    try:
        refused = run_check_data(arguments, read)
    except (OSError, ValueError, FederationError) as error:
        return _unusable(error)
    return REFUSED if refused else OK


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


if __name__ == "__main__":
    sys.exit(main())
