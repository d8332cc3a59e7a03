"""A track's state as one file: what a coordinator needs to go on after a crash, and nothing that is secret.

The file is safetensors: adapter and optimizer moments as tensors, the rest as JSON in its metadata. The keys
of a sum to come are in it, if they are agreed: a roster is public, and envelopes are sealed for the sites.
The coordinator's own identity is not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.adapter import Adapter, AdapterSpec, Block, read_tensors
from common.atomic import write_atomically
from common.canonical import canonical_json, read_object
from common.durable import require_file_schema, sync_folder
from common.errors import BadFileError
from common.evaluation_counts import EvaluationCounts
from common.ids import RoundId, RunId, SiteId
from common.schema import build
from common.secagg.envelopes import ENVELOPE_SIZE
from common.secagg.keys import Roster, SignedKeys, SumContext
from server.aggregate import Moments, OptimizerState
from server.session import Setup
from server.track_state import RoundReport, TrackState

STATE_SCHEMA = 2
# One key only: with two, safetensors would write them in an order that changes from run to run.
METADATA_KEY = "consilium state"
ENVELOPES = "envelopes"

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class StoredKeys:
    """A ``SignedKeys`` in hexadecimal digits."""

    site_id: SiteId
    mask_key: str
    envelope_key: str
    seed_hash: str
    signature: str


@dataclass(frozen=True, kw_only=True)
class StoredSetup:
    """A ``Setup`` but for its envelopes, which are a tensor: by member, then by receiver."""

    sum_id: int
    members: tuple[SiteId, ...]
    roster: tuple[StoredKeys, ...]


@dataclass(frozen=True, kw_only=True)
class StoredState:
    """A ``TrackState`` but for what the run's plan and settings say, and for its tensors.

    The names are those of ``TrackState``; ``spec`` is the adapter's, ``steps`` are the optimizer's by block.
    """

    run_id: RunId
    track: str
    plan_digest: str
    round_id: RoundId
    spec: AdapterSpec
    steps: Mapping[Block, int]
    declined: Mapping[SiteId, str]
    history: tuple[RoundReport, ...]
    retried: int
    measured: EvaluationCounts | None
    evaluation: EvaluationCounts | None
    sum_id: int
    setup: StoredSetup | None
    heads: Mapping[SiteId, str] = field(default_factory=dict)


def save_state(state: TrackState, path: Path) -> None:
    """Write the state. A crash leaves no file under this name, or all of it."""
    stored = StoredState(
        run_id=state.run_id,
        track=state.track,
        plan_digest=state.plan.digest(),
        round_id=state.round_id,
        spec=state.adapter.spec,
        steps={block: moments.steps for block, moments in state.optimizer.items()},
        declined=state.declined,
        history=state.history,
        retried=state.retried,
        measured=state.measured,
        evaluation=state.evaluation,
        sum_id=state.sum_id,
        setup=_stored_setup(state.setup) if state.setup else None,
        heads=state.heads,
    )
    tensors = {f"adapter.{key}": values for key, values in state.adapter.tensors.items()}
    for block, moments in state.optimizer.items():
        tensors |= {f"first.{block.value}": moments.first, f"second.{block.value}": moments.second}
    held: dict[str, NDArray[Any]] = {**tensors, **_envelopes(state.setup)}
    text = canonical_json({"schema": STATE_SCHEMA, "state": stored})
    temporary = hidden_beside(path)
    save_file(held, str(temporary), metadata={METADATA_KEY: text})
    move_durably(temporary, path)


def load_state(path: Path, start: TrackState) -> TrackState:
    """The state of a file, with plan, identities and signer of ``start``.

    Raises:
        BadFileError: The file is missing, damaged, or of another run, track or plan.
        UnsupportedSchemaError: A newer version wrote it.
    """
    metadata, tensors = read_tensors(path)
    if METADATA_KEY not in metadata:
        raise BadFileError(path, f"expected a state under the metadata key {METADATA_KEY!r}")
    try:
        content = read_object(metadata[METADATA_KEY], "state")
        if require_file_schema(path, content.get("schema"), STATE_SCHEMA) < STATE_SCHEMA:
            # So is its plan, without which nobody can go on from it.
            raise ValueError(f"expected schema {STATE_SCHEMA}, an older version wrote it")
        stored = build(StoredState, content.get("state"), "state")
        _require_same(path, stored, start)
        return replace(
            start,
            round_id=stored.round_id,
            adapter=Adapter(spec=stored.spec, tensors=_named(tensors, "adapter.")),
            optimizer=_optimizer(stored, tensors),
            declined=stored.declined,
            history=stored.history,
            retried=stored.retried,
            measured=stored.measured,
            evaluation=stored.evaluation,
            sum_id=stored.sum_id,
            setup=_setup(stored.setup, stored, tensors) if stored.setup else None,
            heads={**stored.heads, **start.heads},
        )
    except (ValueError, KeyError) as error:
        raise BadFileError(path, f"damaged: {error}") from error


def hidden_beside(path: Path) -> Path:
    """Where a file is written before it takes its place; the name is not looked at after a crash."""
    return path.with_name(f".{path.name}.tmp")


def move_durably(temporary: Path, path: Path) -> None:
    """Bring a written file to the disk and to its place."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_text_durably(path: Path, text: str) -> None:
    """Put the text at ``path``; on the disk when this returns."""
    write_atomically(path, text)
    sync_folder(path.parent)


def _require_same(path: Path, stored: StoredState, start: TrackState) -> None:
    found = (stored.run_id, stored.track, stored.plan_digest)
    expected = (start.run_id, start.track, start.plan.digest())
    if found != expected:
        raise BadFileError(path, f"expected a state of {', '.join(expected)}, got one of {', '.join(found)}")


def _named(tensors: Tensors, start: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(start): values for key, values in tensors.items() if key.startswith(start)}


def _optimizer(stored: StoredState, tensors: Tensors) -> OptimizerState:
    return {
        block: Moments(
            steps=steps, first=tensors[f"first.{block.value}"], second=tensors[f"second.{block.value}"]
        )
        for block, steps in stored.steps.items()
    }


def _stored_setup(setup: Setup) -> StoredSetup:
    entries = (
        {name: value if name == "site_id" else value.hex() for name, value in vars(entry).items()}
        for entry in setup.roster.entries
    )
    return StoredSetup(
        sum_id=setup.roster.context.sum_id,
        members=setup.members,
        roster=tuple(StoredKeys(**entry) for entry in entries),
    )


def _envelopes(setup: Setup | None) -> dict[str, NDArray[Any]]:
    if setup is None:
        return {}
    data = b"".join(
        setup.envelopes[sender][receiver]
        for sender in setup.members
        for receiver in setup.roster.sites
        if receiver != sender
    )
    return {ENVELOPES: np.frombuffer(data, dtype=np.uint8)}


def _setup(kept: StoredSetup, stored: StoredState, tensors: Tensors) -> Setup:
    entries = tuple(
        SignedKeys(
            site_id=keys.site_id,
            **{name: bytes.fromhex(value) for name, value in vars(keys).items() if name != "site_id"},
        )
        for keys in kept.roster
    )
    context = SumContext(
        run_id=stored.run_id, track=stored.track, sum_id=kept.sum_id, plan_digest=stored.plan_digest
    )
    roster = Roster(context=context, entries=entries)
    shape = (len(kept.members), len(entries) - 1, ENVELOPE_SIZE)
    envelopes = {
        sender: dict(
            zip(
                (site for site in roster.sites if site != sender),
                (row.tobytes() for row in rows),
                strict=True,
            )
        )
        for sender, rows in zip(kept.members, tensors[ENVELOPES].reshape(shape), strict=True)
    }
    return Setup(roster=roster, envelopes=envelopes)
