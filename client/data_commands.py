"""`consilium-site check-data | import | withdraw`: patients who come in, and patients who go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.home import SiteHome
from client.keys import Keyring
from client.patients.arrivals import Arrivals, import_patients
from client.patients.data_check import DataCheck, check_source, counts
from client.patients.importers.sources import (
    RAW_KINDS,
    Source,
    kind_of,
    patient_groups,
    read_source,
)
from client.patients.records import SMALLEST_KEY, PatientSet, Problem, is_line
from client.patients.withdrawals import (
    add_withdrawn,
    count_withdrawn,
    may_mean,
    read_withdrawn,
    to_pseudonym,
)
from client.settings import SiteSettings, read_settings
from client.terminal import OK, REFUSED, Command, add_home, add_json, say, say_json, say_table
from common.errors import FederationError, ImportRefusedError
from common.plan_package import read_package

CHECK_SCHEMA = 2
WITHDRAWN_SCHEMA = 1
STANDARD_INPUT = "-"

_SOURCES = """\
A folder is one of these, found from what lies in it or named with --as:
  folder        patients.jsonl with photos/, notes/ and slides/ beside it
  tiles         manifest.csv with the tiles or their zips beside it
  phenopackets  GA4GH phenopackets, one *.json a patient
  fhir          a FHIR bulk export (R4, R4B): Patient.ndjson, Condition.ndjson and so on, or *.ndjson.gz
Phenopackets, tiles and an export without Consent resources do not say what patients agreed to: --consent
says it for all of them."""
CHECK_DATA = f"""\
Read a folder of patients as training would, and list what is accepted and what is refused, with file, line
and reason. With --plan, patients for whom the plan has no use are listed too. A warning says that identifiers
seem to be left in a note. Nothing is changed, and no content of the folder is printed.

{_SOURCES} A folder that `import` wrote is read as well."""
_IMPORT = f"""\
Read a folder of patients and write those who can be used into this site's data folder, in Consilium's own
format, under pseudonyms: no id, date or file name of the hospital's goes with them, but for what stands in
the text of a note. The source is not changed. Each import is one numbered batch (DATA/batch-0001), written
whole or not at all; a later import adds the next one, with the patients who are not there yet. To replace
patients, remove the batch that they are in and import again. Patients who withdrew (`withdraw`), or of whom
the source says so, are not imported. Of a patient who is there already the source may say that the consent
was taken back, or lack a purpose that the batch has: such a patient is added to those who withdrew, and takes
part no more; the table says how many have left. With --plan, an answer is chosen among the plan's where a
diagnosis has codes of several systems, and whoever has none of them is left out.

{_SOURCES}"""
_WITHDRAW = f"""\
Leave patients out of every later round, because they took their consent back. PATIENT is an id as in the
source, or a pseudonym; {STANDARD_INPUT} reads them from standard input, one a line, which keeps them out of
the list of processes. It may be run again with the same ids. What a student has learned from them already
cannot be taken back. --list says how many withdrew."""

ReadFolder = Callable[[Path], PatientSet]


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """What became of patients who took the consent back.

    Attributes:
        new: How many were not in the list before.
        known: How many of those named are in the data folder.
        unknown: How many are not.
    """

    new: int
    known: int
    unknown: int


def data_commands(read: ReadFolder | None = None) -> tuple[Command, ...]:
    """The commands; ``read`` stands in for the importers."""
    return (
        Command(
            name="check-data",
            brief="say what of a data folder can be used",
            description=CHECK_DATA,
            add=_add_check_data,
            check=_check_folder,
            run=lambda arguments: _check_data(arguments, read),
        ),
        Command(
            name="import",
            brief="bring patients into the data folder, under pseudonyms",
            description=_IMPORT,
            add=_add_import,
            check=_check_folder,
            run=_import,
        ),
        Command(
            name="withdraw",
            brief="leave patients out who took the consent back",
            description=_WITHDRAW,
            add=_add_withdraw,
            check=_check_withdraw,
            run=_withdraw,
        ),
    )


def withdraw_patients(
    patients: Iterable[str], home: SiteHome, settings: SiteSettings, key: bytes
) -> Withdrawn:
    """Add patients, by id or pseudonym, to those who withdrew.

    Known are those who are in the data folder; none where that cannot be read. The others are added too.

    Raises:
        ValueError: An id that can be none.
        BadFileError: The list cannot be read.
    """
    pseudonyms = {to_pseudonym(key, patient): may_mean(key, patient) for patient in patients}
    path = home.withdrawn_file(settings.cohort)
    # First, whatever may be wrong with the data.
    new = add_withdrawn(path, pseudonyms, key)
    groups = _groups(settings.data, key)
    here = groups.keys() | groups.values()
    known = [meant for meant in pseudonyms.values() if meant & here]
    # A patient of several images is the group of each of them.
    named = frozenset[str]().union(*known)
    add_withdrawn(path, [one for one, group in groups.items() if group in named], key)
    return Withdrawn(new=new, known=len(known), unknown=len(pseudonyms) - len(known))


def _add_check_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of patients")
    parser.add_argument(
        "--plan", type=Path, metavar="PACKAGE", help="also check against a plan package of the coordinator"
    )
    _add_source(parser)
    add_json(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="SOURCE", help="the folder of patients")
    add_home(parser, consortium=False)
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="PACKAGE",
        help="take answers as this plan package of the coordinator has them",
    )
    _add_source(parser)
    add_json(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--as", dest="kind", choices=RAW_KINDS, help="what the folder is, where it is unclear"
    )
    parser.add_argument(
        "--consent",
        action="append",
        default=[],
        metavar="PURPOSE",
        help="what all patients of the folder agreed to, such as research; may be given several times",
    )


def _add_withdraw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("patients", nargs="*", metavar="PATIENT", help="id or pseudonym")
    add_home(parser, consortium=False)
    parser.add_argument("--list", action="store_true", help="say how many withdrew, and change nothing")
    add_json(parser)


def _check_folder(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        parser.error(f"no folder {arguments.folder}")
    if not all(is_line(purpose) for purpose in arguments.consent):
        parser.error("expected a purpose after --consent, as one line of text")


def _check_withdraw(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if bool(arguments.patients) == arguments.list:
        parser.error("expected patients, or --list without any")


def _check_data(arguments: argparse.Namespace, read: ReadFolder | None) -> int:
    package = None if arguments.plan is None else read_package(arguments.plan)
    if read is not None:
        source = Source(kind=arguments.kind or "folder", patients=read(arguments.folder))
    else:
        # Any key will do for pseudonyms that nobody sees.
        key = None if _is_imported(arguments) else bytes(SMALLEST_KEY)
        answers = None if package is None else package.answers
        source = _source(arguments, key, answers)
    check = check_source(source, None if package is None else package.plan)
    if arguments.json:
        say_json(CHECK_SCHEMA, _report(check))
    else:
        _say_check(arguments.folder, check)
    return REFUSED if check.refused else OK


def _is_imported(arguments: argparse.Namespace) -> bool:
    return arguments.kind is None and kind_of(arguments.folder) == "imported"


def _source(arguments: argparse.Namespace, key: bytes | None, answers: Any = None) -> Source:
    consent = frozenset(arguments.consent)
    return read_source(arguments.folder, key=key, answers=answers, kind=arguments.kind, consent=consent)


def _import(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    settings = read_settings(home.settings_file)
    if arguments.folder.resolve() == settings.data.resolve():
        raise ImportRefusedError(
            settings.data, "it is the source, too; a folder of patients is used as it is"
        )
    answers = None if arguments.plan is None else read_package(arguments.plan).answers
    withdrawn = home.withdrawn_file(settings.cohort)
    with Keyring.open(home, settings) as keyring:
        source = _source(arguments, keyring.pseudonym_key, answers)
        done = import_patients(source, settings.data, withdrawn, keyring.pseudonym_key)
    check = check_source(replace(source, patients=done.patients))
    if arguments.json:
        batch = None if done.batch is None else str(done.batch)
        say_json(CHECK_SCHEMA, {**_report(check), "batch": batch, "left": done.left})
    else:
        _say_check(arguments.folder, check, (("left, of earlier batches", done.left),))
        _say_import(done)
    return REFUSED if check.refused else OK


def _say_import(done: Arrivals) -> None:
    if done.batch is None:
        say("imported", "nobody: no patient of the source is new")
    else:
        say("imported", f"{len(done.patients.records)} patients into {done.batch}")


def _withdraw(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    settings = read_settings(home.settings_file)
    with Keyring.open(home, settings) as keyring:
        if arguments.list:
            return _list_withdrawn(arguments, home, settings, keyring.pseudonym_key)
        patients = _named(arguments.patients)
        done = withdraw_patients(patients, home, settings, keyring.pseudonym_key)
    if arguments.json:
        say_json(WITHDRAWN_SCHEMA, {"cohort": settings.cohort, **vars(done)})
    else:
        say("withdrawn", f"{done.new} patients more; {done.known} of those named are in {settings.data}")
        if done.unknown:
            say("unknown", f"{done.unknown} of those named: listed all the same, but check what was typed")
    return REFUSED if done.unknown else OK


def _list_withdrawn(arguments: argparse.Namespace, home: SiteHome, settings: SiteSettings, key: bytes) -> int:
    path = home.withdrawn_file(settings.cohort)
    number = count_withdrawn(path, key)
    known = len(read_withdrawn(path, key) & _groups(settings.data, key).keys())
    if arguments.json:
        say_json(WITHDRAWN_SCHEMA, {"cohort": settings.cohort, "withdrawn": number, "known": known})
    else:
        say("withdrawn", f"{number} patients of {settings.cohort}; {known} are in {settings.data}")
    return OK


def _groups(data: Path, key: bytes) -> Mapping[str, str | None]:
    """The patients who are in the data folder; none where it holds none that can be read."""
    try:
        return patient_groups(data, key)
    except (OSError, FederationError) as error:
        print(f"consilium-site: nobody is known: {error}", file=sys.stderr)  # noqa: T201
        return {}


def _named(patients: Sequence[str]) -> list[str]:
    if list(patients) == [STANDARD_INPUT]:
        patients = [line.strip() for line in sys.stdin]
    return [patient for patient in patients if patient]


def _report(check: DataCheck) -> dict[str, Any]:
    return {
        "source": check.kind,
        "accepted": dict(counts(check.accepted)),
        "refused": [_problem_row(problem) for problem in check.refused],
        "warnings": [_problem_row(problem) for problem in check.warnings],
        "unread": dict(check.unread),
    }


def _problem_row(problem: Problem) -> dict[str, Any]:
    return {"file": problem.file, "line": problem.line, "reason": problem.reason}


def _say_check(folder: Path, check: DataCheck, more: Sequence[tuple[str, int]] = ()) -> None:
    title = (
        f"{folder}, {check.kind}: {len(check.accepted)} patients accepted, {len(check.refused)} refusals, "
        f"{len(check.warnings)} warnings"
    )
    say_table(title, ("accepted", "patients"), [*counts(check.accepted), *more])
    for heading, problems in (("refused", check.refused), ("warning", check.warnings)):
        if problems:
            rows = [(one.file, "" if one.line is None else one.line, one.reason) for one in problems]
            say_table("", (f"{heading}: file", "line", "reason"), rows)
    if check.unread:
        say_table("", ("not read", "number"), check.unread.items())
