from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.records import PatientRecord, PatientSet
from client.patients.splits import (
    folds,
    independent_folds,
    split_by_arrival,
    split_by_group,
    split_by_patient,
)

FRACTIONS = {"train": 0.6, "pairs": 0.1, "calibration": 0.1, "test": 0.2}
SPLITS = [split_by_patient, split_by_group]

Split = Callable[[Iterable[PatientRecord], Mapping[str, float], int], Mapping[str, tuple[PatientRecord, ...]]]


def patient(number: int, label: int | None = None, group: int | None = None) -> PatientRecord:
    return PatientRecord(
        patient_id=f"p{number:03d}",
        case_id=f"c{number}",
        note="A note.",
        label={} if label is None else {"rare_disease": f"OMIM:{label}"},
        group=None if group is None else f"PMID:{group}",
    )


def ids(parts: Mapping[str, tuple[PatientRecord, ...]]) -> dict[str, list[str]]:
    return {name: [record.patient_id for record in part] for name, part in parts.items()}


labels_and_groups = st.tuples(st.none() | st.integers(0, 5), st.none() | st.integers(0, 6))
patients = st.lists(labels_and_groups, max_size=40).map(
    lambda choices: [patient(number, label, group) for number, (label, group) in enumerate(choices)]
)
shares = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(
    lambda weights: {f"part{index}": weight / sum(weights) for index, weight in enumerate(weights)}
)
seeds = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("split", SPLITS)
@settings(deadline=None)
@given(records=patients, fractions=shares, seed=seeds)
def test_parts_are_disjoint_and_together_whole(
    split: Split, records: list[PatientRecord], fractions: dict[str, float], seed: int
) -> None:
    parts = split(records, fractions, seed)
    assert list(parts) == list(fractions)
    assert sorted(chain(*ids(parts).values())) == [record.patient_id for record in records]


@pytest.mark.parametrize("split", SPLITS)
@settings(deadline=None)
@given(records=patients, fractions=shares, seed=seeds, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_input_is_irrelevant_and_the_same_seed_gives_the_same_split(
    split: Split, records: list[PatientRecord], fractions: dict[str, float], seed: int, shuffle: Any
) -> None:
    shuffled = list(records)
    shuffle.shuffle(shuffled)
    assert split(records, fractions, seed) == split(shuffled, fractions, seed)


@settings(deadline=None)
@given(records=patients, fractions=shares, seed=seeds, cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_whoever_came_before_stays_in_his_part_when_others_come_after(
    records: list[PatientRecord], fractions: dict[str, float], seed: int, cuts: tuple[int, int]
) -> None:
    first, second = sorted(cuts)
    arrivals = (records[:first], records[first:second], records[second:])
    whole = split_by_arrival(arrivals, fractions, seed)
    assert sorted(chain(*ids(whole).values())) == [record.patient_id for record in records]
    for number in (1, 2):
        for name, part in ids(split_by_arrival(arrivals[:number], fractions, seed)).items():
            assert set(part) <= set(ids(whole)[name])
    assert split_by_arrival(arrivals[:1], fractions, seed) == split_by_patient(arrivals[0], fractions, seed)


def test_parts_come_out_right_however_small_the_arrivals_are() -> None:
    arrivals = [[patient(number, number % 7)] for number in range(100)]
    parts = split_by_arrival(arrivals, {"train": 0.8, "test": 0.2}, 3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 80, "test": 20}


@pytest.mark.parametrize("split", SPLITS)
def test_another_seed_gives_another_split(split: Split) -> None:
    records = [patient(number, number % 7, number % 60) for number in range(200)]
    seen = {str(ids(split(records, FRACTIONS, seed))) for seed in range(20)}
    assert len(seen) == 20


@settings(deadline=None)
@given(records=patients, fractions=shares, seed=seeds)
def test_no_group_is_on_two_sides(
    records: list[PatientRecord], fractions: dict[str, float], seed: int
) -> None:
    parts = split_by_group(records, fractions, seed)
    sides = [{record.group for record in part if record.group} for part in parts.values()]
    assert sum(map(len, sides)) == len(set().union(*sides))


@settings(deadline=None)
@given(records=patients, fractions=shares, seed=seeds)
def test_a_label_of_two_or_more_patients_has_one_in_the_part_named_first(
    records: list[PatientRecord], fractions: dict[str, float], seed: int
) -> None:
    parts = split_by_patient(records, fractions, seed)
    counts = Counter(str(record.label) for record in records)
    first = {str(record.label) for record in parts["part0"]}
    assert {label for label, count in counts.items() if count >= 2} <= first


@settings(deadline=None)
@given(records=patients, seed=seeds)
def test_labels_are_spread_and_sizes_come_out_right(records: list[PatientRecord], seed: int) -> None:
    parts = split_by_patient(records, FRACTIONS, seed)
    counts = Counter(str(record.label) for record in records)
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) - share * len(records)) <= 4
        here = Counter(str(record.label) for record in parts[name])
        assert all(here[label] >= int(share * count + 1e-9) for label, count in counts.items())


def test_groups_of_one_paper_each_fill_the_parts_by_their_shares() -> None:
    records = [patient(number, group=number // 4) for number in range(400)]
    sizes = {name: len(part) for name, part in split_by_group(records, FRACTIONS, 3).items()}
    assert sizes == {"train": 240, "pairs": 40, "calibration": 40, "test": 80}


def test_a_group_larger_than_every_part_stays_whole() -> None:
    records = [patient(number, group=0) for number in range(10)]
    parts = split_by_group(records, {"train": 0.5, "test": 0.5}, 0)
    assert sorted(map(len, parts.values())) == [0, 10]


def test_a_group_named_like_a_pseudonym_is_another_group() -> None:
    records = [
        PatientRecord(patient_id=f"p{number}", case_id="c", note="A note.", group="p0" if number else None)
        for number in range(3)
    ]
    alone = {
        len(part)
        for seed in range(20)
        for part in split_by_group(records, {"train": 0.5, "test": 0.5}, seed).values()
        if any(record.patient_id == "p0" for record in part)
    }
    assert 1 in alone


@settings(deadline=None)
@given(records=patients, k=st.integers(2, 6), seed=seeds)
def test_folds_are_even_and_a_label_is_spread_as_evenly_as_its_number_allows(
    records: list[PatientRecord], k: int, seed: int
) -> None:
    if len(records) < k:
        return
    fold_by_id = folds(records, k, seed)
    assert list(fold_by_id) == [record.patient_id for record in records]
    sizes = Counter(fold_by_id.values())
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for label in {str(record.label) for record in records}:
        here = Counter(fold_by_id[record.patient_id] for record in records if str(record.label) == label)
        assert max(here.values()) - min(here[fold] for fold in range(k)) <= 1


@settings(deadline=None)
@given(records=patients, seed=seeds)
def test_folds_do_not_depend_on_the_order_of_the_input(records: list[PatientRecord], seed: int) -> None:
    if len(records) >= 2:
        assert folds(records, 2, seed) == folds(records[::-1], 2, seed)


@settings(deadline=None)
@given(records=patients, k=st.integers(2, 6), seed=seeds, left_out=st.sets(st.integers(0, 39)))
def test_an_independent_fold_depends_on_a_patients_pseudonym_and_the_seed_alone(
    records: list[PatientRecord], k: int, seed: int, left_out: set[int]
) -> None:
    everyone = independent_folds(records, k, seed)
    assert list(everyone) == [record.patient_id for record in records]
    assert set(everyone.values()) <= set(range(k))
    # Other labels too: of a patient nothing but the pseudonym counts.
    some = [patient(number, 7) for number in range(len(records)) if number not in left_out]
    assert independent_folds(some, k, seed) == {each.patient_id: everyone[each.patient_id] for each in some}


def test_balanced_folds_move_other_patients_and_the_test_above_would_notice() -> None:
    records = [patient(number, number % 3) for number in range(40)]
    everyone, fewer = folds(records, 2, 0), folds(records[1:], 2, 0)
    assert any(everyone[patient_id] != fold for patient_id, fold in fewer.items())


def test_independent_folds_are_about_even_and_other_for_another_seed() -> None:
    records = [patient(number) for number in range(400)]
    seen = [independent_folds(records, 4, seed) for seed in range(20)]
    assert len({str(each) for each in seen}) == 20
    sizes = [size for each in seen for size in Counter(each.values()).values()]
    assert len(sizes) == 80
    # Binomial with mean 100 and standard deviation 8.7.
    assert 60 < min(sizes) < 100 < max(sizes) < 140


@pytest.mark.parametrize("k", [-1, 0, 1])
def test_fewer_than_two_independent_folds_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"Expected 2 folds or more, got {k}"):
        independent_folds([patient(0)], k, 0)
    with pytest.raises(ValueError, match="Expected every patient once"):
        independent_folds([patient(0), patient(0)], 2, 0)


def test_another_seed_gives_other_folds() -> None:
    records = [patient(number, number % 7) for number in range(100)]
    assert len({str(folds(records, 5, seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize("k", [0, 1, 4])
def test_too_few_or_too_many_folds_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="Expected 2 to 3 folds"):
        folds([patient(number) for number in range(3)], k, 0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("fractions", "seed", "reason"),
    [
        ({}, 0, "at least one part"),
        ({"train": 1.0, "test": 0.0}, 0, "at least one part"),
        ({"train": 1.5, "test": -0.5}, 0, "at least one part"),
        ({"train": 0.5, "test": 0.4}, 0, "shares of 1 together"),
        ({"train": float("nan")}, 0, "at least one part"),
        (FRACTIONS, -1, "a seed from 0"),
        (FRACTIONS, 2**63, "a seed from 0"),
    ],
)
def test_bad_shares_and_seeds_are_refused(
    split: Split, fractions: Mapping[str, float], seed: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        split([patient(1)], fractions, seed)


@pytest.mark.parametrize("split", SPLITS)
def test_a_patient_given_twice_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="every patient once, got 1 again"):
        split([patient(1), patient(1)], FRACTIONS, 0)


@pytest.mark.data
@pytest.mark.parametrize("split", SPLITS)
def test_the_real_cases_split_by_the_shares_asked_for(split: Split, real_set: PatientSet) -> None:
    parts = split(real_set.records, FRACTIONS, 7)
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) / len(real_set.records) - share) < 0.001
    if split is split_by_group:
        sides = [{record.group for record in part} for part in parts.values()]
        assert sum(map(len, sides)) == len(set().union(*sides)) == 1507
        return
    counts = Counter(record.label["rare_disease"] for record in real_set.records)
    trained = {record.label["rare_disease"] for record in parts["train"]}
    assert sum(count >= 2 for count in counts.values()) == 659
    assert {disease for disease, count in counts.items() if count >= 2} <= trained
