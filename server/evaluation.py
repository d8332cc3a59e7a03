"""Pooled counts -> rates. Only counts leave a site, and only their sum is looked at.

A sum cannot tell which site counted wrongly; what it can tell, that the counts are those of no set of
cases at all, is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import BadMessageError
from common.evaluation_counts import EvaluationCounts
from common.fixedpoint import Words
from common.metrics import bootstrap_interval

INTERVALS = ("top1", "top5", "top10")


def pooled_counts(words: Words) -> EvaluationCounts:
    """The counts of a sum of evaluation contributions. BadMessageError if they cannot be counts."""
    try:
        return EvaluationCounts.from_words(words)
    except ValueError as error:
        raise BadMessageError(f"pooled counts: {error}") from error


def pooled_figures(counts: EvaluationCounts) -> dict[str, float | int | None]:
    """What one line says of pooled counts: as ``pooled_rates``, without intervals, the same at every call."""
    figures = pooled_rates(counts, np.random.default_rng(0))
    return {name: figure for name, figure in figures.items() if name != "interval"}


def pooled_rates(counts: EvaluationCounts, rng: np.random.Generator) -> dict[str, Any]:
    """Everything that pooled counts say, by name.

    Number of cases, rates, log loss, Brier score, ECE and beside it the ECE that a perfectly calibrated
    student would show with so few cases, and under ``interval`` the 95 % bootstrap interval of each accuracy.
    The pooled ECE is never above the mean of the sites' own by their cases, and may hide that one student is
    too sure at one site and not sure enough at another: a sum cannot tell.

    A figure of which nothing was counted is None, and so is the interval of no cases.
    """
    metrics = counts.metrics
    return {
        **metrics.as_dict(),
        "nll": counts.proper.nll(),
        "brier": counts.proper.brier(),
        "ece": counts.bins.ece(),
        "ece_noise_floor": counts.bins.noise_floor(rng),
        "interval": {name: _interval(getattr(metrics, name), metrics.n, rng) for name in INTERVALS},
    }


def _interval(right: int, n: int, rng: np.random.Generator) -> list[float] | None:
    return list(bootstrap_interval(np.arange(n) < right, rng)) if n else None
