"""What answers a site's tasks: loads a plan once and keeps it, so that a message costs no model.

Guarantee: a message is checked by the site's guard before anything is loaded for it, whoever it came from.

Guarantee: a plan that is loaded answers every later message without reading a model again, while no more
than one other plan is asked for in between.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from client.approval import approved_sites, own_identity
from client.guard import Guard
from client.home import ConsortiumHome
from client.keys import Keyring
from client.loaded_plan import LoadedPlan, Loader
from client.refusals import reply_or_refusal
from client.session import SiteSession
from client.session_store import sealed_sessions
from client.settings import SiteSettings
from client.teacher.fit import TeacherRecipe
from client.track_sessions import TrackSessions
from client.worker import SiteWorker
from common.audit import Clock, utc_now
from common.fixedpoint import Words
from common.messages import Bundle, EvaluateTask, Message, PrepareTask, SumTask, TrainTask
from common.pki import PublicIdentity
from common.plan_package import PlanPackage

MOST_PLANS = 2

State = Literal["idle", "preparing", "training", "evaluating"]
Part = Literal["load", "prepare", "train", "evaluate", "mask"]
STATES: dict[type, State] = {PrepareTask: "preparing", TrainTask: "training", EvaluateTask: "evaluating"}


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a worker is at.

    Attributes:
        state: ``idle`` between two tasks.
        plan: Digest of the plan; None while idle.
        run: The run.
        track: The track.
        round: The round, of a task that has one.
        loads: Models that were read since the start.
        plans: Digests of the plans that are loaded.
        seconds: Of the last task that worked on patients, by part: ``load`` models and patients, ``prepare``
            teacher and pairs, ``train`` or ``evaluate``, and ``mask``: the rest, secure aggregation.
    """

    state: State = "idle"
    plan: str | None = None
    run: str | None = None
    track: str | None = None
    round: int | None = None
    loads: int = 0
    plans: tuple[str, ...] = ()
    seconds: dict[Part, float] = field(default_factory=dict)


def _ignore(activity: Activity) -> None:
    """Nobody looks."""


class Hosting:
    """Answers the tasks of one consortium at one site."""

    def __init__(
        self,
        home: ConsortiumHome,
        settings: SiteSettings,
        keyring: Keyring,
        *,
        coordinator: PublicIdentity | None = None,
        recipe: TeacherRecipe | None = None,
        clock: Clock = utc_now,
        on_activity: Callable[[Activity], None] = _ignore,
    ) -> None:
        """Answer from ``home``.

        Args:
            home: The site's, of the consortium.
            settings: The site's own.
            keyring: Its keys.
            coordinator: Whose countersignatures of the ledger's head are believed; a daemon has one.
            recipe: Of the teacher's training.
            clock: Says which day it is.
            on_activity: Told what the worker is at, whenever that changes.

        Raises:
            DeviceError: The settings ask for a device that is not here.
        """
        self._home, self._settings, self._keyring = home, settings, keyring
        self._guard = Guard(home, settings, clock)
        self._loader = Loader(home, settings, keyring, coordinator=coordinator, recipe=recipe)
        self._loaded: OrderedDict[str, LoadedPlan] = OrderedDict()
        self._on_activity = on_activity
        self._activity = Activity()
        self._watch = Watch()

    @property
    def activity(self) -> Activity:
        """What the worker is at."""
        return self._activity

    def __call__(self, message: Message) -> Message:
        """The answer; a bundle's parts are answered each by itself, a refusal with its reason."""
        if isinstance(message, Bundle):
            return Bundle(parts=tuple(self._part(part) for part in message.parts))
        return self._part(message)

    def _part(self, part: Message) -> Message:
        return reply_or_refusal(lambda: self._answer(part), part.run_id, self._settings.site)

    def _answer(self, message: Message) -> Message:
        package = self._guard.check_task(message)
        with self._busy(message, package):
            loaded = self._plan(package)
            started, before = time.perf_counter(), self._watch.total
            answer = self._sessions(loaded)(message)
            inside = self._watch.total - before
            self._watch.add("mask", time.perf_counter() - started - inside)
        return answer

    def _plan(self, package: PlanPackage) -> LoadedPlan:
        digest = package.plan.digest()
        if digest not in self._loaded:
            while len(self._loaded) >= MOST_PLANS:
                # Out of memory before another comes in.
                self._loaded.popitem(last=False)
            with self._watch("load"):
                self._loaded[digest] = self._loader.load(package)
        self._loaded.move_to_end(digest)
        return self._loaded[digest]

    def _sessions(self, loaded: LoadedPlan) -> TrackSessions:
        """Made for each message: which identities are approved may change while a plan is loaded."""
        identity, approved = own_identity(self._home.root), approved_sites(self._home.root)
        return TrackSessions(
            self._settings.site,
            {
                track: SiteSession(
                    plan=loaded.package.plan,
                    track=track,
                    identity=identity,
                    approved=approved,
                    store=sealed_sessions(self._home, track, self._keyring),
                    work=Timed(worker, self._watch),
                    budget=loaded.budget,
                )
                for track, worker in loaded.workers.items()
            },
        )

    @contextmanager
    def _busy(self, message: Message, package: PlanPackage) -> Iterator[None]:
        state = STATES.get(type(message))
        if state is None:
            if package.plan.digest() in self._loaded:
                # Keys, lists and shares are answered in no time.
                yield
                return
            state = "preparing"
        self._watch.start()
        self._tell(
            Activity(
                state=state,
                plan=package.plan.digest(),
                run=message.run_id,
                track=getattr(message, "track", None),
                round=getattr(message, "round_id", None),
                seconds=self._activity.seconds,
            )
        )
        try:
            yield
        finally:
            self._tell(Activity(seconds=self._watch.seconds()))

    def _tell(self, activity: Activity) -> None:
        self._activity = replace(activity, loads=self._loader.loads, plans=tuple(self._loaded))
        self._on_activity(self._activity)


class Watch:
    """Seconds of a task, by part."""

    def __init__(self) -> None:
        self._seconds: dict[Part, float] = {}

    def start(self) -> None:
        """Begin with a new task."""
        self._seconds = {}

    def add(self, part: Part, seconds: float) -> None:
        """So many seconds more for a part."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    @contextmanager
    def __call__(self, part: Part) -> Iterator[None]:
        """The time of the block goes to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self._seconds.values())

    def seconds(self) -> dict[Part, float]:
        """By part, to the millisecond."""
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}


class Timed:
    """A track's work, on a watch."""

    def __init__(self, worker: SiteWorker, watch: Watch) -> None:
        self._worker, self._watch = worker, watch

    def prepare(self) -> object:
        """As the worker does it."""
        with self._watch("prepare"):
            return self._worker.prepare()

    def words(self, task: SumTask) -> Words:
        """As the worker does it."""
        if not isinstance(task, TrainTask):
            with self._watch("evaluate"):
                return self._worker.words(task)
        with self._watch("prepare"):
            # Pairs become tokens once, in the first round.
            self._worker.encoded()
        with self._watch("train"):
            return self._worker.words(task)
