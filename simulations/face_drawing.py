"""A schematic face as polygons, from numbers.

``draw_face`` turns a face's measures (lengths in face units, strengths from 0 up) and its look (skin, hair, pose)
into an image. It knows no finding: what a finding does to the measures is told in ``simulations.faces``.

Face units: x to the viewer's right, y down, the origin between the eyes and the tip of the nose. The crown of a
normal head lies near -1.02, its chin near 0.92, its cheekbones near 0.68 on either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Color = tuple[float, float, float]
Measures = Mapping[str, float]

SUPERSAMPLING = 3
FAINTEST = 0.05  # opacity
MIRROR = np.array([-1.0, 1.0])
UNITS_TO_FRAME = 0.435  # of the image's side: leaves a margin for a large head, a shift and a tilt
DARK: Color = (38.0, 24.0, 22.0)
MOUTH_INSIDE: Color = (88.0, 28.0, 34.0)
TOOTH: Color = (238.0, 234.0, 222.0)
FLESH: Color = (196.0, 92.0, 92.0)
STAIN: Color = (178.0, 46.0, 66.0)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a face looks like apart from its measures.

    Attributes:
        skin, hair, iris, background, cloth: Colors, 0 to 255.
        long_hair: Whether hair falls beside the neck.
        roll, yaw, pitch: Turns of the head in radians.
        shift: Of the head's middle, in face units.
        scale: Of the whole head.
        skew: How much lower the viewer's right half sits than the left (facial asymmetry).
    """

    skin: Color
    hair: Color
    iris: Color
    background: Color
    cloth: Color
    long_hair: bool
    roll: float
    yaw: float
    pitch: float
    shift: tuple[float, float]
    scale: float
    skew: float


class Sketch:
    """Filled polygons in face units, in the order in which they are painted.

    Each has a color, an opacity ``alpha``, and a ``depth``: how far it stands out of the face.
    """

    def __init__(self) -> None:
        self.polygons: list[Points] = []
        self.colors: list[Color] = []
        self.alphas: list[float] = []
        self.depths: list[float] = []

    def add(self, points: Points, color: Color, alpha: float = 1.0, depth: float = 0.0) -> None:
        """Paint one polygon over what is there; one too faint to be seen is left out."""
        if alpha > FAINTEST:
            self.polygons.append(points)
            self.colors.append(color)
            self.alphas.append(alpha)
            self.depths.append(depth)

    def both(self, points: Points, color: Color, alpha: float = 1.0, depth: float = 0.0) -> None:
        """Paint a polygon of the right half, and its mirror image."""
        if alpha > FAINTEST:
            self.add(points, color, alpha, depth)
            self.add(points * MIRROR, color, alpha, depth)


def mix(one: Color, other: Color, share: float) -> Color:
    """Return ``share`` of the other color in the one."""
    return (
        one[0] + (other[0] - one[0]) * share,
        one[1] + (other[1] - one[1]) * share,
        one[2] + (other[2] - one[2]) * share,
    )


def lit(skin: Color) -> Color:
    """Return the skin where it catches the light: brighter in proportion, so that dark skin keeps its relief."""
    return min(255.0, 10 + 1.22 * skin[0]), min(255.0, 8 + 1.22 * skin[1]), min(255.0, 8 + 1.22 * skin[2])


@lru_cache(maxsize=64)
def spline_weights(anchors: int, steps: int, closed: bool) -> NDArray[np.float64]:
    """Return the (points, anchors) matrix of a Catmull-Rom curve through ``anchors`` points."""
    segments = anchors if closed else anchors - 1
    rows = np.zeros((segments * steps + (0 if closed else 1), anchors))
    for row in range(len(rows)):
        segment, t = min(row // steps, segments - 1), row / steps - min(row // steps, segments - 1)
        weights = 0.5 * np.array(
            [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3]
        )
        for offset, weight in enumerate(weights):
            place = segment + offset - 1
            rows[row, place % anchors if closed else min(max(place, 0), anchors - 1)] += weight
    return rows


def curve(*anchors: tuple[float, float], steps: int = 5) -> Points:
    """Return points along a smooth line through the anchors."""
    return spline_weights(len(anchors), steps, False) @ np.array(anchors)


def outline(anchors: Points, steps: int = 4) -> Points:
    """Return points along a smooth closed line through the anchors."""
    return spline_weights(len(anchors), steps, True) @ anchors


@lru_cache(maxsize=8)
def circle(steps: int = 16) -> NDArray[np.float64]:
    """Return ``steps`` points of the unit circle."""
    angle = np.arange(steps) * (2 * np.pi / steps)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ellipse(x: float, y: float, width: float, height: float, turn: float = 0.0) -> Points:
    """Return an ellipse around (x, y) with half axes ``width`` and ``height``, turned by ``turn`` radians."""
    points = circle() * (width, height)
    return (points @ turning(turn) if turn else points) + (x, y)


def turning(angle: float) -> NDArray[np.float64]:
    """Return the matrix that turns rows of (x, y) by an angle in radians, from x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def band(line: Points, thickness: Points | float, across: tuple[float, float] = (0.0, 1.0)) -> Points:
    """Return a line thickened by ``thickness`` towards ``across``, thin at no place unless told so."""
    offset = np.atleast_1d(thickness)[:, None] * np.array(across)
    return np.concatenate([line, (line + offset)[::-1]])


@lru_cache(maxsize=8)
def taper(steps: int, power: float = 0.5) -> NDArray[np.float64]:
    """Return weights that are 0 at both ends of a line and 1 in its middle."""
    return (4 * (t := np.linspace(0.0, 1.0, steps)) * (1 - t)) ** power


def head_half(m: Measures) -> Points:
    """Return the anchors of the head's right half, from the crown to the chin."""
    crown, chin = -m["crown"], m["chin_y"]
    temple, cheekbone = m["temple"], m["cheekbone"]
    jaw_y = 0.30 + 0.32 * (chin / 0.92)
    return np.array(
        [
            (0.0, crown),
            (0.50 * temple, crown + 0.075 - 0.03 * m["flat_top"]),
            (0.90 * temple, 0.62 * crown - 0.05),
            (temple, -0.32),
            (cheekbone, 0.05),
            (m["cheek"], 0.38),
            (m["jaw"], jaw_y),
            (m["chin_width"], chin - 0.075),
            (0.0, chin),
        ]
    )


def head_outline(m: Measures) -> Points:
    """Return the closed outline of the head."""
    half = head_half(m)
    return outline(np.concatenate([half, half[-2:0:-1] * MIRROR]))


def draw_body(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint hair behind the head, neck and clothes."""
    shade = mix(look.skin, DARK, 0.22)
    if look.long_hair:
        width = m["temple"] * (1.16 + 0.10 * m["curl"])
        fall = outline(np.array([(0, -0.95), (width, -0.55), (width * 1.08, 0.3), (width * 0.95, 1.25),
                                 (-width * 0.95, 1.25), (-width * 1.08, 0.3), (-width, -0.55)]))  # fmt: skip
        sketch.add(fall, mix(look.hair, DARK, 0.25), 1.0 if m["density"] > 0.35 else 0.5, -0.25)
    neck = 0.36
    sketch.add(np.array([(-neck, 0.4), (neck, 0.4), (neck + 0.02, 1.05), (0.95, 1.22), (1.0, 1.6), (-1.0, 1.6),
                         (-0.95, 1.22), (-neck - 0.02, 1.05)]), shade, 1.0, -0.2)  # fmt: skip
    sketch.add(np.array([(-1.5, 1.7), (-1.1, 1.2), (-0.4, 1.08), (0.0, 1.2), (0.4, 1.08), (1.1, 1.2), (1.5, 1.7)]),
               look.cloth, 1.0, -0.2)  # fmt: skip


def draw_ears(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint both ears, behind the head."""
    height, out, lobe = m["ear_size"], m["ear_out"], m["lobe"]
    width = 0.055 + 0.55 * out + 0.25 * (height - 0.2)
    edge, inner = mix(look.skin, DARK, 0.18), mix(look.skin, DARK, 0.42)
    rim = circle() * (width, height)
    rim[:, 0] *= 1 - 0.22 * rim[:, 1] / height  # wider above than below
    if (odd := m["ear_odd"]) > FAINTEST:  # the upper rim is folded over, the edge dented
        rim[:, 1] = np.maximum(rim[:, 1], -height * (1 - 0.55 * odd))
        rim[:, 0] += 0.05 * odd * np.sin(26 * rim[:, 1])
    shell = rim * (0.62 - 0.20 * m["rim"], 0.70 - 0.15 * m["rim"]) + (0.012, -0.02)
    tip = circle() * (0.045 + 0.028 * lobe, 0.05 + 0.04 * lobe) + (
        0.01 + 0.02 * lobe,
        0.86 * height - 0.03 * lobe,
    )
    place, turn = (m["cheekbone"] - 0.015 + 0.5 * out, m["ear_y"]), turning(m["ear_tilt"])
    for part, color, alpha in ((rim, edge, 1.0), (tip, edge, 1.0), (shell, inner, 0.75),
                               (0.55 * shell + (0.02, 0.03), edge, 0.9)):  # fmt: skip
        sketch.both(part @ turn + place, color, alpha, -0.12)


def draw_head(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the head and the relief of forehead, cheeks, midface and chin."""
    skin, light, shade = look.skin, lit(look.skin), mix(look.skin, DARK, 0.5)
    sketch.add(head_outline(m), skin)
    cheekbone, chin = m["cheekbone"], m["chin_y"]
    sketch.both(ellipse(0.93 * m["temple"], -0.42, 0.09, 0.22, -0.15), shade, 0.16 + 0.5 * m["hollow"])
    for grow in (1.0, 0.62):  # two layers: a soft edge
        bump = m["bossing"]
        sketch.both(ellipse(0.25, -0.55, 0.24 * grow, 0.19 * grow), light, 0.28 * bump)
        sketch.add(ellipse(0, -0.27, 0.15 * grow, 0.12 * grow), light, 0.4 * m["glabella"])
        sketch.both(
            ellipse(0.70 * cheekbone, 0.14, 0.15 * grow, 0.085 * grow, 0.35), light, 0.38 * m["malar"]
        )
        sketch.both(ellipse(0.66 * m["cheek"], 0.36, 0.19 * grow, 0.19 * grow), mix(light, FLESH, 0.30),
                    0.30 * m["puff"])  # fmt: skip
        sketch.both(ellipse(0.25, 0.17, 0.13 * grow, 0.20 * grow, 0.35), shade, 0.24 * m["midface"])
        sketch.add(ellipse(0, chin - 0.13, 0.15 * grow, 0.08 * grow), light, 0.22 + 0.15 * m["chin_relief"])
    sketch.both(ellipse(0.60 * cheekbone, 0.16, 0.17, 0.06, 0.5), shade, 0.30 * m["sunken"])
    sketch.add(ellipse(0, chin - 0.075, 1.2 * m["chin_width"], 0.085), shade, 0.34 * m["receding"])
    sketch.add(band(curve((0.0, -0.85), (0.012, -0.6), (0, -0.33)), 0.05, (1.0, 0.0)) - (0.025, 0), light,
               0.7 * m["metopic"])  # fmt: skip
    sketch.add(ellipse(0, -0.44, 0.12, 0.17), STAIN, 0.42 * m["stain"])
    sketch.add(ellipse(0.03, -0.20, 0.07, 0.09), STAIN, 0.42 * m["stain"])
    if m["freckles"] > 0.05:
        for x, y in ((0.2, 0.2), (0.3, 0.26), (0.13, 0.25), (0.24, 0.32), (0.36, 0.18), (0.1, 0.16)):
            sketch.both(ellipse(x, y, 0.022, 0.022), mix(STAIN, DARK, 0.4), 0.7 * m["freckles"])
    sketch.both(ellipse(cheekbone - 0.05, 0.21, 0.035, 0.05), mix(light, FLESH, 0.4), m["tag"])
    sketch.both(ellipse(cheekbone - 0.035, 0.225, 0.018, 0.03), shade, 0.8 * m["tag"])


def lids(m: Measures, u: NDArray[np.float64]) -> tuple[Points, Points]:
    """Return upper and lower edge of the right eye's opening at ``u`` from -1 (inner corner) to 1 (outer)."""
    gap, width, opening = m["eye_gap"], m["eye_width"], m["eye_open"]
    inner = gap - width + m["telecanthus"]
    x = inner + (gap + width - inner) * (u + 1) / 2
    arc = (1 - u**2) ** (0.62 + 0.30 * m["almond"])
    upper = -opening * (0.62 - 0.52 * m["ptosis"]) * 2 * arc * (1 - 0.10 * u)
    lower = opening * 0.80 * arc * (1 + 0.12 * u)
    lower = lower + m["evert"] * 0.075 * np.clip(u - 0.05, 0, None) * (1 - u**8)
    lower = lower + m["notch"] * 0.10 * np.exp(-(((u - 0.45) / 0.18) ** 2))
    tilt = m["eye_y"] - m["slant"] * (x - gap)
    return np.stack([x, tilt + upper], axis=1), np.stack([x, tilt + lower], axis=1)


EYE_STEPS = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 13))


def draw_eyes(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint both eyes: sockets, opening, iris, lids, lashes, folds."""
    shade, light = mix(look.skin, DARK, 0.55), lit(look.skin)
    gap, width, y = m["eye_gap"], m["eye_width"], m["eye_y"]
    upper, lower = lids(m, EYE_STEPS)
    ease = taper(len(upper))
    socket = ellipse(gap, y - 0.03, width * 1.25, 0.12)
    sketch.both(socket, shade, 0.08 + 0.50 * m["deep"])
    sketch.both(ellipse(gap, y - 0.085, width * 1.15, 0.05), shade, 0.62 * m["deep"])
    sketch.both(ellipse(gap, y, width * 1.28, m["eye_open"] * 2.1), light, 0.75 * m["bulge"])
    puffy = band(lower + (0.0, 0.012), (0.085 * ease), (0.0, 1.0))
    sketch.both(puffy, light, 0.75 * m["puffy_lid"])
    sketch.both(band(lower + (0, 0.085), 0.022 * ease), shade, 0.12 + 0.65 * m["puffy_lid"])
    crease = upper - (0, 0.035 + 0.03 * m["ptosis"])
    sketch.both(band(crease, -0.016 * ease), shade, 0.55 - 0.3 * m["hood"])
    sketch.both(band(upper, -0.06 * ease), mix(look.skin, shade, 0.25), 0.8 * m["hood"] + 0.5 * m["ptosis"])
    sclera = mix((240, 238, 234), (120, 150, 205), m["blue_sclera"])
    opening = np.concatenate([upper, lower[::-1]])
    sketch.both(opening, sclera)
    draw_irises(sketch, m, look, upper, lower)
    sketch.both(band(lower, 0.045 * m["evert"] * np.clip(EYE_STEPS, 0, None) * ease), FLESH, 0.9)
    sketch.both(band(lower, 0.016 * ease * np.clip(0.55 - EYE_STEPS, 0, 1) ** 0.3), mix(shade, FLESH, 0.3),
                0.55 - 0.4 * m["bare_lid"])  # fmt: skip
    lash = np.clip(m["lash"], 0, None)
    sketch.both(band(upper, -(0.018 + 0.013 * min(lash, 1.5)) * ease**0.5), mix(DARK, look.hair, 0.3),
                0.55 + 0.45 * min(lash, 1.0))  # fmt: skip
    if lash > 0.25:
        tips = np.stack(
            [upper[4:-1, 0] + 0.03 * np.linspace(0, 1, 8), upper[4:-1, 1] - 0.085 * lash**0.7], axis=1
        )
        for root, tip in zip(upper[4:-1:2], tips[::2], strict=True):
            sketch.both(np.array([root - (0.012, 0), tip, root + (0.012, 0)]), DARK, 0.8)
    if (fold := m["fold"]) > 0.05:
        corner = upper[0]
        rim = curve((corner[0] + 0.09, corner[1] - 0.085), (corner[0] + 0.065, corner[1] - 0.02),
                    (corner[0] + 0.060, corner[1] + 0.025), (corner[0] + 0.02, corner[1] + 0.075))  # fmt: skip
        cover = np.concatenate(
            [rim, [(corner[0] - 0.03, corner[1] + 0.04), (corner[0] - 0.02, corner[1] - 0.05)]]
        )
        sketch.both(cover, mix(look.skin, light, 0.5), min(1.0, fold))
        sketch.both(band(rim, 0.017, (1.0, 0.0)), shade, 0.85 * fold)


def draw_irises(sketch: Sketch, m: Measures, look: Look, upper: Points, lower: Points) -> None:
    """Paint both irises, cut off by the lids; a squint moves one of them."""
    y = m["eye_y"] - 0.008
    discs = np.concatenate([circle() * 0.062, circle() * 0.051, circle() * 0.026])
    if m["keyhole"] > FAINTEST:  # the pupil's lower edge is drawn down
        discs[-14:-9, 1] += 0.065 * m["keyhole"]
    for side in (1.0, -1.0):
        x = m["eye_gap"] + (0.072 * m["squint"] if side > 0 else 0.0)
        disc = discs + (x, y)
        top = np.interp(disc[:, 0], upper[:, 0], upper[:, 1])
        floor = np.interp(disc[:, 0], lower[:, 0], lower[:, 1])
        disc[:, 1] = np.clip(disc[:, 1], top, floor)
        disc[:, 0] *= side
        steps = len(disc) // 3
        sketch.add(disc[:steps], mix(look.iris, DARK, 0.45))
        sketch.add(disc[steps : 2 * steps], mix(look.iris, (235, 235, 225), 0.6 * m["specks"]))
        sketch.add(disc[2 * steps :], (14.0, 12.0, 14.0))
        sketch.add(ellipse(x * side - 0.018, y - 0.022, 0.013, 0.013), (255, 255, 255), 0.85)


def draw_brows(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint eyebrows, and hair between them."""
    color = mix(look.hair, DARK, 0.25)
    y, arch, thick = m["brow_y"], m["brow_arch"], m["brow_thick"]
    inner, outer = m["eye_gap"] - 0.165, m["eye_gap"] + 0.165 + 0.04 * m["brow_long"]
    t = np.linspace(0, 1, 9)
    x = inner + (outer - inner) * t
    rise = -arch * np.sin(np.pi * t**0.85) + 0.05 * t**2 - 0.03 * m["flare"] * (1 - t) ** 2
    line = np.stack([x, y + rise], axis=1)
    width = thick * (0.55 + 0.6 * np.sin(np.pi * (0.18 + 0.72 * t))) * (1 + 0.9 * m["flare"] * (1 - t) ** 3)
    brow = band(line - np.stack([0 * t, width / 2], axis=1), width)
    split = 5
    medial = np.concatenate([brow[: split + 1], brow[-split - 1 :]])
    lateral = brow[split : len(brow) - split]
    density = m["brow_density"]
    sketch.both(medial, color, density * (1 - 0.85 * m["bare_medial"]))
    sketch.both(lateral, color, density * (1 - 0.9 * m["bare_lateral"]))
    joined = np.array([(-inner - 0.01, y - thick * 0.55), (0, y - 0.01), (inner + 0.01, y - thick * 0.55),
                       (inner + 0.01, y + thick * 0.5), (0, y + 0.03), (-inner - 0.01, y + thick * 0.5)])  # fmt: skip
    sketch.add(joined, color, 0.85 * density**0.5 * m["synophrys"])
    sketch.both(
        ellipse(m["eye_gap"] + 0.02, y + 0.035, 0.2, 0.03), mix(look.skin, DARK, 0.5), 0.5 * m["ridge"]
    )


def draw_nose(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the nose: bridge, tip, wings, nostrils, columella."""
    shade, light = mix(look.skin, DARK, 0.5), lit(look.skin)
    base, root = m["nose_y"], m["eye_y"] - 0.06
    bridge, tip, wing = m["bridge_width"], m["tip_width"], m["wing_width"]
    relief = np.clip(m["bridge_relief"], 0.0, 2.0)
    side = curve((bridge + 0.01, root - 0.06), (bridge, root + 0.06), (bridge * 1.05, 0.45 * base),
                 (0.72 * wing, base - 0.09))  # fmt: skip
    sketch.both(band(side, 0.045 + 0.01 * relief, (1.0, 0.0)), shade, 0.20 + 0.34 * relief, 0.05)
    ridge = curve((0, root - 0.02), (0, 0.4 * base), (0, base - 0.10))
    width = bridge * (
        0.55 + 0.8 * m["convex"] * np.exp(-(((np.linspace(0, 1, len(ridge)) - 0.4) / 0.25) ** 2))
    )
    sketch.add(band(ridge - np.stack([width / 2, 0 * width], axis=1), width, (1.0, 0.0)), light,
               0.20 + 0.38 * relief, 0.12)  # fmt: skip
    sketch.add(ellipse(0, root + 0.075, bridge * 1.15, 0.05), shade, 0.55 * m["saddle"], 0.05)
    sketch.add(ellipse(0, 0.55 * base, bridge * 1.3, 0.07), shade, 0.40 * m["scoop"], 0.1)
    show = m["nostril"]
    sketch.both(
        ellipse(wing * 0.80, base - 0.045, wing * 0.34, 0.062), mix(look.skin, shade, 0.30), 1.0, 0.12
    )
    sketch.both(band(curve((wing, base - 0.11), (wing * 1.12, base - 0.04), (wing * 0.85, base + 0.015)), -0.028,
                     (1.0, 0.0)), shade, 0.75, 0.1)  # fmt: skip
    tip_y = base - 0.085 + 0.055 * m["tip_drop"] - 0.02 * show
    sketch.add(ellipse(0, tip_y, tip, 0.062 + 0.35 * (tip - 0.1)), mix(look.skin, shade, 0.10), 1.0, 0.2)
    sketch.add(ellipse(-0.01, tip_y - 0.012, tip * 0.55, 0.035 + 0.2 * (tip - 0.1)), light,
               0.55 + 0.4 * m["tip_relief"], 0.2)  # fmt: skip
    sketch.add(
        band(curve((-wing * 0.9, base), (0, base + 0.030), (wing * 0.9, base)), 0.02), shade, 0.40, 0.1
    )
    hole = ellipse(0.52 * wing, base - 0.012 - 0.018 * show, 0.036 + 0.14 * (wing - 0.16) + 0.012 * show,
                   0.011 + 0.020 * show, 0.25)  # fmt: skip
    sketch.both(hole, (44, 20, 20), 0.85, 0.15)
    sketch.add(ellipse(0, base + 0.012, 0.042, 0.02 + 0.055 * m["columella"]), mix(look.skin, light, 0.35),
               0.95 * min(1.0, m["columella"] * 1.6), 0.2)  # fmt: skip
    sketch.add(
        ellipse(0, base + 0.03 + 0.055 * m["columella"], 0.05, 0.014), shade, 0.6 * m["columella"], 0.15
    )


def draw_mouth(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint philtrum, lips, and what an open mouth shows."""
    shade, light = mix(look.skin, DARK, 0.5), lit(look.skin)
    lip = mix(mix(look.skin, (190, 70, 80), 0.52), DARK, 0.06)
    y, w, corner = m["mouth_y"], m["mouth_width"], m["corner"]
    up, low = m["upper_lip"], m["lower_lip"]
    base = m["nose_y"] + 0.03
    top_y = y - up
    groove = m["groove"]
    if groove > 0.05:
        half = 0.045 * m["philtrum_width"]
        ridge = np.array(
            [(half, base), (half * 1.25, top_y), (half * 1.25 + 0.026, top_y), (half + 0.020, base)]
        )
        sketch.both(ridge, light, 0.35 * groove, 0.08)
        sketch.add(np.array([(-half, base), (half, base), (half * 1.2, top_y), (-half * 1.2, top_y)]), shade,
                   0.26 * groove, 0.06)  # fmt: skip
    fold = curve(
        (m["wing_width"] + 0.05, m["nose_y"] - 0.08),
        (0.75 * w + 0.07, 0.5 * (y + base)),
        (w + 0.075, y + 0.05),
    )
    sketch.both(band(fold, 0.026 * taper(len(fold)), (1.0, 0.0)), shade, 0.16 + 0.6 * m["nasolabial"])
    t = np.linspace(-1, 1, 17)
    x, hump = t * w, 1 - t**2
    tent, gape = m["tent"], m["gape"]
    line = y + corner * np.abs(t) ** 1.6 - tent * 0.075 * (1 - np.abs(t))
    arch = up * (1 - np.abs(t) ** 1.7) * (1.0 - 0.30 * m["bow"] * np.exp(-((t / 0.16) ** 2)))
    arch = arch * (1 + 0.22 * m["bow"] * np.exp(-(((np.abs(t) - 0.27) / 0.16) ** 2)))
    upper_edge = np.stack([x, line - arch], axis=1)
    upper_line = np.stack([x, line - 0.02 * gape * hump], axis=1)
    lower_line = np.stack([x, y + corner * np.abs(t) ** 1.6 + (0.16 * gape + 0.002) * hump], axis=1)
    lower_edge = lower_line + np.stack([0 * t, low * hump**0.75], axis=1)
    sketch.add(np.concatenate([upper_line, lower_line[::-1]]), MOUTH_INSIDE, 1.0, 0.05)
    draw_teeth(sketch, m, upper_line)
    sketch.add(np.concatenate([upper_edge, upper_line[::-1]]), mix(lip, DARK, 0.10), 1.0, 0.06)
    sketch.add(np.concatenate([lower_line, lower_edge[::-1]]), mix(lip, (255, 200, 200), 0.12), 1.0, 0.06)
    sketch.add(
        ellipse(0, y + 0.16 * gape + 0.5 * low, 0.42 * w, 0.28 * low),
        (255, 225, 220),
        0.18 + 0.2 * m["pout"],
        0.07,
    )
    sketch.add(
        band(lower_edge[3:-3] + (0, 0.01), (0.03 + 0.03 * m["pout"]) * taper(11)),
        shade,
        0.28 + 0.4 * m["pout"],
    )
    sketch.add(band(upper_line, 0.014 * taper(17, 0.3)), DARK, 0.75, 0.06)
    sketch.both(ellipse(w, y + corner, 0.018, 0.018), shade, 0.5)
    if (tongue := m["tongue"]) > 0.05:
        sketch.add(ellipse(0, y + 0.035 + 0.055 * tongue, (0.35 + 0.25 * tongue) * w, 0.03 + 0.085 * tongue), (206, 96, 104),
                   1.0, 0.1)  # fmt: skip
        sketch.add(
            np.array([(-0.008, y + 0.03), (0.008, y + 0.03), (0.004, y + 0.1 + 0.05 * tongue)]),
            (150, 60, 70),
            0.7,
        )
    if (cleft := m["cleft"]) > 0.05:
        sketch.add(np.array([(0.035, base - 0.02), (0.085, base - 0.02), (0.115, y + 0.01), (0.02, y + 0.01)]),
                   mix(FLESH, DARK, 0.35), 0.95 * cleft, 0.07)  # fmt: skip
    sketch.add(ellipse(0, m["chin_y"] - 0.11, 0.02, 0.045), shade, 0.8 * m["dimple"])


def draw_teeth(sketch: Sketch, m: Measures, upper_line: Points) -> None:
    """Paint the upper teeth an open mouth shows; findings change their size and gaps."""
    if m["teeth"] <= 0.05 or m["gape"] <= 0.05:
        return
    height = 0.16 * m["gape"] * 0.62 * min(1.0, m["teeth"]) * (1 + 0.75 * m["tooth_size"])
    width, count = 0.052 * (1 + 0.55 * m["tooth_size"]), 3
    gap = 0.006 + 0.030 * max(m["tooth_gap"], 0.0)
    for index in range(count):
        left = gap / 2 + index * (width + gap)
        if left + width > m["mouth_width"] * 0.86:
            break
        y = float(np.interp(left + width / 2, upper_line[:, 0], upper_line[:, 1]))
        tooth = np.array(
            [
                (left, y),
                (left + width, y),
                (left + width * 0.92, y + height),
                (left + width * 0.08, y + height),
            ]
        )
        sketch.both(tooth, TOOTH, 1.0, 0.05)


def draw_hair(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the hair of the scalp down to its line on the forehead."""
    density = m["density"]
    half = head_half(m)[:4]
    volume = 1.045 + 0.05 * m["curl"]
    rim = half * volume
    line, temple = -m["hairline"], m["temple"]
    peak = 0.10 * m["peak"]
    edge = np.array([(temple * 1.01, -0.16), (temple * 0.90, 0.48 * line - 0.06), (temple * 0.55, line + 0.03),
                     (temple * 0.25, line), (0.0, line + peak)])  # fmt: skip
    outer = np.concatenate([rim[::-1], rim[1:] * MIRROR])
    outer = spline_weights(len(outer), 4, False) @ outer
    inner = np.concatenate([edge, edge[-2::-1] * MIRROR])
    inner = spline_weights(len(inner), 4, False) @ inner
    if (curl := m["curl"]) > 0.15:
        wave = np.sin(np.arange(len(outer)) * 2.1)[:, None]
        outer = outer * (1 + 0.045 * min(curl, 1.3) * (1 + wave))
        inner = inner + np.stack(
            [0 * inner[:, 0], 0.035 * min(curl, 1.3) * np.sin(np.arange(len(inner)) * 1.9)], axis=1
        )
    sketch.add(np.concatenate([outer, inner[::-1]]), look.hair, min(1.0, 0.12 + 0.88 * density), -0.05)
    if curl > 0.15:
        for x, y in ((0.0, -0.9), (0.3, -0.86), (0.16, -0.8), (0.48, -0.7), (0.58, -0.5), (0.36, -0.72)):
            ring = ellipse(x * temple / 0.62, y, 0.055, 0.05)
            sketch.both(ring, mix(look.hair, (255, 235, 210), 0.28), 0.55 * min(curl, 1.0) * density, -0.05)
            sketch.both(
                ring + (0.012, 0.02), mix(look.hair, DARK, 0.35), 0.5 * min(curl, 1.0) * density, -0.05
            )
    if m["upsweep"] > 0.05:
        for x in (0.05, 0.14, 0.23):
            sketch.add(np.array([(x - 0.05, line + 0.03), (x + 0.05, line + 0.03), (x + 0.09, line - 0.24)]),
                       mix(look.hair, (255, 240, 220), 0.35), 0.8 * m["upsweep"])  # fmt: skip


def to_frame(points: Points, depth: NDArray[np.float64], look: Look, side: int) -> NDArray[np.float32]:
    """Return where the points of a turned head fall in an image of ``side`` pixels."""
    x, y = points[:, 0], points[:, 1]
    y = y + look.skew * x
    # Depth of the face's surface: a flat dome. A turn moves what is near more than what is far.
    near = 0.45 * (1 - (x / 0.8) ** 2) + depth
    x = x * math.cos(look.yaw) + near * math.sin(look.yaw)
    y = y * math.cos(look.pitch) + near * math.sin(look.pitch)
    pixels = UNITS_TO_FRAME * side
    cos, sin = math.cos(look.roll) * look.scale * pixels, math.sin(look.roll) * look.scale * pixels
    frame = np.empty(points.shape, dtype=np.float32)
    frame[:, 0] = x * cos - y * sin + (look.shift[0] * pixels + side / 2)
    frame[:, 1] = x * sin + y * cos + ((look.shift[1] + 0.04) * pixels + side / 2)
    return frame


def draw_face(m: Measures, look: Look, size: int) -> Image.Image:
    """Return the face as an RGB image of ``size`` x ``size`` pixels, antialiased."""
    sketch = Sketch()
    for paint in (draw_body, draw_ears, draw_head, draw_eyes, draw_brows, draw_nose, draw_mouth, draw_hair):
        paint(sketch, m, look)
    side = size * SUPERSAMPLING
    image = Image.new("RGB", (side, side), _ink(look.background))
    opaque, blended = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
    lengths = [len(points) for points in sketch.polygons]
    frame = to_frame(np.concatenate(sketch.polygons), np.repeat(sketch.depths, lengths), look, side)
    end = 0
    for length, color, alpha in zip(lengths, sketch.colors, sketch.alphas, strict=True):
        start, end = end, end + length
        corners = frame[start:end].ravel().tolist()
        if alpha >= 1.0:
            opaque.polygon(corners, fill=_ink(color))
        else:
            blended.polygon(corners, fill=(*_ink(color), int(255 * alpha)))
    return image.reduce(SUPERSAMPLING)


def _ink(color: Color) -> tuple[int, int, int]:
    return int(color[0]), int(color[1]), int(color[2])
