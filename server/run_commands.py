"""`consilium-coordinator up | plan | run | resume | status | export`: processes, plans and runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.adapter import load_adapter
from common.atomic import write_atomically
from common.audit import AuditLog
from common.disclosures import not_covered
from common.errors import CoordinatorDownError, RunRefusedError
from common.ids import RunId, run_id
from common.peft import export_peft
from common.plan import RunPlan
from common.plan_package import PlanPackage, read_package
from common.terminal import NOT_RUNNING, OK, REFUSED, UNUSABLE, Command, add_json, say, say_json, say_table
from common.until_told import until_told
from server.arguments import add_home, home_of
from server.home import CoordinatorHome
from server.listings import say_run, say_status
from server.offers import check_plan, find_offered, offer, offered
from server.runs import Ended, begin, folder_of, follow, go_on, is_refusal, new_name
from server.status import (
    certificate_days,
    is_up,
    ledger_epsilon,
    process_rows,
    run_folders,
    run_row,
    site_rows,
    state_bytes,
)
from server.superlink import SuperLink

PLAN_SCHEMA = RUN_SCHEMA = STATUS_SCHEMA = 1
SHOWN_DIGITS = 12

_UP = """\
Run the coordinator until the command is ended (Ctrl-C, or SIGTERM from systemd): Flower's SuperLink on a
private address, what starts runs, the gateway and the enrolment service for sites. A process that dies is
started again. GET /health and GET /metrics (for Prometheus) answer on the private address. What happens is
logged to standard error, and for each process in HOME/logs."""
_PLAN = """\
Offer a plan to the sites of the consortium: FILE is a plan with its answers. It is checked first: that all of
its sites have enrolled, that the adapters to start from are those that it names, that it promises patients no
more than its noise gives. It runs only at sites whose administrators approve it by its digest, which is
printed: read it to them.

--list shows the plans that are offered."""
_RUN = """\
Run a plan that is offered, named by the first digits of its digest, and follow it to its end, one line for a
round and track. Ctrl-C, or --detach, leaves it running; `status RUN` shows how it is. `up` has to run."""
_RESUME = """\
Go on with a run that crashed, failed or was stopped, from its last closed round: no round is counted twice.
A run that is at work is left alone. `up` has to run."""
_STATUS = """\
How the coordinator is doing: its processes, sites, runs, certificates, and what was asked of patients. With
RUN, one run in full. The exit status is 4 where `up` does not run."""
_EXPORT = """\
Write the students of a run into a folder, for each track: the adapter (adapter.safetensors, and as PEFT and
vLLM load it), the answers it ranks, and how its rounds went; beside them the plan. Only tracks that have
finished are written."""


def _add_up(parser: argparse.ArgumentParser) -> None:
    add_home(parser)


def _up(arguments: argparse.Namespace) -> int:
    from common.logs import configure
    from server.daemon import Daemon

    home = home_of(arguments)
    configure()
    with until_told() as stop:
        Daemon(home, home.settings()).run(stop)
    return OK


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the plan with its answers")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=_adapter,
        metavar="TRACK=FILE",
        help="the adapter that a track starts from; once for each track",
    )
    parser.add_argument("--list", action="store_true", help="show the plans that are offered")
    add_json(parser)


def _check_plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.list == (arguments.file is not None):
        parser.error("name a FILE, or give --list")
    for path in [arguments.file, *(path for _, path in arguments.adapter)]:
        if path is not None and not path.is_file():
            parser.error(f"no file {path}")
    if len(dict(arguments.adapter)) < len(arguments.adapter):
        parser.error("--adapter: expected each track once")


def _plan(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    if arguments.list:
        return _list_plans(home, as_json=arguments.json)
    package = read_package(arguments.file)
    promise = check_plan(home, home.settings(), package.plan, datetime.now(UTC).date())
    offer(home, package, dict(arguments.adapter))
    digest = package.plan.digest()
    AuditLog(home.audit_file).append("plan-offered", plan=digest, sites=tuple(package.plan.sites))
    if arguments.json:
        say_json(
            PLAN_SCHEMA, {**_plan_row(package), "promise": asdict(promise), "not_covered": not_covered()}
        )
        return OK
    say("plan", package.plan.name)
    say("digest", digest)
    say("sites", ", ".join(package.plan.sites))
    say("promise", promise.sentence())
    for note in not_covered():
        say("not in it", note)
    say("next", f"each site approves it; then: consilium-coordinator run {digest[:SHOWN_DIGITS]}")
    return OK


def _list_plans(home: CoordinatorHome, *, as_json: bool) -> int:
    rows = [_plan_row(package) for package in offered(home)]
    if as_json:
        say_json(PLAN_SCHEMA, {"plans": rows})
        return OK
    headings = ("digest", "name", "tracks", "sites", "rounds", "privacy", "last day")
    cells = [
        (row["digest"][:SHOWN_DIGITS], row["name"], " ".join(row["tracks"]), len(row["sites"]),
         max(row["tracks"].values()), row["privacy"], row["expires"])
        for row in rows
    ]  # fmt: skip
    say_table(f"{len(rows)} plans", headings, cells)
    return OK


def _plan_row(package: PlanPackage) -> dict[str, Any]:
    plan = package.plan
    return {
        "digest": plan.digest(),
        "name": plan.name,
        "purpose": plan.purpose,
        "ethics_id": plan.ethics_id,
        "expires": plan.expires,
        "sites": list(plan.sites),
        "tracks": {track.track: track.all_rounds for track in plan.tracks},
        "privacy": plan.privacy.mode,
        "epsilon": plan.privacy.epsilon,
        "delta": plan.privacy.delta,
    }


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="DIGEST", help="the first digits of the plan's digest")
    add_home(parser)
    parser.add_argument("--run", type=_run_name, metavar="NAME", help="the run's name (default: made up)")
    parser.add_argument("--detach", action="store_true", help="start it and return")


def _run(arguments: argparse.Namespace) -> int:
    home, link = _running(arguments)
    plan = find_offered(home, arguments.plan).plan
    check_plan(home, home.settings(), plan, datetime.now(UTC).date())
    run = arguments.run or new_name(plan)
    flower_id = begin(home, link, plan, run)
    AuditLog(home.audit_file).append("run-started", run=run, plan=plan.digest(), flower_run=str(flower_id))
    say("run", run)
    return OK if arguments.detach else _follow(home, link, run, flower_id)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_run_name, metavar="RUN")
    add_home(parser)
    parser.add_argument("--detach", action="store_true", help="start it and return")


def _resume(arguments: argparse.Namespace) -> int:
    home, link = _running(arguments)
    plan = RunPlan.from_json((folder_of(home, arguments.run) / "plan.json").read_text(encoding="utf-8"))
    check_plan(home, home.settings(), plan, datetime.now(UTC).date())
    flower_id = go_on(home, link, arguments.run)
    AuditLog(home.audit_file).append("run-resumed", run=arguments.run, flower_run=str(flower_id))
    say("run", arguments.run)
    return OK if arguments.detach else _follow(home, link, arguments.run, flower_id)


def _running(arguments: argparse.Namespace) -> tuple[CoordinatorHome, SuperLink]:
    """The home and its SuperLink. CoordinatorDownError where `up` does not run."""
    home = home_of(arguments)
    if not is_up(home):
        raise CoordinatorDownError(home.root)
    settings = home.settings()
    return home, SuperLink(settings.private_host, settings.superlink_port)


def _follow(home: CoordinatorHome, link: SuperLink, run: RunId, flower_id: int) -> int:
    """Print what happens until the run ends; its exit status."""
    try:
        for news in follow(home, link, run, flower_id):
            if isinstance(news, Ended):
                return _end(home, run, news)
            print(news, flush=True)  # noqa: T201
    except KeyboardInterrupt:
        say("left", f"{run} goes on; see: consilium-coordinator status {run}")
    return OK


def _end(home: CoordinatorHome, run: RunId, ended: Ended) -> int:
    AuditLog(home.audit_file).append("run-ended", run=run, state=ended.state, reason=ended.reason)
    for track, sites in ended.declined.items():
        for site, reason in sites.items():
            say("declined", f"{track}: {site}: {reason}")
    if ended.state == "finished":
        say("finished", home.runs / run)
        return REFUSED if ended.declined else OK
    say(ended.state, ended.reason)
    say("next", f"consilium-coordinator resume {run}")
    return REFUSED if is_refusal(ended) else UNUSABLE


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="one run in full")
    add_home(parser)
    add_json(parser)


def _status(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    if arguments.run is not None:
        row = run_row(folder_of(home, arguments.run))
        say_json(STATUS_SCHEMA, row) if arguments.json else say_run(row)
        return OK
    found = _found(home)
    say_json(STATUS_SCHEMA, found) if arguments.json else say_status(found)
    return OK if found["up"] else NOT_RUNNING


def _found(home: CoordinatorHome) -> dict[str, Any]:
    settings, now = home.settings(), datetime.now(UTC)
    return {
        "consortium": settings.consortium,
        "up": is_up(home),
        "processes": process_rows(home),
        "sites": site_rows(home, now),
        "runs": [run_row(folder) for folder in run_folders(home)],
        "certificate_days_left": certificate_days(home, now),
        "state_bytes": state_bytes(home),
        "epsilon_asked": ledger_epsilon(home, settings.consortium),
    }


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=_run_name, metavar="RUN")
    add_home(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet"
    )


def _export(arguments: argparse.Namespace) -> int:
    home, out = home_of(arguments), arguments.out
    folder = folder_of(home, arguments.run)
    plan = RunPlan.from_json((folder / "plan.json").read_text(encoding="utf-8"))
    done = [track for track in plan.tracks if (folder / track.track / "adapter.safetensors").is_file()]
    if not done:
        raise RunRefusedError(arguments.run, "no track has finished")
    if out.exists():
        raise RunRefusedError(arguments.run, f"{out} is there already; name a folder that is not")
    package = find_offered(home, plan.digest())
    for track in done:
        source, target = folder / track.track, out / track.track
        export_peft(load_adapter(source / "adapter.safetensors"), target, f"sha256:{track.base_model_digest}")
        for name in ("adapter.safetensors", "rounds.json"):
            write_atomically(target / name, (source / name).read_bytes())
        write_atomically(target / "answers.json", package.answers[track.track].to_json() + "\n")
        say("student", target)
    write_atomically(out / "plan.json", plan.to_json() + "\n")
    AuditLog(home.audit_file).append("exported", run=arguments.run, tracks=tuple(t.track for t in done))
    missing = [track.track for track in plan.tracks if track not in done]
    for name in missing:
        say("missing", f"{name} has not finished")
    return REFUSED if missing else OK


def _adapter(text: str) -> tuple[str, Path]:
    track, separator, file = text.partition("=")
    if not separator or not track or not file:
        raise argparse.ArgumentTypeError(f"expected TRACK=FILE, got {text!r}")
    return track, Path(file)


def _run_name(text: str) -> RunId:
    try:
        return run_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


UP = Command(name="up", brief="run the coordinator", description=_UP, add=_add_up, run=_up)
PLAN = Command(
    name="plan", brief="offer a plan, or list the plans", description=_PLAN,
    add=_add_plan, check=_check_plan, run=_plan,
)  # fmt: skip
RUN = Command(name="run", brief="run a plan", description=_RUN, add=_add_run, run=_run)
RESUME = Command(name="resume", brief="go on with a run", description=_RESUME, add=_add_resume, run=_resume)
STATUS = Command(
    name="status", brief="say how the coordinator is doing", description=_STATUS, add=_add_status, run=_status
)
EXPORT = Command(
    name="export", brief="write a run's students", description=_EXPORT, add=_add_export, run=_export
)
