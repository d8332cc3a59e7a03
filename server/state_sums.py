"""One secure sum of a track: the keys that its state holds or that are agreed now, and the sum.

What rounds (``server.rounds``), evaluations and measurements (``server.calibrating``) have in common.
"""

from __future__ import annotations

from common.ids import RoundId, SiteId
from common.messages import SumTask
from common.secagg.keys import SumContext
from server.ledger_heads import LedgerHeads
from server.session import KeySetup, Setup
from server.summing import Exchanges, SumOutcome, agree, sum_up
from server.track_state import OnBegin, TrackState


def agreed_setup(
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


def sum_of(
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
    """The sum of the answers to ``task``, ``length`` words; where there are ``more`` sums to come, keys of
    the next one are agreed on the way."""
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


def ledger_heads(state: TrackState) -> LedgerHeads | None:
    """What the sites' ledgers are asked by; None where the plan spends no budget."""
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
