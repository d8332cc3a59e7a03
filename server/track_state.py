"""Where a track of a run stands: a value that each step takes and gives back changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from common.adapter import Adapter, Block
from common.calibration import ReliabilityBins
from common.errors import UnapprovedSiteError
from common.evaluation_counts import EvaluationCounts
from common.ids import RoundId, RunId, SiteId
from common.metrics import MetricCounts
from common.pki import Identity
from common.plan import RunPlan, TrackPlan
from server.aggregate import OptimizerState
from server.session import Identities, Setup

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
        measured: Pooled counts of the last measurement of the patients set aside for calibration; None where
            none is held, so that where the plan asks for one it comes next.
        evaluation: Pooled counts of ``adapter`` on test patients; None until it is evaluated.
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
    measured: EvaluationCounts | None = None
    evaluation: EvaluationCounts | None = None
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

    @property
    def metrics(self) -> MetricCounts | None:
        """Right and wrong answers of the evaluation."""
        return self.evaluation.metrics if self.evaluation else None

    @property
    def bins(self) -> ReliabilityBins | None:
        """Reliability of the last measurement."""
        return self.measured.bins if self.measured else None

    @property
    def temperature(self) -> float:
        """What the student's scores are divided by; 1 without the calibration ``temperature``."""
        plan = self.track_plan.calibration
        if plan is None or plan.method != "temperature" or self.measured is None:
            return 1.0
        return self.measured.temperatures.best()

    def after_failure(self) -> TrackState:
        """The state to try again from: the same, with numbers for sums that no site has seen."""
        sum_id = self.sum_id + SUMS_OF_A_ROUND
        return replace(self, retried=self.retried + 1, sum_id=sum_id, setup=None, begun=False)


OnState = Callable[[TrackState], None]
OnBegin = Callable[[TrackState, int], None]


def no_journal(state: TrackState, sum_id: int) -> None:
    """For a run that need not outlive its process."""
