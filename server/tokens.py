"""One-time tokens: who holds one may enrol one site, once, for some hours.

A token is 32 random bytes as text. Here only its hash is kept, so that a copy of ``tokens.json`` enrols
nobody. A token is used up before its certificate leaves the machine; the same request may then be sent
again, since the answer to it may have been lost, and gets the same certificate.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common.canonical import labeled_digest, plain
from common.durable import read_durable, write_durable
from common.errors import (
    BadFileError,
    SettingsError,
    TokenExpiredError,
    TokenSiteError,
    TokenUnknownError,
    TokenUsedError,
)
from common.ids import SiteId
from common.locks import locked
from common.schema import build

KIND, SCHEMA = "tokens", 1
TOKEN_BYTES = 32
LABEL = "consilium enrolment token v1"
# Until then a late or a stolen token is told from one that never was.
KEPT = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """What is kept of a token.

    Attributes:
        site: Whom it enrols.
        expires: When it ends, ISO 8601.
        request: Digest of the request that used it; None while it is unused.
        certificate: PEM of what that request got.
    """

    site: SiteId
    expires: str
    request: str | None = None
    certificate: str | None = None

    def ends(self) -> datetime:
        """When it ends."""
        return datetime.fromisoformat(self.expires)


class Tokens:
    """The tokens in one file, shared by all processes of the coordinator."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")

    def issue(self, site: SiteId, hours: float, now: datetime | None = None) -> tuple[str, datetime]:
        """A new token for a site, and when it ends. It is shown once; here it cannot be looked up."""
        now = now or datetime.now(UTC)
        token, ends = secrets.token_urlsafe(TOKEN_BYTES), now + timedelta(hours=hours)
        with locked(self._lock):
            kept = {key: record for key, record in self._read().items() if now - record.ends() < KEPT}
            self._write({**kept, _hash(token): TokenRecord(site=site, expires=ends.isoformat())})
        return token, ends

    def redeem(
        self,
        token: str,
        site: SiteId,
        request: str,
        sign: Callable[[], str],
        now: datetime | None = None,
    ) -> str:
        """The certificate, PEM, that ``sign`` makes, or made before for the same request.

        Guarantee: over all processes and crashes, a token gives one request a certificate and no other.

        Args:
            token: What the site shows.
            site: What the site calls itself.
            request: Digest of all that the certificate depends on.
            sign: Makes the certificate; called at most once for a token that it did not fail for.
            now: For tests.

        Raises:
            TokenUnknownError: Never issued.
            TokenSiteError: Issued for another site.
            TokenUsedError: Another request used it.
            TokenExpiredError: Not used in time.
        """
        now = now or datetime.now(UTC)
        with locked(self._lock):
            tokens = self._read()
            record = tokens.get(_hash(token))
            if record is None:
                raise TokenUnknownError(site)
            if record.site != site:
                raise TokenSiteError(site)
            if record.request == request and record.certificate is not None:
                return record.certificate
            if record.request is not None:
                raise TokenUsedError(site)
            if now >= record.ends():
                raise TokenExpiredError(site, record.expires)
            certificate = sign()
            # Written before the answer: a crash in between costs a retry, never a second certificate.
            self._write({**tokens, _hash(token): replace(record, request=request, certificate=certificate)})
        return certificate

    def withdraw(self, site: SiteId) -> None:
        """Forget all tokens of a site, used ones, too."""
        with locked(self._lock):
            self._write({key: record for key, record in self._read().items() if record.site != site})

    def _read(self) -> dict[str, TokenRecord]:
        if not self._path.exists():
            return {}
        content = read_durable(self._path, KIND, SCHEMA)
        try:
            found = content["tokens"]
            return {key: build(TokenRecord, value, "token") for key, value in found.items()}
        except (KeyError, AttributeError, SettingsError) as error:
            raise BadFileError(self._path, "expected tokens, each with site and end") from error

    def _write(self, tokens: Mapping[str, TokenRecord]) -> None:
        write_durable(self._path, KIND, SCHEMA, {"tokens": plain(tokens)}, private=True)


def _hash(token: str) -> str:
    # Without salt and stretching: a token is 32 random bytes, which nobody can go through.
    return labeled_digest(LABEL, token.encode()).hex()
