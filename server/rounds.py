"""A round, from task to next adapter. The file to read first.

``run_round(state, link) -> state`` is the whole protocol of a round, and the same code over every link:
in memory (``simulations.link``), over Flower in one process (``simulations.grid``) and between hospitals
(``server.grid``). A state is a value: a round that fails leaves the caller with the one he had.

Aggregation mode ``clear``: the coordinator could read what each site sends. Masks and noise will stand
between stages 2 and 3 and change neither end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from common.adapter import Adapter, Block
from common.errors import BadMessageError, TooFewSurvivorsError
from common.ids import RoundId, RunId, SiteId
from common.messages import (
    Contribution,
    EvaluateTask,
    Message,
    PrepareTask,
    Ready,
    Refusal,
    Task,
    TrainTask,
    TrainWords,
    size_of,
    train_fixed_point,
)
from common.metrics import WORD_COUNT, MetricCounts
from common.plan import RunPlan, TrackPlan
from common.schedule import rate_factor
from server.aggregate import OptimizerState, SumTopic, SurvivorSum, next_adapter, survivor_mean
from server.cohort import choose_cohort, require_survivors
from server.evaluation import pooled_counts

logger = logging.getLogger(__name__)

NO_ROUND = RoundId(0)


class SiteLink(Protocol):
    """How the coordinator reaches sites."""

    def sites(self) -> tuple[SiteId, ...]:
        """The sites that can be reached now."""
        ...

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Mapping[SiteId, Message]:
        """Send each site its task; return what came back in time.

        A missing key is a dropout: no answer in time, or none that the link could read; it logs which.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What there is to tell about a closed round.

    Attributes:
        round_id: The round.
        block: The block that it trained.
        mode: The plan's aggregation mode.
        survivors: Sites in the sum.
        dropouts: Reason by site, of the sites that were asked and are not in the sum.
        weight_sum: Sum of the survivors' weights.
        patients: Patients that the survivors trained on; ``pairs``, ``steps`` likewise.
        clipped: Coordinates that were cut to the plan's ``max_abs_delta``.
        bytes_up: Bytes of all answers, as ``common.messages`` writes them; ``bytes_down`` of all tasks.
        seconds: Duration of the round at the coordinator.
        mean_delta_norm: L2 norm of the mean delta.
    """

    round_id: RoundId
    block: Block
    mode: str
    survivors: tuple[SiteId, ...]
    dropouts: Mapping[SiteId, str]
    weight_sum: float
    patients: int
    pairs: int
    steps: int
    clipped: int
    bytes_up: int
    bytes_down: int
    seconds: float
    mean_delta_norm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackState:
    """Where the training of one track stands, between two rounds.

    Attributes:
        plan: What the run agrees on.
        run_id: The run.
        track: The track's name.
        round_id: The last closed round, 0 before the first.
        adapter: What the next round trains from.
        optimizer: The server optimizer's moments, by block.
        declined: Reason by site, of the sites that refused to prepare; they are not asked again.
        history: A report of every closed round.
        retried: Attempts at a round that lost too many sites and were made again.
        metrics: Pooled counts of ``adapter``; None until it is evaluated.
    """

    plan: RunPlan
    run_id: RunId
    track: str
    round_id: RoundId = NO_ROUND
    adapter: Adapter
    optimizer: OptimizerState = field(default_factory=dict)
    declined: Mapping[SiteId, str] = field(default_factory=dict)
    history: tuple[RoundReport, ...] = ()
    retried: int = 0
    metrics: MetricCounts | None = None

    def __post_init__(self) -> None:
        planned, spec = self.track_plan.adapter, self.adapter.spec
        expected = f"{planned.mode}, rank {planned.rank}, alpha {planned.alpha}"
        got = f"{spec.mode}, rank {spec.rank}, alpha {spec.alpha}"
        if got != expected:
            raise ValueError(f"Expected an adapter of {expected}, got {got}")

    @property
    def track_plan(self) -> TrackPlan:
        """The plan of this track."""
        return self.plan.track(self.track)


OnState = Callable[[TrackState], None]


def run_track(
    state: TrackState, link: SiteLink, *, on_state: OnState, attempts: int = 1, pause_s: float = 0.0
) -> TrackState:
    """Prepare, train all rounds of the plan that are still to come, evaluate.

    ``on_state`` is handed every state on the way: prepared, after each round, evaluated.

    Raises:
        TooFewSurvivorsError: A round lost too many sites ``attempts`` times in a row.
    """
    state = prepare(state, link)
    on_state(state)
    while state.round_id < state.track_plan.training.rounds:
        state = _try_round(state, link, attempts=attempts, pause_s=pause_s)
        on_state(state)
    state = replace(state, metrics=evaluate(state, link))
    on_state(state)
    return state


def prepare(state: TrackState, link: SiteLink) -> TrackState:
    """Have every site of the plan get ready; the state with those that declined, and why.

    A site that does not answer is asked again by every round: it may come back. One that refuses has
    said that it will not, for example because it has no patients for this track.

    Raises:
        TooFewSurvivorsError: Too many declined for any round to close.
    """
    next_round = RoundId(state.round_id + 1)
    sites = choose_cohort(state.plan, round_id=next_round, reachable=link.sites())
    task = PrepareTask(run_id=state.run_id, track=state.track, plan_digest=state.plan.digest())
    replies = _ask(sites, task, state, link)
    declined: dict[SiteId, str] = {}
    for site in sites:
        reply = replies.get(site)
        if isinstance(reply, Refusal):
            declined[site] = reply.reason
        elif reply != Ready(run_id=state.run_id, track=state.track, site_id=site):
            logger.warning("%s: %s: no word that it is ready; rounds will ask", state.track, site)
    for site, reason in declined.items():
        logger.info("%s: %s declined: %s", state.track, site, reason)
    choose_cohort(state.plan, round_id=next_round, reachable=state.plan.sites, declined=declined)
    return replace(state, declined=declined)


def run_round(state: TrackState, link: SiteLink) -> TrackState:
    """One round; the state after it.

    Guarantee: a round that fails leaves the state unchanged, and the next one starts from it.

    Raises:
        TooFewSurvivorsError: Fewer sites are left than the plan's ``minimum_survivors``.
    """
    started = time.perf_counter()
    plan, round_id = state.plan, RoundId(state.round_id + 1)
    block = state.adapter.spec.active_block(round_id)

    # 1. Cohort: the sites of the plan that can be reached and have not declined.
    cohort = choose_cohort(plan, round_id=round_id, reachable=link.sites(), declined=state.declined)

    # 2. Exchange: the adapter goes out, weighted deltas of the active block come back.
    task = TrainTask(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        plan_digest=plan.digest(),
        adapter=state.adapter,
    )
    replies = _ask(cohort, task, state, link)

    # 3. Sum: one contribution after the other; what does not belong makes its site a dropout.
    length = TrainWords.length(state.adapter.spec.size(block))
    total, dropouts = _sum_replies(cohort, replies, _topic(state, round_id, length))

    # 4. Threshold: with too few sites in it, a sum says too much about each and too little about all.
    require_survivors(plan, round_id=round_id, survivors=len(total.survivors))

    # 5. Mean: the quotient of two sums, weighted deltas by weights.
    mean = survivor_mean(total.words, train_fixed_point(plan))

    # 6. Server optimizer: moves the active block, and its moments only.
    planned = state.track_plan.server_optimizer
    factor = rate_factor(planned.schedule, state.round_id, state.track_plan.training.rounds)
    adapter, optimizer = next_adapter(
        state.adapter,
        block,
        mean.delta,
        plan=replace(planned, learning_rate=planned.learning_rate * factor),
        optimizer=state.optimizer,
    )

    # 7. Close: the round is in the history, and the next one trains the other block if the mode says so.
    report = RoundReport(
        round_id=round_id,
        block=block,
        mode=plan.aggregation.mode,
        survivors=total.survivors,
        dropouts=dropouts,
        weight_sum=mean.weight_sum,
        patients=mean.patients,
        pairs=mean.pairs,
        steps=mean.steps,
        clipped=mean.clipped,
        bytes_up=sum(size_of(reply) for reply in replies.values()),
        bytes_down=size_of(task) * len(cohort),
        seconds=time.perf_counter() - started,
        mean_delta_norm=float(np.linalg.norm(mean.delta)),
    )
    return replace(
        state,
        round_id=round_id,
        adapter=adapter,
        optimizer=optimizer,
        history=(*state.history, report),
        metrics=None,
    )


def evaluate(state: TrackState, link: SiteLink) -> MetricCounts:
    """The sites' counts for the state's adapter, pooled; no site's counts are kept or shown.

    Raises:
        TooFewSurvivorsError: Fewer sites answered than the plan's ``minimum_survivors``.
        BadMessageError: The sum is no sum of counts.
    """
    plan, round_id = state.plan, state.round_id
    cohort = choose_cohort(plan, round_id=round_id, reachable=link.sites(), declined=state.declined)
    task = EvaluateTask(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        plan_digest=plan.digest(),
        adapter=state.adapter,
    )
    replies = _ask(cohort, task, state, link)
    total, _ = _sum_replies(cohort, replies, _topic(state, round_id, WORD_COUNT))
    require_survivors(plan, round_id=round_id, survivors=len(total.survivors))
    return pooled_counts(total.words)


def _try_round(state: TrackState, link: SiteLink, *, attempts: int, pause_s: float) -> TrackState:
    """One round, tried up to ``attempts`` times."""
    for attempt in range(1, attempts):
        try:
            return run_round(state, link)
        except TooFewSurvivorsError as error:
            logger.warning("%s: %s; attempt %d of %d", state.track, error, attempt, attempts)
            state = replace(state, retried=state.retried + 1)
            time.sleep(pause_s)
    return run_round(state, link)


def _ask(
    sites: tuple[SiteId, ...], task: Task, state: TrackState, link: SiteLink
) -> Mapping[SiteId, Message]:
    return link.exchange(dict.fromkeys(sites, task), state.plan.aggregation.timeout_s)


def _topic(state: TrackState, round_id: RoundId, length: int) -> SumTopic:
    return SumTopic(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        adapter_id=state.adapter.digest(),
        length=length,
    )


def _sum_replies(
    cohort: tuple[SiteId, ...], replies: Mapping[SiteId, Message], topic: SumTopic
) -> tuple[SurvivorSum, dict[SiteId, str]]:
    """The sum of the contributions that belong to the topic, and why the other sites are not in it."""
    total = SurvivorSum(topic)
    dropouts: dict[SiteId, str] = {}
    for site in cohort:
        try:
            total.add(site, _contribution(replies.get(site)))
        except BadMessageError as error:
            dropouts[site] = error.reason
            logger.warning("%s: round %d without %s: %s", topic.track, topic.round_id, site, error.reason)
    return total, dropouts


def _contribution(reply: Message | None) -> Contribution:
    """The reply as a contribution; BadMessageError, with the reason of the dropout, if it is none."""
    if reply is None:
        raise BadMessageError("no answer")
    if isinstance(reply, Refusal):
        raise BadMessageError(f"refused: {reply.reason}")
    if not isinstance(reply, Contribution):
        raise BadMessageError(f"expected a contribution, got {type(reply).__name__}")
    return reply
