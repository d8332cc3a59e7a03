"""A secure sum, driven over a link: two exchanges where nobody is lost, three where somebody is.

The keys of the next sum ride on the exchanges of the present one, because an exchange between hospitals
costs seconds whatever it carries. Only a sum without a predecessor has two exchanges of its own for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from common.errors import BadMessageError, FederationError, TooFewSurvivorsError
from common.fixedpoint import Words
from common.ids import SiteId
from common.messages import Bundle, Message, SumTask, bundle
from common.plan import RunPlan
from common.wire import Flattened, size_of
from server.link import SiteLink
from server.session import Identities, KeySetup, SecureSum, Setup

logger = logging.getLogger(__name__)

NO_ANSWER = "no answer"


class Exchanges:
    """The exchanges of one round, and what they carried.

    Attributes:
        count: How many there were.
        bytes_up: Bytes of all answers, as ``common.wire`` writes them; ``bytes_down`` of all tasks.
    """

    def __init__(self, link: SiteLink, timeout_s: float) -> None:
        """Over ``link``; each waits ``timeout_s`` for its answers."""
        self._link, self._timeout_s = link, timeout_s
        self.count = self.bytes_up = self.bytes_down = 0

    def ask(
        self, parts_by_site: Mapping[SiteId, tuple[Message, ...]]
    ) -> Iterator[tuple[SiteId, tuple[Message, ...]]]:
        """Send each site its messages as one; yield the answers to them, as they come."""
        tasks = {site: bundle(parts) for site, parts in parts_by_site.items()}
        flattened: Flattened = {}
        self.count += 1
        self.bytes_down += sum(size_of(task, flattened) for task in tasks.values())
        flattened.clear()
        for site, reply in self._link.exchange(tasks, self._timeout_s):
            self.bytes_up += size_of(reply)
            yield site, _answers(reply, len(parts_by_site[site]))


@dataclass(frozen=True, kw_only=True, eq=False)
class SumOutcome:
    """A secure sum that came out.

    Attributes:
        words: The sum of the survivors' vectors.
        survivors: Who is in it.
        dropouts: Reason by site, of the members that are not.
        next_setup: The keys of the next sum, if they were asked for and enough sites gave theirs.
    """

    words: Words
    survivors: tuple[SiteId, ...]
    dropouts: Mapping[SiteId, str]
    next_setup: Setup | None


def agree(setup: KeySetup, sites: Iterable[SiteId], exchanges: Exchanges) -> Setup:
    """Agree the keys of a sum in two exchanges of their own. TooFewSurvivorsError."""
    for site, (reply,) in exchanges.ask({site: (setup.request(),) for site in sites}):
        attempt(setup.add_keys, site, reply)
    offer = setup.offer()
    for site, (reply,) in exchanges.ask(dict.fromkeys(setup.offered_to(), (offer,))):
        attempt(setup.add_sealed, site, reply)
    return setup.finish()


def sum_up(
    setup: Setup,
    task: SumTask,
    *,
    plan: RunPlan,
    identities: Identities,
    adapter_id: str,
    length: int,
    reachable: Collection[SiteId],
    coming: KeySetup | None,
    exchanges: Exchanges,
) -> SumOutcome:
    """Have the members do ``task`` and sum what they send.

    Args:
        setup: The keys of this sum.
        task: Without envelopes; every member gets its own.
        plan: The run's.
        identities: Of the plan's sites.
        adapter_id: Digest of the task's adapter.
        length: Words of a vector.
        reachable: Sites that can be asked now, also such as are no members and join the next sum.
        coming: The next sum's keys, to be agreed on the way; None if there is no next sum.
        exchanges: Of the round.

    Raises:
        TooFewSurvivorsError: Too many sites were lost.
        WrongSecretError: The sum cannot be unmasked.
    """
    secure_sum = SecureSum(
        setup, task, plan=plan, identities=identities, adapter_id=adapter_id, length=length
    )

    # 1. Task out, masked vectors back; requests for the next keys ride along.
    asked = [site for site in setup.members if site in reachable]
    work = {site: (replace(task, envelopes=setup.envelopes_for(site)),) for site in asked}
    riding = {site: (coming.request(),) for site in reachable} if coming else {}
    dropouts = dict.fromkeys(setup.members, NO_ANSWER)
    for site, replies in exchanges.ask(_together(work, riding)):
        if site in work:
            reason = attempt(secure_sum.add, site, replies[0])
            if not reason:
                del dropouts[site]
            elif site in dropouts:
                dropouts[site] = reason
        if coming:
            attempt(coming.add_keys, site, replies[-1])
    named = secure_sum.close()
    for site in named.dropouts:
        logger.warning("%s: sum %d without %s: %s", task.track, task.sum_id, site, dropouts[site])

    # 2. Only if somebody is lost: the members settle on one list before any of them gives a share.
    if named.dropouts:
        request = secure_sum.list_request()
        for site, (reply,) in exchanges.ask(dict.fromkeys(asked, (request,))):
            attempt(secure_sum.add_list_signature, site, reply)

    # 3. List out, shares back; the next roster and its sealed shares ride along.
    unmasking = {site: (secure_sum.unmask_request(),) for site in asked}
    offer = _offer(coming)
    for site, replies in exchanges.ask(_together(unmasking, offer)):
        if site in unmasking:
            attempt(secure_sum.add_shares, site, replies[0])
        if coming and site in offer:
            attempt(coming.add_sealed, site, replies[-1])
    return SumOutcome(
        words=secure_sum.finish(),
        survivors=named.survivors,
        dropouts=dropouts,
        next_setup=_finished(coming) if offer else None,
    )


def attempt(take: Callable[[SiteId, Message], None], site: SiteId, reply: Message) -> str:
    """Take a site's answer; empty, or why it was not taken. One site's mistake is not the others' loss."""
    try:
        take(site, reply)
    except FederationError as error:
        reason = error.reason if isinstance(error, BadMessageError) else str(error)
        logger.warning("%s: %s", site, reason)
        return reason
    return ""


def _offer(coming: KeySetup | None) -> dict[SiteId, tuple[Message, ...]]:
    """The next roster for each of its sites; empty if there is none, which the next sum makes up for."""
    if coming is None:
        return {}
    try:
        offer = coming.offer()
    except TooFewSurvivorsError as error:
        logger.info("Keys of sum %d: %s; agreed anew when it begins", coming.sum_id, error)
        return {}
    return dict.fromkeys(coming.offered_to(), (offer,))


def _finished(coming: KeySetup | None) -> Setup | None:
    try:
        return coming.finish() if coming else None
    except TooFewSurvivorsError as error:
        logger.info("Shares of the next sum: %s; agreed anew when it begins", error)
        return None


def _together(
    first: Mapping[SiteId, tuple[Message, ...]], second: Mapping[SiteId, tuple[Message, ...]]
) -> dict[SiteId, tuple[Message, ...]]:
    return {site: (*first.get(site, ()), *second.get(site, ())) for site in sorted({*first, *second})}


def _answers(reply: Message, number: int) -> tuple[Message, ...]:
    """The answers to so many messages; a single refusal answers them all."""
    if isinstance(reply, Bundle) and len(reply.parts) == number > 1:
        return reply.parts
    return (reply,) * number
