"""What every benchmark measures with, and how it reports."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from common.canonical import canonical_json

Work = Callable[[], object]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python -m simulations.benchmarks.{name}", description=(doc or "").split("\n\n")[0]
    )
    made.add_argument("--json", action="store_true", help="print the JSON object and nothing else")
    made.add_argument("--repeats", type=positive, default=7, help="turns of each peer; default %(default)s")
    made.add_argument("--threads", type=positive, default=2, help="of torch; default %(default)s")
    return made


def with_model(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The same parser with the sizes of a random Llama and of the prompts it reads."""
    made.add_argument("--prompt", type=positive, default=100, help="mean tokens; default %(default)s")
    made.add_argument("--vocabulary", type=positive, default=8000, help="default %(default)s")
    made.add_argument("--width", type=positive, default=256, help="of the model; default %(default)s")
    made.add_argument("--layers", type=positive, default=2, help="of the model; default %(default)s")
    return made


def positive(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def in_turns(peers: Mapping[str, Work], repeats: int) -> dict[str, float]:
    """Median seconds of each peer over ``repeats`` turns of all peers, after one turn that is not timed."""
    for work in peers.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, work in peers.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(work: Work) -> int:
    """The most memory that torch holds at once for ``work`` beyond what it held before, in bytes, on the CPU.

    Counted from torch's own allocations: the process's resident size would depend on what ran before.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = peak = 0
    found = recorded.profiler.kineto_results.events() if recorded.profiler else []
    for event in sorted((e for e in found if e.name() == "[memory]"), key=lambda e: int(e.start_ns())):
        held += int(event.nbytes())
        peak = max(peak, held)
    return peak


def report(title: str, values: Mapping[str, float | int | str], *, as_json: bool) -> None:
    """A table for people unless only JSON is wanted; then one JSON object as the last line."""
    rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
    if not as_json:
        table = Table("", "", title=title, show_header=False)
        for key, value in rounded.items():
            table.add_row(key, str(value))
        Console().print(table)
    sys.stdout.write(canonical_json(rounded) + "\n")
