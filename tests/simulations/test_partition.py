from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.records import PatientRecord
from common.ids import SiteId
from simulations.partition import hold_out_publications, split_by_publication

TRACK = "rare_disease"
CASES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=60)


def records_of(cases: list[tuple[int, int]]) -> list[PatientRecord]:
    return [
        PatientRecord(
            patient_id=f"p{i}",
            case_id=f"p{i}",
            note="note",
            group=f"PMID:{paper}",
            label={TRACK: f"D:{disease}"},
        )
        for i, (paper, disease) in enumerate(cases)
    ]


@given(cases=CASES, share=st.floats(0, 0.6), fewest=st.integers(1, 4), seed=st.integers(0, 9))
@settings(deadline=None)
def test_no_publication_is_on_both_sides_and_every_held_out_answer_keeps_enough(
    cases: list[tuple[int, int]], share: float, fewest: int, seed: int
) -> None:
    records = records_of(cases)
    rest, held = hold_out_publications(records, TRACK, share=share, fewest_left=fewest, seed=seed)
    assert {r.patient_id for r in (*rest, *held)} == {r.patient_id for r in records}
    assert not {r.group for r in rest} & {r.group for r in held}
    assert len(held) <= share * len(records)
    left = Counter(r.label[TRACK] for r in rest)
    assert all(left[r.label[TRACK]] >= fewest for r in held)


@given(cases=CASES, sites=st.integers(1, 5), seed=st.integers(0, 9))
@settings(deadline=None)
def test_every_record_is_at_one_site_and_no_publication_at_two(
    cases: list[tuple[int, int]], sites: int, seed: int
) -> None:
    records = records_of(cases)
    shares = {SiteId(f"s{i}"): float(i + 1) for i in range(sites)}
    by_site = split_by_publication(records, shares, seed=seed)
    assert sorted(r.patient_id for members in by_site.values() for r in members) == sorted(
        r.patient_id for r in records
    )
    papers = [{r.group for r in members} for members in by_site.values()]
    assert sum(map(len, papers)) == len(set().union(*papers))
    assert by_site == split_by_publication(records, shares, seed=seed)


def test_sites_come_out_near_their_shares() -> None:
    records = records_of([(paper, 0) for paper in range(200)])
    by_site = split_by_publication(records, {SiteId("a"): 3, SiteId("b"): 1}, seed=0)
    assert [len(members) for members in by_site.values()] == [150, 50]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_of_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="Expected a share"):
        hold_out_publications([], TRACK, share=share, fewest_left=1, seed=0)


def test_a_site_without_a_share_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a positive share"):
        split_by_publication([], {SiteId("a"): 0.0}, seed=0)
