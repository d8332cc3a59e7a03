"""What a supervisor runs, what happens to it, and how it is: values, and the file that ``status`` reads."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from common.atomic import write_atomically
from common.canonical import read_object
from common.checks import require_positive
from common.errors import BadFileError
from common.processes import is_alive

logger = logging.getLogger(__name__)

STATUS_SCHEMA = 1

State = Literal["starting", "running", "waiting", "stopped"]
"""``starting``: runs, but is not ready yet. ``waiting``: has died, and is about to be started again."""
What = Literal["started", "ready", "died", "restarting", "memory", "stopped", "orphans"]


@dataclass(frozen=True, kw_only=True)
class Restart:
    """When a child that died is started again.

    Attributes:
        first_s: The first pause, seconds.
        most_s: Each pause is twice the one before, up to this.
        reset_s: After a life of this length the next pause is the first again.
    """

    first_s: float = 1.0
    most_s: float = 60.0
    reset_s: float = 60.0

    def __post_init__(self) -> None:
        for key in ("first_s", "most_s", "reset_s"):
            require_positive(key, getattr(self, key))

    def pause_s(self, deaths: int) -> float:
        """After so many deaths in a row, at least one."""
        return min(self.first_s * 2.0 ** min(deaths - 1, 32), self.most_s)


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to run.

    Attributes:
        name: Of the child, and of its log.
        command: Program and arguments.
        environment: All of it.
        cwd: Folder that it runs in.
        restart: None for a child that is not started again.
        memory_limit_mb: What it and its descendants may hold, MiB; 0 is no limit.
        ready: Whether it does its work by now; asked every ``TICK_S`` until it says so, and has to be quick.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    cwd: Path
    restart: Restart | None = Restart()
    memory_limit_mb: int = 0
    ready: Callable[[], bool] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or not self.command:
            raise ValueError(f"Expected a name and a command, got {self.name!r} and {self.command!r}")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a child.

    Attributes:
        name: The child's.
        what: What happened.
        pid: Its number then, if it had one.
        exit: Exit status as people write it: ``0``, ``1``, ``SIGKILL``.
        pause_s: Seconds until it is started again.
        count: MiB of memory that it held, or the number of processes that it left behind.
    """

    name: str
    what: What
    pid: int | None = None
    exit: str | None = None
    pause_s: float | None = None
    count: float | None = None

    def line(self) -> str:
        """For a log."""
        words = {
            "started": f"started, process {self.pid}",
            "ready": "ready",
            "died": f"process {self.pid} died ({self.exit})",
            "restarting": f"starting again in {self.pause_s or 0:g} s",
            "memory": f"ended for memory: {self.count or 0:.0f} MiB",
            "stopped": "stopped",
            "orphans": f"ended {self.count or 0:.0f} processes that it left behind",
        }
        return f"{self.name}: {words[self.what]}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a child is.

    Attributes:
        name: The child's.
        pid: None while it does not run.
        state: See ``State``.
        restarts: How often it was started again.
        since: When it came into this state, UTC, ISO 8601 with seconds.
        last_exit: How it ended the last time; None if it never did.
        memory_mb: What it and its descendants held when last looked at.
    """

    name: str
    pid: int | None
    state: State
    restarts: int
    since: str
    last_exit: str | None
    memory_mb: float


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a supervisor wrote for ``status`` commands.

    Attributes:
        rows: Of its children.
        alive: Whether the supervisor still runs; if not, none of the children does.
    """

    rows: tuple[Row, ...]
    alive: bool


def read_status(path: Path) -> Status | None:
    """What is in a status file; None if there is none. BadFileError."""
    try:
        content = read_object(path.read_text(encoding="utf-8"), "status")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"not a readable status ({type(error).__name__})") from error
    if content.get("schema") != STATUS_SCHEMA:
        raise BadFileError(path, f"expected schema {STATUS_SCHEMA}, got {content.get('schema')!r}")
    try:
        rows = tuple(Row(**row) for row in content["children"])
        return Status(rows=rows, alive=is_alive(int(content["supervisor"])))
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"not a status ({type(error).__name__})") from error


def write_status(path: Path, rows: tuple[Row, ...]) -> None:
    """Write how the children of this process are; a warning in the log where that fails."""
    content = {"schema": STATUS_SCHEMA, "supervisor": os.getpid(), "children": [asdict(row) for row in rows]}
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n", private=True)
    except OSError as error:
        # A full disk must not end the children.
        logger.warning("%s: not written (%s)", path, error.strerror)
