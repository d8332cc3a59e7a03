"""All figures of one track over the runs of several seeds: every method, and paired comparisons.

Rates that answers tell (top-1 and the track's longer reach) are pooled over the runs with an interval over
patients; every other figure is the mean of the runs' own. Rivals are compared on the cases that both sides
were judged on, and Holm's correction is over all lines of one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from common.tracks import TRACKS
from simulations.answered import (
    Chooser,
    TrackRun,
    best_site,
    hits_at,
    is_by_site,
    local_methods,
    method_hits,
    named,
    pair_of,
    pooled,
)
from simulations.before_after import before_after
from simulations.cases import Part
from simulations.paired import Hits, compare, holm, rate_of, word_for
from simulations.standings import (
    MEAN,
    NEW_PUBLICATIONS,
    Kind,
    Standing,
    calibration_of,
    epsilon_of,
    method_label,
    standings,
)
from simulations.sweep import NO_NOISE
from simulations.table import REACH

MAIN, ALONE = "federated_orpo", "local_orpo"
ALL_SITES = "all sites"
PARTS: Mapping[Part, str | None] = {"union": None, "new": NEW_PUBLICATIONS}
"""The tests, and where a method's entry of ``results.json`` has its scores on them."""
_NO_RATES = frozenset({"n", "seconds", "bytes_up"})


def track_evidence(track: str, runs: Sequence[TrackRun]) -> dict[str, Any]:
    """All figures of one track."""
    reach = int(REACH[TRACKS[track].modality].removeprefix("top"))
    first = runs[0].results
    return {
        "unit": first.get("unit", "patient"),
        "n_answers": first["n_answers"],
        "n_train": [run.results["n_train"] for run in runs],
        "n_cases": {part: [len(run.rows(part)) for run in runs] for part in PARTS},
        "n_patients": {
            part: len({run.cases[row].patient for run in runs for row in run.rows(part)}) for part in PARTS
        },
        "sites": sorted({case.site for run in runs for case in run.cases if case.site is not None}),
        "reach": reach,
        "methods": [_method(runs, one, reach) for one in _all_methods(runs)],
        "comparisons": {part: _comparisons(runs, _rivals(runs, part), reach, part) for part in PARTS},
        "own_answers": _own_answers(runs, reach),
        "privacy_price": {part: _private(runs, reach, part) for part in PARTS},
        "calibration": _calibrations(runs),
    }


def draws_for(*names: object) -> np.random.Generator:
    """What one figure's interval is drawn with: it does not depend on which other figures there are."""
    return np.random.default_rng([*"/".join(map(str, names)).encode()])


def _all_methods(runs: Sequence[TrackRun]) -> list[Standing]:
    """Every method of any run, once, in the order of the standings."""
    methods: dict[str, Any] = {}
    for run in runs:
        methods |= {name: entry for name, entry in run.results["methods"].items() if name not in methods}
    return list(standings({"methods": methods}))


def _method(runs: Sequence[TrackRun], one: Standing, reach: int) -> dict[str, Any]:
    """One line of the table: rates with intervals from the answers, all else as means over the runs."""
    entries = [entry for run in runs if (entry := _entry(run, one)) is not None]
    tests = {part: _on_test(runs, one, reach, part) for part in PARTS}
    return {
        "method": one.method,
        "site": one.site,
        "kind": str(one.kind),
        "label": one.label,
        "seeds": [run.seed for run in runs if _entry(run, one) is not None],
        **{part: found for part, found in tests.items() if found is not None},
        "seconds": _mean(entry.get("seconds") for entry in entries),
        "bytes_up": _mean(entry.get("bytes_up") for entry in entries),
        "epsilon": _mean((entry.get("privacy") or {}).get("epsilon") for entry in entries),
        "retrieval": _means([entry.get("retrieval") or {} for entry in entries]),
    }


def _entry(run: TrackRun, one: Standing) -> Mapping[str, Any] | None:
    entry: Mapping[str, Any] | None = run.results["methods"].get(one.method)
    return entry if entry is None or one.site is None else entry.get(one.site)


def _on_test(runs: Sequence[TrackRun], one: Standing, reach: int, part: Part) -> dict[str, Any] | None:
    key = PARTS[part]
    entries = [entry for run in runs if (entry := _entry(run, one)) is not None]
    scores = [found for entry in entries if (found := entry if key is None else entry.get(key))]
    if not scores:
        return None
    found = {name: {"rate": rate} for name, rate in _means([_rates(one) for one in scores]).items()}
    for top in (1, reach):
        hits = method_hits(runs, one.method, one.site, top, part)
        if len(hits):
            rate, ends = rate_of(hits, draws_for(one.method, one.site, part))
            found[f"top{top}"] = {"rate": rate, "interval": list(ends), "by_seed": _by_seed(hits)}
    return {"n": sum(score["n"] for score in scores), **found}


def _rates(scores: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        name: rate for name, rate in scores.items() if name not in _NO_RATES and not isinstance(rate, Mapping)
    }


def _by_seed(hits: Hits) -> list[float]:
    seeds = np.array(hits.seeds)
    return [float(hits.right[seeds == seed].mean()) for seed in dict.fromkeys(hits.seeds)]


def _rivals(runs: Sequence[TrackRun], part: Part) -> Iterator[tuple[str, str, Callable[[int], Chooser]]]:
    """Whom the federated student is compared with: name, label, and whose answers they are at a reach."""
    for method in local_methods(runs):
        suffix = method_label(method, "").partition(", ")[2]
        label = f"Best site alone, {suffix}" if suffix else "Best site alone"
        yield f"best_{method}", label, partial(_best, method, part)
    for one in _all_methods(runs):
        apart = one.method == MAIN or one.site is not None or one.method.endswith(MEAN)
        # Teachers with one eye are no rivals, and a calibrated student has a section of its own.
        if not apart and not one.method.startswith("teacher_") and calibration_of(one.method) is None:
            yield one.method, one.label, partial(_same, one.method)


def _best(method: str, part: Part, reach: int) -> Chooser:
    return best_site(method, reach, part)


def _same(method: str, _reach: int) -> Chooser:
    return named(method)


def _comparisons(
    runs: Sequence[TrackRun],
    rivals: Iterable[tuple[str, str, Callable[[int], Chooser]]],
    reach: int,
    part: Part,
    main: str = MAIN,
) -> list[dict[str, Any]]:
    """The main method beside each rival, at both reaches; Holm's correction over all lines together."""
    lines = []
    for name, label, chosen in rivals:
        for top in (1, reach):
            pair = pair_of(runs, named(main), chosen(top), top, part)
            if pair is not None:
                lines.append(
                    {
                        "first": main,
                        "second": name,
                        "label": label,
                        "top": top,
                        **_line(pair, main, name, part),
                    }
                )
    return _corrected(lines)


def _line(pair: tuple[Hits, Hits], *names: object) -> dict[str, Any]:
    found = compare(*pair, draws_for(*names))
    return {
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found).items()},
        "seeds": list(dict.fromkeys(pair[0].seeds)),
        "word": str(word_for(found.interval)),
    }


def _corrected(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    corrected = holm([line["p_value"] for line in lines])
    return [{**line, "p_holm": p} for line, p in zip(lines, corrected, strict=True)]


def _own_answers(runs: Sequence[TrackRun], reach: int) -> list[dict[str, Any]]:
    """The federated student beside a site's own, on the site's own answers; then all sites together."""
    sites = sorted({site for run in runs for site in run.sites_of(ALONE)})
    lines = []
    for top in (1, reach):
        pairs = {site: pair for site in sites if (pair := _own_pair(runs, site, top)) is not None}
        if pairs:
            pairs[ALL_SITES] = _together(list(pairs.values()))
        lines += [{"site": site, "top": top, **_line(pair, "own", site)} for site, pair in pairs.items()]
    return _corrected(lines)


def _own_pair(runs: Sequence[TrackRun], site: str, reach: int) -> tuple[Hits, Hits] | None:
    found = []
    for run in runs:
        ours, own = run.answered.get((MAIN, None)), run.answered.get((ALONE, site))
        if ours is not None and own is not None:
            rows = run.own_rows(site)
            found.append(tuple(hits_at(run, one, reach, rows, site) for one in (ours, own)))
    pair = _together(found)
    return pair if len(pair[0]) else None


def _together(pairs: Sequence[tuple[Hits, ...]]) -> tuple[Hits, Hits]:
    return pooled([pair[0] for pair in pairs]), pooled([pair[1] for pair in pairs])


def _private(runs: Sequence[TrackRun], reach: int, part: Part) -> list[dict[str, Any]]:
    """Each student with a promise, beside the one without and beside the best site alone without."""
    methods = _all_methods(runs)
    plain = NO_NOISE if NO_NOISE in {one.method for one in methods} else MAIN
    private = [one for one in methods if one.kind is Kind.FEDERATED and epsilon_of(one.method)]
    lines = []
    for one in private:
        rivals = (
            (plain, "the federated student without noise", partial(_same, plain)),
            (f"best_{ALONE}", "the best site alone without noise", partial(_best, ALONE, part)),
        )
        found = _comparisons(runs, rivals, reach, part, one.method)
        lines += [{**line, "epsilon": epsilon_of(one.method), "first_label": one.label} for line in found]
    return _corrected(lines)


def _calibrations(runs: Sequence[TrackRun]) -> list[dict[str, Any]]:
    """Every calibrated student beside the one that it was before."""
    found = []
    for one in _all_methods(runs):
        origin = calibration_of(one.method)
        if origin is None or one.site is not None or is_by_site(one.method, runs):
            continue
        tests: dict[str, dict[str, Any] | None] = {
            part: before_after(
                runs, named(origin[0]), named(one.method), part, draws_for(one.method, part, "ece")
            )
            for part in PARTS
        }
        known = {part: test for part, test in tests.items() if test is not None}
        if known:
            found.append(
                {"method": one.method, "before": origin[0], "how": origin[1], "label": one.label, **known}
            )
    return found


def _mean(values: Iterable[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each figure over the runs that have measured it."""
    names = dict.fromkeys(name for one in found for name in one)
    means = {name: _mean(one.get(name) for one in found) for name in names}
    return {name: mean for name, mean in means.items() if mean is not None}
