"""A round, from task to next adapter. The file to read first.

``run_round(state, link) -> state`` is the whole protocol of a round, and the same code over every link:
in memory (``simulations.link``), over Flower in one process (``simulations.grid``) and between hospitals
(``server.grid``). A state is a value: a round that fails leaves the caller with the one he had.

Aggregation mode ``secagg-v1``: what a site sends is masked, and the coordinator learns the sum of all that
came (``common/secagg/README.md``). Where the plan's privacy mode adds noise, the sum carries it already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.errors import BudgetRefusedError, TooFewSurvivorsError, WrongSecretError
from common.ids import RoundId, SiteId
from common.message_fields import BUDGET_CAUSES
from common.messages import PrepareTask, Ready, Refusal, TrainTask
from common.privacy.ledger import Ledger
from common.train_words import train_fixed_point, train_length
from server.aggregate import SurvivorMean, next_adapter, private_mean, survivor_mean
from server.budget import charge_round
from server.calibrating import (
    calibration_round,
    evaluate,
    measure,
    measured_after_round,
    measurement_is_due,
    planned_optimizer,
    task_accuracies,
)
from server.cohort import choose_cohort
from server.link import SiteLink
from server.state_sums import agreed_setup, ledger_heads, sum_of
from server.summing import Exchanges, SumOutcome
from server.track_state import OnBegin, OnState, RoundReport, TrackState, no_journal

__all__ = [
    "OnState",
    "RoundReport",
    "TrackState",
    "evaluate",
    "no_journal",
    "prepare",
    "require_willing",
    "run_round",
    "run_track",
]

logger = logging.getLogger(__name__)

Step = Callable[[TrackState], TrackState]
"""A round, a measurement, or the evaluation."""


def run_track(
    state: TrackState,
    link: SiteLink,
    *,
    on_state: OnState,
    on_begin: OnBegin = no_journal,
    attempts: int = 1,
    pause_s: float = 0.0,
    pause: Callable[[float], None] = time.sleep,
    ledger: Ledger | None = None,
) -> TrackState:
    """Prepare, train and calibrate for the rounds that are still to come, evaluate; nothing if that is done.

    Args:
        state: Where to begin.
        link: To the sites.
        on_state: Handed every state on the way: prepared, after each round and measurement, evaluated.
        on_begin: Handed the state and the number of a sum before any site is asked for it.
        attempts: How often a round, a measurement, or the evaluation is tried.
        pause_s: Seconds between two attempts.
        pause: What waits for them.
        ledger: The coordinator's own, for plans that spend a privacy budget.

    Raises:
        TooFewSurvivorsError: A round lost too many sites ``attempts`` times in a row.
        BudgetRefusedError: Sites refuse for their patients' budget.
        BudgetSpentError: The plan pays for no further step.
    """
    if _is_done(state):
        return state
    state = prepare(state, link)
    # Before it may end here: who declined, and why, is what its administrator has to know.
    on_state(state)
    require_willing(state)

    def do(before: TrackState) -> TrackState:
        if measurement_is_due(before):
            return measure(before, link, on_begin)
        if before.round_id < before.track_plan.all_rounds:
            return run_round(before, link, ledger, on_begin)
        return evaluate(before, link, on_begin)

    while not _is_done(state):
        state = _tried(do, state, attempts=attempts, pause=lambda: pause(pause_s))
        on_state(state)
    return state


def _is_done(state: TrackState) -> bool:
    return state.round_id >= state.track_plan.all_rounds and state.evaluation is not None


def prepare(state: TrackState, link: SiteLink) -> TrackState:
    """Have every site of the plan get ready; the state with those that declined, and why.

    A site that does not answer is asked again by every round: it may come back. One that refuses has
    said that it will not, for example because it has no patients for this track.

    Raises:
        TooFewSurvivorsError: Too few can be reached for any round to close.
    """
    next_round = RoundId(state.round_id + 1)
    sites = choose_cohort(state.plan, state.track_plan, round_id=next_round, reachable=link.sites())
    task = PrepareTask(run_id=state.run_id, track=state.track, plan_digest=state.plan.digest())
    replies = dict(link.exchange(dict.fromkeys(sites, task), state.plan.aggregation.timeout_s))
    declined: dict[SiteId, str] = {}
    unpaid: set[SiteId] = set()
    for site in sites:
        reply = replies.get(site)
        if isinstance(reply, Refusal) and reply.cause != "away":
            declined[site] = reply.reason
            unpaid |= {site} if reply.cause in BUDGET_CAUSES else set()
        elif reply != Ready(run_id=state.run_id, track=state.track, site_id=site):
            logger.warning("%s: %s: no word that it is ready; rounds will ask", state.track, site)
    for site, reason in declined.items():
        logger.info("%s: %s declined: %s", state.track, site, reason)
    return replace(state, declined=declined, unpaid=frozenset(unpaid))


def require_willing(state: TrackState) -> None:
    """Refuse to begin where too few sites have not declined.

    Raises:
        TooFewSurvivorsError: Too many declined for any round to close.
        BudgetRefusedError: The same, and some of them for their patients' budget.
    """
    next_round, everybody = RoundId(state.round_id + 1), state.plan.sites_of(state.track_plan)
    try:
        choose_cohort(
            state.plan, state.track_plan, round_id=next_round, reachable=everybody, declined=state.declined
        )
    except TooFewSurvivorsError as error:
        spent = {str(site): state.declined[site] for site in sorted(state.unpaid)}
        raise (BudgetRefusedError(next_round, spent) if spent else error) from error


def run_round(
    state: TrackState, link: SiteLink, ledger: Ledger | None = None, on_begin: OnBegin = no_journal
) -> TrackState:
    """One round; the state after it. ``on_begin`` as in ``run_track``.

    Guarantee: a round that fails leaves the state unchanged, and the next one starts clean, from
    ``state.after_failure()``. From the state itself the same secure sum goes on, as far as its sites have
    not answered otherwise yet.

    Raises:
        TooFewSurvivorsError: Fewer sites are left than the plan or the share threshold wants.
        WrongSecretError: Sites gave shares that do not fit what they committed to.
        BudgetRefusedError: Sites refuse for their patients' budget, and too few are left without them.
        BudgetSpentError: The plan pays for no further step.
    """
    started = time.perf_counter()
    plan, round_id = state.plan, RoundId(state.round_id + 1)
    block = state.adapter.spec.active_block(round_id)

    # 1. Cohort: the sites of the plan that can be reached and have not declined.
    cohort = choose_cohort(
        plan, state.track_plan, round_id=round_id, reachable=link.sites(), declined=state.declined
    )

    # 2. Keys: those that rode on the last round, or new ones.
    exchanges = Exchanges(link, plan.aggregation.timeout_s)
    setup = agreed_setup(state, cohort, round_id, exchanges, on_begin)

    # 3. Budget: the round is in the ledger before anybody is asked.
    if ledger is not None:
        charge_round(
            ledger,
            plan,
            track=state.track,
            run_id=state.run_id,
            round_id=round_id,
            sum_id=setup.roster.context.sum_id,
            roster_digest=setup.roster.digest().hex(),
        )

    # 4. Secure sum: the adapter goes out, the sum of weighted deltas of the active block comes back, with
    #    enough sites in it or not at all.
    task = TrainTask(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        plan_digest=plan.digest(),
        adapter=state.adapter,
        sum_id=setup.roster.context.sum_id,
        members=setup.members,
        envelopes={},
        bin_accuracy=task_accuracies(state),
    )
    length = train_length(plan, state.adapter.spec.size(block))
    heads = ledger_heads(state)
    outcome = sum_of(state, setup, task, length, cohort, exchanges, more=True, heads=heads)

    # 5. Mean: the quotient of two sums, weighted deltas by weights; with noise, by a constant of the plan.
    mean = _mean(state, outcome)

    # 6. Server optimizer: moves the active block, and its moments only. Calibration begins with new ones:
    #    those of training point where training was going.
    adapter, optimizer = next_adapter(
        state.adapter,
        block,
        mean.delta,
        plan=planned_optimizer(state),
        optimizer={} if calibration_round(state) == 1 else state.optimizer,
    )

    # 7. Close: the round is in the history, and the next one trains the other block if the mode says so.
    report = RoundReport(
        round_id=round_id,
        block=block,
        mode=plan.aggregation.mode,
        survivors=outcome.survivors,
        dropouts=outcome.dropouts,
        weight_sum=mean.weight_sum,
        patients=mean.patients,
        pairs=mean.pairs,
        steps=mean.steps,
        clipped=mean.clipped,
        noise_std=_noise_std(state, len(setup.members), len(outcome.survivors)),
        sum_id=task.sum_id,
        exchanges=exchanges.count,
        bytes_up=exchanges.bytes_up,
        bytes_down=exchanges.bytes_down,
        seconds=time.perf_counter() - started,
        waiting_s=exchanges.waiting_s,
        mean_delta_norm=float(np.linalg.norm(mean.delta)),
    )
    return replace(
        state,
        round_id=round_id,
        adapter=adapter,
        optimizer=optimizer,
        history=(*state.history, report),
        measured=measured_after_round(state),
        evaluation=None,
        sum_id=task.sum_id + 1,
        setup=outcome.next_setup,
        begun=False,
        heads=heads.known if heads else {},
    )


def _mean(state: TrackState, outcome: SumOutcome) -> SurvivorMean:
    if state.plan.privacy.mode == "none":
        return survivor_mean(outcome.words, train_fixed_point(state.plan))
    return private_mean(outcome.words, state.plan, state.track_plan, len(outcome.survivors))


def _noise_std(state: TrackState, members: int, survivors: int) -> float | None:
    """Of the mean delta: every member added a share, and the survivors' shares are in the sum."""
    privacy = state.track_plan.privacy
    if privacy is None or state.plan.privacy.mode == "local":
        return None
    enough = members - state.plan.privacy.absent
    return state.plan.mechanism(state.track_plan).noise_std(survivors, enough) / privacy.divisor


def _tried(step: Step, state: TrackState, *, attempts: int, pause: Callable[[], None]) -> TrackState:
    """The state after ``step``, which is tried up to ``attempts`` times.

    A sum that a crash interrupted is tried once more than others, and without a pause.
    """
    if state.begun:
        try:
            return step(state)
        except (TooFewSurvivorsError, WrongSecretError, BudgetRefusedError) as error:
            logger.info("%s: %s; what was begun before the crash begins anew", state.track, error)
            state = state.after_failure()
    for attempt in range(1, attempts):
        try:
            return step(state)
        except (TooFewSurvivorsError, WrongSecretError) as error:
            logger.warning("%s: %s; attempt %d of %d", state.track, error, attempt, attempts)
            state = state.after_failure()
            pause()
    return step(state)
