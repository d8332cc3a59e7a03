"""Which sites are online, and when each was last heard of: ``run/sites.json``, by ``server.nodes``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.canonical import read_object
from common.errors import BadFileError
from common.ids import SiteId
from server.home import CoordinatorHome

SITES_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Whether a site is there.

    Attributes:
        online: Whether its node was heard of in the last minute.
        last_seen: When it was last found online, UTC, ISO 8601; None if it never was.
        node: Flower's number of its node.
    """

    online: bool
    last_seen: str | None
    node: int


def sites_file(home: CoordinatorHome) -> Path:
    """Where it is written."""
    return home.run / "sites.json"


def read_presence(home: CoordinatorHome) -> dict[SiteId, Presence]:
    """How the sites were when last looked at; none if nobody looked yet. BadFileError."""
    path = sites_file(home)
    try:
        content = read_object(path.read_text(encoding="utf-8"), str(path))
        return {SiteId(site): Presence(**found) for site, found in content["sites"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(path, f"not a list of sites ({type(error).__name__})") from error
