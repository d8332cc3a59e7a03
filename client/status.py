"""How a site is doing, read from the files that its processes keep: for people, scripts and Prometheus.

Guarantee: nothing in it is about a patient, but for the sums that the ledger holds.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.approval import approved_sites
from client.approvals import all_approvals
from client.home import ConsortiumHome, SiteHome
from client.settings import SiteSettings
from common.audit import AuditEntry, read_entries
from common.canonical import read_object
from common.certificates import days_left, read_certificate
from common.daemon_lock import holder
from common.errors import BadFileError, SettingsError
from common.privacy.ledger import Ledger
from common.processes import is_alive
from common.supervisor import read_status

LAST_REFUSALS = 5
DEFAULT_DELTA = 1e-5
REFUSED_EVENT = "refused"
# What the proxy says of a gateway that it cannot use.
TROUBLE = ("unreachable", "refused")


def site_status(
    home: SiteHome, consortium: ConsortiumHome, settings: SiteSettings, now: datetime
) -> dict[str, Any]:
    """How a site is doing, as JSON would have it. FederationError where a file of it is damaged."""
    pid = holder(consortium.daemon_lock)
    processes = read_status(consortium.processes_status) if pid is not None else None
    return {
        "site": settings.site,
        "consortium": consortium.name,
        "daemon": {"running": pid is not None, "pid": pid, **_daemon(consortium)},
        "processes": [asdict(row) for row in processes.rows] if processes else [],
        "connection": _connection(consortium) if pid is not None else None,
        "certificate": _certificate(consortium, now),
        "sites": sorted(approved_sites(consortium.root)),
        "plans": [asdict(one) for one in all_approvals(consortium, settings).values()],
        "worker": _worker(consortium) if pid is not None else None,
        "budget": _budget(home, settings),
        "refusals": [audit_line(one) for one in _refusals(consortium)][-LAST_REFUSALS:],
    }


def _daemon(consortium: ConsortiumHome) -> dict[str, Any]:
    found = read_run_file(consortium.daemon_status) or {}
    return {"since": found.get("since"), "health_port": found.get("port")}


def _connection(consortium: ConsortiumHome) -> dict[str, Any] | None:
    """What the outbound proxy says of the way to the gateway."""
    found = read_run_file(consortium.proxy_status)
    return None if found is None else {key: found.get(key) for key in ("gateway", "state", "reason", "since")}


def _worker(consortium: ConsortiumHome) -> dict[str, Any] | None:
    """What the worker is at; None while none runs, whatever an earlier one left in its file."""
    found = worker_at_work(consortium)
    return None if found is None else {key: found[key] for key in found if key not in ("schema", "metrics")}


def _certificate(consortium: ConsortiumHome, now: datetime) -> dict[str, Any] | None:
    try:
        certificate = read_certificate(consortium.tls_certificate)
    except BadFileError:
        return None
    ends = certificate.not_valid_after_utc.isoformat(timespec="seconds")
    return {"ends": ends, "days_left": round(days_left(certificate, now), 1)}


def _budget(home: SiteHome, settings: SiteSettings) -> dict[str, Any]:
    # The accountant's libraries take a second to import.
    from common.privacy.budget import epsilon_spent

    cap = settings.cap
    delta = cap.delta if cap else DEFAULT_DELTA
    ledger = Ledger.open(home.ledger_file(settings.cohort), settings.cohort)
    try:
        entries = ledger.entries()
    finally:
        ledger.close()
    spent = epsilon_spent(entries, delta)
    bounded = spent < float("inf")
    return {
        "cohort": settings.cohort,
        "entries": len(entries),
        "delta": delta,
        # JSON has no infinity: null is no bound.
        "epsilon": spent if bounded else None,
        "cap": cap.epsilon if cap else None,
        "left": None if cap is None else max(0.0, cap.epsilon - spent) if bounded else 0.0,
    }


def _refusals(consortium: ConsortiumHome) -> list[AuditEntry]:
    return [entry for entry in read_entries(consortium.audit_file) if entry.event == REFUSED_EVENT]


def audit_line(entry: AuditEntry) -> dict[str, Any]:
    """A line of the audit log, as JSON would have it."""
    return {"n": entry.n, "time": entry.time, "event": entry.event, **entry.facts}


def proxy_port(consortium: ConsortiumHome) -> int | None:
    """The outbound proxy's port; None while it does not listen."""
    port = (read_run_file(consortium.proxy_status) or {}).get("port")
    return port if isinstance(port, int) and port > 0 else None


def worker_at_work(consortium: ConsortiumHome) -> dict[str, Any] | None:
    """What the worker that runs says of itself, see ``client.worker_process``; None if none runs."""
    found = read_run_file(consortium.worker_status) or {}
    pid = found.get("pid")
    return found if isinstance(pid, int) and is_alive(pid) else None


def worker_is_ready(consortium: ConsortiumHome) -> bool:
    """Whether a worker runs that takes tasks."""
    return (worker_at_work(consortium) or {}).get("state", "starting") not in ("starting", "stopping")


def gateway_trouble(consortium: ConsortiumHome) -> str | None:
    """Why the gateway cannot be used; None if nothing is known against it."""
    found = read_run_file(consortium.proxy_status) or {}
    if found.get("state") not in TROUBLE:
        return None
    return str(found.get("reason") or found["state"])


def certificate_days(consortium: ConsortiumHome) -> float | None:
    """Days until the site's certificate ends; None if there is none that can be read."""
    try:
        return days_left(read_certificate(consortium.tls_certificate), datetime.now(UTC))
    except BadFileError:
        return None


def read_run_file(path: Path) -> dict[str, Any] | None:
    """What a process says of itself; None if it says nothing that can be read."""
    try:
        return read_object(path.read_text(encoding="utf-8"), "status")
    except (OSError, UnicodeDecodeError, SettingsError):
        return None
