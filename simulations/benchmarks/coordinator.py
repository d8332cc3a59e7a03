"""Memory and seconds of a round at the coordinator, against the number of sites and the size of an adapter.

The coordinator runs in a process of its own, whose peak of resident memory is measured beyond what it holds
before the first round; the sites answer from this process, one after another, with real keys and masks and
without training. A plan takes three sites at least.

``peak_bytes`` is of all rounds. ``seconds`` are those of a round, medians, most of them this machine doing
all sites' masking in a row; ``own_s`` are the coordinator's own. An exponent is the slope of a line through
the logarithms: 1 is linear growth. ``closed`` is how many rounds of the most sites were closed with all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from client.session import SiteSession
from client.session_store import FolderStore
from common.plan import RunPlan
from common.wire import from_bytes, to_bytes
from simulations.benchmarks._coordinator_memory import Constant
from simulations.benchmarks._coordinator_process import (
    DONE,
    TRACK,
    identity_of,
    plan_of,
    read_frame,
    write_frame,
)
from simulations.benchmarks._measure import parser, report

SITES, SIZE = (3, 8, 32, 100), 10**6
# Of the larger adapter: 100 sites of it would mask 400 GB here.
LARGE_SITES, LARGE_SIZE = (3, 8, 32), 10**7
QUICK_SITES, QUICK_SIZE, QUICK_LARGE_SIZE = (3, 5), 10**4, 10**5
ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("coordinator", __doc__)
    options.set_defaults(repeats=ROUNDS)
    options.add_argument("--quick", action="store_true", help="a few sites and small adapters")
    chosen = options.parse_args(arguments)
    if chosen.quick:
        values = measure(QUICK_SITES, QUICK_SIZE, QUICK_SITES, QUICK_LARGE_SIZE, rounds=chosen.repeats)
    else:
        values = measure(SITES, SIZE, LARGE_SITES, LARGE_SIZE, rounds=chosen.repeats)
    report("The coordinator of a round", values, as_json=chosen.json)


def measure(
    sites: Sequence[int], size: int, large_sites: Sequence[int], large_size: int, *, rounds: int
) -> dict[str, float]:
    """Every point by name, and how memory and time grow with sites and with size."""
    small = {number: measure_point(number, size, rounds) for number in sites}
    large = {number: measure_point(number, large_size, rounds) for number in large_sites}
    values: dict[str, float] = {"closed_sites": sites[-1], "closed": small[sites[-1]]["rounds"]}
    for length, points in ((size, small), (large_size, large)):
        for number, point in points.items():
            for name in ("peak_bytes", "seconds", "own_s", "bytes_up"):
                values[f"{name}_n{number}_d{length}"] = point[name]
    # By size at the largest number that both have: what does not depend on it weighs least there.
    shared = max(set(small) & set(large))
    by_size = {size: small[shared], large_size: large[shared]}
    for name, measured in (("memory", "peak_bytes"), ("seconds", "seconds"), ("own_seconds", "own_s")):
        values[f"{name}_exponent_n"] = exponent({n: point[measured] for n, point in small.items()})
        values[f"{name}_exponent_n_large"] = exponent({n: point[measured] for n, point in large.items()})
        values[f"{name}_exponent_d"] = exponent({d: point[measured] for d, point in by_size.items()})
    return values


def exponent(measured: Mapping[int, float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    sizes, values = np.log(list(measured)), np.log(list(measured.values()))
    return float(np.polyfit(sizes, values, 1)[0])


def measure_point(sites: int, size: int, rounds: int) -> dict[str, float]:
    """What a coordinator measures of itself, this process being its sites."""
    plan, _ = plan_of(sites, size, rounds)
    command = [sys.executable, "-m", "simulations.benchmarks._coordinator_process"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, str(sites), str(size), str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as coordinator,
    ):
        assert coordinator.stdin is not None and coordinator.stdout is not None
        sessions = make_sessions(plan, Path(folder))
        while True:
            number, content = read_frame(coordinator.stdout)
            if number == DONE:
                measured: dict[str, float] = json.loads(content)
                return measured
            write_frame(coordinator.stdin, number, to_bytes(sessions[number](from_bytes(content))))


def make_sessions(plan: RunPlan, folder: Path) -> list[SiteSession]:
    """The sites, in the plan's order; what they store is on the disk, as at real ones."""
    public = {site: identity_of(site).public() for site in plan.sites}
    return [
        SiteSession(
            plan=plan,
            track=TRACK,
            identity=identity_of(site),
            approved=public,
            store=FolderStore(folder / site),
            work=Constant(plan=plan),
        )
        for site in plan.sites
    ]


if __name__ == "__main__":
    main()
