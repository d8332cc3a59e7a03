from dataclasses import replace
from pathlib import Path

import pytest

import client.app
from common.adapter import load_adapter, save_adapter
from common.flower import site_of_record
from common.pki import write_public
from server.app import make_app
from server.rounds import TrackState, run_track
from simulations.federation import attached_sessions, make_sessions
from simulations.grid import FIRST_NODE, NODE_UNAVAILABLE, LocalGrid, run_apps, task_identity
from simulations.link import MemoryLink
from tests.fakes import SITES, TRACK, fake_sites, fake_works, tiny_adapter, tiny_plan, tiny_state

# isort: split
from flwr.app import Context, MessageType, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


def run_over_flower(folder: Path, **plan: object) -> list[TrackState]:
    save_adapter(tiny_adapter(), folder / f"{TRACK}.safetensors")
    made = tiny_plan(**plan)
    sessions, identities = make_sessions(made, {TRACK: fake_works(made)})
    for identity in identities.values():
        write_public(identity, folder)
    config = {
        "plan": made.to_json(),
        "adapters": str(folder),
        "identities": str(folder),
        "out": str(folder / "out"),
    }
    seen: list[TrackState] = []
    with attached_sessions(sessions):
        run_apps(make_app(seen.append), client.app.app, sites=SITES, run_config=config)
    return seen


@pytest.mark.parametrize("optimizer", [{"momentum": 0.5}, {"name": "adam", "learning_rate": 0.01}])
def test_both_links_end_at_the_same_bytes(tmp_path: Path, optimizer: dict[str, object]) -> None:
    state = tiny_state(optimizer=optimizer)
    in_memory = run_track(state, MemoryLink(fake_sites(state.plan)), on_state=lambda _: None)
    over_flower = run_over_flower(tmp_path, optimizer=optimizer)[-1]
    save_adapter(in_memory.adapter, tmp_path / "memory.safetensors")
    saved = tmp_path / "out" / TRACK / "adapter.safetensors"
    assert saved.read_bytes() == (tmp_path / "memory.safetensors").read_bytes()
    assert load_adapter(saved) == over_flower.adapter
    assert over_flower.metrics == in_memory.metrics
    for mine, theirs in zip(in_memory.history, over_flower.history, strict=True):
        assert replace(mine, seconds=0.0, waiting_s=0.0) == replace(theirs, seconds=0.0, waiting_s=0.0)


def test_a_run_shows_every_state_on_the_way(tmp_path: Path) -> None:
    seen = run_over_flower(tmp_path, rounds=2)
    assert [(state.round_id, state.metrics is not None) for state in seen] == [
        (0, False),
        (1, False),
        (2, False),
        (2, True),
    ]


def query(grid: LocalGrid, node: int) -> FlowerMessage:
    with task_identity(run_id=1, node_id=1, task_id=0):
        message = FlowerMessage(RecordDict(), node, MessageType.QUERY, ttl=1.0)
        (reply,) = grid.send_and_receive([message])
    return reply


def test_every_site_has_a_node_that_knows_its_name() -> None:
    grid = LocalGrid(client.app.app, SITES)
    names = [site_of_record(query(grid, node).content) for node in grid.get_node_ids()]
    assert names == list(SITES)


def test_a_reply_names_its_message_and_is_pulled_once() -> None:
    grid = LocalGrid(client.app.app, SITES)
    with task_identity(run_id=1, node_id=1, task_id=0):
        message = grid.create_message(RecordDict(), MessageType.QUERY, FIRST_NODE, "1", ttl=3.0)
        (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id
    assert (reply.metadata.src_node_id, reply.metadata.run_id) == (FIRST_NODE, 1)
    assert list(grid.pull_messages([message_id])) == []


def test_a_node_works_when_its_reply_is_pulled_and_not_before() -> None:
    worked: list[int] = []
    app = ClientApp()

    @app.query()
    def work(message: FlowerMessage, context: Context) -> FlowerMessage:
        worked.append(context.node_id)
        return FlowerMessage(RecordDict(), reply_to=message)

    grid = LocalGrid(app, SITES)
    with task_identity(run_id=1, node_id=1, task_id=0):
        nodes = list(grid.get_node_ids())
        ids = grid.push_messages(
            FlowerMessage(RecordDict(), node, MessageType.QUERY, ttl=1.0) for node in nodes
        )
        assert worked == []
        for number, _ in enumerate(grid.pull_messages(ids), 1):
            # One after another, so that two replies are never in memory.
            assert worked == nodes[:number]


def test_a_node_that_is_not_there_is_flowers_own_error() -> None:
    assert query(LocalGrid(client.app.app, SITES), 7).error.code == NODE_UNAVAILABLE


def test_an_app_that_raises_becomes_flowers_error_reply() -> None:
    broken = ClientApp()

    @broken.query()
    def fail(message: FlowerMessage, context: Context) -> FlowerMessage:
        raise KeyError("broken")

    assert query(LocalGrid(broken, SITES), FIRST_NODE).error.code == 2


def test_the_identity_of_a_task_is_set_and_given_back() -> None:
    with task_identity(run_id=5, node_id=6, task_id=7):
        with task_identity(run_id=8, node_id=9, task_id=10):
            assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (8, 9, 10)
        assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (5, 6, 7)
    with pytest.raises(RuntimeError, match="not set"):
        _ = TaskIdentity.run_id


def test_a_grid_can_be_given_another_run() -> None:
    grid, other = LocalGrid(client.app.app, SITES), LocalGrid(client.app.app, SITES, run_id=9)
    grid.set_run(other.run)
    assert grid.run.run_id == 9
