"""Who takes part in a simulation of notes and faces, and the public text that stands beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from client.patients.importers.phenopacket_store import read_answers, read_cases
from client.patients.notes import read_facial_ids
from client.patients.records import PatientRecord, PhotoRef
from client.patients.splits import split_by_patient
from client.site_patients import SitePatients, Views
from common.errors import BadFileError
from common.ids import SiteId, site_id
from common.tracks import RARE_DISEASE
from simulations.data_settings import PhenopacketData, SyntheticData, TileData
from simulations.faces import FACIAL_TERMS, render_face, visible_findings
from simulations.hospital import load_casebook, make_hospitals
from simulations.partition import hold_out_publications, split_by_publication
from simulations.populations import Population, Populations, set_aside
from simulations.public_text import from_hpo, from_syndromes, read_lines
from simulations.settings import SimulationSettings
from simulations.tile_scenarios import shared_patients, synthetic_slides, tile_population

CONSENT = frozenset({"research"})
"""Published cases were published for research; the importer leaves consent to whoever runs it."""
FEWEST_LEFT = 5
"""Cases that a disease keeps where one of its publications is held out."""


def populations_of(settings: SimulationSettings) -> Populations:
    """The scenario's patients as each of its tracks sees them. BadFileError where data are missing."""
    data, found = settings.data, _populations_of(settings)
    # Tiles of one slide, or of one patient, are alike: they are set aside together.
    unit = group_of if isinstance(data, TileData) else patient_of
    return {
        track: set_aside(population, data.calibration_share, settings.seed, unit)
        for track, population in found.items()
    }


def patient_of(record: PatientRecord) -> str:
    """A patient is a unit."""
    return record.patient_id


def group_of(record: PatientRecord) -> str:
    """A group of records is a unit, or a record without a group."""
    return record.group or record.patient_id


def _populations_of(settings: SimulationSettings) -> Populations:
    data, seed = settings.data, settings.seed
    if isinstance(data, TileData):
        return _by_track([tile_population(data, seed)])
    if isinstance(data, PhenopacketData):
        population = phenopacket_population(
            data, seed, other_diseases=settings.other_diseases, text_seed=settings.frozen_seed
        )
        return _by_track([population])
    notes = synthetic_population(data, seed) if data.sites else None
    slides = synthetic_slides(data, seed) if data.slides else None
    if notes is not None and slides is not None:
        return _by_track(shared_patients(notes, slides, data.both_share))
    return _by_track([one for one in (notes, slides) if one is not None])


def _by_track(populations: Iterable[Population]) -> Populations:
    return {population.track.name: population for population in populations}


def synthetic_population(data: SyntheticData, seed: int) -> Population:
    """Hospitals of drawn patients, whose notes were written without the findings that their photos show."""
    casebook = load_casebook()
    views = Views(facial="hide", facial_ids=frozenset(FACIAL_TERMS))
    hospitals = make_hospitals(
        seed, data.sites, skew=data.skew, seen_share=data.seen_share, test_per_answer=data.test_per_answer
    )
    return Population(
        track=RARE_DISEASE,
        answers=casebook.answers,
        sites={
            site: SitePatients(train=hospital.train, test=hospital.test, views=views)
            for site, hospital in hospitals.items()
        },
        text=from_syndromes(casebook, seed=seed),
        description=(
            f"Synthetic patients of {len(casebook.answers)} syndromes, drawn from published findings and "
            "frequencies, with drawn photos. No real patient."
        ),
    )


def phenopacket_population(
    data: PhenopacketData, seed: int, *, other_diseases: int, text_seed: int | None = None
) -> Population:
    """Real published cases; their facial findings are hidden from notes and drawn into photos.

    ``text_seed`` draws what the public text holds besides the plan's diseases; ``seed`` if not given.

    Raises:
        BadFileError: A file of the data is missing.
    """
    root = data.root.expanduser()
    folder = root / "phenopackets"
    for path in (
        folder / "cases.jsonl.gz",
        root / "hpo" / "hp_terms.jsonl.gz",
        root / "faces" / "face_terms.csv",
    ):
        if not path.is_file():
            raise BadFileError(
                path, "missing; data.root names the folder that holds phenopackets, hpo and faces"
            )
    # The table lacks signs that HPO files under the eye; whatever a face is drawn from must leave the note.
    facial = read_facial_ids(root / "faces" / "face_terms.csv") | frozenset(FACIAL_TERMS)
    answers = read_answers(
        folder / "diseases.csv",
        min_cases=data.min_cases,
        annotations=root / "hpo" / "disease_annotations.jsonl.gz",
    )
    # Public data under public ids: the key hides nothing here, and keeps runs alike.
    found = read_cases(folder / "cases.jsonl.gz", key=bytes(32))
    planned = set(answers.ids)
    records = [r for r in found.records if r.label[RARE_DISEASE.name] in planned]
    records = [dataclasses.replace(record, consent=CONSENT) for record in records][: data.most_cases]
    records = _with_photos(records, facial, root / "hpo" / "hp_terms.jsonl.gz", seed)
    rest, new = hold_out_publications(
        records,
        RARE_DISEASE.name,
        share=data.new_publications_share,
        fewest_left=FEWEST_LEFT,
        seed=seed if data.publications_seed is None else data.publications_seed,
    )
    parts = split_by_patient(rest, {"train": 1 - data.test_share, "test": data.test_share}, seed)
    views = Views(facial="hide", facial_ids=facial)
    shares = {site_id(name): share for name, share in data.sites.items()}
    by_site = _dealt(rest, shares, data, seed)
    train = {record.patient_id for record in parts["train"]}
    return Population(
        track=RARE_DISEASE,
        answers=answers,
        sites={
            site: SitePatients(
                train=tuple(r for r in members if r.patient_id in train),
                test=tuple(r for r in members if r.patient_id not in train),
                views=views,
            )
            for site, members in by_site.items()
        },
        new_publications=new,
        text=from_hpo(
            root / "hpo",
            {answer.id: answer.name for answer in answers.answers},
            facial,
            other_diseases=other_diseases,
            seed=seed if text_seed is None else text_seed,
            unread=frozenset(r.group for r in new if r.group) if data.public_text_apart else frozenset(),
            newest_lists=not data.public_text_apart,
        ),
        description=(
            f"{len(records)} published cases of {len(answers)} rare diseases (phenopacket-store); notes "
            "written from their structured findings, photos drawn from the facial ones. This product uses "
            "the Human Phenotype Ontology (versions 2024-08-13, 2023-01-27 and 2025-01-16)."
        ),
        problems=found.problems,
    )


def _dealt(
    records: Sequence[PatientRecord], shares: Mapping[SiteId, float], data: PhenopacketData, seed: int
) -> Mapping[SiteId, tuple[PatientRecord, ...]]:
    if data.split == "publication":
        return split_by_publication(records, shares, seed=seed)
    total = sum(shares.values())
    # Another seed than that of train and test, which would deal the same patients to the same side.
    dealt = split_by_patient(records, {site: share / total for site, share in shares.items()}, seed + 1)
    return {site_id(name): members for name, members in dealt.items()}


def _with_photos(
    records: list[PatientRecord], facial: frozenset[str], terms: Path, seed: int
) -> list[PatientRecord]:
    """Every record with a photo of its facial findings; none where no drawable one was looked for."""
    parents = {term["id"]: tuple(term.get("parents", ())) for term in read_lines(terms)}
    drawable = {i: visible_findings(i, parents) for i in sorted(facial)}
    return [
        _with_photo(record, drawable, np.random.default_rng([seed, 7, row]))
        for row, record in enumerate(records)
    ]


def _with_photo(
    record: PatientRecord, drawable: Mapping[str, frozenset[str]], rng: np.random.Generator
) -> PatientRecord:
    shown = sorted({drawn for finding in record.observed for drawn in drawable.get(finding.id, ())})
    assessed = any(finding.id in drawable for finding in (*record.observed, *record.excluded))
    if not assessed:
        return record
    return dataclasses.replace(record, photo=PhotoRef(array=render_face(shown, rng)))
