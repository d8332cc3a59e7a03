"""`report.html`: what a run reached, for the people of a hospital, as one file without outside requests.

It begins with a picture of who wins and ends with how patients were protected, in words. Every figure comes
from the content of ``results.json``; the pictures' further material is a `RunPicture`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from common.adapter import Block
from common.atomic import write_atomically
from common.calibration import ReliabilityBins
from common.ids import SiteId
from common.plan import RunPlan, TrackPlan
from common.privacy_plan import PrivacyMode
from common.tracks import TRACKS, AnswerList, Modality
from server.rounds import RoundReport
from simulations.pages import render_template
from simulations.plots import SERIES, Curve, draw_curves, draw_reliability, reliability_points
from simulations.results import AGGREGATION_MODE
from simulations.standings import (
    NEW_PUBLICATIONS,
    Kind,
    charted,
    first_of,
    headline,
    method_label,
    own_answers,
    own_label,
    percent,
    percent_interval,
    standings,
)
from simulations.table import REACH, cases_of, columns_of, figure, more_columns

REPORT_FILE = "report.html"
TEMPLATE_FILE = "report.html.j2"
MEGABYTE = 1e6
_READS: Mapping[Modality, str] = {
    Modality.TEXT: "Students read the note alone; the teachers also see photos, and slides where there are "
    "any.",
    Modality.IMAGE: "Students see one tile alone; a teacher sees all tiles of a patient, and whatever else "
    "he brings.",
}
_NOUNS: Mapping[Modality, tuple[str, str]] = {
    Modality.TEXT: ("diagnosis", "diagnoses"),
    Modality.IMAGE: ("tissue", "tissues"),
}
_SIDE_BY_SIDE = (Kind.BASE, Kind.LOCAL_MEAN, Kind.FEDERATED, Kind.POOLED, Kind.TEACHER)


@dataclass(frozen=True, kw_only=True)
class SiteHolding:
    """What a site trains with.

    Attributes:
        site: Whose it is.
        patients: Its training patients.
        patients_by_answer: How many of them have each answer, by answer id; answers without any left out.
    """

    site: SiteId
    patients: int
    patients_by_answer: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class TrackPicture:
    """What a report shows of a track beyond its results.

    Attributes:
        answers: The plan's.
        holdings: What each site trains with.
        rounds: Of the federated student, in order: the history of its `TrackState`.
        bins: Reliability on the union test, by the name of a method that has one entry in the results.
    """

    answers: AnswerList
    holdings: Sequence[SiteHolding]
    rounds: Sequence[RoundReport]
    bins: Mapping[str, ReliabilityBins]


@dataclass(frozen=True, kw_only=True)
class RunPicture:
    """What a report shows beyond the results.

    Attributes:
        plan: The run's.
        patients: In a sentence, where the patients come from.
        tracks: By name, as in the results.
    """

    plan: RunPlan
    patients: str
    tracks: Mapping[str, TrackPicture]


def write_report(folder: Path, content: Mapping[str, Any], picture: RunPicture) -> Path:
    """Write ``report.html`` into ``folder``, whole or not at all, and return its path."""
    path = folder / REPORT_FILE
    write_atomically(path, render_report(content, picture))
    return path


def render_report(content: Mapping[str, Any], picture: RunPicture) -> str:
    """Return the page.

    Guarantee: the page makes no request and runs no script; no text of the plan or the results becomes
    markup.

    Raises:
        ValueError: The results' protection is one that this page has no words for.
    """
    mode, privacy = content["aggregation"]["mode"], content["privacy"]["mode"]
    if mode != AGGREGATION_MODE or privacy not in get_args(PrivacyMode):
        raise ValueError(
            f"Expected aggregation mode {AGGREGATION_MODE}, got {mode} and privacy mode {privacy}"
        )
    filters = {
        "percent": percent,
        "percent_interval": percent_interval,
        "figure": lambda value, rate: figure(rate, value),
        "number": "{:,}".format,
        "duration": duration,
        "size": size,
    }
    tracks = [_track(name, content["tracks"][name], picture.tracks[name]) for name in content["tracks"]]
    return render_template(
        TEMPLATE_FILE,
        filters,
        content=content,
        plan=picture.plan,
        plan_json=json.dumps(json.loads(picture.plan.to_json()), indent=2, ensure_ascii=False),
        plan_rows={track.track: _plan_rows(picture.plan, track) for track in picture.plan.tracks},
        patients=picture.patients,
        tracks=tracks,
        side_by_side=_side_by_side(content["tracks"]),
        longest_stage=max(content["seconds"].values(), default=0) or 1,
    )


def duration(seconds: float) -> str:
    """Return seconds as people read them: ``0.4 s``, ``12 s``, ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(number: float) -> str:
    """Return bytes as people read them: ``1.3 MB``."""
    return f"{number / MEGABYTE:.1f} MB" if number >= MEGABYTE / 10 else f"{number / 1000:.1f} kB"


def _track(name: str, track: Mapping[str, Any], picture: TrackPicture) -> dict[str, Any]:
    """Return what the template shows of one track."""
    own, modality = own_answers(track), TRACKS[name].modality
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "reads": _READS[modality],
        "student": f"{modality}-only student",
        "noun": _NOUNS[modality][0],
        "nouns": _NOUNS[modality][1],
        "tested": cases_of(track),
        "unit": track.get("unit", "patient"),
        "columns": columns_of(name),
        "more": more_columns(standings(track)),
        "reach": REACH[modality],
        "results": track,
        "headline": headline(track),
        "bars": charted(standings(track)),
        "standings": standings(track),
        "new_publications": charted(standings(track, NEW_PUBLICATIONS)),
        "own": own,
        "own_columns": {standing.method: own_label(standing) for found in own.values() for standing in found},
        "holdings": _holdings(picture),
        "drawings": _drawings(picture.rounds),
        "rounds": picture.rounds,
        "reliability": _reliability(picture.bins, track),
    }


def _side_by_side(tracks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the main method of each kind with its scores in every track, None where a track has none."""
    found = [standings(track) for track in tracks.values()]
    rows = []
    for kind in _SIDE_BY_SIDE:
        mains = [first_of(kind, own) for own in found]
        labels = [one.label for one in mains if one is not None]
        if labels:
            rows.append(
                {
                    "label": labels[0],
                    "main": kind is Kind.FEDERATED,
                    "scores": [None if one is None else one.scores for one in mains],
                }
            )
    return rows


def _holdings(picture: TrackPicture) -> dict[str, Any]:
    """Return answers, the most frequent first, and what each site holds of them."""
    totals = dict.fromkeys(picture.answers.ids, 0)
    for holding in picture.holdings:
        for answer, number in holding.patients_by_answer.items():
            totals[answer] += number
    order = sorted(totals, key=lambda answer: -totals[answer])
    largest = max((max(held.patients_by_answer.values(), default=0) for held in picture.holdings), default=0)
    names = dict(zip(picture.answers.ids, picture.answers.names, strict=True))
    return {
        "sites": picture.holdings,
        "largest": largest,
        "answers": [
            {
                "name": names[answer],
                "place": 100 * place / len(order),
                "numbers": [held.patients_by_answer.get(answer, 0) for held in picture.holdings],
                "shades": [
                    _shade(held.patients_by_answer.get(answer, 0), largest) for held in picture.holdings
                ],
            }
            for place, answer in enumerate(order)
        ],
        "width": 100 / len(order),
    }


def _shade(number: int, largest: int) -> float:
    """Return how dark a cell is, 0 to 1: with the logarithm, as a few answers have most of the patients."""
    return 0.15 + 0.85 * math.log1p(number) / math.log1p(largest) if number else 0.0


def _drawings(rounds: Sequence[RoundReport]) -> list[dict[str, str]]:
    """Return the three drawings of the training, each with what it says in words."""
    if not rounds:
        return []
    norms = _by_block(rounds, lambda point: point.mean_delta_norm)
    seconds = _by_block(rounds, lambda point: point.seconds)
    megabytes = _by_block(rounds, lambda point: point.bytes_up / MEGABYTE)
    sent = size(fmean(point.bytes_up for point in rounds))
    moved = "; ".join(f"{curve.label} from {curve.y[0]:.3g} to {curve.y[-1]:.3g}" for curve in norms)
    return [
        {
            "alt": f"Norm of the sites' mean change, first round to last: {moved}.",
            "svg": draw_curves(norms, title="How much the adapter moves", x_label="round", y_label="norm"),
        },
        {
            "alt": f"Time of a round: {duration(fmean(point.seconds for point in rounds))} on average.",
            "svg": draw_curves(seconds, title="Time of a round", x_label="round", y_label="seconds"),
        },
        {
            "alt": f"Sent by all sites: {sent} a round on average.",
            "svg": draw_curves(megabytes, title="Sent by all sites", x_label="round", y_label="megabytes"),
        },
    ]


def _by_block(rounds: Sequence[RoundReport], value: Callable[[RoundReport], float]) -> list[Curve]:
    """Return one curve a block: the two differ in size, and take turns in mode rolora."""
    found = {block: [point for point in rounds if point.block is block] for block in (Block.B, Block.A)}
    return [
        Curve(
            label=f"block {block}",
            x=[point.round_id for point in points],
            y=[value(point) for point in points],
        )
        for block, points in found.items()
        if points
    ]


def _reliability(bins: Mapping[str, ReliabilityBins], track: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a drawing of the first methods, as many as there are colors, and all methods in numbers."""
    judged = {standing.method: standing for standing in standings(track) if standing.site is None}
    order = [method for method in judged if method in bins and any(bins[method].n)]
    if not order:
        return None
    return {
        "svg": draw_reliability({method_label(method): bins[method] for method in order[: len(SERIES)]}),
        "points": {method_label(method): reliability_points(bins[method]) for method in order},
        "errors": [judged[method] for method in order],
    }


def _plan_rows(plan: RunPlan, track: TrackPlan) -> dict[str, str]:
    """Return a track's plan in words."""
    adapter, pairs, training, optimizer = (
        track.adapter, track.preferences, track.training, track.server_optimizer,
    )  # fmt: skip
    return {
        "Sites": ", ".join(plan.sites_of(track)),
        "Adapter": f"LoRA, mode {adapter.mode}, rank {adapter.rank}, alpha {adapter.alpha:g}",
        "Teacher": f"{plan.teacher.folds}-fold cross-fitting, privacy {plan.teacher.privacy}",
        **_privacy_rows(track),
        "Pairs": f"{pairs.chosen_length} chosen against {pairs.rejected_length} rejected, at most "
        f"{pairs.pairs_per_patient} a patient, labels: {pairs.label_policy}, "
        f"rejected from {pairs.rejected_from} of {pairs.reject_from}",
        "Training": f"{training.rounds} rounds of {training.local_steps} steps of "
        f"{training.patients_per_step} patients, learning rate {training.learning_rate:g}, "
        f"ORPO lambda {training.orpo_lambda:g}",
        "Coordinator": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}; "
        f"sites weigh by {training.weighting}",
        "Base model": track.base_model_digest,
        "Answers": track.answers_digest,
    }


def _privacy_rows(track: TrackPlan) -> dict[str, str]:
    privacy = track.privacy
    if privacy is None:
        return {}
    return {
        "Noise": f"one patient pulls by at most {privacy.clip_norm:g} (clip norm); noise of "
        f"{privacy.noise_multiplier:g} times that in each sum; each patient is drawn for a step with "
        f"probability {privacy.sampling_rate:.3g}"
    }
