"""May this task run here? The site's own answer, for every message that the coordinator sends.

A task is let in where its plan is approved by enough people and not withdrawn, has not expired, serves a
purpose of this site, names this site in the task's track, names only sites that are approved here, and pays
for what it asks. A message that names no plan belongs to the plan under which its run began.

The guard executable asks before it hands a message to the worker, and the worker asks again before it loads
anything: whoever gets around the one meets the other.

Guarantee: a message that is refused reaches neither a patient's data nor a model, and every decision is in
the audit log: each refusal, and what is let in once for each run, round, track and kind of message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from client.approvals import (
    approved_package,
    member_objections,
    site_home,
    site_objections,
    track_objection,
)
from client.budget import cap_of, entries_of, require_room, require_step
from client.home import ConsortiumHome
from client.refusals import reply_or_refusal
from client.settings import SiteSettings
from common.atomic import write_atomically
from common.audit import AuditLog, Clock, utc_now
from common.canonical import canonical_json, read_object
from common.checks import require_schema
from common.errors import (
    BadFileError,
    BadMessageError,
    FederationError,
    RunPlanChangedError,
    SettingsError,
    TrackRefusedError,
    UnknownRunError,
)
from common.ids import RunId, SiteId, is_digest
from common.locks import locked
from common.messages import (
    Bundle,
    EvaluateTask,
    HeadRequest,
    KeysRequest,
    ListRequest,
    Message,
    PrepareTask,
    Refusal,
    RosterOffer,
    TrainTask,
    UnmaskRequest,
    bundle,
)
from common.plan import RunPlan
from common.plan_package import PlanPackage

TASKS = (
    *(PrepareTask, KeysRequest, RosterOffer, TrainTask, EvaluateTask),
    *(ListRequest, UnmaskRequest, HeadRequest),
)
RUNS_SCHEMA = 1
MOST_RUNS = 1000
MOST_REMEMBERED = 10_000

Place = Literal["guard", "worker"]
Handler = Callable[[Message], Message]


class Guard:
    """Decides for one site and one consortium."""

    def __init__(
        self, home: ConsortiumHome, settings: SiteSettings, clock: Clock = utc_now, *, place: Place = "worker"
    ) -> None:
        """Decide by what lies in ``home``, read anew for each message.

        Args:
            home: The site's, of the consortium that the messages come from.
            settings: The site's own.
            clock: Says which day it is.
            place: Who asks. The worker writes down what is let in; the guard executable, which starts anew
                with every message, what it refuses.
        """
        self._home, self._settings, self._clock, self._place = home, settings, clock, place
        self._audit = AuditLog(home.audit_file, clock)
        self._runs_file = home.root / "runs.json"
        self._let_in: set[tuple[Any, ...]] = set()

    def check_task(self, message: Message) -> PlanPackage:
        """The approved package that a message of the coordinator belongs to; not for a bundle, but its parts.

        Raises:
            BadMessageError: No message that a coordinator sends.
            UnknownRunError: It names no plan, and its run never did.
            RunPlanChangedError: Its run began under another plan.
            PlanNotApprovedError: The plan is not approved by enough people, or was withdrawn.
            PlanExpiredError, PurposeRefusedError, OtherConsortiumError, PlanNotForSiteError: The plan does
                not fit this day or this site.
            TrackRefusedError: Neither does the track.
            UnapprovedSiteError: The plan names a site that is not approved here.
            BudgetSpentError: The plan pays for no further step, or passes the site's cap.
        """
        try:
            package = self._decide(message)
        except FederationError as error:
            self.refuse(error, message)
            raise
        self._note(message, package)
        return package

    def refuse(self, error: FederationError, message: Message | None = None, **facts: str | int) -> None:
        """Write a refusal down; also one of a message that could not be read."""
        about = {} if message is None else _about(message)
        own = {"place": self._place, "error": type(error).__name__, "reason": str(error)}
        self._audit.append("refused", **{**about, **facts, **own})

    def _decide(self, message: Message) -> PlanPackage:
        if not isinstance(message, TASKS):
            raise BadMessageError(f"expected a task, got {type(message).__name__}")
        digest = self._digest_of(message)
        package = approved_package(self._home, self._settings, digest)
        today = self._clock().date()
        for error in member_objections(self._home, self._settings, package.plan, today=today):
            raise error
        self._require_track(package.plan, message.track)
        for error in site_objections(self._home, self._settings.site, package.plan):
            raise error
        self._require_budget(package.plan, message)
        self._bind(message.run_id, digest)
        return package

    def _digest_of(self, message: Any) -> str:
        begun = self._runs().get(message.run_id)
        named: str | None = getattr(message, "plan_digest", None)
        if named is None:
            if begun is None:
                raise UnknownRunError(message.run_id)
            return begun
        if begun not in (None, named):
            raise RunPlanChangedError(message.run_id, named, str(begun))
        return named

    def _require_track(self, plan: RunPlan, name: str) -> None:
        track = next((track for track in plan.tracks if track.track == name), None)
        if track is None:
            raise TrackRefusedError(name, "the plan has no such track")
        if self._settings.site not in plan.sites_of(track):
            raise TrackRefusedError(name, "the plan does not have this site in it")
        error = track_objection(self._settings, track)
        if error is not None:
            raise error

    def _require_budget(self, plan: RunPlan, message: Message) -> None:
        """Only of tasks that take something: what was paid for must still be unmasked and measured."""
        if not isinstance(message, PrepareTask | TrainTask):
            return
        if plan.privacy.mode == "none" and self._settings.cap is None:
            return
        cohort = self._settings.cohort
        entries = entries_of(site_home(self._home).ledger_file(cohort), cohort)
        require_room(plan, self._settings.site, entries, cap_of(self._settings.cap))
        if isinstance(message, TrainTask) and plan.privacy.mode != "none":
            require_step(plan, message, entries)

    def _bind(self, run: RunId, digest: str) -> None:
        """Remember under which plan a run began; across processes, and for as long as the home lasts."""
        if self._runs().get(run) == digest:
            return
        with locked(self._runs_file.with_name(f".{self._runs_file.name}.lock")):
            known = self._runs()
            begun = known.setdefault(run, digest)
            if begun != digest:
                raise RunPlanChangedError(run, digest, begun)
            kept = dict(list(known.items())[-MOST_RUNS:])
            content = canonical_json({"schema": RUNS_SCHEMA, "runs": list(kept.items())})
            write_atomically(self._runs_file, content + "\n", private=True)

    def _runs(self) -> dict[str, str]:
        """The plans of runs, the newest last. BadFileError."""
        try:
            content = read_object(self._runs_file.read_text(encoding="utf-8"), "runs")
            require_schema(str(self._runs_file), content.get("schema"), RUNS_SCHEMA)
            runs = {str(run): str(digest) for run, digest in content["runs"]}
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, SettingsError, KeyError, ValueError, TypeError) as error:
            raise BadFileError(self._runs_file, f"not a list of runs ({type(error).__name__})") from error
        if not all(map(is_digest, runs.values())):
            raise BadFileError(self._runs_file, "expected a plan's digest for each run")
        return runs

    def _note(self, message: Message, package: PlanPackage) -> None:
        if self._place == "guard":
            return
        about = {**_about(message), "plan": package.plan.digest()}
        once = (*about.values(),)
        if once in self._let_in:
            return
        if len(self._let_in) >= MOST_REMEMBERED:
            self._let_in.clear()
        self._audit.append("let-in", **about)
        self._let_in.add(once)


def _about(message: Message) -> dict[str, str | int]:
    """What the log says of a message."""
    names = {"run_id": "run", "round_id": "round", "track": "track", "plan_digest": "plan"}
    found = {ours: getattr(message, theirs, None) for theirs, ours in names.items()}
    return {**{name: value for name, value in found.items() if value is not None}, "kind": _kind(message)}


def _kind(message: Message) -> str:
    return type(message).__name__


def guarded(check: Callable[[Message], object], handle: Handler, site: SiteId) -> Handler:
    """``handle`` for what ``check`` lets in; for the rest a ``Refusal`` with the reason.

    Of a bundle each part is checked by itself: a track that is refused must not cost the others. Whatever
    ``handle`` raises is a ``Refusal`` in the message's own run.
    """

    def answer(message: Message) -> Message:
        parts = message.parts if isinstance(message, Bundle) else (message,)
        refused = {place: found for place, part in enumerate(parts) if (found := _refusal(check, part, site))}
        allowed = tuple(part for place, part in enumerate(parts) if place not in refused)
        if not isinstance(message, Bundle):
            return refused.get(0) or _handled(handle, message, site)
        if not allowed:
            return Bundle(parts=tuple(refused.values()))
        return _merged(_handled(handle, bundle(allowed), site), refused, len(parts))

    return answer


def _refusal(check: Callable[[Message], object], part: Message, site: SiteId) -> Refusal | None:
    def checked() -> Message:
        check(part)
        return part

    reply = reply_or_refusal(checked, part.run_id, site)
    return reply if isinstance(reply, Refusal) else None


def _handled(handle: Handler, message: Message, site: SiteId) -> Message:
    return reply_or_refusal(lambda: handle(message), message.run_id, site)


def _merged(reply: Message, refused: dict[int, Refusal], count: int) -> Message:
    """The answers to a bundle's allowed parts, and the refusals of the others, in the bundle's order."""
    if not refused:
        return reply
    # Of a single part, or of parts that failed together, there is one reply.
    answers: Sequence[Message] = (
        reply.parts if isinstance(reply, Bundle) else [reply] * (count - len(refused))
    )
    rest = iter(answers)
    return Bundle(parts=tuple(refused[place] if place in refused else next(rest) for place in range(count)))
