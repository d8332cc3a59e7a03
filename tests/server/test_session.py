"""The coordinator's side of a secure sum, answer by answer, against the sites' real sessions."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import pytest

from client.session import SiteSession
from common.canonical import labeled_digest
from common.errors import (
    BadMessageError,
    BadRosterError,
    BadSignatureError,
    FederationError,
    TooFewSurvivorsError,
    TranscriptMismatchError,
    UnapprovedSiteError,
    WrongSecretError,
)
from common.evaluation_counts import WORD_COUNT
from common.fixedpoint import Words, add_words
from common.ids import RoundId, SiteId
from common.messages import EvaluateTask, Message, SumTask, TrainTask, UnmaskShares, refusal, sum_topic
from common.pki import Identity
from common.plan import RunPlan
from common.secagg.keys import KEYS_LABEL, Roster, SumContext, SumSecrets, sign_keys
from common.secagg.statements import (
    masked_input_statement,
    sealed_shares_statement,
    survivor_list_statement,
    unmask_shares_statement,
)
from common.train_words import TrainWords
from server.session import KeySetup, SecureSum, Setup
from tests.fakes import (
    RUN,
    SITES,
    TRACK,
    FakeWork,
    fake_identities,
    fake_sites,
    fake_works,
    tiny_adapter,
    tiny_plan,
)
from tests.messages import example, train_task

A, B, C, D = SITES
LENGTH = TrainWords.length(14)


@dataclass
class Play:
    """One sum by the book, as far as it is asked for."""

    plan: RunPlan = field(default_factory=tiny_plan)
    works: dict[SiteId, FakeWork] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.works = self.works or fake_works(self.plan)
        self.sessions: dict[SiteId, SiteSession] = fake_sites(self.plan, self.works)
        self.own = fake_identities(self.plan)
        self.identities = {site: identity.public() for site, identity in self.own.items()}
        self.context = SumContext(run_id=RUN, track=TRACK, sum_id=1, plan_digest=self.plan.digest())
        self.keys = KeySetup(self.context, plan=self.plan, identities=self.identities, round_id=RoundId(1))

    def offered(self, sites: Iterable[SiteId] = SITES) -> KeySetup:
        """The key setup with the keys of these sites in its roster."""
        for site in sites:
            self.keys.add_keys(site, self.sessions[site](self.keys.request()))
        self.offer = self.keys.offer()
        return self.keys

    def agreed(self, sites: Iterable[SiteId] = SITES, members: Iterable[SiteId] | None = None) -> Setup:
        """The setup with a roster of these sites, all or some of which are members."""
        self.offered(sites)
        for site in members or sites:
            self.keys.add_sealed(site, self.sessions[site](self.offer))
        return self.keys.finish()

    def begun(
        self, task: SumTask | None = None, length: int = LENGTH, members: Iterable[SiteId] = SITES
    ) -> SecureSum:
        """The sum, before any input came."""
        self.setup = self.agreed(members=members)
        values = {"plan_digest": self.plan.digest(), "members": self.setup.members}
        self.task = replace(task or train_task(), **values)
        self.sum = SecureSum(
            self.setup,
            self.task,
            plan=self.plan,
            identities=self.identities,
            adapter_id=self.task.adapter.digest(),
            length=length,
        )
        return self.sum

    def masked(self, site: SiteId) -> Any:
        """The site's answer to the task."""
        return self.sessions[site](replace(self.task, envelopes=self.setup.envelopes_for(site)))

    def added(self, sites: Iterable[SiteId] = SITES) -> SecureSum:
        """The sum with the inputs of these sites, its list closed."""
        self.begun()
        for site in sites:
            self.sum.add(site, self.masked(site))
        self.sum.close()
        return self.sum

    def signed(self, survivors: Iterable[SiteId], signers: Iterable[SiteId]) -> SecureSum:
        """The sum of some survivors, its list signed by some members, all of whom were asked."""
        self.added(survivors)
        for site in SITES:
            if site not in survivors:
                # Its answer came too late: it has masked, and can help.
                self.masked(site)
        for site in signers:
            self.sum.add_list_signature(site, self.sessions[site](self.sum.list_request()))
        return self.sum

    def shares(self, site: SiteId) -> Any:
        """The site's shares."""
        return self.sessions[site](self.sum.unmask_request())

    def plain_sum(self, sites: Iterable[SiteId] = SITES) -> Words:
        """What the sum must come to."""
        words = [self.works[site].words(self.task) for site in sites]
        return reduce(add_words, words, np.zeros(len(words[0]), dtype=np.uint32))

    @property
    def transcript(self) -> bytes:
        """What all members' masks are bound to."""
        topic = sum_topic(self.task, self.task.adapter.digest())
        return self.setup.roster.transcript(self.setup.members, topic)


def refused(kind: type[FederationError], match: str, take: Callable[..., None], *args: Any) -> None:
    with pytest.raises(kind, match=match):
        take(*args)


# What any stage refuses: (changes of the right answer, or another answer), and the reason.
FOREIGN: dict[str, tuple[Callable[[Any], Message], str]] = {
    "a refusal": (lambda reply: refusal(RUN, A, "no patients"), "refused: no patients"),
    "another kind": (lambda reply: example(TrainTask), "expected {kind}, got TrainTask"),
    "another run": (lambda reply: replace(reply, run_id="run-2"), "run_id: expected run-1, got run-2"),
    "another track": (
        lambda reply: replace(reply, track="tissue_type"),
        "track: expected rare_disease, got tissue_type",
    ),
    "another sum": (lambda reply: replace(reply, sum_id=7), "sum_id: expected 1, got 7"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("stage", ["keys", "sealed", "input", "list", "shares"])
def test_an_answer_to_something_else_is_refused_at_every_stage(stage: str, name: str) -> None:
    play = Play()
    if stage == "keys":
        take, good = play.keys.add_keys, play.sessions[A](play.keys.request())
    elif stage == "sealed":
        take = play.offered().add_sealed
        good = play.sessions[A](play.offer)
    elif stage == "input":
        take = play.begun().add
        good = play.masked(A)
    elif stage == "list":
        take = play.added((A, B, C)).add_list_signature
        good = play.sessions[A](play.sum.list_request())
    else:
        take = play.added().add_shares
        good = play.shares(A)
    change, reason = FOREIGN[name]
    refused(BadMessageError, reason.format(kind=type(good).__name__), take, A, change(good))
    take(A, good)


def test_a_request_for_keys_names_the_sum() -> None:
    play = Play()
    request = play.keys.request()
    assert (request.run_id, request.track, request.sum_id) == (RUN, TRACK, play.keys.sum_id)
    assert request.plan_digest == play.plan.digest()


def test_keys_of_another_site_are_refused() -> None:
    play = Play()
    reply = play.sessions[A](play.keys.request())
    refused(BadMessageError, "the keys of site-b, got those of site-a", play.keys.add_keys, B, reply)


def test_keys_that_the_site_did_not_sign_for_this_sum_are_refused() -> None:
    play = Play()
    reply = play.sessions[A](play.keys.request())
    own = SumSecrets.generate()
    forged = sign_keys(play.context, own, Identity.generate(A))
    for_another_sum = sign_keys(replace(play.context, sum_id=2), own, play.own[A])
    swapped = replace(reply.keys, mask_key=reply.keys.envelope_key)
    for keys in (forged, for_another_sum, swapped):
        refused(BadSignatureError, "keys of site-a", play.keys.add_keys, A, replace(reply, keys=keys))


def test_keys_of_a_site_that_nobody_approved_are_refused() -> None:
    play, stranger = Play(), SiteId("stranger")
    keys = sign_keys(play.context, SumSecrets.generate(), Identity.generate(stranger))
    reply = replace(play.sessions[A](play.keys.request()), keys=keys)
    refused(UnapprovedSiteError, "stranger is not approved", play.keys.add_keys, stranger, reply)


def test_a_site_whose_keys_are_refused_costs_the_others_nothing() -> None:
    play = Play()
    reply = play.sessions[A](play.keys.request())
    refused(BadMessageError, "sum_id", play.keys.add_keys, A, replace(reply, sum_id=2))
    assert play.agreed((B, C, D)).members == (B, C, D)


def signed_by(play: Play, site: SiteId, **changes: bytes) -> Any:
    """A site's keys with some that it took from elsewhere, well signed."""
    changed = replace(sign_keys(play.context, SumSecrets.generate(), play.own[site]), **changes)
    statement = labeled_digest(KEYS_LABEL, play.context.digest(), *changed.parts())
    reply = play.sessions[site](play.keys.request())
    return replace(reply, keys=replace(changed, signature=play.own[site].sign(statement)))


def test_a_key_that_another_site_gave_is_refused_and_costs_the_others_nothing() -> None:
    play = Play()
    play.keys.add_keys(A, play.sessions[A](play.keys.request()))
    theirs = play.sessions[A](play.keys.request()).keys
    for changes in (
        {"mask_key": theirs.mask_key},
        {"envelope_key": theirs.envelope_key},
        {"mask_key": theirs.envelope_key},
        {"mask_key": b"\x09" * 32, "envelope_key": b"\x09" * 32},
    ):
        reply = signed_by(play, B, **changes)
        refused(
            BadMessageError, "expected keys of site-b that nobody has given", play.keys.add_keys, B, reply
        )
    # A site may send its own once more.
    assert play.agreed((A, C, D)).members == (A, C, D)


# The u coordinates 0, 1 and p - 1, and one of order 8 (RFC 7748, section 6.1; Bernstein's list).
SMALL_ORDER = (
    bytes(32),
    b"\x01" + bytes(31),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
)


@pytest.mark.parametrize("name", ["mask_key", "envelope_key"])
@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_key_of_small_order_is_refused_and_costs_the_others_nothing(name: str, key: bytes) -> None:
    play = Play()
    reply = signed_by(play, B, **{name: key})
    refused(BadRosterError, "a key of site-b is of small order", play.keys.add_keys, B, reply)
    assert play.agreed((A, C, D)).members == (A, C, D)


def test_a_roster_is_in_the_order_of_the_names_and_needs_enough_sites() -> None:
    play = Play()
    for site in (D, B):
        play.keys.add_keys(site, play.sessions[site](play.keys.request()))
    refused(TooFewSurvivorsError, "Round 1: 2 sites survived, 3 needed", play.keys.offer)
    play.keys.add_keys(A, play.sessions[A](play.keys.request()))
    assert [entry.site_id for entry in play.keys.offer().roster] == [A, B, D]
    assert play.keys.offered_to() == (A, B, D)


def test_a_roster_needs_three_sites_and_as_many_as_the_plan_says() -> None:
    for minimum, least in ((2, 3), (4, 4)):
        play = Play(tiny_plan(minimum_survivors=minimum))
        few = f"{least - 1} sites survived, {least} needed"
        refused(TooFewSurvivorsError, few, play.offered, SITES[: least - 1])


def test_envelopes_before_a_roster_is_offered_are_the_callers_mistake() -> None:
    play = Play()
    with pytest.raises(ValueError, match="Expected a roster to have been offered"):
        play.keys.finish()
    with pytest.raises(ValueError, match="Expected a roster to have been offered"):
        play.keys.offered_to()


def sealed_by(play: Play, site: SiteId, envelopes: Mapping[SiteId, bytes]) -> Any:
    """A site's word, well signed, that it sealed these."""
    roster = Roster(context=play.context, entries=play.offer.roster)
    statement = sealed_shares_statement(roster, site, envelopes)
    reply = play.sessions[A](play.offer)
    return replace(reply, site_id=site, envelopes=envelopes, signature=play.own[site].sign(statement))


def test_envelopes_are_one_for_each_other_site_of_the_roster() -> None:
    play = Play()
    play.offered((A, B, C))
    good = play.sessions[A](play.offer).envelopes
    for envelopes in ({}, {B: good[B]}, {**good, D: good[B]}, {**good, A: good[B]}):
        refused(
            BadMessageError,
            "envelopes of site-a for all others in the roster",
            play.keys.add_sealed,
            A,
            sealed_by(play, A, envelopes),
        )
    play.keys.add_sealed(A, sealed_by(play, A, good))


def test_envelopes_of_another_site_or_of_none_of_the_roster_are_refused() -> None:
    play = Play()
    play.offered((A, B, C))
    reply = play.sessions[A](play.offer)
    refused(BadMessageError, "expected envelopes of site-b", play.keys.add_sealed, B, reply)
    late = sealed_by(play, D, dict.fromkeys((A, B, C), reply.envelopes[B]))
    refused(BadMessageError, "expected envelopes of site-d", play.keys.add_sealed, D, late)


def test_envelopes_that_the_site_did_not_sign_are_refused() -> None:
    play = Play()
    play.offered()
    reply = play.sessions[A](play.offer)
    swapped = {**reply.envelopes, B: reply.envelopes[C], C: reply.envelopes[B]}
    for damaged in (replace(reply, envelopes=swapped), replace(reply, signature=bytes(64))):
        refused(BadSignatureError, "sealed shares of site-a", play.keys.add_sealed, A, damaged)


def test_only_sites_that_sealed_are_members() -> None:
    play = Play()
    play.offered()
    for site in (A, B, D):
        play.keys.add_sealed(site, play.sessions[site](play.offer))
    setup = play.keys.finish()
    assert setup.roster.sites == SITES
    assert setup.members == (A, B, D)
    assert set(setup.envelopes_for(B)) == {A, D}
    assert setup.envelopes_for(B)[A] == play.sessions[A](play.offer).envelopes[B]


@pytest.mark.parametrize(("plan", "least"), [({}, 3), ({"lost_before_upload": "abort"}, 4)])
def test_too_few_that_sealed_are_refused(plan: dict[str, Any], least: int) -> None:
    play = Play(tiny_plan(**plan))
    play.offered()
    for site in SITES[: least - 1]:
        play.keys.add_sealed(site, play.sessions[site](play.offer))
    refused(TooFewSurvivorsError, f"{least - 1} sites survived, {least} needed", play.keys.finish)
    play.keys.add_sealed(SITES[least - 1], play.sessions[SITES[least - 1]](play.offer))
    assert play.keys.finish().members == SITES[:least]


def test_the_sum_is_the_plain_sum_of_the_survivors_vectors() -> None:
    play = Play()
    play.added()
    assert play.sum.unmask_request().signatures == {}
    for site in SITES:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


@pytest.mark.parametrize("lost", SITES)
def test_the_sum_without_a_lost_site_is_that_of_the_others(lost: SiteId) -> None:
    play = Play()
    survivors = tuple(site for site in SITES if site != lost)
    play.signed(survivors, survivors)
    for site in survivors:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum(survivors))


def test_a_lost_site_may_help_to_unmask_the_others() -> None:
    play = Play()
    play.signed((A, B, C), (A, B, D))
    for site in (B, C, D):
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum((A, B, C)))


@pytest.mark.parametrize("bits", [16, 20, 31])
def test_a_sum_of_fewer_bits_is_the_plain_sum_in_so_many_bits(bits: int) -> None:
    play = Play(tiny_plan(word_bits=bits))
    play.added()
    for site in SITES:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum() & np.uint32(2**bits - 1))


def test_counts_have_all_bits_whatever_the_plan_says() -> None:
    play = Play(tiny_plan(word_bits=16))
    play.begun(example(EvaluateTask, sum_id=1), WORD_COUNT)
    for site in SITES:
        masked = play.masked(site)
        assert masked.words.size == WORD_COUNT
        play.sum.add(site, masked)
    play.sum.close()
    for site in SITES:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


def resigned(play: Play, masked: Any, **changes: Any) -> Any:
    """The site's input, changed by the site itself: its signature fits."""
    made = replace(masked, **changes)
    statement = masked_input_statement(play.context, made.transcript, made.site_id, made.words)
    return replace(made, signature=play.own[masked.site_id].sign(statement))


INPUTS: dict[str, tuple[Callable[[Play, Any], Any], type[FederationError], str]] = {
    "another site's": (
        lambda play, masked: play.masked(B),
        BadMessageError,
        "expected an answer of site-a, got one of site-b",
    ),
    "another transcript": (
        lambda play, masked: resigned(play, masked, transcript=bytes(32)),
        TranscriptMismatchError,
        "site-a: its masked input belongs to another transcript",
    ),
    "too few words": (
        lambda play, masked: resigned(play, masked, words=masked.words[:-1]),
        BadMessageError,
        "expected 19 words, got 18",
    ),
    "too many words": (
        lambda play, masked: resigned(play, masked, words=np.append(masked.words, masked.words)),
        BadMessageError,
        "expected 19 words, got 38",
    ),
    "other words than were signed": (
        lambda play, masked: replace(masked, words=masked.words + np.uint32(1)),
        BadSignatureError,
        "masked input of site-a",
    ),
    "no signature": (
        lambda play, masked: replace(masked, signature=bytes(64)),
        BadSignatureError,
        "masked input of site-a",
    ),
    "another's signature": (
        lambda play, masked: replace(masked, signature=play.masked(B).signature),
        BadSignatureError,
        "masked input of site-a",
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_refused_input_leaves_the_sum_as_it_was(name: str) -> None:
    play = Play()
    play.begun()
    change, error, reason = INPUTS[name]
    refused(error, reason, play.sum.add, A, change(play, play.masked(A)))
    for site in SITES:
        play.sum.add(site, play.masked(site))
    assert play.sum.close().survivors == SITES
    for site in SITES:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


@pytest.mark.parametrize("changes", [{"round_id": 2}, {"adapter": tiny_adapter(seed=1)}])
def test_an_input_for_another_round_or_adapter_is_of_another_transcript(changes: dict[str, Any]) -> None:
    play = Play()
    play.begun()
    told = replace(play.task, envelopes=play.setup.envelopes_for(A), **changes)
    masked = play.sessions[A](told)
    refused(TranscriptMismatchError, "it saw another task", play.sum.add, A, masked)


def test_a_site_is_in_the_sum_once() -> None:
    play = Play()
    play.begun()
    play.sum.add(A, play.masked(A))
    refused(BadMessageError, "site-a comes twice", play.sum.add, A, play.masked(A))
    for site in (B, C, D):
        play.sum.add(site, play.masked(site))
    play.sum.close()
    for site in SITES:
        play.sum.add_shares(site, play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


def test_an_input_after_the_list_is_closed_is_refused() -> None:
    play = Play()
    play.added((A, B, C))
    refused(BadMessageError, "after the list of survivors was closed", play.sum.add, D, play.masked(D))


def test_an_input_of_no_member_is_refused() -> None:
    play = Play()
    play.begun(members=(A, B, C))
    masked = resigned(play, replace(play.masked(A), site_id=D))
    refused(BadMessageError, "site-d is no member of this sum", play.sum.add, D, masked)
    play.sum.add(A, play.masked(A))


def test_memory_is_that_of_the_sum_and_one_input_however_many_are_added() -> None:
    length = 2**18

    class Long(FakeWork):
        def words(self, task: SumTask) -> Words:
            return np.full(length, self.patients, dtype=np.uint32)

    plan = tiny_plan()
    works = {site: Long(site=site, plan=plan, patients=n) for n, site in enumerate(SITES, 1)}
    play = Play(plan, works)
    play.begun(length=length)
    inputs = {site: play.masked(site) for site in SITES}
    tracemalloc.start()
    try:
        for site, masked in inputs.items():
            play.sum.add(site, masked)
            kept, peak = tracemalloc.get_traced_memory()
            # Of words that are not packed not even a copy is made.
            assert peak < 4 * length // 8
            assert kept < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("plan", "least"), [({}, 3), ({"lost_before_upload": "abort"}, 4)])
def test_too_few_inputs_are_refused(plan: dict[str, Any], least: int) -> None:
    play = Play(tiny_plan(**plan))
    play.begun()
    for site in SITES[: least - 1]:
        play.sum.add(site, play.masked(site))
    refused(TooFewSurvivorsError, f"Round 1: {least - 1} sites survived, {least} needed", play.sum.close)
    play.sum.add(SITES[least - 1], play.masked(SITES[least - 1]))
    named = play.sum.close()
    assert (named.survivors, named.dropouts) == (SITES[:least], SITES[least:])


def test_what_comes_after_the_list_needs_a_list() -> None:
    play = Play()
    play.begun()
    for early in (play.sum.list_request, play.sum.unmask_request, play.sum.finish):
        with pytest.raises(ValueError, match="Expected the list of survivors to be closed"):
            early()


def test_every_member_is_asked_for_the_same_list() -> None:
    play = Play()
    play.signed((A, B, D), (A, B, C, D))
    for request in (play.sum.list_request(), play.sum.unmask_request()):
        assert (request.survivors, request.dropouts) == ((A, B, D), (C,))
    assert set(play.sum.unmask_request().signatures) == set(SITES)


def test_a_list_signature_of_another_list_site_or_key_is_refused() -> None:
    play = Play()
    play.added((A, B, C))
    play.masked(D)
    take, reply = play.sum.add_list_signature, play.sessions[A](play.sum.list_request())
    refused(BadMessageError, "expected an answer of site-b, got one of site-a", take, B, reply)
    statement = survivor_list_statement(play.context, play.transcript, (A, B, D), (C,))
    for signature in (play.own[A].sign(statement), play.sessions[B](play.sum.list_request()).signature):
        refused(BadSignatureError, "survivor list of site-a", take, A, replace(reply, signature=signature))
    stranger = replace(reply, site_id="stranger")
    refused(BadMessageError, "stranger is no member of this sum", take, SiteId("stranger"), stranger)


def test_too_few_list_signatures_are_refused() -> None:
    play = Play()
    play.signed((A, B, C), (A, D))
    refused(TooFewSurvivorsError, "Round 1: 2 sites survived, 3 needed", play.sum.unmask_request)
    play.sum.add_list_signature(C, play.sessions[C](play.sum.list_request()))
    assert set(play.sum.unmask_request().signatures) == {A, C, D}


def wrong_shares(play: Play, given: UnmaskShares, **changes: Mapping[SiteId, bytes]) -> UnmaskShares:
    """Shares that the site changed itself: its signature fits."""
    made = replace(given, **changes)
    statement = unmask_shares_statement(
        play.context, play.transcript, made.site_id, made.seed_shares, made.mask_key_shares
    )
    return replace(made, signature=play.own[given.site_id].sign(statement))


def test_shares_for_another_list_are_refused() -> None:
    play = Play()
    play.signed((A, B, C), SITES)
    good = play.shares(A)
    assert (set(good.seed_shares), set(good.mask_key_shares)) == ({A, B, C}, {D})
    share = good.seed_shares[A]
    for changes in (
        {"seed_shares": {A: share, B: share}},
        {"seed_shares": dict.fromkeys(SITES, share)},
        {"mask_key_shares": {}},
        {"mask_key_shares": {C: share}},
        {"seed_shares": {}, "mask_key_shares": {}},
    ):
        damaged = wrong_shares(play, good, **changes)
        refused(BadMessageError, "expected shares for the list that site-a", play.sum.add_shares, A, damaged)


def test_shares_of_another_site_or_without_its_signature_are_refused() -> None:
    play = Play()
    play.added()
    take, good = play.sum.add_shares, play.shares(A)
    refused(BadMessageError, "expected an answer of site-b, got one of site-a", take, B, good)
    swapped = {**good.seed_shares, B: good.seed_shares[C], C: good.seed_shares[B]}
    for damaged in (replace(good, seed_shares=swapped), replace(good, signature=bytes(64))):
        refused(BadSignatureError, "unmask shares of site-a", take, A, damaged)
    stranger = replace(good, site_id="stranger")
    refused(BadMessageError, "stranger is no member of this sum", take, SiteId("stranger"), stranger)


def test_too_few_shares_are_refused() -> None:
    play = Play()
    play.added()
    for site in (A, C):
        play.sum.add_shares(site, play.shares(site))
    refused(TooFewSurvivorsError, "Round 1: 2 sites survived, 3 needed", play.sum.finish)
    play.sum.add_shares(D, play.shares(D))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


def lying(play: Play, site: SiteId) -> UnmaskShares:
    """A site's shares, all of them wrong."""
    given = play.shares(site)
    return wrong_shares(
        play,
        given,
        seed_shares=dict.fromkeys(given.seed_shares, b"\x01" * 66),
        mask_key_shares=dict.fromkeys(given.mask_key_shares, b"\x01" * 66),
    )


@pytest.mark.parametrize("liar", SITES)
def test_spare_shares_make_up_for_one_sites_wrong_ones(liar: SiteId) -> None:
    play = Play()
    play.added()
    for site in SITES:
        play.sum.add_shares(site, lying(play, site) if site == liar else play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum())


def test_spare_shares_of_a_lost_sites_mask_key_make_up_for_wrong_ones() -> None:
    play = Play()
    play.signed((A, B, C), SITES)
    for site in SITES:
        play.sum.add_shares(site, lying(play, site) if site == D else play.shares(site))
    np.testing.assert_array_equal(play.sum.finish(), play.plain_sum((A, B, C)))


def test_wrong_shares_without_a_spare_are_found_out() -> None:
    play = Play()
    play.added()
    for site in (A, B, C):
        play.sum.add_shares(site, lying(play, site) if site == C else play.shares(site))
    refused(WrongSecretError, "Sum 1: the shares of site-a's secret do not give", play.sum.finish)


def test_a_wrong_share_of_one_secret_names_its_owner() -> None:
    play = Play()
    play.signed((A, B, C), SITES)
    for site in (A, B):
        play.sum.add_shares(site, play.shares(site))
    given = play.shares(C)
    play.sum.add_shares(C, wrong_shares(play, given, mask_key_shares={D: bytes(66)}))
    refused(WrongSecretError, "Sum 1: the shares of site-d's secret", play.sum.finish)
