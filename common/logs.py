"""Logs as lines: JSON for a machine, plain text on a terminal; one function sets both up.

Every line has its time (UTC), level, logger and event; what it is about (``run``, ``round``, ``track``,
``site`` and the other names of ``FACTS``) comes from ``extra=`` of a call or from a ``with about(...)``
around it.

Guarantee: no other fact and no text of an unexpected exception gets into a line, only its class and its
place: either may quote a patient.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.typing import EventDict, WrappedLogger

from common.errors import FederationError

FACTS = (
    *("run", "round", "track", "site", "consortium", "plan", "child", "what"),
    # Of a worker's answer: how long it took, and its parts.
    *("seconds", "load_s", "prepare_s", "train_s", "evaluate_s", "mask_s"),
)
_HANDLER = "consilium"
_DEEPEST = 8


def configure(*, json: bool | None = None, level: int = logging.INFO, file: Path | None = None) -> None:
    """Send this process's log to standard error, as JSON or as plain lines; plain on a terminal if None.

    With a ``file``, which only its owner may read, it is added there as well, as JSON. May be called again;
    the last call counts. Loggers that keep their own handlers keep them.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    handlers = [_named(logging.StreamHandler(sys.stderr), level, as_json=as_json)]
    if file is not None:
        handlers.append(_named(_private_file(file), level, as_json=True))
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    # They log every request at INFO.
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # What ends a process or a thread would be printed whole, with its words.
    sys.excepthook = _ended_by
    threading.excepthook = lambda ended: _ended_by(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _ended_by(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, SystemExit):
        logging.getLogger(__name__).critical("ended by an exception", exc_info=(kind, error, trace))


def _private_file(path: Path) -> logging.Handler:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return logging.FileHandler(path, encoding="utf-8")


def _named(handler: logging.Handler, level: int, *, as_json: bool) -> logging.Handler:
    handler.set_name(_HANDLER)
    handler.setLevel(level)
    handler.setFormatter(_formatter(as_json))
    return handler


def about(**facts: str | float) -> AbstractContextManager[None]:
    """What the lines of this thread are about, inside of the ``with`` block. ValueError for another name."""
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise ValueError(f"Expected facts among {', '.join(FACTS)}, got {', '.join(unknown)}")
    return bound_contextvars(**facts)


def _formatter(as_json: bool) -> logging.Formatter:
    lines = structlog.processors.JSONRenderer() if as_json else _plain_line
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            merge_contextvars,
            structlog.stdlib.ExtraAdder(allow=FACTS),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        ],
        processors=[
            _exception_place,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _in_order,
            lines,
        ],
    )


def _exception_place(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    found = event.pop("exc_info", None)
    error = found[1] if isinstance(found, tuple) else None
    if error is not None:
        event["exception"] = describe(error)
    return event


def describe(error: BaseException) -> str:
    """An exception for a log: its class and where it came from; its words only if they are our own."""
    frames = traceback.extract_tb(error.__traceback__)[-_DEEPEST:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    words = f": {error}" if isinstance(error, FederationError) else ""
    return f"{type(error).__name__}{words} at {places or 'no place'}"


def _in_order(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in ("time", "level", "logger", "event") if key in event}
    return {**first, **event}


def _plain_line(logger: WrappedLogger, name: str, event: EventDict) -> str:
    facts: dict[str, Any] = dict(event)
    time, level, source, text = (facts.pop(key, "") for key in ("time", "level", "logger", "event"))
    rest = "".join(f" {key}={value}" for key, value in facts.items())
    return f"{time[11:19]} {level:<7} {source}: {text}{rest}"
