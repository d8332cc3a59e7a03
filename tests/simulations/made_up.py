"""Folders of finished runs that never were: two sites, ten answers, and methods that are as right as told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.student.predictions import Prediction, RankedAnswer, write_predictions
from common.ids import SiteId
from simulations.cases import Case, write_cases
from simulations.results import (
    AggregationResult,
    MethodResult,
    RunResult,
    TrackResult,
    predictions_path,
    write_results,
)
from simulations.scores import RATES, Scores

TRACK = "rare_disease"
SITES = (SiteId("site-a"), SiteId("site-b"))
ANSWERS = tuple(RankedAnswer(id=f"OMIM:{i}", name=f"disease <{i}>", confidence=0.0) for i in range(20))
# Method: how often the first answer is right, and how sure it says it is.
METHODS: Mapping[str, tuple[float, float]] = {
    "base": (0.2, 0.3),
    "search": (0.35, 0.2),
    "federated_orpo": (0.7, 0.95),
    "federated_sft": (0.69, 0.9),
    "federated_orpo_temperature": (0.7, 0.72),
    "federated_orpo_distributed_eps_2": (0.45, 0.5),
    "federated_orpo_distributed_eps_8": (0.6, 0.6),
    "rag_rag": (0.5, 0.5),
    "pooled_orpo": (0.72, 0.9),
    "linear_model": (0.9, 0.9),
    "teacher": (0.8, 0.8),
}
LOCAL = {SITES[0]: (0.4, 0.6), SITES[1]: (0.3, 0.6)}
UNION, NEW = 240, 80


def write_run(folder: Path, seed: int, methods: Mapping[str, tuple[float, float]] = METHODS) -> Path:
    """A run of a seed: half of the union's cases are each site's, and are its own answers."""
    cases = made_cases()
    write_cases(folder, TRACK, cases)
    results: dict[str, Any] = {}
    for name, (rate, confidence) in methods.items():
        asked = cases[:UNION] if name == "teacher" else cases
        answers = answered(asked, rate, confidence, [seed, *name.encode()])
        write_predictions(predictions_path(folder, TRACK, name), answers)
        results[name] = method_result(answers, name)
    local = {}
    for site, (rate, confidence) in LOCAL.items():
        answers = answered(cases, rate, confidence, [seed, *site.encode()])
        write_predictions(predictions_path(folder, TRACK, "local_orpo", site), answers)
        local[site] = method_result(answers, "local_orpo")
    results |= {"local_orpo": local, "local_orpo_mean": local[SITES[0]]}
    track = TrackResult(n_train=500, n_test=UNION, n_answers=len(ANSWERS), methods=results)
    aggregation = AggregationResult(
        rounds=1, dropped=0, retried=0, bytes_up_per_site=1, seconds=1.0, work_seconds=0.5
    )
    run = RunResult(
        scenario="compare",
        seed=seed,
        seconds={"rounds": 60.0},
        tracks={TRACK: track},
        aggregation=aggregation,
    )
    write_results(folder, run)
    return folder


def made_cases() -> tuple[Case, ...]:
    union = [
        Case(
            case_id=f"case-{i}",
            part="union",
            patient=f"case-{i}",
            site=SITES[i % 2],
            own_sites=(SITES[i % 2],),
        )
        for i in range(UNION)
    ]
    new = [Case(case_id=f"new-{i}", part="new", patient=f"new-{i}") for i in range(NEW)]
    return (*union, *new)


def answered(
    cases: Sequence[Case], rate: float, confidence: float, seed: list[int]
) -> tuple[Prediction, ...]:
    """Lists of ten; the truth is first as often as told, and otherwise ninth, or not there, in turns."""
    rng = np.random.default_rng(seed)
    found = []
    for case in cases:
        truth = ANSWERS[rng.integers(10)]
        others = [answer for answer in ANSWERS if answer is not truth]
        first = rng.random() < rate * (1 if case.part == "union" else 0.6)
        if first:
            ids = [truth, *others[:9]]
        else:
            ids = [*others[:8], truth, others[8]] if rng.random() < 0.6 else others[:10]
        stated = float(np.clip(confidence + 0.1 * rng.standard_normal(), 0.05, 1))
        listed = tuple(
            RankedAnswer(id=one.id, name=one.name, confidence=stated if place == 0 else 0.0)
            for place, one in enumerate(ids)
        )
        found.append(Prediction(case_id=case.case_id, answers=listed, truth=truth.id))
    return tuple(found)


def method_result(answers: Sequence[Prediction], name: str) -> MethodResult:
    new = answers[UNION:]
    return MethodResult(
        union=made_scores(answers[:UNION]),
        new_publications=made_scores(new) if new else None,
        seconds=None if name in ("search", "teacher") else 12.0,
        bytes_up=2_000_000 if name.startswith("federated") else None,
        privacy={"epsilon": float(name[-1])} if "_eps_" in name else None,
        retrieval={"hit_rate": 0.8, "tokens": 412.0, "seconds": 1.5} if name.startswith("rag") else None,
    )


def made_scores(answers: Sequence[Prediction]) -> Scores:
    ranks = [
        [answer.id for answer in one.answers].index(one.truth)
        for one in answers
        if one.truth in {a.id for a in one.answers}
    ]
    rates: dict[str, float | None] = dict.fromkeys(RATES)
    for top in (1, 5, 10):
        rates[f"top{top}"] = sum(rank < top for rank in ranks) / len(answers)
    rates |= {"ece": 0.1, "coverage": 0.5, "invalid_rate": 0.01}
    return Scores(n=len(answers), rates=rates, interval={}, ece_noise_floor=0.03)
