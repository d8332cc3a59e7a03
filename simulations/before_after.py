"""A student before and after its calibration, on the same cases: is its confidence nearer to the truth?

ECE is a mean over the runs of several seeds, each with its own bins. A bootstrap draw of patients has more
chance in its bins than the cases themselves, so that the ends of an interval of ECE lie a little high on both
sides of the comparison; the noise floor says how much of an ECE is chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.calibration import BINS, CONFIDENCE_STEPS, ReliabilityBins
from simulations.answered import Answered, Chooser, TrackRun, pair_of
from simulations.cases import Part
from simulations.paired import by_patient, compare, draw_sums, ends_of, word_for

DRAWS = 2000
HALF = 0.5
"""What calibration has to bring an ECE down to."""


def before_after(
    runs: Sequence[TrackRun], before: Chooser, after: Chooser, part: Part, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Calibration's figures on one test; None where no run has both on it.

    ``ece`` and ``floor`` before and after; ``ratio`` after by before with its interval; ``difference`` after
    minus before with its interval; ``accuracy`` as `compare` gives it, after against before; ``sites`` with
    each site's own ECE, and ``worst`` of them; ``bins`` of all runs together, for a diagram.
    """
    pair = pair_of(runs, after, before, 1, part)
    if pair is None:
        return None
    both = [
        (run, one, other)
        for run in runs
        if (one := before(run)) is not None and (other := after(run)) is not None
    ]
    found = [(_bins(run, one, part), _bins(run, other, part)) for run, one, other in both]
    ece = {"before": _mean_ece([one for one, _ in found]), "after": _mean_ece([other for _, other in found])}
    drawn = _drawn_eces(both, part, rng)
    accuracy = compare(*pair, rng)
    return {
        "n": sum(sum(one.n) for one, _ in found),
        "seeds": [run.seed for run, *_ in both],
        "ece": ece,
        "floor": {
            "before": fmean(_floor(one, rng) for one, _ in found),
            "after": fmean(_floor(other, rng) for _, other in found),
        },
        "ratio": ece["after"] / ece["before"] if ece["before"] else None,
        "ratio_interval": _ratio_ends(drawn),
        "difference": ece["after"] - ece["before"],
        "difference_interval": list(ends_of(drawn[:, 1] - drawn[:, 0])),
        "accuracy": {
            "before": accuracy.second_rate,
            "after": accuracy.first_rate,
            "difference": accuracy.difference,
            "interval": list(accuracy.interval),
            "word": str(word_for(accuracy.interval)),
        },
        "sites": _by_site(both, part, rng),
        "bins": {
            name: _bins_dict(reduce(ReliabilityBins.__add__, [pair[place] for pair in found]))
            for place, name in enumerate(("before", "after"))
        },
    }


def bins_of(block: Mapping[str, Sequence[int]]) -> ReliabilityBins:
    """The bins that an entry of ``bins`` holds."""
    return ReliabilityBins(**{name: tuple(numbers) for name, numbers in block.items()})


def worst_site(sites: Mapping[str, Mapping[str, float]], when: str) -> tuple[str, float] | None:
    """The site with the highest ECE, and its ECE."""
    return max(((site, one[when]) for site, one in sites.items()), key=lambda one: one[1], default=None)


def _bins(run: TrackRun, answered: Answered, part: Part, site: str | None = None) -> ReliabilityBins:
    rows = [row for row in run.rows(part) if answered.asked[row] and site in (None, run.cases[row].site)]
    return ReliabilityBins.from_cases(answered.confidence[rows], answered.right(1)[rows])


def _bins_dict(bins: ReliabilityBins) -> dict[str, list[int]]:
    return {"n": list(bins.n), "correct": list(bins.correct), "confidence_sum": list(bins.confidence_sum)}


def _mean_ece(found: Sequence[ReliabilityBins]) -> float:
    return fmean(ece for bins in found if (ece := bins.ece()) is not None)


def _floor(bins: ReliabilityBins, rng: np.random.Generator) -> float:
    return bins.noise_floor(rng) or 0.0


def _by_site(
    both: Sequence[tuple[TrackRun, Answered, Answered]], part: Part, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    sites = sorted({case.site for run, *_ in both for case in run.cases if case.part == part and case.site})
    found = {}
    for site in sites:
        pairs = [(_bins(run, one, part, site), _bins(run, other, part, site)) for run, one, other in both]
        pairs = [pair for pair in pairs if sum(pair[0].n)]
        if pairs:
            found[site] = {
                "n": float(sum(sum(one.n) for one, _ in pairs)),
                "before": _mean_ece([one for one, _ in pairs]),
                "after": _mean_ece([other for _, other in pairs]),
                "floor": fmean(_floor(other, rng) for _, other in pairs),
            }
    return found


def _drawn_eces(
    both: Sequence[tuple[TrackRun, Answered, Answered]], part: Part, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean ECE before and after of drawn patients, (draws, 2)."""
    width = 3 * BINS
    rows, patients = [], []
    for place, (run, *methods) in enumerate(both):
        for row in run.rows(part):
            if not all(one.asked[row] for one in methods):
                continue
            line = np.zeros((len(both), 2, width))
            for which, one in enumerate(methods):
                line[place, which] = _line(one, row)
            rows.append(line.ravel())
            patients.append(run.cases[row].patient)
    sums = draw_sums(by_patient(np.array(rows), patients), rng, DRAWS)
    n, correct, confidence = np.moveaxis(sums.reshape(DRAWS, len(both), 2, 3, BINS), 3, 0)
    gap = np.abs(correct - confidence).sum(axis=-1)
    total = n.sum(axis=-1)
    return np.divide(gap, total, out=np.zeros_like(gap), where=total > 0).mean(axis=1)


def _line(answered: Answered, row: int) -> NDArray[np.float64]:
    """A case's numbers: one in its bin, whether right, its confidence."""
    bins = ReliabilityBins.from_cases(answered.confidence[[row]], answered.right(1)[[row]])
    return np.array([*bins.n, *bins.correct, *(total / CONFIDENCE_STEPS for total in bins.confidence_sum)])


def _ratio_ends(drawn: NDArray[np.float64]) -> list[float] | None:
    known = drawn[drawn[:, 0] > 0]
    return list(ends_of(known[:, 1] / known[:, 0])) if len(known) else None
