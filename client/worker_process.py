"""The long-lived worker of a site for one consortium: ``python -m client.worker_process HOME CONSORTIUM``.

Models and patients stay in its memory across messages (``client.hosting``). It listens at a Unix socket of
the home, answers one task after another, and says what it is at in ``run/worker.json``:

============ ==========================================================================================
``state``    ``starting``, ``idle``, ``preparing``, ``training``, ``evaluating``, ``stopping``
``since``    when that began, UTC
``plan``     digest of the plan; ``run``, ``track`` and ``round`` likewise, null while idle
``pid``      of this process; ``rss_mb`` is its memory
``device``   ``cpu`` or ``cuda``
``plans``    digests of the plans that are loaded
``loads``    models that were read since the start: a warm message adds none
``seconds``  of the last task, by part: load, prepare, train or evaluate, mask
``metrics``  counters, as Prometheus reads them
============ ==========================================================================================

Health is asked for at the same socket (``grpc.health.v1``), and answered while a task is worked on. SIGTERM
ends the worker behind its present answer. Nothing that it writes is about a patient.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter, generate_latest

from client.approval import own_identity
from client.enrolment import read_coordinator
from client.home import ConsortiumHome, SiteHome
from client.hosting import Activity, Hosting
from client.keys import Keyring
from client.loaded_plan import device_of
from client.settings import SiteSettings, read_settings
from client.worker_link import Handler, serve
from common.atomic import write_atomically
from common.errors import FederationError, NotReadyError, one_line
from common.logs import about, configure
from common.messages import Bundle, Message, Refusal, TrainTask
from common.offline import stay_offline
from common.until_told import until_told

STATUS_SCHEMA = 1
# A task may train for hours; whoever sends SIGTERM decides how long it is waited for.
LONGEST_ANSWER_S = 24 * 3600.0
OK, UNUSABLE = 0, 1
_KIB_PER_MB = 1024

logger = logging.getLogger(__name__)


class Reporter:
    """Keeps ``run/worker.json`` and its counters; threads may share it."""

    def __init__(self, file: Path, device: str) -> None:
        """Write to ``file``, beginning with the state ``starting``."""
        self._file, self._device = file, device
        self._lock = threading.Lock()
        self._activity, self._state, self._since = Activity(), "starting", _now()
        # Of the message that is answered now, over its parts.
        self._spent: dict[str, float] = {}
        self._registry = CollectorRegistry()
        self._tasks = Counter(
            "consilium_worker_tasks", "Messages that were answered", ["kind"], registry=self._registry
        )
        self._refusals = Counter(
            "consilium_worker_refusals", "Messages that were refused", ["cause"], registry=self._registry
        )
        self._training = Counter(
            "consilium_worker_training_seconds", "Seconds of training", registry=self._registry
        )
        self._loads = Counter(
            "consilium_worker_model_loads", "Models that were read from the disk", registry=self._registry
        )
        self.write()

    def follow(self, activity: Activity) -> None:
        """What the worker is at changed."""
        with self._lock:
            self._loads.inc(activity.loads - self._activity.loads)
            if activity.state == "idle":
                if self._activity.state == "training":
                    self._training.inc(activity.seconds.get("train", 0.0))
                for part, seconds in activity.seconds.items():
                    self._spent[part] = self._spent.get(part, 0.0) + seconds
            self._activity, self._state, self._since = activity, activity.state, _now()
        self.write()

    def say(self, state: str) -> None:
        """``idle`` once it listens, ``stopping`` once it is told to."""
        with self._lock:
            self._state, self._since = state, _now()
        self.write()

    def spent(self) -> dict[str, float]:
        """Seconds by part since this was asked last, as ``{"train_s": 1.2}``."""
        with self._lock:
            spent, self._spent = self._spent, {}
        return {f"{part}_s": round(seconds, 3) for part, seconds in spent.items()}

    def count(self, task: Message, answer: Message) -> None:
        """A message was answered."""
        tasks = task.parts if isinstance(task, Bundle) else (task,)
        answers = answer.parts if isinstance(answer, Bundle) else (answer,)
        with self._lock:
            for part in tasks:
                self._tasks.labels(type(part).__name__).inc()
            for reply in answers:
                if isinstance(reply, Refusal):
                    self._refusals.labels(reply.cause).inc()
        self.write()

    def write(self) -> None:
        """Put it all into the file."""
        with self._lock:
            activity = asdict(self._activity)
            content = {
                **activity,
                "schema": STATUS_SCHEMA,
                "state": self._state,
                "since": self._since,
                "pid": os.getpid(),
                "rss_mb": resident_mb(),
                "device": self._device,
                "metrics": generate_latest(self._registry).decode(),
            }
        write_atomically(self._file, json.dumps(content) + "\n", private=True)


def resident_mb() -> int:
    """The memory that this process holds, MiB; where the system does not say, the most that it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // _KIB_PER_MB


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def counted(handle: Handler, reporter: Reporter) -> Handler:
    """``handle``, whose answers are counted, and whose log lines say what they are about."""

    def answer(task: Message) -> Message:
        with about(**_facts(task)):
            began = time.perf_counter()
            reply = handle(task)
            with about(seconds=round(time.perf_counter() - began, 3), **reporter.spent()):
                logger.info("a message was answered")
        reporter.count(task, reply)
        return reply

    return answer


def _facts(task: Message) -> dict[str, str | int]:
    first: Any = task.parts[0] if isinstance(task, Bundle) else task
    facts: dict[str, str | int] = {"run": first.run_id, "what": type(first).__name__}
    for part in getattr(task, "parts", (task,)):
        if isinstance(part, TrainTask):
            facts |= {"what": type(part).__name__, "round": part.round_id}
    return facts


class WorkerProcess:
    """A worker that listens; closed at the end of a ``with`` block."""

    def __init__(self, home: SiteHome, consortium: ConsortiumHome, settings: SiteSettings) -> None:
        """Open the keys, listen, and load nothing yet.

        Raises:
            FederationError: The keys do not open, the site is not enrolled, its identity is another site's,
                the device is not here, or another worker listens.
        """
        consortium.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        device = device_of(settings.worker.device)
        self._reporter = Reporter(consortium.worker_status, device)
        torch.set_num_threads(settings.worker.threads)
        identity = own_identity(consortium.root).site_id
        if identity != settings.site:
            raise NotReadyError(str(consortium.root / "identity.json"), identity, f"site {settings.site}")
        coordinator = read_coordinator(consortium).identity()
        self._keyring = Keyring.open(home, settings)
        try:
            hosting = Hosting(
                consortium,
                settings,
                self._keyring,
                coordinator=coordinator,
                on_activity=self._reporter.follow,
            )
            self._health = health.HealthServicer()
            # Until the file says that it listens, too.
            self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            self._server = serve(
                counted(hosting, self._reporter),
                consortium.worker_socket,
                site=settings.site,
                beside=lambda server: health_pb2_grpc.add_HealthServicer_to_server(self._health, server),
            )
        except BaseException:
            self._keyring.close()
            raise
        self._reporter.say("idle")
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        logger.info("%s: the worker listens, on %s", settings.site, device)

    def __enter__(self) -> WorkerProcess:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Take no further task, finish the present answer, and let go of the keys."""
        self._reporter.say("stopping")
        self._health.enter_graceful_shutdown()
        self._server.stop(LONGEST_ANSWER_S).wait()
        self._keyring.close()
        logger.info("the worker has stopped")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m client.worker_process", description="A site's worker")
    parser.add_argument("home", type=Path, metavar="HOME", help="the site's home folder")
    parser.add_argument("consortium", metavar="CONSORTIUM", help="whose tasks it answers")
    arguments = parser.parse_args(argv)
    stay_offline()
    configure(json=True)
    try:
        with until_told() as stop:
            home = SiteHome(arguments.home)
            settings = read_settings(home.settings_file)
            with WorkerProcess(home, home.consortium(arguments.consortium), settings):
                stop.wait()
    except (FederationError, OSError) as error:
        logger.error("the worker cannot run: %s", one_line(str(error)))
        return UNUSABLE
    return OK


def is_healthy(path: Path, timeout_s: float = 1.0) -> bool:
    """Whether a worker at this socket says that it serves; also while it works on a task."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main())
