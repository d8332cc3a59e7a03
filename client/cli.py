"""`consilium-site`: what a hospital's own people run, on the hospital's own machine.

The commands are in modules by what they are about: ``client.init_command`` and ``client.setup_commands`` (who
this site is and with whom it talks), ``client.plan_commands`` (what may run here), ``client.run_commands``
(the daemon and what it does), ``client.data_commands`` (patients), ``client.ledger_commands`` (what was taken
from them), ``client.predict_command`` (a trained student's answers), ``client.index_command`` (the public
knowledge that it may use), ``client.key_commands`` (keys at rest).
Here they get one help, one way to say no, and one list of exit statuses.
"""

import argparse
import sys
from collections.abc import Sequence

from client.data_commands import ReadFolder, data_commands
from client.index_command import INDEX_COMMAND
from client.init_command import INIT_COMMAND
from client.key_commands import KEY_COMMANDS
from client.ledger_commands import DESCRIPTION as LEDGER
from client.ledger_commands import add_ledger, check_ledger, run_ledger
from client.plan_commands import PLAN_COMMANDS
from client.predict_command import DESCRIPTION as PREDICT
from client.predict_command import LoadStudent, add_predict, check_predict, run_predict
from client.run_commands import RUN_COMMANDS
from client.setup_commands import SETUP_COMMANDS
from client.terminal import NOT_RUNNING, OK, REFUSED, UNUSABLE, USAGE, Command
from common.errors import NotRunningError
from common.offline import stay_offline
from common.terminal import Program

__all__ = ["NOT_RUNNING", "OK", "REFUSED", "UNUSABLE", "USAGE", "main"]

_DESCRIPTION = """\
Consilium at one hospital. Patients' data stay on this machine: what leaves it is masked, and only for plans
that were approved here by name.

A new site runs, in this order: init, enrol, approve-site for each other site, check-data, approve, start."""
_STATUS = """\
exit status, of all commands:
  0  all well
  1  it cannot be done: a file, a key, a ledger, a plan or an answer is not as it has to be; one line says why
  2  the command is not understood, or a file or folder that it names is not there
  3  done, but something was refused; each refusal has its line
  4  the daemon of this site is not running"""


def main(
    argv: Sequence[str] | None = None, *, load: LoadStudent | None = None, read: ReadFolder | None = None
) -> int:
    """Run one command and return its exit status; SystemExit for help and for usage errors."""
    stay_offline()
    return site_program(load, read).main(argv)


def site_program(load: LoadStudent | None = None, read: ReadFolder | None = None) -> Program:
    """``consilium-site`` with all its commands, in the order in which a new site needs them."""
    return Program(
        name="consilium-site",
        description=_DESCRIPTION,
        statuses=_STATUS,
        commands=_commands(load, read),
        not_running=NotRunningError,
    )


def _commands(load: LoadStudent | None, read: ReadFolder | None) -> tuple[Command, ...]:
    patients = _on_patients(load, read)
    return (INIT_COMMAND, *SETUP_COMMANDS, *PLAN_COMMANDS, *RUN_COMMANDS, *patients, *KEY_COMMANDS)


def _on_patients(load: LoadStudent | None, read: ReadFolder | None) -> tuple[Command, ...]:
    return (
        *data_commands(read),
        Command(
            name="ledger",
            brief="what was taken from this site's patients",
            description=LEDGER,
            add=add_ledger,
            check=check_ledger,
            run=_ledger,
        ),
        Command(
            name="predict",
            brief="answer for notes or images with a trained student, or by search",
            description=PREDICT,
            add=add_predict,
            check=check_predict,
            run=lambda arguments: _refused(run_predict(arguments, load)),
        ),
        INDEX_COMMAND,
    )


def _ledger(arguments: argparse.Namespace) -> int:
    run_ledger(arguments)
    return OK


def _refused(number: int) -> int:
    return REFUSED if number else OK


if __name__ == "__main__":
    sys.exit(main())
