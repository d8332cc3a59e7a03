from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.adapter import save_adapter
from common.canonical import canonical_json
from common.errors import BadFileError, UnsupportedSchemaError
from common.ids import RunId
from server.rounds import TrackState, evaluate, prepare, run_round
from server.stored_state import METADATA_KEY, STATE_SCHEMA, load_state, save_state
from simulations.link import MemoryLink
from tests.fakes import (
    SITES,
    fake_budgets,
    fake_sites,
    private_plan,
    private_state,
    private_works,
    tiny_state,
)

FILE = "state.safetensors"


def same(one: TrackState, other: TrackState) -> bool:
    moments = all(
        one.optimizer[block].steps == other.optimizer[block].steps
        and np.array_equal(one.optimizer[block].first, other.optimizer[block].first)
        and np.array_equal(one.optimizer[block].second, other.optimizer[block].second)
        for block in one.optimizer.keys() | other.optimizer.keys()
    )
    plain = (
        "round_id",
        "adapter",
        "declined",
        "history",
        "retried",
        "measured",
        "evaluation",
        "sum_id",
        "setup",
        "heads",
    )
    return moments and all(getattr(one, name) == getattr(other, name) for name in plain)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "adam"}])
def test_a_state_comes_back_as_it_was(tmp_path: Path, optimizer: dict) -> None:
    start = tiny_state(rounds=2, optimizer=optimizer)
    link = MemoryLink(fake_sites(start.plan))
    states = [start, prepare(start, link)]
    states.append(run_round(states[-1], link))
    states.append(run_round(states[-1], link).after_failure())
    states.append(evaluate(states[-1], link))
    for state in states:
        save_state(state, tmp_path / FILE)
        assert same(load_state(tmp_path / FILE, start), state)
    assert states[2].setup is not None
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_heads_of_the_sites_ledgers_come_back_and_newer_ones_are_kept(tmp_path: Path) -> None:
    plan = private_plan()
    start = private_state(plan)
    sites = fake_sites(plan, private_works(plan), budgets=fake_budgets(plan, tmp_path / "sites"))
    state = run_round(start, MemoryLink(sites))
    save_state(state, tmp_path / FILE)
    assert load_state(tmp_path / FILE, start).heads == state.heads
    newer = {SITES[0]: "ab" * 32}
    assert load_state(tmp_path / FILE, replace(start, heads=newer)).heads == {**state.heads, **newer}


def test_what_is_stored_holds_no_secret_of_the_coordinator(tmp_path: Path) -> None:
    state = private_state(private_plan())
    save_state(state, tmp_path / FILE)
    data = (tmp_path / FILE).read_bytes()
    assert state.signer is not None
    assert state.signer.private_key not in data
    assert state.signer.private_key.hex().encode() not in data


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    save_state(tiny_state(), tmp_path / FILE)
    with pytest.raises(BadFileError, match=r"expected a state of run-2, .* got one of run-1"):
        load_state(tmp_path / FILE, replace(tiny_state(), run_id=RunId("run-2")))


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="not a readable safetensors file"):
        load_state(tmp_path / FILE, tiny_state())
    save_adapter(tiny_state().adapter, tmp_path / FILE)
    with pytest.raises(BadFileError, match="expected a state under the metadata key"):
        load_state(tmp_path / FILE, tiny_state())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"schema": STATE_SCHEMA, "state": {}}, r"damaged: state\.run_id: expected"),
        ({"schema": 1, "state": {}}, "damaged: expected schema 2, an older version wrote it"),
        ({"schema": 0, "state": {}}, "schema: expected a number"),
        ({"state": {}}, "schema: expected a number"),
    ],
)
def test_a_damaged_state_is_refused_with_one_line(tmp_path: Path, content: dict, line: str) -> None:
    save_file({"a": np.zeros(1)}, str(tmp_path / FILE), metadata={METADATA_KEY: canonical_json(content)})
    with pytest.raises(BadFileError, match=line):
        load_state(tmp_path / FILE, tiny_state())


def test_a_newer_versions_state_is_refused(tmp_path: Path) -> None:
    text = canonical_json({"schema": STATE_SCHEMA + 1, "state": {"unheard": "of"}})
    save_file({"a": np.zeros(1)}, str(tmp_path / FILE), metadata={METADATA_KEY: text})
    with pytest.raises(
        UnsupportedSchemaError, match=f"schema {STATE_SCHEMA + 1} is newer than {STATE_SCHEMA}"
    ):
        load_state(tmp_path / FILE, tiny_state())
