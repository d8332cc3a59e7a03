"""`results.json`: what a run reached, in the form that people and scripts may rely on (schema 1).

A method that every site runs by itself (``local_orpo``) has one entry a site; any other has one entry. A
figure that was not measured is null; a figure that is not finite is refused. Two runs of one seed on one
machine give the same file apart from times: `without_times` strips those.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.atomic import write_atomically
from common.canonical import read_object
from common.checks import require_schema
from common.ids import SiteId
from server.rounds import RoundReport
from simulations.scores import Scores

RESULTS_SCHEMA = 1
RESULTS_FILE = "results.json"
PREDICTIONS_FOLDER = "predictions"
AGGREGATION_MODE = "secagg-v1"
TIMES = frozenset({"seconds", "work_seconds"})
# Further digits differ with the order of a sum and tell nobody anything.
DIGITS = 6

NO_PRIVACY: Mapping[str, Any] = MappingProxyType(
    {
        "mode": "none",
        "statement": "No noise: there is no bound on what the student tells about one patient.",
        "epsilon": None,
        "delta": None,
        "epsilon_teacher": None,
        "unit": "patient",
        "sigma": 0.0,
        "q": None,
        "steps": 0,
    }
)
"""No noise is drawn, so that there is no epsilon: null here means "no bound", not "zero"."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """What one method reached.

    Attributes:
        union: On the test patients of all sites.
        own_answers: By site, on the union's patients whose truth is among the answers that the site has
            training patients for.
        new_publications: On test patients from publications that no training patient comes from.
        seconds: That it took to train.
        bytes_up: That one site sent for it.
        privacy: What it took from a patient, of a method that is trained under a promise.
        retrieval: What looking up and reasoning did, by name, of a method that does: shares of the notes
            (``hit_rate``, ``compliance``, ``abstained``), ``tokens`` and ``seconds`` a note.
    """

    union: Scores
    own_answers: Mapping[SiteId, Scores] = field(default_factory=dict)
    new_publications: Scores | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    privacy: Mapping[str, Any] | None = None
    retrieval: Mapping[str, float | None] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The entry as ``results.json`` holds it."""
        entry = self.union.as_dict()
        if self.own_answers:
            entry["own_answers"] = {site: scores.as_dict() for site, scores in self.own_answers.items()}
        if self.new_publications is not None:
            entry["new_publications"] = self.new_publications.as_dict()
        if self.seconds is not None:
            entry["seconds"] = self.seconds
        if self.bytes_up is not None:
            entry["bytes_up"] = self.bytes_up
        if self.privacy is not None:
            entry["privacy"] = dict(self.privacy)
        if self.retrieval is not None:
            entry["retrieval"] = dict(self.retrieval)
        return entry


MethodBySite = Mapping[SiteId, MethodResult]


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """What a run reached on one track.

    Attributes:
        n_train: Training patients of all sites.
        n_test: Cases of the union test: patients, or their tiles.
        n_answers: Answers of the plan.
        unit: What a training or test record stands for: ``patient``, or what the data have instead.
        n_test_units: Records of the union test; intervals are drawn over these.
        methods: By name; one result, or one for each site.
    """

    n_train: int
    n_test: int
    n_answers: int
    unit: str = "patient"
    n_test_units: int | None = None
    methods: Mapping[str, MethodResult | MethodBySite]

    def __post_init__(self) -> None:
        for name in self.methods:
            _require_name("method", name)

    def as_dict(self) -> dict[str, Any]:
        """The track as ``results.json`` holds it."""
        return {
            "n_train": self.n_train,
            "n_test": self.n_test,
            "n_answers": self.n_answers,
            "unit": self.unit,
            "n_test_units": self.n_test if self.n_test_units is None else self.n_test_units,
            "methods": {name: _entry(method) for name, method in self.methods.items()},
        }


@dataclass(frozen=True, kw_only=True)
class AggregationResult:
    """What the rounds cost.

    Attributes:
        rounds: Rounds that released an aggregate.
        dropped: Contributions that were asked for and did not come.
        retried: Rounds that were run again after they failed.
        bytes_up_per_site: Bytes that a site sent in the whole run: the mean over the sites in each sum.
        seconds: Of all rounds together.
        work_seconds: Of these, those in which sites trained; the rest went into keys, masks and messages.
    """

    rounds: int
    dropped: int
    retried: int
    bytes_up_per_site: int
    seconds: float
    work_seconds: float

    @classmethod
    def of(cls, history: Sequence[RoundReport], *, retried: int, work_seconds: float) -> AggregationResult:
        """Return the costs of closed rounds, of all tracks together."""
        return cls(
            rounds=len(history),
            dropped=sum(len(report.dropouts) for report in history),
            retried=retried,
            bytes_up_per_site=round(sum(report.bytes_up / len(report.survivors) for report in history)),
            seconds=sum(report.seconds for report in history),
            work_seconds=work_seconds,
        )

    def as_dict(self) -> dict[str, Any]:
        """The block as ``results.json`` holds it; it names the mode."""
        return {
            "mode": AGGREGATION_MODE,
            "rounds": self.rounds,
            "dropped": self.dropped,
            "retried": self.retried,
            "bytes_up_per_site": self.bytes_up_per_site,
            "seconds": self.seconds,
            "work_seconds": self.work_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All that ``results.json`` holds.

    Attributes:
        scenario: Its name.
        seed: The plan's.
        seconds: By stage of the run, in the order of the stages.
        tracks: By name.
        aggregation: What the rounds cost.
        privacy: What the run's plan took from a patient; as `privacy_block` makes it.
    """

    scenario: str
    seed: int
    seconds: Mapping[str, float]
    tracks: Mapping[str, TrackResult]
    aggregation: AggregationResult
    privacy: Mapping[str, Any] = field(default_factory=lambda: NO_PRIVACY)

    def __post_init__(self) -> None:
        for name in self.tracks:
            _require_name("track", name)

    def as_dict(self) -> dict[str, Any]:
        """The content of ``results.json``.

        Guarantee: every number is finite; ValueError names the place of one that is not.
        """
        content = {
            "schema": RESULTS_SCHEMA,
            "scenario": self.scenario,
            "seed": self.seed,
            "seconds": dict(self.seconds),
            "tracks": {name: track.as_dict() for name, track in self.tracks.items()},
            "privacy": dict(self.privacy),
            "aggregation": self.aggregation.as_dict(),
        }
        whole: dict[str, Any] = rounded(content, "results")
        return whole


def write_results(folder: Path, result: RunResult) -> dict[str, Any]:
    """Write ``results.json`` into ``folder``, whole or not at all, and return its content."""
    content = result.as_dict()
    write_atomically(folder / RESULTS_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return content


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a ``results.json``.

    Raises:
        SettingsError: It is no JSON object with a schema.
        UnsupportedSchemaError: A newer version wrote it.
    """
    content = read_object(path.read_text(encoding="utf-8"), str(path))
    require_schema(str(path), content.get("schema"), RESULTS_SCHEMA)
    return content


def without_times(content: Any) -> Any:
    """Return the content without its times, so that two runs can be compared.

    Guarantee: two runs of one seed on one machine differ in nothing that is left.
    """
    if isinstance(content, Mapping):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    if isinstance(content, list | tuple):
        return [without_times(value) for value in content]
    return content


def predictions_path(folder: Path, track: str, method: str, site: SiteId | None = None) -> Path:
    """Return where a method's predictions go below a run's folder, which is made if it is not there.

    ``predictions/<track>/<method>.jsonl``; ``<method>.<site>.jsonl`` where each site has its own.
    """
    _require_name("track", track)
    _require_name("method", method)
    path = (
        folder
        / PREDICTIONS_FOLDER
        / track
        / (f"{method}.jsonl" if site is None else f"{method}.{site}.jsonl")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _entry(method: MethodResult | MethodBySite) -> dict[str, Any]:
    if isinstance(method, MethodResult):
        return method.as_dict()
    return {site: result.as_dict() for site, result in method.items()}


def rounded(value: Any, where: str) -> Any:
    """Return a content of text, numbers, lists and objects with its numbers at ``DIGITS`` digits.

    Raises:
        ValueError: A number is not finite; the message says where, below ``where``.
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"Expected a finite number, or None for what was not measured, in {where}, got {value}"
            )
        return round(float(value), DIGITS)
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(f"Expected text, a number or None in {where}, got {type(value).__name__}")


def _require_name(what: str, name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"Expected a {what} of lower-case letters, digits, _ and -, got {name!r}")
