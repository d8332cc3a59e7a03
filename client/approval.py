"""Who this site is, and which other sites its administrator has approved: the files of a site's home folder.

identity.json       the site's own identity, private
public/SITE.json    its public half, to be sent to the other sites and to the coordinator
approved/SITE.json  one for each other site that was approved
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.errors import BadFileError
from common.ids import SiteId
from common.pki import (
    Identity,
    PublicIdentity,
    approve,
    create_identity,
    read_approved,
    read_identity,
    read_public,
    write_public,
)


def make_identity(home: Path, site: SiteId) -> Identity:
    """A new identity in ``home``. BadFileError if there is one already."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = create_identity(home / "identity.json", site)
    public = home / "public"
    public.mkdir(exist_ok=True)
    write_public(identity.public(), public)
    return identity


def own_identity(home: Path) -> Identity:
    """The site's own. BadFileError."""
    return read_identity(home / "identity.json")


def public_file(home: Path, identity: Identity) -> Path:
    """What the site hands to others."""
    return home / "public" / f"{identity.site_id}.json"


def approve_site(home: Path, file: Path, fingerprint: str) -> PublicIdentity:
    """Approve the identity in ``file`` if it has this fingerprint.

    Raises:
        BadFileError: No identity in the file, the site's own name, or another key under an approved name.
        DigestMismatchError: Another fingerprint.
    """
    own = own_identity(home)
    if read_public(file).site_id == own.site_id:
        raise BadFileError(file, f"names {own.site_id}, which is this site itself")
    return approve(file, fingerprint, home / "approved")


def approved_sites(home: Path) -> Mapping[SiteId, PublicIdentity]:
    """All approved identities; none if nothing was approved yet. BadFileError."""
    folder = home / "approved"
    if folder.exists() and not folder.is_dir():
        raise BadFileError(folder, "expected a folder")
    return read_approved(folder) if folder.exists() else {}
