"""Counts of a track's adapter on cases of all sites: the measurements of its calibration, the evaluation.

Calibration follows training (``common.calibration_plan``). A *measurement* is a secure sum of counts on the
patients who are set aside: the E-step of ``rcft``, whose bins the next rounds pull confidences to, and what
the method ``temperature`` takes its one number from. The evaluation is the same sum on the test patients, at
that temperature. All of it is exact: the sites' counts add up to those of all their cases in one place.
"""

from __future__ import annotations

from dataclasses import replace

from common.calibration import ReliabilityBins
from common.evaluation_counts import WORD_COUNT, EvaluationCounts
from common.ids import RoundId
from common.learning_plan import ServerOptimizerPlan
from common.message_fields import Part
from common.messages import EvaluateTask
from common.schedule import rate_factor
from server.cohort import choose_cohort
from server.evaluation import pooled_counts
from server.link import SiteLink
from server.state_sums import agreed_setup, ledger_heads, sum_of
from server.summing import Exchanges
from server.track_state import OnBegin, TrackState, no_journal


def calibration_round(state: TrackState) -> int:
    """Which round of calibration comes next, from 1; 0 or less while training lasts."""
    return state.round_id + 1 - state.track_plan.training.rounds


def measurement_is_due(state: TrackState) -> bool:
    """Whether the next step is a measurement of the patients set aside."""
    plan = state.track_plan.calibration
    if plan is None or state.measured is not None or state.round_id < state.track_plan.training.rounds:
        return False
    return plan.method == "temperature" or (
        plan.method == "rcft" and state.round_id < state.track_plan.all_rounds
    )


def measured_after_round(state: TrackState) -> EvaluationCounts | None:
    """What is still held of the last measurement once the round after ``state`` is closed."""
    plan, following = state.track_plan.calibration, calibration_round(state) + 1
    return None if plan is None or plan.refreshes(following) else state.measured


def planned_optimizer(state: TrackState) -> ServerOptimizerPlan:
    """The server optimizer of the next round, with the rate that it has there."""
    planned, calibration = state.track_plan.server_optimizer, state.track_plan.calibration
    if calibration is not None and calibration_round(state) >= 1:
        return replace(planned, learning_rate=calibration.learning_rate)
    factor = rate_factor(planned.schedule, state.round_id, state.track_plan.training.rounds)
    return replace(planned, learning_rate=planned.learning_rate * factor)


def bin_accuracy(bins: ReliabilityBins) -> tuple[float | None, ...]:
    """How often the first answer was right, by bin; None for an empty one, to which nobody is pulled."""
    return tuple(right / n if n else None for right, n in zip(bins.correct, bins.n, strict=True))


def task_accuracies(state: TrackState) -> tuple[float | None, ...] | None:
    """What the next round's task says of the bins; None unless it is one of rcft."""
    plan = state.track_plan.calibration
    if plan is None or plan.method != "rcft" or calibration_round(state) < 1:
        return None
    if state.measured is None:
        raise ValueError(f"Expected a measurement before round {state.round_id + 1}, got none")
    return bin_accuracy(state.measured.bins)


def measure(state: TrackState, link: SiteLink, on_begin: OnBegin = no_journal) -> TrackState:
    """The state with the sites' counts for its adapter on the patients set aside. Raises as ``evaluate``."""
    counts, after = _counted(state, link, on_begin, part="calibration", more=True)
    return replace(after, measured=counts)


def evaluate(state: TrackState, link: SiteLink, on_begin: OnBegin = no_journal) -> TrackState:
    """The state with the sites' counts for its adapter on test patients, at the state's temperature.

    They are summed like deltas; no site's counts are seen. ``on_begin`` as in ``server.rounds.run_track``.

    Raises:
        TooFewSurvivorsError: Fewer sites answered than the plan or the share threshold wants.
        BadMessageError: The sum is no sum of counts.
        WrongSecretError: As in ``server.rounds.run_round``.
    """
    counts, after = _counted(state, link, on_begin, part="test", more=False)
    return replace(after, evaluation=counts)


def _counted(
    state: TrackState, link: SiteLink, on_begin: OnBegin, *, part: Part, more: bool
) -> tuple[EvaluationCounts, TrackState]:
    """Counts of one part of the patients, and the state after their sum."""
    plan, round_id = state.plan, RoundId(state.round_id)
    cohort = choose_cohort(
        plan, state.track_plan, round_id=round_id, reachable=link.sites(), declined=state.declined
    )
    exchanges = Exchanges(link, plan.aggregation.timeout_s)
    setup = agreed_setup(state, cohort, round_id, exchanges, on_begin)
    task = EvaluateTask(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        plan_digest=plan.digest(),
        adapter=state.adapter,
        sum_id=setup.roster.context.sum_id,
        members=setup.members,
        envelopes={},
        part=part,
        temperature=state.temperature if part == "test" else 1.0,
    )
    heads = ledger_heads(state)
    outcome = sum_of(state, setup, task, WORD_COUNT, cohort, exchanges, more=more, heads=heads)
    after = replace(
        state,
        sum_id=task.sum_id + 1 if more else task.sum_id,
        setup=outcome.next_setup if more else None,
        begun=False,
        heads=heads.known if heads else {},
    )
    return pooled_counts(outcome.words), after
