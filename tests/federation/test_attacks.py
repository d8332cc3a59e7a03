"""Attacks by a coordinator that knows the protocol; those on Flower's SecAgg+ are among them.

``test_attacks_on_flower.py`` shows the first two succeed there. Here each fails, and where a check is what
stops it, the same attack is seen to succeed with that check taken out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats

from client.session import SiteSession
from client.session_store import MemoryStore
from common.errors import BadSurvivorListError, FederationError, TooFewSurvivorsError
from common.ids import RoundId, SiteId, site_id
from common.messages import (
    KeysRequest,
    ListRequest,
    MaskedInput,
    RosterOffer,
    TrainTask,
    UnmaskRequest,
    UnmaskShares,
    sum_topic,
)
from common.plan import RunPlan
from common.secagg.keys import Roster, SumContext, seed_hash
from common.secagg.masks import add_masks, unmask_sum
from common.secagg.sharing import recover
from common.secagg.survivors import SurvivorList
from server.rounds import run_round
from server.session import KeySetup, Setup
from simulations.link import MemoryLink
from tests.fakes import (
    RUN,
    SITES,
    TRACK,
    fake_identities,
    fake_sites,
    fake_works,
    tiny_adapter,
    tiny_plan,
    tiny_state,
)

TEN = tuple(site_id(f"site-{letter}") for letter in "abcdefghij")


@dataclass
class LyingCoordinator:
    """Plays the first two stages by the book, then asks what he likes."""

    plan: RunPlan
    sessions: Mapping[SiteId, SiteSession]
    setup: Setup

    @classmethod
    def begin(cls, plan: RunPlan) -> LyingCoordinator:
        sessions = fake_sites(plan)
        context = SumContext(run_id=RUN, track=TRACK, sum_id=1, plan_digest=plan.digest())
        public = {site: identity.public() for site, identity in fake_identities(plan).items()}
        keys = KeySetup(context, plan=plan, identities=public, round_id=RoundId(1))
        for site, session in sessions.items():
            keys.add_keys(site, session(keys.request()))
        offer = keys.offer()
        for site, session in sessions.items():
            keys.add_sealed(site, session(offer))
        return cls(plan, sessions, keys.finish())

    @property
    def roster(self) -> Roster:
        return self.setup.roster

    def task(self, site: SiteId, seed: int = 0) -> TrainTask:
        return TrainTask(
            run_id=RUN,
            track=TRACK,
            plan_digest=self.plan.digest(),
            round_id=RoundId(1),
            adapter=tiny_adapter(seed=seed),
            sum_id=1,
            members=self.setup.members,
            envelopes=self.setup.envelopes_for(site),
            bin_accuracy=None,
        )

    def upload(self, site: SiteId, seed: int = 0) -> MaskedInput:
        reply = self.sessions[site](self.task(site, seed))
        assert isinstance(reply, MaskedInput)
        return reply

    def unmask(
        self, site: SiteId, dropouts: tuple[SiteId, ...], *, also: tuple[SiteId, ...] = ()
    ) -> UnmaskShares:
        survivors = tuple(s for s in self.setup.members if s not in dropouts or s in also)
        reply = self.sessions[site](
            UnmaskRequest(
                run_id=RUN, track=TRACK, sum_id=1, survivors=survivors, dropouts=dropouts, signatures={}
            )
        )
        assert isinstance(reply, UnmaskShares)
        return reply

    def place(self, site: SiteId) -> int:
        return self.roster.position(site)

    def seed_of(self, site: SiteId, given: Mapping[SiteId, UnmaskShares]) -> bytes | None:
        shares = {self.place(s): g.seed_shares[site] for s, g in given.items() if site in g.seed_shares}
        entry, context = self.roster.entry(site), self.roster.context
        found = recover(
            shares, self.roster.threshold, lambda made: seed_hash(context, site, made) == entry.seed_hash
        )
        return found[0] if found else None


def test_a_site_named_as_survivor_and_dropout_at_once_gets_no_answer() -> None:
    """The request that reads any hospital under Flower's SecAgg+."""
    liar = LyingCoordinator.begin(tiny_plan())
    for site in SITES:
        liar.upload(site)
    for site in SITES:
        with pytest.raises(BadSurvivorListError, match="site-b both as survivor and dropout"):
            liar.unmask(site, (SITES[1],), also=(SITES[1],))


def test_no_mask_can_be_searched() -> None:
    """Flower folds a seed to 32 bits; here every bit of 256 changes the whole mask."""
    key = bytes(range(32))
    words = np.zeros(64, dtype=np.uint32)
    add_masks(words, plus=[key])
    for bit in range(256):
        other = (int.from_bytes(key, "big") ^ (1 << bit)).to_bytes(32, "big")
        mask = np.zeros(64, dtype=np.uint32)
        add_masks(mask, plus=[other])
        assert np.count_nonzero(mask == words) <= 1
    # The same exclusive-or of its words, which is all that Flower's generator sees of a seed.
    folded_alike = np.frombuffer(key, dtype=">u4")[::-1].tobytes()
    assert folded_alike != key
    mask = np.zeros(64, dtype=np.uint32)
    add_masks(mask, plus=[folded_alike])
    assert np.count_nonzero(mask == words) <= 1


def exposed_by_another_adapter(plan: RunPlan) -> np.ndarray:
    """What a coordinator has who gave one hospital another adapter, and takes every mask off that he can."""
    liar = LyingCoordinator.begin(plan)
    victim = SITES[1]
    uploads = {site: liar.upload(site, seed=9 if site == victim else 0) for site in SITES}
    given = {site: liar.unmask(site, ()) for site in SITES}
    seeds = {site: liar.seed_of(site, given) for site in SITES}
    total = np.zeros_like(uploads[victim].words)
    for masked in uploads.values():
        total = total + masked.words
    for site, seed in seeds.items():
        assert seed is not None
        unmask_sum(
            total,
            roster=liar.roster,
            transcript=uploads[site].transcript,
            seeds={site: seed},
            lost_mask_keys={},
        )
    return total


def plain_total(plan: RunPlan) -> np.ndarray:
    works = fake_works(plan)
    liar = LyingCoordinator.begin(plan)
    total = np.zeros_like(works[SITES[0]].words(liar.task(SITES[0])))
    for site in SITES:
        total = total + works[site].words(liar.task(site, seed=9 if site == SITES[1] else 0))
    return total


def test_another_adapter_for_one_site_leaves_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model inconsistency (Pasquini et al. 2022): masks of sites that saw different models do not cancel."""
    plan = tiny_plan()
    assert not np.isin(exposed_by_another_adapter(plan), plain_total(plan)).any()
    monkeypatch.setattr("client.session.sum_topic", lambda task, adapter_id: bytes(32))
    assert (exposed_by_another_adapter(plan) == plain_total(plan)).all()


def test_an_honest_sum_refuses_the_site_that_saw_another_adapter() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)

    def deceived(message: object) -> object:
        parts = getattr(message, "parts", (message,))
        if isinstance(parts[0], TrainTask):
            lied = replace(parts[0], adapter=tiny_adapter(seed=9))
            return sites[SITES[1]](replace(message, parts=(lied, *parts[1:])))
        return sites[SITES[1]](message)

    after = run_round(state, MemoryLink({**sites, SITES[1]: deceived}))
    report = after.history[-1]
    assert report.survivors == (SITES[0], SITES[2], SITES[3])
    assert "belongs to another transcript" in report.dropouts[SITES[1]]


def smallest_sum_by_split_lists(plan: RunPlan) -> int:
    """Each of ten sites is told of three other dropouts; how few vectors can then be summed."""
    liar = LyingCoordinator.begin(plan)
    for site in TEN:
        liar.upload(site)
    # Four sites are each named lost to at least seven, and no site hears of more than three.
    lost = {site: tuple(sorted({TEN[(i + j) % 4] for j in range(3)})) for i, site in enumerate(TEN)}
    named = {victim: sum(victim in some for some in lost.values()) for victim in TEN[:4]}
    assert min(named.values()) >= liar.roster.threshold
    for site in TEN:
        liar.unmask(site, lost[site])
    return len(TEN) - len(named)


def test_split_lists_cannot_make_a_sum_smaller_than_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(sites=TEN)
    with pytest.raises(BadSurvivorListError, match="0 signatures, 7 needed"):
        smallest_sum_by_split_lists(plan)
    monkeypatch.setattr(SurvivorList, "check_signatures", lambda *args: None)
    assert smallest_sum_by_split_lists(plan) < 7


def test_no_site_signs_two_lists() -> None:
    liar = LyingCoordinator.begin(tiny_plan())
    for site in SITES:
        liar.upload(site)
    first = ListRequest(run_id=RUN, track=TRACK, sum_id=1, survivors=SITES[1:], dropouts=SITES[:1])
    second = replace(first, survivors=SITES[:3], dropouts=SITES[3:])
    for site in SITES:
        liar.sessions[site](first)
        with pytest.raises(FederationError, match="was answered already, to another request"):
            liar.sessions[site](second)


def test_a_vector_that_comes_late_stays_masked() -> None:
    """The coordinator calls a site lost that he heard from: its pairwise masks go, its own mask stays."""
    plan = tiny_plan()
    liar = LyingCoordinator.begin(plan)
    late = SITES[3]
    uploads = {site: liar.upload(site) for site in SITES}
    request = ListRequest(run_id=RUN, track=TRACK, sum_id=1, survivors=SITES[:3], dropouts=SITES[3:])
    signatures = {site: liar.sessions[site](request).signature for site in SITES}
    unmask = UnmaskRequest(
        run_id=RUN, track=TRACK, sum_id=1, survivors=SITES[:3], dropouts=SITES[3:], signatures=signatures
    )
    given = {site: liar.sessions[site](unmask) for site in SITES}
    assert liar.seed_of(late, given) is None
    assert all(late not in shares.seed_shares for shares in given.values())
    clear = fake_works(plan)[late].words(liar.task(late))
    assert not (uploads[late].words == clear).any()


def test_a_masked_vector_looks_uniform_and_the_test_would_notice() -> None:
    adapter = tiny_adapter()
    words = []
    for _ in range(40):
        liar = LyingCoordinator.begin(tiny_plan(adapter))
        words.append(liar.upload(SITES[0]).words / 2**32)
    flat = np.concatenate(words)
    assert scipy.stats.kstest(flat, "uniform").pvalue > 1e-6
    clear = fake_works(tiny_plan())[SITES[0]].words(liar.task(SITES[0])) / 2**32
    assert scipy.stats.kstest(np.tile(clear, 40), "uniform").pvalue < 1e-6


def test_a_coordinator_that_renames_the_run_gets_fresh_keys() -> None:
    liar = LyingCoordinator.begin(tiny_plan())
    first = liar.sessions[SITES[0]](
        KeysRequest(run_id=RUN, track=TRACK, plan_digest=liar.plan.digest(), sum_id=2)
    )
    again = liar.sessions[SITES[0]](
        KeysRequest(run_id="run-2", track=TRACK, plan_digest=liar.plan.digest(), sum_id=2)
    )
    assert first.keys.mask_key != again.keys.mask_key
    assert first.keys.seed_hash != again.keys.seed_hash


def test_a_roster_with_an_unapproved_hospital_is_refused() -> None:
    """A coordinator cannot mint hospitals: here site-d's administrator never approved site-c."""
    plan = tiny_plan()
    identities = fake_identities(plan)
    public = {site: identity.public() for site, identity in identities.items()}
    session = SiteSession(
        plan=plan,
        track=TRACK,
        identity=identities[SITES[3]],
        approved={site: some for site, some in public.items() if site != SITES[2]},
        store=MemoryStore(),
        work=fake_works(plan)[SITES[3]],
    )
    others = fake_sites(plan)
    request = KeysRequest(run_id=RUN, track=TRACK, plan_digest=plan.digest(), sum_id=1)
    entries = [others[site](request).keys for site in SITES[:3]] + [session(request).keys]
    with pytest.raises(FederationError, match="site-c is not approved here"):
        session(
            RosterOffer(run_id=RUN, track=TRACK, plan_digest=plan.digest(), sum_id=1, roster=tuple(entries))
        )
    # It takes part with the others as soon as the stranger is left out.
    rest = tuple(entry for entry in entries if entry.site_id != SITES[2])
    assert session(RosterOffer(run_id=RUN, track=TRACK, plan_digest=plan.digest(), sum_id=1, roster=rest))


def test_too_few_survivors_fail_the_round_and_the_next_one_starts_clean() -> None:
    state = tiny_state()
    sites = fake_sites(state.plan)
    up = dict.fromkeys(SITES, True)

    def flaky(site: SiteId) -> object:
        def handle(message: object) -> object:
            if not up[site]:
                raise FederationError("the line is down")
            return sites[site](message)

        return handle

    link = MemoryLink({site: flaky(site) for site in SITES})
    state = run_round(state, link)
    up[SITES[0]] = up[SITES[1]] = False
    with pytest.raises(TooFewSurvivorsError, match="Round 2: 2 sites survived, 3 needed"):
        run_round(state, link)
    up[SITES[0]] = up[SITES[1]] = True
    assert run_round(state.after_failure(), link).history[-1].survivors == SITES


def test_topics_differ_in_every_field() -> None:
    liar = LyingCoordinator.begin(tiny_plan())
    task = liar.task(SITES[0])
    topics = {sum_topic(task, "0" * 64), sum_topic(task, "1" * 64)}
    for change in (
        {"run_id": "run-9"},
        {"track": "tissue_type"},
        {"plan_digest": "a" * 64},
        {"round_id": RoundId(2)},
    ):
        topics.add(sum_topic(replace(task, **change), "0" * 64))
    assert len(topics) == 6
