"""Two methods on the same cases: by how much one is better, and how sure that is.

A case is answered by both methods, so what makes it hard for both cancels. Runs of several seeds are pooled;
a patient who is tested in several of them is drawn with all of his appearances, as they are no independent
patients. (Drawn patients of two runs who merely share an id go together too. That is no harm: all that
matters is that those who are drawn one by one are independent of each other.)

The intervals say how far another draw of test patients would move a figure. Each run is one training; what
another training would move is seen in the figures of the single seeds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

DRAWS = 10_000
LEVEL = 0.95
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
MCNEMAR, BOOTSTRAP = "McNemar, exact", "bootstrap"
# Draws of so many patients at once: thousands of draws of thousands of patients would fill the memory.
_CHUNK = 500


class Word(StrEnum):
    """What an interval of a difference says, where more is better."""

    BETTER = "better"
    WORSE = "worse"
    EVEN = "no difference that these patients can show"


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Which cases of one or several runs a method got right.

    Attributes:
        keys: Of each case what it is, the same for every method: seed, case, and more where it appears twice.
        seeds: Of each case, the run's.
        patients: Of each case, whose it is.
        right: (n,), whether it was right.
    """

    keys: tuple[tuple[Any, ...], ...]
    seeds: tuple[int, ...]
    patients: tuple[str, ...]
    right: NDArray[np.bool_]

    def __post_init__(self) -> None:
        sizes = {len(self.keys), len(self.seeds), len(self.patients), len(self.right)}
        if len(sizes) > 1:
            raise ValueError(f"Expected key, seed, patient and outcome of every case, got {sorted(sizes)}")

    def __len__(self) -> int:
        """How many cases there are."""
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The first method beside the second.

    Attributes:
        n: Cases that both answered, over all seeds.
        patients: Whose they are.
        first_rate: Rate of the first method; ``second_rate`` of the second.
        difference: First minus second, with its 95 % ``interval``.
        ratio: First by second, with its ``ratio_interval``; None where the second is never right.
        p_value: Two-sided, that there is no difference; by ``test``: McNemar's exact test on the cases of one
            seed with one case a patient, the bootstrap otherwise.
        by_seed: The difference in each run.
    """

    n: int
    patients: int
    first_rate: float
    second_rate: float
    difference: float
    interval: tuple[float, float]
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    p_value: float
    test: str
    by_seed: tuple[float, ...]


def compare(first: Hits, second: Hits, rng: np.random.Generator, *, draws: int = DRAWS) -> Paired:
    """The first method beside the second, on the same cases in the same order.

    Raises:
        ValueError: There is no case, or the cases are not the same.
    """
    if not len(first) or first.keys != second.keys:
        raise ValueError(f"Expected the same cases of both methods, got {len(first)} and {len(second)}")
    right = np.stack([first.right, second.right, np.ones(len(first))], axis=1).astype(np.float64)
    table = by_patient(right, first.patients)
    one, other, n = table.sum(axis=0)
    drawn = draw_sums(table, rng, draws)
    differences = (drawn[:, 0] - drawn[:, 1]) / drawn[:, 2]
    ratios = drawn[drawn[:, 1] > 0][:, :2]
    exact = len(set(first.seeds)) == 1 and len(table) == len(first)
    return Paired(
        n=len(first),
        patients=len(table),
        first_rate=one / n,
        second_rate=other / n,
        difference=(one - other) / n,
        interval=ends_of(differences),
        ratio=one / other if other else None,
        ratio_interval=ends_of(ratios[:, 0] / ratios[:, 1]) if other else None,
        p_value=mcnemar(first.right, second.right) if exact else bootstrap_p(differences),
        test=MCNEMAR if exact else BOOTSTRAP,
        by_seed=_by_seed(first, second),
    )


def rate_of(
    hits: Hits, rng: np.random.Generator, *, draws: int = DRAWS // 5
) -> tuple[float, tuple[float, float]]:
    """How often a method was right over all seeds, with the 95 % interval over patients."""
    if not len(hits):
        raise ValueError("Expected at least one case, got none")
    table = by_patient(np.stack([hits.right, np.ones(len(hits))], axis=1).astype(np.float64), hits.patients)
    drawn = draw_sums(table, rng, draws)
    return float(hits.right.mean()), ends_of(drawn[:, 0] / drawn[:, 1])


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided p-value of McNemar's exact test: only cases that one method alone got right tell."""
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def bootstrap_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of drawn differences: twice the share on the rarer side of zero, never zero."""
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values after Holm's correction, in their order.

    Guarantee: calling those below a level real calls any false one real with at most that probability, over
    all of them together.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = least
    return tuple(corrected)


def word_for(interval: Sequence[float]) -> Word:
    """What the interval of a difference says, and nothing beyond it: an end at zero shows no difference."""
    low, high = interval
    if low > 0:
        return Word.BETTER
    return Word.WORSE if high < 0 else Word.EVEN


def by_patient(table: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """The rows of each patient added up, (patients, columns)."""
    row_of = {patient: row for row, patient in enumerate(dict.fromkeys(patients))}
    sums = np.zeros((len(row_of), table.shape[1]))
    np.add.at(sums, [row_of[patient] for patient in patients], table)
    return sums


def draw_sums(table: NDArray[np.float64], rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """Sums over patients drawn with replacement, as many as there are: (draws, columns)."""
    patients, sums = len(table), []
    for start in range(0, draws, _CHUNK):
        rows = min(_CHUNK, draws - start)
        drawn = rng.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        sums.append(times.astype(np.float64) @ table)
    return np.concatenate(sums)


def ends_of(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of drawn figures."""
    low, high = np.quantile(drawn, ENDS)
    return float(low), float(high)


def _by_seed(first: Hits, second: Hits) -> tuple[float, ...]:
    seeds = np.array(first.seeds)
    gain = first.right.astype(np.float64) - second.right
    return tuple(float(gain[seeds == seed].mean()) for seed in dict.fromkeys(first.seeds))
