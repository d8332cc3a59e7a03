from dataclasses import replace

import numpy as np
import pytest

from common.ids import SiteId
from common.secagg.keys import Roster, SumContext
from common.secagg.statements import (
    masked_input_statement,
    sealed_shares_statement,
    survivor_list_statement,
    unmask_shares_statement,
)
from tests.common.secagg.fixed import CONTEXT, OTHER_CONTEXTS, SITES, TOPIC, A, B, C, D, roster, secret

ROSTER = roster()
TRANSCRIPT = ROSTER.transcript(SITES, TOPIC)
ENVELOPES = {B: b"1" * 160, C: b"2" * 160, D: b"3" * 160}
WORDS = np.arange(5, dtype=np.uint32)
SEED_SHARES = {A: b"1" * 66, B: b"2" * 66, C: b"3" * 66}
MASK_KEY_SHARES = {D: b"4" * 66}


def statements(context: SumContext = CONTEXT, transcript: bytes = TRANSCRIPT) -> dict[str, bytes]:
    made = Roster(context=context, entries=ROSTER.entries)
    return {
        "sealed shares": sealed_shares_statement(made, A, ENVELOPES),
        "masked input": masked_input_statement(context, transcript, A, WORDS),
        "survivor list": survivor_list_statement(context, transcript, (A, B, C), (D,)),
        "unmask shares": unmask_shares_statement(context, transcript, A, SEED_SHARES, MASK_KEY_SHARES),
    }


def test_no_kind_of_statement_can_stand_for_another() -> None:
    made = statements()
    assert len(set(made.values())) == 4
    assert {len(statement) for statement in made.values()} == {32}
    assert made == statements()


@pytest.mark.parametrize("kind", statements())
@pytest.mark.parametrize("other", OTHER_CONTEXTS.values(), ids=OTHER_CONTEXTS)
def test_every_statement_names_every_field_of_the_context(other: SumContext, kind: str) -> None:
    assert statements(other)[kind] != statements()[kind]


@pytest.mark.parametrize("kind", ["masked input", "survivor list", "unmask shares"])
def test_statements_about_masked_words_name_the_transcript(kind: str) -> None:
    other = ROSTER.transcript((A, B, C), TOPIC)
    assert statements(transcript=other)[kind] != statements()[kind]


def test_sealed_shares_name_roster_sender_receivers_and_envelopes() -> None:
    swapped = {**ENVELOPES, B: ENVELOPES[C], C: ENVELOPES[B]}
    fewer = {site: ENVELOPES[site] for site in (B, C)}
    changed = {**ENVELOPES, D: b"3" * 159 + b"4"}
    others = [sealed_shares_statement(ROSTER, A, envelopes) for envelopes in (swapped, fewer, changed, {})]
    others += [sealed_shares_statement(ROSTER, B, ENVELOPES)]
    others += [sealed_shares_statement(roster(A, B, C), A, ENVELOPES)]
    other_seed = replace(ROSTER.entries[3], seed_hash=secret("other"))
    others += [sealed_shares_statement(roster(d=other_seed), A, ENVELOPES)]
    assert len({statements()["sealed shares"], *others}) == 8


def test_a_mapping_s_own_order_does_not_matter() -> None:
    turned = dict(reversed(ENVELOPES.items()))
    assert sealed_shares_statement(ROSTER, A, turned) == statements()["sealed shares"]
    seeds = dict(reversed(SEED_SHARES.items()))
    made = unmask_shares_statement(CONTEXT, TRANSCRIPT, A, seeds, MASK_KEY_SHARES)
    assert made == statements()["unmask shares"]


def test_a_masked_input_names_its_site_and_every_word() -> None:
    others = [
        masked_input_statement(CONTEXT, TRANSCRIPT, B, WORDS),
        masked_input_statement(CONTEXT, TRANSCRIPT, A, WORDS[:4]),
        masked_input_statement(CONTEXT, TRANSCRIPT, A, WORDS[::-1].copy()),
    ]
    for place in range(len(WORDS)):
        changed = WORDS.copy()
        changed[place] ^= 1
        others.append(masked_input_statement(CONTEXT, TRANSCRIPT, A, changed))
    assert len({statements()["masked input"], *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("survivors", "dropouts"),
    [
        ((A, B), (C, D)),
        ((A, B, C, D), ()),
        ((A, B, D), (C,)),
        ((), (A, B, C, D)),
        ((A, B, C), ()),
        ((D,), (A, B, C)),
    ],
)
def test_a_survivor_list_names_both_sides(
    survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...]
) -> None:
    other = survivor_list_statement(CONTEXT, TRANSCRIPT, survivors, dropouts)
    assert other != statements()["survivor list"]


def test_unmask_shares_name_their_giver_and_whose_share_of_which_secret_each_is() -> None:
    def made(site: SiteId, seeds: dict[SiteId, bytes], mask_keys: dict[SiteId, bytes]) -> bytes:
        return unmask_shares_statement(CONTEXT, TRANSCRIPT, site, seeds, mask_keys)

    both = {**SEED_SHARES, **MASK_KEY_SHARES}
    others = [
        made(B, SEED_SHARES, MASK_KEY_SHARES),
        made(A, {**SEED_SHARES, A: b"1" * 65 + b"2"}, MASK_KEY_SHARES),
        made(A, {**SEED_SHARES, A: SEED_SHARES[B], B: SEED_SHARES[A]}, MASK_KEY_SHARES),
        made(A, SEED_SHARES, {D: b"5" * 66}),
        made(A, SEED_SHARES, {C: MASK_KEY_SHARES[D]}),
        # The same shares, the line between the two kinds elsewhere.
        made(A, both, {}),
        made(A, {}, both),
        made(A, {site: both[site] for site in (A, B)}, {site: both[site] for site in (C, D)}),
    ]
    assert len({statements()["unmask shares"], *others}) == len(others) + 1
