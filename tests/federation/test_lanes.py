import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import server.session
from common.errors import FederationError, TooFewSurvivorsError
from common.ids import SiteId
from common.messages import Bundle, Message, TrainTask
from common.plan import RunPlan
from common.wire import to_bytes
from server.lanes import run_tracks
from server.rounds import TrackState, run_track
from simulations.link import Handler, MemoryLink
from tests.fakes import SITES, TRACK, tiny_plan
from tests.federation.runs import parts_of, sites_of, starts_of, two_tracks

A, B, C, D = SITES
OTHER = "tissue_type"
PLAN = two_tracks(tiny_plan(rounds=2, optimizer={"momentum": 0.9}))


class Watched:
    """A link that keeps what it was asked, and may fail."""

    def __init__(self, sites: Mapping[SiteId, Handler], fails_at: int = 0) -> None:
        self._link, self._fails_at = MemoryLink(sites), fails_at
        self.sent: list[dict[SiteId, Message]] = []

    def sites(self) -> tuple[SiteId, ...]:
        return self._link.sites()

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        self.sent.append(dict(tasks))
        if len(self.sent) == self._fails_at:
            raise ConnectionError("no network")
        yield from self._link.exchange(tasks, timeout_s)


def together(
    plan: RunPlan, folder: Path, *, change: Callable[[dict[SiteId, Handler]], None] = lambda _: None
) -> tuple[dict[str, TrackState], Watched]:
    sites = sites_of(plan, folder)
    change(sites)
    link = Watched(sites)
    return run_tracks(starts_of(plan), link, on_state=ignore), link


def ignore(state: TrackState) -> None:
    """Nobody looks."""


def one_after_another(plan: RunPlan, folder: Path) -> tuple[dict[str, TrackState], Watched]:
    link = Watched(sites_of(plan, folder))
    return {start.track: run_track(start, link, on_state=ignore) for start in starts_of(plan)}, link


def outcome(ended: Mapping[str, TrackState]) -> dict[str, object]:
    return {
        name: (state.adapter.digest(), state.metrics, [report.survivors for report in state.history])
        for name, state in ended.items()
    }


def tracks_of(message: Message) -> set[str]:
    return {part.track for part in parts_of(message)}  # type: ignore[union-attr]


def no_lane_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


def test_the_tracks_end_as_they_would_one_after_another_with_the_exchanges_of_the_longest(
    tmp_path: Path,
) -> None:
    ended, link = together(PLAN, tmp_path)
    apart, links = one_after_another(PLAN, tmp_path)
    assert outcome(ended) == outcome(apart)
    assert ended[TRACK].adapter != ended[OTHER].adapter
    assert 2 * len(link.sent) == len(links.sent) == 2 * 9
    assert all(tracks_of(task) == {TRACK, OTHER} for sent in link.sent for task in sent.values())
    assert no_lane_is_left()


def test_tracks_of_different_lengths_need_no_more_exchanges_than_the_longer(tmp_path: Path) -> None:
    first, second = PLAN.tracks
    plan = replace(PLAN, tracks=(first, replace(second, training=replace(second.training, rounds=4))))
    ended, link = together(plan, tmp_path)
    assert outcome(ended) == outcome(one_after_another(plan, tmp_path)[0])
    assert len(link.sent) == 1 + 4 + 3 * 2 + 2


def test_a_site_that_is_in_one_track_gets_that_tracks_parts_alone(tmp_path: Path) -> None:
    first, second = PLAN.tracks
    plan = replace(PLAN, tracks=(replace(first, sites=(A, B, C)), replace(second, sites=(B, C, D))))
    ended, link = together(plan, tmp_path)
    assert outcome(ended) == outcome(one_after_another(plan, tmp_path)[0])
    asked = {site: {frozenset(tracks_of(sent[site])) for sent in link.sent} for site in SITES}
    assert asked == {
        A: {frozenset({TRACK})},
        B: {frozenset({TRACK, OTHER})},
        C: {frozenset({TRACK, OTHER})},
        D: {frozenset({OTHER})},
    }


def test_every_exchange_is_one_message_to_a_site_that_its_bytes_carry(tmp_path: Path) -> None:
    _, link = together(PLAN, tmp_path)
    for sent in link.sent:
        for task in sent.values():
            assert isinstance(task, Bundle)
            assert to_bytes(task)


def test_an_answer_is_done_with_in_every_lane_before_the_next_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    add = server.session.SecureSum.add

    def adding(self: server.session.SecureSum, site: SiteId, reply: Message) -> None:
        add(self, site, reply)
        steps.append(f"added {site}")

    monkeypatch.setattr(server.session.SecureSum, "add", adding)

    def listen(sites: dict[SiteId, Handler]) -> None:
        for site, inner in sites.items():
            sites[site] = heard(site, inner)

    def heard(site: SiteId, inner: Handler) -> Handler:
        def handle(task: Message) -> Message:
            if any(isinstance(part, TrainTask) for part in parts_of(task)):
                steps.append(f"asked {site}")
            return inner(task)

        return handle

    together(PLAN, tmp_path, change=listen)
    round_one = [f"{what} {site}" for site in SITES for what in ("asked", "added", "added")]
    assert steps[:12] == round_one


def test_a_refusal_of_a_whole_bundle_answers_every_part(tmp_path: Path) -> None:
    def refuse_work(sites: dict[SiteId, Handler]) -> None:
        inner = sites[B]

        def handle(task: Message) -> Message:
            if any(isinstance(part, TrainTask) for part in parts_of(task)):
                raise FederationError("the disk is full")
            return inner(task)

        sites[B] = handle

    ended, _ = together(PLAN, tmp_path, change=refuse_work)
    for state in ended.values():
        assert state.history[0].survivors == (A, C, D)
        assert state.history[0].dropouts == {B: "refused: the disk is full"}


def refuse_other(sites: dict[SiteId, Handler]) -> None:
    """No site does the second track's work."""
    for site, inner in sites.items():
        sites[site] = without_work(inner)


def without_work(inner: Handler) -> Handler:
    def handle(task: Message) -> Message:
        parts = parts_of(task)
        if {part.track for part in parts if isinstance(part, TrainTask)} == {OTHER}:
            raise FederationError("not this one")
        answers = inner(task)
        return answers if not isinstance(answers, Bundle) else _spoiled(parts, answers)

    return handle


def _spoiled(parts: tuple[Message, ...], answers: Bundle) -> Message:
    changed = [
        part if isinstance(part, TrainTask) and part.track == OTHER else answer
        for part, answer in zip(parts, answers.parts, strict=True)
    ]
    return Bundle(parts=tuple(changed))


def test_a_track_that_fails_lets_the_others_end_and_its_error_is_raised_then(tmp_path: Path) -> None:
    sites, seen = sites_of(PLAN, tmp_path), []
    refuse_other(sites)
    with pytest.raises(TooFewSurvivorsError, match="Round 1: 0 sites survived, 3 needed"):
        run_tracks(starts_of(PLAN), MemoryLink(sites), on_state=seen.append)
    last = {state.track: state for state in seen}
    alone, _ = one_after_another(PLAN, tmp_path)
    assert outcome({TRACK: last[TRACK]}) == outcome({TRACK: alone[TRACK]})
    assert last[OTHER].round_id == 0
    assert no_lane_is_left()


def test_a_bug_in_one_track_amid_its_answers_costs_the_other_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, seen = server.session.SecureSum.add, []

    def adding(self: server.session.SecureSum, site: SiteId, reply: Message) -> None:
        if self._task.track == OTHER and site == B:
            raise KeyError("a bug")
        add(self, site, reply)

    alone, _ = one_after_another(PLAN, tmp_path)
    monkeypatch.setattr(server.session.SecureSum, "add", adding)
    with pytest.raises(KeyError, match="a bug"):
        run_tracks(starts_of(PLAN), MemoryLink(sites_of(PLAN, tmp_path)), on_state=seen.append)
    assert outcome({TRACK: seen[-1]}) == outcome({TRACK: alone[TRACK]})
    assert no_lane_is_left()


def test_a_track_that_pauses_keeps_the_others_from_nothing_and_ends_with_the_run(tmp_path: Path) -> None:
    sites = sites_of(PLAN, tmp_path)
    refuse_other(sites)

    def on_state(state: TrackState) -> None:
        if state.track == TRACK and state.metrics is not None:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tracks(starts_of(PLAN), MemoryLink(sites), on_state=on_state, attempts=2, pause_s=600.0)
    assert time.monotonic() - started < 60
    assert no_lane_is_left()


def test_a_track_that_paused_takes_part_again(tmp_path: Path) -> None:
    sites, refused = sites_of(PLAN, tmp_path), []

    def once(site: SiteId, inner: Handler) -> Handler:
        spoiled = without_work(inner)

        def handle(task: Message) -> Message:
            if site in refused or not any(isinstance(part, TrainTask) for part in parts_of(task)):
                return inner(task)
            refused.append(site)
            return spoiled(task)

        return handle

    patient = {site: once(site, inner) for site, inner in sites.items()}
    ended = run_tracks(starts_of(PLAN), MemoryLink(patient), on_state=ignore, attempts=2, pause_s=0.01)
    assert (ended[TRACK].retried, ended[OTHER].retried) == (0, 1)
    assert outcome(ended) == outcome(one_after_another(PLAN, tmp_path)[0])


@pytest.mark.parametrize("exchange", [1, 2, 4, 9])
def test_what_the_link_raises_ends_all_tracks_at_once(tmp_path: Path, exchange: int) -> None:
    link = Watched(sites_of(PLAN, tmp_path), fails_at=exchange)
    with pytest.raises(ConnectionError, match="no network"):
        run_tracks(starts_of(PLAN), link, on_state=ignore)
    assert len(link.sent) == exchange
    assert no_lane_is_left()


def test_states_and_sums_are_handed_over_for_one_track_at_a_time(tmp_path: Path) -> None:
    inside, most = [], []

    def enter(state: TrackState) -> None:
        inside.append(state.track)
        most.append(len(inside))
        time.sleep(0)
        inside.remove(state.track)

    run_tracks(
        starts_of(PLAN),
        MemoryLink(sites_of(PLAN, tmp_path)),
        on_state=enter,
        on_begin=lambda state, _: enter(state),
    )
    assert set(most) == {1}
    assert len(most) == 2 * (1 + 2 + 1 + 3)


def test_no_tracks_end_at_once() -> None:
    assert run_tracks([], MemoryLink({}), on_state=ignore) == {}
