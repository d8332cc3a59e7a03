"""Names that travel: sites, runs, rounds, adapters.

A site's or run's name appears in file names, metrics and certificates, so it is lower-case letters,
digits and hyphens only.
"""

from __future__ import annotations

import re
from typing import NewType

SiteId = NewType("SiteId", str)
RunId = NewType("RunId", str)
RoundId = NewType("RoundId", int)
"""Counts the rounds of a run; the first round is 1."""
AdapterId = NewType("AdapterId", str)
"""The SHA-256 of an adapter, 64 hexadecimal digits."""

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


def site_id(text: str) -> SiteId:
    """The text as a site's name; ValueError if it cannot be one."""
    return SiteId(_name("site", text))


def run_id(text: str) -> RunId:
    """The text as a run's name; ValueError if it cannot be one."""
    return RunId(_name("run", text))


def is_digest(text: str) -> bool:
    """Whether the text can be the SHA-256 of something, in lower-case hexadecimal."""
    return DIGEST_PATTERN.fullmatch(text) is not None


def _name(what: str, text: str) -> str:
    if NAME_PATTERN.fullmatch(text) is None:
        raise ValueError(
            f"Expected a {what} id of 1 to 40 lower-case letters, digits and hyphens, "
            f"the first no hyphen, got {text!r}"
        )
    return text
