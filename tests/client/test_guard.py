from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from client.approvals import withdraw_approval
from client.budget import SiteBudget
from client.guard import MOST_RUNS, TASKS, Guard, guarded
from client.home import ConsortiumHome, SiteHome
from client.settings import ModelSettings
from common.audit import read_entries, verify
from common.errors import (
    AuditBrokenError,
    BadMessageError,
    BudgetSpentError,
    FederationError,
    OtherConsortiumError,
    PlanExpiredError,
    PlanNotApprovedError,
    PlanNotForSiteError,
    PurposeRefusedError,
    RunPlanChangedError,
    TrackRefusedError,
    UnapprovedSiteError,
    UnknownRunError,
)
from common.messages import (
    KINDS,
    Bundle,
    EvaluateTask,
    HeadRequest,
    KeysRequest,
    ListRequest,
    Message,
    PrepareTask,
    Refusal,
    RosterOffer,
    TrainTask,
    UnmaskRequest,
)
from common.plan_package import PlanPackage
from common.privacy.ledger import Ledger
from common.secagg.keys import Roster, SumContext
from tests.client.homes import NOW, SITE, approve, cap, make_home, packaged, site_settings
from tests.fakes import RUN, TRACK, private_plan, tiny_plan
from tests.messages import example, keys_of, train_task

WITHOUT_PLAN = (HeadRequest, ListRequest, UnmaskRequest)


@pytest.fixture(scope="module")
def package() -> PlanPackage:
    return packaged(tiny_plan())


@pytest.fixture
def home(tmp_path: Path, package: PlanPackage) -> ConsortiumHome:
    return make_home(tmp_path, package.plan)


def guard_of(home: ConsortiumHome, *, now: datetime = NOW, place: Any = "worker", **settings: Any) -> Guard:
    return Guard(home, site_settings(home.root.parent.parent, **settings), lambda: now, place=place)


def task(kind: type[Message], package: PlanPackage, **changes: Any) -> Message:
    plan = {} if kind in WITHOUT_PLAN else {"plan_digest": package.plan.digest()}
    return example(kind, **{**plan, **changes})


def decisions(home: ConsortiumHome) -> list[dict[str, Any]]:
    return [{"event": entry.event, **entry.facts} for entry in read_entries(home.audit_file)]


def refused(guard: Guard, message: Message, kind: type[FederationError]) -> str:
    with pytest.raises(kind) as caught:
        guard.check_task(message)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_task_of_an_approved_plan_is_let_in(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    guard = guard_of(home)
    for kind in TASKS:
        assert guard.check_task(task(kind, package)) == package


def test_what_a_coordinator_does_not_send_is_refused(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    for kind in set(KINDS.values()) - set(TASKS):
        reason = refused(guard_of(home), example(kind), BadMessageError)
        assert f"expected a task, got {kind.__name__}" in reason


def test_an_unapproved_plan_is_refused(home: ConsortiumHome, package: PlanPackage) -> None:
    for kind in TASKS:
        refused(
            guard_of(home),
            task(kind, package),
            UnknownRunError if kind in WITHOUT_PLAN else PlanNotApprovedError,
        )
    assert {one["event"] for one in decisions(home)} == {"refused"}
    assert not (home.root / "runs.json").exists()


def test_one_approval_of_two_lets_nothing_in(home: ConsortiumHome, package: PlanPackage) -> None:
    two = site_settings(home.root, approvals_needed=2)
    approve(home, two, package, "A")
    guard = guard_of(home, approvals_needed=2)
    assert "approved by 1 of 2 people" in refused(guard, task(PrepareTask, package), PlanNotApprovedError)
    approve(home, two, package, "B")
    assert guard.check_task(task(PrepareTask, package)) == package


def test_a_withdrawn_approval_stops_the_run_at_once(home: ConsortiumHome, package: PlanPackage) -> None:
    settings = site_settings(home.root)
    digest = approve(home, settings, package)
    guard = guard_of(home)
    guard.check_task(task(PrepareTask, package))
    withdraw_approval(home, settings, digest, by="A", now=NOW)
    for kind in TASKS:
        refused(guard, task(kind, package), PlanNotApprovedError)


def test_a_message_without_a_plan_belongs_to_the_plan_of_its_run(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    approve(home, site_settings(home.root), package)
    for kind in WITHOUT_PLAN:
        reason = refused(guard_of(home), task(kind, package), UnknownRunError)
        assert reason == "run run-1 is unknown here: expected it to name an approved plan first"
    guard_of(home).check_task(task(KeysRequest, package))
    # Another process, as every message of Flower is.
    for kind in WITHOUT_PLAN:
        assert guard_of(home).check_task(task(kind, package)) == package
        refused(guard_of(home), task(kind, package, run_id="run-2"), UnknownRunError)


def test_a_run_stays_with_the_plan_it_began_under(home: ConsortiumHome, package: PlanPackage) -> None:
    other = packaged(replace(tiny_plan(), name="another"))
    for one in (package, other):
        approve(home, site_settings(home.root), one)
    guard = guard_of(home)
    guard.check_task(task(PrepareTask, package))
    reason = refused(guard, task(PrepareTask, other), RunPlanChangedError)
    assert reason.startswith(f"run run-1: expected plan {package.plan.digest()}, under which it began")
    assert guard.check_task(task(PrepareTask, other, run_id="run-2")) == other


def test_only_the_newest_runs_are_remembered(
    home: ConsortiumHome, package: PlanPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_RUNS >= 100
    monkeypatch.setattr("client.guard.MOST_RUNS", 2)
    approve(home, site_settings(home.root), package)
    guard = guard_of(home)
    for number in (1, 2, 3):
        guard.check_task(task(KeysRequest, package, run_id=f"run-{number}"))
    refused(guard, task(HeadRequest, package), UnknownRunError)
    assert guard.check_task(task(HeadRequest, package, run_id="run-2")) == package


def test_a_list_of_runs_that_is_none_lets_nothing_in(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    (home.root / "runs.json").write_text('{"schema": 1, "runs": [["run-1", "no digest"]]}')
    refused(guard_of(home), task(HeadRequest, package), FederationError)


def test_an_expired_plan_is_refused_on_the_day_after(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    last_day = datetime.fromisoformat(f"{package.plan.expires}T23:59:00+00:00")
    assert guard_of(home, now=last_day).check_task(task(TrainTask, package)) == package
    late = guard_of(home, now=datetime.fromisoformat("2030-01-02T00:00:00+00:00"))
    reason = refused(late, task(TrainTask, package), PlanExpiredError)
    assert reason == "the plan expired: its last day was 2030-01-01, today is 2030-01-02"


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        ({"purposes": ("care",)}, PurposeRefusedError, "purpose: expected one of care, got research"),
        ({"site": "site-z"}, PlanNotForSiteError, "site-z is not among its sites"),
        ({"tracks": ("tissue_type",)}, TrackRefusedError, "this site takes part in tissue_type"),
        ({"models": ModelSettings()}, TrackRefusedError, "there is no base model for it here"),
    ],
)
def test_settings_that_were_changed_since_the_approval_count(
    home: ConsortiumHome,
    package: PlanPackage,
    settings: dict[str, Any],
    kind: type[FederationError],
    reason: str,
) -> None:
    approve(home, site_settings(home.root), package)
    assert reason in refused(guard_of(home, **settings), task(PrepareTask, package), kind)


def test_another_track_than_the_plans_is_refused(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    other = task(PrepareTask, package, track="tissue_type")
    assert (
        refused(guard_of(home), other, TrackRefusedError) == "track tissue_type: the plan has no such track"
    )


def test_a_track_without_this_site_is_refused(tmp_path: Path) -> None:
    plan = tiny_plan(tracks=(TRACK, "tissue_type"))
    tracks = (plan.tracks[0], replace(plan.tracks[1], sites=plan.sites[1:]))
    package = packaged(replace(plan, tracks=tracks))
    home = make_home(tmp_path, plan)
    approve(home, site_settings(tmp_path), package)
    assert guard_of(home).check_task(task(PrepareTask, package)) == package
    reason = refused(guard_of(home), task(PrepareTask, package, track="tissue_type"), TrackRefusedError)
    assert reason == "track tissue_type: the plan does not have this site in it"


def test_a_home_of_another_consortium_refuses_the_plan(tmp_path: Path, package: PlanPackage) -> None:
    home = make_home(tmp_path, package.plan)
    approve(home, site_settings(tmp_path), package)
    moved = SiteHome(tmp_path).consortium("another")
    home.root.rename(moved.root)
    refused(guard_of(moved), task(PrepareTask, package), OtherConsortiumError)


def test_a_site_whose_approval_was_taken_away_stops_the_plan(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    approve(home, site_settings(home.root), package)
    (home.root / "approved" / "site-d.json").unlink()
    reason = refused(guard_of(home), task(TrainTask, package), UnapprovedSiteError)
    assert reason == "site-d is not approved here: its identity is in no file of approved sites"


@pytest.fixture(scope="module")
def private() -> PlanPackage:
    return packaged(private_plan())


def spend(package: PlanPackage, home: ConsortiumHome, sums: list[int]) -> None:
    path = SiteHome(home.root.parent.parent).ledger_file("adults")
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(path, "adults") if path.exists() else Ledger.create(path, "adults")
    budget = SiteBudget(package.plan, ledger, site=SITE)
    for sum_id in sums:
        work = train_task(plan_digest=package.plan.digest(), sum_id=sum_id)
        context = SumContext(run_id=RUN, track=TRACK, sum_id=sum_id, plan_digest=work.plan_digest)
        roster = Roster(
            context=context, entries=tuple(keys_of(s, 10 * n) for n, s in enumerate(package.plan.sites))
        )
        budget.spend_step(work, roster)
    ledger.close()


def test_a_step_that_the_plan_does_not_pay_for_is_refused_before_anything_is_loaded(
    tmp_path: Path, private: PlanPackage
) -> None:
    home = make_home(tmp_path, private.plan)
    approve(home, site_settings(tmp_path), private)
    spend(private, home, [1, 2, 3])
    guard = guard_of(home)
    assert guard.check_task(task(TrainTask, private, sum_id=4)) == private
    spend(private, home, [4])
    reason = refused(guard, task(TrainTask, private, sum_id=5), BudgetSpentError)
    assert reason.endswith("4 of the plan's 4 steps are spent, 1 more are asked for")
    # What is paid for may be sent again, unmasked and measured.
    for kind in (TrainTask, EvaluateTask, KeysRequest, RosterOffer, UnmaskRequest, PrepareTask):
        assert guard.check_task(task(kind, private, sum_id=4) if kind is TrainTask else task(kind, private))


def test_a_plan_over_the_cap_is_refused_until_it_is_begun(tmp_path: Path, private: PlanPackage) -> None:
    home = make_home(tmp_path, private.plan)
    approve(home, site_settings(tmp_path), private)
    for kind in (PrepareTask, TrainTask):
        reason = refused(guard_of(home, cap=cap(0.01)), task(kind, private), BudgetSpentError)
        assert "more than is left under this site's cap of epsilon 0.01" in reason
        assert guard_of(home, cap=cap(3.0)).check_task(task(kind, private)) == private


def test_a_ledger_that_is_gone_stops_the_site(tmp_path: Path, private: PlanPackage) -> None:
    home = make_home(tmp_path, private.plan)
    approve(home, site_settings(tmp_path), private)
    spend(private, home, [1])
    path = SiteHome(tmp_path).ledger_file("adults")
    for file in path.parent.glob("ledger.db*"):
        if "receipts" not in file.name:
            file.unlink()
    reply = guarded(guard_of(home).check_task, forbidden, SITE)(task(TrainTask, private))
    assert isinstance(reply, Refusal)
    assert reply.cause == "ledger"


def forbidden(message: Message) -> Message:
    raise AssertionError(f"{type(message).__name__} reached the worker")


def answering(asked: list[Message]) -> Callable[[Message], Message]:
    def handle(message: Message) -> Message:
        asked.append(message)
        if isinstance(message, Bundle):
            return Bundle(parts=tuple(handle(part) for part in message.parts))
        return example(Refusal, reason="worked")

    return handle


def test_the_audit_log_names_what_was_let_in_once_and_every_refusal(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    approve(home, site_settings(home.root), package)
    guard = guard_of(home)
    for _ in range(3):
        guard.check_task(task(TrainTask, package))
        refused(guard, task(PrepareTask, package, plan_digest="ab" * 32), RunPlanChangedError)
    found = decisions(home)
    digest = package.plan.digest()
    assert found[0] == {
        "event": "let-in",
        "run": "run-1",
        "round": 3,
        "track": TRACK,
        "plan": digest,
        "kind": "TrainTask",
    }
    assert [one["event"] for one in found] == ["let-in", "refused", "refused", "refused"]
    assert found[1]["error"] == "RunPlanChangedError"
    assert found[1]["place"] == "worker"
    assert "expected plan" in found[1]["reason"]
    assert verify(home.audit_file).n == 4


def test_the_guard_executable_writes_refusals_alone(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    guard = guard_of(home, place="guard")
    guard.check_task(task(PrepareTask, package))
    refused(guard, task(HeadRequest, package, run_id="run-9"), UnknownRunError)
    assert [one["event"] for one in decisions(home)] == ["refused"]


def test_a_log_that_was_edited_lets_nothing_in(home: ConsortiumHome, package: PlanPackage) -> None:
    approve(home, site_settings(home.root), package)
    guard_of(home).check_task(task(PrepareTask, package))
    home.audit_file.write_text(home.audit_file.read_text().replace("run-1", "run-7"))
    with pytest.raises(AuditBrokenError):
        guard_of(home).check_task(task(PrepareTask, package))
    reply = guarded(guard_of(home).check_task, forbidden, SITE)(task(PrepareTask, package))
    assert isinstance(reply, Refusal)
    assert reply.reason == "a file of this site cannot be used (AuditBrokenError); see the site's log"


def test_a_refused_message_does_not_reach_the_handler(home: ConsortiumHome, package: PlanPackage) -> None:
    handle = guarded(guard_of(home).check_task, forbidden, SITE)
    reply = handle(task(PrepareTask, package))
    assert isinstance(reply, Refusal)
    assert (reply.run_id, reply.site_id, reply.cause) == (RUN, SITE, "failed")
    both = handle(Bundle(parts=(task(PrepareTask, package), task(HeadRequest, package))))
    assert isinstance(both, Bundle)
    assert [type(part) for part in both.parts] == [Refusal, Refusal]


def test_of_a_bundle_the_parts_that_are_allowed_are_answered_in_their_places(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    approve(home, site_settings(home.root), package)
    asked: list[Message] = []
    good, bad = task(PrepareTask, package), task(PrepareTask, package, track="tissue_type")
    handle = guarded(guard_of(home).check_task, answering(asked), SITE)
    reply = handle(Bundle(parts=(bad, good, bad, good)))
    assert isinstance(reply, Bundle)
    assert [part.reason == "worked" for part in reply.parts] == [False, True, False, True]  # type: ignore[union-attr]
    assert isinstance(asked[0], Bundle)
    assert asked[0].parts == (good, good)
    assert handle(good) == example(Refusal, reason="worked")


def test_a_worker_that_fails_refuses_in_the_run_of_the_message(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    approve(home, site_settings(home.root), package)

    def broken(message: Message) -> Message:
        raise FederationError("the worker is not running")

    handle = guarded(guard_of(home).check_task, broken, SITE)
    good, bad = task(PrepareTask, package), task(PrepareTask, package, track="tissue_type")
    reply = handle(Bundle(parts=(bad, good)))
    assert isinstance(reply, Bundle)
    assert [part.reason for part in reply.parts] == [  # type: ignore[union-attr]
        "track tissue_type: the plan has no such track",
        "the worker is not running",
    ]
    assert all(part.run_id == RUN for part in reply.parts)  # type: ignore[union-attr]
