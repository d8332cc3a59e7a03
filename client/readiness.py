"""May this site start? Keys, ledger, certificate, packages and folders, looked at before anything runs.

Guarantee: a site on which something does not hold that the others rely on does not start; one line says
what was found and what has to be there.
"""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from client.approval import own_identity
from client.home import PRIVATE_FOLDER, ConsortiumHome, SiteHome
from client.keys import Keyring
from client.settings import SiteSettings
from common.certificates import days_left, read_certificate, site_of
from common.errors import BadCertificateError, NotReadyError
from common.privacy.ledger import Ledger

PROJECT = "consilium"
PACKAGES = ("client", "common", "server")
OTHERS = 0o077


def require_ready(home: SiteHome, consortium: ConsortiumHome, settings: SiteSettings) -> None:
    """Refuse to start a site on which something does not hold that the others rely on.

    Raises:
        NotReadyError: Packages of another project, a folder that others can enter, an old certificate.
        FederationError: The keys do not open, the ledger is not whole, or the site is not enrolled.
    """
    require_own_packages()
    for folder in (home.root, consortium.root):
        require_private_folder(folder)
    Keyring.open(home, settings).close()
    Ledger.open(home.ledger_file(settings.cohort), settings.cohort).close()
    identity = own_identity(consortium.root).site_id
    if identity != settings.site:
        raise NotReadyError(str(consortium.root / "identity.json"), identity, f"the site {settings.site}")
    require_certificate(consortium, settings, datetime.now(UTC))
    for file in (consortium.node_key, consortium.loopback_certificate, consortium.coordinator_file):
        if not file.is_file():
            raise NotReadyError(str(file), "no file", "what `consilium-site enrol` writes")


def require_certificate(consortium: ConsortiumHome, settings: SiteSettings, now: datetime) -> None:
    """Refuse a certificate that has ended, or another site's. NotReadyError, BadFileError."""
    path = consortium.tls_certificate
    certificate = read_certificate(path)
    try:
        named = site_of(certificate)
    except BadCertificateError as error:
        raise NotReadyError(str(path), error.reason, f"a certificate of {settings.site}") from error
    if named != settings.site:
        raise NotReadyError(str(path), named, f"a certificate of {settings.site}")
    left = days_left(certificate, now)
    if left <= 0:
        reason = f"one that ended {-left:.1f} days ago; `consilium-site renew` gets a new one"
        raise NotReadyError(str(path), reason, "a certificate that is valid now")


def require_private_folder(folder: Path) -> None:
    """Refuse a folder that others than its owner can enter. NotReadyError."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise NotReadyError(str(folder), error.strerror or type(error).__name__, "a folder") from error
    if mode & OTHERS:
        raise NotReadyError(str(folder), f"mode {mode:o}", f"mode {PRIVATE_FOLDER:o} (chmod 700)")


def require_own_packages() -> None:
    """Refuse an environment in which another project may have put its files in the place of ours.

    Installers overwrite without a word where two projects have a package of one name.

    Raises:
        NotReadyError: A package has another owner, or several.
    """
    owners = packages_distributions()
    for package in PACKAGES:
        found = sorted(set(owners.get(package, ())))
        # One that is installed in place, for development, lists no files.
        if found != [PROJECT] and (found or not _is_in_place()):
            raise NotReadyError(f"package {package}", ", ".join(found) or "nobody", f"{PROJECT} as its owner")


def _is_in_place() -> bool:
    """Whether the project is installed as a link to the folder that this module lies in."""
    try:
        source = json.loads(distribution(PROJECT).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return False
    folder = str(source.get("url", "")).removeprefix("file://")
    return Path(folder) == Path(__file__).resolve().parents[1]
