"""How a daemon learns that it is to end: by SIGTERM from systemd, or by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TOLD_BY = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """An event that either signal sets, inside of the ``with`` block; the main thread's only."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in TOLD_BY}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
