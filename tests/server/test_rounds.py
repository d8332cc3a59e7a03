from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import server
from common.adapter import (
    Adapter,
    AdapterMode,
    AdapterSpec,
    Block,
    ModuleShape,
    flatten,
    initial_adapter,
)
from common.errors import (
    BadMessageError,
    TooFewSurvivorsError,
    UnapprovedSiteError,
    WrongSecretError,
)
from common.ids import RoundId, SiteId
from common.messages import (
    Bundle,
    EvaluateTask,
    KeysRequest,
    ListRequest,
    MaskedInput,
    Message,
    PrepareTask,
    RosterOffer,
    TrainTask,
    UnmaskRequest,
    UnmaskShares,
    bundle,
    refusal,
)
from common.metrics import MetricCounts
from common.secagg.keys import SumContext
from common.secagg.statements import unmask_shares_statement
from common.train_words import TrainWords, train_fixed_point
from common.wire import to_bytes
from server.rounds import TrackState, evaluate, prepare, require_willing, run_round, run_track
from simulations.link import PREPARATION, Fault, Handler, MemoryLink
from tests.fakes import (
    COUNTS,
    SITES,
    FakeWork,
    fake_identities,
    fake_sites,
    fake_works,
    tiny_adapter,
    tiny_plan,
    tiny_state,
)

A, B, C, D = SITES


def expected_mean(state: TrackState, round_id: int, survivors: tuple[SiteId, ...]) -> np.ndarray:
    """The plain weighted mean of what the fake sites make."""
    works = fake_works(state.plan)
    size = state.adapter.spec.size(state.adapter.spec.active_block(round_id))
    weights = np.array([works[site].patients for site in survivors], dtype=float)
    deltas = np.array([works[site].delta(RoundId(round_id), size) for site in survivors])
    return weights @ deltas / weights.sum()


def snapshot(state: TrackState) -> tuple[object, ...]:
    return (
        *(state.round_id, state.adapter.digest(), dict(state.optimizer), state.history),
        *(state.sum_id, state.setup, state.retried),
    )


def parts_of(message: Message) -> tuple[Message, ...]:
    return message.parts if isinstance(message, Bundle) else (message,)


class WatchedLink:
    """A link that keeps what was sent and answered, and loses what it is told to lose."""

    def __init__(
        self,
        handlers: Mapping[SiteId, Handler],
        lost: Callable[[int, SiteId], bool] = lambda exchange, site: False,
    ) -> None:
        self._link, self._lost = MemoryLink(handlers), lost
        self.sent: list[dict[SiteId, Message]] = []
        self.answered: list[Message] = []

    def sites(self) -> tuple[SiteId, ...]:
        return self._link.sites()

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        number = len(self.sent)
        self.sent.append(dict(tasks))
        reached = {site: task for site, task in tasks.items() if not self._lost(number, site)}
        for site, reply in self._link.exchange(reached, timeout_s):
            self.answered.append(reply)
            yield site, reply

    def kinds(self) -> list[set[type[Message]]]:
        """What each exchange asked, of whichever sites."""
        return [{type(part) for task in sent.values() for part in parts_of(task)} for sent in self.sent]

    def rosters(self) -> list[RosterOffer]:
        """Each roster that was offered, once."""
        found = (part for sent in self.sent for task in sent.values() for part in parts_of(task))
        return list({part.sum_id: part for part in found if isinstance(part, RosterOffer)}.values())


def test_a_round_adds_the_weighted_mean_of_all_sites() -> None:
    state = tiny_state()
    after = run_round(state, MemoryLink(fake_sites(state.plan)))
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, SITES), atol=1e-6)
    report = after.history[-1]
    assert (report.round_id, report.block, report.mode) == (1, Block.B, "secagg-v1")
    assert (report.survivors, report.dropouts) == (SITES, {})
    assert (report.patients, report.pairs, report.steps, report.clipped) == (100, 200, 4, 0)
    assert report.weight_sum == pytest.approx(1.0, abs=1e-6)
    assert report.mean_delta_norm == pytest.approx(np.linalg.norm(expected_mean(state, 1, SITES)), rel=1e-4)
    assert report.seconds > 0
    assert (report.sum_id, after.sum_id) == (1, 2)


def test_a_report_counts_the_exchanges_and_the_bytes_of_both_directions() -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan))
    report = run_round(state, link).history[-1]
    assert report.exchanges == len(link.sent) == 4
    assert report.bytes_down == sum(len(to_bytes(task)) for sent in link.sent for task in sent.values())
    assert report.bytes_up == sum(len(to_bytes(reply)) for reply in link.answered)


def test_the_first_round_agrees_keys_and_the_keys_of_the_next_ride_along() -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan))
    first = run_round(state, link)
    second = run_round(first, link)
    assert link.kinds() == [
        {KeysRequest},
        {RosterOffer},
        {TrainTask, KeysRequest},
        {UnmaskRequest, RosterOffer},
        {TrainTask, KeysRequest},
        {UnmaskRequest, RosterOffer},
    ]
    assert [report.exchanges for report in second.history] == [4, 2]
    assert [report.sum_id for report in second.history] == [1, 2]
    evaluated = evaluate(second, link)
    assert link.kinds()[6:] == [{EvaluateTask}, {UnmaskRequest}]
    assert (evaluated.sum_id, evaluated.setup) == (3, None)


def test_every_sum_has_a_number_and_keys_of_its_own() -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan))
    run_track(state, link, on_state=lambda _: None)
    rosters = link.rosters()
    assert [roster.sum_id for roster in rosters] == [1, 2, 3, 4, 5]
    keys = [
        key for roster in rosters for entry in roster.roster for key in (entry.mask_key, entry.envelope_key)
    ]
    assert len(set(keys)) == 5 * 2 * 4


def test_what_a_site_sends_says_nothing_of_its_vector() -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan))
    run_round(state, link)
    masked = {
        part.site_id: part.words
        for reply in link.answered
        for part in parts_of(reply)
        if isinstance(part, MaskedInput)
    }
    task = next(part for part in parts_of(link.sent[2][A]) if isinstance(part, TrainTask))
    works = fake_works(state.plan)
    plain = {site: work.words(task) for site, work in works.items()}
    assert set(masked) == set(plain)
    for site, words in masked.items():
        assert not (words == plain[site]).any()
    # Not even all of them together: each has a mask of its own beside those that cancel.
    assert not (sum(masked.values()) == sum(plain.values())).any()


def test_rolora_alternates_blocks_and_ffa_keeps_to_b() -> None:
    for mode, blocks in ((AdapterMode.ROLORA, "BABA"), (AdapterMode.FFA, "BBBB")):
        state = tiny_state(tiny_adapter(mode))
        link = MemoryLink(fake_sites(state.plan))
        for block in blocks:
            before, state = state, run_round(state, link)
            assert state.history[-1].block == block
            for other in Block:
                same = (flatten(state.adapter, other) == flatten(before.adapter, other)).all()
                assert same == (other != block)


def test_moments_are_kept_per_block_and_move_only_while_it_is_active() -> None:
    state = tiny_state(optimizer={"momentum": 0.9})
    link = MemoryLink(fake_sites(state.plan))
    first = run_round(state, link)
    second = run_round(first, link)
    third = run_round(second, link)
    assert [set(s.optimizer) for s in (state, first, second)] == [set(), {Block.B}, {Block.A, Block.B}]
    assert second.optimizer[Block.B] is first.optimizer[Block.B]
    assert third.optimizer[Block.A] is second.optimizer[Block.A]
    assert third.optimizer[Block.B].steps == 2
    velocity = 0.9 * expected_mean(state, 1, SITES) + expected_mean(state, 3, SITES)
    np.testing.assert_allclose(third.optimizer[Block.B].first, velocity, atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.DROP, "no answer"),
        (Fault.LATE, "no answer"),
        (Fault.REFUSE, "refused: a fault"),
    ],
)
def test_a_round_goes_on_without_a_site_and_says_why(fault: Fault, reason: str) -> None:
    state = tiny_state()
    after = run_round(state, MemoryLink(fake_sites(state.plan), {(RoundId(1), B): fault}))
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, (A, C, D)), atol=1e-6)
    report = after.history[-1]
    assert report.survivors == (A, C, D)
    assert list(report.dropouts) == [B]
    assert report.dropouts[B].startswith(reason)


@pytest.mark.parametrize(
    ("lost_in", "asked"),
    [
        (0, {KeysRequest}),
        (1, {RosterOffer}),
        (2, {TrainTask, KeysRequest}),
    ],
)
def test_a_site_that_is_lost_before_its_contribution_leaves_no_trace(
    lost_in: int, asked: set[type[Message]]
) -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan), lambda exchange, site: site == B and exchange == lost_in)
    after = run_round(state, link)
    assert link.kinds()[lost_in] == asked
    assert after.history[-1].survivors == (A, C, D)
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, (A, C, D)), atol=1e-6)


@pytest.mark.parametrize("lost_in", [3, 4])
def test_a_site_that_is_lost_after_its_contribution_stays_in_the_sum(lost_in: int) -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan), lambda exchange, site: site == B and exchange == lost_in)
    after = run_round(state, link)
    assert after.history[-1].survivors == SITES
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, SITES), atol=1e-6)


def test_a_lost_site_costs_one_exchange_and_is_back_a_round_later() -> None:
    state = tiny_state()
    # Exchanges 0 to 3 are the first round's; the contribution to the second is lost.
    link = WatchedLink(fake_sites(state.plan), lambda exchange, site: site == B and exchange == 4)
    for _ in range(4):
        state = run_round(state, link)
    assert link.kinds()[4:7] == [{TrainTask, KeysRequest}, {ListRequest}, {UnmaskRequest, RosterOffer}]
    assert [report.exchanges for report in state.history] == [4, 3, 2, 2]
    # Its keys for the third sum were lost with the contribution.
    assert [report.survivors for report in state.history] == [SITES, (A, C, D), (A, C, D), SITES]


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A site whose answers of a kind are changed on the way."""

    inner: Handler
    kind: type[Message]
    change: Callable[[Any], Message]

    def __call__(self, task: Message) -> Message:
        replies = parts_of(self.inner(task))
        return bundle(tuple(self.change(one) if isinstance(one, self.kind) else one for one in replies))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sum_id": 7}, "sum_id: expected 1, got 7"),
        ({"site_id": A}, "expected an answer of site-b, got one of site-a"),
        ({"transcript": bytes(32)}, "site-b: its masked input belongs to another transcript"),
        ({"words": np.ones(4, dtype=np.uint32)}, "expected 19 words, got 4"),
        ({"words": np.ones(19, dtype=np.uint32)}, "masked input of site-b: expected a signature"),
    ],
)
def test_a_contribution_to_another_sum_makes_its_site_a_dropout(
    changes: Mapping[str, object], reason: str
) -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    spoiled = Changed(inner=sites[B], kind=MaskedInput, change=lambda masked: replace(masked, **changes))
    after = run_round(state, MemoryLink({**sites, B: spoiled}))
    assert after.history[-1].survivors == (A, C, D)
    assert after.history[-1].dropouts[B].startswith(reason)
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, (A, C, D)), atol=1e-6)


def test_an_answer_of_another_kind_makes_its_site_a_dropout() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)

    def echo(task: Message) -> Message:
        return task if any(isinstance(part, TrainTask) for part in parts_of(task)) else sites[B](task)

    report = run_round(state, MemoryLink({**sites, B: echo})).history[-1]
    assert report.dropouts == {B: "expected MaskedInput, got TrainTask"}


def test_a_site_that_gives_no_keys_costs_the_others_nothing() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    after = run_round(state, MemoryLink({**sites, B: lambda task: task}))
    assert after.history[-1].survivors == (A, C, D)
    assert after.history[-1].exchanges == 4


def test_one_sites_wrong_shares_cost_nothing_while_there_is_a_spare() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    after = run_round(state, MemoryLink({**sites, B: liar(state, sites[B], B)}))
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, SITES), atol=1e-6)


def liar(state: TrackState, inner: Handler, site: SiteId, until_sum: int = 99) -> Handler:
    """A site that gives wrong shares, well signed."""
    identity, transcripts = fake_identities(state.plan)[site], {}

    def lie(given: UnmaskShares) -> UnmaskShares:
        if given.sum_id > until_sum:
            return given
        made = replace(given, seed_shares=dict.fromkeys(given.seed_shares, bytes(66)))
        context = SumContext(
            run_id=given.run_id, track=given.track, sum_id=given.sum_id, plan_digest=state.plan.digest()
        )
        statement = unmask_shares_statement(
            context, transcripts[given.sum_id], site, made.seed_shares, made.mask_key_shares
        )
        return replace(made, signature=identity.sign(statement))

    def watch(masked: MaskedInput) -> MaskedInput:
        transcripts[masked.sum_id] = masked.transcript
        return masked

    seen = Changed(inner=inner, kind=MaskedInput, change=watch)
    return Changed(inner=seen, kind=UnmaskShares, change=lie)


def test_wrong_shares_without_a_spare_fail_the_round_and_the_next_attempt_is_clean() -> None:
    sites_left = (A, B, C)
    state = tiny_state(sites=sites_left, rounds=1)
    sites = fake_sites(state.plan)
    with pytest.raises(WrongSecretError, match="Sum 1: the shares of site-a's secret"):
        run_round(state, MemoryLink({**sites, B: liar(state, sites[B], B)}))
    sites = fake_sites(state.plan)
    link = MemoryLink({**sites, B: liar(state, sites[B], B, until_sum=1)})
    after = run_track(state, link, on_state=lambda _: None, attempts=2)
    assert (after.retried, after.history[-1].survivors) == (1, sites_left)
    assert after.history[-1].sum_id == 3


def test_a_round_that_fails_leaves_the_state_unchanged_and_the_next_one_starts_from_it() -> None:
    sites = fake_sites(tiny_plan())
    state = run_round(tiny_state(), MemoryLink(sites))
    before = snapshot(state)
    faults = {(RoundId(2), A): Fault.DROP, (RoundId(2), B): Fault.LATE}
    link = MemoryLink(sites, faults)
    with pytest.raises(TooFewSurvivorsError, match="Round 2: 2 sites survived, 3 needed"):
        run_round(state, link)
    assert snapshot(state) == before
    again = run_round(state.after_failure(), link)
    np.testing.assert_allclose(
        flatten(again.adapter, Block.A) - flatten(state.adapter, Block.A),
        expected_mean(state, 2, SITES),
        atol=1e-6,
    )
    assert (again.round_id, len(again.history), again.retried) == (2, 2, 1)
    assert again.history[-1].survivors == SITES


def test_a_failed_round_that_goes_on_as_it_was_asks_no_site_for_a_second_answer() -> None:
    # As a coordinator does that was restarted: the same state, the same sum.
    sites = fake_sites(tiny_plan())
    state = run_round(tiny_state(), MemoryLink(sites))
    faults = {(RoundId(2), A): Fault.DROP, (RoundId(2), B): Fault.LATE}
    link = MemoryLink(sites, faults)
    with pytest.raises(TooFewSurvivorsError):
        run_round(state, link)
    again = run_round(state, link)
    assert again.history[-1].survivors == SITES
    assert again.history[-1].sum_id == state.sum_id


def test_the_state_after_a_failure_is_the_same_with_sums_that_no_site_has_seen() -> None:
    sites = fake_sites(tiny_plan())
    state = run_round(tiny_state(), MemoryLink(sites))
    after = state.after_failure()
    assert (after.sum_id, after.setup, after.retried) == (state.sum_id + 2, None, 1)
    assert (after.round_id, after.adapter, after.history) == (state.round_id, state.adapter, state.history)


def test_too_few_reachable_sites_end_the_round_before_it_begins() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    with pytest.raises(TooFewSurvivorsError):
        run_round(state, MemoryLink({A: sites[A], B: sites[B]}))


def test_a_site_outside_the_plan_is_never_asked() -> None:
    state = tiny_state()

    def stranger(task: Message) -> Message:
        raise AssertionError("asked")

    link = MemoryLink({**fake_sites(state.plan), SiteId("stranger"): stranger})
    assert run_round(state, link).history[-1].survivors == SITES


def test_sites_without_patients_alone_cannot_make_a_mean() -> None:
    state = tiny_state()
    idle = {site: replace(work, patients=0) for site, work in fake_works(state.plan).items()}
    with pytest.raises(BadMessageError, match="weights"):
        run_round(state, MemoryLink(fake_sites(state.plan, idle)))


def test_preparation_keeps_the_reasons_of_sites_that_decline_and_asks_them_no_more() -> None:
    state = tiny_state()
    asked = []

    def without_data(task: Message) -> Message:
        asked.append(type(task))
        return refusal(task.run_id, B, "no patients for rare_disease")

    link = MemoryLink({**fake_sites(state.plan), B: without_data})
    prepared = prepare(state, link)
    assert prepared.declined == {B: "no patients for rare_disease"}
    after = run_round(prepared, link)
    assert after.history[-1].survivors == (A, C, D)
    assert after.history[-1].dropouts == {}
    assert asked == [PrepareTask]


def test_a_site_that_does_not_answer_preparation_is_asked_by_the_rounds() -> None:
    state = tiny_state()
    link = MemoryLink(fake_sites(state.plan), {(RoundId(0), B): Fault.DROP})
    prepared = prepare(state, link)
    assert prepared.declined == {}
    assert run_round(prepared, link).history[-1].survivors == SITES


def test_preparation_fails_where_too_many_decline() -> None:
    state = tiny_state()
    faults = {(RoundId(0), A): Fault.REFUSE, (RoundId(0), B): Fault.REFUSE}
    with pytest.raises(TooFewSurvivorsError, match="2 sites survived, 3 needed"):
        require_willing(prepare(state, MemoryLink(fake_sites(state.plan), faults)))


def test_evaluation_pools_counts() -> None:
    state = tiny_state()
    evaluated = evaluate(state, MemoryLink(fake_sites(state.plan)))
    assert evaluated.metrics == COUNTS + COUNTS + COUNTS + COUNTS
    assert (evaluated.round_id, evaluated.adapter, evaluated.history) == (0, state.adapter, ())
    assert (evaluated.sum_id, evaluated.setup) == (1, None)


def test_evaluation_goes_on_without_a_site_that_is_lost() -> None:
    state = tiny_state()
    link = WatchedLink(fake_sites(state.plan), lambda exchange, site: site == D and exchange == 2)
    assert evaluate(state, link).metrics == COUNTS + COUNTS + COUNTS
    assert len(link.sent) == 5


def test_counts_that_cannot_be_are_refused() -> None:
    class Wrong(FakeWork):
        def words(self, task: Any) -> Any:
            words = super().words(task)
            words[1] += np.uint32(2**31)
            return words

    state = tiny_state()
    works = {**fake_works(state.plan), A: Wrong(site=A, plan=state.plan)}
    with pytest.raises(BadMessageError, match="pooled counts"):
        evaluate(state, MemoryLink(fake_sites(state.plan, works)))


def test_evaluation_of_too_few_sites_is_refused() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)

    def silent(task: Message) -> Message:
        return refusal(task.run_id, A, "no test cases")

    with pytest.raises(TooFewSurvivorsError):
        evaluate(state, MemoryLink({**sites, A: silent, B: silent}))


def test_a_track_is_prepared_trained_and_evaluated_and_every_state_is_shown() -> None:
    state = tiny_state(rounds=3)
    seen: list[TrackState] = []
    last = run_track(state, MemoryLink(fake_sites(state.plan)), on_state=seen.append)
    assert [s.round_id for s in seen] == [0, 1, 2, 3, 3]
    assert [s.metrics is None for s in seen] == [True, True, True, True, False]
    assert seen[-1] is last
    assert last.metrics == MetricCounts(n=40, top1=8, top5=16, top10=20)


def test_a_track_goes_on_from_where_its_state_stands() -> None:
    state = tiny_state(rounds=3)
    whole = run_track(state, MemoryLink(fake_sites(state.plan)), on_state=lambda _: None)
    link = MemoryLink(fake_sites(state.plan))
    half = run_round(run_round(state, link), link)
    rest = run_track(half, link, on_state=lambda _: None)
    assert rest.adapter.digest() == whole.adapter.digest()


def test_a_track_goes_on_with_sites_that_lost_their_keys() -> None:
    state = tiny_state(rounds=3)
    half = run_round(state, MemoryLink(fake_sites(state.plan)))
    # New sites with nothing stored: nobody can mask for the sum whose keys were agreed.
    link = MemoryLink(fake_sites(state.plan))
    with pytest.raises(TooFewSurvivorsError, match="0 sites survived"):
        run_round(half, link)
    rest = run_track(half, link, on_state=lambda _: None, attempts=2)
    assert (rest.retried, len(rest.history)) == (1, 3)


def test_a_lost_round_is_tried_again_as_often_as_it_is_said() -> None:
    state = tiny_state(rounds=2)
    faults = {(RoundId(2), A): Fault.DROP, (RoundId(2), B): Fault.REFUSE}
    with pytest.raises(TooFewSurvivorsError):
        run_track(state, MemoryLink(fake_sites(state.plan), faults), on_state=lambda _: None)
    again = run_track(state, MemoryLink(fake_sites(state.plan), faults), on_state=lambda _: None, attempts=2)
    clean = run_track(state, MemoryLink(fake_sites(state.plan)), on_state=lambda _: None)
    assert again.adapter.digest() == clean.adapter.digest()
    assert (again.retried, clean.retried, len(again.history)) == (1, 0, 2)


def lost_for_good(from_exchange: int) -> Callable[[int, SiteId], bool]:
    return lambda exchange, site: site == B and exchange >= from_exchange


def test_with_abort_a_site_lost_before_upload_fails_the_round() -> None:
    state = tiny_state(lost_before_upload="abort")
    link = WatchedLink(fake_sites(state.plan), lost_for_good(2))
    before = snapshot(state)
    with pytest.raises(TooFewSurvivorsError, match="Round 1: 3 sites survived, 4 needed"):
        run_round(state, link)
    assert snapshot(state) == before
    # Nobody was asked to unmask anything.
    assert link.kinds() == [{KeysRequest}, {RosterOffer}, {TrainTask, KeysRequest}]


def test_with_abort_the_retry_goes_on_without_the_lost_site_with_fresh_keys() -> None:
    state = tiny_state(rounds=1, lost_before_upload="abort")
    # Exchange 0 is the preparation.
    link = WatchedLink(fake_sites(state.plan), lost_for_good(3))
    after = run_track(state, link, on_state=lambda _: None, attempts=2)
    assert (after.retried, after.history[-1].survivors) == (1, (A, C, D))
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, (A, C, D)), atol=1e-6)
    failed, again = link.rosters()[:2]
    assert [entry.site_id for entry in failed.roster] == list(SITES)
    assert [entry.site_id for entry in again.roster] == [A, C, D]
    assert again.sum_id == failed.sum_id + 2
    keys = [{key for entry in roster.roster for key in entry.parts()[1:]} for roster in (failed, again)]
    assert not keys[0] & keys[1]


def test_with_abort_a_site_lost_after_its_contribution_fails_nothing() -> None:
    state = tiny_state(lost_before_upload="abort")
    link = WatchedLink(fake_sites(state.plan), lost_for_good(3))
    assert run_round(state, link).history[-1].survivors == SITES


def test_with_recover_the_sum_goes_on_without_a_site_lost_before_upload_in_three_exchanges() -> None:
    state = tiny_state(rounds=2, lost_before_upload="recover")
    link = WatchedLink(fake_sites(state.plan), lost_for_good(5))
    after = run_track(state, link, on_state=lambda _: None)
    assert after.retried == 0
    assert [report.survivors for report in after.history] == [SITES, (A, C, D)]
    assert [report.exchanges for report in after.history] == [4, 3]
    assert after.history[-1].dropouts == {B: "no answer"}


def wide_adapter() -> Adapter:
    shape = ModuleShape(name="layers.0.q_proj", in_features=40, out_features=200)
    return initial_adapter(AdapterSpec(mode=AdapterMode.FFA, rank=2, alpha=4.0, modules=(shape,)), 0)


def test_fewer_bits_are_a_smaller_upload_and_a_mean_within_the_coarser_fixed_points_bound() -> None:
    errors, uploads, bounds = {}, {}, {}
    for bits in (32, 20):
        state = tiny_state(wide_adapter(), word_bits=bits)
        after = run_round(state, MemoryLink(fake_sites(state.plan)))
        mean = expected_mean(state, 1, SITES)
        report = after.history[-1]
        moved = flatten(after.adapter, Block.B) - flatten(state.adapter, Block.B)
        errors[bits], uploads[bits] = np.abs(moved - mean).max(), report.bytes_up
        # Deltas and weights are each off by at most half a step a site; the weights sum to one.
        step = len(SITES) / (2 * train_fixed_point(state.plan).scale)
        bounds[bits] = step * (1 + np.abs(mean).max()) / (1 - step) + 1e-7
        assert (report.patients, report.pairs, report.clipped) == (100, 200, 0)
    assert errors[32] <= bounds[32]
    assert errors[20] <= bounds[20] < 1e-4
    # Finer it was not: the bound is that of this fixed point, and of no finer one.
    assert errors[20] > bounds[32]
    length = TrainWords.length(wide_adapter().spec.size(Block.B))
    assert uploads[32] - uploads[20] == pytest.approx(4 * 4 * length * 12 / 32, rel=0.05)


def test_a_state_refuses_an_adapter_that_is_not_the_plans() -> None:
    plan = tiny_plan(tiny_adapter(AdapterMode.FFA))
    with pytest.raises(ValueError, match="Expected an adapter of ffa, rank 2"):
        replace(tiny_state(), plan=plan)


def test_a_state_refuses_a_plan_with_a_site_that_nobody_approved() -> None:
    state = tiny_state()
    identities = {site: identity for site, identity in state.identities.items() if site != C}
    with pytest.raises(UnapprovedSiteError, match="site-c is not approved here"):
        replace(state, identities=identities)


def test_the_package_says_what_the_coordinator_can_see() -> None:
    assert "secagg-v1" in str(server.__doc__)
    assert "only\nthe sum of the sites' updates" in str(server.__doc__)
    assert "every site adds its share of\nnoise before it masks" in str(server.__doc__)


def test_a_site_whose_worker_is_away_has_not_declined() -> None:
    state, away = tiny_state(), SITES[0]
    handlers: dict[SiteId, Handler] = dict(fake_sites(state.plan))
    handlers[away] = lambda task: refusal(task.run_id, away, "the worker is not running", "away")
    assert prepare(state, MemoryLink(handlers)).declined == {}
    handlers[away] = lambda task: refusal(task.run_id, away, "no patients for this track")
    assert prepare(state, MemoryLink(handlers)).declined == {away: "no patients for this track"}


def test_who_declined_is_told_before_the_track_ends_for_it() -> None:
    state, seen = tiny_state(), []
    faults = {(PREPARATION, site): Fault.REFUSE for site in SITES[:2]}
    with pytest.raises(TooFewSurvivorsError, match="2 sites survived, 3 needed"):
        run_track(state, MemoryLink(fake_sites(state.plan), faults), on_state=seen.append)
    assert [sorted(one.declined) for one in seen] == [list(SITES[:2])]
