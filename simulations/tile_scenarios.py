"""Who takes part in a simulation of slides: drawn tissue, or real tiles of several organs.

The sources of the real tiles, one organ and one scanner each, are natural hospitals: in the ``natural``
split a site is a source, and hardly two sites know one tissue. In the ``mixed`` split a share of every
source is dealt out to the other sites. A source image with all its tiles is on one side of every split, and
so is a slide.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from client.patients.importers.tiles import read_tiles, slides_of, tile_answers
from client.patients.records import PatientRecord, Problem
from client.site_patients import SitePatients, Views
from common.errors import BadFileError
from common.ids import SiteId, site_id
from common.tracks import TISSUE_TYPE, AnswerList
from simulations.data_settings import SyntheticData, TileData
from simulations.populations import Population
from simulations.public_tiles import PublicTiles
from simulations.slides import TISSUES, make_slide_hospitals

CONSENT = frozenset({"research"})
"""Published tiles were published for research; the importer leaves consent to whoever runs it."""
MIXING = 8
"""Streams of numbers by what they are drawn for: apart from those of `simulations.scenarios`."""


def synthetic_slides(data: SyntheticData, seed: int) -> Population:
    """Hospitals of patients with drawn tiles, each hospital with its own stain."""
    hospitals = make_slide_hospitals(
        seed,
        data.slides,
        skew=data.skew,
        seen_share=data.seen_share,
        test_per_answer=data.test_per_answer,
        most_tiles=data.most_tiles,
    )
    return Population(
        track=TISSUE_TYPE,
        answers=TISSUES,
        sites={
            site: SitePatients(train=hospital.train, test=hospital.test, views=Views(stain=data.stain))
            for site, hospital in hospitals.items()
        },
        description=(
            f"Slides of {len(TISSUES)} kinds of tissue, drawn, each hospital with its own stain. No real "
            "patient."
        ),
    )


def shared_patients(notes: Population, slides: Population, share: float) -> tuple[Population, Population]:
    """Both populations, where a share of a site's patients with slides also bring a note and a photo.

    Whoever brings both is one patient with an answer in each track; sites of one track stay as they are.
    """
    note_sites, slide_sites = dict(notes.sites), dict(slides.sites)
    for site in sorted(note_sites.keys() & slide_sites.keys()):
        parts = {
            part: _pair_up(getattr(note_sites[site], part), getattr(slide_sites[site], part), share)
            for part in ("train", "test")
        }
        note_sites[site] = dataclasses.replace(
            note_sites[site], train=parts["train"][0], test=parts["test"][0]
        )
        slide_sites[site] = dataclasses.replace(
            slide_sites[site],
            train=parts["train"][1],
            test=parts["test"][1],
            # The photo's findings stay hidden from the note, whichever track asks for the patient.
            views=dataclasses.replace(note_sites[site].views, stain=slide_sites[site].views.stain),
        )
        note_sites[site] = dataclasses.replace(note_sites[site], views=slide_sites[site].views)
    return dataclasses.replace(notes, sites=note_sites), dataclasses.replace(slides, sites=slide_sites)


def _pair_up(
    notes: Sequence[PatientRecord], slides: Sequence[PatientRecord], share: float
) -> tuple[tuple[PatientRecord, ...], tuple[PatientRecord, ...]]:
    count = min(round(share * len(slides)), len(notes))
    both = tuple(
        dataclasses.replace(note, slides=slide.slides, label={**note.label, **slide.label})
        for note, slide in zip(notes[:count], slides[:count], strict=True)
    )
    return (*both, *notes[count:]), (*both, *slides[count:])


def tile_population(data: TileData, seed: int) -> Population:
    """Real tiles; some slides are set aside for everybody, some to be tested on.

    Raises:
        BadFileError: A folder of the data is missing.
    """
    folders = [data.root.expanduser() / name for name in data.folders]
    for folder in folders:
        if not folder.is_dir():
            raise BadFileError(
                folder, "missing; data.root names the folder that holds " + ", ".join(data.folders)
            )
    answers = tile_answers(folders, data.level)
    records, problems = _read(folders, answers, data)
    sites: dict[SiteId, SitePatients] = {}
    public: list[PatientRecord] = []
    parts: dict[str, dict[str, list[PatientRecord]]] = {}
    for source in sorted({_source(record) for record in records}):
        own = [record for record in records if _source(record) == source]
        parts[source] = deal_groups(
            own, test_share=data.test_share, public_share=data.public_share, seed=seed
        )
        public += parts[source].pop("public")
    if data.split == "mixed":
        parts = _mixed(parts, data.mixed_share, seed)
    for source, own_parts in parts.items():
        sites[site_id(source.replace("_", "-"))] = SitePatients(
            train=tuple(own_parts["train"]), test=tuple(own_parts["test"]), views=Views(stain=data.stain)
        )
    tiles = sum(len(record.slides) for record in records)
    return Population(
        track=TISSUE_TYPE,
        answers=answers,
        sites=sites,
        tiles=_public_tiles(public, answers, data.public_size),
        unit=data.unit,
        problems=problems,
        description=(
            f"{tiles:,} H&E tiles of {len(records):,} source images, {len(answers)} {data.level}s, "
            f"{data.split} split over {len(sites)} sites; {sum(len(r.slides) for r in public)} tiles were "
            "set aside for pretraining. The sources name no patients or few: the unit is the source image, "
            "and no claim is made for patients. Sources and licenses: the READMEs beside the tiles."
        ),
    )


def _read(
    folders: Sequence[Path], answers: AnswerList, data: TileData
) -> tuple[list[PatientRecord], tuple[Problem, ...]]:
    records: list[PatientRecord] = []
    problems: list[Problem] = []
    for folder in folders:
        # Public data under public ids: the key hides nothing here, and keeps runs alike.
        found = read_tiles(
            folder,
            key=bytes(32),
            answers=answers,
            public_ids=True,
            level=data.level,
        )
        slides = slides_of(folder)
        for record in found.records:
            # Of so few patients one part would get a single one; their slides are kept apart instead.
            few = _source(record) in data.slides_apart
            group = slides.get(record.case_id, record.group) if few else record.group
            records.append(dataclasses.replace(record, consent=CONSENT, group=group))
        problems += found.problems
    return records, tuple(problems)


def _source(record: PatientRecord) -> str:
    """The source of a record, from its public id."""
    return record.case_id.partition("/")[0]


def deal_groups(
    records: Sequence[PatientRecord], *, test_share: float, public_share: float, seed: int
) -> dict[str, list[PatientRecord]]:
    """The records of ``train``, ``test`` and ``public``, about these shares of each tissue's groups.

    A tissue of a single group is trained on alone, one of two is tested on the second, and from three on
    something of it is public. A group of several tissues counts for the first of them.

    Guarantee: no group is in two parts.
    """
    groups: dict[str, list[PatientRecord]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    by_tissue: dict[str, list[str]] = {}
    for name, members in groups.items():
        by_tissue.setdefault(min(r.label[TISSUE_TYPE.name] for r in members), []).append(name)
    parts: dict[str, list[PatientRecord]] = {"train": [], "test": [], "public": []}
    for names in by_tissue.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        tested = max(round(test_share * len(names)), min(1, len(names) - 1)) if test_share else 0
        public = max(round(public_share * len(names)), 1 if len(names) > 2 else 0) if public_share else 0
        for place, name in enumerate(names):
            part = "test" if place < tested else "public" if place < tested + public else "train"
            parts[part] += groups[name]
    return parts


def _group(record: PatientRecord) -> str:
    return record.group or record.patient_id


def _mixed(
    parts: dict[str, dict[str, list[PatientRecord]]], share: float, seed: int
) -> dict[str, dict[str, list[PatientRecord]]]:
    """The parts, with a share of every source's slides dealt out to the other sites, slides whole."""
    rng, names = np.random.default_rng([seed, MIXING]), sorted(parts)
    dealt: dict[str, dict[str, list[PatientRecord]]] = {name: {"train": [], "test": []} for name in names}
    for source in names:
        for part, records in parts[source].items():
            for group in sorted({_group(record) for record in records}):
                others = [name for name in names if name != source]
                home = str(rng.choice(others)) if rng.random() < share else source
                dealt[home][part] += [r for r in records if _group(r) == group]
    return dealt


def _public_tiles(records: Sequence[PatientRecord], answers: AnswerList, size: int) -> PublicTiles | None:
    """What was set aside, resized to squares of ``size`` pixels; None if nothing was."""
    images, names = [], []
    for record in records:
        name = answers.answers[answers.index_of(record.label[TISSUE_TYPE.name])].name
        for tile in record.slides:
            whole = Image.fromarray(tile.pixels())
            images.append(np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC)))
            names.append(name)
    return PublicTiles(images=np.stack(images), names=tuple(names)) if images else None
