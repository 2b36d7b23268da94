"""Drawings of no surface at all, to learn shapes from: fractals, leaves, tiles, signs, waves, solids and so on.

A network that has seen surfaces only knows texture and what lies on it, and little of outlines, arrangements and
shading. Classes by formula teach these without a photograph (Kataoka et al., arXiv:2101.08515; Baradad et al.,
arXiv:2106.05963, arXiv:2211.16412). As with sheets, a *recipe* is a class and a *piece* one picture of it: the
recipe fixes what is drawn, the piece where it lies, how large, in which colours and under which camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from sdk.preprocess import Frame
from sdk.surfaces.parts import Field, Stream, axes, blur

Planes = npt.NDArray[np.float32]
"""(s, s, 3) float32: what reaches the camera, about 0 to 1."""
Line = npt.NDArray[np.float64]
"""(n, 2): x, y of points one after the other."""

WALKERS: Final = 600
STEPS: Final = 60
"""Points of a fractal: as many as draw a figure of a hundred pixels densely."""
LEAVES: Final = 140


def draw_figure(recipe: int, piece: int, *, seed: int = 0, size_px: int = 256) -> Frame:
    """Return a picture (s, s, 3) uint8 BGR of a figure.

    About 8 ms at 256 px on one core.

    Args:
        recipe: Which figure, 0 or more; families take turns.
        piece: Which picture of it, 0 or more.
        seed: Another seed has other figures behind the same numbers.
        size_px: Both sides.

    >>> draw_figure(3, 0, size_px=64).shape
    (64, 64, 3)
    """
    if recipe < 0 or piece < 0 or size_px < 32:
        raise ValueError(f"no figure {recipe}, {piece} of {size_px} px")
    about = Stream("figure", seed, recipe)
    rng = Stream("figure", seed, recipe, piece)
    planes = FAMILIES[family_of(recipe)](about, rng, size_px)
    if rng.chance(0.4):
        planes = np.asarray(blur(planes, rng.between(0.3, 1.2)), np.float32)
    planes = (planes - planes.mean()) * rng.between(0.5, 1.1) + rng.between(0.3, 0.65)
    planes += rng.normal(*planes.shape) * math.exp(rng.between(math.log(0.003), math.log(0.03)))
    return np.asarray(cv2.convertScaleAbs(np.maximum(planes, 0), alpha=255), np.uint8)


def family_of(recipe: int) -> str:
    """Return the family of a recipe."""
    return FAMILY_NAMES[recipe % len(FAMILY_NAMES)]


def _colours(rng: Stream, count: int) -> list[tuple[float, float, float]]:
    """Return colours of a piece, greys half of the time, each well apart from the one before."""
    grey = rng.chance(0.5)
    colour = [rng.between(0, 1) for _ in range(3)]
    found = []
    for _ in range(count):
        blue, green, red = (0.05 + 0.9 * part for part in (colour[:1] * 3 if grey else colour))
        found.append((blue, green, red))
        colour = [(part + rng.between(0.2, 0.8)) % 1 for part in colour]
    return found


def _mixed(field: Field, one: tuple[float, float, float], other: tuple[float, float, float]) -> Planes:
    """Return the way from one colour to another, by a field of 0 to 1."""
    part = field[..., None]
    return np.asarray(part * np.array(other, np.float32) + (1 - part) * np.array(one, np.float32), np.float32)


def _ground(rng: Stream, size: int, colour: tuple[float, float, float]) -> Planes:
    """Return a ground of one colour that is a bit uneven."""
    uneven = 1 + rng.between(0, 0.15) * rng.noise(size, rng.between(2, 60))
    return np.asarray(uneven[..., None] * np.array(colour, np.float32), np.float32)


def _fractal(about: Stream, rng: Stream, size: int) -> Planes:
    """An iterated function system: a few affine maps, played by walkers."""
    maps = []
    for _ in range(about.count(2, 5)):
        # Turn, two shrinkings, turn: a contraction whatever is drawn.
        one, two = about.between(0, 2 * math.pi), about.between(0, 2 * math.pi)
        shrink = np.diag([about.between(0.25, 0.9), about.between(0.15, 0.75) * about.sign()])
        maps.append((_turn(one) @ shrink @ _turn(two), np.array([about.between(-1, 1), about.between(-1, 1)])))
    chance = np.array([max(0.05, abs(float(np.linalg.det(matrix)))) for matrix, _ in maps])
    ends = np.cumsum(chance / chance.sum())
    points = np.zeros((WALKERS, 2))
    seen = []
    for _ in range(STEPS):
        which = np.searchsorted(ends, rng.uniform(WALKERS)).clip(max=len(maps) - 1)
        for i, (matrix, shift) in enumerate(maps):
            mine = which == i
            points[mine] = points[mine] @ (matrix * (1 + 0.03 * (rng.between(0, 2) - 1))).T + shift
        seen.append(points.copy())
    cloud = np.concatenate(seen[8:])
    cloud -= np.median(cloud, 0)
    reach = float(np.quantile(np.abs(cloud), 0.97)) + 1e-6
    cloud = cloud / reach * (size * rng.between(0.2, 0.5)) @ _turn(rng.between(0, 2 * math.pi)).T
    cloud += size / 2 + np.array([rng.between(-0.15, 0.15), rng.between(-0.15, 0.15)]) * size
    cells = np.rint(cloud).astype(int)
    inside = ((cells >= 0) & (cells < size)).all(1)
    count = np.bincount(cells[inside, 1] * size + cells[inside, 0], minlength=size * size).reshape(size, size)
    field = np.minimum(blur(count.astype(np.float32), 0.7), 1)
    ground, ink = _colours(rng, 2)
    return _mixed(np.asarray(field, np.float32), ground, ink)


def _turn(angle: float) -> npt.NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _outline(about: Stream, points: int = 48) -> Line:
    """Return a closed outline (n, 2) of radius about 1: a circle with a few waves, corners or spikes."""
    at = np.linspace(0, 2 * math.pi, points, endpoint=False)
    if about.chance(0.3):
        corners = about.count(3, 8)
        inner = about.between(0.35, 1.0)
        radius = np.where(np.arange(2 * corners) % 2 == 0, 1.0, inner)
        at = np.linspace(0, 2 * math.pi, 2 * corners, endpoint=False)
    else:
        radius = np.ones(points)
        for _ in range(about.count(1, 3)):
            radius = radius + about.between(0.05, 0.4) * np.sin(about.count(2, 9) * at + about.between(0, 6.3))
    wide = math.exp(about.between(-0.6, 0.6))
    return np.column_stack([radius * np.cos(at) * wide, radius * np.sin(at) / wide])


def _laid(
    outline: npt.NDArray[np.float64], x: float, y: float, radius: float, angle: float
) -> npt.NDArray[np.int32]:
    """Return an outline where it lies, in sixteenths of a pixel."""
    return np.asarray(np.rint(16 * (radius * outline @ _turn(angle).T + np.array([x, y]))), np.int32)


def _leaves(about: Stream, rng: Stream, size: int) -> Planes:
    """Shapes that cover each other, of all sizes."""
    outlines = [_outline(about) for _ in range(about.count(1, 3))]
    smallest, largest = about.between(2, 8), about.between(16, 60)
    steep, upright = about.between(1.2, 3.0), about.chance(0.4)
    palette = _colours(rng, about.count(3, 8))
    planes = _ground(rng, size, palette[0])
    for _ in range(LEAVES):
        radius = smallest * (1 - rng.between(0, 1 - (largest / smallest) ** (1 - steep))) ** (1 / (1 - steep))
        angle = 0.0 if upright else rng.between(0, 2 * math.pi)
        shape = _laid(rng.pick(outlines), rng.between(0, size), rng.between(0, size), radius, angle)
        cv2.fillPoly(planes, [shape], rng.pick(palette), cv2.LINE_AA, 4)
    return planes


def _tiles(about: Stream, rng: Stream, size: int) -> Planes:
    """Cells about points on a disturbed grid, with joints."""
    pitch, disorder = about.between(8, 40), about.between(0, 0.7)
    joint, slanted = about.between(0, 3), about.between(-0.5, 0.5)
    many = math.ceil(size / pitch) + 3
    rows, columns = np.mgrid[-1 : many - 1, -1 : many - 1].astype(np.float64)
    columns += slanted * (rows % 2) + disorder * (rng.uniform(many, many) - 0.5)
    rows += disorder * (rng.uniform(many, many) - 0.5) + rng.between(0, 1)
    seeds = np.full((size, size), 255, np.uint8)
    places = np.rint(pitch * np.stack([rows, columns], 2).reshape(-1, 2)).astype(int)
    places = places[((places >= 0) & (places < size)).all(1)]
    seeds[places[:, 0], places[:, 1]] = 0
    _, numbers = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    palette = np.array(_colours(rng, about.count(1, 5)), np.float32)
    planes = palette[np.asarray(rng.uniform(int(numbers.max()) + 1) * len(palette), int)[numbers]]
    edges = cv2.morphologyEx(numbers.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    line = np.minimum(blur(np.asarray(edges, np.float32), 0.3 + joint / 2) * (1 + joint), 1)
    (ink,) = _colours(rng, 1)
    line = np.asarray(line, np.float32)[..., None] * np.float32(joint > 0.3)
    return np.asarray(planes * (1 - line) + line * np.array(ink, np.float32), np.float32)


def _signs(about: Stream, rng: Stream, size: int) -> Planes:
    """A few signs of strokes, written over and over."""
    signs = []
    for _ in range(about.count(1, 4)):
        strokes = []
        for _ in range(about.count(1, 4)):
            ends = about.count(2, 5)
            strokes.append(np.array([[about.between(-1, 1), about.between(-1, 1)] for _ in range(ends)]))
        signs.append(strokes)
    thick, tidy, tall = about.count(1, 3), about.chance(0.5), about.between(8, 28)
    ground, ink = _colours(rng, 2)
    planes = _ground(rng, size, ground)
    lean = rng.between(0, 2 * math.pi)
    step = 2.6 * tall
    for row in np.arange(0, size + step, step):
        for column in np.arange(0, size + step, step):
            if rng.chance(0.25):
                continue
            angle = lean if tidy else rng.between(0, 2 * math.pi)
            for stroke in rng.pick(signs):
                at = _laid(stroke, column + rng.between(-2, 2), row + rng.between(-2, 2), tall, angle)
                cv2.polylines(planes, [at], False, ink, thick, cv2.LINE_AA, 4)
    return planes


def _waves(about: Stream, rng: Stream, size: int) -> Planes:
    """A formula of x and y: sines, products and folds of each other, mirrored and bent."""
    zoom, angle = about.between(4, 20) * math.exp(rng.between(-0.25, 0.25)), rng.between(0, 2 * math.pi)
    x, y = (place * (zoom / size) + rng.between(-2, 2) for place in axes(size, angle))
    known: list[Field] = [x, y, np.hypot(x, y)]
    while len(known) < 9:
        one, other = about.pick(known), about.pick(known)
        rate, shift = about.between(0.6, 2.5), about.between(0, 6.3)
        kind = about.count(0, 4)
        if kind == 0:
            new = np.sin(rate * one + shift)
        elif kind == 1:
            new = np.sin(rate * one + about.between(0.5, 2.5) * other)
        elif kind == 2:
            new = one * other / (1 + np.abs(other))
        elif kind == 3:
            new = np.abs(np.mod(rate * one, 2) - 1)
        else:
            new = np.sin(3 * np.tanh(one - other) + shift)
        known.append(np.asarray(new, np.float32))
    planes = []
    for _ in range(3):
        field = about.pick(known[3:])
        low, high = (float(level) for level in np.quantile(field[::4, ::4], (0.02, 0.98)))
        planes.append(np.clip((field - low) / max(high - low, 0.1), 0, 1))
    if rng.chance(0.5):
        planes = [planes[0]] * 3
    one_colour, other_colour = (np.array(colour) for colour in _colours(rng, 2))
    return np.asarray(np.stack(planes, 2) * one_colour + 0.3 * other_colour, np.float32)


def _blobs(about: Stream, rng: Stream, size: int) -> Planes:
    """Noise of one width, cut at a level: spots, labyrinths, islands."""
    grain, ratio, level = about.between(3, 20), about.between(1.3, 3.5), about.between(-0.8, 0.8)
    sharp, along = about.between(1, 12), about.between(1, 4)
    rough = rng.lines(size, grain * along, grain, rng.between(0, math.pi)) if along > 2 else rng.noise(size, grain)
    band = rough - blur(rough, 0.45 * grain * ratio)
    field = 1 / (1 + np.exp(-sharp * (band / (float(band.std()) + 1e-6) - level)))
    one, other = _colours(rng, 2)
    return _mixed(np.asarray(field, np.float32), one, other)


def _solids(about: Stream, rng: Stream, size: int) -> Planes:
    """A part of a few shaded pieces, once or strewn: outlines, holes and steps under a lamp."""
    pieces = []
    for _ in range(about.count(2, 5)):
        pieces.append(
            (_outline(about), about.between(-0.5, 0.5), about.between(-0.5, 0.5), about.between(0.2, 0.8),
             about.between(-1.0, 1.0), about.chance(0.5))
        )  # fmt: skip
    many = about.pick([1, 1, 3, 9])
    height = np.zeros((size, size), np.float32)
    reach = size * rng.between(0.25, 0.42) / math.sqrt(many) * (1.4 if many > 1 else 1)
    upright = about.chance(0.5)
    for _ in range(many):
        x, y = (size * rng.between(0.2, 0.8) for _ in range(2))
        angle = 0.0 if upright else rng.between(0, 2 * math.pi)
        for outline, right, down, radius, lift, hole in pieces:
            mask = np.zeros((size, size), np.uint8)
            middle = reach * (_turn(angle) @ np.array([right, down])) + np.array([x, y])
            cv2.fillPoly(
                mask, [_laid(outline, float(middle[0]), float(middle[1]), reach * radius, angle)], 1, cv2.LINE_8, 4
            )
            far = np.minimum(cv2.distanceTransform(mask, cv2.DIST_L2, 3), 0.3 * reach * radius)
            height = np.where(mask > 0, -2.0 if hole and lift < 0 else height + abs(lift) * far + 1, height)
    height = np.asarray(blur(np.asarray(height, np.float32), 0.8), np.float32)
    turn, up = rng.between(0, 2 * math.pi), rng.between(0.5, 1.1)
    slopes = [np.asarray(cv2.Scharr(height, cv2.CV_32F, *way, scale=1 / 32)) for way in ((1, 0), (0, 1))]
    light = math.sin(up) - math.cos(up) * (math.cos(turn) * slopes[0] + math.sin(turn) * slopes[1])
    shade = np.maximum(light / np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2), 0) + 0.25
    ground, own = _colours(rng, 2)
    soft = np.asarray(np.clip(np.abs(height), 0, 1), np.float32)
    return _mixed(soft, ground, own) * np.asarray(shade, np.float32)[..., None]


def _curves(about: Stream, rng: Stream, size: int) -> Planes:
    """Many lines after one formula: rings, spirals, petals, hatchings."""
    petals, twist, rings = about.count(1, 9), about.between(-4, 4), about.count(3, 14)
    deep, thick, closed = about.between(0, 0.5), about.count(1, 2), about.chance(0.6)
    at = np.linspace(0, 2 * math.pi, 90)
    ground, ink = _colours(rng, 2)
    planes = _ground(rng, size, ground)
    x, y = (size * rng.between(0.3, 0.7) for _ in range(2))
    reach, angle = size * rng.between(0.35, 0.8), rng.between(0, 2 * math.pi)
    for i in range(1, rings + 1):
        radius = reach * i / rings * (1 + deep * np.sin(petals * at + twist * i / rings))
        grown = radius if closed else radius * (1 + at / (2 * math.pi) / i)
        line = np.column_stack([grown * np.cos(at + angle), grown * np.sin(at + angle)]) + np.array([x, y])
        cv2.polylines(planes, [np.rint(16 * line).astype(np.int32)], closed, ink, thick, cv2.LINE_AA, 4)
    return planes


FAMILIES: Final[dict[str, Callable[[Stream, Stream, int], Planes]]] = {
    "fractal": _fractal,
    "leaves": _leaves,
    "tiles": _tiles,
    "signs": _signs,
    "waves": _waves,
    "blobs": _blobs,
    "solids": _solids,
    "curves": _curves,
}
FAMILY_NAMES: Final = tuple(FAMILIES)
