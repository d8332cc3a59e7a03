"""Who is in a sum and who is not, and which such lists a site gives its shares for.

The coordinator says who dropped out. A site believes it only as far as it cannot hurt: nobody stands on both
sides, all members are named, enough of them survive, and, where somebody is said to be lost, a threshold
of sites has signed the same list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import BadSurvivorListError, UnapprovedSiteError
from common.ids import SiteId
from common.pki import PublicIdentity
from common.secagg.keys import Roster
from common.secagg.statements import survivor_list_statement


@dataclass(frozen=True, kw_only=True)
class SurvivorList:
    """The members whose masked input is in the sum, and the others, each in the order of the names."""

    survivors: tuple[SiteId, ...]
    dropouts: tuple[SiteId, ...]

    def name(self) -> str:
        """The list in one line, another one for another list."""
        return f"{' '.join(self.survivors)} | {' '.join(self.dropouts)}"

    def check(self, sum_id: int, members: Sequence[SiteId], *, least: int) -> None:
        """BadSurvivorListError unless the list covers ``members``, each once, with ``least`` survivors.

        Args:
            sum_id: The sum, for the error.
            members: Who masked their vectors for one another.
            least: Share threshold, or more where the plan says so.
        """
        both = set(self.survivors) & set(self.dropouts)
        if both:
            raise BadSurvivorListError(sum_id, f"{', '.join(sorted(both))} both as survivor and dropout")
        named = (*self.survivors, *self.dropouts)
        if sorted(named) != sorted(members):
            raise BadSurvivorListError(sum_id, f"expected the {len(members)} members, each once")
        ordered = tuple(sorted(self.survivors)), tuple(sorted(self.dropouts))
        if ordered != (self.survivors, self.dropouts):
            raise BadSurvivorListError(sum_id, "expected sites in the order of their names")
        if len(self.survivors) < least:
            raise BadSurvivorListError(sum_id, f"{len(self.survivors)} survivors, {least} needed")

    def check_signatures(
        self,
        roster: Roster,
        members: Sequence[SiteId],
        transcript: bytes,
        signatures: Mapping[SiteId, bytes],
        approved: Mapping[SiteId, PublicIdentity],
    ) -> None:
        """BadSurvivorListError, BadSignatureError unless a threshold of members signed this list."""
        if len(signatures) < roster.threshold:
            raise BadSurvivorListError(
                roster.context.sum_id, f"{len(signatures)} signatures, {roster.threshold} needed"
            )
        statement = survivor_list_statement(roster.context, transcript, self.survivors, self.dropouts)
        for site, signature in signatures.items():
            if site not in members:
                raise BadSurvivorListError(roster.context.sum_id, f"signed by {site}, which is no member")
            if site not in approved:
                raise UnapprovedSiteError(site)
            approved[site].verify(statement, signature, "survivor list")
