"""Polygons in face units, and how they become the image of a turned head.

Face units: x to the viewer's right, y down, the origin between the eyes and the tip of the nose. The crown
of a normal head lies near -1.02, its chin near 0.92, its cheekbones near 0.67 on either side. Features are
drawn on the right half and mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Color = tuple[float, float, float]

SUPERSAMPLING = 3
FAINTEST = 0.08  # opacity, and strength of a feature; what is fainter is not drawn, for speed
UNITS_TO_FRAME = 0.435  # of the image's side: leaves a margin for a large head, a shift and a tilt
BELOW_MIDDLE = 0.04
DOME_HEIGHT, DOME_WIDTH = 0.45, 0.8
CIRCLE_STEPS = 16
MIRROR = np.array([-1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a face looks like apart from its measures.

    Attributes:
        skin, hair, iris, background, cloth: Colors, 0 to 255.
        long_hair: Whether hair falls beside the neck.
        roll, yaw, pitch: Turns of the head in radians.
        shift: Of the head's middle, in face units.
        scale: Of the whole head.
        skew: How much lower the viewer's right half sits than the left, a slope.
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
    """Filled polygons in the order in which they are painted.

    Each has a color, an opacity ``alpha``, and a ``depth``: how far it stands out of the face, in face units.
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

    def render(self, look: Look, size: int) -> Image.Image:
        """Return an antialiased RGB image of ``size`` x ``size`` pixels."""
        side = size * SUPERSAMPLING
        image = Image.new("RGB", (side, side), _ink(look.background))
        if not self.polygons:
            return image.reduce(SUPERSAMPLING)
        opaque, blended = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
        lengths = [len(points) for points in self.polygons]
        frame = to_frame(np.concatenate(self.polygons), np.repeat(self.depths, lengths), look, side)
        end = 0
        for length, color, alpha in zip(lengths, self.colors, self.alphas, strict=True):
            start, end = end, end + length
            corners = frame[start:end].ravel().tolist()
            if alpha >= 1.0:
                opaque.polygon(corners, fill=_ink(color))
            else:
                blended.polygon(corners, fill=(*_ink(color), int(255 * alpha)))
        return image.reduce(SUPERSAMPLING)


def to_frame(points: Points, depth: NDArray[np.float64], look: Look, side: int) -> NDArray[np.float64]:
    """Return where points of a turned head fall in an image of ``side`` pixels, (points, 2)."""
    x, y = points[:, 0], points[:, 1]
    y = y + look.skew * x
    # The face's surface is a flat dome: a turn moves what is near more than what is far.
    near = DOME_HEIGHT * (1 - (x / DOME_WIDTH) ** 2) + depth
    x = x * math.cos(look.yaw) + near * math.sin(look.yaw)
    y = y * math.cos(look.pitch) + near * math.sin(look.pitch)
    unit = UNITS_TO_FRAME * side
    cos, sin = math.cos(look.roll) * look.scale * unit, math.sin(look.roll) * look.scale * unit
    frame = np.empty_like(points)
    frame[:, 0] = x * cos - y * sin + (look.shift[0] * unit + side / 2)
    frame[:, 1] = x * sin + y * cos + ((look.shift[1] + BELOW_MIDDLE) * unit + side / 2)
    return frame


def turning(angle: float) -> NDArray[np.float64]:
    """Return the matrix that turns rows of (x, y) by an angle in radians, from x towards y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def mix(one: Color, other: Color, share: float) -> Color:
    """Return the one color with ``share`` of the other in it."""
    return (
        one[0] + (other[0] - one[0]) * share,
        one[1] + (other[1] - one[1]) * share,
        one[2] + (other[2] - one[2]) * share,
    )


def lit(skin: Color) -> Color:
    """Return the skin where it catches the light."""
    # Brighter in proportion, so that dark skin keeps its relief.
    return min(255.0, 10 + 1.22 * skin[0]), min(255.0, 8 + 1.22 * skin[1]), min(255.0, 8 + 1.22 * skin[2])


def curve(*anchors: tuple[float, float], steps: int = 5) -> Points:
    """Return points along a smooth line through the anchors."""
    return np.asarray(spline_weights(len(anchors), steps, False) @ np.array(anchors))


def outline(anchors: Points, steps: int = 4) -> Points:
    """Return points along a smooth closed line through the anchors."""
    return np.asarray(spline_weights(len(anchors), steps, True) @ anchors)


@lru_cache(maxsize=64)
def spline_weights(anchors: int, steps: int, closed: bool) -> NDArray[np.float64]:
    """Return the (points, anchors) matrix of a Catmull-Rom curve, ``steps`` points between two anchors."""
    segments = anchors if closed else anchors - 1
    rows = np.zeros((segments * steps + (0 if closed else 1), anchors))
    for row, weights in enumerate(rows):
        segment = min(row // steps, segments - 1)
        t = row / steps - segment
        basis = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
        for place, weight in enumerate(basis, start=segment - 1):
            weights[place % anchors if closed else min(max(place, 0), anchors - 1)] += 0.5 * weight
    return rows


@lru_cache(maxsize=1)
def circle() -> NDArray[np.float64]:
    """Return the points of the unit circle."""
    angle = np.arange(CIRCLE_STEPS) * (2 * np.pi / CIRCLE_STEPS)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ellipse(x: float, y: float, width: float, height: float, turn: float = 0.0) -> Points:
    """Return an ellipse around (x, y) with half axes ``width`` and ``height``, turned by ``turn`` radians."""
    unit = circle()
    if turn:
        return moved(unit * (width, height) @ turning(turn), x, y)
    points = np.empty_like(unit)
    points[:, 0] = unit[:, 0] * width + x
    points[:, 1] = unit[:, 1] * height + y
    return points


def moved(points: Points, x: float, y: float) -> Points:
    """Return the points moved by (x, y)."""
    return np.asarray(points + np.array((x, y)))


def band(
    line: Points, thickness: NDArray[np.float64] | float, across: tuple[float, float] = (0.0, 1.0)
) -> Points:
    """Return the area between a line and the same line moved ``across`` by its thickness, point by point."""
    offset = np.atleast_1d(thickness)[:, None] * np.array(across)
    return np.concatenate([line, (line + offset)[::-1]])


@lru_cache(maxsize=16)
def taper(steps: int, power: float = 0.5) -> NDArray[np.float64]:
    """Return weights that are 0 at both ends of a line and 1 in its middle."""
    t = np.linspace(0.0, 1.0, steps)
    return np.asarray((4 * t * (1 - t)) ** power)


def _ink(color: Color) -> tuple[int, int, int]:
    return int(color[0]), int(color[1]), int(color[2])
