"""`predictions/<track>/cases.json`: what is known of every test case beside the methods' answers to it.

Predictions name a case and its truth. Whoever compares methods also has to know which test a case belongs
to, whose it is, and at which sites it is one of the site's own answers: that is here, once for all methods.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.atomic import write_atomically
from common.canonical import read_object
from common.checks import require_schema
from common.errors import BadFileError
from common.ids import SiteId
from simulations.comparisons import test_cases
from simulations.populations import Population
from simulations.results import PREDICTIONS_FOLDER

CASES_SCHEMA = 1
CASES_FILE = "cases.json"
Part = Literal["union", "new"]
"""The test patients of all sites, or those of new publications."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of a test.

    Attributes:
        case_id: As in predictions.
        part: The test that it belongs to.
        patient: Whose it is, by the case id of his record: the same in runs of other seeds.
        site: Whose patient he is; None for a new publication's, who is no site's.
        own_sites: The sites that have training patients with his answer, of a case of the union.
    """

    case_id: str
    part: Part
    patient: str
    site: str | None = None
    own_sites: tuple[str, ...] = ()


def known_cases(population: Population) -> tuple[Case, ...]:
    """Every test case of a track in the order of its predictions: the union, then new publications."""
    track = population.track.name
    home = {r.patient_id: site for site, patients in population.sites.items() for r in patients.test}
    answers = {
        site: {record.label[track] for record in patients.train}
        for site, patients in population.sites.items()
    }
    union = [
        Case(
            case_id=case.case_id,
            part="union",
            patient=case.record.case_id,
            site=home[case.record.patient_id],
            own_sites=_own_sites(case.record.label[track], answers),
        )
        for case in test_cases(population.test, population)
    ]
    new = [
        Case(case_id=case.case_id, part="new", patient=case.record.case_id)
        for case in test_cases(population.new_publications, population)
    ]
    return (*union, *new)


def _own_sites(truth: str, answers: dict[SiteId, set[str]]) -> tuple[str, ...]:
    return tuple(sorted(site for site, own in answers.items() if truth in own))


def cases_path(folder: Path, track: str) -> Path:
    """Where a track's cases lie below a run's folder."""
    return folder / PREDICTIONS_FOLDER / track / CASES_FILE


def write_cases(folder: Path, track: str, cases: Sequence[Case]) -> None:
    """Write the cases of a track below a run's folder, whole or not at all, readable by its owner only."""
    path = cases_path(folder, track)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": CASES_SCHEMA, "cases": [asdict(case) for case in cases]}
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n", private=True)


def read_cases(folder: Path, track: str) -> tuple[Case, ...]:
    """The cases of a track of a run.

    Raises:
        OSError: The run has none: it was made before runs wrote them.
        BadFileError: The file is damaged.
        UnsupportedSchemaError: A newer version wrote it.
    """
    path = cases_path(folder, track)
    content = read_object(path.read_text(encoding="utf-8"), str(path))
    require_schema(str(path), content.get("schema"), CASES_SCHEMA)
    try:
        cases = tuple(_case(one) for one in content["cases"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(path, f"a case cannot be read: {error}") from None
    if len({case.case_id for case in cases}) < len(cases):
        raise BadFileError(path, "expected every case once, got one twice")
    return cases


def _case(read: dict[str, Any]) -> Case:
    if read["part"] not in get_args(Part):
        raise ValueError(f"expected a part of {', '.join(get_args(Part))}, got {read['part']!r}")
    return Case(**{**read, "own_sites": tuple(read["own_sites"])})
