"""Which plans this site takes part in: an administrator reads one, and approves it by its digest.

Nothing is approved by default. What was decided stands in ``approvals.jsonl``, a chain of lines
(``common.audit``), and the approved package beside it. Where the site's settings ask for two people, two
different ones have to approve; one is enough to withdraw.

Guarantee: a plan counts as approved only with as many different people as the settings ask for, all of them
after its last withdrawal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from client.approval import approved_sites
from client.budget import cap_of, entries_of, require_room
from client.home import ConsortiumHome, SiteHome
from client.settings import SiteSettings
from common.audit import AuditEntry, AuditLog, read_entries
from common.checks import require_line
from common.disclosures import not_covered
from common.errors import (
    ApprovedAlreadyError,
    BudgetSpentError,
    DigestMismatchError,
    FederationError,
    OtherConsortiumError,
    PlanExpiredError,
    PlanNotApprovedError,
    PlanNotForSiteError,
    PurposeRefusedError,
    SettingsError,
    TrackRefusedError,
    UnapprovedSiteError,
)
from common.guarantee import certify, guarantee
from common.ids import SiteId
from common.locks import locked
from common.plan import RunPlan, TrackPlan
from common.plan_package import PlanPackage, read_package, write_package

APPROVE, WITHDRAW = "plan-approved", "plan-withdrawn"
LABEL_WIDTH = 13
# As in client.terminal, whose library the guard would wait for.
GROUP = 4


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Where a plan's approval stands.

    Attributes:
        digest: The plan's.
        name: The plan's, for people.
        by: Who approved it, in order, nobody twice.
        since: When the last of them did, UTC.
        needed: How many have to.
    """

    digest: str
    name: str
    by: tuple[str, ...]
    since: str
    needed: int

    @property
    def is_complete(self) -> bool:
        """Whether enough people approved."""
        return len(self.by) >= self.needed


def approve_plan(
    home: ConsortiumHome, settings: SiteSettings, package: PlanPackage, *, by: str, now: datetime
) -> Approval:
    """Write down that ``by`` approves the plan, and keep its package; where its approval stands then.

    Raises:
        ApprovedAlreadyError: The same person did already.
        FederationError: The first of `objections`.
        AuditBrokenError: The list of approvals was changed.
    """
    require_line("by", by)
    found = objections(home, settings, package.plan, today=now.date())
    if found:
        raise found[0]
    digest = package.plan.digest()
    with locked(_lock_file(home)):
        known = all_approvals(home, settings).get(digest)
        if known is not None and _has_approved(by, known):
            raise ApprovedAlreadyError(digest, by)
        # First: an approval whose package is not here would let nothing run.
        write_package(package, home.packages)
        AuditLog(home.approvals_file, lambda: now).append(APPROVE, plan=digest, name=package.plan.name, by=by)
        return all_approvals(home, settings)[digest]


def withdraw_approval(
    home: ConsortiumHome, settings: SiteSettings, digest: str, *, by: str, now: datetime, reason: str = ""
) -> None:
    """Take the approval of a plan back; from now on no task of it is let in.

    Raises:
        PlanNotApprovedError: Nobody approved it.
    """
    require_line("by", by)
    with locked(_lock_file(home)):
        if digest not in all_approvals(home, settings):
            raise PlanNotApprovedError(digest, 0, settings.approvals_needed)
        AuditLog(home.approvals_file, lambda: now).append(WITHDRAW, plan=digest, by=by, reason=reason)


def all_approvals(home: ConsortiumHome, settings: SiteSettings) -> dict[str, Approval]:
    """Every plan that somebody approved and nobody withdrew since, by digest. AuditBrokenError."""
    found: dict[str, Approval] = {}
    for entry in read_entries(home.approvals_file):
        digest = str(entry.facts.get("plan"))
        if entry.event == WITHDRAW:
            found.pop(digest, None)
        elif entry.event == APPROVE:
            found[digest] = _with(entry, found.get(digest), settings.approvals_needed)
    return found


def _with(entry: AuditEntry, earlier: Approval | None, needed: int) -> Approval:
    """Where a plan's approval stands after one line more; the line of who approved before changes nothing."""
    by = str(entry.facts.get("by"))
    if earlier is not None and _has_approved(by, earlier):
        return earlier
    return Approval(
        digest=str(entry.facts.get("plan")),
        name=str(entry.facts.get("name")),
        by=(*(earlier.by if earlier is not None else ()), by),
        since=entry.time,
        needed=needed,
    )


def approved(home: ConsortiumHome, settings: SiteSettings) -> dict[str, Approval]:
    """The plans that enough people approved, by digest. AuditBrokenError."""
    return {digest: one for digest, one in all_approvals(home, settings).items() if one.is_complete}


def approved_package(home: ConsortiumHome, settings: SiteSettings, digest: str) -> PlanPackage:
    """The package of an approved plan.

    Raises:
        PlanNotApprovedError: Not, or not by enough people.
        BadFileError, SettingsError, DigestMismatchError: Its package is gone, or another one.
    """
    found = all_approvals(home, settings).get(digest)
    if found is None or not found.is_complete:
        people = 0 if found is None else len(found.by)
        raise PlanNotApprovedError(digest, people, settings.approvals_needed)
    package = read_package(home.packages / f"{digest}.json")
    if package.plan.digest() != digest:
        raise DigestMismatchError("approved plan", package.plan.digest(), digest)
    return package


def objections(
    home: ConsortiumHome, settings: SiteSettings, plan: RunPlan, *, today: date
) -> tuple[FederationError, ...]:
    """Why this site may not take part in a plan, an error of one line each; none if it may."""
    found: list[FederationError | None] = [
        *member_objections(home, settings, plan, today=today),
        *(track_objection(settings, track) for track in plan.tracks_of(settings.site)),
        *site_objections(home, settings.site, plan),
        _promise_objection(plan),
    ]
    known = tuple(error for error in found if error is not None)
    # Last: to add up what was spent takes a while.
    room = None if known else _room_objection(home, settings, plan)
    return known if room is None else (*known, room)


def member_objections(
    home: ConsortiumHome, settings: SiteSettings, plan: RunPlan, *, today: date
) -> tuple[FederationError, ...]:
    """What of the plan itself does not fit this site and this day."""
    found: list[FederationError] = []
    if plan.consortium != home.name:
        found.append(OtherConsortiumError(plan.consortium, home.name))
    if settings.site not in plan.sites:
        found.append(PlanNotForSiteError(settings.site))
    if today > date.fromisoformat(plan.expires):
        found.append(PlanExpiredError(plan.expires, today.isoformat()))
    if settings.purposes and plan.purpose not in settings.purposes:
        found.append(PurposeRefusedError(plan.purpose, settings.purposes))
    return tuple(found)


def track_objection(settings: SiteSettings, track: TrackPlan) -> FederationError | None:
    """Why this site takes no part in one track of a plan that names it."""
    name = track.track
    if settings.tracks and name not in settings.tracks:
        return TrackRefusedError(name, f"this site takes part in {', '.join(settings.tracks)}")
    if name not in settings.models.bases:
        return TrackRefusedError(name, "there is no base model for it here (models.bases)")
    return None


def site_objections(home: ConsortiumHome, own: SiteId, plan: RunPlan) -> tuple[FederationError, ...]:
    """The sites of the plan that this site's administrator has not approved. BadFileError."""
    known = {own, *approved_sites(home.root)}
    return tuple(UnapprovedSiteError(site) for site in plan.sites if site not in known)


def _promise_objection(plan: RunPlan) -> FederationError | None:
    try:
        certify(plan)
    except SettingsError as error:
        return error
    return None


def _room_objection(home: ConsortiumHome, settings: SiteSettings, plan: RunPlan) -> FederationError | None:
    if settings.cap is None:
        return None
    try:
        path = site_home(home).ledger_file(settings.cohort)
        require_room(plan, settings.site, entries_of(path, settings.cohort), cap_of(settings.cap))
    except BudgetSpentError as error:
        return error
    return None


def site_home(home: ConsortiumHome) -> SiteHome:
    """The home of the site that a consortium's folder lies in."""
    return SiteHome(home.root.parent.parent)


def describe(package: PlanPackage, approved: Collection[SiteId] = ()) -> tuple[str, ...]:
    """What an administrator reads before he approves, line by line.

    Args:
        package: The plan and its answers.
        approved: Sites whose identity is approved here, the own one among them.
    """
    plan = package.plan
    return (
        _line("plan", plan.name),
        _line("consortium", plan.consortium),
        _line("purpose", plan.purpose),
        _line("ethics id", plan.ethics_id),
        _line("last day", plan.expires),
        *(_line("site", f"{site}  {_standing(site, approved)}") for site in plan.sites),
        *(line for track in plan.tracks for line in _track_lines(plan, track, package)),
        *_privacy_lines(plan),
        _line("digest", _spaced(plan.digest())),
    )


def _standing(site: SiteId, approved: Collection[SiteId]) -> str:
    return "approved here" if site in approved else "NOT approved here"


def _track_lines(plan: RunPlan, track: TrackPlan, package: PlanPackage) -> tuple[str, ...]:
    definition, training = track.definition, track.training
    own = plan.sites_of(track)
    among = "all sites" if len(own) == len(plan.sites) else ", ".join(own)
    return (
        _line("track", f"{track.track}: a student that reads {definition.modality.value} alone, {among}"),
        _line("", f"{len(package.answers[track.track])} answers, {training.rounds} rounds"),
        *_calibration_lines(track),
        _line("", f"base model {_spaced(track.base_model_digest[:16])} ..."),
    )


def _calibration_lines(track: TrackPlan) -> tuple[str, ...]:
    plan = track.calibration
    if plan is None:
        return ()
    rounds = f"{plan.rounds} rounds after them" if plan.rounds else "no rounds, one number from pooled counts"
    people = f"{plan.share:.0%} of the patients who are not tested are set aside"
    return (_line("", f"calibration by {plan.method}: {rounds}; {people}"),)


_TEACHERS: Mapping[str, str] = {
    "public": "never learns from patients",
    "dp": "learns from your patients under differential privacy; its share is in epsilon",
    "none": "learns from your patients without any bound on what it passes on",
}


def _privacy_lines(plan: RunPlan) -> tuple[str, ...]:
    held = guarantee(plan)
    lines = [
        _line("privacy", held.sentence()),
        _line("teacher", f"{plan.teacher.privacy}: {_TEACHERS[plan.teacher.privacy]}"),
    ]
    if plan.privacy.mode != "none":
        steps = ", ".join(f"{plan.steps(track)} of {track.track}" for track in plan.tracks)
        lines.append(_line("steps", f"at most {steps}; then this site refuses"))
    if held.epsilon is not None:
        lines += [_line("not covered", note) for note in not_covered()]
    return tuple(lines)


def _spaced(digits: str) -> str:
    return " ".join(digits[start : start + GROUP] for start in range(0, len(digits), GROUP))


def _line(label: str, value: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{value}"


def _has_approved(person: str, approval: Approval) -> bool:
    return person.casefold() in (known.casefold() for known in approval.by)


def _lock_file(home: ConsortiumHome) -> Path:
    # Not the list itself, which each reader and each line lock for themselves.
    return home.approvals_file.with_suffix(".lock")
