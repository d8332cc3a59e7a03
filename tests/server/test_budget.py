from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BadFileError, BudgetSpentError
from common.ids import RoundId, RunId
from common.plan import RunPlan
from common.privacy.ledger import Ledger
from server.budget import LEDGER_FILE, charge_round, open_ledger
from tests.fakes import PRIVACY, RUN, TRACK, private_plan, tiny_plan

ROSTER = "ab" * 32


def charge(
    ledger: Ledger,
    plan: RunPlan,
    round_id: int,
    *,
    sum_id: int | None = None,
    run: str = RUN,
    track: str = TRACK,
    roster: str = ROSTER,
) -> None:
    charge_round(
        ledger,
        plan,
        track=track,
        run_id=RunId(run),
        round_id=RoundId(round_id),
        sum_id=round_id if sum_id is None else sum_id,
        roster_digest=roster,
    )


def opened(folder: Path, plan: RunPlan) -> Ledger:
    ledger = open_ledger(folder, plan)
    assert ledger is not None
    return ledger


def test_a_plan_without_privacy_has_no_ledger(tmp_path: Path) -> None:
    assert open_ledger(tmp_path, tiny_plan()) is None
    assert not (tmp_path / LEDGER_FILE).exists()


def test_the_ledger_is_made_once_and_opened_again(tmp_path: Path) -> None:
    plan = private_plan()
    folder = tmp_path / "new" / "out"
    charge(opened(folder, plan), plan, 1)
    again = opened(folder, plan)
    assert [entry.charge.round_id for entry in again.entries()] == [1]
    with pytest.raises(BadFileError, match="expected the ledger of cohort all patients of another"):
        open_ledger(folder, private_plan(consortium="another"))


def test_a_round_is_written_down_as_the_sites_have_it(tmp_path: Path) -> None:
    plan = private_plan()
    ledger = opened(tmp_path, plan)
    charge(ledger, plan, 3)
    (entry,) = ledger.entries()
    found = entry.charge
    assert (found.run_id, found.round_id, found.sum_id, found.track) == (RUN, 3, 3, TRACK)
    assert (found.part, found.steps, found.noise_multiplier, found.sampling_rate) == ("student", 1, 2.0, 0.1)
    assert (found.plan_digest, found.roster_digest) == (plan.digest(), ROSTER)


def test_the_plan_pays_for_its_steps_and_no_more_over_all_of_its_runs(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, spare_steps=1))
    ledger = opened(tmp_path, plan)
    for number, sum_id in ((1, 1), (2, 2), (2, 4)):
        charge(ledger, plan, number, sum_id=sum_id)
    for number in (1, 2):
        charge(ledger, plan, number, run="run-2")
    with pytest.raises(BudgetSpentError, match="student: 5 of the plan's 5 steps are spent"):
        charge(ledger, plan, 3, run="run-2")
    assert len(ledger.entries()) == 5


def test_steps_are_counted_by_plan_and_by_track(tmp_path: Path) -> None:
    plan = private_plan()
    (track,) = plan.tracks
    both = replace(plan, tracks=(track, replace(track, track="tissue_type")))
    ledger = opened(tmp_path, plan)
    for number in range(1, 5):
        charge(ledger, plan, number)
        charge(ledger, both, number)
        charge(ledger, both, number, track="tissue_type")
    for one, name in ((plan, TRACK), (both, TRACK), (both, "tissue_type")):
        with pytest.raises(BudgetSpentError):
            charge(ledger, one, 5, track=name)


def test_a_round_of_mode_local_is_as_many_steps_as_a_site_takes(tmp_path: Path) -> None:
    training = replace(private_plan().tracks[0].training, rounds=2, local_steps=3)
    plan = private_plan(privacy=replace(PRIVACY, mode="local"), track={"training": training})
    ledger = opened(tmp_path, plan)
    charge(ledger, plan, 1)
    charge(ledger, plan, 2)
    assert [entry.charge.steps for entry in ledger.entries()] == [3, 3]
    with pytest.raises(BudgetSpentError, match="6 of the plan's 6 steps are spent"):
        charge(ledger, plan, 3)


def test_with_a_filter_the_sites_count(tmp_path: Path) -> None:
    plan = private_plan(privacy=replace(PRIVACY, stop="filter"))
    ledger = opened(tmp_path, plan)
    for number in range(1, 7):
        charge(ledger, plan, number)
    assert len(ledger.entries()) == 6


def test_a_track_without_privacy_is_not_charged(tmp_path: Path) -> None:
    ledger = opened(tmp_path, private_plan())
    charge(ledger, tiny_plan(), 1)
    assert ledger.entries() == ()


def test_one_secure_sum_is_charged_once_however_often_it_is_gone_on_with(tmp_path: Path) -> None:
    plan = private_plan()
    ledger = opened(tmp_path, plan)
    for _ in range(6):
        charge(ledger, plan, 1)
    assert [(entry.charge.round_id, entry.charge.sum_id) for entry in ledger.entries()] == [(1, 1)]
    # Another sum of the same round, and the same number with other keys, are other releases.
    charge(ledger, plan, 1, sum_id=3)
    charge(ledger, plan, 1, roster="ef" * 32)
    assert len(ledger.entries()) == 3
