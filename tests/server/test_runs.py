"""Tests of runs by name."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from common.errors import RunExistsError, RunHeldError, RunRefusedError, SuperLinkError
from common.ids import RunId
from server.home import CoordinatorHome
from server.journal import Journal
from server.rounds import run_round
from server.runs import LOST_S, Ended, begin, follow, go_on, is_refusal, new_name
from server.settings import CoordinatorSettings
from server.superlink import RUN_CONFIG, SuperLink
from simulations.link import MemoryLink
from tests.fakes import RUN, SITES, TRACK, fake_sites, tiny_plan, tiny_state
from tests.server.homes import FakeLink, made_home

START = tiny_state(rounds=2)
PLAN = START.plan


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return made_home(tmp_path / "home")


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


def as_link(link: FakeLink) -> SuperLink:
    return cast(SuperLink, link)


def ran(home: CoordinatorHome, flower_id: int, rounds: int = 1, sites: MemoryLink | None = None) -> None:
    """What a ServerApp does: so many rounds; it holds the journal no more."""
    link, state = sites or MemoryLink(fake_sites(PLAN)), START
    with Journal.open(home.runs / RUN, PLAN, RUN) as journal:
        journal.add_flower_run(flower_id)
        state = journal.resume(state)
        journal.close(state)
        for _ in range(rounds):
            journal.begin(state, state.sum_id + 1)
            state = run_round(state, link)
            journal.close(state)


def collect(home: CoordinatorHome, link: FakeLink, step: Callable[[int], None]) -> tuple[list[str], Ended]:
    """What is told of flower's run 1; ``step`` is called with 1, 2, ... between two looks."""
    times = iter(range(1, 10_000))
    news = list(follow(home, as_link(link), RUN, 1, sleep=lambda _: step(next(times))))
    assert isinstance(news[-1], Ended)
    return [line for line in news[:-1] if isinstance(line, str)], news[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.runs.ASK_EVERY_S", 0.0)


def test_a_new_run_is_started_with_all_that_the_server_app_needs(
    home: CoordinatorHome, link: FakeLink
) -> None:
    assert begin(home, as_link(link), PLAN, RUN) == 1
    (config,) = link.started
    assert set(config) <= set(RUN_CONFIG)
    settings = CoordinatorSettings.from_run_config(config)
    assert (settings.out, settings.run, settings.resume) == (home.runs / RUN, RUN, False)
    assert settings.ledger == home.root
    assert settings.identity is not None and settings.identity.is_file()
    assert PLAN.digest() in str(settings.adapters)


def test_a_run_is_begun_once(home: CoordinatorHome, link: FakeLink) -> None:
    ran(home, 1)
    with pytest.raises(RunExistsError):
        begin(home, as_link(link), PLAN, RUN)


def test_a_run_that_crashed_goes_on(home: CoordinatorHome, link: FakeLink) -> None:
    begin(home, as_link(link), PLAN, RUN)
    ran(home, 1)
    journal = Journal.open(home.runs / RUN, PLAN, RUN)
    # As after kill -9: it says that it runs, and nobody holds it.
    journal._lock.close()
    link.become(1, "running")
    assert go_on(home, as_link(link), RUN) == 2
    assert link.runs[1].status == "finished:stopped"
    assert (link.started[1]["resume"], link.started[1]["plan"]) == (True, PLAN.to_json())


def test_a_run_that_is_at_work_is_left_alone(home: CoordinatorHome, link: FakeLink) -> None:
    ran(home, 1)
    with Journal.open(home.runs / RUN, PLAN, RUN), pytest.raises(RunHeldError):
        go_on(home, as_link(link), RUN)
    with suppress(KeyboardInterrupt), Journal.open(home.runs / RUN, PLAN, RUN):
        raise KeyboardInterrupt
    link.start_run({"run": RUN})
    for status in ("pending", "starting"):
        link.become(1, status)
        with pytest.raises(RunHeldError):
            go_on(home, as_link(link), RUN)
    assert len(link.started) == 1


def test_a_run_that_has_finished_or_never_was_is_refused(home: CoordinatorHome, link: FakeLink) -> None:
    with pytest.raises(RunRefusedError, match=r"run run-1: no run of this name; there are: none"):
        go_on(home, as_link(link), RUN)
    ran(home, 1)
    with pytest.raises(RunRefusedError, match="has finished"):
        go_on(home, as_link(link), RUN)


def test_following_tells_each_round_once_and_how_it_ended(home: CoordinatorHome, link: FakeLink) -> None:
    begin(home, as_link(link), PLAN, RUN)
    sites = MemoryLink(fake_sites(PLAN))

    def step(number: int) -> None:
        if number == 2:
            link.become(1, "running")
            ran(home, 1, sites=sites)
        if number == 4:
            ran(home, 1, sites=sites)
            link.become(1, "finished:completed")

    lines, ended = collect(home, link, step)
    assert [line.partition(" closed")[0] for line in lines] == [
        f"{TRACK}: round 1 of 2",
        f"{TRACK}: round 2 of 2",
    ]
    assert (ended.state, ended.reason) == ("finished", "")
    assert not is_refusal(ended)


def test_a_superlink_that_is_away_for_a_while_ends_nothing(home: CoordinatorHome, link: FakeLink) -> None:
    begin(home, as_link(link), PLAN, RUN)

    def step(number: int) -> None:
        link.away = number < 5
        if number == 6:
            ran(home, 1, rounds=2)
            link.become(1, "finished:completed")

    assert collect(home, link, step)[1].state == "finished"


def test_a_superlink_that_stays_away_is_an_error(
    home: CoordinatorHome, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(home, as_link(link), PLAN, RUN)
    link.away = True
    clock = iter(range(0, 100_000, int(LOST_S) // 2))
    monkeypatch.setattr("server.runs.time.monotonic", lambda: next(clock))
    with pytest.raises(SuperLinkError):
        list(follow(home, as_link(link), RUN, 1, sleep=lambda _: None))


def test_a_run_whose_process_never_began_says_why(home: CoordinatorHome, link: FakeLink) -> None:
    begin(home, as_link(link), PLAN, RUN)
    link.become(1, "finished:failed", "plan: expected JSON")
    assert collect(home, link, lambda _: None) == (
        [],
        Ended(state="failed", reason="plan: expected JSON", declined={}),
    )


def test_a_run_whose_process_died_has_failed_in_flowers_words(home: CoordinatorHome, link: FakeLink) -> None:
    begin(home, as_link(link), PLAN, RUN)
    journal = Journal.open(home.runs / RUN, PLAN, RUN)
    journal.add_flower_run(1)
    journal._lock.close()
    link.become(1, "finished:failed", "No heartbeat received from the task")
    ended = collect(home, link, lambda _: None)[1]
    assert (ended.state, ended.reason) == ("failed", "No heartbeat received from the task")


@pytest.mark.parametrize(
    ("ended", "refusal"),
    [
        (Ended(state="finished", reason="", declined={TRACK: {SITES[0]: "no patients"}}), True),
        (Ended(state="failed", reason="Round 1: refused for the privacy budget by a: b", declined={}), True),
        (Ended(state="failed", reason="Round 1: 2 sites survived, 3 needed", declined={}), False),
    ],
)
def test_a_refusal_is_told_from_a_failure(ended: Ended, refusal: bool) -> None:
    assert is_refusal(ended) is refusal


def test_names_of_runs_tell_plan_and_time() -> None:
    assert new_name(PLAN).startswith(PLAN.digest()[:8])
    assert isinstance(RunId(new_name(tiny_plan())), str)
