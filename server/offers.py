"""Plans that a coordinator offers to its sites: checked, then put where sites find them.

A plan is offered whole or not at all: its adapters first, then its package, which is what sites ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

from common.adapter import load_adapter
from common.atomic import write_atomically
from common.errors import DigestMismatchError, PlanRefusedError, UnknownSiteError
from common.guarantee import Guarantee, certify
from common.plan import RunPlan
from common.plan_package import PlanPackage, read_package, write_package
from server.home import CoordinatorHome, HomeSettings
from server.site_records import active_site, site_identity

SHOWN_DIGITS = 12


def check_plan(home: CoordinatorHome, settings: HomeSettings, plan: RunPlan, today: date) -> Guarantee:
    """What the plan promises, if it can be run here today.

    Raises:
        PlanRefusedError: Another consortium's, past its last day, or of a site that does not take part.
        SettingsError: It promises more than its noise and its steps hold.
    """
    digest = plan.digest()
    if plan.consortium != settings.consortium:
        raise PlanRefusedError(
            digest, f"expected a plan of the consortium {settings.consortium}, got one of {plan.consortium}"
        )
    if plan.expires < today.isoformat():
        raise PlanRefusedError(digest, f"expected a plan that has not ended, got the last day {plan.expires}")
    for site in plan.sites:
        try:
            if active_site(home, site).identity != site_identity(home, site).fingerprint():
                raise PlanRefusedError(digest, f"{site}: its identity is not the one that it enrolled with")
        except UnknownSiteError as error:
            raise PlanRefusedError(digest, f"{site} has not enrolled") from error
    return certify(plan)


def offer(home: CoordinatorHome, package: PlanPackage, adapters: Mapping[str, Path]) -> Path:
    """Put a checked plan with its initial adapters, a file by track, where sites find it; the package's path.

    Raises:
        PlanRefusedError: A track without an adapter, or an adapter without a track.
        DigestMismatchError: An adapter is not the one that the plan names.
        BadFileError: A file holds no adapter.
    """
    digest, tracks = package.plan.digest(), [track.track for track in package.plan.tracks]
    if sorted(adapters) != sorted(tracks):
        named = ", ".join(sorted(adapters)) or "none"
        raise PlanRefusedError(digest, f"expected an initial adapter for {', '.join(tracks)}, got {named}")
    for track in package.plan.tracks:
        path, expected = adapters[track.track], track.adapter.factors_digest
        got = load_adapter(path).digest()
        if got != expected:
            raise DigestMismatchError(str(path), got, expected)
    folder = home.adapters(digest)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, path in adapters.items():
        write_atomically(folder / f"{name}.safetensors", path.read_bytes())
    return write_package(package, home.packages)


def offered(home: CoordinatorHome) -> tuple[PlanPackage, ...]:
    """All plans that are offered, by digest. FederationError for a file that is no package."""
    return tuple(read_package(path) for path in sorted(home.packages.glob("*.json")))


def find_offered(home: CoordinatorHome, prefix: str) -> PlanPackage:
    """The one plan whose digest begins so. PlanRefusedError if none does, or several do."""
    found = sorted(home.packages.glob("*.json"))
    matching = [path for path in found if path.stem.startswith(prefix.lower())]
    if len(matching) != 1:
        had = ", ".join(path.stem[:SHOWN_DIGITS] for path in matching or found) or "none"
        many = "several plans begin so" if matching else "no plan that is offered begins so"
        raise PlanRefusedError(prefix, f"{many}; there are: {had}")
    package = read_package(matching[0])
    if package.plan.digest() != matching[0].stem:
        raise DigestMismatchError(str(matching[0]), package.plan.digest(), matching[0].stem)
    return package
