"""What `consilium-coordinator` prints of sites and runs, for people; ``--json`` prints the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.certificates import in_groups
from common.terminal import say, say_table
from server.runs import rates


def say_sites(rows: list[dict[str, Any]]) -> None:
    """A table of sites."""
    headings = ("site", "online", "last seen", "certificate", "enrolled", "identity")
    say_table(f"{len(rows)} sites", headings, [_site_cells(row) for row in rows])


def _site_cells(row: dict[str, Any]) -> tuple[str, ...]:
    left = row["certificate_days_left"]
    certificate = f"revoked {row['revoked']}" if row["revoked"] else f"{left} days" if left else "ended"
    online = "yes" if row["online"] else "no"
    seen, identity = row["last_seen"] or "never", in_groups(row["identity"][:16])
    return row["site"], online, seen, certificate, row["enrolled"], identity


def say_status(found: dict[str, Any]) -> None:
    """How the coordinator is doing."""
    say("consortium", found["consortium"])
    say("up", "yes" if found["up"] else "no; start it with: consilium-coordinator up")
    for name, days in found["certificate_days_left"].items():
        say("certificate", f"{name}: {days} days left")
    epsilon = found["epsilon_asked"]
    say("epsilon", "nothing was asked of patients yet" if epsilon is None else f"{epsilon:.3f} asked of each")
    if found["processes"]:
        processes = ("process", "state", "pid", "restarts", "since", "ended last with", "MiB")
        keys = ("name", "state", "pid", "restarts", "since", "last_exit", "memory_mb")
        cells = [tuple("" if row[key] is None else row[key] for key in keys) for row in found["processes"]]
        say_table("processes", processes, cells)
    say_sites(found["sites"])
    headings = ("run", "state", "track", "round", "of", "sites in it", "s", "result")
    say_table(
        f"{len(found['runs'])} runs", headings, [cells for row in found["runs"] for cells in _cells(row)]
    )


def _cells(row: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    if not row["tracks"]:
        yield (row["run_id"], row["state"], "", "", "", "", "", row["reason"])
    for name, track in row["tracks"].items():
        result = rates(track["metrics"]) if track["metrics"] else row["reason"] or track["step"]
        yield (
            *(row["run_id"], row["state"], name, track["round_id"], track["rounds"]),
            *(len(track["survivors"]), f"{track['seconds']:.1f}", result),
        )


def say_run(row: dict[str, Any]) -> None:
    """One run in full."""
    for label in ("run_id", "state", "reason", "plan_digest", "started", "ended"):
        if row[label]:
            say(label.replace("_", " "), row[label])
    for name, track in row["tracks"].items():
        say(name, f"{track['step']}, round {track['round_id']} of {track['rounds']}")
        say("", f"last round {track['seconds']:.1f} s, {track['waiting_s']:.1f} s of it waiting for sites")
        say("", f"{track['bytes_up']} bytes came from sites, {track['bytes_down']} went to them")
        say("", f"in it: {', '.join(track['survivors']) or 'nobody yet'}; tried again: {track['retried']}")
        for site, reason in {**track["dropouts"], **track["declined"]}.items():
            say("", f"not in it: {site}: {reason}")
        if track["temperature"] != 1:
            say("", f"temperature {track['temperature']:.3f}")
        if track["metrics"]:
            say("", rates(track["metrics"]))
