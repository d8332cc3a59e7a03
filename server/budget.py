"""May the next release happen? The coordinator's own ledger of what it asked patients for.

The sites' ledgers are the source of truth, and they refuse by themselves; this one stops a run that would ask
in vain, and is what a released student's card is written from.
"""

from __future__ import annotations

from pathlib import Path

from common.charges import round_charge
from common.errors import BudgetSpentError
from common.ids import RoundId, RunId
from common.plan import RunPlan
from common.privacy.ledger import Charge, Ledger

LEDGER_FILE = "ledger.db"


def open_ledger(folder: Path, plan: RunPlan) -> Ledger | None:
    """The coordinator's ledger in ``folder``, made if there is none; None if the plan spends no budget.

    Raises:
        FederationError: It is damaged, or older than a receipt for it.
    """
    if plan.privacy.mode == "none":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path, cohort = folder / LEDGER_FILE, f"all patients of {plan.consortium}"
    return Ledger.open(path, cohort) if path.exists() else Ledger.create(path, cohort)


def charge_round(
    ledger: Ledger,
    plan: RunPlan,
    *,
    track: str,
    run_id: RunId,
    round_id: RoundId,
    sum_id: int,
    roster_digest: str,
) -> None:
    """Write down a round before any site is asked for it: a crash must overstate the loss.

    Guarantee: one secure sum is charged once, however often it is gone on with.

    Raises:
        BudgetSpentError: The plan pays for no further step.
    """
    planned = plan.track(track)
    if planned.privacy is None:
        return
    charge = round_charge(
        plan, planned, run_id=run_id, round_id=round_id, sum_id=sum_id, roster_digest=roster_digest
    )
    spent = [entry.charge for entry in ledger.entries()]
    if any(_names_sum(one) == _names_sum(charge) for one in spent):
        return
    used = sum(one.steps for one in spent if (one.plan_digest, one.track) == (charge.plan_digest, track))
    most = plan.steps(planned)
    if plan.privacy.stop == "fixed" and used + charge.steps > most:
        raise BudgetSpentError(track, "student", f"{used} of the plan's {most} steps are spent")
    ledger.charge(charge)


def _names_sum(charge: Charge) -> tuple[object, ...]:
    """What a sum is told by; its roster too, since other keys mask another release."""
    run = (charge.plan_digest, charge.run_id, charge.track)
    return (*run, charge.round_id, charge.sum_id, charge.roster_digest)
