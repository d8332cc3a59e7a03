"""The Rényi loss of a sum of discrete Gaussian shares, also of a Poisson sample.

Such a sum is no discrete Gaussian, only close to one, and no post-processing of a continuous Gaussian: its
bound is that of Kairouz, Liu and Steinke 2021 (arXiv 2102.06387, proposition 14), and what sampling saves is
the bound for any mechanism of Zhu and Wang 2019 (PMLR 97, theorem 5), since an exact one is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Steps: the bound on a sum's distance from a discrete Gaussian is proved from here on.
SMALLEST_SHARE_STD = 0.5

Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DiscreteShares:
    """What the accounting of a sum of discrete Gaussian shares needs.

    Attributes:
        share_std: Standard deviation parameter of one share, in integer steps.
        shares: Shares that are counted on in the sum.
        sensitivity: L2 bound, in integer steps, on what one unit moves the sum by, rounding included.
        dimension: Numbers of the vector.
    """

    share_std: float
    shares: int
    sensitivity: float
    dimension: int

    def __post_init__(self) -> None:
        if not SMALLEST_SHARE_STD <= self.share_std < math.inf:
            raise ValueError(f"Expected share_std >= {SMALLEST_SHARE_STD} and finite, got {self.share_std}")
        if not 0 < self.sensitivity < math.inf:
            raise ValueError(f"Expected sensitivity > 0 and finite, got {self.sensitivity}")
        if self.shares < 1 or self.dimension < 1:
            raise ValueError(f"Expected shares and dimension >= 1, got {self.shares} and {self.dimension}")


def discrete_rdp(shares: DiscreteShares, sampling_rate: float, orders: Sequence[int]) -> Losses:
    """An upper bound on the Rényi loss of one step at each of the ``orders``, all of them 2 or larger."""
    if min(orders) < 2:
        raise ValueError(f"Expected orders >= 2, got {min(orders)}")
    plain = _plain_rdp(shares, max(orders))
    if sampling_rate == 1:
        return plain[list(orders)]
    return np.array([_sampled_rdp(plain, sampling_rate, order) for order in orders])


def _plain_rdp(shares: DiscreteShares, largest: int) -> Losses:
    """Without sampling, at orders 0 .. ``largest``: the lesser of the proposition's first two bounds."""
    order = np.arange(largest + 1.0)
    std = shares.share_std * math.sqrt(shares.shares)
    l2 = shares.sensitivity / std
    # Whole numbers are at most their squares. With an L1 of at most sqrt(dimension) L2 the third bound, which
    # knows no L1, is never the least.
    l1 = l2 * min(math.sqrt(shares.dimension), shares.sensitivity)
    gap = _gap(shares)
    aside, within = gap * shares.dimension, 2 * l1 * gap + gap**2 * shares.dimension
    return order / 2 * l2**2 + np.minimum(aside, order / 2 * within)


def _gap(shares: DiscreteShares) -> float:
    """How far a coordinate of a sum of shares is from one discrete Gaussian (τ of the paper)."""
    k = np.arange(1.0, shares.shares)
    return float(10 * np.exp(-2 * math.pi**2 * shares.share_std**2 * k / (k + 1)).sum())


def _sampled_rdp(plain: Losses, rate: float, order: int) -> float:
    """The bound for a Poisson sample; never above the loss without sampling."""
    # Half a second, which whoever only reads a ledger need not wait for.
    from scipy.special import gammaln, logsumexp

    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    taken = np.arange(2, order + 1)
    chance = gammaln(order + 1) - gammaln(taken + 1) - gammaln(order - taken + 1)
    chance = chance + taken * log_rate + (order - taken) * log_rest
    factor = np.where(taken == 2, 0.0, math.log(3))
    first = (order - 1) * log_rest + math.log(order * rate - rate + 1)
    terms = np.append(chance + factor + (taken - 1) * plain[taken], first)
    # Below zero only by rounding.
    return max(0.0, min(float(logsumexp(terms)) / (order - 1), float(plain[order])))
