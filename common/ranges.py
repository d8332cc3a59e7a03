"""A long vector in ranges, one a processor: for work that NumPy and OpenSSL do outside of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Shorter ranges than so many steps are not worth a thread.
LEAST_STEPS = 4


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_ranges(
    work: Callable[[int, int], None], length: int, *, step: int, threads: int | None = None
) -> None:
    """Call ``work(start, end)`` for ranges that cover ``length``, at once, and wait for all.

    Args:
        work: Must not depend on the order of ranges.
        length: Of the whole.
        step: Every range but the last is a multiple of it.
        threads: At most so many ranges; as many as there are processors by default.

    Raises what ``work`` raises.
    """
    steps = -(-length // step)
    count = max(1, min(threads or processors(), steps // LEAST_STEPS))
    size = max(1, -(-steps // count)) * step
    bounds = [(start, min(start + size, length)) for start in range(0, length, size)]
    if len(bounds) < 2:
        for start, end in bounds:
            work(start, end)
        return
    with ThreadPoolExecutor(len(bounds)) as pool:
        # The results are asked for, or an error would stay with its thread.
        list(pool.map(lambda bound: work(*bound), bounds))
