"""Tests of plans that are offered."""

from datetime import date
from pathlib import Path

import pytest

from common.adapter import load_adapter, save_adapter
from common.errors import BadFileError, DigestMismatchError, PlanRefusedError, SiteRevokedError
from common.pki import Identity, write_public
from server.home import CoordinatorHome
from server.offers import check_plan, find_offered, offer, offered
from server.site_records import revoke
from tests.fakes import SITES, TRACK, tiny_adapter
from tests.server.homes import enrolled, made_home, packaged

TODAY = date(2026, 11, 29)


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    made = made_home(tmp_path / "home")
    enrolled(made, *SITES)
    return made


@pytest.fixture
def start(tmp_path: Path) -> Path:
    save_adapter(tiny_adapter(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def test_a_plan_is_offered_with_the_adapters_that_it_names(home: CoordinatorHome, start: Path) -> None:
    package = packaged()
    assert check_plan(home, home.settings(), package.plan, TODAY).epsilon is None
    digest = package.plan.digest()
    assert offer(home, package, {TRACK: start}) == home.packages / f"{digest}.json"
    assert load_adapter(home.adapters(digest) / f"{TRACK}.safetensors") == tiny_adapter()
    assert offered(home) == (package,)
    assert find_offered(home, digest[:8].upper()) == package


def test_a_plan_of_another_consortium_is_refused(home: CoordinatorHome) -> None:
    with pytest.raises(PlanRefusedError, match="expected a plan of the consortium trial, got one of other"):
        check_plan(home, home.settings(), packaged(consortium="other").plan, TODAY)


def test_a_plan_past_its_last_day_is_refused(home: CoordinatorHome) -> None:
    plan = packaged(expires="2026-11-29").plan
    check_plan(home, home.settings(), plan, TODAY)
    with pytest.raises(PlanRefusedError, match="got the last day 2026-11-29"):
        check_plan(home, home.settings(), plan, date(2026, 11, 30))


def test_a_plan_with_a_site_that_does_not_take_part_is_refused(home: CoordinatorHome, tmp_path: Path) -> None:
    revoke(home, SITES[1])
    with pytest.raises(SiteRevokedError, match=SITES[1]):
        check_plan(home, home.settings(), packaged().plan, TODAY)
    other = made_home(tmp_path / "other")
    enrolled(other, *SITES[:3])
    with pytest.raises(PlanRefusedError, match=f"{SITES[3]} has not enrolled"):
        check_plan(other, other.settings(), packaged().plan, TODAY)


def test_an_identity_that_was_swapped_is_refused(home: CoordinatorHome) -> None:
    write_public(Identity.generate(SITES[0]).public(), home.identities)
    with pytest.raises(PlanRefusedError, match=f"{SITES[0]}: its identity is not the one"):
        check_plan(home, home.settings(), packaged().plan, TODAY)


def test_other_adapters_than_the_plans_are_refused(
    home: CoordinatorHome, start: Path, tmp_path: Path
) -> None:
    for adapters in ({}, {"tissue_type": start}, {TRACK: start, "tissue_type": start}):
        with pytest.raises(PlanRefusedError, match="expected an initial adapter for rare_disease"):
            offer(home, packaged(), adapters)
    save_adapter(tiny_adapter(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(DigestMismatchError):
        offer(home, packaged(), {TRACK: tmp_path / "other.safetensors"})
    (tmp_path / "none.safetensors").write_text("no adapter")
    with pytest.raises(BadFileError):
        offer(home, packaged(), {TRACK: tmp_path / "none.safetensors"})
    assert offered(home) == ()


def test_a_prefix_names_one_plan(home: CoordinatorHome, start: Path) -> None:
    with pytest.raises(PlanRefusedError, match="no plan that is offered begins so; there are: none"):
        find_offered(home, "ab")
    for seed in range(2):
        offer(home, packaged(seed=seed), {TRACK: start})
    with pytest.raises(PlanRefusedError, match="several plans begin so"):
        find_offered(home, "")


def test_a_package_under_another_plans_name_is_refused(home: CoordinatorHome, start: Path) -> None:
    path = offer(home, packaged(), {TRACK: start})
    path.rename(path.with_name(f"{'0' * 64}.json"))
    with pytest.raises(DigestMismatchError):
        find_offered(home, "0")
