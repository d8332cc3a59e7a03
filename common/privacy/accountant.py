"""What steps of noise add up to for one patient: ε at a δ, if a patient is added or removed.

Two ways to add up, each for what it is proved for. A *fixed plan*, whose sampling rates, noise and number of
steps were chosen without a look at private results, is certified by its privacy loss distribution (PLD),
which is tight. Where the next step's numbers, or whether there is one, depend on what earlier steps gave,
only `RdpFilter` holds: a PLD that is composed until it reaches its budget is no valid filter
(arXiv 2602.06756).

The libraries that do it are imported where they are used: they take a second, which a site's guard, who only
counts steps, would pay for with every message.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, reduce
from typing import Any, Literal, get_args

import numpy as np

from common.privacy.discrete import DiscreteShares, Losses, discrete_rdp

__all__ = ["DiscreteShares", "RdpFilter", "Spending", "calibrate", "epsilon_of", "rdp_epsilon"]

# Whole ones only, as the discrete bound needs them: between them the library's series for sampling rates near
# 1/2 comes out far too large where a step loses little. What is given away for it is 2 % of an ε of 7.
ORDERS = (*range(2, 65), 72, 80, 96, 128, 256, 512, 1024)
# Of the Rényi bound on ε, rounded down to a power of two: the step in which losses are tabled. All is rounded
# up on the way; measured, ε comes out up to 0.2 % too large.
GRID = 2e-4
# Beyond it, where no number protects, the Rényi bound is given as it is.
LARGEST_TABLED = 1000.0
# With less noise ε is called infinite; more noise counts as this much.
LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
# Calibrated noise multipliers are whole multiples of 1 / NOISE_STEPS.
NOISE_STEPS = 1000

By = Literal["pld", "rdp"]


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Steps of one mechanism on the same patients: a Poisson sample of them, summed, with Gaussian noise.

    Attributes:
        sampling_rate: Probability that a patient takes part in a step (q).
        noise_multiplier: Standard deviation of the noise, in units of the sensitivity (σ).
        steps: How many (T).
        discrete: Of noise in discrete Gaussian shares. Then it alone is accounted, not ``noise_multiplier``.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    discrete: DiscreteShares | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"Expected sampling_rate in (0, 1], got {self.sampling_rate}")
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"Expected noise_multiplier > 0 and finite, got {self.noise_multiplier}")
        if self.steps < 0:
            raise ValueError(f"Expected steps >= 0, got {self.steps}")


def epsilon_of(spendings: Sequence[Spending], delta: float) -> float:
    """ε of a fixed plan: all ``spendings`` on the same patients, in one composition; 0.0 for no steps.

    By privacy loss distributions, rounded up; as soon as one spending is discrete, for which no such
    distribution is proved under sampling, by their Rényi losses, which gives more. inf where nothing is
    proved.

    Guarantee: neither the order of spendings matters nor how steps are split into several.
    """
    _require_delta(delta)
    return _epsilon(_merged(spendings), delta)


def rdp_epsilon(spendings: Sequence[Spending], delta: float) -> float:
    """ε of a fixed plan by Rényi losses, at the best order: 10 to 15 % above `epsilon_of`.

    Not a bound on adaptive choices either, since which order is best would depend on them: `RdpFilter`.
    """
    _require_delta(delta)
    return _rdp_epsilon(_merged(spendings), delta)


@dataclass(frozen=True, kw_only=True)
class RdpFilter:
    """Stops adaptively chosen releases before a budget is passed.

    Theorems 3.1 and 4.3 of Feldman and Zrnic (2021, arXiv 2008.11193): if each release's Rényi loss at *one*
    order α, fixed in advance, is known before it happens, and the losses at α add up to at most B on every
    path, then all releases together have a Rényi loss of at most B at α, however q, σ and the stop were
    chosen from earlier results. That is (ε, δ) if B is what converts to ε at α and δ (Canonne, Kamath and
    Steinke 2020, proposition 12). To go on as long as *any* of several orders is within its B is not
    covered: which order holds would depend on the path, and δ would have to be divided among the orders.

    So there is one order here, a function of ε and δ alone: the best one for Gaussian noise without sampling.
    Measured against the best order of each plan, it asks for up to 4 % more noise at q >= 0.05 and ε <= 8,
    for 10 % at q = 0.01 and for 21 % at q = 0.001.

    Guarantee: what is admitted step by step, whatever a step depends on, spends at most epsilon at delta.

    Attributes:
        epsilon: The budget.
        delta: At which.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _require_epsilon(self.epsilon)
        _require_delta(self.delta)

    def admits(self, spent: Sequence[Spending], next_: Spending) -> bool:
        """Whether ``next_`` may happen after everything in ``spent``, of which the caller keeps count."""
        return self.excess((*spent, next_)) <= 0

    def excess(self, spendings: Sequence[Spending]) -> float:
        """By how much the Rényi loss of ``spendings`` passes the budget at the filter's order."""
        place, budget = _filter_budget(self.epsilon, self.delta)
        return float(_rdp(_merged(spendings))[place]) - budget


def calibrate(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    besides: Sequence[Spending] = (),
    by: By = "pld",
) -> float:
    """The least noise multiplier, in thousandths, with which ``steps`` more fit into a budget.

    Args:
        epsilon: The budget, of the new steps and those in ``besides`` together.
        delta: At which.
        sampling_rate: Of the new steps.
        steps: At least one.
        besides: What the same patients spend elsewhere.
        by: ``pld`` for a fixed plan (`epsilon_of`), ``rdp`` for one that an `RdpFilter` stops: it admits
            exactly these steps, and no more than the rounding leaves room for.

    Guarantee: with the result, everything together has at most epsilon.

    Raises:
        ValueError: Nothing is left beside ``besides``, or no noise is enough.
    """
    _require_epsilon(epsilon)
    _require_delta(delta)
    if steps < 1:
        raise ValueError(f"Expected steps >= 1, got {steps}")
    if by not in get_args(By):
        raise ValueError(f"Expected by to be one of {', '.join(get_args(By))}, got {by!r}")
    step = Spending(sampling_rate=sampling_rate, noise_multiplier=1.0, steps=steps)
    return _calibrate(epsilon, delta, step, _merged(besides), by)


@lru_cache(maxsize=1024)
def _calibrate(epsilon: float, delta: float, step: Spending, besides: tuple[Spending, ...], by: By) -> float:
    def excess(*more: Spending) -> float:
        if by == "rdp":
            return RdpFilter(epsilon=epsilon, delta=delta).excess((*besides, *more))
        return epsilon_of((*besides, *more), delta) - epsilon

    if excess() >= 0:
        raise ValueError(
            f"Expected something left of epsilon {epsilon} at delta {delta} beside {len(besides)} spendings, "
            f"got nothing by {by}"
        )
    return _least_noise(lambda noise: excess(replace(step, noise_multiplier=noise)))


def _least_noise(excess: Callable[[float], float]) -> float:
    """The least multiple of a thousandth at which ``excess``, which falls with the noise, is not positive."""
    from scipy.optimize import brentq

    high = NOISE_STEPS
    while excess(high / NOISE_STEPS) > 0:
        high *= 2
        if high > MOST_NOISE * NOISE_STEPS:
            raise ValueError(
                f"Expected a budget that noise of up to {MOST_NOISE:.0f} keeps, got a smaller one"
            )
    low = high // 2
    while low and excess(low / NOISE_STEPS) <= 0:
        low, high = low // 2, low
    if low:
        root = brentq(excess, low / NOISE_STEPS, high / NOISE_STEPS, xtol=0.25 / NOISE_STEPS)
        high = math.ceil(root * NOISE_STEPS)
    # The root is one within a tolerance only.
    while excess(high / NOISE_STEPS) > 0:
        high += 1
    while high > 1 and excess((high - 1) / NOISE_STEPS) <= 0:
        high -= 1
    return high / NOISE_STEPS


def _merged(spendings: Sequence[Spending]) -> tuple[Spending, ...]:
    """One spending for all steps of a kind, sorted, so that sums are the same to the last bit."""
    counts: Counter[Spending] = Counter()
    for spending in spendings:
        noise = min(spending.noise_multiplier, MOST_NOISE)
        counts[replace(spending, noise_multiplier=noise, steps=1)] += spending.steps
    kinds = sorted((kind for kind in counts if counts[kind]), key=_sort_key)
    return tuple(replace(kind, steps=counts[kind]) for kind in kinds)


def _sort_key(spending: Spending) -> tuple[float, float, tuple[float, ...]]:
    discrete = spending.discrete
    return spending.sampling_rate, spending.noise_multiplier, () if discrete is None else astuple(discrete)


@lru_cache(maxsize=1024)
def _epsilon(merged: tuple[Spending, ...], delta: float) -> float:
    bound = _rdp_epsilon(merged, delta)
    if not 0 < bound < LARGEST_TABLED or any(spending.discrete is not None for spending in merged):
        return bound
    # In proportion to ε: tables are short where it is large, and true where a step loses next to nothing.
    # A power of two, so that tables of another composition can be taken again.
    grid = 2.0 ** math.floor(math.log2(GRID * bound))
    losses = (_loss_distribution(spending, grid) for spending in merged)
    total = reduce(lambda first, second: first.compose(second), losses)
    # Tables cut off the last 1e-15 and know nothing below: there the Rényi bound is the lesser one.
    return min(bound, float(total.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=64)
def _loss_distribution(spending: Spending, grid: float) -> Any:
    """Of all steps of a spending, if a patient is added and if one is removed."""
    from dp_accounting.pld import privacy_loss_distribution

    noise, rate = spending.noise_multiplier, spending.sampling_rate
    if rate == 1:
        # T steps are one with 1 / sqrt(T) of the noise.
        noise /= math.sqrt(spending.steps)
        return privacy_loss_distribution.from_gaussian_mechanism(noise, value_discretization_interval=grid)
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=grid, sampling_prob=rate
    )
    return one.self_compose(spending.steps)


def _rdp_epsilon(merged: tuple[Spending, ...], delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    return float(compute_epsilon(ORDERS, _rdp(merged), delta)[0])


def _rdp(merged: tuple[Spending, ...]) -> Losses:
    """Rényi losses at `ORDERS`."""
    return sum((kind.steps * _step_rdp(replace(kind, steps=1)) for kind in merged), np.zeros(len(ORDERS)))


@lru_cache(maxsize=4096)
def _step_rdp(step: Spending) -> Losses:
    if step.discrete is not None:
        return discrete_rdp(step.discrete, step.sampling_rate, ORDERS)
    if step.noise_multiplier < LEAST_NOISE:
        return np.full(len(ORDERS), math.inf)
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = PoissonSampledDpEvent(step.sampling_rate, GaussianDpEvent(step.noise_multiplier))
    losses = RdpAccountant(ORDERS).compose(event).rdp
    # Below zero only by rounding.
    return np.maximum(losses, 0.0)


@lru_cache(maxsize=256)
def _filter_budget(epsilon: float, delta: float) -> tuple[int, float]:
    """The filter's order, as its place in `ORDERS`, and the Rényi loss that converts to ε there."""
    orders = np.array(ORDERS)
    budgets = epsilon - np.log1p(-1 / orders) + np.log(delta * orders) / (orders - 1)
    # A Gaussian's loss is in proportion to the order: this one leaves room for the most of it.
    place = int(np.argmax(budgets / orders))
    return place, float(budgets[place])


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta in (0, 1), got {delta}")


def _require_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"Expected epsilon > 0 and finite, got {epsilon}")
