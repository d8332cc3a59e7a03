from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

import server
from common.adapter import AdapterMode, Block, flatten
from common.errors import BadMessageError, TooFewSurvivorsError
from common.ids import RoundId, SiteId
from common.messages import Contribution, Message, PrepareTask, TrainTask, refusal, size_of
from common.metrics import MetricCounts
from server.rounds import TrackState, evaluate, prepare, run_round, run_track
from simulations.link import Fault, MemoryLink
from tests.fakes import COUNTS, SITES, FakeSite, fake_sites, tiny_adapter, tiny_plan, tiny_state

A, B, C, D = SITES


def expected_mean(state: TrackState, round_id: int, survivors: tuple[SiteId, ...]) -> np.ndarray:
    """The plain weighted mean of what the fake sites make."""
    sites = fake_sites(state.plan)
    size = state.adapter.spec.size(state.adapter.spec.active_block(round_id))
    weights = np.array([sites[site].patients for site in survivors], dtype=float)
    deltas = np.array([sites[site].delta(RoundId(round_id), size) for site in survivors])
    return weights @ deltas / weights.sum()


def snapshot(state: TrackState) -> tuple[object, ...]:
    return state.round_id, state.adapter.digest(), dict(state.optimizer), state.history


def test_a_round_adds_the_weighted_mean_of_all_sites() -> None:
    state = tiny_state()
    after = run_round(state, MemoryLink(fake_sites(state.plan)))
    np.testing.assert_allclose(flatten(after.adapter, Block.B), expected_mean(state, 1, SITES), atol=1e-6)
    report = after.history[-1]
    assert (report.round_id, report.block, report.mode) == (1, Block.B, "clear")
    assert (report.survivors, report.dropouts) == (SITES, {})
    assert (report.patients, report.pairs, report.steps, report.clipped) == (100, 200, 4, 0)
    assert report.weight_sum == pytest.approx(1.0, abs=1e-6)
    assert report.mean_delta_norm == pytest.approx(np.linalg.norm(expected_mean(state, 1, SITES)), rel=1e-4)
    assert report.seconds > 0


def test_a_report_counts_the_bytes_of_both_directions() -> None:
    state = tiny_state()
    task = TrainTask(
        run_id=state.run_id,
        round_id=RoundId(1),
        track=state.track,
        plan_digest=state.plan.digest(),
        adapter=state.adapter,
    )
    replies = [site(task) for site in fake_sites(state.plan).values()]
    report = run_round(state, MemoryLink(fake_sites(state.plan))).history[-1]
    assert report.bytes_down == 4 * size_of(task)
    assert report.bytes_up == sum(size_of(reply) for reply in replies)


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


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A site whose contribution is changed on the way."""

    inner: FakeSite
    changes: Mapping[str, object]

    def __call__(self, task: Message) -> Message:
        reply = self.inner(task)
        return replace(reply, **self.changes) if isinstance(reply, Contribution) else reply


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round_id": RoundId(7)}, "round_id: expected 1, got 7"),
        ({"site_id": A}, "site_id: expected site-b, got site-a"),
        ({"adapter_id": "f" * 64}, "adapter_id: expected"),
        ({"words": np.ones(4, dtype=np.uint32)}, "expected 19 words, got 4"),
    ],
)
def test_a_contribution_to_another_sum_makes_its_site_a_dropout(
    changes: Mapping[str, object], reason: str
) -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    after = run_round(state, MemoryLink({**sites, B: Changed(inner=sites[B], changes=changes)}))
    assert after.history[-1].survivors == (A, C, D)
    assert after.history[-1].dropouts[B].startswith(reason)


def test_an_answer_of_another_kind_makes_its_site_a_dropout() -> None:
    state = tiny_state()
    link = MemoryLink({**fake_sites(state.plan), B: lambda task: task})
    assert run_round(state, link).history[-1].dropouts == {B: "expected a contribution, got TrainTask"}


def test_a_round_that_fails_leaves_the_state_unchanged_and_the_next_one_starts_from_it() -> None:
    state = run_round(tiny_state(optimizer={"momentum": 0.9}), MemoryLink(fake_sites(tiny_plan())))
    before = snapshot(state)
    faults = {(RoundId(2), A): Fault.DROP, (RoundId(2), B): Fault.LATE}
    link = MemoryLink(fake_sites(state.plan), faults)
    with pytest.raises(TooFewSurvivorsError, match="Round 2: 2 sites survived, 3 needed"):
        run_round(state, link)
    assert snapshot(state) == before
    clean = run_round(state, MemoryLink(fake_sites(state.plan)))
    again = run_round(state, link)
    assert again.adapter.digest() == clean.adapter.digest()
    assert (again.round_id, len(again.history)) == (2, 2)


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
    idle = {site: replace(fake, patients=0) for site, fake in fake_sites(state.plan).items()}
    with pytest.raises(BadMessageError, match="weights"):
        run_round(state, MemoryLink(idle))


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
        prepare(state, MemoryLink(fake_sites(state.plan), faults))


def test_evaluation_pools_counts() -> None:
    state = tiny_state()
    assert evaluate(state, MemoryLink(fake_sites(state.plan))) == COUNTS + COUNTS + COUNTS + COUNTS


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
    half = run_round(run_round(state, MemoryLink(fake_sites(state.plan))), MemoryLink(fake_sites(state.plan)))
    rest = run_track(half, MemoryLink(fake_sites(state.plan)), on_state=lambda _: None)
    assert rest.adapter.digest() == whole.adapter.digest()


def test_a_lost_round_is_tried_again_as_often_as_it_is_said() -> None:
    state = tiny_state(rounds=2)
    faults = {(RoundId(2), A): Fault.DROP, (RoundId(2), B): Fault.REFUSE}
    with pytest.raises(TooFewSurvivorsError):
        run_track(state, MemoryLink(fake_sites(state.plan), faults), on_state=lambda _: None)
    again = run_track(state, MemoryLink(fake_sites(state.plan), faults), on_state=lambda _: None, attempts=2)
    clean = run_track(state, MemoryLink(fake_sites(state.plan)), on_state=lambda _: None)
    assert again.adapter.digest() == clean.adapter.digest()
    assert (again.retried, clean.retried, len(again.history)) == (1, 0, 2)


def test_a_state_refuses_an_adapter_that_is_not_the_plans() -> None:
    plan = tiny_plan(tiny_adapter(AdapterMode.FFA))
    with pytest.raises(ValueError, match="Expected an adapter of ffa, rank 2"):
        replace(tiny_state(), plan=plan)


def test_the_package_says_what_the_coordinator_can_see() -> None:
    assert "clear" in str(server.__doc__)
