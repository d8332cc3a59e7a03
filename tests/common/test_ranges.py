import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ranges import LEAST_STEPS, in_ranges, processors


@given(length=st.integers(0, 300), step=st.integers(1, 20), threads=st.integers(1, 5))
def test_ranges_cover_everything_once_and_begin_at_steps(length: int, step: int, threads: int) -> None:
    seen: list[tuple[int, int]] = []
    in_ranges(lambda start, end: seen.append((start, end)), length, step=step, threads=threads)
    seen.sort()
    assert [i for start, end in seen for i in range(start, end)] == list(range(length))
    assert all(start % step == 0 for start, _ in seen)
    assert len(seen) <= threads


def test_a_short_vector_gets_no_thread_and_a_long_one_all() -> None:
    used: set[int] = set()
    meet = threading.Barrier(3, timeout=10)

    def note(start: int, end: int) -> None:
        used.add(threading.get_ident())

    in_ranges(note, 10 * (2 * LEAST_STEPS - 1), step=10, threads=3)
    assert used == {threading.get_ident()}
    # All three are at work at once, or the barrier breaks.
    in_ranges(lambda start, end: meet.wait(), 10 * 3 * LEAST_STEPS, step=10, threads=3)


def test_an_error_of_one_range_is_raised() -> None:
    def fail(start: int, end: int) -> None:
        if start:
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        in_ranges(fail, 100, step=1, threads=2)


def test_there_is_a_processor() -> None:
    assert processors() >= 1
