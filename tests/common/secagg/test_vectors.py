"""Our own vectors, against the code that runs: one whole round, and everything that is refused."""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from client.session import Opened, SiteSession
from client.session_records import Record
from client.session_store import MemoryStore
from common import errors
from common.fixedpoint import Words
from common.ids import RoundId, RunId, SiteId
from common.messages import Keys, Message, SumTask, TrainTask, sum_topic
from common.pki import Identity
from common.plan import AggregationPlan, RunPlan
from common.privacy_plan import PrivacyPlan
from common.secagg.envelopes import open_envelope, seal
from common.secagg.keys import (
    Roster,
    SumContext,
    SumSecrets,
    pair_mask_key,
    self_mask_key,
    sign_keys,
)
from common.secagg.reference import plain_join, plain_masked_round, plain_pack, plain_sum
from common.secagg.sharing import join, split
from common.wire import from_bytes, to_bytes
from server.session import KeySetup, SecureSum
from tests.common.secagg.fixed import tells

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "secagg-v1"
GOOD: dict[str, Any] = json.loads((VECTORS / "good_round.json").read_text())
CASES: list[dict[str, Any]] = json.loads((VECTORS / "refusals.json").read_text())["cases"]
SITES: tuple[SiteId, ...] = tuple(GOOD["plan"]["sites"])
LARGEST = 300_000

# What a request at a site is called, and its answer.
ANSWERS = {
    "keys request": "keys",
    "roster offer": "sealed shares",
    "train task": "masked input",
    "list request": "list signature",
    "unmask request": "unmask shares",
}


@dataclass(frozen=True)
class GivenPlan:
    """What a plan is to secure aggregation. Not a plan itself, whose digest changes with its format."""

    sites: tuple[SiteId, ...]
    aggregation: AggregationPlan
    privacy: PrivacyPlan = field(default_factory=PrivacyPlan)
    least_survivors = RunPlan.least_survivors

    def digest(self) -> str:
        return GOOD["plan"]["digest"]

    def track(self, name: str) -> str:
        return name

    def sites_of(self, track: object) -> tuple[SiteId, ...]:
        return self.sites


@dataclass(frozen=True)
class GivenWork:
    """Has its vector from the file."""

    vector: list[int]

    def prepare(self) -> None:
        """Be ready."""

    def words(self, task: SumTask) -> Words:
        return np.array(self.vector, dtype=np.uint32)


PLAN: Any = GivenPlan(
    sites=SITES,
    aggregation=AggregationPlan(
        minimum_survivors=GOOD["plan"]["minimum_survivors"],
        word_bits=GOOD["plan"]["word_bits"],
        site_patients_cap=1,
        timeout_s=1.0,
    ),
)
CONTEXT = SumContext(
    run_id=RunId(GOOD["run_id"]),
    track=GOOD["track"],
    sum_id=GOOD["sum_id"],
    plan_digest=GOOD["plan"]["digest"],
)
IDENTITIES = {
    site: Identity(site_id=SiteId(site), private_key=bytes.fromhex(keys["private_key"]))
    for site, keys in GOOD["identities"].items()
}
APPROVED = {site: IDENTITIES[site].public() for site in GOOD["approved"]}
SECRETS = {
    site: SumSecrets(**{kind: bytes.fromhex(value) for kind, value in kinds.items()})
    for site, kinds in GOOD["secrets"].items()
}
ROSTER = Roster(
    context=CONTEXT, entries=tuple(sign_keys(CONTEXT, SECRETS[site], IDENTITIES[site]) for site in SITES)
)
TRANSCRIPT = bytes.fromhex(GOOD["transcript"])


def good(group: str, what: str, site: SiteId) -> bytes:
    """The bytes of a good message; some requests are the same for all sites."""
    found = GOOD[group][what]
    return bytes.fromhex(found if isinstance(found, str) else found[site])


def polynomial_split(site: SiteId, secret: bytes, *, shares: int, threshold: int) -> tuple[bytes, ...]:
    """The shares of a site's secret at the file's coefficients."""
    (kind,) = (kind for kind, value in GOOD["secrets"][site].items() if value == secret.hex())
    numbers = iter([int(number, 16) for number in GOOD["polynomials"][site][kind]])
    with patch("common.secagg.sharing.secrets.randbelow", lambda below: next(numbers)):
        return split(secret, shares=shares, threshold=threshold)


def nonce_seal(roster: Roster, key: bytes, *, sender: SiteId, receiver: SiteId, shares: Any) -> bytes:
    """The envelope with the file's nonce."""
    nonce = bytes.fromhex(GOOD["nonces"][sender][receiver])
    with patch("common.secagg.envelopes.secrets.token_bytes", lambda size: nonce):
        return seal(roster, key, sender=sender, receiver=receiver, shares=shares)


@contextmanager
def drawn_from_the_file(site: SiteId) -> Iterator[None]:
    """What a site draws at random is what the file says."""
    with (
        patch.object(SumSecrets, "generate", lambda: SECRETS[site]),
        patch(
            "client.session_answers.split", lambda secret, **sizes: polynomial_split(site, secret, **sizes)
        ),
        patch("client.session_answers.seal", nonce_seal),
    ):
        yield


def site_session(site: SiteId, store: MemoryStore | None = None) -> SiteSession:
    return SiteSession(
        plan=PLAN,
        track=GOOD["track"],
        identity=IDENTITIES[site],
        approved=APPROVED,
        store=store or MemoryStore(),
        work=GivenWork(GOOD["vectors"][site]),
    )


def answer(session: SiteSession, site: SiteId, data: bytes) -> bytes:
    with drawn_from_the_file(site):
        return to_bytes(session(from_bytes(data)))


class Coordinator:
    """The real key setup and the real sum, step by step, by the names that the files have for the steps."""

    def __init__(self) -> None:
        self.keys = KeySetup(CONTEXT, plan=PLAN, identities=APPROVED, round_id=RoundId(3))
        self.sum: SecureSum | None = None
        self.total: Words | None = None

    def __call__(self, step: str, message: bytes | None = None) -> Message | None:
        """What a step sends out, if it does."""
        what, _, site = step.rpartition(" ")
        if site in IDENTITIES:
            self.take(what, SiteId(site), from_bytes(message or good("answers", what, SiteId(site))))
            return None
        if step == "offer roster":
            return self.keys.offer()
        if step == "finish setup":
            # The rounds send each member his envelopes; the sum itself needs none.
            task = from_bytes(good("requests", "train task", SITES[0]))
            assert isinstance(task, TrainTask)
            self.setup = self.keys.finish()
            self.sum = SecureSum(
                self.setup,
                task,
                plan=PLAN,
                identities=APPROVED,
                adapter_id=task.adapter.digest(),
                length=len(GOOD["sum"]),
            )
            return None
        assert self.sum is not None
        if step == "close list":
            self.sum.close()
            return self.sum.list_request()
        if step == "ask unmask":
            return self.sum.unmask_request()
        assert step == "finish sum"
        self.total = self.sum.finish()
        return None

    def take(self, what: str, site: SiteId, reply: Message) -> None:
        takers = {"keys": self.keys.add_keys, "sealed shares": self.keys.add_sealed}
        if self.sum is not None:
            takers |= {
                "masked input": self.sum.add,
                "list signature": self.sum.add_list_signature,
                "unmask shares": self.sum.add_shares,
            }
        takers[what](site, reply)


def test_the_files_are_what_the_generator_makes() -> None:
    spec = importlib.util.spec_from_file_location("secagg_vectors", VECTORS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    with patch.dict("sys.modules", {spec.name: generator}):
        spec.loader.exec_module(generator)
        made = generator.files()
    assert set(made) == {"good_round.json", "refusals.json"}
    for name, text in made.items():
        assert (VECTORS / name).read_text() == text, name


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in VECTORS.glob("*.json")) < LARGEST


def test_keys_roster_and_transcript_are_the_vector_s() -> None:
    assert CONTEXT.digest().hex() == GOOD["context_digest"]
    for site, keys in GOOD["keys"].items():
        entry = {name: value.hex() for name, value in vars(ROSTER.entry(site)).items() if name != "site_id"}
        assert entry == keys
    for site, keys in GOOD["identities"].items():
        assert IDENTITIES[site].public().key.hex() == keys["public_key"]
    assert ROSTER.digest().hex() == GOOD["roster_digest"]
    assert ROSTER.threshold == GOOD["threshold"]
    task = from_bytes(good("requests", "train task", SITES[0]))
    assert isinstance(task, TrainTask)
    assert task.adapter.digest() == GOOD["adapter_digest"]
    topic = sum_topic(task, task.adapter.digest())
    assert topic.hex() == GOOD["topic"]
    assert ROSTER.transcript(tuple(GOOD["members"]), topic).hex() == GOOD["transcript"]


@pytest.mark.parametrize("site", SITES)
def test_shares_and_envelopes_are_the_vector_s(site: SiteId) -> None:
    own, shares = SECRETS[site], GOOD["shares"][site]
    for kind in ("self_seed", "mask_key"):
        secret = getattr(own, kind)
        made = polynomial_split(site, secret, shares=len(SITES), threshold=ROSTER.threshold)
        assert [share.hex() for share in made] == [shares[peer][kind] for peer in SITES]
        assert join({ROSTER.position(peer): made[ROSTER.position(peer) - 1] for peer in SITES[1:]}) == secret
        assert plain_join(dict(enumerate(made, 1))) == int.from_bytes(secret, "big")
    for peer, envelope in GOOD["envelopes"][site].items():
        both = tuple(bytes.fromhex(shares[peer][kind]) for kind in ("self_seed", "mask_key"))
        assert nonce_seal(ROSTER, own.envelope_key, sender=site, receiver=peer, shares=both).hex() == envelope
        key = SECRETS[peer].envelope_key
        opened = open_envelope(ROSTER, key, sender=site, receiver=peer, envelope=bytes.fromhex(envelope))
        assert opened == both


def test_mask_keys_are_the_vector_s_from_either_side() -> None:
    for site, key in GOOD["self_mask_keys"].items():
        assert self_mask_key(TRANSCRIPT, site, SECRETS[site].self_seed).hex() == key
    assert len(GOOD["pair_mask_keys"]) == 6
    for pair, key in GOOD["pair_mask_keys"].items():
        low, high = pair.split()
        for own, peer in ((low, high), (high, low)):
            assert pair_mask_key(ROSTER, TRANSCRIPT, own, SECRETS[own].mask_key, peer).hex() == key


def test_the_reference_masks_and_unmasks_the_vector() -> None:
    bits, survivors = GOOD["plan"]["word_bits"], GOOD["survivors"]
    masked, total = plain_masked_round(
        GOOD["vectors"], SECRETS, roster=ROSTER, transcript=TRANSCRIPT, survivors=survivors
    )
    packed = {site: plain_pack(words, bits) for site, words in masked.items()}
    assert packed == GOOD["packed_masked_words"]
    expected = plain_sum(GOOD["vectors"][site] for site in survivors)
    assert [word % 2**bits for word in expected] == GOOD["sum"]
    assert [word % 2**bits for word in total] == GOOD["sum"]
    # A sum that wraps: else the vector would not tell 20 bits from 32.
    assert GOOD["sum"] != expected


@pytest.mark.parametrize("site", SITES)
def test_a_site_gives_the_good_round_s_answers_and_again_when_it_is_asked_again(site: SiteId) -> None:
    session = site_session(site)
    for request, reply in ANSWERS.items():
        data = good("requests", request, site)
        assert to_bytes(from_bytes(data)) == data
        if site in GOOD["survivors"] or reply in ("keys", "sealed shares", "masked input"):
            expected = good("answers", reply, site)
            assert to_bytes(from_bytes(expected)) == expected
            for _ in range(2):
                assert answer(session, site, data) == expected


def test_the_coordinator_gets_the_good_round_s_sum() -> None:
    coordinator = Coordinator()
    sent = {
        "offer roster": "roster offer",
        "close list": "list request",
        "ask unmask": "unmask request",
    }
    steps = [
        *(f"keys {site}" for site in SITES),
        "offer roster",
        *(f"sealed shares {site}" for site in SITES),
        "finish setup",
        *(f"masked input {site}" for site in GOOD["survivors"]),
        "close list",
        *(f"list signature {site}" for site in GOOD["survivors"]),
        "ask unmask",
        *(f"unmask shares {site}" for site in GOOD["survivors"]),
        "finish sum",
    ]
    assert to_bytes(coordinator.keys.request()) == good("requests", "keys request", SITES[0])
    for step in steps:
        message = coordinator(step)
        if step in sent:
            assert message is not None
            assert to_bytes(message) == good("requests", sent[step], SITES[0])
    assert {site: list(coordinator.setup.envelopes_for(site)) for site in SITES} == {
        site: [peer for peer in SITES if peer != site] for site in SITES
    }
    assert coordinator.total is not None
    assert coordinator.total.tolist() == GOOD["sum"]


def run_step(party: SiteSession | Coordinator, at: SiteId, step: str, message: bytes | None) -> None:
    if isinstance(party, Coordinator):
        party(step, message)
        return
    request = message or good("requests", step, at)
    reply = answer(party, at, request)
    # What it answers to the good round's request is the good round's answer.
    if message is None:
        assert reply == good("answers", ANSWERS[step], at)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].replace(" ", "-"))
def test_a_refusal_is_the_error_that_the_vector_names(case: dict[str, Any]) -> None:
    party = Coordinator() if case["at"] == "coordinator" else site_session(case["at"])
    plain = [
        (step, None) if isinstance(step, str) else (step["step"], step["message"]) for step in case["steps"]
    ]
    steps = [(step, bytes.fromhex(message) if message else None) for step, message in plain]
    for step, message in steps[:-1]:
        run_step(party, case["at"], step, message)
    with pytest.raises(errors.FederationError) as refused:
        run_step(party, case["at"], *steps[-1])
    assert refused.type.__name__ == case["error"]
    assert not tells(refused.value, *all_secrets())


def all_secrets() -> list[bytes]:
    """Of all sites: what nothing may print."""
    kinds = [value for some in GOOD["secrets"].values() for value in some.values()]
    shares = [share for some in GOOD["shares"].values() for both in some.values() for share in both.values()]
    identities = [keys["private_key"] for keys in GOOD["identities"].values()]
    return [bytes.fromhex(value) for value in (*kinds, *shares, *identities)]


def test_what_a_site_keeps_and_a_coordinator_holds_prints_no_secret() -> None:
    store, site = MemoryStore(), SITES[0]
    session = site_session(site, store)
    requests = [good("requests", request, site) for request in ANSWERS]
    for request in requests[:-1]:
        answer(session, site, request)
    stored = [store.read(name) for name in store.names() if not name.endswith("closed")]
    assert len(stored) == 5
    assert any(tells(data, SECRETS[site].mask_key) for data in stored)
    records = [Record.from_bytes(data) for data in stored if data is not None]
    assert not tells([session, store, ROSTER, SECRETS, IDENTITIES, records], *all_secrets())
    opened = Opened(
        roster=ROSTER, members=SITES, transcript=TRANSCRIPT, shares={site: (b"1" * 66, b"2" * 66)}
    )
    assert not tells(opened, b"1" * 66, b"2" * 66)
    coordinator = Coordinator()
    for step in (*(f"keys {site}" for site in SITES), "offer roster"):
        coordinator(step)
    for site in SITES:
        coordinator(f"sealed shares {site}")
    coordinator("finish setup")
    assert not tells([coordinator.setup, coordinator.keys, coordinator.sum], *all_secrets())


@pytest.mark.parametrize("site", SITES[1:])
def test_a_refused_answer_costs_its_site_only(site: SiteId) -> None:
    coordinator = Coordinator()
    with pytest.raises(errors.BadMessageError):
        coordinator(f"keys {SITES[0]}", good("answers", "keys", site))
    coordinator(f"keys {SITES[0]}")
    taken = from_bytes(good("answers", "keys", SITES[0]))
    assert isinstance(taken, Keys)
    assert taken.keys == ROSTER.entry(SITES[0])


def test_every_error_of_secure_aggregation_has_its_vectors_and_no_name_is_used_twice() -> None:
    seen = Counter(case["error"] for case in CASES)
    assert set(seen) == {
        "AnsweredAlreadyError",
        "BadEnvelopeError",
        "BadMessageError",
        "BadRosterError",
        "BadSignatureError",
        "BadSurvivorListError",
        "DigestMismatchError",
        "FederationError",
        "StaleSumError",
        "TooFewSurvivorsError",
        "TranscriptMismatchError",
        "UnapprovedSiteError",
        "UnsupportedSchemaError",
        "WrongSecretError",
    }
    assert len({case["name"] for case in CASES}) == len(CASES)
