"""What privacy costs: how right the students of a sweep are, over epsilon and by who draws the noise.

``sweep.json`` holds the figures, ``privacy.html`` shows them on one page. The intervals are of another draw
of test patients; another draw of noise moves a figure as well, and no interval here says by how much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import write_atomically
from simulations.judging import Judgement, Verdict
from simulations.kept import Trained
from simulations.method_settings import SweepPoint
from simulations.pages import render_template
from simulations.plots import BarredCurve, Level, draw_barred
from simulations.results import DIGITS
from simulations.scores import DRAWS, LEVEL, Outcomes
from simulations.settings import SimulationSettings
from simulations.standings import percent, percent_interval
from simulations.students import Students
from simulations.sweep import method_of, no_noise_of, noise_std

SWEEP_SCHEMA = 1
SWEEP_FILE = "sweep.json"
PAGE_FILE = "privacy.html"
TEMPLATE_FILE = "tradeoff.html.j2"
RATES: Mapping[str, str] = {"top1": "top-1", "top10": "top-10"}
MODES: Mapping[str, str] = {"distributed": "noise shared by all sites", "local": "each site its own noise"}


def write_tradeoff(
    settings: SimulationSettings, content: Mapping[str, Any], trained: Students, judged: Judgement
) -> Path:
    """Write both files into ``settings.out``, each whole or not at all, and return the page's path."""
    block = sweep_block(settings, content, trained, judged)
    write_atomically(settings.out / SWEEP_FILE, json.dumps(block, indent=2, allow_nan=False) + "\n")
    path = settings.out / PAGE_FILE
    write_atomically(path, render_page(block))
    return path


def sweep_block(
    settings: SimulationSettings, content: Mapping[str, Any], trained: Students, judged: Judgement
) -> dict[str, Any]:
    """The content of ``sweep.json``.

    Args:
        settings: Of the run; with a sweep.
        content: Of its ``results.json``, which the figures are taken from.
        trained: Its students.
        judged: Their answers, which the differences are taken from.
    """
    ((name, track),) = content["tracks"].items()
    points = sorted(settings.sweep, key=lambda point: (point.mode, point.epsilon))
    return {
        "schema": SWEEP_SCHEMA,
        "scenario": settings.name,
        "seed": settings.seed,
        "track": name,
        "sites": len(_student(trained, no_noise_of(settings))[1].sites),
        "n_train": track["n_train"],
        "n_test": track["n_test"],
        "n_answers": track["n_answers"],
        "delta": settings.plan.privacy.delta,
        "points": [_point(point, method_of(settings, point), track, trained) for point in points],
        "no_noise": _figures(no_noise_of(settings), track),
        "base": _figures("base", track),
        "gains": _gains(settings, trained, judged),
    }


def paired_difference(
    first: Outcomes, second: Outcomes, rate: str, rng: np.random.Generator
) -> tuple[float, tuple[float, float]]:
    """By how much the first method's rate is higher on the same patients, with its 95 % interval.

    A patient is drawn with both methods' answers, so what makes a patient hard for both is not counted
    twice.

    Args:
        first: One case a patient; ``second`` on the same patients in the same order.
        rate: ``top1``, ``top5`` or ``top10``.
        rng: Of the bootstrap.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"Expected outcomes of the same patients, got {len(first)} and {len(second)}")
    pairs = zip(first.counts, second.counts, strict=True)
    gains = np.array([getattr(one, rate) - getattr(other, rate) for one, other in pairs], dtype=np.float64)
    patients = len(gains)
    drawn = rng.multinomial(patients, np.full(patients, 1 / patients), size=DRAWS) @ gains / patients
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(gains.mean()), (float(low), float(high))


def render_page(block: Mapping[str, Any]) -> str:
    """The page, from the content of ``sweep.json`` alone.

    Guarantee: the page makes no request and runs no script.
    """
    filters = {
        "percent": percent,
        "percent_interval": percent_interval,
        "number": "{:,}".format,
        "points": "{:+.1f}".format,
    }
    return render_template(
        TEMPLATE_FILE,
        filters,
        block=block,
        rates=RATES,
        modes=MODES,
        drawings=[_drawing(block, rate) for rate in RATES],
        bounded=all(point["epsilon_spent"] is not None for point in block["points"]),
    )


def _student(trained: Students, method: str) -> tuple[Trained, Any]:
    """A federated student and its plan."""
    one = trained[method]
    if not isinstance(one, Trained) or one.plan is None:
        raise ValueError(f"Expected a federated student, got {method}")
    return one, one.plan


def _point(point: SweepPoint, method: str, track: Mapping[str, Any], trained: Students) -> dict[str, Any]:
    student, plan = _student(trained, method)
    privacy = student.privacy or {}
    return {
        "mode": point.mode,
        "epsilon": point.epsilon,
        **_figures(method, track),
        "epsilon_spent": privacy["epsilon"],
        "epsilon_teacher": privacy["epsilon_teacher"],
        "statement": privacy["statement"],
        "noise_multiplier": privacy["sigma"],
        "noise_std": noise_std(plan),
    }


def _figures(method: str, track: Mapping[str, Any]) -> dict[str, Any]:
    entry = track["methods"][method]
    return {
        "method": method,
        **{rate: entry[rate] for rate in RATES},
        "interval": {rate: entry["interval"][rate] for rate in RATES},
    }


def _gains(settings: SimulationSettings, trained: Students, judged: Judgement) -> list[dict[str, Any]]:
    """Distributed minus local, at each epsilon that the sweep has both of."""
    method = {(point.mode, point.epsilon): method_of(settings, point) for point in settings.sweep}
    found = []
    for epsilon in sorted({point.epsilon for point in settings.sweep}):
        shared, own = method.get(("distributed", epsilon)), method.get(("local", epsilon))
        if shared is not None and own is not None:
            found.append(_gain(settings.seed, epsilon, shared, own, trained, judged))
    return found


def _gain(
    seed: int, epsilon: float, shared: str, own: str, trained: Students, judged: Judgement
) -> dict[str, Any]:
    first, second = (_outcomes(judged, method) for method in (shared, own))
    stds = [noise_std(_student(trained, method)[1]) for method in (own, shared)]
    found: dict[str, Any] = {"epsilon": epsilon, "noise_std_ratio": stds[0] / stds[1]}
    for rate in RATES:
        # Drawn alike for every pair of students, whichever points there are.
        gain, ends = paired_difference(first, second, rate, np.random.default_rng([seed, *b"sweep"]))
        found[rate] = round(gain, DIGITS)
        found[f"{rate}_interval"] = [round(end, DIGITS) for end in ends]
    return found


def _outcomes(judged: Judgement, method: str) -> Outcomes:
    verdict = judged.students[method]
    if not isinstance(verdict, Verdict):
        raise ValueError(f"Expected one student for all sites, got one each of {method}")
    return verdict.union.outcomes


def _drawing(block: Mapping[str, Any], rate: str) -> dict[str, str]:
    """A drawing of one rate, and what it says in words."""
    curves = [
        BarredCurve(
            label=label,
            x=[point["epsilon"] for point in points],
            y=[point[rate] for point in points],
            ends=[point["interval"][rate] for point in points],
        )
        for mode, label in MODES.items()
        if (points := [point for point in block["points"] if point["mode"] == mode])
    ]
    levels = [
        Level(label=label, y=block[key][rate], ends=block[key]["interval"][rate])
        for key, label in (("no_noise", "no noise, no promise"), ("base", "untrained"))
    ]
    said = "; ".join(f"{curve.label}: {_said(curve)}" for curve in curves)
    plain = ", ".join(f"{level.label} {percent(level.y)}" for level in levels)
    svg = draw_barred(
        curves, levels, title=RATES[rate], x_label="ε (smaller protects more)", y_label="share that was right"
    )
    return {"svg": svg, "alt": f"{RATES[rate]}. {said}; {plain}."}


def _said(curve: BarredCurve) -> str:
    return ", ".join(f"{percent(y)} at ε {x:g}" for x, y in zip(curve.x, curve.y, strict=True))
