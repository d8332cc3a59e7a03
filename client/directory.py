"""The other sites of a consortium: whom the coordinator names, and how that stands to who is approved here.

A name is no proof: what the coordinator offers is compared with the files of approved sites, and a key that
is not the approved one is shown as such, never taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.approval import approved_sites
from client.enrolment import fetch_directory
from client.home import ConsortiumHome
from client.settings import SiteSettings
from common.errors import BadFileError, UnreachableError
from common.ids import NAME_PATTERN, SiteId
from common.pki import read_approved

State = Literal["approved", "offered", "another key", "approved, not offered"]


@dataclass(frozen=True, kw_only=True)
class OtherSite:
    """Another site of the consortium.

    Attributes:
        site: Its name.
        state: ``another key``: the coordinator offers one that is not the approved one.
        fingerprint: Of the key that is approved; of the one that is offered, where none is.
        offered: Fingerprint of the key that the coordinator offers; None if it offers none.
    """

    site: SiteId
    state: State
    fingerprint: str
    offered: str | None


def look_up(consortium: ConsortiumHome, settings: SiteSettings) -> str | None:
    """Bring the newest identities and plans here; the reason if the coordinator cannot be asked.

    Raises:
        FederationError: The coordinator refuses, or sends what is no directory.
    """
    if not consortium.coordinator_file.exists():
        return f"{consortium.name}: not enrolled, so that nobody can be asked; what is listed is here already"
    try:
        fetch_directory(consortium, https_proxy=settings.network.https_proxy)
    except UnreachableError as error:
        return f"{error}; what is listed is from the last time"
    return None


def other_sites(consortium: ConsortiumHome) -> tuple[OtherSite, ...]:
    """All that are offered or approved, by name. BadFileError."""
    approved = approved_sites(consortium.root)
    offered = read_approved(consortium.offered) if consortium.offered.is_dir() else {}
    found = []
    for site in sorted({*approved, *offered}):
        kept, named = approved.get(site), offered.get(site)
        known = kept or named
        if known is None:
            continue
        found.append(
            OtherSite(
                site=site,
                state=_state(kept.fingerprint() if kept else None, named.fingerprint() if named else None),
                fingerprint=known.fingerprint(),
                offered=named.fingerprint() if named else None,
            )
        )
    return tuple(found)


def identity_file(consortium: ConsortiumHome, named: str) -> Path:
    """The file that ``named`` is, or that of the offered site of this name. BadFileError if there is none."""
    if Path(named).is_file():
        return Path(named)
    if NAME_PATTERN.fullmatch(named) and (consortium.offered / f"{named}.json").is_file():
        return consortium.offered / f"{named}.json"
    raise BadFileError(named, "no such file, and no site of this name; `consilium-site sites` lists them")


def _state(kept: str | None, named: str | None) -> State:
    if kept is None:
        return "offered"
    if named is None:
        return "approved, not offered"
    return "approved" if kept == named else "another key"
