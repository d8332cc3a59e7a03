"""A site's side of secure aggregation (``common/secagg/README.md``).

The coordinator proposes, the site disposes: each request is checked against the site's own plan, its own
approved identities and what it has answered before. Nothing is taken from a message that the site knows
itself.

Guarantee: a site never gives both kinds of share of one peer, never masks two vectors with one keystream,
and gives each stage of a sum one answer, which is stored before it is sent. After a crash it sends the same
bytes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from client.budget import SiteBudget
from client.refusals import reply_or_refusal
from client.session_answers import (
    BothShares,
    advertise_keys,
    mask_input,
    share_keys,
    sign_list,
    unmask,
)
from client.session_records import Record, Stage, SumRecords
from client.session_store import SessionStore
from common.errors import (
    AnsweredAlreadyError,
    BadRosterError,
    BadSurvivorListError,
    DigestMismatchError,
    FederationError,
    StaleSumError,
    UnapprovedSiteError,
)
from common.fixedpoint import Words
from common.ids import SiteId
from common.messages import (
    Bundle,
    EvaluateTask,
    HeadRequest,
    KeysRequest,
    LedgerHead,
    ListRequest,
    Message,
    PrepareTask,
    Ready,
    RosterOffer,
    SumTask,
    TrainTask,
    UnmaskRequest,
    head_statement,
    sum_topic,
)
from common.pki import Identity, PublicIdentity
from common.plan import RunPlan
from common.plan_checks import SMALLEST_FEDERATION
from common.secagg.envelopes import open_envelope
from common.secagg.keys import Roster, SumContext, SumSecrets
from common.secagg.survivors import SurvivorList
from common.train_words import upload_bits
from common.wire import from_bytes, to_bytes


class Work(Protocol):
    """What a site does for a track, as ``client.worker`` does it."""

    def prepare(self) -> object:
        """Get ready; once, later calls return the same."""
        ...

    def words(self, task: SumTask) -> Words:
        """The site's vector for a task, in the clear: uint32 words, one axis, fresh; masked in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a site knows of a sum whose shares it holds."""

    roster: Roster
    members: tuple[SiteId, ...]
    transcript: bytes
    shares: Mapping[SiteId, BothShares] = field(repr=False)


class SiteSession:
    """Answers the coordinator for one track at one site."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        track: str,
        identity: Identity,
        approved: Mapping[SiteId, PublicIdentity],
        store: SessionStore,
        work: Work,
        budget: SiteBudget | None = None,
    ) -> None:
        """A session.

        Args:
            plan: As the site approved it.
            track: Which of its tracks.
            identity: The site's own.
            approved: Identities that the site's administrator approved, by site; its own need not be there.
            store: For this track alone.
            work: Makes the vectors.
            budget: Of the site's patients; needed unless the plan's privacy mode is ``none``.
        """
        if budget is None and plan.privacy.mode != "none":
            raise ValueError(f"Expected a budget for privacy mode {plan.privacy.mode}, got none")
        self._budget = budget
        self._plan, self._track, self._work = plan, track, work
        self._plan_digest = plan.digest()
        self._sites = plan.sites_of(plan.track(track))
        self._identity, self._site = identity, identity.site_id
        self._approved = {**approved, self._site: identity.public()}
        self._records = SumRecords(store)
        self._handlers: Mapping[type[Message], Callable[[Any], Message]] = {
            PrepareTask: self._prepare,
            KeysRequest: self._advertise_keys,
            RosterOffer: self._share_keys,
            TrainTask: self._contribute,
            EvaluateTask: self._contribute,
            ListRequest: self._sign_list,
            UnmaskRequest: self._unmask,
            HeadRequest: self._head,
        }

    def __call__(self, message: Message) -> Message:
        """The answer; a bundle is answered part by part. FederationError says why there is none."""
        if isinstance(message, Bundle):
            return Bundle(parts=tuple(self._answer_part(part) for part in message.parts))
        return self._answer(message)

    def _answer_part(self, part: Message) -> Message:
        """As for a message of its own, but a part that fails must not cost the others."""
        return reply_or_refusal(lambda: self._answer(part), part.run_id, self._site)

    def _answer(self, message: Message) -> Message:
        handle = self._handlers.get(type(message))
        if handle is None:
            raise FederationError(f"{self._site}: expected a task, got {type(message).__name__}")
        track, digest = getattr(message, "track", self._track), getattr(message, "plan_digest", None)
        if track != self._track:
            raise FederationError(f"{self._site}: expected track {self._track}, got {track}")
        if digest not in (None, self._plan_digest):
            raise DigestMismatchError("plan", str(digest), self._plan_digest)
        answer: Message = handle(message)
        return answer

    def _prepare(self, task: PrepareTask) -> Message:
        self._work.prepare()
        return Ready(run_id=task.run_id, track=task.track, site_id=self._site)

    def _advertise_keys(self, request: KeysRequest) -> Message:
        """Fresh keys for a sum that this site has not seen."""
        self._records.begin(request.run_id, request.sum_id)

        def make() -> Record:
            own, answer = advertise_keys(self._context(request), self._identity)
            facts = {name: secret.hex() for name, secret in vars(own).items()}
            return Record(request=_named(request), facts=facts, answer=answer)

        return self._once(Stage.ADVERTISE_KEYS, request, _named(request), make).sent()

    def _share_keys(self, offer: RosterOffer) -> Message:
        """Shares of both secrets for everybody in the roster, if everybody may be there."""
        self._records.require_open(offer.run_id, offer.sum_id)

        def make() -> Record:
            own, roster = self._secrets(offer), self._roster(offer)
            self._require_roster(roster, offer)
            kept, answer = share_keys(roster, own, self._identity)
            facts = {"offer": to_bytes(offer).hex(), "own": [share.hex() for share in kept]}
            return Record(request=_named(offer), facts=facts, answer=answer)

        return self._once(Stage.SHARE_KEYS, offer, _named(offer), make).sent()

    def _contribute(self, task: SumTask) -> Message:
        """The site's vector, masked for the members of this transcript and no others."""
        self._records.require_open(task.run_id, task.sum_id)
        shared = self._require(Stage.SHARE_KEYS, task)
        roster = self._roster(_offer(shared))
        self._require_members(roster, task)
        transcript = roster.transcript(task.members, sum_topic(task, task.adapter.digest()))
        self._open_shares(task, roster, transcript, shared)

        def make() -> Record:
            if self._budget is not None and isinstance(task, TrainTask):
                # Before the work, and again if it is done again: a crash must overstate the loss.
                self._budget.spend_step(task, roster)
            answer = mask_input(
                # Nothing masked has left yet: the work may be done again after a crash.
                self._work.words(task),
                roster=roster,
                members=task.members,
                transcript=transcript,
                own=self._secrets(task),
                identity=self._identity,
                bits=upload_bits(task, self._plan),
            )
            return Record(request=transcript.hex(), answer=answer)

        return self._once(Stage.MASKED_INPUT, task, transcript.hex(), make).sent()

    def _open_shares(self, task: SumTask, roster: Roster, transcript: bytes, shared: Record) -> None:
        """Open the envelopes and settle the transcript, before any work.

        A site that fails at its work can still help the others.
        """

        def make() -> Record:
            key, shares = self._secrets(task).envelope_key, {self._site: shared.facts["own"]}
            for sender, envelope in task.envelopes.items():
                both = open_envelope(roster, key, sender=sender, receiver=self._site, envelope=envelope)
                shares[sender] = [share.hex() for share in both]
            facts = {"members": task.members, "transcript": transcript.hex(), "shares": shares}
            return Record(request=transcript.hex(), facts=facts)

        self._once(Stage.OPEN_SHARES, task, transcript.hex(), make)
        # Whoever masks for this sum has no part in an earlier one.
        self._records.close_up_to(task.run_id, task.sum_id - 1)

    def _sign_list(self, request: ListRequest) -> Message:
        """The site's signature of the one list that it will give shares for."""
        self._records.require_open(request.run_id, request.sum_id)
        named = SurvivorList(survivors=request.survivors, dropouts=request.dropouts)

        def make() -> Record:
            opened = self._opened(request)
            self._require_list(named, opened)
            if not named.dropouts:
                raise BadSurvivorListError(request.sum_id, "nobody is lost, no signature is needed")
            answer = sign_list(opened.roster, opened.transcript, named, self._identity)
            return Record(request=named.name(), answer=answer)

        return self._once(Stage.SIGN_LIST, request, named.name(), make).sent()

    def _unmask(self, request: UnmaskRequest) -> Message:
        """Shares for one list; the sum is closed with them."""
        named = SurvivorList(survivors=request.survivors, dropouts=request.dropouts)
        if self._records.read(request.run_id, request.sum_id, Stage.UNMASK) is None:
            self._records.require_open(request.run_id, request.sum_id)

        def make() -> Record:
            signed = self._records.read(request.run_id, request.sum_id, Stage.SIGN_LIST)
            if signed is not None and signed.request != named.name():
                raise AnsweredAlreadyError(request.sum_id, Stage.SIGN_LIST)
            opened = self._opened(request)
            self._require_list(named, opened)
            if named.dropouts:
                named.check_signatures(
                    opened.roster, opened.members, opened.transcript, request.signatures, self._approved
                )
            answer = unmask(opened.roster, opened.transcript, named, opened.shares, self._identity)
            return Record(request=named.name(), answer=answer)

        record = self._once(Stage.UNMASK, request, named.name(), make)
        self._records.close_up_to(request.run_id, request.sum_id)
        return record.sent()

    def _head(self, request: HeadRequest) -> Message:
        """Where the site's ledger stands; an error if it is older than the coordinator remembers."""
        if self._budget is None:
            raise FederationError(f"{self._site}: this plan spends no budget and keeps no ledger")
        head = self._budget.head(request)
        statement = head_statement(request.run_id, request.track, self._site, head)
        return LedgerHead(
            run_id=request.run_id,
            track=request.track,
            site_id=self._site,
            head=head,
            signature=self._identity.sign(statement),
        )

    def _once(self, stage: Stage, message: Message, request: str, make: Callable[[], Record]) -> Record:
        """The stage's one answer: made and stored now, or the one that is stored."""
        run_id, sum_id = message.run_id, message.sum_id  # type: ignore[union-attr]
        record = self._records.read(run_id, sum_id, stage)
        if record is None:
            record = make()
            # Before it is sent: what may have left must be known to have left.
            self._records.write(run_id, sum_id, stage, record)
        elif record.request != request:
            raise AnsweredAlreadyError(sum_id, stage)
        return record

    def _require(self, stage: Stage, message: Any) -> Record:
        record = self._records.read(message.run_id, message.sum_id, stage)
        if record is None:
            raise StaleSumError(message.sum_id, f"this site has no record of stage {stage}")
        return record

    def _context(self, message: Any) -> SumContext:
        return SumContext(
            run_id=message.run_id,
            track=self._track,
            sum_id=message.sum_id,
            plan_digest=self._plan_digest,
        )

    def _secrets(self, message: Any) -> SumSecrets:
        facts = self._require(Stage.ADVERTISE_KEYS, message).facts
        return SumSecrets(**{name: bytes.fromhex(value) for name, value in facts.items()})

    def _roster(self, offer: Any) -> Roster:
        return Roster(context=self._context(offer), entries=offer.roster)

    def _opened(self, message: ListRequest | UnmaskRequest) -> Opened:
        facts = self._require(Stage.OPEN_SHARES, message).facts
        shares = {site: (bytes.fromhex(a), bytes.fromhex(b)) for site, (a, b) in facts["shares"].items()}
        return Opened(
            roster=self._roster(_offer(self._require(Stage.SHARE_KEYS, message))),
            members=tuple(facts["members"]),
            transcript=bytes.fromhex(facts["transcript"]),
            shares=shares,
        )

    def _require_roster(self, roster: Roster, offer: RosterOffer) -> None:
        for site in roster.sites:
            if site not in self._approved:
                raise UnapprovedSiteError(site)
            if site not in self._sites:
                raise BadRosterError(offer.sum_id, f"{site} is not in the plan's {self._track}")
        least = max(SMALLEST_FEDERATION, self._plan.aggregation.minimum_survivors)
        if len(roster.sites) < least:
            raise BadRosterError(offer.sum_id, f"{len(roster.sites)} sites, {least} needed")
        roster.verify(self._approved)
        keys = self._require(Stage.ADVERTISE_KEYS, offer).answer
        if self._site not in roster.sites or roster.entry(self._site) != getattr(keys, "keys", None):
            raise BadRosterError(offer.sum_id, f"expected the keys that {self._site} gave for this sum")

    def _require_members(self, roster: Roster, task: SumTask) -> None:
        members = task.members
        if list(members) != sorted(set(members)) or not set(members) <= set(roster.sites):
            raise BadRosterError(task.sum_id, "members: expected sites of the roster, each once, in order")
        if set(task.envelopes) != set(members) - {self._site} or self._site not in members:
            raise BadRosterError(task.sum_id, "members: expected an envelope from each but this site")
        least = self._least(roster)
        if len(members) < least:
            raise BadRosterError(task.sum_id, f"{len(members)} members, {least} needed")

    def _require_list(self, named: SurvivorList, opened: Opened) -> None:
        roster = opened.roster
        named.check(roster.context.sum_id, opened.members, least=self._least(roster))

    def _least(self, roster: Roster) -> int:
        return self._plan.least_survivors(len(roster.sites), roster.threshold)


def _named(request: Message) -> str:
    return hashlib.sha256(to_bytes(request)).hexdigest()


def _offer(shared: Record) -> Any:
    return from_bytes(bytes.fromhex(shared.facts["offer"]))
