from dataclasses import replace

import numpy as np
import pytest

from client.contribution import site_weight, train_words
from client.student.fit import LocalUpdate
from common.adapter import Block, flatten, initial_adapter, unflatten
from common.fixedpoint import FixedPoint, decode_counts
from common.plan import AggregationPlan
from common.train_words import TrainWords
from tests.fakes import tiny_adapter

PLAN = AggregationPlan(minimum_survivors=2, site_patients_cap=100, timeout_s=1.0)
FIXED = FixedPoint.for_sum(1.0, 5)


def update_of(delta: np.ndarray) -> tuple[LocalUpdate, np.ndarray]:
    received = initial_adapter(tiny_adapter().spec, 0)
    moved = unflatten(received, Block.B, flatten(received, Block.B) + delta)
    update = LocalUpdate(adapter=moved, patients=6, pairs=9, steps=3, loss=0.0, preferred=0.0)
    return update, received


def test_words_hold_the_weighted_delta_the_weight_and_the_counts() -> None:
    size = tiny_adapter().spec.size(Block.B)
    delta = np.linspace(-0.5, 0.5, size)
    update, received = update_of(delta)
    words = TrainWords.split(train_words(received, update, Block.B, weight=0.25, fixed_point=FIXED).join())
    assert FIXED.decode(words.delta) == pytest.approx(0.25 * delta, abs=1e-6)
    assert FIXED.decode(words.weight) == pytest.approx([0.25])
    assert decode_counts(words.counts) == (6, 9, 3, 0)


def test_coordinates_beyond_the_largest_are_cut_and_counted_never_wrapped() -> None:
    size = tiny_adapter().spec.size(Block.B)
    delta = np.zeros(size)
    delta[:2] = (7.0, -7.0)
    update, received = update_of(delta)
    words = train_words(received, update, Block.B, weight=1.0, fixed_point=FIXED)
    assert FIXED.decode(words.delta)[:2] == pytest.approx([1.0, -1.0])
    assert decode_counts(words.counts)[3] == 2


def test_a_count_stops_at_the_most_that_the_sum_has_room_for_and_never_wraps() -> None:
    size = tiny_adapter().spec.size(Block.B)
    update, received = update_of(np.zeros(size))
    most = (2**16 - 1) // 5
    for pairs, told in ((most, most), (most + 1, most), (10**9, most)):
        words = train_words(
            received,
            replace(update, pairs=pairs),
            Block.B,
            weight=1.0,
            fixed_point=FixedPoint.for_sum(1.0, 5, bits=16),
        )
        assert decode_counts(words.counts) == (6, told, 3, 0)
        assert told * 5 < 2**16


def test_a_site_counts_by_its_patients_or_like_all_others() -> None:
    assert site_weight(25, PLAN, "patients") == 0.25
    assert site_weight(25, PLAN, "uniform") == 1.0


def test_a_site_larger_than_the_plans_cap_is_refused() -> None:
    with pytest.raises(ValueError, match="site_patients_cap=100 patients, got 101"):
        site_weight(101, PLAN, "patients")
