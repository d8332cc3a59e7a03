"""Runs by name: begun, gone on with, followed to their end.

A run of ours outlives Flower's runs, each of which works on it for a while: after a crash a new one goes on
from the journal. Whoever follows one reads the journal, so that following needs nothing of the run's process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import RunExistsError, RunHeldError, RunRefusedError, SuperLinkError
from common.ids import RunId, SiteId, run_id
from common.metrics import MetricCounts
from common.plan import RunPlan
from server.home import CoordinatorHome
from server.journal import TrackProgress, read_progress
from server.superlink import FlowerRun, SuperLink, Value

CONFIDENCE_FIGURES = ("ece", "ece_noise_floor", "nll", "brier")
POLL_S = 0.5
# A request to SuperLink each; the journal alone is looked at in between.
ASK_EVERY_S = 2.0
# A SuperLink that was killed is back by then.
LOST_S = 120.0

Sleep = Callable[[float], None]


def new_name(plan: RunPlan, now: datetime | None = None) -> RunId:
    """A name for a run: the plan's first digits and the time."""
    return run_id(f"{plan.digest()[:8]}-{(now or datetime.now(UTC)):%y%m%d-%H%M%S}")


def folder_of(home: CoordinatorHome, run: str) -> Path:
    """The folder of a run that was begun. RunRefusedError if there is none of the name."""
    folder = home.runs / run
    if not (folder / "run.json").is_file():
        known = ", ".join(sorted(path.parent.name for path in home.runs.glob("*/run.json"))) or "none"
        raise RunRefusedError(run, f"no run of this name; there are: {known}")
    return folder


def begin(home: CoordinatorHome, link: SuperLink, plan: RunPlan, run: RunId) -> int:
    """Start a new run; Flower's number. RunExistsError, SuperLinkError."""
    folder = home.runs / run
    if (folder / "run.json").exists():
        raise RunExistsError(folder, run)
    return link.start_run(_config(home, plan, run, resume=False))


def go_on(home: CoordinatorHome, link: SuperLink, run: str) -> int:
    """Have a run that crashed, failed or was stopped go on from its journal; Flower's number.

    Raises:
        RunHeldError: It is at work, or about to be.
        RunRefusedError: It has finished, or there is none of the name.
        SuperLinkError: SuperLink does not start it.
    """
    folder = folder_of(home, run)
    progress = read_progress(folder)
    if progress.held:
        raise RunHeldError(folder)
    if progress.run.status == "finished":
        raise RunRefusedError(run, "has finished; there is nothing left to do")
    for found in link.unfinished_runs():
        if found.name == run and found.status != "running":
            raise RunHeldError(folder)
        if found.name == run:
            # Its process is gone, or it would hold the journal; Flower takes a minute to see that.
            link.stop_run(found.flower_id)
    plan = RunPlan.from_json((folder / "plan.json").read_text(encoding="utf-8"))
    return link.start_run(_config(home, plan, RunId(run), resume=True))


def _config(home: CoordinatorHome, plan: RunPlan, run: RunId, *, resume: bool) -> dict[str, Value]:
    root = CoordinatorHome(home.root.resolve())
    return {
        "plan": plan.to_json(),
        "adapters": str(root.adapters(plan.digest())),
        "identities": str(root.identities),
        "identity": str(root.identity_file),
        "out": str(root.runs / run),
        "run": run,
        "nodes": str(root.run / "nodes.json"),
        "ledger": str(root.root),
        "resume": resume,
    }


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run that was followed ended.

    Attributes:
        state: ``finished``, ``failed`` or ``stopped``.
        reason: One line; empty where it finished.
        declined: Sites that refused to take part, by track and site, with their reasons.
    """

    state: str
    reason: str
    declined: Mapping[str, Mapping[SiteId, str]]


def follow(
    home: CoordinatorHome, link: SuperLink, run: RunId, flower_id: int, *, sleep: Sleep = time.sleep
) -> Iterator[str | Ended]:
    """A line for each thing that happens in a run, then how it ended.

    Guarantee: a SuperLink that is away for a while ends nothing.

    Raises:
        SuperLinkError: SuperLink was away for longer than any run can live without it.
    """
    folder, told = home.runs / run, dict[str, TrackProgress]()
    ask_at, lost_at = 0.0, None
    flower: FlowerRun | None = None
    while flower is None or not flower.over:
        now = time.monotonic()
        if now >= ask_at:
            ask_at = now + ASK_EVERY_S
            try:
                flower, lost_at = link.run_status(flower_id), None
            except SuperLinkError:
                lost_at = lost_at or now
                if now - lost_at > LOST_S:
                    raise
        yield from _news(folder, told)
        if flower is None or not flower.over:
            sleep(POLL_S)
    yield from _news(folder, told)
    yield _ended(folder, flower)


def _news(folder: Path, told: dict[str, TrackProgress]) -> Iterator[str]:
    """What the journal says and was not told yet."""
    if not (folder / "run.json").exists():
        return
    for track, progress in read_progress(folder).tracks.items():
        if progress != told.get(track):
            yield from _lines(track, progress, told.get(track))
            told[track] = progress


def _lines(track: str, now: TrackProgress, before: TrackProgress | None) -> Iterator[str]:
    if before is None or now.declined != before.declined:
        for site, reason in now.declined.items():
            yield f"{track}: {site} declined: {reason}"
    if now.retried > (before.retried if before else 0):
        yield f"{track}: round {now.round_id + 1}: tried again"
    if now.round_id > (before.round_id if before else 0):
        lost = "".join(f"; {site} was lost: {why}" for site, why in now.dropouts.items())
        yield (
            f"{track}: round {now.round_id} of {now.rounds} closed: {len(now.survivors)} sites, "
            f"{now.seconds:.1f} s{lost}"
        )
    elif before is None:
        yield f"{track}: {now.step}, {now.rounds} rounds to do"
    if now.metrics is not None and (before is None or before.metrics is None):
        yield f"{track}: evaluated: {rates(now.metrics)}"


def rates(metrics: Mapping[str, float | int | None]) -> str:
    """Rates as people read them; one of which nothing was counted is left out."""
    counted = {name: metrics.get(name) for name in (*MetricCounts.RATES, *CONFIDENCE_FIGURES)}
    shown = (f"{name} {rate:.3f}" for name, rate in counted.items() if rate is not None)
    return ", ".join((f"{metrics.get('n') or 0:.0f} cases", *shown))


def _ended(folder: Path, flower: FlowerRun) -> Ended:
    if not (folder / "run.json").exists():
        return Ended(state="failed", reason=flower.details or "its process never began", declined={})
    progress = read_progress(folder)
    declined = {name: track.declined for name, track in progress.tracks.items() if track.declined}
    if flower.flower_id not in progress.run.flower_runs:
        return Ended(state="failed", reason=flower.details or "its process never began", declined=declined)
    state, reason = progress.run.status, progress.run.reason
    if state == "running":
        state, reason = "failed", flower.details or f"Flower's run ended ({flower.status})"
    return Ended(state=state, reason=reason, declined=declined)


def is_refusal(ended: Ended) -> bool:
    """Whether sites refused what they were asked for."""
    return bool(ended.declined) or "refused for the privacy budget" in ended.reason
