"""`consilium-site start | status | audit`: the daemon, what it does, and what was let in and refused."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any

from client.guard_app import install_executables
from client.home import SiteHome
from client.settings import read_settings
from client.status import audit_line, site_status
from client.terminal import NOT_RUNNING, OK, Command, add_home, add_json, say, say_json, say_table
from common.audit import read_entries, verify
from common.certificates import in_groups
from common.until_told import until_told

STATUS_SCHEMA = AUDIT_SCHEMA = 1
SHOWN_DIGITS = 12

_START = """\
Run this site for one federation: the worker that holds the models, the proxy that talks to the coordinator,
and Flower's SuperNode, until the command is ended (Ctrl-C, or SIGTERM from systemd). First everything is
looked at that the others rely on: keys, ledger, certificate, who may enter the home. Nothing listens but on
this machine's own loopback. What happens is logged to standard error, and for each process in
HOME/consortia/NAME/logs; no log holds a patient's data."""
_STATUS = """\
How this site is doing: its processes, the connection to the coordinator, the certificate, approved sites and
plans, what the worker does now, what was taken from patients and what is left, and the last refusals. The
exit status is 4 where the daemon does not run."""
_AUDIT = """\
What was let in and what was refused, and why, oldest first. --verify only checks that no line was changed,
cut or put in another place, and prints the log's head; whoever keeps heads elsewhere can tell whether the log
was written anew."""


def _add_start(parser: argparse.ArgumentParser) -> None:
    add_home(parser)


def _start(arguments: argparse.Namespace) -> int:
    # Flower takes a second to import, which no other command has to wait for.
    from client.daemon import Daemon
    from client.readiness import require_ready
    from common.logs import configure

    home = SiteHome(arguments.home.absolute())
    consortium, settings = home.the_consortium(arguments.consortium), read_settings(home.settings_file)
    require_ready(home, consortium, settings)
    # Anew each time: they name the Python that they run with, which an update may have moved.
    install_executables(consortium)
    configure()
    with until_told() as stop:
        Daemon(home, consortium, settings).run(stop)
    return OK


def _add_status(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    add_json(parser)


def _status(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    consortium, settings = home.the_consortium(arguments.consortium), read_settings(home.settings_file)
    found = site_status(home, consortium, settings, datetime.now(UTC))
    if arguments.json:
        say_json(STATUS_SCHEMA, found)
    else:
        _print_status(found)
    return OK if found["daemon"]["running"] else NOT_RUNNING


def _print_status(found: dict[str, Any]) -> None:
    daemon = found["daemon"]
    say("site", f"{found['site']} in {found['consortium']}")
    if daemon["running"]:
        say(
            "daemon",
            f"process {daemon['pid']} since {daemon['since']}; health on port {daemon['health_port']}",
        )
    else:
        say("daemon", "NOT RUNNING; consilium-site start starts it")
    for row in found["processes"]:
        say(
            "process",
            f"{row['name']}: {row['state']}, {row['restarts']} restarts, {row['memory_mb']:.0f} MiB",
        )
    say("connection", _facts(found["connection"]) or "not known")
    say("certificate", _facts(found["certificate"]) or "none")
    say("sites", ", ".join(found["sites"]) or "none approved")
    for plan in found["plans"]:
        approvals = f"{len(plan['by'])} of {plan['needed']} approvals"
        say("plan", f"{plan['digest'][:SHOWN_DIGITS]} {plan['name']}: {approvals}")
    if not found["plans"]:
        say("plan", "none approved")
    say("worker", _worker_line(found["worker"] or {}))
    say("budget", _budget_line(found["budget"]))
    for line in found["refusals"]:
        say("refused", f"{line['time']} {_facts(_reason(line))}")


def _worker_line(work: dict[str, Any]) -> str:
    """What it is at, and how long the parts of its last task took."""
    about = {key: work.get(key) for key in ("plan", "run", "track", "round") if work.get(key) is not None}
    if "plan" in about:
        about["plan"] = str(about["plan"])[:SHOWN_DIGITS]
    seconds = work.get("seconds")
    parts = [f"{part} {value:g} s" for part, value in seconds.items()] if isinstance(seconds, dict) else []
    last = [f"last task: {', '.join(parts)}"] if parts else []
    return "; ".join([str(work.get("state", "not known")), *filter(None, [_facts(about)]), *last])


def _budget_line(budget: dict[str, Any]) -> str:
    spent = "no bound" if budget["epsilon"] is None else f"epsilon {budget['epsilon']:.3f}"
    cap = "no cap" if budget["cap"] is None else f"cap {budget['cap']:g}, {budget['left']:.3f} left"
    entries = f"{budget['entries']} entries of {budget['cohort']}"
    return f"{spent} spent at delta {budget['delta']:g}, {cap}; {entries}"


def _facts(found: dict[str, Any] | None) -> str:
    shown = {key: value for key, value in (found or {}).items() if value not in (None, "")}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


def _reason(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("n", "time", "event")}


def _add_audit(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    parser.add_argument("--verify", action="store_true", help="only check the log, and print its head")
    parser.add_argument("--last", type=_positive, metavar="N", help="only the last N lines")
    add_json(parser)


def _audit(arguments: argparse.Namespace) -> int:
    path = SiteHome(arguments.home).the_consortium(arguments.consortium).audit_file
    head = verify(path)
    if arguments.verify:
        if arguments.json:
            say_json(AUDIT_SCHEMA, {"file": str(path), "lines": head.n, "head": head.hash})
        else:
            say("whole", f"{head.n} lines, head {in_groups(head.hash)}")
        return OK
    lines = [audit_line(entry) for entry in read_entries(path)][-(arguments.last or 0) :]
    if arguments.json:
        say_json(AUDIT_SCHEMA, {"file": str(path), "lines": lines})
    else:
        rows = ((line["n"], line["time"], line["event"], _facts(_reason(line))) for line in lines)
        say_table(str(path), ("line", "time", "event", "what"), rows)
    return OK


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)


RUN_COMMANDS = (
    Command(
        name="start",
        brief="run this site until it is told to stop",
        description=_START,
        add=_add_start,
        run=_start,
    ),
    Command(
        name="status",
        brief="how this site is doing",
        description=_STATUS,
        add=_add_status,
        run=_status,
    ),
    Command(
        name="audit",
        brief="what was let in and what was refused",
        description=_AUDIT,
        add=_add_audit,
        run=_audit,
    ),
)
