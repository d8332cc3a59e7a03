import numpy as np
import pytest

from common.errors import BadMessageError
from common.fixedpoint import add_words
from common.metrics import MetricCounts
from server.evaluation import pooled_counts, pooled_rates

SITE_A = MetricCounts(n=10, top1=2, top5=4, top10=5, invalid=1, free=10)
SITE_B = MetricCounts(n=30, top1=18, top5=20, top10=25, invalid=3, free=10)


def test_rates_are_pooled_over_cases_not_averaged_over_sites() -> None:
    total = SITE_A.to_words().copy()
    add_words(total, SITE_B.to_words())
    rates = pooled_rates(pooled_counts(total), np.random.default_rng(0))
    assert (rates["n"], rates["top1"], rates["top10"], rates["invalid_rate"]) == (40, 0.5, 0.75, 0.2)
    assert rates["coverage"] is None
    low, high = rates["interval"]["top1"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_no_cases_have_no_rate_and_no_interval() -> None:
    rates = pooled_rates(MetricCounts(), np.random.default_rng(0))
    assert rates["top1"] is None
    assert rates["interval"] == {"top1": None, "top5": None, "top10": None}


def test_a_sum_that_is_no_count_of_cases_is_refused() -> None:
    words = SITE_A.to_words().copy()
    words[1] += np.uint32(2**31)
    with pytest.raises(BadMessageError, match="pooled counts: Expected 0 <= top1"):
        pooled_counts(words)
