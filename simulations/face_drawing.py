"""A schematic face, painted part by part from its measures.

Head, skin, ears and hair are painted here, what lies within the face in ``simulations.face_features``.
Nothing here knows a finding: what a finding does to the measures is told in ``simulations.face_terms``.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from simulations.face_features import (
    DARK,
    FLESH,
    WHITE,
    Measures,
    draw_brows,
    draw_eyes,
    draw_mouth,
    draw_nose,
)
from simulations.face_sketch import (
    FAINTEST,
    MIRROR,
    Color,
    Look,
    Points,
    Sketch,
    circle,
    ellipse,
    lit,
    mix,
    moved,
    outline,
    spline_weights,
    turning,
)

STAIN: Color = (178.0, 46.0, 66.0)
CURLS = ((0.0, -0.9), (0.48, -0.86), (0.26, -0.8), (0.77, -0.7), (0.94, -0.5), (0.58, -0.72))
STRANDS = (0.05, 0.14, 0.23)  # of hair that stands up from the forehead
SPOTS = ((0.2, 0.2), (0.3, 0.26), (0.13, 0.25), (0.24, 0.32), (0.36, 0.18), (0.1, 0.16))
BEHIND = -0.2  # depth of neck and hair


def draw_face(m: Measures, look: Look, size: int) -> Image.Image:
    """Return the face as an antialiased RGB image of ``size`` x ``size`` pixels."""
    sketch = Sketch()
    for paint in (draw_body, draw_ears, draw_head, draw_eyes, draw_brows, draw_nose, draw_mouth, draw_hair):
        paint(sketch, m, look)
    return sketch.render(look, size)


def head_half(m: Measures) -> Points:
    """Return the anchors of the head's right half, from the crown to the chin."""
    crown, chin, temple = -m["crown"], m["chin_y"], m["temple"]
    return np.array(
        [
            (0.0, crown),
            (0.50 * temple, crown + 0.075 - 0.03 * m["flat_top"]),
            (0.90 * temple, 0.62 * crown - 0.05),
            (temple, -0.32),
            (m["cheekbone"], 0.05),
            (m["cheek"], 0.38),
            (m["jaw"], 0.30 + 0.348 * chin),
            (m["chin_width"], chin - 0.075),
            (0.0, chin),
        ]
    )


def draw_body(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the hair behind the head, neck and clothes."""
    if look.long_hair:
        width = m["temple"] * (1.16 + 0.10 * m["curl"])
        half = np.array([(0, -0.95), (width, -0.55), (1.08 * width, 0.3), (0.95 * width, 1.25)])
        fall = outline(np.concatenate([half, half[:0:-1] * MIRROR]))
        sketch.add(fall, mix(look.hair, DARK, 0.25), 0.3 + 0.7 * m["density"] ** 2, BEHIND)
    half = np.array([(0.36, 0.4), (0.38, 1.05), (0.95, 1.22), (1.0, 1.6)])
    sketch.add(np.concatenate([half, half[::-1] * MIRROR]), mix(look.skin, DARK, 0.22), 1.0, BEHIND)
    half = np.array([(0.4, 1.08), (1.1, 1.2), (1.5, 1.7)])
    sketch.add(np.concatenate([[(0.0, 1.2)], half, half[::-1] * MIRROR]), look.cloth, 1.0, BEHIND)


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
    shell = rim * (0.64 - 0.44 * m["rim"], 0.72 - 0.40 * m["rim"]) + (0.012, -0.02)
    tip = circle() * (0.045 + 0.028 * lobe, 0.05 + 0.04 * lobe) + (
        0.01 + 0.02 * lobe,
        0.86 * height - 0.03 * lobe,
    )
    place, turn = (m["cheekbone"] - 0.015 + 0.5 * out, m["ear_y"]), turning(m["ear_tilt"])
    for part, color, alpha in (
        (rim, edge, 1.0),
        (tip, edge, 1.0),
        (shell, inner, 0.75),
        (0.55 * shell + (0.02, 0.03), edge, 0.9),
    ):
        sketch.both(part @ turn + place, color, alpha, -0.12)


def draw_head(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the head, and the relief of its forehead, cheeks, midface and chin."""
    light, shade = lit(look.skin), mix(look.skin, DARK, 0.5)
    half, chin, cheekbone = head_half(m), m["chin_y"], m["cheekbone"]
    sketch.add(outline(np.concatenate([half, half[-2:0:-1] * MIRROR])), look.skin)
    sketch.both(ellipse(0.93 * m["temple"], -0.42, 0.09, 0.22, -0.15), shade, 0.16 + 0.5 * m["hollow"])
    for grow in (1.0, 0.62):  # two layers: a soft edge
        sketch.both(ellipse(0.25, -0.55, 0.24 * grow, 0.19 * grow), light, 0.28 * m["bossing"])
        sketch.add(ellipse(0, -0.27, 0.15 * grow, 0.12 * grow), light, 0.4 * m["glabella"])
        sketch.both(
            ellipse(0.70 * cheekbone, 0.14, 0.15 * grow, 0.085 * grow, 0.35), light, 0.38 * m["malar"]
        )
        sketch.both(
            ellipse(0.66 * m["cheek"], 0.36, 0.19 * grow, 0.19 * grow),
            mix(light, FLESH, 0.3),
            0.45 * m["puff"],
        )
        sketch.both(ellipse(0.25, 0.17, 0.13 * grow, 0.20 * grow, 0.35), shade, 0.24 * m["midface"])
        sketch.add(ellipse(0, chin - 0.13, 0.15 * grow, 0.08 * grow), light, 0.18 + 0.30 * m["chin_relief"])
    sketch.both(ellipse(0.60 * cheekbone, 0.16, 0.17, 0.06, 0.5), shade, 0.30 * m["sunken"])
    sketch.add(ellipse(0, chin - 0.075, 1.2 * m["chin_width"], 0.085), shade, 0.34 * m["receding"])
    sketch.add(ellipse(0, chin - 0.11, 0.02, 0.045), shade, 0.8 * m["dimple"])
    sketch.add(ellipse(0, -0.56, 0.035, 0.28), light, 1.2 * m["metopic"])
    draw_skin(sketch, m, look)


def draw_skin(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint marks on the skin: a stain of the forehead, spots beside the nose, a tag before the ear."""
    if (stain := 0.42 * m["stain"]) > FAINTEST:
        sketch.add(ellipse(0, -0.44, 0.12, 0.17), STAIN, stain)
        sketch.add(ellipse(0.03, -0.20, 0.07, 0.09), STAIN, stain)
    for x, y in SPOTS if m["spots"] > FAINTEST else ():
        sketch.both(ellipse(x, y, 0.022, 0.022), mix(STAIN, DARK, 0.4), 0.7 * m["spots"])
    if (tag := m["tag"]) > FAINTEST:
        place = m["cheekbone"] - 0.05
        sketch.both(ellipse(place, 0.21, 0.035, 0.05), mix(lit(look.skin), FLESH, 0.4), tag)
        sketch.both(ellipse(place + 0.015, 0.225, 0.018, 0.03), mix(look.skin, DARK, 0.5), 0.8 * tag)


def draw_hair(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the hair of the scalp down to its line on the forehead."""
    density, curl, line, temple = m["density"], m["curl"], -m["hairline"], m["temple"]
    rim = head_half(m)[:4] * (1.045 + 0.05 * curl)
    edge = np.array(
        [
            (1.01 * temple, -0.16),
            (0.90 * temple, 0.48 * line - 0.06),
            (0.55 * temple, line + 0.03),
            (0.25 * temple, line),
            (0.0, line + 0.10 * m["peak"]),
        ]
    )
    outer = spline_weights(7, 4, False) @ np.concatenate([rim[::-1], rim[1:] * MIRROR])
    inner = spline_weights(9, 4, False) @ np.concatenate([edge, edge[-2::-1] * MIRROR])
    if curl > 0.15:
        outer *= 1 + 0.045 * curl * (1 + np.sin(2.1 * np.arange(len(outer))))[:, None]
        inner[:, 1] += 0.035 * curl * np.sin(1.9 * np.arange(len(inner)))
    sketch.add(np.concatenate([outer, inner[::-1]]), look.hair, 0.12 + 0.88 * density, -0.05)
    for x, y in CURLS if curl > 0.15 else ():
        ring = ellipse(x * temple, y, 0.055, 0.05)
        sketch.both(ring, mix(look.hair, WHITE, 0.2), 0.55 * curl * density, -0.05)
        sketch.both(moved(ring, 0.012, 0.02), mix(look.hair, DARK, 0.35), 0.5 * curl * density, -0.05)
    for x in STRANDS if m["upsweep"] > FAINTEST else ():
        strand = np.array([(x - 0.05, line + 0.03), (x + 0.05, line + 0.03), (x + 0.09, line - 0.24)])
        sketch.add(strand, mix(look.hair, WHITE, 0.3), 0.8 * m["upsweep"], -0.05)
