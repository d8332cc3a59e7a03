"""Flower's ServerApp: reads what a run is, runs its tracks, writes what came out. No logic.

The run's configuration holds ``plan`` (the plan's JSON) and the keys of ``CoordinatorSettings``. For every
track of the plan ``{adapters}/{track}.safetensors`` is the adapter to start from. ``{out}`` holds the journal
(``server.journal``); ``{out}/{track}/`` gets ``adapter.safetensors`` and ``rounds.json``. Where the plan
spends a privacy budget, ``ledger.db`` in ``{ledger}`` or else in ``{out}`` is the coordinator's own ledger.

A run has a name of its own (``run``), and each of Flower's runs that works on it another: after a crash a new
one is given the same ``run`` and ``out``, and ``resume``.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from common.adapter import Adapter, load_adapter, save_adapter
from common.canonical import canonical_json, plain, read_object
from common.errors import DigestMismatchError, SettingsError
from common.flower import run_name
from common.ids import RunId, SiteId, site_id
from common.logs import about, configure
from common.pki import Identity, read_approved, read_identity
from common.plan import RunPlan, TrackPlan
from server.budget import open_ledger
from server.evaluation import pooled_figures
from server.grid import GridLink, read_nodes
from server.journal import Journal
from server.lanes import run_tracks
from server.settings import CoordinatorSettings
from server.stored_state import hidden_beside, move_durably, write_text_durably
from server.track_state import OnState, TrackState

# isort: split
# Below common.flower, which keeps Flower quiet.
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

logger = logging.getLogger(__name__)

RESULT_SCHEMA = 1
HEADS_FOLDER = "ledger_heads"
LOG_FILE = "log.jsonl"


def make_app(on_state: OnState) -> ServerApp:
    """The app; ``on_state`` is handed every state of every track, the evaluated one last."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        plan = RunPlan.from_run_config(context.run_config)
        settings = CoordinatorSettings.from_run_config(context.run_config)
        # In a process that Flower started nobody else has; its lines would be in SuperLink's memory alone.
        if not logging.getLogger().handlers:
            configure(file=settings.out / LOG_FILE)
        run = settings.run or run_name(context.run_id)
        open_journal = Journal.open if settings.resume else Journal.create
        with open_journal(settings.out, plan, run) as journal:
            journal.add_flower_run(context.run_id)
            kept = settings.ledger or settings.out

            def keep(state: TrackState) -> None:
                journal.close(state)
                save_heads(state, kept)
                if state.evaluation is not None:
                    save_result(state, settings.out)
                on_state(state)

            # Before any site is asked: what is wrong with one track's file must not cost another's training.
            starts = [journal.resume(start) for start in _starts(plan, run, settings, kept)]
            ledger = open_ledger(kept, plan)
            nodes = read_nodes(settings.nodes) if settings.nodes else None
            link = GridLink(grid, query_ttl_s=settings.connect_timeout_s, nodes=nodes)
            link.wait_for(plan.sites, settings.connect_timeout_s)
            ended = run_tracks(
                starts,
                link,
                on_state=keep,
                on_begin=journal.begin,
                ledger=ledger,
                attempts=settings.attempts,
                pause_s=settings.retry_pause_s,
            )
            for state in ended.values():
                # Again: a crash may have come between a track's last state and its result.
                save_result(state, settings.out)

    return server_app


def _starts(plan: RunPlan, run: RunId, settings: CoordinatorSettings, kept: Path) -> list[TrackState]:
    """The state before the first round, of every track."""
    identities, signer = read_approved(settings.identities), _signer(plan, settings)
    return [
        TrackState(
            plan=plan,
            run_id=run,
            track=track.track,
            adapter=load_initial(settings.adapters, track),
            identities=identities,
            signer=signer,
            heads=load_heads(kept, track.track),
        )
        for track in plan.tracks
    ]


def load_initial(folder: Path, track: TrackPlan) -> Adapter:
    """The adapter that a track starts from. DigestMismatchError if it is not the plan's."""
    path = folder / f"{track.track}.safetensors"
    adapter = load_adapter(path)
    if adapter.digest() != track.adapter.factors_digest:
        raise DigestMismatchError(str(path), adapter.digest(), track.adapter.factors_digest)
    return adapter


def _signer(plan: RunPlan, settings: CoordinatorSettings) -> Identity | None:
    """The coordinator's own identity, where it has to countersign. SettingsError."""
    if plan.privacy.mode == "none":
        return None
    if settings.identity is None:
        raise SettingsError("run config.identity", "nothing", "the file of the coordinator's own identity")
    return read_identity(settings.identity)


def load_heads(folder: Path, track: str) -> dict[SiteId, str]:
    """The heads of the sites' ledgers that earlier runs with this folder heard of."""
    path = folder / HEADS_FOLDER / f"{track}.json"
    if not path.exists():
        return {}
    content = read_object(path.read_text(encoding="utf-8"), str(path))
    return {site_id(site): str(head) for site, head in content.items()}


def save_heads(state: TrackState, folder: Path) -> None:
    """Remember the heads of the sites' ledgers: a site that comes back with an older one is told."""
    if state.heads:
        path = folder / HEADS_FOLDER / f"{state.track}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(path, json.dumps(dict(state.heads)) + "\n")


def save_result(state: TrackState, out: Path) -> None:
    """Write a track's adapter and the reports of its rounds, each whole or not at all."""
    folder = out / state.track
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter.safetensors"
    save_adapter(state.adapter, hidden_beside(path))
    move_durably(hidden_beside(path), path)
    result: dict[str, Any] = {
        "schema": RESULT_SCHEMA,
        "run_id": state.run_id,
        "track": state.track,
        "plan_digest": state.plan.digest(),
        "adapter_id": state.adapter.digest(),
        "rounds": plain(state.history),
        "declined": plain(state.declined),
        "retried": state.retried,
        "metrics": plain(state.metrics),
        "temperature": state.temperature,
        "measured": plain(state.measured),
        "evaluation": plain(state.evaluation),
    }
    write_text_durably(folder / "rounds.json", json.dumps(result, indent=1) + "\n")


class StateLog:
    """One line for each state of each track; ``rounds.json`` has the rest."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], int] = {}

    def __call__(self, state: TrackState) -> None:
        """Log it."""
        key = (state.run_id, state.track)
        with about(run=state.run_id, track=state.track, round=state.round_id):
            # A run that is resumed begins with a state of an earlier process.
            first = key not in self._seen or not (state.history or state.measured or state.evaluation)
            logger.info("%s", _first_words(state) if first else _words(state, self._seen[key]))
        self._seen[key] = state.round_id


def _first_words(state: TrackState) -> str:
    if state.evaluation is not None:
        return _words(state, state.round_id)
    after = f", goes on after round {state.round_id}" if state.history else ""
    return f"prepared{after}; declined: {', '.join(sorted(state.declined)) or 'none'}"


def _words(state: TrackState, last_round: int) -> str:
    if state.evaluation is not None:
        return f"evaluated: {canonical_json(pooled_figures(state.evaluation))}"
    if state.round_id == last_round and state.measured is not None:
        measured = canonical_json(pooled_figures(state.measured))
        return f"measured on the patients set aside, temperature {state.temperature:.3f}: {measured}"
    report = state.history[-1]
    return (
        f"round closed: block {report.block}, {len(report.survivors)} sites, {len(report.dropouts)} lost, "
        f"{report.exchanges} exchanges, {report.seconds:.1f} s, {report.waiting_s:.1f} s of them for sites"
    )


app = make_app(StateLog())
