from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.budget import SiteBudget
from common.errors import BadSignatureError, BudgetSpentError, LedgerRolledBackError, SettingsError
from common.guarantee import guarantee, student_spending
from common.ids import RoundId, RunId
from common.learning_plan import TeacherPlan
from common.messages import HeadRequest, TrainTask
from common.pki import Identity
from common.plan import RunPlan
from common.privacy.accountant import RdpFilter, epsilon_of
from common.privacy.budget import Cap, epsilon_spent
from common.privacy.ledger import Charge, Ledger, countersign
from common.privacy_plan import TeacherPrivacy
from common.secagg.keys import Roster, SumContext, SumSecrets, sign_keys
from tests.fakes import (
    COORDINATOR,
    PRIVACY,
    RUN,
    SITES,
    TRACK,
    fake_budget,
    fake_identities,
    private_plan,
    tiny_adapter,
)

PLAN = private_plan()
SITE = SITES[0]
DELTA = 1e-5
DP = TeacherPrivacy(noise_multiplier=4.0, sampling_rate=0.1, clip_norm=1.0, steps=5, learning_rate=0.1)
DP_TEACHER = TeacherPlan(privacy="dp", folds=3, modality_dropout=0.1, dp=DP)


def task_of(plan: RunPlan, round_id: int, run: str = RUN) -> TrainTask:
    return TrainTask(
        run_id=RunId(run),
        round_id=RoundId(round_id),
        track=TRACK,
        plan_digest=plan.digest(),
        adapter=tiny_adapter(),
        sum_id=round_id,
        members=SITES,
        envelopes={},
        bin_accuracy=None,
    )


def roster_of(plan: RunPlan, sum_id: int = 1) -> Roster:
    context = SumContext(run_id=RUN, track=TRACK, sum_id=sum_id, plan_digest=plan.digest())
    signed = [sign_keys(context, SumSecrets.generate(), one) for one in fake_identities(plan).values()]
    return Roster(context=context, entries=tuple(signed))


ROSTER = roster_of(PLAN)


def spend(budget: SiteBudget, plan: RunPlan, rounds: int, start: int = 1, run: str = RUN) -> None:
    for number in range(start, start + rounds):
        budget.spend_step(task_of(plan, number, run), ROSTER)


def budget_of(plan: RunPlan, folder: Path, cap: Cap | None = None) -> SiteBudget:
    return fake_budget(plan, folder / "ledger.db", SITE, cap=cap)


def test_a_step_is_in_the_ledger_when_it_is_spent(tmp_path: Path) -> None:
    budget = budget_of(PLAN, tmp_path)
    budget.spend_step(task_of(PLAN, 3), ROSTER)
    # On the disk: whoever opens it finds it.
    (entry,) = Ledger.open(tmp_path / "ledger.db", f"patients of {SITE}").entries()
    charge = entry.charge
    assert (charge.run_id, charge.round_id, charge.sum_id, charge.track) == (RUN, 3, 3, TRACK)
    assert (charge.part, charge.steps, charge.noise_multiplier) == ("student", 1, 2.0)
    assert (charge.plan_digest, charge.roster_digest) == (PLAN.digest(), ROSTER.digest().hex())
    assert budget.entries() == (entry,)


def test_a_plan_pays_for_its_steps_and_no_more(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, spare_steps=1))
    budget = budget_of(plan, tmp_path)
    spend(budget, plan, 5)
    reason = (
        "rare_disease: privacy budget of the student: 5 of the plan's 5 steps are spent, 1 more are asked"
    )
    for number in (6, 1):
        with pytest.raises(BudgetSpentError, match=reason):
            budget.spend_step(task_of(plan, number), ROSTER)
    assert len(budget.entries()) == 5
    assert epsilon_spent(budget.entries(), DELTA) == guarantee(plan).epsilon


def test_the_same_round_asked_again_is_another_step(tmp_path: Path) -> None:
    budget = budget_of(PLAN, tmp_path)
    spend(budget, PLAN, 2)
    spend(budget, PLAN, 2)
    assert [entry.charge.round_id for entry in budget.entries()] == [1, 2, 1, 2]
    with pytest.raises(BudgetSpentError):
        spend(budget, PLAN, 1)


def test_a_second_run_of_the_same_plan_goes_on_counting(tmp_path: Path) -> None:
    spend(budget_of(PLAN, tmp_path), PLAN, 3)
    again = budget_of(PLAN, tmp_path)
    spend(again, PLAN, 1, run="run-2")
    with pytest.raises(BudgetSpentError, match="4 of the plan's 4 steps are spent"):
        spend(again, PLAN, 1, start=2, run="run-2")
    assert [entry.charge.run_id for entry in again.entries()] == [RUN] * 3 + ["run-2"]


def test_another_plan_counts_its_own_steps(tmp_path: Path) -> None:
    other = private_plan(name="another")
    spend(budget_of(PLAN, tmp_path), PLAN, 4)
    spend(budget_of(other, tmp_path), other, 4)
    with pytest.raises(BudgetSpentError):
        spend(budget_of(other, tmp_path), other, 1)


def test_a_round_of_mode_local_is_as_many_steps_as_the_site_takes(tmp_path: Path) -> None:
    training = replace(PLAN.tracks[0].training, rounds=2, local_steps=3)
    plan = private_plan(privacy=replace(PRIVACY, mode="local"), track={"training": training})
    budget = budget_of(plan, tmp_path)
    spend(budget, plan, 2)
    assert [entry.charge.steps for entry in budget.entries()] == [3, 3]
    with pytest.raises(BudgetSpentError, match="6 of the plan's 6 steps are spent, 3 more are asked for"):
        spend(budget, plan, 1)


def test_a_plan_that_promises_more_than_it_holds_gets_no_access(tmp_path: Path) -> None:
    held = guarantee(PLAN).epsilon
    assert held is not None
    budget_of(private_plan(privacy=replace(PRIVACY, epsilon=held)), tmp_path)
    with pytest.raises(SettingsError, match=r"plan\.privacy\.epsilon"):
        budget_of(private_plan(privacy=replace(PRIVACY, epsilon=held / 2)), tmp_path)


def test_with_a_filter_a_plan_goes_on_until_its_epsilon_is_used_up(tmp_path: Path) -> None:
    # The plan's rounds are no limit here: what counts is what was spent.
    training = replace(PLAN.tracks[0].training, rounds=1)
    plan = private_plan(privacy=replace(PRIVACY, stop="filter", epsilon=1.5), track={"training": training})
    step, held = student_spending(plan, plan.tracks[0], 1), RdpFilter(epsilon=1.5, delta=DELTA)
    most = next(n for n in range(1, 100) if not held.admits([replace(step, steps=n)], step))
    assert most > plan.steps(plan.tracks[0])
    budget = budget_of(plan, tmp_path)
    spend(budget, plan, most)
    with pytest.raises(BudgetSpentError, match=r"the plan's epsilon 1\.5 is used up"):
        spend(budget, plan, 1)
    assert len(budget.entries()) == most
    assert epsilon_spent(budget.entries(), DELTA) <= 1.5


def test_a_filter_counts_the_teacher_too(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, stop="filter", epsilon=1.2), teacher=DP_TEACHER)
    alone, both = budget_of(plan, tmp_path / "alone"), budget_of(plan, tmp_path / "both")
    both.spend_teacher()

    def rounds(budget: SiteBudget) -> int:
        for number in range(1, 1000):
            try:
                budget.spend_step(task_of(plan, number), ROSTER)
            except BudgetSpentError:
                return number - 1
        return 1000

    assert rounds(both) < rounds(alone) < 1000


def test_the_cap_is_held_against_the_whole_plan_before_anything_is_spent(tmp_path: Path) -> None:
    whole = guarantee(PLAN).epsilon
    assert whole is not None
    first = epsilon_of([student_spending(PLAN, PLAN.tracks[0], 1)], DELTA)
    assert first < 0.99 * whole
    # Room for a first step is not enough.
    tight = budget_of(PLAN, tmp_path / "tight", Cap(epsilon=0.99 * whole, delta=DELTA))
    with pytest.raises(BudgetSpentError, match="it would pass this site's cap of epsilon"):
        spend(tight, PLAN, 1)
    assert tight.entries() == ()
    wide = budget_of(PLAN, tmp_path / "wide", Cap(epsilon=whole, delta=DELTA))
    spend(wide, PLAN, 4)


def test_the_cap_holds_teacher_and_student_together_before_the_teacher_learns(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, epsilon=20.0), teacher=DP_TEACHER)
    found = guarantee(plan)
    assert found.epsilon is not None
    assert found.epsilon_teacher is not None
    tight = budget_of(
        plan, tmp_path / "tight", Cap(epsilon=(found.epsilon_teacher + found.epsilon) / 2, delta=DELTA)
    )
    with pytest.raises(
        BudgetSpentError, match="privacy budget of the teacher: it would pass this site's cap"
    ):
        tight.spend_teacher()
    assert tight.entries() == ()
    wide = budget_of(plan, tmp_path / "wide", Cap(epsilon=found.epsilon, delta=DELTA))
    wide.spend_teacher()
    spend(wide, plan, 4)
    assert epsilon_spent(wide.entries(), DELTA) == found.epsilon


def test_several_plans_are_added_up_by_renyi_losses_under_one_cap(tmp_path: Path) -> None:
    other = private_plan(name="another")
    step = student_spending(PLAN, PLAN.tracks[0], 4)
    # Two fixed plans of four steps each would be a fixed plan of eight, did nobody look in between.
    fixed = epsilon_of([step, step], DELTA)
    adaptive = next(
        one / 100 for one in range(1, 1000) if RdpFilter(epsilon=one / 100, delta=DELTA).admits([step], step)
    )
    assert fixed < adaptive - 0.01
    for name, cap, room in (("a", adaptive - 0.01, False), ("b", adaptive, True)):
        folder = tmp_path / name
        spend(budget_of(PLAN, folder, Cap(epsilon=cap, delta=DELTA)), PLAN, 4)
        second = budget_of(other, folder, Cap(epsilon=cap, delta=DELTA))
        if room:
            # To its last step: what was begun is not begun in vain.
            spend(second, other, 4)
            continue
        with pytest.raises(BudgetSpentError, match="it would pass this site's cap"):
            spend(second, other, 1)
        assert len(second.entries()) == 4


def test_a_plan_that_nothing_bounds_never_fits_under_a_cap(tmp_path: Path) -> None:
    teacher = TeacherPlan(privacy="none", modality_dropout=0.1)
    plan = private_plan(privacy=replace(PRIVACY, epsilon=None), teacher=teacher)
    with pytest.raises(BudgetSpentError, match="cap"):
        spend(budget_of(plan, tmp_path / "a", Cap(epsilon=1000.0, delta=DELTA)), plan, 1)
    spend(budget_of(plan, tmp_path / "b"), plan, 4)


def unbounded(**changes: Any) -> Charge:
    parts: dict[str, Any] = {
        "consortium": "another",
        "run_id": RunId("run-0"),
        "round_id": 1,
        "sum_id": 1,
        "track": TRACK,
        "part": "student",
        "mechanism": "none",
        "unit": "patient",
        "sampling_rate": 1.0,
        "clip_norm": 0.0,
        "noise_multiplier": 0.0,
        "steps": 1,
        "teacher": "public",
        "plan_digest": "ab" * 32,
        "roster_digest": "cd" * 32,
    }
    return Charge(**{**parts, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mechanism": "rounded_normal", "clip_norm": 1.0, "noise_multiplier": 50.0, "teacher": "none"},
    ],
    ids=["without noise", "with a teacher without privacy"],
)
def test_patients_of_whom_everything_may_be_known_already_are_under_no_cap(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    ledger = Ledger.create(tmp_path / "ledger.db", f"patients of {SITE}")
    ledger.charge(unbounded(**changes))
    capped = budget_of(PLAN, tmp_path, Cap(epsilon=1000.0, delta=DELTA))
    with pytest.raises(BudgetSpentError, match="it would pass this site's cap of epsilon 1000"):
        spend(capped, PLAN, 1)
    assert len(capped.entries()) == 1
    spend(budget_of(PLAN, tmp_path), PLAN, 1)


def test_the_teachers_are_charged_once(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, epsilon=20.0), teacher=DP_TEACHER)
    budget = budget_of(plan, tmp_path)
    assert not budget.has_teacher()
    budget.spend_teacher()
    again = budget_of(plan, tmp_path)
    assert again.has_teacher()
    with pytest.raises(
        BudgetSpentError, match="privacy budget of the teacher: 10 of the plan's 10 steps are spent"
    ):
        again.spend_teacher()
    assert [entry.charge.part for entry in again.entries()] == ["teacher"]
    # The student's steps are its own.
    spend(again, plan, 4)


def test_a_public_teacher_costs_nothing(tmp_path: Path) -> None:
    budget = budget_of(PLAN, tmp_path)
    budget.spend_teacher()
    assert budget.entries() == ()
    assert not budget.has_teacher()


def request(head: str, signer: Identity = COORDINATOR, consortium: str = "consilium") -> HeadRequest:
    signature = countersign(signer, SITE, consortium, head).signature if head else b""
    return HeadRequest(run_id=RUN, track=TRACK, head=head, countersignature=signature)


def test_the_head_is_told_and_the_coordinators_word_for_it_is_kept(tmp_path: Path) -> None:
    budget = budget_of(PLAN, tmp_path)
    empty = budget.head(request(""))
    spend(budget, PLAN, 1)
    head = budget.head(request(empty))
    assert head == budget.entries()[-1].digest != empty
    assert budget.head(request(head)) == head
    assert head in (tmp_path / "ledger.db.receipts.json").read_text()


def test_a_head_that_the_ledger_lost_stops_it(tmp_path: Path) -> None:
    budget = budget_of(PLAN, tmp_path)
    with pytest.raises(LedgerRolledBackError, match=r"ledger\.db: expected head abab"):
        budget.head(request("ab" * 32))
    with pytest.raises(LedgerRolledBackError):
        spend(budget, PLAN, 1)


@pytest.mark.parametrize(
    ("signer", "consortium"),
    [(Identity.generate(COORDINATOR.site_id), "consilium"), (COORDINATOR, "another consortium")],
)
def test_a_word_that_the_coordinator_did_not_give_stops_nothing(
    signer: Identity, consortium: str, tmp_path: Path
) -> None:
    budget = budget_of(PLAN, tmp_path)
    with pytest.raises(BadSignatureError):
        budget.head(request("ab" * 32, signer, consortium))
    spend(budget, PLAN, 1)
