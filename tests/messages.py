"""A good message of every kind, and strategies for any message of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import strategies as st

from common.adapter import Adapter, AdapterMode, AdapterSpec, Block, ModuleShape, initial_adapter, unflatten
from common.message_fields import MAX_NUMBER, MAX_PARTS
from common.messages import KINDS, Bundle, EvaluateTask, Message, TrainTask
from common.pki import SIGNATURE_SIZE
from common.secagg.envelopes import ENVELOPE_SIZE
from common.secagg.keys import SignedKeys
from common.secagg.sharing import SHARE_SIZE
from tests.fakes import RUN, SITES, TRACK, tiny_adapter, tiny_plan

A, B, C, D = SITES
SINGLE_KINDS = tuple(kind for kind in KINDS.values() if kind is not Bundle)


def keys_of(site: str, number: int = 1) -> SignedKeys:
    """Keys that nobody signed."""
    mask_key, envelope_key, seed_hash = (bytes([number + i]) * 32 for i in range(3))
    return SignedKeys(
        site_id=site, mask_key=mask_key, envelope_key=envelope_key, seed_hash=seed_hash, signature=bytes(64)
    )


# A field's name means the same in every message, and so one good value serves them all.
GOOD: Mapping[str, Any] = {
    "run_id": RUN,
    "site_id": A,
    "round_id": 3,
    "sum_id": 4,
    "track": TRACK,
    "plan_digest": tiny_plan().digest(),
    "adapter": tiny_adapter(),
    "words": np.array([1, 2**32 - 2], dtype=np.uint32),
    "reason": "no patients",
    "members": SITES,
    "survivors": (A, B, C),
    "dropouts": (D,),
    "keys": keys_of(A),
    "roster": (keys_of(A, 1), keys_of(B, 4)),
    "envelopes": {B: bytes(ENVELOPE_SIZE), C: b"\x07" * ENVELOPE_SIZE},
    "signatures": {A: bytes(SIGNATURE_SIZE)},
    "seed_shares": {A: bytes(SHARE_SIZE)},
    "mask_key_shares": {D: b"\x01" * SHARE_SIZE},
    "transcript": b"\x02" * 32,
    "signature": b"\x03" * SIGNATURE_SIZE,
    "head": "ab" * 32,
    "countersignature": b"\x04" * SIGNATURE_SIZE,
    "cause": "failed",
    "part": "calibration",
    "temperature": 1.5,
    "bin_accuracy": (None, 0.0, 1.0, *(0.25,) * 7),
}


def example(kind: type[Message], **changes: Any) -> Any:
    """A good message of a kind, with other values in the fields that are named."""
    if kind is Bundle:
        parts = tuple(example(part) for part in SINGLE_KINDS[:2])
        return Bundle(**{"parts": parts, **changes})
    return kind(**{**{field.name: GOOD[field.name] for field in fields(kind)}, **changes})


def train_task(**changes: Any) -> TrainTask:
    """The work of round 1 in sum 1, for nobody yet."""
    values = {"round_id": 1, "sum_id": 1, "envelopes": {}, **changes}
    return example(TrainTask, **values)


def evaluate_task(**changes: Any) -> EvaluateTask:
    """The evaluation after round 0 in sum 1, for nobody yet."""
    values = {"round_id": 0, "sum_id": 1, "envelopes": {}, **changes}
    return example(EvaluateTask, **values)


names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
site_lists = st.lists(names, max_size=4).map(tuple)


def _bytes(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=4, max_size=4).map(lambda some: (some * size)[:size])


def _by_site(size: int) -> st.SearchStrategy[dict[str, bytes]]:
    return st.dictionaries(names, _bytes(size), max_size=3)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    module_names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    width = st.integers(1, 4)
    modules = tuple(
        ModuleShape(name=f"layer.{name}", in_features=draw(width), out_features=draw(width))
        for name in module_names
    )
    spec = AdapterSpec(
        mode=draw(st.sampled_from(list(AdapterMode))),
        rank=draw(st.integers(1, 3)),
        alpha=draw(st.floats(0.5, 64)),
        modules=modules,
    )
    adapter = initial_adapter(spec, draw(st.integers(0, 5)))
    vector = np.random.default_rng(0).normal(size=spec.size(Block.B))
    return unflatten(adapter, Block.B, vector)


signed_keys = st.builds(
    SignedKeys,
    site_id=names,
    mask_key=_bytes(32),
    envelope_key=_bytes(32),
    seed_hash=_bytes(32),
    signature=_bytes(SIGNATURE_SIZE),
)
FIELDS: Mapping[str, st.SearchStrategy[Any]] = {
    "run_id": names,
    "site_id": names,
    "round_id": st.integers(1, MAX_NUMBER),
    "sum_id": st.integers(1, MAX_NUMBER),
    "track": st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True),
    "plan_digest": st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    "adapter": adapters(),
    "words": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20).map(
        lambda values: np.array(values, dtype=np.uint32)
    ),
    "reason": st.text(min_size=1, max_size=100).filter(str.isprintable),
    "members": site_lists,
    "survivors": site_lists,
    "dropouts": site_lists,
    "keys": signed_keys,
    "roster": st.lists(signed_keys, max_size=3).map(tuple),
    "envelopes": _by_site(ENVELOPE_SIZE),
    "signatures": _by_site(SIGNATURE_SIZE),
    "seed_shares": _by_site(SHARE_SIZE),
    "mask_key_shares": _by_site(SHARE_SIZE),
    "transcript": _bytes(32),
    "signature": _bytes(SIGNATURE_SIZE),
    "head": st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    "countersignature": _bytes(SIGNATURE_SIZE),
    "cause": st.sampled_from(["failed", "budget", "ledger"]),
    "part": st.sampled_from(["test", "calibration"]),
    "temperature": st.floats(0, exclude_min=True, allow_infinity=False),
    "bin_accuracy": st.none() | st.tuples(*[st.none() | st.floats(0, 1)] * 10),
}


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of a kind."""
    if kind is Bundle:
        parts = st.lists(st.one_of(*map(messages_of, SINGLE_KINDS)), min_size=2, max_size=MAX_PARTS)
        return st.builds(Bundle, parts=parts.map(tuple))
    return st.builds(kind, **{field.name: FIELDS[field.name] for field in fields(kind)})


messages: st.SearchStrategy[Message] = st.one_of(*map(messages_of, KINDS.values()))
