"""What a coordinator must not forget in the middle of a run: a folder that outlives its process.

    plan.json                        what the run agrees on
    run.json                         the run's name, and how it stands
    run.lock                         held by the process that works on it
    TRACK/journal/state-N.safetensors  states: prepared, after each round, evaluated; the last two
    TRACK/journal/newest.json        which of them is the newest, its digest, and what it says in short
    TRACK/journal/begun.json         the number of the last secure sum that any site was asked for

A sum's number is written before a site is asked, a round when it is closed, each to the disk before anything
else happens. So the number of a sum is never given twice, and a round that was closed is never done again.

Guarantee: after a crash at any instruction, a run that is resumed counts no round twice, leaves no release
out of the ledgers, and ends with the adapter of an undisturbed run where the plan adds no noise.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeVar

from common.canonical import json_digest, plain
from common.durable import lock_file, read_durable, sync_folder, write_durable
from common.errors import BadFileError, DigestMismatchError, RunExistsError, RunHeldError, one_line
from common.ids import RunId, SiteId
from common.plan import RunPlan
from common.schema import build
from server.evaluation import pooled_figures
from server.stored_state import load_state, save_state, write_text_durably
from server.track_state import TrackState

JOURNAL_SCHEMA = 1
RUN_KIND, NEWEST_KIND, BEGUN_KIND = "consilium run", "consilium newest state", "consilium begun sum"
KEPT_STATES = 2
LOCK_TRIES, LOCK_PAUSE_S = 8, 0.05

T = TypeVar("T")
Status = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How a run stands.

    Attributes:
        run_id: Its name.
        plan_digest: Its plan's.
        status: ``running`` also after a crash: whether a process works on it is ``RunProgress.held``.
        reason: Why it failed or was stopped; one line.
        flower_runs: Flower's numbers of the runs that worked on it, the newest last.
        started: When it began, UTC; ``ended`` when it was last left, empty while it runs.
    """

    run_id: RunId
    plan_digest: str
    status: Status
    started: str
    reason: str = ""
    flower_runs: tuple[int, ...] = ()
    ended: str = ""


@dataclass(frozen=True, kw_only=True)
class TrackProgress:
    """How far a track is, as of its newest state.

    Attributes:
        round_id: The last closed round; ``rounds`` of the plan, ``calibrating`` of them after training.
        step: ``prepared``, ``training``, ``calibrating``, ``evaluating`` or ``finished``.
        sum_id: The last secure sum that sites were asked for; 0 if none.
        survivors: Sites in the last round's sum; ``dropouts`` by reason.
        declined: Reason by site, of those that take no part.
        retried: Attempts that were made again.
        seconds: Of the last round; ``waiting_s`` of it for sites.
        bytes_up: Of all answers in all closed rounds; ``bytes_down`` of all tasks.
        metrics: Figures of the finished adapter by name, as of ``server.evaluation.pooled_figures``.
        temperature: What its scores are divided by.
    """

    round_id: int
    rounds: int
    step: str
    sum_id: int = 0
    survivors: tuple[SiteId, ...] = ()
    dropouts: Mapping[SiteId, str]
    declined: Mapping[SiteId, str]
    retried: int
    seconds: float = 0.0
    waiting_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    metrics: Mapping[str, float | int | None] | None = None
    calibrating: int = 0
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """A run as ``status`` shows it.

    Attributes:
        run: How it stands.
        held: Whether a process works on it now. One that is ``running`` and not held has crashed.
        tracks: By name; those that have a state.
    """

    run: RunRecord
    held: bool
    tracks: Mapping[str, TrackProgress]


@dataclass(frozen=True, kw_only=True)
class Newest:
    """Names the newest state.

    Attributes:
        number: Of its file.
        sha256: Of the file's bytes.
        progress: What it says in short.
    """

    number: int
    sha256: str
    progress: TrackProgress


class Journal:
    """The journal of one run; a context in which the run is worked on.

    When the context ends, the run has finished, has failed (an error) or was stopped (an interrupt).
    What ends it otherwise counts as a crash, and leaves it as it is.
    """

    def __init__(self, folder: Path, record: RunRecord, lock: IO[bytes]) -> None:
        """Made by ``open`` and ``create``."""
        self.folder = folder
        self._record, self._lock = record, lock
        self._numbers: dict[str, int] = {}

    @classmethod
    def create(cls, folder: Path, plan: RunPlan, run_id: RunId) -> Journal:
        """The journal of a new run in ``folder``, which is made if it is missing.

        A run that ended before any site was asked for a sum may be begun anew in its folder.

        Raises:
            RunExistsError: Another was begun here.
            RunHeldError: Another process works here.
        """
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        lock = _held(folder)
        try:
            found = next(folder.glob("*/journal/begun.json"), None)
            if found is not None:
                record = _read(RunRecord, folder / "run.json", RUN_KIND)
                raise RunExistsError(folder, record.run_id)
            for path in folder.glob("*/journal/*"):
                path.unlink()
            write_text_durably(folder / "plan.json", plan.to_json() + "\n")
            record = RunRecord(run_id=run_id, plan_digest=plan.digest(), status="running", started=_now())
            journal = cls(folder, record, lock)
            journal._write_record(record)
        except BaseException:
            lock.close()
            raise
        return journal

    @classmethod
    def open(cls, folder: Path, plan: RunPlan, run_id: RunId) -> Journal:
        """The journal of a run that goes on; a new one where none was begun.

        Raises:
            BadFileError: The folder is damaged, or another run's.
            DigestMismatchError: The run was begun with another plan.
            RunHeldError: Another process works on it.
            UnsupportedSchemaError: A newer version wrote it.
        """
        path = folder / "run.json"
        if not path.exists():
            return cls.create(folder, plan, run_id)
        lock = _held(folder)
        try:
            record = _read(RunRecord, path, RUN_KIND)
            if record.run_id != run_id:
                raise BadFileError(path, f"expected the run {run_id}, got {record.run_id}")
            if record.plan_digest != plan.digest():
                raise DigestMismatchError(f"plan of {run_id}", plan.digest(), record.plan_digest)
            # What a crash left half-written; nothing reads it.
            for path in (
                half for depth in ("", "*/", "*/journal/") for half in folder.glob(f"{depth}.*.tmp")
            ):
                path.unlink()
            journal = cls(folder, record, lock)
            journal._write_record(replace(record, status="running", reason="", ended=""))
        except BaseException:
            lock.close()
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._end("finished", "")
            elif isinstance(error, KeyboardInterrupt | SystemExit):
                self._end("stopped", "interrupted")
            elif isinstance(error, Exception):
                self._end("failed", one_line(f"{error}") or type(error).__name__)
        finally:
            self._lock.close()

    def add_flower_run(self, number: int) -> None:
        """Remember which of Flower's runs works on this one now."""
        self._write_record(replace(self._record, flower_runs=(*self._record.flower_runs, number)))

    def begin(self, state: TrackState, sum_id: int) -> None:
        """Write down that sites are about to be asked for a sum."""
        folder = self._of(state.track)
        _write(folder / "begun.json", BEGUN_KIND, {"round_id": state.round_id, "sum_id": sum_id})

    def close(self, state: TrackState) -> None:
        """Keep a state; what comes after it may be done when this returns."""
        folder = self._of(state.track)
        number = self._number(state.track) + 1
        path = _state_file(folder, number)
        save_state(state, path)
        newest = Newest(number=number, sha256=_sha256(path), progress=_progress(state))
        _write(folder / "newest.json", NEWEST_KIND, plain(newest))
        self._numbers[state.track] = number
        for old in folder.glob("state-*.safetensors"):
            if old not in (_state_file(folder, number - kept) for kept in range(KEPT_STATES)):
                old.unlink()

    def resume(self, start: TrackState) -> TrackState:
        """Where a track goes on: its newest state, or ``start`` if there is none.

        The same secure sum goes on if its keys were agreed before. Otherwise, or if more was begun since,
        the next one has a number above every sum that a site may have been asked for.

        Raises:
            BadFileError: The newest state is missing or damaged, or of another run.
            UnsupportedSchemaError: A newer version wrote it.
        """
        folder = self._of(start.track)
        begun = _begun(folder)
        if not (folder / "newest.json").exists():
            if begun:
                raise BadFileError(
                    folder / "newest.json", "missing, though sums were begun; restore its copy"
                )
            return start
        newest = _read(Newest, folder / "newest.json", NEWEST_KIND)
        path = _state_file(folder, newest.number)
        if path.exists() and _sha256(path) != newest.sha256:
            raise BadFileError(path, f"damaged: expected the SHA-256 {newest.sha256}")
        state = load_state(path, start)
        if begun > state.sum_id:
            # One more: the sum whose keys were riding on it.
            return replace(state, sum_id=begun + 1, setup=None)
        is_same = state.setup is not None and begun == state.setup.roster.context.sum_id
        return replace(state, begun=is_same)

    def _of(self, track: str) -> Path:
        folder = self.folder / track / "journal"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for parent in (folder.parent, self.folder):
                sync_folder(parent)
        return folder

    def _number(self, track: str) -> int:
        """The newest state's; 0 if there is none."""
        if track not in self._numbers:
            path = self._of(track) / "newest.json"
            self._numbers[track] = _read(Newest, path, NEWEST_KIND).number if path.exists() else 0
        return self._numbers[track]

    def _end(self, status: Status, reason: str) -> None:
        self._write_record(replace(self._record, status=status, reason=reason, ended=_now()))

    def _write_record(self, record: RunRecord) -> None:
        self._record = record
        _write(self.folder / "run.json", RUN_KIND, plain(record))


def read_progress(folder: Path) -> RunProgress:
    """How the run in ``folder`` stands; looks only, also while a process works on it.

    Raises:
        BadFileError: No run is there, or its files are damaged.
        UnsupportedSchemaError: A newer version wrote them.
    """
    record = _read(RunRecord, folder / "run.json", RUN_KIND)
    tracks = {}
    for path in sorted(folder.glob("*/journal/newest.json")):
        track, begun = path.parents[1].name, _begun(path.parent)
        progress = _read(Newest, path, NEWEST_KIND).progress
        tracks[track] = replace(progress, sum_id=begun, step=_step(progress, begun))
    lock = lock_file(folder / "run.lock", shared=True) if (folder / "run.lock").exists() else None
    if lock is not None:
        lock.close()
    return RunProgress(run=record, held=lock is None and (folder / "run.lock").exists(), tracks=tracks)


def _progress(state: TrackState) -> TrackProgress:
    last = state.history[-1] if state.history else None
    return TrackProgress(
        round_id=state.round_id,
        rounds=state.track_plan.all_rounds,
        calibrating=state.track_plan.all_rounds - state.track_plan.training.rounds,
        step="finished" if state.evaluation is not None else "prepared",
        survivors=last.survivors if last else (),
        dropouts=last.dropouts if last else {},
        declined=state.declined,
        retried=state.retried,
        seconds=last.seconds if last else 0.0,
        waiting_s=last.waiting_s if last else 0.0,
        bytes_up=sum(report.bytes_up for report in state.history),
        bytes_down=sum(report.bytes_down for report in state.history),
        metrics=pooled_figures(state.evaluation) if state.evaluation else None,
        temperature=state.temperature,
    )


def _step(progress: TrackProgress, begun: int) -> str:
    if progress.step == "finished" or not begun:
        return progress.step
    if progress.round_id < progress.rounds - progress.calibrating:
        return "training"
    return "calibrating" if progress.round_id < progress.rounds else "evaluating"


def _begun(folder: Path) -> int:
    """The last sum that was begun; 0 if none was."""
    path = folder / "begun.json"
    return int(_content(path, BEGUN_KIND)["sum_id"]) if path.exists() else 0


def _write(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    write_durable(path, kind, JOURNAL_SCHEMA, {**content, "digest": json_digest(content)})


def _content(path: Path, kind: str) -> dict[str, Any]:
    content = read_durable(path, kind, JOURNAL_SCHEMA)
    digest = content.pop("digest", None)
    if digest != json_digest(content):
        raise BadFileError(path, f"damaged: expected the digest {json_digest(content)}; restore its copy")
    return content


def _read(schema: type[T], path: Path, kind: str) -> T:
    try:
        return build(schema, _content(path, kind), path.name)
    except ValueError as error:
        raise BadFileError(path, f"{error}") from error


def _held(folder: Path) -> IO[bytes]:
    """The run's lock; RunHeldError. Whoever reads the progress has it for an instant."""
    for _ in range(LOCK_TRIES):
        lock = lock_file(folder / "run.lock")
        if lock is not None:
            return lock
        time.sleep(LOCK_PAUSE_S)
    raise RunHeldError(folder)


def _state_file(folder: Path, number: int) -> Path:
    return folder / f"state-{number:06d}.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
