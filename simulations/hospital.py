"""Hospitals of synthetic patients: whose answers are known, whose photos show what their notes leave out.

A patient is drawn from a syndrome of the casebook: findings by their frequency, the facial ones into the
photo, the others into the note as clinicians would write it, with gaps, general words, findings that have
nothing to do with the syndrome, and findings that were looked for and not found. Hospitals differ in size and
in what they see.

Everything is a function of a seed. Public faces come from streams of random numbers that no site's patient
uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from client.patients.notes import Facial, write_note
from client.patients.records import Finding, PatientRecord, PhotoRef
from common.ids import SiteId, site_id
from common.tracks import RARE_DISEASE
from simulations.face_terms import MEASURES
from simulations.faces import (
    DISTINCT_FINDINGS,
    FACIAL_TERMS,
    contradict,
    face_measures,
    photograph_face,
    render_face,
)
from simulations.syndromes import Casebook, Syndrome, load_casebook, load_syndromes

__all__ = [
    "Casebook",
    "Hospital",
    "Presentation",
    "Purpose",
    "Syndrome",
    "draw_patient",
    "load_casebook",
    "load_syndromes",
    "make_hospitals",
    "public_faces",
    "public_portraits",
    "stream",
]

CONSENT = frozenset({"research"})
MEAN_PUBLIC_FINDINGS = 7.0
OLDEST_YEARS = 60
LEAST_SKEW, MOST_SKEW = 1e-6, 10.0  # below, shares are equal; above, their draw runs out of digits


class Purpose(IntEnum):
    """What a stream of random numbers is for; streams of two purposes never meet."""

    PUBLIC_FACES = 1
    CASELOADS = 2
    PATIENT = 3
    PUBLIC_TILES = 4
    SLIDES = 5


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How clearly patients show a syndrome, and how well a note tells it.

    Attributes:
        faint: Chance that a facial finding is too faint to be seen.
        family: Mean number of facial traits that run in the family and have nothing to do with the syndrome.
        missed: Chance that a finding is not written down. Facial ones never are: the photo shows them.
        generalized: Chance that one which is written down is put in more general words.
        background: Mean number of other findings that have nothing to do with the syndrome.
        excluded: Mean number of findings of other syndromes that were looked for and not found.
    """

    faint: float = 0.5
    family: float = 1.0
    missed: float = 0.55
    generalized: float = 0.35
    background: float = 1.0
    excluded: float = 4.0

    def __post_init__(self) -> None:
        for name in ("faint", "missed", "generalized"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected {name} from 0 to below 1, got {getattr(self, name)}")
        for name in ("family", "background", "excluded"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Expected {name} of at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A simulated site and its patients; no patient is in ``train`` and ``test``, nor in two hospitals."""

    site_id: SiteId
    train: tuple[PatientRecord, ...]
    test: tuple[PatientRecord, ...]


def stream(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """Return the random numbers of one purpose and place under a run's seed.

    Guarantee: streams of two purposes differ for every seed, because the purpose is part of the key.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"Expected a seed from 0 to below 2**64, got {seed}")
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(int(purpose), *index)))


def draw_patient(
    syndrome: Syndrome,
    rng: np.random.Generator,
    *,
    patient_id: str = "simulated",
    casebook: Casebook | None = None,
    presentation: Presentation | None = None,
    note_facial: Facial = "hide",
    photo_size: int | None = 64,
) -> PatientRecord:
    """Draw one patient of a syndrome.

    ``observed`` holds every facial finding that can be seen, and what was written down of the others. With
    ``photo_size`` None there is no photo, and all else stays the same.

    Guarantee: the photo shows the facial findings among ``observed`` and no others.
    """
    casebook, presentation = casebook or load_casebook(), presentation or Presentation()
    sex = "male" if rng.random() < syndrome.male_share else "female"
    possible = [
        typical
        for typical in syndrome.findings
        if sex == "male" or typical.finding.id not in casebook.male_only
    ]
    luck = rng.random((2, len(possible)))
    present = [typical for typical, one in zip(possible, luck[0], strict=True) if one < typical.frequency]
    seen = [
        typical.finding
        for typical, one, other in zip(possible, *luck, strict=True)
        if typical.facial and one < typical.frequency and other >= presentation.faint
    ]
    family = _some(casebook.facial, presentation.family, rng)
    facial = _distinct([*seen, *(one for one in family if not any(contradict(one.id, f.id) for f in seen))])
    written = _write_down([t.finding for t in present if not t.facial], casebook, presentation, rng)
    observed = _distinct([*facial, *written]) or [max(possible, key=lambda t: t.frequency).finding]
    has = {finding.id for finding in observed} | {typical.finding.id for typical in present}
    has |= _broader_ids(has, casebook)
    record = PatientRecord(
        patient_id=patient_id,
        case_id=patient_id,
        sex=sex,
        age=_draw_age(rng),
        observed=tuple(observed[place] for place in rng.permutation(len(observed))),
        excluded=_exclude(syndrome, sex, has, casebook, presentation, rng),
        label={RARE_DISEASE.name: syndrome.id},
        consent=CONSENT,
    )
    note = write_note(record, facial=note_facial, facial_ids=frozenset(FACIAL_TERMS))
    if photo_size is None:
        return dataclasses.replace(record, note=note)
    pixels = render_face([finding.id for finding in observed], rng, photo_size)
    return dataclasses.replace(record, note=note, photo=PhotoRef(array=pixels))


def make_hospitals(
    seed: int,
    sizes: Mapping[str, int],
    *,
    skew: float = 1.0,
    seen_share: float = 0.7,
    test_per_answer: int = 20,
    casebook: Casebook | None = None,
    presentation: Presentation | None = None,
    note_facial: Facial = "hide",
    photo_size: int | None = 64,
) -> Mapping[SiteId, Hospital]:
    """Return hospitals and their patients, in the order of ``sizes``.

    Args:
        seed: Decides everything.
        sizes: Training patients by site id.
        skew: How unequal the syndromes are within a hospital, 0 to 10: 0 for equal chances, else a Dirichlet
            draw with concentration 1 / skew.
        seen_share: Share of the syndromes that a hospital sees at all; each syndrome is seen somewhere.
        test_per_answer: Test patients of each syndrome over all hospitals, besides ``sizes``; they fall to
            hospitals as the syndrome's training patients do.
        casebook, presentation, note_facial, photo_size: As in ``draw_patient``.

    Guarantee: a patient belongs to one hospital, and there to training or test alone.
    """
    casebook = casebook or load_casebook()
    sites = [site_id(name) for name in sizes]
    rng = stream(seed, Purpose.CASELOADS)
    train = draw_caseloads(
        rng, list(sizes.values()), len(casebook.syndromes), skew=skew, seen_share=seen_share
    )
    test = np.array([rng.multinomial(test_per_answer, seen / seen.sum()) for seen in train.T]).T
    hospitals = {}
    for number, site in enumerate(sites):
        splits = []
        for split, counts in enumerate((train[number], test[number])):
            cases = np.repeat(np.arange(len(counts)), counts)
            order = stream(seed, Purpose.CASELOADS, number, split).permutation(cases)
            splits.append(
                tuple(
                    draw_patient(
                        casebook.syndromes[case],
                        stream(seed, Purpose.PATIENT, number, split, place),
                        patient_id=f"{site}-{'ab'[split]}{place:05d}",
                        casebook=casebook,
                        presentation=presentation,
                        note_facial=note_facial,
                        photo_size=photo_size,
                    )
                    for place, case in enumerate(order)
                )
            )
        hospitals[site] = Hospital(site_id=site, train=splits[0], test=splits[1])
    return hospitals


def draw_caseloads(
    rng: np.random.Generator, sizes: Sequence[int], answers: int, *, skew: float, seen_share: float
) -> NDArray[np.int64]:
    """Draw how many patients of each syndrome each hospital trains on, (hospitals, answers).

    Guarantee: rows sum to ``sizes``, and every syndrome is seen by some hospital.
    """
    if not sizes or min(sizes) < 1 or sum(sizes) < answers:
        raise ValueError(
            f"Expected hospitals with {answers} patients or more together, got sizes {list(sizes)}"
        )
    if not 0 < seen_share <= 1:
        raise ValueError(f"Expected seen_share above 0 and at most 1, got {seen_share}")
    if not 0 <= skew <= MOST_SKEW:
        raise ValueError(f"Expected skew from 0 to {MOST_SKEW}, got {skew}")
    seen: list[set[int]] = [set() for _ in sizes]
    for answer in rng.permutation(answers):  # dealt out first, so that each is seen somewhere
        fullness = [(len(one) + 1) / size for one, size in zip(seen, sizes, strict=True)]
        seen[int(np.argmin(fullness))].add(int(answer))
    loads = np.zeros((len(sizes), answers), dtype=np.int64)
    for row, one, size in zip(loads, seen, sizes, strict=True):
        wanted = min(size, round(seen_share * answers)) - len(one)
        others = [int(answer) for answer in rng.permutation(answers) if answer not in one]
        places = sorted(one | set(others[: max(0, wanted)]))
        row[places] = 1
        share = rng.dirichlet(np.full(len(places), 1 / max(skew, LEAST_SKEW)))
        row[places] += rng.multinomial(size - len(places), share)
    return loads


def public_faces(seed: int, n: int, *, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw ``n`` faces to pretrain a photo encoder on, and which findings each shows.

    Returns:
        Photos, uint8 (n, size, size, 3), and a table, bool (n, findings), whose columns are
        ``faces.DISTINCT_FINDINGS``.

    Guarantee: public faces share no random stream with a site's patients, whatever the seeds.
    """
    photos = np.empty((n, size, size, 3), dtype=np.uint8)
    shown = np.zeros((n, len(DISTINCT_FINDINGS)), dtype=np.bool_)
    for number in range(n):
        rng = stream(seed, Purpose.PUBLIC_FACES, number)
        columns = _draw_compatible(rng)
        shown[number, columns] = True
        photos[number] = render_face([DISTINCT_FINDINGS[column] for column in columns], rng, size)
    return photos, shown


def public_portraits(seed: int, n: int, *, size: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the faces of ``public_faces`` with what they measure, to pretrain a photo encoder on.

    Returns:
        Photos, uint8 (n, size, size, 3), and the measures of each face in spreads from their mean, float32
        (n, measures), in the order of ``face_terms.MEASURES``.

    Guarantee: public portraits share no random stream with a site's patients, whatever the seeds.
    """
    photos = np.empty((n, size, size, 3), dtype=np.uint8)
    measured = np.empty((n, len(MEASURES)), dtype=np.float32)
    for number in range(n):
        rng = stream(seed, Purpose.PUBLIC_FACES, number)
        findings = [DISTINCT_FINDINGS[column] for column in _draw_compatible(rng)]
        measures = face_measures(findings, rng)
        measured[number] = [(measures[name] - one.mean) / one.spread for name, one in MEASURES.items()]
        photos[number] = photograph_face(measures, rng, size)
    return photos, measured


def _draw_compatible(rng: np.random.Generator) -> list[int]:
    """Draw columns of ``DISTINCT_FINDINGS``, none of which contradicts another."""
    wanted = int(rng.poisson(MEAN_PUBLIC_FINDINGS))
    columns: list[int] = []
    for column in rng.permutation(len(DISTINCT_FINDINGS)):
        if len(columns) == wanted:
            break
        finding = DISTINCT_FINDINGS[column]
        if not any(contradict(finding, DISTINCT_FINDINGS[one]) for one in columns):
            columns.append(int(column))
    return columns


def _write_down(
    findings: Sequence[Finding], casebook: Casebook, presentation: Presentation, rng: np.random.Generator
) -> list[Finding]:
    """Return what a note tells of the findings, with some that have nothing to do with them."""
    written = []
    for finding, missed, general in zip(findings, *rng.random((2, len(findings))), strict=True):
        if missed >= presentation.missed:
            broader = casebook.broader.get(finding.id, finding)
            written.append(broader if general < presentation.generalized else finding)
    return [*written, *_some(casebook.background, presentation.background, rng)]


def _exclude(
    syndrome: Syndrome,
    sex: str,
    has: set[str],
    casebook: Casebook,
    presentation: Presentation,
    rng: np.random.Generator,
) -> tuple[Finding, ...]:
    """Draw what a clinician looked for with two other syndromes in mind, and did not find."""
    others = [other for other in casebook.syndromes if other.id != syndrome.id]
    thought_of = [others[place] for place in rng.permutation(len(others))[:2]]
    looked_for = _distinct([typical.finding for other in thought_of for typical in other.findings])
    impossible = has if sex == "male" else has | casebook.male_only
    return tuple(_some([one for one in looked_for if one.id not in impossible], presentation.excluded, rng))


def _broader_ids(hp_ids: set[str], casebook: Casebook) -> set[str]:
    """Return what else is true of somebody with these findings: all that the casebook calls broader."""
    above: set[str] = set()
    level = hp_ids
    while level := {casebook.broader[one].id for one in level if one in casebook.broader} - above:
        above |= level
    return above


def _some(findings: Sequence[Finding], mean: float, rng: np.random.Generator) -> list[Finding]:
    """Draw about ``mean`` of the findings, none twice."""
    count = min(int(rng.poisson(mean)), len(findings))
    return [findings[place] for place in rng.permutation(len(findings))[:count]]


def _distinct(findings: Sequence[Finding]) -> list[Finding]:
    return list({finding.id: finding for finding in findings}.values())


def _draw_age(rng: np.random.Generator) -> str:
    """Draw an age as an ISO 8601 duration: mostly children, some adults, months below two years."""
    months = int(12 * min(rng.exponential(9.0), OLDEST_YEARS))
    return f"P{months // 12}Y" if months >= 24 else f"P{max(months, 1)}M"
