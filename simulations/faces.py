"""Faces drawn from facial findings.

A face is a set of measures. A normal face has each of them inside its normal range (``NORMAL_RANGE`` spreads
around the mean); a finding moves some of them by a few spreads, more in one patient than in another. What is
not a finding of the patient, be it excluded or never looked for, keeps the normal range. Light, pose, skin,
hair, noise and blur vary freely and say nothing about the findings. No photograph of a person is used.

This product uses the Human Phenotype Ontology (version 2024-08-13).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from simulations.face_drawing import draw_face
from simulations.face_sketch import Color, Look, mix
from simulations.face_terms import AGEING, FACIAL_TERMS, MEASURES

__all__ = [
    "DISTINCT_FINDINGS",
    "FACIAL_TERMS",
    "NORMAL_RANGE",
    "contradict",
    "draw_look",
    "face_measures",
    "is_visible",
    "photograph_face",
    "render_face",
    "visible_findings",
]

NORMAL_RANGE = 1.5  # spreads: no measure of a normal face lies further from its mean
FINDING_STRENGTH = (0.7, 1.3)  # how much of a finding's usual effect a patient shows
LARGEST_SHIFT = 6.0  # spreads: several findings of one kind do not add up without end

SKINS: tuple[Color, ...] = (
    (246, 214, 194),
    (232, 190, 160),
    (214, 164, 128),
    (178, 124, 88),
    (132, 88, 62),
    (92, 60, 44),
)
HAIRS: tuple[Color, ...] = ((34, 27, 26), (58, 38, 30), (92, 60, 38), (128, 84, 48), (168, 120, 70))
IRISES: tuple[Color, ...] = ((58, 38, 24), (92, 62, 34), (112, 88, 48), (94, 112, 76), (104, 124, 142))
CLOTHS: tuple[Color, ...] = ((40, 60, 110), (150, 50, 60), (70, 120, 80), (210, 205, 190), (90, 70, 130))
FAIR_HAIR: Color = (226, 204, 150)
BLUE_IRIS: Color = (96, 150, 205)
MOUTH_FOLLOWS = 0.5
LIP_GAP = 0.045  # from the end of the philtrum to the line between the lips, in face units
# One finding for each way of being drawn, the first that is listed: others look like one of these.
_FIRST_DRAWN_SO: dict[tuple[tuple[str, float], ...], str] = {}
for _finding, _effects in FACIAL_TERMS.items():
    _FIRST_DRAWN_SO.setdefault(tuple(sorted(_effects.items())), _finding)
DISTINCT_FINDINGS: tuple[str, ...] = tuple(_FIRST_DRAWN_SO.values())

# What sets a grown-up's normal face apart from an infant's, in spreads.
_AGEING = np.array([AGEING.get(name, 0.0) for name in MEASURES])


def is_visible(hp_id: str) -> bool:
    """Return whether this very finding changes the drawing."""
    return hp_id in FACIAL_TERMS


def contradict(one: str, other: str) -> bool:
    """Return whether two findings pull a measure in opposite directions, as a long and a short nose do."""
    effects, others = FACIAL_TERMS.get(one, {}), FACIAL_TERMS.get(other, {})
    return any(effect * others.get(name, 0.0) < 0 for name, effect in effects.items())


def visible_findings(hp_id: str, parents: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the finding itself if it is drawn, else its nearest ancestors that are.

    ``parents`` gives the direct parents of an id in the ontology. The answer is empty if nothing above the
    finding is drawn.
    """
    level, passed = {hp_id}, set[str]()
    while level:
        if drawn := {term for term in level if is_visible(term)}:
            return frozenset(drawn)
        passed |= level
        level = {parent for term in level for parent in parents.get(term, ())} - passed
    return frozenset()


def face_measures(finding_ids: Collection[str], rng: np.random.Generator) -> dict[str, float]:
    """Draw the measures of one face that shows these findings; unknown findings change nothing.

    Guarantee: without a finding every measure keeps its normal range.
    """
    base = rng.normal(0.0, 0.8, len(MEASURES)) + rng.uniform(-1.0, 1.0) * _AGEING
    base = np.clip(base, -NORMAL_RANGE, NORMAL_RANGE)
    shifts = dict.fromkeys(MEASURES, 0.0)
    for finding in sorted(FACIAL_TERMS.keys() & set(finding_ids)):  # sorted: a set has no order to draw in
        strength = rng.uniform(*FINDING_STRENGTH)
        for name, effect in FACIAL_TERMS[finding].items():
            shifts[name] += strength * effect
    measures = {}
    for z, (name, measure) in zip(base, MEASURES.items(), strict=True):
        shift = min(max(shifts[name], -LARGEST_SHIFT), LARGEST_SHIFT)
        value = measure.mean + measure.spread * (float(z) + shift)
        measures[name] = min(max(value, measure.least), measure.most)
    # A short nose lifts the mouth by half of what it is short, else it would pass for a long philtrum.
    nose_y = MEASURES["nose_y"].mean
    measures["mouth_y"] = (
        nose_y + MOUTH_FOLLOWS * (measures["nose_y"] - nose_y) + measures["philtrum"] + LIP_GAP
    )
    return measures


def render_face(finding_ids: Collection[str], rng: np.random.Generator, size: int = 64) -> NDArray[np.uint8]:
    """Return a synthetic photo, uint8 (size, size, 3), of a face with these findings.

    Guarantee: the same findings, in any order, and the same generator state give the same pixels.
    """
    return photograph_face(face_measures(finding_ids, rng), rng, size)


def photograph_face(
    measures: Mapping[str, float], rng: np.random.Generator, size: int = 64
) -> NDArray[np.uint8]:
    """Return a synthetic photo, uint8 (size, size, 3), of a face with these measures."""
    if size < 16:
        raise ValueError(f"Expected a size of at least 16 pixels, got {size}")
    image = draw_face(measures, draw_look(measures, rng), size)
    return _photograph(image, rng)


def draw_look(measures: Mapping[str, float], rng: np.random.Generator) -> Look:
    """Draw what varies freely: colors, hair, pose. The measures give asymmetry, fair hair and blue eyes."""
    tone = rng.uniform(0.0, 1.0)
    skin = _along(SKINS, tone)
    # Dark skin goes with dark hair and eyes more often than not, as in people.
    hair = _along(HAIRS, rng.uniform(0.0, 1.0 - 0.75 * tone))
    iris = _along(IRISES, rng.uniform(0.0, 1.0 - 0.75 * tone))
    fair, blue = measures["fair"], measures["blue_iris"]
    background = rng.uniform(40, 230, 3)
    # Turns and shifts are small: a face detector would have cut the photo so.
    return Look(
        skin=skin,
        hair=mix(hair, FAIR_HAIR, fair),
        iris=mix(iris, BLUE_IRIS, blue),
        background=(float(background[0]), float(background[1]), float(background[2])),
        cloth=_along(CLOTHS, rng.uniform(0.0, 1.0)),
        long_hair=bool(rng.random() < 0.35),
        roll=float(rng.normal(0.0, 0.035)),
        yaw=float(rng.normal(0.0, 0.07)),
        pitch=float(rng.normal(0.0, 0.045)),
        shift=(float(rng.normal(0.0, 0.02)), float(rng.normal(0.0, 0.02))),
        scale=float(rng.uniform(0.96, 1.03)),
        skew=measures["skew"] * (1.0 if rng.random() < 0.5 else -1.0),
    )


def _along(colors: Sequence[Color], place: float) -> Color:
    """Return the color at ``place``, 0 to 1, on the way from the first color to the last."""
    index = min(int(place * (len(colors) - 1)), len(colors) - 2)
    return mix(colors[index], colors[index + 1], place * (len(colors) - 1) - index)


def _photograph(image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light the drawing from a side, blur it a little, add a camera's noise."""
    size = image.width
    blur = rng.uniform(0.0, 0.6) * size / 64
    if blur > 0.25:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, dtype=np.float32)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.22)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + axis * (strength * math.cos(angle)) + axis[:, None] * (strength * math.sin(angle))
    tint = (rng.normal(1.0, 0.035, 3) * rng.uniform(0.82, 1.12)).astype(np.float32)
    # Uniform bytes: a third of the time that normal noise takes, and the same to look at.
    grain = np.frombuffer(rng.bytes(pixels.size), dtype=np.uint8).reshape(pixels.shape) - np.float32(127.5)
    grain *= rng.uniform(0.01, 0.08)
    lit = pixels * (light[:, :, None] * tint) + grain
    return np.clip(lit, 0, 255).astype(np.uint8)
