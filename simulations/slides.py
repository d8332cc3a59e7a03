"""Synthetic slides: tiles of stained tissue whose kind is known, in the stain of the hospital that made them.

A tile is a set of measures drawn around those of its kind (``KINDS``), wide enough that neighboring kinds
overlap: a small network names the kind of most tiles and not of all. Each hospital has a laboratory and a
scanner of its own, hence a stain, and each of its slides differs a little from the last. No slide of a person
is used.

Everything is a function of a seed. Public tiles come from streams of random numbers that no site's patient
uses, and their stains vary more widely than those of hospitals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from client.patients.photos import ImageRef
from client.patients.records import PatientRecord
from common.ids import SiteId, site_id
from common.tracks import TISSUE_TYPE, Answer, AnswerList
from simulations.hospital import CONSENT, Hospital, Purpose, draw_caseloads, stream
from simulations.slide_drawing import Stain, draw_concentrations, stain_tile

__all__ = [
    "ATTRIBUTES",
    "KINDS",
    "MEASURES",
    "TISSUES",
    "draw_measures",
    "draw_slides",
    "draw_stain",
    "draw_tile",
    "make_slide_hospitals",
    "make_slide_records",
    "public_tiles",
    "vary_stain",
]

ONTOLOGY = "consilium synthetic tissues 1"
SPREAD = 0.10  # of a measure within a kind, in parts of its range
HOSPITAL_RANGE, PUBLIC_RANGE, SLIDE_RANGE = 1.0, 1.6, 0.25  # how far stains lie from the usual one
HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.15, 0.95, 0.25)  # usual densities in red, green and blue
STRENGTHS = (0.62, 0.42)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of a tissue: its range, and its place in it (0 to 1) where a kind says nothing.

    A usual place below 0 stands for what most tiles do not have at all.
    """

    least: float
    most: float
    usual: float = 0.0


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "density": Measure(least=3, most=150, usual=0.3),  # nuclei a tile
        "radius": Measure(least=1.2, most=3.4, usual=0.35),  # of a nucleus, pixels of a tile of 64
        "elongation": Measure(least=1, most=4, usual=0.15),  # its length to its width
        "pleomorphism": Measure(least=0, most=0.6, usual=0.1),  # how unequal nuclei are
        "alignment": Measure(least=0, most=1, usual=0.15),  # how far fibers and nuclei run one way
        "glands": Measure(least=0, most=0.95, usual=-0.12),  # chance that a place for a gland holds one
        "gland_radius": Measure(least=6, most=20, usual=0.4),  # pixels
        "lumen": Measure(least=0, most=0.75, usual=0.2),  # radius of the hole to the gland's
        "fibers": Measure(least=0, most=0.8, usual=0.15),  # contrast
        "fiber_width": Measure(least=1.5, most=7, usual=0.4),  # pixels
        "fat": Measure(least=0, most=0.97, usual=-0.15),  # chance that a place for a fat cell holds one
        "halo": Measure(least=0, most=1, usual=0.08),  # how clear it is around a nucleus
        "layers": Measure(least=0, most=0.95, usual=0.08),  # how far nuclei crowd to one side
        "basophilia": Measure(least=0, most=0.5, usual=0.12),  # hematoxylin between nuclei
        "eosin": Measure(least=0.2, most=1.3, usual=0.45),
    }
)

KINDS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "adipose tissue": {"density": 0.06, "radius": 0.15, "elongation": 0.4, "fat": 0.85, "eosin": 0.3},
        "smooth muscle": {
            "density": 0.3,
            "radius": 0.3,
            "elongation": 0.8,
            "alignment": 0.8,
            "fibers": 0.55,
            "fiber_width": 0.5,
            "eosin": 0.7,
        },
        "nerve": {
            "density": 0.33,
            "radius": 0.25,
            "elongation": 0.72,
            "alignment": 0.6,
            "fibers": 0.55,
            "fiber_width": 0.3,
            "eosin": 0.45,
            "halo": 0.2,
        },
        "squamous epithelium": {"density": 0.45, "radius": 0.45, "layers": 0.7, "eosin": 0.6, "halo": 0.2},
        "colon crypts": {
            "density": 0.45,
            "glands": 0.75,
            "gland_radius": 0.6,
            "lumen": 0.6,
            "radius": 0.35,
            "eosin": 0.4,
        },
        "lymphoid tissue": {"density": 0.9, "radius": 0.2, "elongation": 0.05, "basophilia": 0.25},
        "cartilage": {"density": 0.13, "radius": 0.35, "halo": 0.75, "basophilia": 0.6, "eosin": 0.25},
        "bone": {
            "density": 0.12,
            "radius": 0.25,
            "halo": 0.5,
            "fibers": 0.4,
            "fiber_width": 0.7,
            "alignment": 0.6,
            "eosin": 0.8,
        },
        "liver": {"density": 0.36, "radius": 0.5, "elongation": 0.05, "eosin": 0.68, "basophilia": 0.2},
        "kidney cortex": {
            "density": 0.42,
            "glands": 0.8,
            "gland_radius": 0.25,
            "lumen": 0.4,
            "radius": 0.35,
            "eosin": 0.6,
        },
        "adenocarcinoma": {
            "density": 0.6,
            "glands": 0.6,
            "gland_radius": 0.45,
            "lumen": 0.45,
            "radius": 0.55,
            "pleomorphism": 0.55,
            "basophilia": 0.25,
            "eosin": 0.4,
        },
        "squamous carcinoma": {
            "density": 0.6,
            "glands": 0.3,
            "gland_radius": 0.65,
            "lumen": 0.0,
            "radius": 0.6,
            "pleomorphism": 0.6,
            "layers": 0.25,
            "eosin": 0.6,
        },
    }
)
"""Where in the range of a measure tiles of a kind lie on average; the usual place where it is not said."""

TISSUES = AnswerList(
    answers=tuple(
        Answer(id=f"tissue:{name.replace(' ', '_')}", name=name, ontology=ONTOLOGY) for name in KINDS
    )
)
"""The kinds as answers of a plan, in the order of ``KINDS``."""
ATTRIBUTES: tuple[str, ...] = (*MEASURES, "hematoxylin_strength", "eosin_strength")
"""What the columns of ``public_tiles``' table are."""


def draw_measures(tissue: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the measures of one tile of a kind, by its name; ValueError if there is no such kind."""
    if tissue not in KINDS:
        raise ValueError(f"Expected a tissue among {', '.join(KINDS)}, got {tissue}")
    kind = KINDS[tissue]
    measures = {}
    for (name, one), luck in zip(MEASURES.items(), rng.normal(0.0, SPREAD, len(MEASURES)), strict=True):
        place = min(max(kind.get(name, one.usual) + float(luck), 0.0), 1.0)
        measures[name] = one.least + place * (one.most - one.least)
    return measures


def draw_tile(tissue: str, stain: Stain, rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Return one tile of a kind, uint8 (size, size, 3).

    Guarantee: the same kind, stain and generator state give the same pixels.
    """
    return _photograph(draw_measures(tissue, rng), stain, rng, size)


def draw_stain(rng: np.random.Generator, *, width: float = HOSPITAL_RANGE) -> Stain:
    """Draw a laboratory's dyes and a scanner; ``width`` says how far from the usual ones they may lie."""
    usual = Stain(
        hematoxylin=_direction(np.array(HEMATOXYLIN)),
        eosin=_direction(np.array(EOSIN)),
        hematoxylin_strength=STRENGTHS[0],
        eosin_strength=STRENGTHS[1],
        background=(243.0, 241.0, 243.0),
        blur=0.55,
    )
    return vary_stain(usual, rng, width=width)


def vary_stain(stain: Stain, rng: np.random.Generator, *, width: float = SLIDE_RANGE) -> Stain:
    """Draw a stain beside another one: the next slide of the same laboratory, or with more width another."""
    shift = rng.normal(0.0, 0.075 * width, (2, 3))
    strengths = np.exp(rng.normal(0.0, 0.22 * width, 2))
    glass = np.clip(np.array(stain.background) + rng.normal(0.0, 6.0 * width, 3), 200, 255)
    return Stain(
        hematoxylin=_direction(np.array(stain.hematoxylin) + shift[0]),
        eosin=_direction(np.array(stain.eosin) + shift[1]),
        hematoxylin_strength=stain.hematoxylin_strength * float(strengths[0]),
        eosin_strength=stain.eosin_strength * float(strengths[1]),
        background=(float(glass[0]), float(glass[1]), float(glass[2])),
        blur=max(0.0, stain.blur + float(rng.normal(0.0, 0.2 * width))),
    )


def draw_slides(
    tissue: str, laboratory: Stain, rng: np.random.Generator, *, most_tiles: int = 1, size: int = 64
) -> tuple[NDArray[np.uint8], ...]:
    """Draw 1 to ``most_tiles`` tiles of one slide, which share its stain, uint8 (size, size, 3) each."""
    if most_tiles < 1:
        raise ValueError(f"Expected most_tiles of at least 1, got {most_tiles}")
    stain = vary_stain(laboratory, rng)
    tiles = int(rng.integers(1, most_tiles + 1))
    return tuple(draw_tile(tissue, stain, rng, size) for _ in range(tiles))


def make_slide_records(
    seed: int,
    site_number: int,
    split: int,
    counts: Sequence[int],
    *,
    site: str,
    most_tiles: int = 1,
    size: int = 64,
) -> tuple[PatientRecord, ...]:
    """Return a hospital's patients of one split, in a drawn order.

    Args:
        seed: Decides everything, with the two numbers.
        site_number: Which hospital; its stain is the same in every split.
        split: 0 for training, 1 for test.
        counts: Patients of each kind, in the order of ``TISSUES``.
        site: What pseudonyms begin with.
        most_tiles, size: As in ``draw_slides``.
    """
    if split not in (0, 1):
        raise ValueError(f"Expected split 0 or 1, got {split}")
    if len(counts) != len(TISSUES):
        raise ValueError(f"Expected {len(TISSUES)} counts, got {len(counts)}")
    laboratory = draw_stain(stream(seed, Purpose.SLIDES, site_number))
    cases = np.repeat(np.arange(len(counts)), counts)
    records = []
    for place, case in enumerate(stream(seed, Purpose.SLIDES, site_number, split).permutation(cases)):
        rng = stream(seed, Purpose.SLIDES, site_number, split, place)
        answer = TISSUES.answers[case]
        tiles = draw_slides(answer.name, laboratory, rng, most_tiles=most_tiles, size=size)
        # Apart from the patients of `simulations.hospital`, who may be at the same site.
        name = f"{site}-slide-{'ab'[split]}{place:05d}"
        records.append(
            PatientRecord(
                patient_id=name,
                case_id=name,
                slides=tuple(ImageRef(array=tile) for tile in tiles),
                label={TISSUE_TYPE.name: answer.id},
                consent=CONSENT,
            )
        )
    return tuple(records)


def make_slide_hospitals(
    seed: int,
    sizes: Mapping[str, int],
    *,
    skew: float = 1.0,
    seen_share: float = 0.7,
    test_per_answer: int = 20,
    most_tiles: int = 1,
    size: int = 64,
) -> Mapping[SiteId, Hospital]:
    """Return hospitals and their patients, in the order of ``sizes`` (training patients by site id).

    ``skew``, ``seen_share`` and ``test_per_answer`` are those of ``hospital.make_hospitals``.

    Guarantee: a patient belongs to one hospital, and there to training or test alone.
    """
    rng = stream(seed, Purpose.CASELOADS)
    train = draw_caseloads(rng, list(sizes.values()), len(TISSUES), skew=skew, seen_share=seen_share)
    test = np.array([rng.multinomial(test_per_answer, seen / seen.sum()) for seen in train.T]).T
    hospitals = {}
    for number, site in enumerate(site_id(name) for name in sizes):
        splits = [
            make_slide_records(seed, number, split, counts, site=site, most_tiles=most_tiles, size=size)
            for split, counts in enumerate((train[number].tolist(), test[number].tolist()))
        ]
        hospitals[site] = Hospital(site_id=site, train=splits[0], test=splits[1])
    return hospitals


def public_tiles(
    seed: int, n: int, *, size: int = 64
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Draw ``n`` tiles to pretrain encoders and base models on, each of a slide of its own.

    Returns:
        Tiles, uint8 (n, size, size, 3); kinds, int64 (n,), places in ``TISSUES``; and a table, float32
        (n, attributes), in the order of ``ATTRIBUTES``: measures in parts of their range, 0 to 1, and
        strengths of the stain.

    Guarantee: public tiles share no random stream with a site's patients, whatever the seeds.
    """
    tiles = np.empty((n, size, size, 3), dtype=np.uint8)
    kinds = np.empty(n, dtype=np.int64)
    table = np.empty((n, len(ATTRIBUTES)), dtype=np.float32)
    for number in range(n):
        rng = stream(seed, Purpose.PUBLIC_TILES, number)
        kinds[number] = rng.integers(len(TISSUES))
        stain = draw_stain(rng, width=PUBLIC_RANGE)
        measures = draw_measures(TISSUES.names[kinds[number]], rng)
        tiles[number] = _photograph(measures, stain, rng, size)
        places = [(measures[name] - one.least) / (one.most - one.least) for name, one in MEASURES.items()]
        table[number] = [*places, stain.hematoxylin_strength, stain.eosin_strength]
    return tiles, kinds, table


def _photograph(
    measures: Mapping[str, float], stain: Stain, rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    hematoxylin, eosin = draw_concentrations(measures, rng, size)
    return stain_tile(hematoxylin, eosin, stain, rng, thickness=float(rng.uniform(0.85, 1.15)))


def _direction(densities: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the densities at length 1; none below 0.02: no dye gives light."""
    kept = np.maximum(densities, 0.02)
    red, green, blue = kept / np.linalg.norm(kept)
    return float(red), float(green), float(blue)
