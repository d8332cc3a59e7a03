"""Random operation lists against a plain sum; ``make soak`` plays many more of them."""

import os
from collections import Counter

import pytest

from tests.federation.operations import KINDS, draw
from tests.federation.play import play_seed

LISTS = int(os.environ.get("CONSILIUM_OPERATION_LISTS", "2000"))
PARTS = 20


@pytest.mark.parametrize("part", range(PARTS))
def test_no_operation_list_brings_a_wrong_sum_a_hang_or_a_secret(part: int) -> None:
    endings = Counter(play_seed(seed) for seed in range(part, LISTS, PARTS))
    # Lists that all failed, or all passed, would have tested nothing.
    assert any("sum" in ending for ending in endings)
    assert any("Error" in ending for ending in endings)


def test_every_kind_of_operation_is_drawn() -> None:
    drawn = Counter(operation.kind for seed in range(LISTS) for operation in draw(seed).operations)
    assert set(drawn) == set(KINDS)
