"""A link on which operations happen: the network, a lying coordinator and lying hospitals in one place.

The coordinator behind it is the real one, so that its sums can be held beside plain ones; what it asks of
sites is changed on the way as a lying coordinator would ask it. He has seen all signatures that were given,
and puts them under lists of his own.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from common.errors import FederationError
from common.ids import RoundId, SiteId, site_id
from common.messages import (
    Bundle,
    ListRequest,
    ListSignature,
    Message,
    RosterOffer,
    SealedShares,
    TrainTask,
    UnmaskRequest,
    UnmaskShares,
    bundle,
    refusal,
)
from common.pki import Identity
from common.plan import RunPlan
from common.secagg.keys import Roster, SumContext, SumSecrets, sign_keys
from common.secagg.statements import sealed_shares_statement, unmask_shares_statement
from common.wire import from_bytes, to_bytes
from tests.fakes import fake_identities, tiny_adapter
from tests.federation.hospitals import Crash, Hospital
from tests.federation.operations import Operation, Play

MOST_EXCHANGES = 60


class OperationLink:
    """A ``SiteLink`` to hospitals, with a play's operations."""

    def __init__(self, play: Play, plan: RunPlan, hospitals: Mapping[SiteId, Hospital]) -> None:
        self._plan, self._hospitals = plan, dict(hospitals)
        self._identities = fake_identities(plan)
        self._operations: dict[tuple[int, SiteId], list[Operation]] = defaultdict(list)
        for operation in play.operations:
            self._operations[operation.exchange, operation.site].append(operation)
        self._requests: dict[SiteId, list[Message]] = defaultdict(list)
        self._answers: dict[SiteId, list[Message]] = defaultdict(list)
        self._signatures: dict[tuple[Any, ...], dict[SiteId, bytes]] = defaultdict(dict)
        self._rosters: dict[tuple[SiteId, int], Roster] = {}
        self._transcripts: dict[tuple[SiteId, int], bytes] = {}
        self._scheme = play.scheme
        self.exchanges = 0

    def sites(self) -> tuple[SiteId, ...]:
        return tuple(sorted(self._hospitals))

    def exchange(self, tasks: Mapping[SiteId, Message], timeout_s: float) -> Iterator[tuple[SiteId, Message]]:
        number, self.exchanges = self.exchanges, self.exchanges + 1
        assert number < MOST_EXCHANGES, "a run that does not end"
        for site, task in tasks.items():
            for reply in self._deliver(site, task, self._operations.pop((number, site), [])):
                yield site, reply

    def _deliver(self, site: SiteId, task: Message, operations: list[Operation]) -> list[Message]:
        kinds = {operation.kind: random.Random(operation.choice) for operation in operations}
        asked = task
        for kind, rng in kinds.items():
            asked = self._lie(kind, rng, site, asked)
        asked = self._each(asked, lambda part: self._plot(part, site))
        if "drop" in kinds:
            return []
        if "restart" in kinds:
            self._hospitals[site].restart()
        if "crash" in kinds:
            store, rng = self._hospitals[site].store, kinds["crash"]
            store.steps_left, store.after = rng.randint(1, 8), rng.random() < 0.5
        replies = [self._ask(site, asked)]
        if "duplicate" in kinds or (replies[0] is None and kinds["crash"].random() < 0.5):
            replies.append(self._ask(site, asked))
        self._requests[site].append(task)
        came = [reply for reply in replies if reply is not None]
        for kind, rng in kinds.items():
            came = [self._damage(kind, rng, site, reply) for reply in came]
        self._answers[site].extend(came)
        for kind, rng in kinds.items():
            if kind in ("probe_list", "probe_unmask"):
                self._probe(kind, rng)
        if self._scheme == "ask_twice":
            self._ask_again(task, site)
        return [] if "late" in kinds else came

    def _ask(self, site: SiteId, message: Message) -> Message | None:
        """The site's answer; None if it crashed, after which it is up again."""
        try:
            reply = self._hospitals[site].handle(from_bytes(to_bytes(message)))
        except FederationError as error:
            reply = refusal(message.run_id, site, str(error))
        except Crash:
            self._hospitals[site].restart()
            return None
        self._hospitals[site].store.steps_left = None
        self._learn(site, message, reply)
        return from_bytes(to_bytes(reply))

    def _learn(self, site: SiteId, message: Message, reply: Message) -> None:
        """Keep what a lying coordinator would keep."""
        asked = message.parts if isinstance(message, Bundle) else (message,)
        given = reply.parts if isinstance(reply, Bundle) else (reply,)
        for request, answer in zip(asked, given, strict=False):
            if isinstance(request, RosterOffer) and isinstance(answer, SealedShares):
                self._rosters[site, request.sum_id] = Roster(
                    context=self._context(request), entries=request.roster
                )
            if isinstance(request, ListRequest) and isinstance(answer, ListSignature):
                named = (request.sum_id, request.survivors, request.dropouts)
                self._signatures[named][site] = answer.signature
            if hasattr(answer, "transcript"):
                self._transcripts[site, answer.sum_id] = answer.transcript

    def _lie(self, kind: str, rng: random.Random, site: SiteId, message: Message) -> Message:
        """The message that is sent instead."""
        if kind == "replay_request" and self._requests[site]:
            return rng.choice(self._requests[site])
        if kind == "tamper_request":
            return _tampered(message, rng)
        change = getattr(self, f"_{kind}", None)
        if change is None or kind in ("wrong_shares", "wrong_envelopes"):
            return message
        return self._each(message, lambda part: change(part, rng))

    def _damage(self, kind: str, rng: random.Random, site: SiteId, reply: Message) -> Message:
        """The answer that arrives instead."""
        if kind == "replay_answer" and self._answers[site]:
            return rng.choice(self._answers[site])
        if kind == "tamper_answer":
            return _tampered(reply, rng)
        if kind == "wrong_shares":
            return self._each(reply, lambda part: self._wrong_shares(part, site, rng))
        if kind == "wrong_envelopes":
            return self._each(reply, lambda part: self._wrong_envelopes(part, site, rng))
        return reply

    def _each(self, message: Message, change: Callable[[Any], Message]) -> Message:
        parts = message.parts if isinstance(message, Bundle) else (message,)
        try:
            return bundle(tuple(change(part) for part in parts))
        except ValueError:
            # Not every lie can be written down as a message.
            return message

    def _swap_keys(self, part: Message, rng: random.Random) -> Message:
        """The coordinator's own key in a hospital's entry, whose signature stays as it was."""
        if not isinstance(part, RosterOffer):
            return part
        place, own = rng.randrange(len(part.roster)), SumSecrets.generate()
        mine = sign_keys(self._context(part), own, Identity.generate(part.roster[place].site_id))
        name = rng.choice(("mask_key", "envelope_key", "seed_hash"))
        entry = replace(part.roster[place], **{name: getattr(mine, name)})
        return replace(part, roster=(*part.roster[:place], entry, *part.roster[place + 1 :]))

    def _forge_keys(self, part: Message, rng: random.Random) -> Message:
        """A whole entry of the coordinator's own making under a hospital's name."""
        if not isinstance(part, RosterOffer):
            return part
        place = rng.randrange(len(part.roster))
        forger = Identity.generate(part.roster[place].site_id)
        entry = sign_keys(self._context(part), SumSecrets.generate(), forger)
        return replace(part, roster=(*part.roster[:place], entry, *part.roster[place + 1 :]))

    def _invent_site(self, part: Message, rng: random.Random) -> Message:
        """A hospital that nobody approved."""
        if not isinstance(part, RosterOffer):
            return part
        forger = Identity.generate(site_id(rng.choice(("site-0", "site-b2", "site-z"))))
        entry = sign_keys(self._context(part), SumSecrets.generate(), forger)
        return replace(part, roster=tuple(sorted((*part.roster, entry), key=lambda e: e.site_id)))

    def _shrink_roster(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, RosterOffer):
            return part
        kept = rng.sample(part.roster, rng.randint(1, len(part.roster) - 1))
        return replace(part, roster=tuple(sorted(kept, key=lambda e: e.site_id)))

    def _other_adapter(self, part: Message, rng: random.Random) -> Message:
        return replace(part, adapter=tiny_adapter(seed=7)) if isinstance(part, TrainTask) else part

    def _wrong_round(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, TrainTask):
            return part
        return replace(part, round_id=RoundId(part.round_id + rng.choice((1, 2))))

    def _wrong_sum(self, part: Any, rng: random.Random) -> Message:
        return replace(part, sum_id=part.sum_id + rng.choice((-1, 1))) if hasattr(part, "sum_id") else part

    def _fewer_members(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, TrainTask):
            return part
        gone = rng.choice(part.members)
        members = tuple(site for site in part.members if site != gone)
        return replace(
            part,
            members=members,
            envelopes={site: item for site, item in part.envelopes.items() if site != gone},
        )

    def _swap_envelopes(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, TrainTask) or len(part.envelopes) < 2:
            return part
        a, b = rng.sample(sorted(part.envelopes), 2)
        return replace(part, envelopes={**part.envelopes, a: part.envelopes[b], b: part.envelopes[a]})

    def _both_lists(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, ListRequest | UnmaskRequest):
            return part
        victim = rng.choice(part.survivors)
        return replace(part, dropouts=tuple(sorted((*part.dropouts, victim))))

    def _move_to_dropouts(self, part: Message, rng: random.Random) -> Message:
        if not isinstance(part, ListRequest | UnmaskRequest):
            return part
        moved = self._split(part.sum_id, part.survivors, part.dropouts, rng)
        if isinstance(part, ListRequest):
            del moved["signatures"]
        return replace(part, **moved)

    def _plot(self, part: Message, site: SiteId) -> Message:
        """What the scheme makes of a request for a list: the same lie to all, or a lie to each."""
        if not isinstance(part, ListRequest | UnmaskRequest) or not part.survivors:
            return part
        if self._scheme == "both_lists":
            return replace(part, dropouts=tuple(sorted({*part.dropouts, part.survivors[0]})))
        if self._scheme == "split_lists":
            gone = part.survivors[self.sites().index(site) % len(part.survivors)]
            return replace(part, **self._without(part, gone))
        return part

    def _ask_again(self, message: Message, site: SiteId) -> None:
        """After the shares for one list, a signature and shares for another."""
        for part in message.parts if isinstance(message, Bundle) else (message,):
            if isinstance(part, UnmaskRequest) and part.survivors:
                moved = self._without(part, part.survivors[0])
                common = {"run_id": part.run_id, "track": part.track, "sum_id": part.sum_id, **moved}
                for other in self.sites():
                    self._ask(other, ListRequest(**common))
                named = (part.sum_id, moved["survivors"], moved["dropouts"])
                self._ask(site, UnmaskRequest(**common, signatures=dict(self._signatures[named])))

    def _without(self, part: ListRequest | UnmaskRequest, gone: SiteId) -> dict[str, Any]:
        return {
            "survivors": tuple(site for site in part.survivors if site != gone),
            "dropouts": tuple(sorted((*part.dropouts, gone))),
        }

    def _probe(self, kind: str, rng: random.Random) -> None:
        """Ask all sites, out of turn, about a list of the coordinator's own making."""
        last = [sent[-1] for sent in self._requests.values() if sent]
        tasks = [p for m in last for p in (m.parts if isinstance(m, Bundle) else (m,))]
        tasks = [part for part in tasks if isinstance(part, TrainTask)]
        if not tasks:
            return
        task = rng.choice(tasks)
        named = self._split(task.sum_id, task.members, (), rng)
        for site in rng.sample(self.sites(), rng.randint(1, len(self._hospitals))):
            common = {"run_id": task.run_id, "track": task.track, "sum_id": task.sum_id}
            if kind == "probe_list":
                self._ask(
                    site, ListRequest(**common, survivors=named["survivors"], dropouts=named["dropouts"])
                )
            else:
                self._ask(site, UnmaskRequest(**common, **named))

    def _split(
        self, sum_id: int, survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...], rng: random.Random
    ) -> dict[str, Any]:
        """Some survivors made dropouts, or a list that has signatures, with all that it has."""
        signed = [named for named in self._signatures if named[0] == sum_id]
        if signed and rng.random() < 0.5:
            chosen = rng.choice(signed)
            return {"survivors": chosen[1], "dropouts": chosen[2], "signatures": self._signatures[chosen]}
        gone = rng.sample(survivors, rng.randint(0, min(2, len(survivors))))
        kept = tuple(site for site in survivors if site not in gone)
        lost = tuple(sorted((*dropouts, *gone)))
        return {
            "survivors": kept,
            "dropouts": lost,
            "signatures": dict(self._signatures.get((sum_id, kept, lost), {})),
        }

    def _wrong_shares(self, part: Message, site: SiteId, rng: random.Random) -> Message:
        """A hospital gives a wrong share and signs it."""
        roster, transcript = self._known(part, site)
        if not isinstance(part, UnmaskShares) or roster is None or transcript is None:
            return part
        seeds, keys = dict(part.seed_shares), dict(part.mask_key_shares)
        for shares in (seeds, keys):
            for peer in shares:
                shares[peer] = sha256(shares[peer]).digest() + bytes(34)
        statement = unmask_shares_statement(roster.context, transcript, site, seeds, keys)
        signature = self._identities[site].sign(statement)
        return replace(part, seed_shares=seeds, mask_key_shares=keys, signature=signature)

    def _wrong_envelopes(self, part: Message, site: SiteId, rng: random.Random) -> Message:
        """A hospital seals rubbish and signs it."""
        roster = self._known(part, site)[0]
        if not isinstance(part, SealedShares) or roster is None:
            return part
        victims = rng.sample(sorted(part.envelopes), rng.randint(1, len(part.envelopes)))
        envelopes = {
            peer: bytes(len(item)) if peer in victims else item for peer, item in part.envelopes.items()
        }
        signature = self._identities[site].sign(sealed_shares_statement(roster, site, envelopes))
        return replace(part, envelopes=envelopes, signature=signature)

    def _known(self, part: Any, site: SiteId) -> tuple[Roster | None, bytes | None]:
        sum_id = getattr(part, "sum_id", 0)
        return self._rosters.get((site, sum_id)), self._transcripts.get((site, sum_id))

    def _context(self, part: RosterOffer) -> SumContext:
        return SumContext(
            run_id=part.run_id, track=part.track, sum_id=part.sum_id, plan_digest=part.plan_digest
        )


def _tampered(message: Message, rng: random.Random) -> Message:
    """One byte is another one, and the digest at the end fits; where no message is left, the old one."""
    body = bytearray(to_bytes(message)[:-32])
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    try:
        return from_bytes(bytes(body) + sha256(body).digest())
    except FederationError:
        return message
