"""A coordinator in a process of its own, so that its peak of memory is nobody else's. No torch, no sites.

``python -m simulations.benchmarks._coordinator_process SITES SIZE ROUNDS`` asks its parent, over standard
output and input, for what each site answers, and ends with what it measured. A frame is the number of the
site that it is for (4 bytes, little-endian; ``DONE`` for the last one), its length (8 bytes) and its bytes.
"""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.adapter import Adapter, AdapterMode, AdapterSpec, ModuleShape, initial_adapter
from common.ids import RunId, SiteId
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.messages import Message
from common.pki import Identity
from common.plan import AggregationPlan, RunPlan, TrackPlan
from common.tracks import RARE_DISEASE
from common.wire import from_bytes, to_bytes
from server.rounds import TrackState, run_round

TRACK = RARE_DISEASE.name
WAIT_S = 3600.0
DONE = 2**32 - 1
FRAME = struct.Struct("<IQ")
KIB = 1024


@dataclass(frozen=True)
class PipeLink:
    """A ``SiteLink`` to sites of the parent process, one after another."""

    plan: RunPlan
    tasks_out: IO[bytes]
    answers_in: IO[bytes]

    def sites(self) -> tuple[SiteId, ...]:
        """All of them."""
        return self.plan.sites

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        """Every site answers, however long it takes."""
        for site, task in tasks.items():
            write_frame(self.tasks_out, self.plan.sites.index(site), to_bytes(task))
            _, answer = read_frame(self.answers_in)
            yield site, from_bytes(answer)


def write_frame(stream: IO[bytes], number: int, content: bytes) -> None:
    """Send one frame."""
    stream.write(FRAME.pack(number, len(content)))
    stream.write(content)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[int, bytes]:
    """The next frame; EOFError if the other end is gone."""
    head = stream.read(FRAME.size)
    if len(head) < FRAME.size:
        raise EOFError("the other process ended")
    number, length = FRAME.unpack(head)
    return number, stream.read(length)


def identity_of(site: SiteId) -> Identity:
    """The same in both processes."""
    return Identity(site_id=site, private_key=hashlib.sha256(site.encode()).digest())


def plan_of(sites: int, size: int, rounds: int = 1) -> tuple[RunPlan, Adapter]:
    """A plan of one track with ``size`` trained values, and the adapter that it starts from."""
    spec = AdapterSpec(
        mode=AdapterMode.FFA,
        rank=1,
        alpha=1.0,
        modules=(ModuleShape(name="layer", in_features=1, out_features=size),),
    )
    adapter = initial_adapter(spec, 0)
    track = TrackPlan(
        track=TRACK,
        answers_digest="0" * 64,
        base_model_digest="0" * 64,
        tokenizer_digest="0" * 64,
        adapter=AdapterPlan(
            mode=spec.mode, rank=1, alpha=1.0, targets=("layer",), factors_digest=adapter.digest()
        ),
        preferences=PreferencePlan(pairs_per_patient=1),
        training=TrainingPlan(
            rounds=rounds, local_steps=1, patients_per_step=1, learning_rate=1.0, max_prompt_tokens=1
        ),
        server_optimizer=ServerOptimizerPlan(),
    )
    plan = RunPlan(
        name="benchmark",
        purpose="benchmark",
        ethics_id="none",
        expires="2100-01-01",
        seed=0,
        sites=tuple(SiteId(f"site-{i:03d}") for i in range(sites)),
        tracks=(track,),
        teacher=TeacherPlan(modality_dropout=0.0),
        aggregation=AggregationPlan(minimum_survivors=2, site_patients_cap=1, timeout_s=WAIT_S),
    )
    return plan, adapter


def measure(sites: int, size: int, rounds: int, link: PipeLink, adapter: Adapter) -> dict[str, float]:
    """Close so many rounds; peak bytes beyond what was there, and medians of a round's seconds."""
    plan = link.plan
    public = {site: identity_of(site).public() for site in plan.sites}
    state = TrackState(plan=plan, run_id=RunId("run-1"), track=TRACK, adapter=adapter, identities=public)
    del adapter
    before = _restart_peak()
    for _ in range(rounds):
        state = run_round(state, link)
    reports = state.history
    if any(len(report.survivors) != sites for report in reports):
        raise RuntimeError(f"Expected {sites} survivors in every round: less was measured than was meant")
    return {
        "rounds": len(reports),
        "peak_bytes": _peak() - before,
        "seconds": statistics.median(report.seconds for report in reports),
        "own_s": statistics.median(report.seconds - report.waiting_s for report in reports),
        "bytes_up": reports[-1].bytes_up,
    }


def main() -> None:
    """Measure what the arguments say."""
    sites, size, rounds = (int(text) for text in sys.argv[1:])
    plan, adapter = plan_of(sites, size, rounds)
    link = PipeLink(plan, sys.stdout.buffer, sys.stdin.buffer)
    measured = measure(sites, size, rounds, link, adapter)
    write_frame(sys.stdout.buffer, DONE, json.dumps(measured).encode())


def _restart_peak() -> int:
    """Bytes in memory now; the peak is counted from here where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """The most bytes in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else KIB)


if __name__ == "__main__":
    main()
