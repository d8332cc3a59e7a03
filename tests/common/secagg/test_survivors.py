import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadSignatureError, BadSurvivorListError, FederationError, UnapprovedSiteError
from common.ids import SiteId, site_id
from common.pki import Identity
from common.secagg.statements import survivor_list_statement
from common.secagg.survivors import SurvivorList
from tests.common.secagg.fixed import (
    APPROVED,
    CONTEXT,
    IDENTITIES,
    OTHER_CONTEXTS,
    SITES,
    TOPIC,
    A,
    B,
    C,
    D,
    roster,
    secret,
    with_bit_flipped,
)

ROSTER = roster()
TRANSCRIPT = ROSTER.transcript(SITES, TOPIC)
NAMED = SurvivorList(survivors=(A, B, C), dropouts=(D,))
STATEMENT = survivor_list_statement(CONTEXT, TRANSCRIPT, NAMED.survivors, NAMED.dropouts)
X = site_id("site-x")
SIDES = st.lists(st.sampled_from([*SITES, X]), max_size=5).map(tuple)


def listed(survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...] = ()) -> SurvivorList:
    return SurvivorList(survivors=survivors, dropouts=dropouts)


def signatures(*sites: SiteId, statement: bytes = STATEMENT) -> dict[SiteId, bytes]:
    return {site: IDENTITIES[site].sign(statement) for site in sites}


def check(
    by_site: dict[SiteId, bytes], *, named: SurvivorList = NAMED, members: tuple[SiteId, ...] = SITES
) -> None:
    named.check_signatures(ROSTER, members, TRANSCRIPT, by_site, APPROVED)


@pytest.mark.parametrize(
    ("survivors", "dropouts", "least"),
    [((A, B, C, D), (), 4), ((A, B, C), (D,), 3), ((B, C, D), (A,), 3), ((A, C), (B, D), 2)],
)
def test_a_list_of_all_members_with_enough_survivors_is_accepted(
    survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...], least: int
) -> None:
    listed(survivors, dropouts).check(7, SITES, least=least)


@pytest.mark.parametrize(
    ("survivors", "dropouts", "reason"),
    [
        ((A, B, C, D), (D,), "site-d both as survivor and dropout"),
        ((A, B, C), (A, B, C, D), "site-a, site-b, site-c both as"),
        ((A, B, C), (), "expected the 4 members, each once"),
        ((), (), "expected the 4 members, each once"),
        ((A, B, C, D), (X,), "expected the 4 members, each once"),
        ((A, B, C), (X,), "expected the 4 members, each once"),
        ((A, A, B, C, D), (), "expected the 4 members, each once"),
        ((A, B, C), (D, D), "expected the 4 members, each once"),
        ((A, B, B), (D,), "expected the 4 members, each once"),
        ((B, A, C), (D,), "in the order of their names"),
        ((A, B), (D, C), "in the order of their names"),
        ((A, B), (C, D), "2 survivors, 3 needed"),
        ((), (A, B, C, D), "0 survivors, 3 needed"),
    ],
)
def test_any_other_list_is_refused(
    survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...], reason: str
) -> None:
    with pytest.raises(BadSurvivorListError, match=f"Sum 7: survivor list: .*{reason}"):
        listed(survivors, dropouts).check(7, SITES, least=3)


@given(survivors=SIDES, dropouts=SIDES)
def test_a_list_that_passes_names_each_member_on_one_side(
    survivors: tuple[SiteId, ...], dropouts: tuple[SiteId, ...]
) -> None:
    try:
        listed(survivors, dropouts).check(7, SITES, least=2)
    except BadSurvivorListError:
        return
    assert len(survivors) >= 2
    assert sorted((*survivors, *dropouts)) == list(SITES)


@given(pairs=st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=2, unique=True))
def test_another_list_has_another_name(pairs: list[tuple[tuple[SiteId, ...], tuple[SiteId, ...]]]) -> None:
    first, second = (listed(*pair).name() for pair in pairs)
    assert first != second
    assert "\n" not in first


@pytest.mark.parametrize("signers", [(A, B, C), (A, B, D), (B, C, D), SITES], ids="-".join)
def test_a_threshold_of_members_signatures_is_accepted(signers: tuple[SiteId, ...]) -> None:
    check(signatures(*signers))


@pytest.mark.parametrize("signers", [(), (A,), (A, B), (C, D)], ids="-".join)
def test_too_few_signatures_are_refused(signers: tuple[SiteId, ...]) -> None:
    with pytest.raises(BadSurvivorListError, match=f"{len(signers)} signatures, 3 needed"):
        check(signatures(*signers))


def test_the_threshold_is_the_roster_s_also_where_fewer_are_members() -> None:
    with pytest.raises(BadSurvivorListError, match="2 signatures, 3 needed"):
        check(signatures(A, B), named=listed((A, B), (C,)), members=(A, B, C))


def test_a_changed_byte_anywhere_in_a_signature_is_refused() -> None:
    good = signatures(A, B, C)
    for place in range(64):
        with pytest.raises(BadSignatureError, match="survivor list of site-b"):
            check({**good, B: with_bit_flipped(good[B], place)})


def test_one_wrong_signature_spoils_enough_right_ones() -> None:
    with pytest.raises(BadSignatureError, match="site-d"):
        check({**signatures(A, B, C), D: bytes(64)})


def test_a_signature_under_another_s_name_is_refused() -> None:
    good = signatures(A, B, C)
    with pytest.raises(BadSignatureError):
        check({**good, B: good[C], C: good[B]})


@pytest.mark.parametrize(
    "other",
    [
        *(
            survivor_list_statement(context, TRANSCRIPT, NAMED.survivors, NAMED.dropouts)
            for context in OTHER_CONTEXTS.values()
        ),
        survivor_list_statement(CONTEXT, TRANSCRIPT, (A, B, D), (C,)),
        survivor_list_statement(CONTEXT, TRANSCRIPT, SITES, ()),
        survivor_list_statement(CONTEXT, ROSTER.transcript((A, B, C), TOPIC), *((A, B, C), (D,))),
    ],
    ids=[*OTHER_CONTEXTS, "other-dropout", "no-dropout", "transcript"],
)
def test_signatures_of_another_list_sum_or_transcript_are_refused(other: bytes) -> None:
    with pytest.raises(BadSignatureError):
        check(signatures(A, B, C, statement=other))


def refused_by(
    by_site: dict[SiteId, bytes], members: tuple[SiteId, ...], approved: set[SiteId]
) -> type[FederationError]:
    keys = {site: key for site, key in APPROVED.items() if site in approved}
    with pytest.raises(FederationError) as refused:
        NAMED.check_signatures(ROSTER, members, TRANSCRIPT, by_site, keys)
    return refused.type


def test_signatures_of_sites_that_are_no_members_or_not_approved_do_not_count() -> None:
    stranger = Identity(site_id=X, private_key=secret("stranger"))
    invented = {**signatures(A, B), X: stranger.sign(STATEMENT)}
    assert refused_by(invented, SITES, set(SITES)) is BadSurvivorListError
    # Approved, but it adds no masks.
    assert refused_by(signatures(A, B, C), (A, B, D), set(SITES)) is BadSurvivorListError
    # A member, which this site's administrator does not know.
    assert refused_by(signatures(A, B, C), SITES, {A, B, D}) is UnapprovedSiteError
