"""Which sites take part in a round: all of the track that can be reached and have not declined."""

from __future__ import annotations

from collections.abc import Collection

from common.errors import TooFewSurvivorsError
from common.ids import RoundId, SiteId
from common.plan import RunPlan, TrackPlan


def choose_cohort(
    plan: RunPlan,
    track: TrackPlan,
    *,
    round_id: RoundId,
    reachable: Collection[SiteId],
    declined: Collection[SiteId] = (),
) -> tuple[SiteId, ...]:
    """The sites to ask, in the order of their names.

    Guarantee: a reachable site that is not in the track is never asked: a run goes to the sites that agreed
    to it, and each track to those that have patients for it.

    Raises:
        TooFewSurvivorsError: Too few to close the round, even if all of them answer.
    """
    cohort = tuple(sorted((set(plan.sites_of(track)) & set(reachable)) - set(declined)))
    require_survivors(plan, round_id=round_id, survivors=len(cohort))
    return cohort


def require_survivors(plan: RunPlan, *, round_id: RoundId, survivors: int) -> None:
    """TooFewSurvivorsError if the plan wants more sites than these."""
    threshold = plan.aggregation.minimum_survivors
    if survivors < threshold:
        raise TooFewSurvivorsError(round_id, survivors, threshold)
