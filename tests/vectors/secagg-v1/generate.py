"""Writes ``good_round.json`` and ``refusals.json`` beside itself, when run as a script.

Whatever production draws at random is SHA-256 of a label here. Shares, envelopes, masks, packing and the sum
come from the plain reference, not from the code that the vectors are held against; digests, signatures and
the bytes of messages are production's own, and the files keep them as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from common.adapter import AdapterMode, AdapterSpec, ModuleShape, initial_adapter
from common.canonical import labeled_digest
from common.ids import RoundId, RunId, SiteId, site_id
from common.messages import (
    Keys,
    KeysRequest,
    ListRequest,
    ListSignature,
    MaskedInput,
    Message,
    RosterOffer,
    SealedShares,
    TrainTask,
    UnmaskRequest,
    UnmaskShares,
    refusal,
    sum_topic,
)
from common.pki import Identity
from common.secagg.envelopes import NONCE_SIZE, SHARES_LABEL
from common.secagg.keys import KEYS_LABEL, Roster, SignedKeys, SumContext, SumSecrets, sign_keys
from common.secagg.reference import (
    plain_hkdf,
    plain_masked_round,
    plain_pack,
    plain_pair_key,
    plain_self_key,
    plain_split,
    plain_sum,
    plain_x25519,
)
from common.secagg.sharing import PRIME
from common.secagg.statements import (
    masked_input_statement,
    sealed_shares_statement,
    survivor_list_statement,
    unmask_shares_statement,
)
from common.wire import SCHEMA, to_bytes

FOLDER = Path(__file__).parent
SITES = A, B, C, D = tuple(site_id(f"site-{letter}") for letter in "abcd")
# Approved, but in no plan; and one that nobody approved.
E, X = site_id("site-e"), site_id("site-x")
SURVIVORS, DROPOUTS = (A, B, C), (D,)
WORD_BITS, LENGTH = 20, 21


def secret(*names: str) -> bytes:
    """32 bytes that everybody can compute."""
    return hashlib.sha256("/".join(("consilium secagg-v1 vectors", *names)).encode()).digest()


PLAN, OTHER_PLAN = secret("plan").hex(), secret("other plan").hex()
CONTEXT = SumContext(run_id=RunId("vectors-1"), track="rare_disease", sum_id=7, plan_digest=PLAN)
SUM: dict[str, Any] = {"run_id": CONTEXT.run_id, "track": CONTEXT.track, "sum_id": CONTEXT.sum_id}
SPEC = AdapterSpec(
    mode=AdapterMode.ROLORA,
    rank=2,
    alpha=4.0,
    modules=(ModuleShape(name="q_proj", in_features=3, out_features=2),),
)
ADAPTER = initial_adapter(SPEC, 0)
IDENTITIES = {site: Identity(site_id=site, private_key=secret(site, "identity")) for site in (*SITES, E, X)}
# What wants 20 bits, so that a sum of three wraps.
VECTORS = {
    site: [int.from_bytes(secret(site, "word", str(place))[:4], "little") >> 12 for place in range(LENGTH)]
    for site in SITES
}


def secrets_of(site: SiteId, note: str = "") -> SumSecrets:
    kinds = ("mask_key", "envelope_key", "self_seed")
    return SumSecrets(**{kind: secret(site, kind + note) for kind in kinds})


def coefficients(site: SiteId, kind: str, threshold: int) -> list[int]:
    """The polynomial of one of a site's secrets, but for the secret."""
    parts = ([secret(site, kind, str(power), part) for part in "012"] for power in range(1, threshold))
    return [int.from_bytes(b"".join(some), "big") % PRIME for some in parts]


def nonce(sender: SiteId, receiver: SiteId) -> bytes:
    return secret(sender, receiver, "nonce")[:NONCE_SIZE]


def keys_of(site: SiteId, *, context: SumContext = CONTEXT, note: str = "", **other: bytes) -> SignedKeys:
    """A site's keys; ``other`` ones in their place are signed too."""
    keys = replace(sign_keys(context, secrets_of(site, note), IDENTITIES[site]), **other)
    statement = labeled_digest(KEYS_LABEL, context.digest(), *keys.parts())
    return replace(keys, signature=IDENTITIES[site].sign(statement))


def flipped(data: bytes, place: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# Every envelope of a pair of sites wants it again.
x25519 = cache(plain_x25519)


@dataclass(frozen=True)
class Sum:
    """The messages of a sum, all that follow from its keys."""

    roster: Roster

    @property
    def context(self) -> SumContext:
        return self.roster.context

    @property
    def header(self) -> dict[str, Any]:
        return {name: getattr(self.context, name) for name in SUM}

    def shares(self, owner: SiteId) -> dict[SiteId, tuple[bytes, bytes]]:
        """Of the owner's seed and mask key, by who gets them."""
        made = [
            plain_split(
                getattr(secrets_of(owner), kind),
                coefficients(owner, kind, self.roster.threshold),
                len(self.roster.sites),
            )
            for kind in ("self_seed", "mask_key")
        ]
        return dict(zip(self.roster.sites, zip(*made, strict=True), strict=True))

    def envelope(self, sender: SiteId, receiver: SiteId) -> bytes:
        header = labeled_digest(SHARES_LABEL, sender.encode(), receiver.encode())
        shared = x25519(secrets_of(sender).envelope_key, self.roster.entry(receiver).envelope_key)
        key = plain_hkdf(shared, salt=self.roster.digest(), info=header)
        drawn = nonce(sender, receiver)
        return drawn + ChaCha20Poly1305(key).encrypt(drawn, b"".join(self.shares(sender)[receiver]), header)

    def envelopes_of(self, sender: SiteId) -> dict[SiteId, bytes]:
        return {site: self.envelope(sender, site) for site in self.roster.sites if site != sender}

    def envelopes_for(self, receiver: SiteId, members: Sequence[SiteId] = SITES) -> dict[SiteId, bytes]:
        return {site: self.envelope(site, receiver) for site in members if site != receiver}

    def transcript(self, members: Sequence[SiteId] = SITES, task: TrainTask | None = None) -> bytes:
        task = task or self.task(A)
        return self.roster.transcript(members, sum_topic(task, task.adapter.digest()))

    def request(self) -> KeysRequest:
        return KeysRequest(**self.header, plan_digest=PLAN)

    def keys(self, site: SiteId) -> Keys:
        return Keys(**self.header, keys=self.roster.entry(site))

    def offer(self) -> RosterOffer:
        return RosterOffer(**self.header, plan_digest=PLAN, roster=self.roster.entries)

    def sealed(self, site: SiteId, envelopes: Mapping[SiteId, bytes] | None = None) -> SealedShares:
        envelopes = self.envelopes_of(site) if envelopes is None else envelopes
        statement = sealed_shares_statement(self.roster, site, envelopes)
        signature = IDENTITIES[site].sign(statement)
        return SealedShares(**self.header, site_id=site, envelopes=envelopes, signature=signature)

    def task(self, receiver: SiteId, members: tuple[SiteId, ...] = SITES) -> TrainTask:
        return TrainTask(
            **self.header,
            plan_digest=PLAN,
            round_id=RoundId(3),
            adapter=ADAPTER,
            members=members,
            envelopes=self.envelopes_for(receiver, members),
            bin_accuracy=None,
        )

    def masked(self, site: SiteId, words: Sequence[int], transcript: bytes | None = None) -> MaskedInput:
        """A site's answer of these packed words."""
        packed = np.array(words, dtype=np.uint32)
        transcript = transcript or self.transcript()
        statement = masked_input_statement(self.context, transcript, site, packed)
        return MaskedInput(
            **self.header,
            site_id=site,
            transcript=transcript,
            words=packed,
            signature=IDENTITIES[site].sign(statement),
        )

    def list_request(
        self, survivors: tuple[SiteId, ...] = SURVIVORS, dropouts: tuple[SiteId, ...] = DROPOUTS
    ) -> ListRequest:
        return ListRequest(**self.header, survivors=survivors, dropouts=dropouts)

    def list_signature(
        self,
        site: SiteId,
        survivors: tuple[SiteId, ...] = SURVIVORS,
        dropouts: tuple[SiteId, ...] = DROPOUTS,
    ) -> ListSignature:
        statement = survivor_list_statement(self.context, self.transcript(), survivors, dropouts)
        return ListSignature(**self.header, site_id=site, signature=IDENTITIES[site].sign(statement))

    def unmask_request(
        self,
        survivors: tuple[SiteId, ...] = SURVIVORS,
        dropouts: tuple[SiteId, ...] = DROPOUTS,
        signers: Sequence[SiteId] = SURVIVORS,
    ) -> UnmaskRequest:
        return UnmaskRequest(
            **self.header,
            survivors=survivors,
            dropouts=dropouts,
            signatures={site: self.list_signature(site, survivors, dropouts).signature for site in signers},
        )

    def unmask_shares(
        self,
        site: SiteId,
        survivors: tuple[SiteId, ...] = SURVIVORS,
        dropouts: tuple[SiteId, ...] = DROPOUTS,
        wrong: SiteId | None = None,
    ) -> UnmaskShares:
        """A site's shares, a ``wrong`` one among them; signed all the same."""
        shares = {owner: self.shares(owner)[site] for owner in (*survivors, *dropouts)}
        if wrong is not None:
            seed_share, mask_key_share = shares[wrong]
            shares[wrong] = flipped(seed_share, 65), flipped(mask_key_share, 65)
        seeds = {owner: shares[owner][0] for owner in survivors}
        mask_keys = {owner: shares[owner][1] for owner in dropouts}
        statement = unmask_shares_statement(self.context, self.transcript(), site, seeds, mask_keys)
        return UnmaskShares(
            **self.header,
            site_id=site,
            seed_shares=seeds,
            mask_key_shares=mask_keys,
            signature=IDENTITIES[site].sign(statement),
        )


def sum_of(*sites: SiteId, context: SumContext = CONTEXT, **other: SignedKeys) -> Sum:
    """The sum of these sites, or of all four, with ``other`` keys by a site's letter."""
    entries = (other.get(site[-1], keys_of(site, context=context)) for site in sites or SITES)
    return Sum(Roster(context=context, entries=tuple(entries)))


GOOD = sum_of()


def masked_words() -> dict[SiteId, list[int]]:
    """All four sites' masked words, packed; the coordinator never gets those of the dropout."""
    own = {site: secrets_of(site) for site in SITES}
    masked, total = plain_masked_round(
        VECTORS, own, roster=GOOD.roster, transcript=GOOD.transcript(), survivors=SURVIVORS
    )
    expected = plain_sum(VECTORS[site] for site in SURVIVORS)
    if [word % 2**WORD_BITS for word in total] != [word % 2**WORD_BITS for word in expected]:
        raise ValueError("Expected the reference to unmask its own round")
    return {site: plain_pack(words, WORD_BITS) for site, words in masked.items()}


def good_round() -> dict[str, Any]:
    """Everything there is to know of one round, and its messages."""
    roster, transcript, masked = GOOD.roster, GOOD.transcript(), masked_words()
    pairs = [(low, high) for low in SITES for high in SITES if low < high]
    task = GOOD.task(A)
    return {
        "about": "A round of secagg-v1 in which site-d's masked input is lost. Made by generate.py.",
        "plan": {"digest": PLAN, "sites": SITES, "minimum_survivors": 3, "word_bits": WORD_BITS},
        **SUM,
        "context_digest": CONTEXT.digest().hex(),
        "identities": {
            site: {"private_key": identity.private_key.hex(), "public_key": identity.public().key.hex()}
            for site, identity in IDENTITIES.items()
        },
        "approved": (*SITES, E),
        "secrets": {site: hexes(vars(secrets_of(site))) for site in SITES},
        "keys": {
            site: hexes({k: v for k, v in vars(roster.entry(site)).items() if k != "site_id"})
            for site in SITES
        },
        "roster_digest": roster.digest().hex(),
        "threshold": roster.threshold,
        "polynomials": {
            site: {
                kind: [f"{number:0132x}" for number in coefficients(site, kind, roster.threshold)]
                for kind in ("self_seed", "mask_key")
            }
            for site in SITES
        },
        "shares": {
            site: {
                peer: {"self_seed": both[0].hex(), "mask_key": both[1].hex()}
                for peer, both in GOOD.shares(site).items()
            }
            for site in SITES
        },
        "nonces": {
            site: hexes({peer: nonce(site, peer) for peer in SITES if peer != site}) for site in SITES
        },
        "envelopes": {site: hexes(GOOD.envelopes_of(site)) for site in SITES},
        "members": SITES,
        "adapter_digest": ADAPTER.digest(),
        "topic": sum_topic(task, ADAPTER.digest()).hex(),
        "transcript": transcript.hex(),
        "self_mask_keys": {
            site: plain_self_key(secrets_of(site).self_seed, transcript, site).hex() for site in SITES
        },
        "pair_mask_keys": {
            f"{low} {high}": plain_pair_key(
                secrets_of(low).mask_key, roster.entry(high).mask_key, transcript, (low, high)
            ).hex()
            for low, high in pairs
        },
        "vectors": VECTORS,
        "packed_masked_words": masked,
        "survivors": SURVIVORS,
        "dropouts": DROPOUTS,
        "list_signatures": {site: GOOD.list_signature(site).signature.hex() for site in SURVIVORS},
        "sum": [word % 2**WORD_BITS for word in plain_sum(VECTORS[site] for site in SURVIVORS)],
        "requests": {
            "keys request": to_bytes(GOOD.request()).hex(),
            "roster offer": to_bytes(GOOD.offer()).hex(),
            "train task": {site: to_bytes(GOOD.task(site)).hex() for site in SITES},
            "list request": to_bytes(GOOD.list_request()).hex(),
            "unmask request": to_bytes(GOOD.unmask_request()).hex(),
        },
        "answers": {
            "keys": {site: to_bytes(GOOD.keys(site)).hex() for site in SITES},
            "sealed shares": {site: to_bytes(GOOD.sealed(site)).hex() for site in SITES},
            "masked input": {site: to_bytes(GOOD.masked(site, masked[site])).hex() for site in SITES},
            "list signature": {site: to_bytes(GOOD.list_signature(site)).hex() for site in SURVIVORS},
            "unmask shares": {site: to_bytes(GOOD.unmask_shares(site)).hex() for site in SURVIVORS},
        },
    }


def hexes(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


Step = str | tuple[str, Message | bytes]


def case(name: str, at: str, error: str, before: Sequence[Step], last: Step) -> dict[str, Any]:
    """One refusal: the last step's, all others being answered or taken."""
    return {"name": name, "at": at, "error": error, "steps": [written(step) for step in (*before, last)]}


def written(step: Step) -> str | dict[str, str]:
    if isinstance(step, str):
        return step
    what, message = step
    return {"step": what, "message": (message if isinstance(message, bytes) else to_bytes(message)).hex()}


def newer(data: bytes) -> bytes:
    """The bytes as if the next schema had written them."""
    body = data[:4] + (SCHEMA + 1).to_bytes(2, "little") + data[6:-32]
    return body + hashlib.sha256(body).digest()


# What comes before a site is asked for ...
TO_ROSTER = ("keys request",)
TO_WORK = (*TO_ROSTER, "roster offer")
TO_LIST = (*TO_WORK, "train task")
TO_UNMASK = (*TO_LIST, "list request")
CLOSED = (*TO_UNMASK, "unmask request")


def site_cases() -> list[dict[str, Any]]:
    """What site-a refuses."""
    made = [*keys_request_cases(), *roster_offer_cases(), *task_cases(), *list_cases(), *unmask_cases()]
    return [case(name, A, error, before, last) for name, error, before, last in made]


Case = tuple[str, str, Sequence[Step], Step]


def keys_request_cases() -> list[Case]:
    request = GOOD.request()
    data = to_bytes(request)

    def ask(message: Message | bytes) -> Step:
        return "keys request", message

    return [
        (
            "a plan that was not approved",
            "DigestMismatchError",
            (),
            ask(replace(request, plan_digest=OTHER_PLAN)),
        ),
        ("another track", "FederationError", (), ask(replace(request, track="skin_condition"))),
        ("an answer in a request's place", "FederationError", (), ask(GOOD.keys(A))),
        ("bytes cut short", "BadMessageError", (), ask(data[:-1])),
        ("a byte changed on the way", "BadMessageError", (), ask(flipped(data, 20))),
        ("a newer schema", "UnsupportedSchemaError", (), ask(newer(data))),
        ("keys for a sum that is closed", "StaleSumError", CLOSED, "keys request"),
        (
            "keys for a sum before the one that was masked for",
            "StaleSumError",
            TO_LIST,
            ask(replace(request, sum_id=CONTEXT.sum_id - 1)),
        ),
    ]


def roster_offer_cases() -> list[Case]:
    offer, entry = GOOD.offer(), GOOD.roster.entry
    earlier = replace(CONTEXT, sum_id=CONTEXT.sum_id - 1)

    def of(*entries: SignedKeys) -> Step:
        return "roster offer", replace(offer, roster=entries)

    a, b, c, d = offer.roster
    bad_roster = [
        ("an approved site that is not in the plan", of(a, b, c, keys_of(E))),
        ("a roster of two sites", of(a, b)),
        ("a roster of this site alone", of(a)),
        ("a roster without this site", of(b, c, d)),
        ("other keys of this site, signed by it", of(keys_of(A, note=" of another time"), b, c, d)),
        ("a roster that is not in order", of(a, c, b, d)),
        ("a roster that names a site twice", of(a, b, b, c, d)),
        ("two sites with one mask key", of(a, b, c, keys_of(D, mask_key=b.mask_key))),
        ("a mask key that is an envelope key too", of(a, b, c, keys_of(D, mask_key=d.envelope_key))),
        ("a mask key of small order", of(a, b, c, keys_of(D, mask_key=bytes(32)))),
        ("an envelope key of small order", of(a, b, c, keys_of(D, envelope_key=bytes(32)))),
    ]
    swapped = replace(a, mask_key=a.envelope_key, envelope_key=a.mask_key)
    bad_signature = [
        ("this site's two keys exchanged", of(swapped, b, c, d)),
        ("this site's keys of an earlier sum", of(keys_of(A, context=earlier), b, c, d)),
        ("another site's keys of an earlier sum", of(a, b, c, keys_of(D, context=earlier))),
        ("a signature of keys with a bit changed", of(a, replace(b, signature=flipped(b.signature)), c, d)),
        ("a mask key that its site did not sign", of(a, b, replace(c, mask_key=flipped(c.mask_key)), d)),
        ("a seed's hash that its site did not sign", of(a, b, replace(c, seed_hash=flipped(c.seed_hash)), d)),
        ("keys that another site signed", of(a, b, c, replace(d, signature=entry(C).signature))),
    ]
    return [
        ("a site that is not approved", "UnapprovedSiteError", TO_ROSTER, of(a, b, c, keys_of(X))),
        *((name, "BadRosterError", TO_ROSTER, last) for name, last in bad_roster),
        *((name, "BadSignatureError", TO_ROSTER, last) for name, last in bad_signature),
        (
            "a roster for a plan that was not approved",
            "DigestMismatchError",
            TO_ROSTER,
            ("roster offer", replace(offer, plan_digest=OTHER_PLAN)),
        ),
        ("a roster for a sum that was never begun", "StaleSumError", (), "roster offer"),
        ("a second roster for one sum", "AnsweredAlreadyError", TO_WORK, of(a, b, c)),
    ]


def task_cases() -> list[Case]:
    task = GOOD.task(A)
    envelopes = dict(task.envelopes)
    other_sum = sum_of(context=replace(CONTEXT, sum_id=CONTEXT.sum_id - 1))

    def with_(**changes: Any) -> Step:
        return "train task", replace(task, **changes)

    without_b = {site: envelopes[site] for site in (C, D)}
    bad_envelope = [
        ("an envelope with a bit changed", {**envelopes, B: flipped(envelopes[B], 50)}),
        ("two envelopes exchanged", {**envelopes, B: envelopes[C], C: envelopes[B]}),
        ("an envelope for another site", {**envelopes, C: GOOD.envelope(C, B)}),
        ("this site's own envelope sent back to it", {**envelopes, B: GOOD.envelope(A, B)}),
        ("envelopes of an earlier sum", other_sum.envelopes_for(A)),
    ]
    bad_members = [
        (
            "a member that is not in the roster",
            {"members": (*SITES, E), "envelopes": {**envelopes, E: bytes(160)}},
        ),
        ("members without this site", {"members": (B, C, D)}),
        ("members that are not in order", {"members": (A, C, B, D)}),
        ("a member twice", {"members": (A, B, B, C, D)}),
        ("two members, where three are needed", {"members": (A, B), "envelopes": {B: envelopes[B]}}),
        ("a member without an envelope", {"envelopes": without_b}),
        ("an envelope of a site that is no member", {"members": (A, C, D)}),
    ]
    other_adapter = initial_adapter(SPEC, 1)
    second = [
        ("a second task for one sum, with another adapter", {"adapter": other_adapter}),
        ("a second task for one sum, of another round", {"round_id": RoundId(4)}),
        ("a second task for one sum, for other members", {"members": (A, C, D), "envelopes": without_b}),
    ]
    return [
        *((name, "BadEnvelopeError", TO_WORK, with_(envelopes=changed)) for name, changed in bad_envelope),
        *((name, "BadRosterError", TO_WORK, with_(**changes)) for name, changes in bad_members),
        (
            "a task of a plan that was not approved",
            "DigestMismatchError",
            TO_WORK,
            with_(plan_digest=OTHER_PLAN),
        ),
        ("a task of another track", "FederationError", TO_WORK, with_(track="skin_condition")),
        *((name, "AnsweredAlreadyError", TO_LIST, with_(**changes)) for name, changes in second),
        ("a task before shares were sealed", "StaleSumError", TO_ROSTER, "train task"),
        ("a task of a sum that is closed", "StaleSumError", CLOSED, "train task"),
    ]


# Lists of survivors and dropouts that a site refuses whoever signs them.
BAD_LISTS: tuple[tuple[str, tuple[SiteId, ...], tuple[SiteId, ...]], ...] = (
    ("a site on both sides", SITES, (D,)),
    ("a member left out", SURVIVORS, ()),
    ("a site that is no member", SURVIVORS, (E,)),
    ("a site twice", (A, B, B, C), (D,)),
    ("two survivors, where three are needed", (A, B), (C, D)),
    ("an order that is not that of the names", (B, A, C), (D,)),
)


def list_cases() -> list[Case]:
    def of(survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...]) -> Step:
        return "list request", GOOD.list_request(survivors, dropouts)

    return [
        *(
            (f"a list to sign with {name}", "BadSurvivorListError", TO_LIST, of(survivors, dropouts))
            for name, survivors, dropouts in BAD_LISTS
        ),
        ("a list to sign where nobody is lost", "BadSurvivorListError", TO_LIST, of(SITES, ())),
        ("a list before the work", "StaleSumError", TO_WORK, "list request"),
        ("a second list to sign", "AnsweredAlreadyError", TO_UNMASK, of((A, B, D), (C,))),
        ("a list of a sum that is closed", "StaleSumError", CLOSED, "list request"),
    ]


def unmask_cases() -> list[Case]:
    request = GOOD.unmask_request()
    good, other = dict(request.signatures), GOOD.list_signature(B, (A, B, D), (C,)).signature
    e, x = (IDENTITIES[site].sign(secret("any statement")) for site in (E, X))

    def signed(signatures: Mapping[SiteId, bytes]) -> Step:
        return "unmask request", replace(request, signatures=signatures)

    def of(
        survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...], signers: tuple[SiteId, ...] = SITES
    ) -> Step:
        return "unmask request", GOOD.unmask_request(survivors, dropouts, signers)

    two = {site: good[site] for site in (A, B)}
    return [
        *(
            (f"an unmask request with {name}", "BadSurvivorListError", TO_LIST, of(survivors, dropouts))
            for name, survivors, dropouts in BAD_LISTS
        ),
        ("a dropout without signatures", "BadSurvivorListError", TO_UNMASK, signed({})),
        (
            "a dropout with two signatures, where three are needed",
            "BadSurvivorListError",
            TO_UNMASK,
            signed(two),
        ),
        (
            "a list's signature with a bit changed",
            "BadSignatureError",
            TO_UNMASK,
            signed({**good, C: flipped(good[C])}),
        ),
        ("a signature of another list", "BadSignatureError", TO_UNMASK, signed({**good, B: other})),
        (
            "a list's signature by a site that is no member",
            "BadSurvivorListError",
            TO_UNMASK,
            signed({**two, E: e}),
        ),
        (
            "a list's signature by a site that nobody knows",
            "BadSurvivorListError",
            TO_UNMASK,
            signed({**two, X: x}),
        ),
        (
            "another list than the one that was signed",
            "AnsweredAlreadyError",
            TO_UNMASK,
            of((A, B, D), (C,)),
        ),
        (
            "nobody lost, after a list with a dropout was signed",
            "AnsweredAlreadyError",
            TO_UNMASK,
            of(SITES, ()),
        ),
        ("an unmask request before the work", "StaleSumError", TO_WORK, "unmask request"),
        ("a second unmask request", "AnsweredAlreadyError", CLOSED, of((A, B, D), (C,))),
        ("a second unmask request, where nobody is lost", "AnsweredAlreadyError", CLOSED, of(SITES, ())),
    ]


def each(what: str, sites: Sequence[SiteId]) -> tuple[str, ...]:
    return tuple(f"{what} {site}" for site in sites)


# What comes before the coordinator takes ...
TO_OFFER = each("keys", SITES)
TO_SEALED = (*TO_OFFER, "offer roster")
TO_SETUP = (*TO_SEALED, *each("sealed shares", SITES))
TO_MASKED = (*TO_SETUP, "finish setup")
TO_CLOSE = (*TO_MASKED, *each("masked input", SURVIVORS))
TO_SIGNATURES = (*TO_CLOSE, "close list")
TO_REQUEST = (*TO_SIGNATURES, *each("list signature", SURVIVORS))
TO_SHARES = (*TO_REQUEST, "ask unmask")


def coordinator_cases() -> list[dict[str, Any]]:
    """What the coordinator refuses, or cannot go on with."""
    made = [*setup_cases(), *sum_cases()]
    return [case(name, "coordinator", error, before, last) for name, error, before, last in made]


def setup_cases() -> list[Case]:
    keys, sealed = GOOD.keys(A), GOOD.sealed(A)
    entry, envelopes = keys.keys, dict(sealed.envelopes)
    other = replace(CONTEXT, sum_id=CONTEXT.sum_id - 1)
    told = refusal(CONTEXT.run_id, A, "no")

    def with_keys(entry: SignedKeys) -> Message:
        return replace(keys, keys=entry)

    bad_keys = [
        ("keys of another site", "BadMessageError", GOOD.keys(B)),
        ("keys of another sum", "BadMessageError", sum_of(context=other).keys(A)),
        ("a refusal in the place of keys", "BadMessageError", told),
        ("another answer in the place of keys", "BadMessageError", sealed),
        ("unsigned keys", "BadSignatureError", with_keys(replace(entry, signature=bytes(64)))),
        ("keys signed for another sum", "BadSignatureError", with_keys(keys_of(A, context=other))),
    ]
    without_d = {site: envelopes[site] for site in (B, C)}
    bad_sealed = [
        ("shares sealed for too few receivers", "BadMessageError", GOOD.sealed(A, without_d)),
        (
            "shares sealed for a receiver outside",
            "BadMessageError",
            GOOD.sealed(A, {**without_d, E: envelopes[D]}),
        ),
        ("shares sealed for itself too", "BadMessageError", GOOD.sealed(A, {**envelopes, A: bytes(160)})),
        ("sealed shares of another site", "BadMessageError", GOOD.sealed(B)),
        (
            "an envelope changed after it was signed",
            "BadSignatureError",
            replace(sealed, envelopes={**envelopes, B: flipped(envelopes[B])}),
        ),
        ("sealed shares that were not signed", "BadSignatureError", replace(sealed, signature=bytes(64))),
        (
            "shares sealed for another roster",
            "BadSignatureError",
            sum_of(d=keys_of(D, note=" other")).sealed(A),
        ),
    ]
    return [
        *((name, error, (), (f"keys {A}", message)) for name, error, message in bad_keys),
        (
            "keys that another site has given",
            "BadMessageError",
            ((f"keys {B}", with_keys(keys_of(B))),),
            (f"keys {A}", with_keys(keys_of(A, mask_key=keys_of(B).mask_key))),
        ),
        (
            "keys of small order",
            "BadRosterError",
            (),
            (f"keys {A}", with_keys(keys_of(A, mask_key=bytes(32)))),
        ),
        ("keys of an unapproved site", "UnapprovedSiteError", (), (f"keys {X}", with_keys(keys_of(X)))),
        ("keys of two sites, where three are needed", "TooFewSurvivorsError", TO_OFFER[:2], "offer roster"),
        *((name, error, TO_SEALED, (f"sealed shares {A}", message)) for name, error, message in bad_sealed),
        (
            "sealed shares of two sites, where three are needed",
            "TooFewSurvivorsError",
            (*TO_SEALED, *each("sealed shares", (A, B))),
            "finish setup",
        ),
    ]


def sum_cases() -> list[Case]:
    words = masked_words()
    masked = GOOD.masked(A, words[A])
    other_task = replace(GOOD.task(A), adapter=initial_adapter(SPEC, 1))
    other_transcript = GOOD.masked(A, words[A], GOOD.transcript(task=other_task))
    shares, signature = GOOD.unmask_shares(A), GOOD.list_signature(A)
    other_list = ((A, B, D), (C,))
    seeds, mask_keys = dict(shares.seed_shares), dict(shares.mask_key_shares)
    bad_masked = [
        ("a masked input for another transcript", "TranscriptMismatchError", other_transcript),
        ("a masked input that is too short", "BadMessageError", GOOD.masked(A, words[A][:-1])),
        ("a masked input that is too long", "BadMessageError", GOOD.masked(A, [*words[A], 0])),
        ("a masked input of another site", "BadMessageError", GOOD.masked(B, words[B])),
        ("a masked input of another sum", "BadMessageError", replace(masked, sum_id=6)),
        (
            "a masked input with a bit changed",
            "BadSignatureError",
            replace(masked, words=np.array([words[A][0] ^ 1, *words[A][1:]], dtype=np.uint32)),
        ),
        ("a masked input that was not signed", "BadSignatureError", replace(masked, signature=bytes(64))),
    ]
    bad_signature = [
        ("a signature with a bit changed", "BadSignatureError", flipped(signature.signature)),
        ("a signature for another list", "BadSignatureError", GOOD.list_signature(A, *other_list).signature),
    ]
    bad_shares = [
        ("shares for another list", "BadMessageError", GOOD.unmask_shares(A, *other_list)),
        ("shares of another site", "BadMessageError", GOOD.unmask_shares(B)),
        ("shares that were not signed", "BadSignatureError", replace(shares, signature=bytes(64))),
        (
            "a seed's share changed after it was signed",
            "BadSignatureError",
            replace(shares, seed_shares={**seeds, B: flipped(seeds[B], 65)}),
        ),
        (
            "a mask key's share changed after it was signed",
            "BadSignatureError",
            replace(shares, mask_key_shares={D: flipped(mask_keys[D], 65)}),
        ),
    ]
    nearly = (*TO_SHARES, *each("unmask shares", (A, B)))
    return [
        *((name, error, TO_MASKED, (f"masked input {A}", message)) for name, error, message in bad_masked),
        (
            "a masked input of a site that sealed no shares",
            "BadMessageError",
            (*TO_SEALED, *each("sealed shares", SURVIVORS), "finish setup"),
            (f"masked input {D}", GOOD.masked(D, words[D])),
        ),
        ("a masked input twice", "BadMessageError", TO_CLOSE, f"masked input {A}"),
        (
            "masked inputs of two sites, where three are needed",
            "TooFewSurvivorsError",
            (*TO_MASKED, *each("masked input", (A, B))),
            "close list",
        ),
        ("a masked input after the list was closed", "BadMessageError", TO_SIGNATURES, f"masked input {D}"),
        *(
            (name, error, TO_SIGNATURES, (f"list signature {A}", replace(signature, signature=value)))
            for name, error, value in bad_signature
        ),
        (
            "a list's signature of another site",
            "BadMessageError",
            TO_SIGNATURES,
            (f"list signature {A}", GOOD.list_signature(B)),
        ),
        (
            "a list's signature of a site that is not in the sum",
            "BadMessageError",
            TO_SIGNATURES,
            (f"list signature {E}", GOOD.list_signature(E)),
        ),
        (
            "two signatures of a list, where three are needed",
            "TooFewSurvivorsError",
            (*TO_SIGNATURES, *each("list signature", (A, B))),
            "ask unmask",
        ),
        *((name, error, TO_SHARES, (f"unmask shares {A}", message)) for name, error, message in bad_shares),
        ("shares of two sites, where three are needed", "TooFewSurvivorsError", nearly, "finish sum"),
        (
            "a wrong share of a survivor's seed",
            "WrongSecretError",
            (*nearly, (f"unmask shares {C}", GOOD.unmask_shares(C, wrong=A))),
            "finish sum",
        ),
        (
            "a wrong share of a dropout's mask key",
            "WrongSecretError",
            (*nearly, (f"unmask shares {C}", GOOD.unmask_shares(C, wrong=D))),
            "finish sum",
        ),
    ]


def refusals() -> dict[str, Any]:
    """One case for each thing that is refused."""
    return {
        "about": (
            "Each case begins anew. Its last step is refused with the error named, all before it are taken. "
            "A step without a message is good_round.json's own. Made by generate.py."
        ),
        "cases": [*site_cases(), *coordinator_cases()],
    }


def files() -> dict[str, str]:
    """The text of each file by its name."""
    contents = {"good_round.json": good_round(), "refusals.json": refusals()}
    return {name: json.dumps(content, indent=1) + "\n" for name, content in contents.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
