"""Random operation lists against a plain sum; ``make soak`` plays many more of them."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import pytest

from common.ranges import processors
from tests.federation.operations import KINDS, SCHEMES, draw
from tests.federation.play import play_seed

LISTS = int(os.environ.get("CONSILIUM_OPERATION_LISTS", "1500"))
CHUNK = 25
SHOWN = 3


def play_all(seeds: Sequence[int]) -> list[str]:
    """How each list ended; ``failed: ...`` with the list where it should not have ended so."""
    endings = []
    for seed in seeds:
        try:
            endings.append(play_seed(seed))
        except AssertionError as error:
            endings.append(f"failed: {error}")
    return endings


@pytest.fixture(scope="module")
def endings() -> list[str]:
    chunks = [range(first, min(first + CHUNK, LISTS)) for first in range(0, LISTS, CHUNK)]
    with ProcessPoolExecutor(processors(), multiprocessing.get_context("spawn")) as pool:
        return [ending for some in pool.map(play_all, chunks) for ending in some]


def test_no_operation_list_brings_a_wrong_sum_a_hang_or_a_secret(endings: list[str]) -> None:
    failed = [ending for ending in endings if ending.startswith("failed")]
    assert not failed, f"{len(failed)} of {len(endings)} lists: {failed[:SHOWN]}"


def test_the_lists_end_in_sums_and_in_errors(endings: list[str]) -> None:
    # Lists that all failed, or all passed, would have tested nothing.
    rounds = Counter(word for ending in endings for word in ending.split())
    assert rounds["sum"] > len(endings) / 4
    assert rounds["TooFewSurvivorsError"] > len(endings) / 10
    assert len(endings) < 500 or rounds["WrongSecretError"] > 0


def test_every_kind_of_operation_and_every_scheme_is_drawn() -> None:
    plays = [draw(seed) for seed in range(LISTS)]
    assert {operation.kind for play in plays for operation in play.operations} == set(KINDS)
    assert {play.scheme for play in plays} == set(SCHEMES)
