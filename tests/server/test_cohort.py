from dataclasses import replace

import pytest

from common.errors import TooFewSurvivorsError
from common.ids import RoundId, SiteId
from server.cohort import choose_cohort, require_survivors
from tests.fakes import SITES, tiny_plan

PLAN = tiny_plan()


def test_all_reachable_sites_of_the_plan_are_asked_by_name() -> None:
    reachable = (SiteId("stranger"), *reversed(SITES))
    assert choose_cohort(PLAN, PLAN.tracks[0], round_id=RoundId(1), reachable=reachable) == SITES


def test_a_site_that_declined_is_not_asked() -> None:
    cohort = choose_cohort(
        PLAN, PLAN.tracks[0], round_id=RoundId(1), reachable=SITES, declined={SITES[1]: "no"}
    )
    assert cohort == (SITES[0], SITES[2], SITES[3])


def test_fewer_than_the_plans_minimum_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(TooFewSurvivorsError, match="Round 4: 2 sites survived, 3 needed"):
        choose_cohort(PLAN, PLAN.tracks[0], round_id=RoundId(4), reachable=(*SITES[:2], SiteId("stranger")))


def test_the_minimum_itself_is_enough() -> None:
    require_survivors(tiny_plan(), round_id=RoundId(1), survivors=3)


def test_only_sites_of_the_track_are_asked() -> None:
    first, second = tiny_plan(tracks=("rare_disease", "tissue_type")).tracks
    plan = replace(tiny_plan(), tracks=(replace(first, sites=SITES[:3]), replace(second, sites=SITES[1:])))
    for track in plan.tracks:
        cohort = choose_cohort(plan, track, round_id=RoundId(1), reachable=(*SITES, SiteId("stranger")))
        assert cohort == track.sites
    with pytest.raises(TooFewSurvivorsError):
        choose_cohort(plan, plan.tracks[0], round_id=RoundId(1), reachable=SITES[1:])
