"""The clock and the progress bars of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Stages of a run, each with a bar and with the seconds it took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time a stage under ``name`` and show its progress; what is yielded moves the bar on."""
        bar = self.progress.add_task(name.replace("_", " "), total=total)
        started = time.perf_counter()
        try:
            yield lambda done: self.progress.advance(bar, done)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.progress.update(
                bar, total=1 if total is None else total, completed=1 if total is None else total
            )


def quiet_stages() -> Stages:
    """Stages that nobody watches."""
    return Stages(progress=Progress(disable=True))
