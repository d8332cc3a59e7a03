"""Everybody in a simulation: the patients of every site, as each track sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from client.patients.records import PatientRecord, Problem
from client.site_patients import SitePatients, Views
from common.ids import SiteId
from common.tracks import AnswerList, Track
from simulations.public_text import PublicText
from simulations.public_tiles import PublicTiles


@dataclass(frozen=True, kw_only=True)
class Population:
    """Everybody in a simulation, as one track sees them.

    Attributes:
        track: The track.
        answers: The plan's.
        sites: By site, the patients with an answer for the track; sites without any are left out.
        new_publications: Test patients from papers that no training patient comes from; of no site.
        text: Public text for a tiny base model, of a text track.
        tiles: Public tiles for a tiny base model and a slide eye, of an image track.
        description: In a sentence, where the patients come from.
        unit: What a record stands for: ``patient``, or ``source image`` where the data name no patients.
        problems: What of the source could not be read.
    """

    track: Track
    answers: AnswerList
    sites: Mapping[SiteId, SitePatients]
    new_publications: tuple[PatientRecord, ...] = ()
    text: PublicText | None = None
    tiles: PublicTiles | None = None
    description: str
    unit: str = "patient"
    problems: tuple[Problem, ...] = ()

    @property
    def views(self) -> Views:
        """How records reach models, the same at every site."""
        return next(iter(self.sites.values())).views

    @property
    def test(self) -> tuple[PatientRecord, ...]:
        """The union of the sites' test patients."""
        return tuple(record for site in sorted(self.sites) for record in self.sites[site].test)


Populations = Mapping[str, Population]
"""By track; a patient of two tracks is in both."""


def set_aside(
    population: Population, share: float, seed: int, unit: Callable[[PatientRecord], str]
) -> Population:
    """The population with about this share of each site's training patients set aside for calibration.

    ``unit`` says what is moved as a whole: a patient, or what several records belong to.

    Guarantee: who is moved depends on his unit and the seed alone, so that a patient of two tracks is moved
    in both.
    """
    if not share:
        return population

    def moved(record: PatientRecord) -> bool:
        digest = hashlib.sha256(f"{seed} calibration {unit(record)}".encode()).digest()
        return int.from_bytes(digest[:6], "big") < share * 2**48

    sites = {
        site: replace(
            patients,
            train=tuple(record for record in patients.train if not moved(record)),
            calibration=tuple(record for record in patients.train if moved(record)),
        )
        for site, patients in population.sites.items()
    }
    return replace(population, sites=sites)


def everyone(populations: Populations) -> dict[SiteId, SitePatients]:
    """The patients of every site over all tracks, each once: what the site's one teacher learns from."""
    merged: dict[SiteId, SitePatients] = {}
    for population in populations.values():
        for site, patients in population.sites.items():
            known = merged.get(site)
            merged[site] = patients if known is None else _joined(known, patients)
    return merged


def _joined(one: SitePatients, other: SitePatients) -> SitePatients:
    parts = {
        part: tuple({r.patient_id: r for r in (*getattr(one, part), *getattr(other, part))}.values())
        for part in ("train", "calibration", "test")
    }
    return SitePatients(**parts, views=one.views)
