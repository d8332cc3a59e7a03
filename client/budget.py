"""What a site lets a plan take from its patients, written down before it is taken.

The ledger belongs to the site's patients and is the same for all coordinators. A plan spends from it step by
step, no more steps than it pays for, and nothing at all if the whole of it would pass the site's own cap.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from common.secagg.keys import Roster


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
        if not (self._cap.admits(before, charge) and (begun or self._admits_whole(self._cap, before))):
            reason = f"it would pass this site's cap of epsilon {self._cap.epsilon}"
            raise BudgetSpentError(charge.track, charge.part, reason)

    def _admits_whole(self, cap: Cap, before: Sequence[Entry]) -> bool:
        unit, asked = self._plan.privacy.unit, spendings(self._plan, site=self._site)
        if guarantee(self._plan).epsilon is None:
            return False
        others = [entry.charge.spending for entry in before if entry.charge.unit == unit]
        if not others:
            return epsilon_of(asked, cap.delta) <= cap.epsilon
        # Who chooses a plan may have looked at what earlier ones gave: only a Rényi filter holds then.
        return RdpFilter(epsilon=cap.epsilon, delta=cap.delta).admits([*others, *asked[:-1]], asked[-1])

    def _of_plan(self, track: str | None) -> list[Entry]:
        return [
            entry
            for entry in self._ledger.entries()
            if entry.charge.plan_digest == self._digest and track in (None, entry.charge.track)
        ]
