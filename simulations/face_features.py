"""Eyes, brows, nose and mouth of a schematic face.

Each function paints one part into a sketch. Lengths are in face units (``simulations.face_sketch``),
strengths run from 0 (absent) to about 1 (marked).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulations.face_sketch import (
    CIRCLE_STEPS,
    FAINTEST,
    MIRROR,
    Color,
    Look,
    Points,
    Sketch,
    band,
    circle,
    curve,
    ellipse,
    lit,
    mix,
    moved,
    taper,
)

Measures = Mapping[str, float]

DARK: Color = (38.0, 24.0, 22.0)
MOUTH_INSIDE: Color = (88.0, 28.0, 34.0)
NOSTRIL: Color = (44.0, 20.0, 20.0)
PUPIL: Color = (14.0, 12.0, 14.0)
WHITE: Color = (255.0, 255.0, 255.0)
SCLERA: Color = (240.0, 238.0, 234.0)
BLUE_SCLERA: Color = (120.0, 150.0, 205.0)
SPECKS: Color = (235.0, 235.0, 225.0)
TOOTH: Color = (238.0, 234.0, 222.0)
TONGUE: Color = (206.0, 96.0, 104.0)
FLESH: Color = (196.0, 92.0, 92.0)
LIP: Color = (190.0, 70.0, 80.0)
SIDEWAYS = (1.0, 0.0)
EYE_STEPS = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 13))  # inner to outer corner, denser at both
BROW_STEPS = np.linspace(0, 1, 9)
MOUTH_STEPS = np.linspace(-1, 1, 17)
NEAR = 0.1  # how far nose and mouth stand out


def lids(m: Measures) -> tuple[Points, Points]:
    """Return the upper and the lower edge of the right eye's opening, from the inner corner to the outer."""
    gap, width, opening, u = m["eye_gap"], m["eye_width"], m["eye_open"], EYE_STEPS
    inner = gap - width + m["telecanthus"]
    x = inner + (gap + width - inner) * (u + 1) / 2
    arc = (1 - u**2) ** (0.62 + 0.30 * m["almond"])
    upper = -opening * (1.24 - 1.04 * m["ptosis"]) * arc * (1 - 0.10 * u)
    lower = opening * 0.80 * arc * (1 + 0.12 * u)
    lower = lower + m["evert"] * 0.075 * np.clip(u - 0.05, 0, None) * (1 - u**8)
    lower = lower + m["notch"] * 0.10 * np.exp(-(((u - 0.45) / 0.18) ** 2))
    tilt = m["eye_y"] - m["slant"] * (x - gap)
    return np.stack([x, tilt + upper], axis=1), np.stack([x, tilt + lower], axis=1)


def draw_eyes(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint both eyes: sockets, opening, irises, edges of the lids, lashes, folds."""
    shade, light = mix(look.skin, DARK, 0.55), lit(look.skin)
    gap, width, y = m["eye_gap"], m["eye_width"], m["eye_y"]
    upper, lower = lids(m)
    ease = taper(len(upper))
    sketch.both(ellipse(gap, y - 0.03, 1.25 * width, 0.12), shade, 0.08 + 0.50 * m["deep"])
    sketch.both(ellipse(gap, y - 0.085, 1.15 * width, 0.05), shade, 0.62 * m["deep"])
    sketch.both(ellipse(gap, y, 1.28 * width, 2.1 * m["eye_open"]), light, 0.75 * m["bulge"])
    sketch.both(band(moved(lower, 0.0, 0.012), 0.085 * ease), light, 0.75 * m["bags"])
    sketch.both(band(moved(lower, 0.0, 0.085), 0.022 * ease), shade, 0.12 + 0.65 * m["bags"])
    sketch.both(
        band(moved(upper, 0.0, -0.035 - 0.03 * m["ptosis"]), -0.016 * ease), shade, 0.55 - 0.3 * m["hood"]
    )
    sketch.both(band(upper, -0.06 * ease), mix(look.skin, shade, 0.25), 0.5 * m["ptosis"])
    sketch.both(band(upper, -0.07 * ease), light, 0.95 * m["hood"])
    sketch.both(np.concatenate([upper, lower[::-1]]), mix(SCLERA, BLUE_SCLERA, m["blue_sclera"]))
    draw_irises(sketch, m, look, upper, lower)
    sketch.both(
        band(lower, 0.045 * m["evert"] * np.clip(EYE_STEPS, 0, None) * ease),
        FLESH,
        0.9 * (m["evert"] > FAINTEST),
    )
    edge = 0.016 * ease * np.clip(0.55 - EYE_STEPS, 0, 1) ** 0.3
    sketch.both(band(lower, edge), mix(shade, FLESH, 0.3), 0.75 - 0.75 * m["bare_lid"])
    draw_lashes(sketch, m, look, upper)
    draw_fold(sketch, m, look, upper[0])


def draw_irises(sketch: Sketch, m: Measures, look: Look, upper: Points, lower: Points) -> None:
    """Paint both irises, cut off by the lids; a squint moves one of them."""
    y = m["eye_y"] - 0.008
    discs = np.concatenate([circle() * 0.062, circle() * 0.051, circle() * 0.026])
    if m["keyhole"] > FAINTEST:  # the pupil's lower edge is drawn down
        discs[2 * CIRCLE_STEPS + 2 : 2 * CIRCLE_STEPS + 7, 1] += 0.065 * m["keyhole"]
    for side in (1.0, -1.0):
        x = m["eye_gap"] + (0.072 * m["squint"] if side > 0 else 0.0)
        cut = moved(discs, x, y)
        top = np.interp(cut[:, 0], upper[:, 0], upper[:, 1])
        floor = np.interp(cut[:, 0], lower[:, 0], lower[:, 1])
        cut[:, 1] = np.clip(cut[:, 1], top, floor)
        cut[:, 0] *= side
        sketch.add(cut[:CIRCLE_STEPS], mix(look.iris, DARK, 0.45))
        sketch.add(cut[CIRCLE_STEPS : 2 * CIRCLE_STEPS], mix(look.iris, SPECKS, 0.6 * m["specks"]))
        sketch.add(cut[2 * CIRCLE_STEPS :], PUPIL)
        sketch.add(ellipse(x * side - 0.018, y - 0.022, 0.013, 0.013), WHITE, 0.85)


def draw_lashes(sketch: Sketch, m: Measures, look: Look, upper: Points) -> None:
    """Paint the dark edge of the upper lids, and lashes where they are long."""
    lash = m["lash"]
    edge = -(0.020 + 0.013 * min(lash, 1.5)) * taper(len(upper), 0.25)
    sketch.both(band(upper, edge), mix(DARK, look.hair, 0.3), 0.60 + 0.40 * min(lash, 1.0))
    if lash > 0.25:
        for place in (4, 6, 8, 10):
            root = upper[place]
            tip = moved(root, 0.03 * (place - 4) / 7, -0.085 * lash**0.7)
            sketch.both(np.array([moved(root, -0.012, 0), tip, moved(root, 0.012, 0)]), DARK, 0.8)


def draw_fold(sketch: Sketch, m: Measures, look: Look, corner: Points) -> None:
    """Paint a fold of skin over the inner corners of the eyes."""
    if (fold := m["fold"]) > FAINTEST:
        x, y = float(corner[0]), float(corner[1])
        rim = curve(
            (x + 0.09, y - 0.085), (x + 0.065, y - 0.02), (x + 0.06, y + 0.025), (x + 0.02, y + 0.075)
        )
        cover = np.concatenate([rim, [(x - 0.03, y + 0.04), (x - 0.02, y - 0.05)]])
        sketch.both(cover, mix(look.skin, lit(look.skin), 0.5), fold)
        sketch.both(band(rim, 0.017, SIDEWAYS), mix(look.skin, DARK, 0.55), 0.85 * fold)


def draw_brows(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint eyebrows, and hair between them."""
    color, t = mix(look.hair, DARK, 0.25), BROW_STEPS
    y, thick, density, flare = m["brow_y"], m["brow_thick"], m["brow_density"], m["flare"]
    inner, outer = m["eye_gap"] - 0.165, m["eye_gap"] + 0.165 + 0.04 * m["brow_long"]
    rise = -m["brow_arch"] * np.sin(np.pi * t**0.85) + 0.05 * t**2 - 0.03 * flare * (1 - t) ** 2
    width = thick * (0.55 + 0.6 * np.sin(np.pi * (0.18 + 0.72 * t))) * (1 + 0.9 * flare * (1 - t) ** 3)
    brow = band(np.stack([inner + (outer - inner) * t, y + rise - width / 2], axis=1), width)
    sketch.both(np.concatenate([brow[:6], brow[-6:]]), color, density * (1 - 0.85 * m["bare_medial"]))
    sketch.both(brow[5:-5], color, density * (1 - 0.9 * m["bare_lateral"]))
    between = np.array([(inner + 0.01, y - 0.55 * thick), (inner + 0.01, y + 0.5 * thick), (0, y + 0.03)])
    joined = np.concatenate([[(0, y - 0.01)], between, between[-2::-1] * MIRROR])
    sketch.add(joined, color, 0.85 * density**0.5 * m["synophrys"])
    sketch.both(
        ellipse(m["eye_gap"] + 0.02, y + 0.035, 0.2, 0.03), mix(look.skin, DARK, 0.5), 0.5 * m["ridge"]
    )


def draw_nose(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the nose: bridge, wings, tip, nostrils, columella."""
    shade, light = mix(look.skin, DARK, 0.5), lit(look.skin)
    base, root = m["nose_y"], m["eye_y"] - 0.06
    bridge, wing, relief = m["bridge_width"], m["wing_width"], m["bridge_relief"]
    side = curve(
        (bridge + 0.01, root - 0.06),
        (bridge, root + 0.06),
        (1.05 * bridge, 0.45 * base),
        (0.72 * wing, base - 0.09),
    )
    sketch.both(band(side, 0.045 + 0.01 * relief, SIDEWAYS), shade, 0.20 + 0.34 * relief, 0.05)
    ridge = curve((0, root - 0.02), (0, 0.4 * base), (0, base - 0.10))
    hump = np.exp(-(((np.linspace(0, 1, len(ridge)) - 0.4) / 0.25) ** 2))
    width = bridge * (0.55 + 1.4 * m["convex"] * hump)
    ridge[:, 0] -= width / 2
    sketch.add(band(ridge, width, SIDEWAYS), light, 0.20 + 0.38 * relief, NEAR)
    sketch.add(ellipse(0, root + 0.075, 1.15 * bridge, 0.05), shade, 0.55 * m["saddle"], 0.05)
    sketch.add(ellipse(0, 0.55 * base, 1.3 * bridge, 0.07), shade, 0.40 * m["scoop"], NEAR)
    sketch.both(ellipse(0.80 * wing, base - 0.045, 0.34 * wing, 0.062), mix(look.skin, shade, 0.3), 1.0, NEAR)
    crease = curve((wing, base - 0.11), (1.12 * wing, base - 0.04), (0.85 * wing, base + 0.015))
    sketch.both(band(crease, -0.028, SIDEWAYS), shade, 0.75, NEAR)
    draw_nasal_tip(sketch, m, look)


def draw_nasal_tip(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the tip of the nose, the nostrils and what hangs between them."""
    shade, light = mix(look.skin, DARK, 0.5), lit(look.skin)
    base, wing, tip, show, hang = m["nose_y"], m["wing_width"], m["tip_width"], m["nostril"], m["columella"]
    y = base - 0.085 + 0.085 * m["tip_drop"] - 0.02 * show
    sketch.add(ellipse(0, y, tip, 0.012 + 0.50 * tip), mix(look.skin, shade, 0.17), 1.0, 0.2)
    sketch.add(
        ellipse(-0.01, y - 0.012, 0.55 * tip, 0.015 + 0.2 * tip), light, 0.30 + 0.70 * m["tip_relief"], 0.2
    )
    sketch.add(band(curve((-0.9 * wing, base), (0, base + 0.03), (0.9 * wing, base)), 0.02), shade, 0.4, NEAR)
    sketch.add(ellipse(0, y + 0.045 + 0.2 * tip, 0.8 * tip, 0.022), shade, 0.75 * m["tip_drop"], 0.2)
    hole = ellipse(
        0.52 * wing,
        base - 0.012 - 0.018 * show,
        0.0136 + 0.14 * wing + 0.012 * show,
        0.011 + 0.02 * show,
        0.25,
    )
    sketch.both(hole, NOSTRIL, 0.85, 0.15)
    sketch.add(
        ellipse(0, base + 0.012, 0.042, 0.02 + 0.065 * hang), mix(look.skin, light, 0.6), 1.7 * hang, 0.2
    )
    sketch.add(ellipse(0, base + 0.03 + 0.055 * hang, 0.05, 0.014), shade, 0.8 * hang, 0.15)


def draw_philtrum(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint the groove below the nose, and the folds beside it."""
    shade, base, lip_y = mix(look.skin, DARK, 0.5), m["nose_y"] + 0.03, m["mouth_y"] - m["upper_lip"]
    half = 0.050 * m["philtrum_width"]
    ridge = np.array([(half, base), (1.25 * half, lip_y), (1.25 * half + 0.026, lip_y), (half + 0.02, base)])
    sketch.both(ridge, lit(look.skin), 0.60 * m["groove"], NEAR)
    groove = np.array([(half, base), (1.2 * half, lip_y), (-1.2 * half, lip_y), (-half, base)])
    sketch.add(groove, shade, 0.50 * m["groove"], NEAR)
    w, y = m["mouth_width"], m["mouth_y"]
    fold = curve(
        (m["wing_width"] + 0.05, base - 0.11), (0.75 * w + 0.07, 0.5 * (y + base)), (w + 0.075, y + 0.05)
    )
    sketch.both(band(fold, 0.026 * taper(len(fold)), SIDEWAYS), shade, 0.16 + 0.6 * m["nasolabial"])


def draw_mouth(sketch: Sketch, m: Measures, look: Look) -> None:
    """Paint philtrum, lips, and what an open mouth shows."""
    draw_philtrum(sketch, m, look)
    shade, lip = mix(look.skin, DARK, 0.5), mix(look.skin, LIP, 0.5)
    t, y, w, gape, low = np.abs(MOUTH_STEPS), m["mouth_y"], m["mouth_width"], 0.16 * m["gape"], m["lower_lip"]
    x, hump = w * MOUTH_STEPS, 1 - t**2
    bend = y + m["corner"] * t**1.6
    arch = m["upper_lip"] * (1 - t**1.7) * (1 - 0.45 * m["bow"] * np.exp(-((t / 0.16) ** 2)))
    arch = arch * (1 + 0.40 * m["bow"] * np.exp(-(((t - 0.27) / 0.16) ** 2)))
    line = bend - 0.075 * m["tent"] * (1 - t)
    upper_edge = np.stack([x, line - arch], axis=1)
    upper_line = np.stack([x, line - 0.125 * gape * hump], axis=1)
    lower_line = np.stack([x, bend + (gape + 0.002) * hump], axis=1)
    lower_edge = lower_line + np.stack([0 * t, low * hump**0.75], axis=1)
    sketch.add(np.concatenate([upper_line, lower_line[::-1]]), MOUTH_INSIDE, 1.0, NEAR)
    draw_teeth(sketch, m, upper_line)
    sketch.add(np.concatenate([upper_edge, upper_line[::-1]]), mix(lip, DARK, 0.12), 1.0, NEAR)
    sketch.add(np.concatenate([lower_line, lower_edge[::-1]]), mix(lip, WHITE, 0.06), 1.0, NEAR)
    sketch.add(ellipse(0, y + gape + 0.5 * low, 0.42 * w, 0.28 * low), lit(lip), 0.3 + 0.3 * m["pout"], NEAR)
    shadow = (0.03 + 0.03 * m["pout"]) * taper(11)
    sketch.add(band(moved(lower_edge[3:-3], 0.0, 0.01), shadow), shade, 0.28 + 0.4 * m["pout"])
    sketch.add(band(upper_line, 0.014 * taper(len(t), 0.3)), DARK, 0.75, NEAR)
    sketch.both(ellipse(w, y + m["corner"], 0.018, 0.018), shade, 0.5, NEAR)
    draw_tongue(sketch, m)
    cleft = np.array(
        [(0.035, m["nose_y"] + 0.01), (0.085, m["nose_y"] + 0.01), (0.115, y + 0.01), (0.02, y + 0.01)]
    )
    sketch.add(cleft, mix(FLESH, DARK, 0.35), 0.95 * m["cleft"], NEAR)


def draw_teeth(sketch: Sketch, m: Measures, upper_line: Points) -> None:
    """Paint the upper teeth that an open mouth shows."""
    if m["teeth"] <= FAINTEST or m["gape"] <= FAINTEST:
        return
    grow = 1 + 0.55 * m["tooth_size"]
    height, width, gap = (
        0.10 * m["gape"] * min(1.0, m["teeth"]) * grow,
        0.052 * grow,
        0.006 + 0.03 * m["tooth_gap"],
    )
    corners = np.array([(0.0, 0.0), (width, 0.0), (0.92 * width, height), (0.08 * width, height)])
    for left in gap / 2 + np.arange(3) * (width + gap):
        if left + width < 0.86 * m["mouth_width"]:
            top = float(np.interp(left + width / 2, upper_line[:, 0], upper_line[:, 1]))
            sketch.both(moved(corners, left, top), TOOTH, 1.0, NEAR)


def draw_tongue(sketch: Sketch, m: Measures) -> None:
    """Paint a tongue that lies over the lower lip."""
    if (tongue := m["tongue"]) > FAINTEST:
        y, width = m["mouth_y"] + 0.035, (0.35 + 0.25 * tongue) * m["mouth_width"]
        sketch.add(ellipse(0, y + 0.055 * tongue, width, 0.03 + 0.085 * tongue), TONGUE, 1.0, NEAR)
        sketch.add(
            ellipse(0, y + 0.05 * tongue, 0.008, 0.02 + 0.05 * tongue), mix(TONGUE, DARK, 0.4), 0.7, NEAR
        )
