import pytest

from common.schedule import rate_factor


def test_a_cosine_rises_to_one_and_falls_to_a_twentieth() -> None:
    factors = [rate_factor("cosine", done, 100) for done in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0.05, abs=0.001)


def test_a_constant_rate_stays() -> None:
    assert {rate_factor("constant", done, 7) for done in range(7)} == {1.0}


def test_a_run_of_one_round_learns() -> None:
    assert rate_factor("cosine", 0, 1) == 1.0


@pytest.mark.parametrize(("done", "total"), [(-1, 3), (3, 3), (0, 0)])
def test_a_round_outside_of_the_run_is_refused(done: int, total: int) -> None:
    with pytest.raises(ValueError, match="Expected 0 <= done < total"):
        rate_factor("cosine", done, total)
