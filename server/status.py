"""How a coordinator is doing: processes, sites, runs, what was asked of patients. Read from files alone.

For ``consilium-coordinator status`` and, by ``CoordinatorCollector``, for Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from common.canonical import plain
from common.certificates import days_left, read_certificate
from common.children import read_status
from common.daemon_lock import holder
from common.errors import FederationError
from common.ledger_report import DEFAULT_DELTA
from common.privacy.budget import epsilon_spent
from common.privacy.ledger import Ledger
from server.budget import LEDGER_FILE
from server.home import CoordinatorHome
from server.journal import RunProgress, read_progress
from server.presence import read_presence
from server.site_records import site_records

LOCK_NAME, PROCESSES_NAME = "coordinator.lock", "processes.json"
ENDED, CRASHED = ("finished", "failed", "stopped"), "crashed"


def is_up(home: CoordinatorHome) -> bool:
    """Whether ``up`` runs in this home."""
    return holder(home.run / LOCK_NAME) is not None


def process_rows(home: CoordinatorHome) -> list[dict[str, Any]]:
    """The supervised processes; none if ``up`` does not run. BadFileError."""
    status = read_status(home.run / PROCESSES_NAME) if is_up(home) else None
    return [asdict(row) for row in status.rows] if status else []


def site_rows(home: CoordinatorHome, now: datetime) -> list[dict[str, Any]]:
    """The enrolled sites, revoked ones, too. BadFileError."""
    presence, up = read_presence(home), is_up(home)
    rows = []
    for record in site_records(home):
        found, ends = presence.get(record.site), record.ends()
        rows.append(
            {
                "site": record.site,
                "enrolled": record.enrolled,
                "revoked": record.revoked,
                "identity": record.identity,
                "certificate_ends": ends or None,
                "certificate_days_left": round(_days(ends, now), 1) if ends else None,
                "online": bool(up and found and found.online and record.revoked is None),
                "last_seen": found.last_seen if found else None,
            }
        )
    return rows


def run_folders(home: CoordinatorHome) -> list[Path]:
    """A folder for each run, by name."""
    return sorted(path.parent for path in home.runs.glob("*/run.json"))


def run_row(folder: Path) -> dict[str, Any]:
    """A run in short. FederationError if its journal is damaged."""
    progress = read_progress(folder)
    return {
        **plain(progress.run),
        "state": state_of(progress),
        "tracks": {name: plain(track) for name, track in progress.tracks.items()},
    }


def state_of(progress: RunProgress) -> str:
    """``running``, ``finished``, ``failed``, ``stopped``, or ``crashed``: begun, and nobody works on it."""
    crashed = progress.run.status == "running" and not progress.held
    return CRASHED if crashed else progress.run.status


def ledger_epsilon(home: CoordinatorHome, consortium: str, delta: float = DEFAULT_DELTA) -> float | None:
    """What was asked of each patient, all plans together; None if no budget was ever spent."""
    path = home.root / LEDGER_FILE
    if not path.exists():
        return None
    ledger = Ledger.open(path, coordinator_cohort(consortium))
    try:
        return epsilon_spent(ledger.entries(), delta)
    finally:
        ledger.close()


def coordinator_cohort(consortium: str) -> str:
    """Whom the coordinator's own ledger is about; as ``server.budget.open_ledger`` names them."""
    return f"all patients of {consortium}"


def state_bytes(home: CoordinatorHome) -> int:
    """Of SuperLink's database and what lies beside it."""
    return sum(path.stat().st_size for path in home.root.glob(f"{home.state_file.name}*"))


def certificate_days(home: CoordinatorHome, now: datetime) -> dict[str, float]:
    """Days that are left of the coordinator's own certificates. BadFileError."""
    files = {"server": home.server_certificate, "authority": home.authority / "ca.crt"}
    return {name: round(days_left(read_certificate(path), now), 1) for name, path in files.items()}


class CoordinatorCollector:
    """What a coordinator tells of itself, for Prometheus."""

    def __init__(self, home: CoordinatorHome, consortium: str) -> None:
        """Read the home's files at each scrape."""
        self._home, self._consortium = home, consortium
        self._epsilon: tuple[float, float | None] | None = None

    def collect(self) -> Iterator[Any]:
        """Sites, runs, rounds, certificates, the database, and what was asked of patients."""
        now = datetime.now(UTC)
        sites = site_rows(self._home, now)
        yield _labeled("consilium_site_online", "1 if its node is online", "site", {
            row["site"]: float(row["online"]) for row in sites if row["revoked"] is None
        })  # fmt: skip
        yield _labeled(
            "consilium_site_certificate_days_left", "of the site's certificate", "site",
            {row["site"]: row["certificate_days_left"] or 0.0 for row in sites if row["revoked"] is None},
        )  # fmt: skip
        yield from self._runs()
        yield _labeled(
            "consilium_certificate_days_left", "of the coordinator's own", "certificate",
            certificate_days(self._home, now),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "consilium_state_bytes", "of SuperLink's database", value=state_bytes(self._home)
        )
        epsilon = self._spent()
        if epsilon is not None:
            yield GaugeMetricFamily(
                "consilium_epsilon_spent", f"asked of each patient, at delta {DEFAULT_DELTA:g}", value=epsilon
            )

    def _runs(self) -> Iterator[Any]:
        runs = GaugeMetricFamily("consilium_runs", "runs by state", labels=["state"])
        seconds = GaugeMetricFamily("consilium_round_seconds", "of the last round", labels=["run", "track"])
        rounds = GaugeMetricFamily("consilium_round", "last closed round", labels=["run", "track"])
        survivors = GaugeMetricFamily(
            "consilium_round_survivors", "sites in the last sum", labels=["run", "track"]
        )
        carried = CounterMetricFamily(
            "consilium_bytes", "of messages in closed rounds", labels=["run", "track", "way"]
        )
        counts = dict.fromkeys(("running", *ENDED, CRASHED, "damaged"), 0)
        for folder in run_folders(self._home):
            try:
                progress = read_progress(folder)
            except FederationError:
                counts["damaged"] += 1
                continue
            counts[state_of(progress)] += 1
            for name, track in progress.tracks.items():
                labels = [progress.run.run_id, name]
                seconds.add_metric(labels, track.seconds)
                rounds.add_metric(labels, track.round_id)
                survivors.add_metric(labels, len(track.survivors))
                carried.add_metric([*labels, "up"], track.bytes_up)
                carried.add_metric([*labels, "down"], track.bytes_down)
        for state, count in counts.items():
            runs.add_metric([state], count)
        yield from (runs, rounds, seconds, survivors, carried)

    def _spent(self) -> float | None:
        """Computed again only where the ledger has changed: adding up takes a while."""
        path = self._home.root / LEDGER_FILE
        if not path.exists():
            return None
        changed = path.stat().st_mtime
        if self._epsilon is None or self._epsilon[0] != changed:
            self._epsilon = (changed, ledger_epsilon(self._home, self._consortium))
        return self._epsilon[1]


def _labeled(name: str, words: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _days(ends: str, now: datetime) -> float:
    return (datetime.fromisoformat(ends) - now).total_seconds() / 86400
