"""What a site lets a plan take from its patients, written down before it is taken.

The ledger belongs to the site's patients and is the same for all coordinators. A plan spends from it step by
step, no more steps than it pays for, and nothing at all if the whole of it would pass the site's own cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.settings import CapSettings
from common.charges import round_charge, teacher_charge
from common.errors import BudgetSpentError
from common.guarantee import certify, guarantee, spendings
from common.ids import SiteId
from common.messages import HeadRequest, TrainTask
from common.pki import PublicIdentity
from common.plan import RunPlan
from common.privacy.accountant import RdpFilter, epsilon_of
from common.privacy.budget import Cap
from common.privacy.ledger import Charge, Entry, Ledger, Receipt
from common.privacy.ledger_receipts import receipts_path
from common.secagg.keys import Roster

WHOLE_PLAN = "whole plan"


def cap_of(settings: CapSettings | None) -> Cap | None:
    """The site's own cap, as its settings say it; None for none."""
    return None if settings is None else Cap(epsilon=settings.epsilon, delta=settings.delta)


def entries_of(path: Path, cohort: str) -> tuple[Entry, ...]:
    """All that a cohort's ledger holds; nothing where none was begun. As `Ledger.open` it raises."""
    if not path.exists() and not receipts_path(path).exists():
        return ()
    ledger = Ledger.open(path, cohort)
    try:
        return ledger.entries()
    finally:
        ledger.close()


def require_room(plan: RunPlan, site: SiteId, entries: Sequence[Entry], cap: Cap | None) -> None:
    """BudgetSpentError if a plan that is not begun would pass the site's cap. Nothing is spent.

    A plan that bounds nothing passes every cap.
    """
    if cap is None:
        return
    digest = plan.digest()
    if any(entry.charge.plan_digest == digest for entry in entries):
        return
    if not _admits_whole(plan, site, cap, entries):
        reason = f"it asks for more than is left under this site's cap of epsilon {cap.epsilon}"
        raise BudgetSpentError(_tracks(plan, site), WHOLE_PLAN, reason)


def require_step(plan: RunPlan, task: TrainTask, entries: Sequence[Entry]) -> None:
    """BudgetSpentError if a plan pays for no further step of a task's track. Nothing is spent.

    A task that is charged already may be sent again: its answer is stored.
    """
    own = [e.charge for e in entries if (e.charge.plan_digest, e.charge.track) == (plan.digest(), task.track)]
    if any((charge.run_id, charge.sum_id) == (task.run_id, task.sum_id) for charge in own):
        return
    track = plan.track(task.track)
    steps = track.training.local_steps if plan.privacy.mode == "local" else 1
    used, most = sum(charge.steps for charge in own), plan.steps(track)
    if plan.privacy.stop == "fixed" and used + steps > most:
        reason = f"{used} of the plan's {most} steps are spent, {steps} more are asked for"
        raise BudgetSpentError(task.track, "student", reason)


def _tracks(plan: RunPlan, site: SiteId) -> str:
    return " and ".join(track.track for track in plan.tracks_of(site))


def _admits_whole(plan: RunPlan, site: SiteId, cap: Cap, before: Sequence[Entry]) -> bool:
    if guarantee(plan).epsilon is None:
        return False
    unit, asked = plan.privacy.unit, spendings(plan, site=site)
    others = [entry.charge.spending for entry in before if entry.charge.unit == unit]
    if not others:
        return epsilon_of(asked, cap.delta) <= cap.epsilon
    # Who chooses a plan may have looked at what earlier ones gave: only a Rényi filter holds then.
    return RdpFilter(epsilon=cap.epsilon, delta=cap.delta).admits([*others, *asked[:-1]], asked[-1])


class SiteBudget:
    """One plan's access to a site's ledger.

    Guarantee: whatever a site releases under the plan is in the ledger before it is released, with the
    noise that is guaranteed; more steps than the plan pays for, and a plan that would pass the site's
    cap, are refused before anything is spent.
    """

    def __init__(
        self,
        plan: RunPlan,
        ledger: Ledger,
        *,
        site: SiteId,
        cap: Cap | None = None,
        coordinator: PublicIdentity | None = None,
    ) -> None:
        """Access for ``plan``.

        Args:
            plan: As the site approved it.
            ledger: Of the patients that the plan learns from.
            site: Whose ledger it is.
            cap: The most that the site lets anybody take of them, all plans together.
            coordinator: Whose countersignatures of the ledger's head are believed.

        Raises:
            SettingsError: The plan promises more than its mechanisms hold.
        """
        certify(plan)
        self._plan, self._ledger, self._site = plan, ledger, site
        self._cap, self._coordinator = cap, coordinator
        self._digest = plan.digest()

    def entries(self) -> tuple[Entry, ...]:
        """All that was charged to the patients, by this plan and others."""
        return self._ledger.entries()

    def spend_teacher(self) -> None:
        """Charge the site's teachers, for all tracks at once. BudgetSpentError."""
        charge = teacher_charge(self._plan)
        if charge is not None:
            self._spend(charge, most=charge.steps)

    def has_teacher(self) -> bool:
        """Whether the plan's teachers are paid for."""
        return any(entry.charge.part == "teacher" for entry in self._of_plan(None))

    def spend_step(self, task: TrainTask, roster: Roster) -> None:
        """Charge what the answer to a task takes. BudgetSpentError."""
        track = self._plan.track(task.track)
        charge = round_charge(
            self._plan,
            track,
            run_id=task.run_id,
            round_id=task.round_id,
            sum_id=task.sum_id,
            roster_digest=roster.digest().hex(),
        )
        self._spend(charge, most=self._plan.steps(track))

    def head(self, request: HeadRequest) -> str:
        """The ledger's head, once what the coordinator remembers of it is found in it.

        Raises:
            LedgerRolledBackError: The coordinator has seen entries that are not here.
            BadSignatureError: Its word is not signed by the coordinator that the site knows.
        """
        if request.head and self._coordinator is not None:
            receipt = Receipt(
                site_id=self._site,
                consortium=self._plan.consortium,
                head=request.head,
                signature=request.countersignature,
            )
            self._ledger.accept(receipt, self._coordinator)
        return self._ledger.head()

    def _spend(self, charge: Charge, *, most: int) -> None:
        before = self._ledger.entries()
        used = sum(
            entry.charge.steps for entry in self._of_plan(charge.track) if entry.charge.part == charge.part
        )
        if self._plan.privacy.stop == "fixed" or charge.part == "teacher":
            if used + charge.steps > most:
                reason = f"{used} of the plan's {most} steps are spent, {charge.steps} more are asked for"
                raise BudgetSpentError(charge.track, charge.part, reason)
        else:
            self._require_filter(charge)
        self._require_cap(before, charge)
        self._ledger.charge(charge)

    def _require_filter(self, charge: Charge) -> None:
        """A plan that may go on until its epsilon is used up: its own Rényi filter stops it."""
        privacy = self._plan.privacy
        if privacy.epsilon is None or privacy.delta is None:
            return
        spent = [entry.charge.spending for entry in self._of_plan(None)]
        if not RdpFilter(epsilon=privacy.epsilon, delta=privacy.delta).admits(spent, charge.spending):
            raise BudgetSpentError(
                charge.track, charge.part, f"the plan's epsilon {privacy.epsilon} is used up"
            )

    def _require_cap(self, before: Sequence[Entry], charge: Charge) -> None:
        """The site's own cap: over the whole of a plan at its first charge, so that none is begun in vain."""
        if self._cap is None:
            return
        begun = any(entry.charge.plan_digest == self._digest for entry in before)
        # The charge by itself first: behind one that no epsilon bounds, nothing is admitted.
        if not (
            self._cap.admits(before, charge)
            and (begun or _admits_whole(self._plan, self._site, self._cap, before))
        ):
            reason = f"it would pass this site's cap of epsilon {self._cap.epsilon}"
            raise BudgetSpentError(charge.track, charge.part, reason)

    def _of_plan(self, track: str | None) -> list[Entry]:
        return [
            entry
            for entry in self._ledger.entries()
            if entry.charge.plan_digest == self._digest and track in (None, entry.charge.track)
        ]
