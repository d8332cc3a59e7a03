"""A secure sum, driven over a link: two exchanges where nobody is lost, three where somebody is.

The keys of the next sum ride on the exchanges of the present one, because an exchange between hospitals
costs seconds whatever it carries. Only a sum without a predecessor has two exchanges of its own for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from common.errors import BadMessageError, BudgetRefusedError, FederationError, TooFewSurvivorsError
from common.fixedpoint import Words
from common.ids import SiteId
from common.message_fields import BUDGET_CAUSES
from common.messages import Bundle, Message, Refusal, SumTask, bundle
from common.plan import RunPlan
from common.wire import Flattened, size_of
from server.ledger_heads import LedgerHeads
from server.link import SiteLink
from server.session import Identities, KeySetup, SecureSum, Setup

logger = logging.getLogger(__name__)

NO_ANSWER = "no answer"


class Exchanges:
    """The exchanges of one round, and what they carried.

    Attributes:
        count: How many there were.
        bytes_up: Bytes of all answers, as ``common.wire`` writes them; ``bytes_down`` of all tasks.
        waiting_s: Seconds spent in the link: until the next answer was there, or no more would come.
    """

    def __init__(self, link: SiteLink, timeout_s: float) -> None:
        """Over ``link``; each waits ``timeout_s`` for its answers."""
        self._link, self._timeout_s = link, timeout_s
        self.count = self.bytes_up = self.bytes_down = 0
        self.waiting_s = 0.0

    def ask(
        self, parts_by_site: Mapping[SiteId, tuple[Message, ...]]
    ) -> Iterator[tuple[SiteId, tuple[Message, ...]]]:
        """Send each site its messages as one; yield the answers to them, as they come."""
        tasks = {site: bundle(parts) for site, parts in parts_by_site.items()}
        flattened: Flattened = {}
        self.count += 1
        self.bytes_down += sum(size_of(task, flattened) for task in tasks.values())
        flattened.clear()
        for site, reply in self._waited(self._link.exchange(tasks, self._timeout_s)):
            self.bytes_up += size_of(reply)
            yield site, _answers(reply, len(parts_by_site[site]))

    def _waited(self, answers: Iterator[tuple[SiteId, Message]]) -> Iterator[tuple[SiteId, Message]]:
        """The same answers, their waiting time counted."""
        while True:
            started = time.perf_counter()
            try:
                answer = next(answers)
            except StopIteration:
                return
            finally:
                self.waiting_s += time.perf_counter() - started
            yield answer


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
    heads: LedgerHeads | None = None,
    whole: bool = False,
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
        heads: Of the sites' ledgers, where the plan spends a budget; brought up to date.
        whole: Go no further if any member is lost.

    Raises:
        TooFewSurvivorsError: Too many sites were lost; with ``whole``, one.
        BudgetRefusedError: The same, and some of them refused for their privacy budget.
        WrongSecretError: The sum cannot be unmasked.
    """
    secure_sum = SecureSum(
        setup, task, plan=plan, identities=identities, adapter_id=adapter_id, length=length
    )

    # 1. Task out, masked vectors back; requests for the next keys ride along.
    asked = [site for site in setup.members if site in reachable]
    work = {site: replace(task, envelopes=setup.envelopes_for(site)) for site in asked}
    riding = {site: coming.request() for site in reachable} if coming else {}
    dropouts = dict.fromkeys(setup.members, NO_ANSWER)
    spent: dict[str, str] = {}
    for site, reply in _ask(exchanges, head=_heads(heads, asked), work=work, keys=riding):
        if heads and "head" in reply:
            attempt(heads.take, site, reply["head"])
        if "work" in reply:
            reason = attempt(secure_sum.add, site, reply["work"])
            if not reason:
                del dropouts[site]
            elif site in dropouts:
                dropouts[site] = reason
            if isinstance(reply["work"], Refusal) and reply["work"].cause in BUDGET_CAUSES:
                spent[site] = reply["work"].reason
        if coming and "keys" in reply:
            attempt(coming.add_keys, site, reply["keys"])
    try:
        named = secure_sum.close()
        if whole and named.dropouts:
            raise TooFewSurvivorsError(task.round_id, len(named.survivors), len(setup.members))
    except TooFewSurvivorsError as error:
        if spent:
            raise BudgetRefusedError(task.round_id, spent) from error
        raise
    for site in named.dropouts:
        logger.warning("%s: sum %d without %s: %s", task.track, task.sum_id, site, dropouts[site])

    # 2. Only if somebody is lost: the members settle on one list before any of them gives a share.
    if named.dropouts:
        request = secure_sum.list_request()
        for site, reply in _ask(exchanges, work=dict.fromkeys(asked, request)):
            attempt(secure_sum.add_list_signature, site, reply["work"])

    # 3. List out, shares back; the next roster and its sealed shares ride along.
    unmasking = dict.fromkeys(asked, secure_sum.unmask_request())
    offer = _offer(coming)
    for site, reply in _ask(exchanges, head=_heads(heads, asked), work=unmasking, keys=offer):
        if heads and "head" in reply:
            attempt(heads.take, site, reply["head"])
        if "work" in reply:
            attempt(secure_sum.add_shares, site, reply["work"])
        if coming and "keys" in reply:
            attempt(coming.add_sealed, site, reply["keys"])
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


def _offer(coming: KeySetup | None) -> dict[SiteId, Message]:
    """The next roster for each of its sites; empty if there is none, which the next sum makes up for."""
    if coming is None:
        return {}
    try:
        offer = coming.offer()
    except TooFewSurvivorsError as error:
        logger.info("Keys of sum %d: %s; agreed anew when it begins", coming.sum_id, error)
        return {}
    return dict.fromkeys(coming.offered_to(), offer)


def _heads(heads: LedgerHeads | None, sites: Iterable[SiteId]) -> dict[SiteId, Message]:
    return {site: heads.request(site) for site in sites} if heads else {}


def _finished(coming: KeySetup | None) -> Setup | None:
    try:
        return coming.finish() if coming else None
    except TooFewSurvivorsError as error:
        logger.info("Shares of the next sum: %s; agreed anew when it begins", error)
        return None


def _ask(
    exchanges: Exchanges, **by_purpose: Mapping[SiteId, Message]
) -> Iterator[tuple[SiteId, dict[str, Message]]]:
    """One exchange of messages for several purposes, in this order; each site's answers by purpose."""
    sites = sorted({site for messages in by_purpose.values() for site in messages})
    purposes = {site: [name for name, messages in by_purpose.items() if site in messages] for site in sites}
    parts = {site: tuple(by_purpose[name][site] for name in purposes[site]) for site in sites}
    for site, replies in exchanges.ask(parts):
        yield site, dict(zip(purposes[site], replies, strict=True))


def _answers(reply: Message, number: int) -> tuple[Message, ...]:
    """The answers to so many messages; a single refusal answers them all."""
    if isinstance(reply, Bundle) and len(reply.parts) == number > 1:
        return reply.parts
    return (reply,) * number
