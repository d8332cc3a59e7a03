"""`consilium-coordinator`: what the people run who bring hospitals together.

The commands are in modules by what they are about: ``server.site_commands`` (the consortium, and who is in
it), ``server.run_commands`` (processes, plans and runs), ``server.ledger_commands`` (what was asked of
patients).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.errors import CoordinatorDownError
from common.terminal import NOT_RUNNING, OK, REFUSED, UNUSABLE, USAGE, Program
from server.ledger_commands import LEDGER
from server.run_commands import EXPORT, PLAN, RESUME, RUN, STATUS, UP
from server.site_commands import ENROL, INIT, REVOKE

__all__ = ["NOT_RUNNING", "OK", "REFUSED", "UNUSABLE", "USAGE", "main"]

_DESCRIPTION = """\
Consilium's coordinator. It brings hospitals together that train one student, and sees no patient, but sums
over all hospitals: of what they learned, noised as the plan's privacy mode says (in mode none not at all),
and of right answers, which are exact in every mode.

A new consortium is made in this order: init, up, enrol for each site, plan, run."""
_STATUSES = """\
exit status, of all commands:
  0  all well
  1  it cannot be done, or it failed; one line says why
  2  the command is not understood, or a file that it names is not there
  3  done, but something was refused; or sites refused, and a run ended for it
  4  nothing runs in this home: start it with `up`"""

PROGRAM = Program(
    name="consilium-coordinator",
    description=_DESCRIPTION,
    statuses=_STATUSES,
    commands=(INIT, UP, ENROL, PLAN, RUN, RESUME, STATUS, REVOKE, LEDGER, EXPORT),
    not_running=CoordinatorDownError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; SystemExit for help and for usage errors."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
