"""How much memory a coordinator takes at most while it adds up, counted by Python's own allocator tracing.

NumPy reports to it; what is held in Rust or C beside it is a few bytes a key. The sites of a whole round
keep what they stored on the disk, as real ones would, or the count would be of them.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.app import app as client_app
from client.session import SiteSession
from client.session_answers import mask_input
from client.session_store import FolderStore
from common.adapter import Block
from common.fixedpoint import Words
from common.ids import RoundId, RunId, SiteId
from common.messages import SumTask, TrainTask, sum_topic
from common.pki import Identity
from common.plan import RunPlan
from common.secagg.keys import Roster, SumContext, SumSecrets, sign_keys
from common.train_words import TrainWords, train_fixed_point
from server.grid import GridLink
from server.link import SiteLink
from server.rounds import TrackState, run_round
from server.session import SecureSum, Setup
from simulations.benchmarks._coordinator_process import TRACK, WAIT_S, plan_of
from simulations.federation import attached_sessions
from simulations.grid import SUPERLINK_NODE, LocalGrid, task_identity
from simulations.link import MemoryLink

FEWEST_SITES = 3


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A site's work without training: the same small delta everywhere."""

    plan: RunPlan

    def prepare(self) -> None:
        """Nothing to get ready."""

    def words(self, task: SumTask) -> Words:
        """The words of a delta of 1/64 in every coordinate, of a site of weight 1."""
        fixed_point = train_fixed_point(self.plan)
        size = task.adapter.spec.size(Block.B)
        return TrainWords(
            delta=fixed_point.encode(np.full(size, 1 / 64, dtype=np.float32)),
            weight=fixed_point.encode(np.ones(1)),
            counts=np.ones(4, dtype=np.uint32),
        ).join()


def memory_of_sum(sites: int, size: int) -> int:
    """Peak bytes of ``SecureSum`` alone, beyond what was there, while ``sites`` inputs are added."""
    plan, adapter = plan_of(max(sites, FEWEST_SITES), size)
    names = plan.sites[:sites]
    identities = {name: Identity.generate(name) for name in names}
    public = {name: identity.public() for name, identity in identities.items()}
    context = SumContext(run_id=RunId("run-1"), track=TRACK, sum_id=1, plan_digest=plan.digest())
    secrets = {name: SumSecrets.generate() for name in names}
    roster = Roster(
        context=context,
        entries=tuple(sign_keys(context, secrets[name], identities[name]) for name in names),
    )
    setup = Setup(roster=roster, envelopes={name: {} for name in names})
    task = TrainTask(
        run_id=context.run_id,
        track=TRACK,
        plan_digest=context.plan_digest,
        round_id=RoundId(1),
        adapter=adapter,
        sum_id=1,
        members=names,
        envelopes={},
        bin_accuracy=None,
    )
    work, adapter_id = Constant(plan=plan), adapter.digest()
    transcript = roster.transcript(names, sum_topic(task, adapter_id))
    with _peak() as peak:
        secure_sum = SecureSum(
            setup, task, plan=plan, identities=public, adapter_id=adapter_id, length=TrainWords.length(size)
        )
        for name in names:
            masked = mask_input(
                work.words(task),
                roster=roster,
                members=names,
                transcript=transcript,
                own=secrets[name],
                identity=identities[name],
                bits=32,
            )
            secure_sum.add(name, masked)
        secure_sum.close()
    return peak[0]


def memory_of_round(sites: int, size: int, link: str) -> int:
    """Peak bytes of a whole round at the coordinator, sites in the same process and one at a time.

    ``link`` is ``memory``, or ``grid`` for Flower's messages.
    """
    plan, adapter = plan_of(sites, size)
    own = {site: Identity.generate(site) for site in plan.sites}
    public = {site: identity.public() for site, identity in own.items()}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            site: SiteSession(
                plan=plan,
                track=TRACK,
                identity=own[site],
                approved=public,
                store=FolderStore(Path(folder) / site),
                work=Constant(plan=plan),
            )
            for site in plan.sites
        }
        state = TrackState(plan=plan, run_id=RunId("run-1"), track=TRACK, adapter=adapter, identities=public)
        with _link(link, sessions, plan) as reached, _peak() as peak:
            after = run_round(state, reached)
        assert len(after.history[-1].survivors) == sites  # or less was measured than was meant
    return peak[0]


@contextmanager
def _link(link: str, sessions: dict[SiteId, SiteSession], plan: RunPlan) -> Iterator[SiteLink]:
    if link == "memory":
        yield MemoryLink(sessions)
        return
    with (
        attached_sessions(sessions),
        task_identity(run_id=1, node_id=SUPERLINK_NODE, task_id=0),
    ):
        grid = GridLink(LocalGrid(client_app, plan.sites), query_ttl_s=WAIT_S)
        grid.wait_for(plan.sites, WAIT_S)
        yield grid


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most bytes at once beyond those at the beginning, in the list when the block ends."""
    found: list[int] = []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield found
    finally:
        found.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.stop()
