"""Pooled counts -> rates. Only counts leave a site, and only their sum is looked at.

A sum cannot tell which site counted wrongly; what it can tell, that the counts are those of no set of
cases at all, is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import BadMessageError
from common.fixedpoint import Words
from common.metrics import MetricCounts, bootstrap_interval

INTERVALS = ("top1", "top5", "top10")


def pooled_counts(words: Words) -> MetricCounts:
    """The counts of a sum of evaluation contributions. BadMessageError if they cannot be counts."""
    try:
        return MetricCounts.from_words(words)
    except ValueError as error:
        raise BadMessageError(f"pooled counts: {error}") from error


def pooled_rates(counts: MetricCounts, rng: np.random.Generator) -> dict[str, Any]:
    """Number of cases, rates, and under ``interval`` the 95 % bootstrap interval of each accuracy.

    A rate of which nothing was counted is None, and so is the interval of no cases.
    """
    intervals = {name: _interval(getattr(counts, name), counts.n, rng) for name in INTERVALS}
    return {**counts.as_dict(), "interval": intervals}


def _interval(right: int, n: int, rng: np.random.Generator) -> list[float] | None:
    return list(bootstrap_interval(np.arange(n) < right, rng)) if n else None
