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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from common.adapter import Adapter, Block
from common.errors import BudgetRefusedError, TooFewSurvivorsError, UnapprovedSiteError, WrongSecretError
from common.ids import RoundId, RunId, SiteId
from common.message_fields import BUDGET_CAUSES
from common.messages import EvaluateTask, PrepareTask, Ready, Refusal, SumTask, TrainTask
from common.metrics import WORD_COUNT, MetricCounts
from common.pki import Identity
from common.plan import RunPlan, TrackPlan
from common.privacy.ledger import Ledger
from common.schedule import rate_factor
from common.secagg.keys import SumContext
from common.train_words import train_fixed_point, train_length
from server.aggregate import OptimizerState, SurvivorMean, next_adapter, private_mean, survivor_mean
from server.budget import charge_round
from server.cohort import choose_cohort
from server.evaluation import pooled_counts
from server.ledger_heads import LedgerHeads
from server.link import SiteLink
from server.session import Identities, KeySetup, Setup
from server.summing import Exchanges, SumOutcome, agree, sum_up

logger = logging.getLogger(__name__)

NO_ROUND = RoundId(0)
# The sum that failed, and the one whose keys were riding on it.
SUMS_OF_A_ROUND = 2


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What there is to tell about a closed round.

    Attributes:
        round_id: The round.
        block: The block that it trained.
        mode: The plan's aggregation mode.
        survivors: Sites in the sum.
        dropouts: Reason by site, of the sum's members that are not in it. A site lost while keys
            were agreed was never a member; the log names it.
        weight_sum: Sum of the survivors' weights; None where the plan adds noise, as are the counts: the
            coordinator is not told.
        patients: Patients that the survivors trained on; ``pairs``, ``steps`` likewise.
        clipped: Coordinates that were cut to the plan's ``max_abs_delta``.
        sum_id: The secure sum that it took.
        exchanges: Messages to all sites and back: two, one more where a site was lost, two more where
            keys had to be agreed first.
        bytes_up: Bytes of all answers, as ``common.wire`` writes them; ``bytes_down`` of all tasks.
        seconds: Duration of the round at the coordinator.
        waiting_s: Of it, what was spent waiting for sites, and for the other tracks' share of an exchange.
        mean_delta_norm: L2 norm of the mean delta.
        noise_std: Standard deviation of the noise in a coordinate of the mean delta; None without noise, or
            where it is made at each site from several steps.
    """

    round_id: RoundId
    block: Block
    mode: str
    survivors: tuple[SiteId, ...]
    dropouts: Mapping[SiteId, str]
    weight_sum: float | None
    patients: int | None
    pairs: int | None
    steps: int | None
    clipped: int | None
    sum_id: int
    exchanges: int
    bytes_up: int
    bytes_down: int
    seconds: float
    waiting_s: float
    mean_delta_norm: float
    noise_std: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackState:
    """Where the training of one track stands, between two rounds.

    Attributes:
        plan: What the run agrees on.
        run_id: The run.
        track: The track's name.
        identities: Public identities of the plan's sites.
        round_id: The last closed round, 0 before the first.
        adapter: What the next round trains from.
        optimizer: The server optimizer's moments, by block.
        declined: Reason by site, of the sites that refused to prepare; they are not asked again.
        unpaid: Those of them that refused for their patients' budget.
        history: A report of every closed round.
        retried: Attempts at a round that lost too many sites and were made again.
        metrics: Pooled counts of ``adapter``; None until it is evaluated.
        sum_id: The last secure sum that was begun; a number is never used again.
        setup: Keys of sum ``sum_id``, agreed while the one before it ran; None if there are none.
        begun: Whether sites were asked for that sum already, before a crash. They answer it as they did
            then, and it counts only if all of its members do.
        signer: The coordinator's own identity, which countersigns the sites' ledgers; needed where the plan
            spends a budget.
        heads: The last head of each site's ledger that was heard of.
    """

    plan: RunPlan
    run_id: RunId
    track: str
    identities: Identities
    round_id: RoundId = NO_ROUND
    adapter: Adapter
    optimizer: OptimizerState = field(default_factory=dict)
    declined: Mapping[SiteId, str] = field(default_factory=dict)
    unpaid: frozenset[SiteId] = frozenset()
    history: tuple[RoundReport, ...] = ()
    retried: int = 0
    metrics: MetricCounts | None = None
    sum_id: int = 0
    setup: Setup | None = None
    begun: bool = False
    signer: Identity | None = None
    heads: Mapping[SiteId, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site in self.plan.sites:
            if site not in self.identities:
                raise UnapprovedSiteError(site)
        if self.signer is None and self.plan.privacy.mode != "none":
            raise ValueError(f"Expected a signer for privacy mode {self.plan.privacy.mode}, got none")
        planned, spec = self.track_plan.adapter, self.adapter.spec
        expected = f"{planned.mode}, rank {planned.rank}, alpha {planned.alpha}"
        got = f"{spec.mode}, rank {spec.rank}, alpha {spec.alpha}"
        if got != expected:
            raise ValueError(f"Expected an adapter of {expected}, got {got}")

    @property
    def track_plan(self) -> TrackPlan:
        """The plan of this track."""
        return self.plan.track(self.track)

    def after_failure(self) -> TrackState:
        """The state to try again from: the same, with numbers for sums that no site has seen."""
        sum_id = self.sum_id + SUMS_OF_A_ROUND
        return replace(self, retried=self.retried + 1, sum_id=sum_id, setup=None, begun=False)


OnState = Callable[[TrackState], None]
OnBegin = Callable[[TrackState, int], None]
Step = Callable[[TrackState], TrackState]
"""A round, or the evaluation."""


def no_journal(state: TrackState, sum_id: int) -> None:
    """For a run that need not outlive its process."""


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
    """Prepare, train all rounds of the plan that are still to come, evaluate; nothing if that is done.

    Args:
        state: Where to begin.
        link: To the sites.
        on_state: Handed every state on the way: prepared, after each round, evaluated.
        on_begin: Handed the state and the number of a sum before any site is asked for it.
        attempts: How often a round, or the evaluation, is tried.
        pause_s: Seconds between two attempts.
        pause: What waits for them.
        ledger: The coordinator's own, for plans that spend a privacy budget.

    Raises:
        TooFewSurvivorsError: A round lost too many sites ``attempts`` times in a row.
        BudgetRefusedError: Sites refuse for their patients' budget.
        BudgetSpentError: The plan pays for no further step.
    """
    rounds = state.track_plan.training.rounds
    if state.round_id >= rounds and state.metrics is not None:
        return state
    state = prepare(state, link)
    # Before it may end here: who declined, and why, is what its administrator has to know.
    on_state(state)
    require_willing(state)

    def train(before: TrackState) -> TrackState:
        return run_round(before, link, ledger, on_begin)

    def rate(before: TrackState) -> TrackState:
        return evaluate(before, link, on_begin)

    while state.round_id < rounds:
        state = _tried(train, state, attempts=attempts, pause=lambda: pause(pause_s))
        on_state(state)
    state = _tried(rate, state, attempts=attempts, pause=lambda: pause(pause_s))
    on_state(state)
    return state


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
    setup = _setup(state, cohort, round_id, exchanges, on_begin)

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
        bin_accuracy=None,
    )
    length = train_length(plan, state.adapter.spec.size(block))
    heads = _ledger_heads(state)
    outcome = _sum(state, setup, task, length, cohort, exchanges, more=True, heads=heads)

    # 5. Mean: the quotient of two sums, weighted deltas by weights; with noise, by a constant of the plan.
    mean = _mean(state, outcome)

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
        metrics=None,
        sum_id=task.sum_id + 1,
        setup=outcome.next_setup,
        begun=False,
        heads=heads.known if heads else {},
    )


def evaluate(state: TrackState, link: SiteLink, on_begin: OnBegin = no_journal) -> TrackState:
    """The state with the sites' counts for its adapter, summed like deltas; no site's counts are seen.

    ``on_begin`` as in ``run_track``.

    Raises:
        TooFewSurvivorsError: Fewer sites answered than the plan or the share threshold wants.
        BadMessageError: The sum is no sum of counts.
        WrongSecretError: As in ``run_round``.
    """
    plan, round_id = state.plan, state.round_id
    cohort = choose_cohort(
        plan, state.track_plan, round_id=round_id, reachable=link.sites(), declined=state.declined
    )
    exchanges = Exchanges(link, plan.aggregation.timeout_s)
    setup = _setup(state, cohort, round_id, exchanges, on_begin)
    task = EvaluateTask(
        run_id=state.run_id,
        round_id=round_id,
        track=state.track,
        plan_digest=plan.digest(),
        adapter=state.adapter,
        sum_id=setup.roster.context.sum_id,
        members=setup.members,
        envelopes={},
        part="test",
        temperature=1.0,
    )
    heads = _ledger_heads(state)
    outcome = _sum(state, setup, task, WORD_COUNT, cohort, exchanges, more=False, heads=heads)
    return replace(
        state,
        metrics=pooled_counts(outcome.words),
        sum_id=task.sum_id,
        setup=None,
        begun=False,
        heads=heads.known if heads else {},
    )


def _setup(
    state: TrackState, cohort: tuple[SiteId, ...], round_id: RoundId, exchanges: Exchanges, on_begin: OnBegin
) -> Setup:
    """The keys of the next sum: those that are agreed, while enough of their sites can be reached."""
    kept = _kept_setup(state, cohort)
    sum_id = kept.roster.context.sum_id if kept else state.sum_id + 1
    # Before anybody is asked: a number that a site may have seen must be known after a crash.
    on_begin(state, sum_id)
    return kept or agree(_keys_of(state, sum_id, round_id), cohort, exchanges)


def _kept_setup(state: TrackState, cohort: tuple[SiteId, ...]) -> Setup | None:
    if state.setup is None:
        return None
    roster, present = state.setup.roster, set(state.setup.members) & set(cohort)
    enough = len(present) >= state.plan.least_survivors(len(roster.sites), roster.threshold)
    return state.setup if enough else None


def _sum(
    state: TrackState,
    setup: Setup,
    task: SumTask,
    length: int,
    cohort: tuple[SiteId, ...],
    exchanges: Exchanges,
    *,
    more: bool,
    heads: LedgerHeads | None,
) -> SumOutcome:
    next_round = RoundId(state.round_id + 1)
    return sum_up(
        setup,
        task,
        plan=state.plan,
        identities=state.identities,
        adapter_id=state.adapter.digest(),
        length=length,
        reachable=cohort,
        coming=_keys_of(state, task.sum_id + 1, next_round) if more else None,
        exchanges=exchanges,
        heads=heads,
        # Sites that closed the sum before the crash are lost to it, and not to a new one.
        whole=state.begun and setup is state.setup,
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


def _ledger_heads(state: TrackState) -> LedgerHeads | None:
    if state.signer is None or state.plan.privacy.mode == "none":
        return None
    return LedgerHeads(
        run_id=state.run_id,
        track=state.track,
        consortium=state.plan.consortium,
        signer=state.signer,
        identities=state.identities,
        known=state.heads,
    )


def _keys_of(state: TrackState, sum_id: int, round_id: RoundId) -> KeySetup:
    context = SumContext(
        run_id=state.run_id, track=state.track, sum_id=sum_id, plan_digest=state.plan.digest()
    )
    return KeySetup(context, plan=state.plan, identities=state.identities, round_id=round_id)


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
