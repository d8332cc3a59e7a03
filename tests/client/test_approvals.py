from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from client.approvals import (
    APPROVE,
    all_approvals,
    approve_plan,
    approved,
    approved_package,
    describe,
    objections,
    withdraw_approval,
)
from client.home import ConsortiumHome
from client.settings import ModelSettings
from common.audit import AuditLog, verify
from common.calibration_plan import CalibrationPlan
from common.errors import (
    ApprovedAlreadyError,
    AuditBrokenError,
    BadFileError,
    BudgetSpentError,
    DigestMismatchError,
    FederationError,
    OtherConsortiumError,
    PlanExpiredError,
    PlanNotApprovedError,
    PlanNotForSiteError,
    PurposeRefusedError,
    SettingsError,
    TrackRefusedError,
    UnapprovedSiteError,
)
from common.plan_package import PlanPackage, write_package
from tests.client.homes import NOW, SITE, approve, cap, make_home, packaged, site_settings
from tests.fakes import SITES, private_plan, tiny_plan


@pytest.fixture(scope="module")
def package() -> PlanPackage:
    return packaged(private_plan())


@pytest.fixture
def home(tmp_path: Path, package: PlanPackage) -> ConsortiumHome:
    return make_home(tmp_path, package.plan)


def test_nothing_is_approved_by_default(home: ConsortiumHome, package: PlanPackage, tmp_path: Path) -> None:
    write_package(package, home.packages)
    settings = site_settings(tmp_path)
    assert approved(home, settings) == {}
    with pytest.raises(PlanNotApprovedError, match="is not approved here: approved by 0 of 1 people"):
        approved_package(home, settings, package.plan.digest())


def test_an_approved_plan_is_found_with_its_package(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings = site_settings(tmp_path)
    one = approve_plan(home, settings, package, by="A. Administrator", now=NOW)
    assert (one.by, one.since, one.is_complete) == (("A. Administrator",), "2026-11-29T12:00:00+00:00", True)
    assert approved(home, settings) == {package.plan.digest(): one}
    assert approved_package(home, settings, package.plan.digest()) == package
    assert verify(home.approvals_file).n == 1


def test_two_people_are_two_different_people(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings, digest = site_settings(tmp_path, approvals_needed=2), package.plan.digest()
    assert not approve_plan(home, settings, package, by="A. Administrator", now=NOW).is_complete
    with pytest.raises(ApprovedAlreadyError, match=r"a\. ADMINISTRATOR has approved it already"):
        approve_plan(home, settings, package, by="a. ADMINISTRATOR", now=NOW)
    assert approved(home, settings) == {}
    with pytest.raises(PlanNotApprovedError, match="approved by 1 of 2 people"):
        approved_package(home, settings, digest)
    assert approve_plan(home, settings, package, by="B. Board", now=NOW).is_complete
    assert list(approved(home, settings)) == [digest]


def test_a_person_who_stands_in_the_list_twice_is_one_person(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings, digest = site_settings(tmp_path, approvals_needed=2), package.plan.digest()
    approve(home, settings, package, "A. Administrator")
    # As two processes of an older version wrote them at one time.
    AuditLog(home.approvals_file).append(APPROVE, plan=digest, name="a tiny plan", by="a. ADMINISTRATOR")
    assert all_approvals(home, settings)[digest].by == ("A. Administrator",)
    assert approved(home, settings) == {}
    with pytest.raises(PlanNotApprovedError, match="approved by 1 of 2 people"):
        approved_package(home, settings, digest)


def test_of_approvals_of_one_person_at_one_time_one_is_written(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, meeting = site_settings(tmp_path, approvals_needed=2), Barrier(2)

    def meet(*_: Any) -> None:
        # Who is between the look and the line waits for another one there, who must not come.
        with suppress(BrokenBarrierError):
            meeting.wait(timeout=0.5)

    monkeypatch.setattr("client.approvals.write_package", meet)

    def ask(_: int) -> bool:
        try:
            approve_plan(home, settings, package, by="A. Administrator", now=NOW)
        except ApprovedAlreadyError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, range(2))) == [False, True]
    assert verify(home.approvals_file).n == 1


def test_a_plan_that_one_person_approved_waits_where_two_are_needed_later(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    approve(home, site_settings(tmp_path), package)
    assert approved(home, site_settings(tmp_path, approvals_needed=2)) == {}


def test_a_withdrawn_approval_counts_no_more_and_all_have_to_approve_anew(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings = site_settings(tmp_path, approvals_needed=2)
    digest = approve(home, settings, package, "A", "B")
    withdraw_approval(home, settings, digest, by="B", now=NOW, reason="the board asked for it")
    assert all_approvals(home, settings) == {}
    with pytest.raises(PlanNotApprovedError):
        withdraw_approval(home, settings, digest, by="B", now=NOW)
    assert not approve_plan(home, settings, package, by="A", now=NOW).is_complete
    assert approve_plan(home, settings, package, by="B", now=NOW).is_complete


def refusal_of(home: ConsortiumHome, package: PlanPackage, **settings: Any) -> FederationError:
    own = site_settings(home.root.parent.parent, **settings)
    with pytest.raises(FederationError) as caught:
        approve_plan(home, own, package, by="A", now=NOW)
    assert not home.approvals_file.exists()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_plan_of_another_consortium_is_refused(home: ConsortiumHome, package: PlanPackage) -> None:
    other = replace(package, plan=replace(package.plan, consortium="another"))
    found = refusal_of(home, other)
    assert isinstance(found, OtherConsortiumError)
    assert str(found) == "consortium: expected a plan of trial, got one of another"


def test_a_plan_without_this_site_is_refused(home: ConsortiumHome, package: PlanPackage) -> None:
    found = refusal_of(home, package, site="site-z")
    assert isinstance(found, PlanNotForSiteError)
    assert str(found) == "the plan is not for this site: site-z is not among its sites"


def test_an_expired_plan_is_refused_from_the_day_after_its_last(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    last = replace(package, plan=replace(package.plan, expires=NOW.date().isoformat()))
    assert objections(home, site_settings(tmp_path), last.plan, today=NOW.date()) == ()
    late = replace(package, plan=replace(package.plan, expires="2026-11-28"))
    found = refusal_of(home, late)
    assert isinstance(found, PlanExpiredError)
    assert str(found) == "the plan expired: its last day was 2026-11-28, today is 2026-11-29"


def test_a_purpose_that_is_not_this_sites_is_refused(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    both = site_settings(tmp_path, purposes=("care", "research"))
    assert objections(home, both, package.plan, today=NOW.date()) == ()
    found = refusal_of(home, package, purposes=("care",))
    assert isinstance(found, PurposeRefusedError)
    assert str(found) == "purpose: expected one of care, got research"


def test_a_track_without_a_base_or_left_out_by_the_settings_is_refused(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    found = refusal_of(home, package, models=ModelSettings())
    assert isinstance(found, TrackRefusedError)
    assert str(found) == "track rare_disease: there is no base model for it here (models.bases)"
    found = refusal_of(home, package, tracks=("tissue_type",))
    assert str(found) == "track rare_disease: this site takes part in tissue_type"


def test_a_plan_with_a_site_that_nobody_approved_here_is_refused(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    (home.root / "approved" / "site-c.json").unlink()
    found = refusal_of(home, package)
    assert isinstance(found, UnapprovedSiteError)
    assert found.site_id == "site-c"


def test_a_plan_that_asks_for_more_than_is_left_is_refused(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    assert objections(home, site_settings(tmp_path, cap=cap(3.0)), package.plan, today=NOW.date()) == ()
    found = refusal_of(home, package, cap=cap(0.01))
    assert isinstance(found, BudgetSpentError)
    assert "it asks for more than is left under this site's cap of epsilon 0.01" in str(found)


def test_a_site_with_a_cap_refuses_a_plan_that_bounds_nothing(home: ConsortiumHome, tmp_path: Path) -> None:
    unbounded = packaged(tiny_plan())
    assert objections(home, site_settings(tmp_path), unbounded.plan, today=NOW.date()) == ()
    assert isinstance(refusal_of(home, unbounded, cap=cap(100.0)), BudgetSpentError)


def test_a_plan_that_promises_more_than_it_holds_is_refused(
    home: ConsortiumHome, package: PlanPackage
) -> None:
    (track,) = package.plan.tracks
    training = replace(track.training, rounds=4000)
    greedy = replace(package.plan, tracks=(replace(track, training=training),))
    found = refusal_of(home, replace(package, plan=greedy))
    assert isinstance(found, SettingsError)
    assert found.key == "plan.privacy.epsilon"


def test_a_package_that_was_exchanged_is_not_the_approved_plan(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings = site_settings(tmp_path)
    digest = approve(home, settings, package)
    other = replace(package, plan=replace(package.plan, seed=7))
    (home.packages / f"{digest}.json").write_text(other.to_json())
    with pytest.raises(DigestMismatchError, match="approved plan"):
        approved_package(home, settings, digest)
    (home.packages / f"{digest}.json").unlink()
    with pytest.raises(BadFileError):
        approved_package(home, settings, digest)


def test_a_list_of_approvals_that_somebody_edited_approves_nothing(
    home: ConsortiumHome, package: PlanPackage, tmp_path: Path
) -> None:
    settings = site_settings(tmp_path)
    approve(home, settings, package)
    edited = home.approvals_file.read_text().replace("A. Administrator", "B. Administrator")
    home.approvals_file.write_text(edited)
    with pytest.raises(AuditBrokenError, match=r"approvals\.jsonl: line 1"):
        approved(home, settings)


def test_a_name_is_one_line(home: ConsortiumHome, package: PlanPackage, tmp_path: Path) -> None:
    for by in ("", "A\nB"):
        with pytest.raises(SettingsError, match="by: expected one line"):
            approve_plan(home, site_settings(tmp_path), package, by=by, now=NOW + timedelta(days=1))


def test_an_administrator_reads_all_that_he_approves(package: PlanPackage) -> None:
    text = "\n".join(describe(package, approved=SITES[:3]))
    digest = package.plan.digest()
    for expected in (
        "plan         a tiny plan",
        "purpose      research",
        "ethics id    none needed",
        "last day     2030-01-01",
        "site         site-c  approved here",
        "site         site-d  NOT approved here",
        "track        rare_disease: a student that reads text alone, all sites",
        "2 answers, 4 rounds",
        "at delta = 1e-05 for each patient (added or removed), teacher and student together",
        "teacher      public: never learns from patients",
        "steps        at most 4 of rare_disease; then this site refuses",
        "not covered  exact counts of right answers",
        f"digest       {digest[:4]} {digest[4:8]} ",
    ):
        assert expected in text
    assert SITE in text


@pytest.mark.parametrize(
    ("calibration", "line"),
    [
        (
            CalibrationPlan(method="rcft", share=0.25, rounds=3),
            "calibration by rcft: 3 rounds after them; 25% of the patients who are not tested are set aside",
        ),
        (
            CalibrationPlan(method="temperature", share=0.1),
            "calibration by temperature: no rounds, one number from pooled counts; 10% of the patients",
        ),
    ],
)
def test_an_administrator_reads_how_a_student_is_calibrated_and_on_whom(
    calibration: CalibrationPlan, line: str
) -> None:
    assert line in "\n".join(describe(packaged(tiny_plan(calibration=calibration))))
    assert "calibration by" not in "\n".join(describe(packaged(tiny_plan())))


def test_a_plan_without_a_bound_says_so() -> None:
    text = "\n".join(describe(packaged(tiny_plan())))
    assert "privacy      No bound on what the student tells about one patient (privacy mode none)." in text
    assert "teacher      none: learns from your patients without any bound" in text
