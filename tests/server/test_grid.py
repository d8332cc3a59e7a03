import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import client.app
import server.grid
from client.worker_link import attach, detach
from common.errors import BadFileError, UnsupportedSchemaError
from common.messages import Bundle, KeysRequest, Message, PrepareTask, Ready, Refusal
from server.grid import GridLink, read_nodes
from server.rounds import prepare, run_round
from simulations.grid import FIRST_NODE, LocalGrid, task_identity
from tests.fakes import RUN, SITES, TRACK, fake_sites, tiny_plan, tiny_state
from tests.messages import evaluate_task, example, train_task

# isort: split
from flwr.app import Error, MessageType, RecordDict
from flwr.app import Message as FlowerMessage

PREPARE = PrepareTask(run_id=RUN, track=TRACK, plan_digest=tiny_plan().digest())
A, B, C, D = SITES


class WatchedGrid(LocalGrid):
    """A grid that keeps what was pushed, and may lose, fail or spoil the replies of a node."""

    def __init__(self, sites: Iterable[str] = SITES) -> None:
        super().__init__(client.app.app, sites)
        self.pushed: list[FlowerMessage] = []
        self.online: list[int] | None = None
        self.lost: set[int] = set()
        self.failed: dict[int, int] = {}
        self.spoiled: set[int] = set()
        self.refused: set[int] = set()
        # How often a node is asked in vain for its next answer.
        self.pending: dict[int, int] = {}

    def get_node_ids(self) -> Iterable[int]:
        return super().get_node_ids() if self.online is None else self.online

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        messages = list(messages)
        self.pushed += messages
        if any(message.metadata.dst_node_id in self.refused for message in messages):
            return []
        return super().push_messages(messages)

    def _reply(self, message: FlowerMessage) -> FlowerMessage:
        node = message.metadata.dst_node_id
        if node in self.failed:
            reply = FlowerMessage(Error(self.failed[node], "patient text"), reply_to=message)
            # As the SuperLink does it: the error's sender is the SuperLink.
            reply.metadata.__dict__["_src_node_id"] = 1
            return reply
        if node in self.spoiled:
            return FlowerMessage(RecordDict(), reply_to=message)
        return super()._reply(message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        ready = [message_id for message_id in message_ids if not self._is_pending(message_id)]
        return [
            reply
            for reply in reversed(list(super().pull_messages(ready)))
            if reply.metadata.src_node_id not in self.lost
        ]

    def _is_pending(self, message_id: str) -> bool:
        node = next(m.metadata.dst_node_id for m in self.pushed if m.metadata.message_id == message_id)
        self.pending[node] = self.pending.get(node, 0) - 1
        return self.pending[node] >= 0


@pytest.fixture
def grid() -> Iterator[WatchedGrid]:
    for site, handler in fake_sites(tiny_plan()).items():
        attach(site, handler)
    with task_identity(run_id=1, node_id=1, task_id=0):
        yield WatchedGrid()
    for site in SITES:
        detach(site)


def link_over(grid: LocalGrid) -> GridLink:
    return GridLink(grid, query_ttl_s=0.05, poll_s=0.01)


def exchange(link: GridLink, task: Message = PREPARE) -> dict[str, Message]:
    return dict(link.exchange(dict.fromkeys(link.sites(), task), 0.05))


def test_nodes_are_asked_for_their_names_once(grid: WatchedGrid) -> None:
    link = link_over(grid)
    assert link.sites() == SITES
    assert link.sites() == SITES
    assert [message.metadata.message_type for message in grid.pushed] == [MessageType.QUERY] * 4


def test_every_site_gets_its_task_and_its_answer_is_its_own(grid: WatchedGrid) -> None:
    replies = exchange(link_over(grid))
    assert replies == {site: Ready(run_id=RUN, track=TRACK, site_id=site) for site in SITES}


def test_every_message_has_a_ttl_and_its_type(grid: WatchedGrid) -> None:
    link = link_over(grid)
    for task in (train_task(), evaluate_task(), Bundle(parts=(evaluate_task(), example(KeysRequest)))):
        assert set(exchange(link, task)) == set(SITES)
    assert {message.metadata.ttl for message in grid.pushed} == {0.05}
    types = [MessageType.TRAIN, MessageType.EVALUATE, MessageType.TRAIN]
    assert [message.metadata.message_type for message in grid.pushed[4:]] == [
        one for one in types for _ in SITES
    ]


def test_answers_are_yielded_one_by_one_as_they_come(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    worked = []

    def worker(site: str) -> Callable[[Message], Message]:
        return lambda task: (
            worked.append(site) or Refusal(run_id=RUN, site_id=site, reason="no", cause="failed")
        )

    for site in SITES:
        detach(site)
        attach(site, worker(site))
    replies = link.exchange(dict.fromkeys(SITES, PREPARE), 5.0)
    assert worked == []
    for number in range(1, 5):
        site, reply = next(replies)
        # The others' answers are nowhere yet: all together might not fit in memory.
        assert (reply.site_id, len(worked)) == (site, number)
    assert list(replies) == []


def test_an_answer_that_is_there_does_not_wait_for_one_that_is_not(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.lost = {FIRST_NODE}
    started = time.monotonic()
    replies = link.exchange(dict.fromkeys(SITES, PREPARE), 30.0)
    assert {next(replies)[0] for _ in range(3)} == {B, C, D}
    assert time.monotonic() - started < 30.0


def test_a_site_whose_answer_comes_later_within_the_time_is_there(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.pending[FIRST_NODE] = 3
    assert [site for site, _ in link.exchange(dict.fromkeys(SITES, PREPARE), 30.0)] == [B, C, D, A]


def test_an_error_is_mapped_by_the_message_it_answers_and_its_text_is_not_passed_on(
    grid: WatchedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    link = link_over(grid)
    link.sites()
    grid.failed = {FIRST_NODE + 1: 5, FIRST_NODE + 2: 99}
    with caplog.at_level(logging.WARNING):
        assert set(exchange(link)) == {A, D}
    assert "site-b: Flower error 5: the node is not available" in caplog.text
    assert "site-c: Flower error 99: of a kind not known here" in caplog.text
    assert "patient text" not in caplog.text


def test_a_node_that_fails_at_preparation_has_not_declined(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.failed = {FIRST_NODE + 1: 5}
    prepared = prepare(tiny_state(), link)
    assert prepared.declined == {}
    grid.failed = {}
    assert run_round(prepared, link).history[-1].survivors == SITES


def test_an_answer_that_cannot_be_read_is_missing(
    grid: WatchedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    link = link_over(grid)
    link.sites()
    grid.spoiled = {FIRST_NODE}
    with caplog.at_level(logging.WARNING):
        assert set(exchange(link)) == {B, C, D}
    assert "site-a: Bad message: expected the records" in caplog.text


def test_a_site_that_does_not_answer_in_time_is_missing(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.lost = {FIRST_NODE}
    assert set(exchange(link)) == {B, C, D}


def test_a_push_that_is_refused_is_a_dropout(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.refused = {FIRST_NODE + 3}
    assert set(exchange(link)) == {A, B, C}


def test_a_site_that_is_offline_is_not_there_and_rejoins(grid: WatchedGrid) -> None:
    link = link_over(grid)
    link.sites()
    grid.online = [FIRST_NODE, FIRST_NODE + 1]
    assert link.sites() == (A, B)
    assert [site for site, _ in link.exchange({A: PREPARE, D: PREPARE}, 0.05)] == [A]
    grid.online = None
    assert link.sites() == SITES


def test_a_name_that_is_in_use_is_not_given_twice(
    grid: WatchedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    link = link_over(WatchedGrid((A, B, A)))
    with caplog.at_level(logging.WARNING):
        assert link.sites() == (A, B)
    assert "says it is site-a, which is online already" in caplog.text


def test_a_node_that_does_not_say_its_name_is_left_out(
    grid: WatchedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    grid.failed = {FIRST_NODE: 2}
    grid.spoiled = {FIRST_NODE + 1}
    grid.lost = {FIRST_NODE + 2}
    with caplog.at_level(logging.WARNING):
        assert link_over(grid).sites() == (D,)
    assert "Flower error 2: the app failed" in caplog.text
    assert "patient text" not in caplog.text


def test_a_node_that_hangs_holds_up_nobody_and_is_asked_again_when_its_time_is_over(
    grid: WatchedGrid,
) -> None:
    grid.lost = {FIRST_NODE}
    link = GridLink(grid, query_ttl_s=1.0, poll_s=0.01)
    started = time.monotonic()
    assert link.sites() == link.sites() == (B, C, D)
    assert time.monotonic() - started < 1.0
    assert len(grid.pushed) == 4
    grid.lost = set()
    time.sleep(1.0)
    assert link.sites() == SITES
    assert len(grid.pushed) == 5


def test_waiting_ends_when_all_expected_sites_are_there(grid: WatchedGrid) -> None:
    assert link_over(grid).wait_for(SITES, 60.0) == SITES


def test_waiting_ends_with_the_time_and_says_who_is_missing(
    grid: WatchedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    grid.online = [FIRST_NODE]
    with caplog.at_level(logging.WARNING):
        assert link_over(grid).wait_for(SITES, 0.05) == (A,)
    assert "site-b, site-c, site-d" in caplog.text


NODES = {FIRST_NODE + place: site for place, site in enumerate(SITES)}


def test_with_a_list_of_nodes_nobody_is_asked_and_no_other_node_is_admitted(grid: WatchedGrid) -> None:
    known = {node: site for node, site in NODES.items() if site != B}
    link = GridLink(grid, query_ttl_s=0.05, poll_s=0.01, nodes=known)
    assert link.sites() == (A, C, D)
    assert grid.pushed == []
    assert set(exchange(link)) == {A, C, D}
    grid.online = [FIRST_NODE, FIRST_NODE + 1]
    assert link.sites() == (A,)


def test_a_list_of_nodes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_text('{"schema": 1, "nodes": {"7": "site-a", "8": "site-b"}}')
    assert read_nodes(path) == {7: A, 8: B}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no", "expected {"),
        ("{}", "expected {"),
        ('{"schema": 1, "nodes": {"x": "site-a"}}', "expected {"),
        ('{"schema": 1, "nodes": {"7": "Site A"}}', "expected {"),
        ('{"schema": 1, "nodes": ["site-a"]}', "expected {"),
        ('{"schema": 0, "nodes": {"7": "site-a"}}', "expected schema 1 and every site once"),
        ('{"schema": 1, "nodes": {"7": "site-a", "8": "site-a"}}', "expected schema 1 and every site once"),
    ],
)
def test_a_damaged_list_of_nodes_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(content)
    with pytest.raises(BadFileError, match=re.escape(reason)):
        read_nodes(path)


def test_a_newer_list_of_nodes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_text('{"schema": 2, "nodes": {}}')
    with pytest.raises(UnsupportedSchemaError, match="schema 2 is newer than 1"):
        read_nodes(path)


class AwayGrid(WatchedGrid):
    """A grid whose SuperLink is away for the next calls."""

    def __init__(self) -> None:
        super().__init__()
        self.away: list[Exception] = []

    def _require_there(self) -> None:
        if self.away:
            raise self.away.pop(0)

    def get_node_ids(self) -> Iterable[int]:
        self._require_there()
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        self._require_there()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        self._require_there()
        return super().pull_messages(message_ids)


def status_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/v1/runtime")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))


@pytest.fixture
def away(grid: WatchedGrid, monkeypatch: pytest.MonkeyPatch) -> AwayGrid:
    monkeypatch.setattr(server.grid, "SHORTEST_PAUSE_S", 0.001)
    return AwayGrid()


@pytest.mark.parametrize(
    "error", [httpx.ConnectError(""), httpx.ReadTimeout(""), ConnectionRefusedError(), status_error(503)]
)
def test_a_superlink_that_is_away_for_a_while_costs_no_answer(away: AwayGrid, error: Exception) -> None:
    link = link_over(away)
    assert link.sites() == SITES
    away.away = [error] * 3
    replies = link.exchange(dict.fromkeys(SITES, PREPARE), 30.0)
    answered = [next(replies)]
    # Once while tasks go out, once while answers come back.
    away.away = [error] * 2
    assert {site for site, _ in (*answered, *replies)} == set(SITES)


def test_a_superlink_that_stays_away_is_waited_for_until_the_deadline(away: AwayGrid) -> None:
    link = link_over(away)
    link.sites()
    away.away = [httpx.ConnectError("")] * 10_000
    started = time.monotonic()
    assert list(link.exchange(dict.fromkeys(SITES, PREPARE), 0.1)) == []
    assert 0.1 <= time.monotonic() - started < 5.0
    assert link.sites() == SITES


def test_what_a_superlink_answers_is_not_taken_for_its_absence(away: AwayGrid) -> None:
    link = link_over(away)
    link.sites()
    for ask in (link.sites, lambda: list(link.exchange(dict.fromkeys(SITES, PREPARE), 30.0))):
        away.away = [status_error(401)]
        with pytest.raises(httpx.HTTPStatusError):
            ask()


class RestartedGrid(WatchedGrid):
    """A site has a second node: its SuperNode was started anew."""

    def __init__(self) -> None:
        super().__init__((*SITES, A))


def test_a_node_that_is_new_after_a_restart_keeps_its_site_in(grid: WatchedGrid) -> None:
    restarted, new = RestartedGrid(), FIRST_NODE + 4
    link = link_over(restarted)
    restarted.online = [FIRST_NODE + place for place in range(4)]
    state = run_round(prepare(tiny_state(), link), link)
    # For a minute both are online; then the old one is gone.
    restarted.online = [*restarted.online, new]
    assert link.sites() == SITES
    restarted.online = [FIRST_NODE + 1, FIRST_NODE + 2, FIRST_NODE + 3, new]
    link.sites()
    assert run_round(state, link).history[-1].survivors == SITES
    assert {m.metadata.dst_node_id for m in restarted.pushed[-4:]} == set(restarted.online)


def employ(**plan: Any) -> None:
    """Sites of another plan."""
    for site, handler in fake_sites(tiny_plan(**plan)).items():
        detach(site)
        attach(site, handler)


def test_a_site_that_is_offline_for_ten_rounds_rejoins(grid: WatchedGrid) -> None:
    employ(rounds=13)
    link = GridLink(grid, query_ttl_s=0.05, poll_s=0.01, nodes=NODES)
    state = run_round(prepare(tiny_state(rounds=13), link), link)
    grid.online = [FIRST_NODE, FIRST_NODE + 1, FIRST_NODE + 2]
    for _ in range(10):
        state = run_round(state, link)
    grid.online = None
    # The keys of the next sum were agreed without it.
    state = run_round(run_round(state, link), link)
    assert [len(report.survivors) for report in state.history] == [4, *[3] * 11, 4]


def test_a_slow_site_is_waited_for_only_as_long_as_the_plan_says(grid: WatchedGrid) -> None:
    employ(timeout_s=0.3)
    link = link_over(grid)
    link.sites()
    state = prepare(tiny_state(timeout_s=0.3), link)
    grid.lost = {FIRST_NODE + 3}
    started = time.monotonic()
    state = run_round(state, link)
    report = state.history[-1]
    assert (report.survivors, report.exchanges) == ((A, B, C), 4)
    assert report.waiting_s >= 0.3
    assert time.monotonic() - started < 4 * 0.3 + 5
