"""The coordinator's side of secure aggregation (``common/secagg/README.md``): no links, no clocks.

``KeySetup`` agrees the keys of one sum, ``SecureSum`` adds up and unmasks. Both take answers one by one. One
that does not belong is refused with a ``FederationError`` and changes nothing: its site drops out, the sum
goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from common.errors import (
    BadMessageError,
    TooFewSurvivorsError,
    TranscriptMismatchError,
    WrongSecretError,
)
from common.fixedpoint import Words, add_words
from common.ids import RoundId, SiteId
from common.messages import (
    Keys,
    KeysRequest,
    ListRequest,
    ListSignature,
    MaskedInput,
    Message,
    Refusal,
    RosterOffer,
    SealedShares,
    SumTask,
    UnmaskRequest,
    UnmaskShares,
    sum_topic,
)
from common.pki import PublicIdentity
from common.plan import RunPlan
from common.plan_checks import SMALLEST_FEDERATION
from common.secagg.keys import Roster, SignedKeys, SumContext, public_key, seed_hash
from common.secagg.masks import unmask_sum
from common.secagg.packing import packed_size, unpack
from common.secagg.sharing import recover
from common.secagg.statements import (
    masked_input_statement,
    sealed_shares_statement,
    survivor_list_statement,
    unmask_shares_statement,
)
from common.secagg.survivors import SurvivorList
from common.train_words import upload_bits

Identities = Mapping[SiteId, PublicIdentity]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The keys of a sum, agreed: who may take part, and the shares that wait for delivery.

    Attributes:
        roster: Everybody's keys.
        envelopes: By sender and receiver.
    """

    roster: Roster
    envelopes: Mapping[SiteId, Mapping[SiteId, bytes]]

    @property
    def members(self) -> tuple[SiteId, ...]:
        """The sites that sealed their shares, by name: only they can be unmasked, only they take part."""
        return tuple(sorted(self.envelopes))

    def envelopes_for(self, receiver: SiteId) -> dict[SiteId, bytes]:
        """The other members' envelopes for one of them."""
        return {sender: self.envelopes[sender][receiver] for sender in self.members if sender != receiver}


class KeySetup:
    """Agrees the keys of one sum: keys, then shares."""

    def __init__(
        self, context: SumContext, *, plan: RunPlan, identities: Identities, round_id: RoundId
    ) -> None:
        """Begin; ``round_id`` is named where it fails."""
        self._context, self._plan, self._identities, self._round = context, plan, identities, round_id
        self._keys: dict[SiteId, SignedKeys] = {}
        self._roster: Roster | None = None
        self._envelopes: dict[SiteId, Mapping[SiteId, bytes]] = {}

    @property
    def sum_id(self) -> int:
        """Whose keys they are."""
        return self._context.sum_id

    def request(self) -> KeysRequest:
        """What every site is asked first."""
        context = self._context
        return KeysRequest(
            run_id=context.run_id, track=context.track, plan_digest=context.plan_digest, sum_id=self.sum_id
        )

    def add_keys(self, site: SiteId, reply: Message) -> None:
        """Take a site's answer."""
        keys = expect(Keys, reply, self._context).keys
        if keys.site_id != site:
            raise BadMessageError(f"expected the keys of {site}, got those of {keys.site_id}")
        keys.verify(self._context, self._identities)
        # Refused here, where it costs one site, and not in the roster, where it would cost all.
        others = [some for other, some in self._keys.items() if other != site]
        taken = {key for some in others for key in (some.mask_key, some.envelope_key)}
        if keys.mask_key in taken or keys.envelope_key in taken or keys.mask_key == keys.envelope_key:
            raise BadMessageError(f"expected keys of {site} that nobody has given")
        self._keys[site] = keys

    def offer(self) -> RosterOffer:
        """What the sites whose keys came are asked next. TooFewSurvivorsError."""
        least = max(SMALLEST_FEDERATION, self._plan.aggregation.minimum_survivors)
        if len(self._keys) < least:
            raise TooFewSurvivorsError(self._round, len(self._keys), least)
        entries = tuple(self._keys[site] for site in sorted(self._keys))
        self._roster = Roster(context=self._context, entries=entries)
        context = self._context
        return RosterOffer(
            run_id=context.run_id,
            track=context.track,
            plan_digest=context.plan_digest,
            sum_id=self.sum_id,
            roster=entries,
        )

    def offered_to(self) -> tuple[SiteId, ...]:
        """The sites of the roster."""
        return self._offered().sites

    def add_sealed(self, site: SiteId, reply: Message) -> None:
        """Take a site's envelopes."""
        sealed, roster = expect(SealedShares, reply, self._context), self._offered()
        receivers = set(roster.sites) - {site}
        if sealed.site_id != site or site not in roster.sites or set(sealed.envelopes) != receivers:
            raise BadMessageError(f"expected envelopes of {site} for all others in the roster")
        statement = sealed_shares_statement(roster, site, sealed.envelopes)
        self._identities[site].verify(statement, sealed.signature, "sealed shares")
        self._envelopes[site] = dict(sealed.envelopes)

    def finish(self) -> Setup:
        """The setup. TooFewSurvivorsError if too few sealed their shares."""
        roster = self._offered()
        least = self._plan.least_survivors(len(roster.sites), roster.threshold)
        if len(self._envelopes) < least:
            raise TooFewSurvivorsError(self._round, len(self._envelopes), least)
        return Setup(roster=roster, envelopes=dict(self._envelopes))

    def _offered(self) -> Roster:
        if self._roster is None:
            raise ValueError("Expected a roster to have been offered")
        return self._roster


class SecureSum:
    """Adds masked inputs as they come, and takes the masks off the sum.

    Guarantee: memory is that of the sum and of one input, however many come. The sum is given out only if it
    is the plain sum of the survivors' vectors: what was masked for another transcript, or cannot be
    unmasked, fails.
    """

    def __init__(
        self,
        setup: Setup,
        task: SumTask,
        *,
        plan: RunPlan,
        identities: Identities,
        adapter_id: str,
        length: int,
    ) -> None:
        """Begin a sum of vectors of ``length`` words, the answers to ``task``."""
        self._setup, self._plan, self._identities = setup, plan, identities
        self._task, self._length, self._bits = task, length, upload_bits(task, plan)
        self._transcript = setup.roster.transcript(setup.members, sum_topic(task, adapter_id))
        self._total: Words = np.zeros(length, dtype=np.uint32)
        self._survivors: set[SiteId] = set()
        self._list: SurvivorList | None = None
        self._signatures: dict[SiteId, bytes] = {}
        self._shares: dict[SiteId, UnmaskShares] = {}
        self._right: tuple[int, ...] = ()
        self._finished = False

    @property
    def _context(self) -> SumContext:
        return self._setup.roster.context

    @property
    def _least(self) -> int:
        roster = self._setup.roster
        return self._plan.least_survivors(len(roster.sites), roster.threshold)

    def add(self, site: SiteId, reply: Message) -> None:
        """Add what a site sent, and keep none of it."""
        masked = expect(MaskedInput, reply, self._context)
        self._require_member(site, masked.site_id)
        if site in self._survivors or self._list is not None:
            raise BadMessageError(f"{site} comes twice, or after the list of survivors was closed")
        if masked.transcript != self._transcript:
            raise TranscriptMismatchError(site)
        expected = packed_size(self._length, self._bits)
        if masked.words.size != expected:
            raise BadMessageError(f"expected {expected} words, got {masked.words.size}")
        statement = masked_input_statement(self._context, self._transcript, site, masked.words)
        self._identities[site].verify(statement, masked.signature, "masked input")
        add_words(self._total, unpack(masked.words, self._bits, self._length))
        self._survivors.add(site)

    def close(self) -> SurvivorList:
        """Who is in the sum and who is not. TooFewSurvivorsError."""
        if len(self._survivors) < self._least:
            raise TooFewSurvivorsError(self._task.round_id, len(self._survivors), self._least)
        lost = set(self._setup.members) - self._survivors
        self._list = SurvivorList(survivors=tuple(sorted(self._survivors)), dropouts=tuple(sorted(lost)))
        return self._list

    def list_request(self) -> ListRequest:
        """What every member is asked where somebody is lost."""
        named = self._closed()
        return ListRequest(
            run_id=self._task.run_id,
            track=self._task.track,
            sum_id=self._context.sum_id,
            survivors=named.survivors,
            dropouts=named.dropouts,
        )

    def add_list_signature(self, site: SiteId, reply: Message) -> None:
        """Take a member's signature of the list."""
        signed, named = expect(ListSignature, reply, self._context), self._closed()
        self._require_member(site, signed.site_id)
        statement = survivor_list_statement(self._context, self._transcript, named.survivors, named.dropouts)
        self._identities[site].verify(statement, signed.signature, "survivor list")
        self._signatures[site] = signed.signature

    def unmask_request(self) -> UnmaskRequest:
        """What every member is asked last. TooFewSurvivorsError if too few signed the list."""
        named, threshold = self._closed(), self._setup.roster.threshold
        if named.dropouts and len(self._signatures) < threshold:
            raise TooFewSurvivorsError(self._task.round_id, len(self._signatures), threshold)
        return UnmaskRequest(
            run_id=self._task.run_id,
            track=self._task.track,
            sum_id=self._context.sum_id,
            survivors=named.survivors,
            dropouts=named.dropouts,
            signatures=dict(self._signatures),
        )

    def add_shares(self, site: SiteId, reply: Message) -> None:
        """Take a member's shares."""
        given, named = expect(UnmaskShares, reply, self._context), self._closed()
        self._require_member(site, given.site_id)
        asked = set(named.survivors), set(named.dropouts)
        if (set(given.seed_shares), set(given.mask_key_shares)) != asked:
            raise BadMessageError(f"expected shares for the list that {site} was asked by")
        statement = unmask_shares_statement(
            self._context, self._transcript, site, given.seed_shares, given.mask_key_shares
        )
        self._identities[site].verify(statement, given.signature, "unmask shares")
        self._shares[site] = given

    def finish(self) -> Words:
        """The sum of the survivors' vectors; once.

        Raises:
            TooFewSurvivorsError: Fewer sites gave shares than the threshold.
            WrongSecretError: A secret cannot be put together from the shares that came.
        """
        named, roster = self._closed(), self._setup.roster
        if self._finished:
            raise ValueError("Expected a sum to be unmasked once")
        if len(self._shares) < roster.threshold:
            raise TooFewSurvivorsError(self._task.round_id, len(self._shares), roster.threshold)
        seeds = {site: self._seed_of(site) for site in named.survivors}
        mask_keys = {site: self._mask_key_of(site) for site in named.dropouts}
        self._finished = True
        unmask_sum(
            self._total, roster=roster, transcript=self._transcript, seeds=seeds, lost_mask_keys=mask_keys
        )
        if self._bits < 32:
            self._total &= np.uint32((1 << self._bits) - 1)
        return self._total

    def _require_member(self, site: SiteId, named: SiteId) -> None:
        if named != site:
            raise BadMessageError(f"expected an answer of {site}, got one of {named}")
        if site not in self._setup.members:
            raise BadMessageError(f"{site} is no member of this sum")

    def _seed_of(self, site: SiteId) -> bytes:
        entry = self._setup.roster.entry(site)
        return self._recovered(
            site,
            {giver: given.seed_shares[site] for giver, given in self._shares.items()},
            lambda made: seed_hash(self._context, site, made) == entry.seed_hash,
        )

    def _mask_key_of(self, site: SiteId) -> bytes:
        entry = self._setup.roster.entry(site)
        return self._recovered(
            site,
            {giver: given.mask_key_shares[site] for giver, given in self._shares.items()},
            lambda made: public_key(made) == entry.mask_key,
        )

    def _recovered(
        self, site: SiteId, shares: Mapping[SiteId, bytes], is_right: Callable[[bytes], bool]
    ) -> bytes:
        """The secret of ``site``; shares of those first that gave right ones before."""
        roster = self._setup.roster
        by_place = {roster.position(giver): share for giver, share in shares.items()}
        ordered = {place: by_place[place] for place in (*self._right, *by_place)}
        found = recover(ordered, roster.threshold, is_right)
        if found is None:
            raise WrongSecretError(self._context.sum_id, site)
        secret, self._right = found
        return secret

    def _closed(self) -> SurvivorList:
        if self._list is None:
            raise ValueError("Expected the list of survivors to be closed")
        return self._list


def expect(kind: type[M], reply: Message, context: SumContext) -> M:
    """The reply as an answer of this kind to this sum; BadMessageError, with the reason, if it is none."""
    if isinstance(reply, Refusal):
        raise BadMessageError(f"refused: {reply.reason}")
    if not isinstance(reply, kind):
        raise BadMessageError(f"expected {kind.__name__}, got {type(reply).__name__}")
    answer: Any = reply
    for name in ("run_id", "track", "sum_id"):
        if getattr(answer, name) != getattr(context, name):
            raise BadMessageError(f"{name}: expected {getattr(context, name)}, got {getattr(answer, name)}")
    return reply
