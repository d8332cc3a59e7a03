"""A site's home folder with everything that a plan needs to be approved in it, and nothing loaded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.approvals import approve_plan
from client.home import ConsortiumHome, SiteHome
from client.settings import CapSettings, ModelSettings, SiteSettings
from common.atomic import write_atomically
from common.canonical import canonical_json
from common.ids import SiteId
from common.pki import write_public
from common.plan import RunPlan
from common.plan_package import PlanPackage
from common.tracks import TRACKS, Answer, AnswerList
from tests.fakes import SITES, fake_identities

CONSORTIUM = "trial"
SITE = SITES[0]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
ANSWERS = AnswerList(
    answers=(Answer(id="OMIM:154700", name="Marfan syndrome"), Answer(id="OMIM:609192", name="Loeys-Dietz")),
)


def packaged(plan: RunPlan) -> PlanPackage:
    """The plan, of this test's consortium and with its answers."""
    tracks = tuple(replace(track, answers_digest=ANSWERS.digest()) for track in plan.tracks)
    return PlanPackage(
        plan=replace(plan, tracks=tracks, consortium=CONSORTIUM),
        answers={track.track: ANSWERS for track in tracks},
    )


def site_settings(root: Path, **changed: Any) -> SiteSettings:
    """Of a site that has a base for every track."""
    bases = {track: root / "bases" / track for track in TRACKS}
    whole = {"site": SITE, "cohort": "adults", "data": root / "data", "models": ModelSettings(bases=bases)}
    return SiteSettings(**{**whole, **changed})


def make_home(root: Path, plan: RunPlan, *, site: SiteId = SITE) -> ConsortiumHome:
    """A home whose administrator approved all other sites of the plan, and no plan."""
    home = SiteHome(root).consortium(CONSORTIUM)
    (home.root / "approved").mkdir(parents=True)
    own = fake_identities(plan)[site]
    content = {"schema": 1, "site_id": site, "private_key": own.private_key.hex()}
    write_atomically(home.root / "identity.json", canonical_json(content), private=True)
    for other, identity in fake_identities(plan).items():
        if other != site:
            write_public(identity.public(), home.root / "approved")
    return home


def approve(home: ConsortiumHome, settings: SiteSettings, package: PlanPackage, *people: str) -> str:
    """The digest of the plan, which these people approve; a single one if none is named."""
    for person in people or ("A. Administrator",):
        approve_plan(home, settings, package, by=person, now=NOW)
    return package.plan.digest()


def cap(epsilon: float) -> CapSettings:
    """A site's own, at the delta of the tiny private plan."""
    return CapSettings(epsilon=epsilon, delta=1e-5)
