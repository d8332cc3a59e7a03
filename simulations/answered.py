"""What the methods of finished runs answered, case by case, for comparisons that no run makes by itself.

Read from ``predictions/`` alone: a rank of the truth, the first answer's confidence, and whose case it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.student.predictions import Prediction, read_predictions
from common.errors import BadFileError
from common.ids import SiteId
from simulations.cases import Case, Part, read_cases
from simulations.paired import Hits
from simulations.results import predictions_path
from simulations.standings import MEAN, Kind, standings


@dataclass(frozen=True, kw_only=True, repr=False)
class Answered:
    """A method's answers to a run's cases, in the order of the run's cases.

    Attributes:
        asked: (n,), whether the method was judged on the case at all.
        rank: (n,), the truth's place in the list of answers, from 1; 0 where it is not in the list.
        confidence: (n,), of the first answer, 0 to 1; 0 where there is none.
    """

    asked: NDArray[np.bool_]
    rank: NDArray[np.int64]
    confidence: NDArray[np.float64]

    def at(self, places: Sequence[int]) -> Answered:
        """The answers to the cases at these places."""
        rows = np.array(places, dtype=np.int64)
        return Answered(asked=self.asked[rows], rank=self.rank[rows], confidence=self.confidence[rows])

    def right(self, reach: int) -> NDArray[np.bool_]:
        """(n,), whether the truth is among the first ``reach`` answers."""
        return (self.rank > 0) & (self.rank <= reach)


@dataclass(frozen=True, kw_only=True, repr=False)
class TrackRun:
    """One track of one run.

    Attributes:
        seed: The run's.
        results: The track's part of ``results.json``.
        cases: Of both tests.
        answered: By method and site; the site is None where all sites share one student.
    """

    seed: int
    results: Mapping[str, Any]
    cases: tuple[Case, ...]
    answered: Mapping[tuple[str, str | None], Answered]

    def rows(self, part: Part) -> NDArray[np.int64]:
        """Places of a test's cases."""
        return np.array([i for i, case in enumerate(self.cases) if case.part == part], dtype=np.int64)

    def own_rows(self, site: str) -> NDArray[np.int64]:
        """Places of the cases of the union whose answer the site has training patients for."""
        return np.array([i for i, case in enumerate(self.cases) if site in case.own_sites], dtype=np.int64)

    def sites_of(self, method: str) -> tuple[str, ...]:
        """The sites that have their own student of a method."""
        return tuple(site for name, site in self.answered if name == method and site is not None)


Chooser = Callable[[TrackRun], Answered | None]
"""Which answers of a run are compared; None where the run has none."""


def read_track(folder: Path, content: Mapping[str, Any], track: str) -> TrackRun:
    """A track of a run in ``folder``, whose ``results.json`` holds ``content``.

    Raises:
        OSError: Predictions of a method, or the cases, are not there.
        BadFileError, ValueError: A file is damaged, or answers cases that the run does not know.
    """
    results, cases = content["tracks"][track], read_cases(folder, track)
    places = {case.case_id: place for place, case in enumerate(cases)}
    answered = {}
    for one in standings(results):
        if one.method.endswith(MEAN):
            continue  # a mean has no answers of its own
        path = predictions_path(folder, track, one.method, None if one.site is None else SiteId(one.site))
        answered[one.method, one.site] = _answered(path, read_predictions(path), places)
    return TrackRun(seed=content["seed"], results=results, cases=cases, answered=answered)


def _answered(path: Path, predictions: Sequence[Prediction], places: Mapping[str, int]) -> Answered:
    n = len(places)
    asked, rank, confidence = np.zeros(n, np.bool_), np.zeros(n, np.int64), np.zeros(n)
    for one in predictions:
        if one.case_id not in places or one.truth is None:
            raise BadFileError(path, f"expected the run's cases with their truth, got {one.case_id}")
        place, ids = places[one.case_id], [answer.id for answer in one.answers]
        asked[place] = True
        rank[place] = ids.index(one.truth) + 1 if one.truth in ids else 0
        confidence[place] = one.answers[0].confidence if one.answers else 0.0
    return Answered(asked=asked, rank=rank, confidence=confidence)


def named(method: str, site: str | None = None) -> Chooser:
    """The answers of a method, of one site where each has its own."""
    return lambda run: run.answered.get((method, site))


def best_site(method: str, reach: int, part: Part) -> Chooser:
    """The answers of the site whose own student is right most often on a test, in each run anew.

    The choice looks at the very cases that are compared: it favors the site alone, never the federation.
    """

    def choose(run: TrackRun) -> Answered | None:
        rows = run.rows(part)
        found = [run.answered[method, site] for site in run.sites_of(method)]
        return max(found, key=lambda one: one.right(reach)[rows].sum(), default=None)

    return choose


def pair_of(
    runs: Sequence[TrackRun], first: Chooser, second: Chooser, reach: int, part: Part
) -> tuple[Hits, Hits] | None:
    """Both methods' hits on the cases of a test that both were judged on; None where there are none."""
    both = [
        (run, one, other, rows[one.asked[rows] & other.asked[rows]])
        for run in runs
        if (one := first(run)) is not None and (other := second(run)) is not None
        for rows in [run.rows(part)]
    ]
    if not sum(len(rows) for *_, rows in both):
        return None
    return (
        pooled([hits_at(run, one, reach, rows) for run, one, _, rows in both]),
        pooled([hits_at(run, other, reach, rows) for run, _, other, rows in both]),
    )


def hits_at(
    run: TrackRun, answered: Answered, reach: int, rows: NDArray[np.int64], tag: str | None = None
) -> Hits:
    """The hits of some of a run's cases; ``tag`` tells apart cases that are taken several times."""
    cases = [run.cases[row] for row in rows]
    return Hits(
        keys=tuple((run.seed, case.case_id, tag) for case in cases),
        seeds=(run.seed,) * len(cases),
        patients=tuple(case.patient for case in cases),
        right=answered.right(reach)[rows],
    )


def pooled(parts: Sequence[Hits]) -> Hits:
    """The hits of several runs, or of several sites' cases, together."""
    return Hits(
        keys=tuple(key for part in parts for key in part.keys),
        seeds=tuple(seed for part in parts for seed in part.seeds),
        patients=tuple(patient for part in parts for patient in part.patients),
        right=np.concatenate([part.right for part in parts]) if parts else np.zeros(0, np.bool_),
    )


def method_hits(runs: Sequence[TrackRun], method: str, site: str | None, reach: int, part: Part) -> Hits:
    """A method's hits on a test over all runs; of a mean over sites, those of every site's student."""
    single = method.removesuffix(MEAN)
    found = []
    for run in runs:
        sites = run.sites_of(single) if method.endswith(MEAN) else (site,)
        for one in sites:
            answered = run.answered.get((single, one))
            if answered is not None:
                rows = run.rows(part)
                found.append(hits_at(run, answered, reach, rows[answered.asked[rows]], one))
    return pooled(found)


def is_by_site(method: str, runs: Sequence[TrackRun]) -> bool:
    """Whether each site has its own student of a method."""
    return any(run.sites_of(method) for run in runs)


def local_methods(runs: Sequence[TrackRun]) -> list[str]:
    """The methods that each site trains by itself, the main one first."""
    found = {one.method: None for run in runs for one in standings(run.results) if one.kind is Kind.LOCAL}
    return list(found)
