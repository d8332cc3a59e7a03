"""`consilium-site plans | approve | withdraw-approval`: which plans may run on this site's patients."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.approval import approved_sites
from client.approvals import Approval, all_approvals, approve_plan, describe, objections, withdraw_approval
from client.directory import look_up
from client.home import ConsortiumHome, SiteHome
from client.settings import SiteSettings, read_settings
from client.terminal import OK, REFUSED, Command, add_home, add_json, confirm, say, say_json, say_table
from common.certificates import in_groups, without_groups
from common.errors import DigestMismatchError, FederationError, NoSuchPlanError
from common.plan_package import PlanPackage, read_package

PLANS_SCHEMA = 1
SHOWN_DIGITS = 12
LEAST_DIGITS = 8

_PLANS = """\
Ask the coordinator for its plans, and list them with whether they are approved here. Nothing is approved by
default, and nothing that is not approved runs. What stands against a plan is listed beside it; a package
that cannot be read has its line, too. Where the coordinator cannot be reached, the list is that of the last
time, and the exit status is 3."""
_APPROVE = """\
Approve a plan: what it is for, which sites take part, what it promises to patients and what it takes from
them is shown first, and a yes is asked for. The digest names the plan; compare it with the one that the
ethics committee has seen. Where site.yaml asks for two people, a second one has to approve with a name of
his own. A script names the whole digest: --yes --digest HEX."""
_WITHDRAW = """\
Take the approval of a plan back. From now on no task of it is let in; a task that runs is not sent. One
person is enough. What was taken from patients so far stays in the ledger."""


def _add_plans(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    add_json(parser)


def _plans(arguments: argparse.Namespace) -> int:
    consortium, settings = _opened(arguments)
    reason = look_up(consortium, settings)
    rows, damaged = [], []
    approvals = all_approvals(consortium, settings)
    for path in sorted(consortium.packages.glob("*.json")):
        try:
            rows.append(_row(consortium, settings, _offered(path), approvals))
        except FederationError as error:
            damaged.append({"file": path.name, "reason": str(error)})
    if arguments.json:
        content = {"consortium": consortium.name, "fresh": reason is None, "plans": rows, "refused": damaged}
        say_json(PLANS_SCHEMA, content)
    else:
        cells = ((r["digest"][:SHOWN_DIGITS], r["name"], r["expires"], _standing(r)) for r in rows)
        say_table(f"plans of {consortium.name}", ("plan", "name", "last day", "state"), cells)
        for row in rows:
            for reason in row["objections"]:
                say("against", f"{row['digest'][:SHOWN_DIGITS]}: {reason}")
        for found in damaged:
            say("refused", f"{found['file']}: {found['reason']}")
    if reason is not None:
        print(f"consilium-site: {reason}", file=sys.stderr)  # noqa: T201
    return REFUSED if damaged or reason is not None else OK


def _row(
    consortium: ConsortiumHome,
    settings: SiteSettings,
    package: PlanPackage,
    approvals: dict[str, Approval],
) -> dict[str, Any]:
    plan = package.plan
    digest = plan.digest()
    approval = approvals.get(digest)
    against = objections(consortium, settings, plan, today=datetime.now(UTC).date())
    return {
        "digest": digest,
        "name": plan.name,
        "purpose": plan.purpose,
        "ethics_id": plan.ethics_id,
        "expires": plan.expires,
        "tracks": [track.track for track in plan.tracks],
        "sites": list(plan.sites),
        "approved": approval is not None and approval.is_complete,
        "approved_by": list(approval.by) if approval else [],
        "approvals_needed": settings.approvals_needed,
        "objections": [str(error) for error in against],
    }


def _standing(row: dict[str, Any]) -> str:
    by = row["approved_by"]
    if row["approved"]:
        return f"approved by {', '.join(by)}"
    return f"{len(by)} of {row['approvals_needed']} approvals" if by else "offered"


def _add_approve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan",
        metavar="PLAN",
        help=f"the first {LEAST_DIGITS} or more digits of its digest, or a package file",
    )
    parser.add_argument("--by", required=True, metavar="NAME", help="who approves, as it shall be on record")
    parser.add_argument("--digest", metavar="HEX", help="refuse unless the plan has this digest")
    parser.add_argument("--yes", action="store_true", help="do not ask; only together with --digest")
    add_home(parser)


def _check_approve(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.yes and arguments.digest is None:
        parser.error("--yes needs --digest: a script has to say which plan it means")


def _approve(arguments: argparse.Namespace) -> int:
    consortium, settings = _opened(arguments)
    package = _package(consortium, arguments.plan)
    digest = package.plan.digest()
    if arguments.digest is not None and without_groups(arguments.digest) != digest:
        raise DigestMismatchError("plan", digest, without_groups(arguments.digest))
    for line in describe(package, {settings.site, *approved_sites(consortium.root)}):
        print(line)  # noqa: T201
    now = datetime.now(UTC)
    # Before the question: nobody should read and confirm what is refused then.
    against = objections(consortium, settings, package.plan, today=now.date())
    for error in against:
        say("against", error)
    if against:
        raise against[0]
    if not arguments.yes:
        confirm(f"Approve this plan for {settings.site} as {arguments.by}?")
    approval = approve_plan(consortium, settings, package, by=arguments.by, now=now)
    say("approved", f"{in_groups(digest)}  by {', '.join(approval.by)}")
    if not approval.is_complete:
        say("waits", f"{len(approval.by)} of {approval.needed} people have approved; it does not run yet")
    return OK


def _add_withdraw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help=f"{LEAST_DIGITS} or more first digits of its digest")
    parser.add_argument("--by", required=True, metavar="NAME", help="who withdraws, as it shall be on record")
    parser.add_argument("--reason", default="", metavar="TEXT", help="one line for the record")
    add_home(parser)


def _withdraw(arguments: argparse.Namespace) -> int:
    consortium, settings = _opened(arguments)
    digest = _the_one(arguments.plan, all_approvals(consortium, settings))
    withdraw_approval(
        consortium,
        settings,
        digest,
        by=arguments.by,
        now=datetime.now(UTC),
        reason=" ".join(arguments.reason.split()),
    )
    say("withdrawn", f"{in_groups(digest)}  by {arguments.by}")
    return OK


def _opened(arguments: argparse.Namespace) -> tuple[ConsortiumHome, SiteSettings]:
    home = SiteHome(arguments.home)
    return home.the_consortium(arguments.consortium), read_settings(home.settings_file)


def _package(consortium: ConsortiumHome, named: str) -> PlanPackage:
    if Path(named).is_file():
        return read_package(Path(named))
    offered = {path.stem: path for path in consortium.packages.glob("*.json")}
    return _offered(offered[_the_one(named, offered)])


def _offered(path: Path) -> PlanPackage:
    """The package in a file that is named by its digest. DigestMismatchError if it is another one."""
    package = read_package(path)
    if package.plan.digest() != path.stem:
        raise DigestMismatchError(f"plan in {path.name}", package.plan.digest(), path.stem)
    return package


def _the_one(named: str, known: Iterable[str]) -> str:
    """The digest that begins as ``named``. NoSuchPlanError unless it is long enough and just one does."""
    prefix = without_groups(named)
    found = [digest for digest in known if digest.startswith(prefix)]
    if len(prefix) < LEAST_DIGITS or len(found) != 1:
        raise NoSuchPlanError(named, len(found), LEAST_DIGITS)
    return found[0]


PLAN_COMMANDS = (
    Command(
        name="plans",
        brief="list the plans that are offered, and which are approved",
        description=_PLANS,
        add=_add_plans,
        run=_plans,
    ),
    Command(
        name="approve",
        brief="approve a plan, so that it may run on this site's patients",
        description=_APPROVE,
        add=_add_approve,
        check=_check_approve,
        run=_approve,
    ),
    Command(
        name="withdraw-approval",
        brief="take the approval of a plan back",
        description=_WITHDRAW,
        add=_add_withdraw,
        run=_withdraw,
    ),
)
