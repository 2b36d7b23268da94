"""Defect kinds, each worked into a part, and the blemishes that every good part has too.

Loudness is relative to the texture (`Part.busy`), so that a person can tell most defects on every surface.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from sdk.surfaces.parts import Colour, Field, Part, Stream, bgr, blur, rise

FINE = 4
"""Strokes are drawn at this many times the resolution, then averaged: widths go in quarters of a pixel."""

_Path = list[tuple[float, float, float, float]]
"""Points of a stroke: x, y, width in pixels, strength in [0, 1]."""


def _stroke(part: Part, paths: Sequence[_Path]) -> Field:
    """Return how much of each pixel the strokes cover, [0, 1]."""
    side = part.size * FINE
    canvas = np.zeros((side, side), np.uint8)
    for path in paths:
        for (x0, y0, _, _), (x1, y1, width, strength) in itertools.pairwise(path):
            ends = (round(x0 * FINE), round(y0 * FINE)), (round(x1 * FINE), round(y1 * FINE))
            cv2.line(canvas, *ends, round(255 * min(1.0, strength)), max(1, round(width * FINE)))
    cover = cv2.resize(canvas, (part.size, part.size), interpolation=cv2.INTER_AREA)
    return cover.astype(np.float32) * (1 / 255)


def _bare(rng: Stream, part: Part) -> Colour:
    """Return what shows where the skin is off: bright or dark, mostly what differs more from the surface."""
    dark_surface = float(part.colour.mean()) < 0.42
    bright = rng.chance(0.8) == dark_surface
    return bgr(0.86, 0.87, 0.88) if bright else bgr(0.07, 0.07, 0.08)


def _scratch(rng: Stream, part: Part) -> None:
    """A groove drawn by something hard: long, thin, almost straight, bright or dark, with a burr."""
    unit = part.unit
    angle = rng.between(0, math.pi)
    length = rng.between(50, 130) * unit
    bend = rng.between(-0.18, 0.18)
    width = rng.between(0.8, 1.9) * unit
    cx, cy = part.spot(rng, 0.2)
    cos, sin = math.cos(angle), math.sin(angle)
    paths: list[_Path] = []
    count = 1 if rng.chance(0.75) else rng.count(2, 3)
    for i in range(count):
        shorter = rng.between(0.5, 1.0) if i else 1.0
        aside = i * rng.between(3, 9) * unit
        skip = rng.uniform(8)
        path: _Path = []
        for t in np.linspace(-0.5, 0.5, 29):
            along, across = float(t) * length * shorter, bend * (float(t) ** 2) * length + aside
            press = float(np.interp((t + 0.5) * 7, np.arange(8), skip))
            taper = min(1.0, 6 * (0.5 - abs(float(t))) + 0.25)
            x, y = cx + along * cos - across * sin, cy + along * sin + across * cos
            path.append((x, y, width * taper, 0.55 + 0.6 * press))
        paths.append(path)
    cover = _stroke(part, paths)
    groove = blur(cover, 0.6 * unit)
    depth = rng.between(0.7, 1.5) * part.busy * unit
    part.height += depth * (0.7 * blur(cover, 1.6 * unit) - groove)
    part.tint(min(0.9, rng.between(0.45, 0.8) * part.busy) * cover, _bare(rng, part))
    part.mark(cover)


def _crack(rng: Stream, part: Part) -> None:
    """The material parted: dark, jagged, tapering, branching."""
    unit = part.unit
    paths: list[_Path] = []

    def grow(x: float, y: float, heading: float, length: float, width: float, depth: int) -> None:
        path: _Path = [(x, y, width, 1.0)]
        here, gone = heading, 0.0
        while gone < length:
            stride = rng.between(2.0, 5.5) * unit
            here = heading + 0.6 * (here - heading) + rng.between(-0.75, 0.75)
            x, y = x + stride * math.cos(here), y + stride * math.sin(here)
            gone += stride
            heading += rng.between(-0.10, 0.10)
            taper = 1 - 0.75 * gone / length
            path.append((x, y, width * max(0.3, taper) * rng.between(0.75, 1.2), 1.0))
            if depth < 2 and gone < 0.8 * length and rng.chance(0.09):
                side = heading + rng.sign() * rng.between(0.45, 1.0)
                grow(x, y, side, (length - gone) * rng.between(0.4, 0.8), width * 0.7, depth + 1)
        paths.append(path)

    cx, cy = part.spot(rng, 0.2)
    angle = rng.between(0, 2 * math.pi)
    width = rng.between(1.0, 2.1) * unit
    # Two arms from where it began, so that it is widest in the middle.
    for arm in (angle, angle + math.pi + rng.between(-0.5, 0.5)):
        grow(cx, cy, arm, rng.between(18, 52) * unit, width, 0)
    cover = _stroke(part, paths)
    part.height -= (rng.between(0.8, 1.6) * part.busy * unit) * blur(cover, 0.6 * unit)
    part.darken(np.minimum(cover * 1.1, 1), rng.between(0.05, 0.3))
    part.gloss *= 1 - cover
    part.mark(cover)


def _pit(rng: Stream, part: Part) -> None:
    """Small round holes, alone or in a cluster: dark floor, one lit wall."""
    unit = part.unit
    count = rng.count(1, 7) if rng.chance(0.7) else 1
    cx, cy = part.spot(rng, 0.22)
    biggest = rng.between(2.2, 5.2) * unit * (1.25 if count == 1 else 1.0)
    spread = rng.between(8, 34) * unit
    dark = rng.between(0.45, 0.8)
    steep = rng.between(0.55, 0.95) * part.busy
    ragged = 0.16 * rng.noise(part.size, 2.6 * unit)
    for i in range(count):
        radius = biggest * (rng.between(0.5, 1.0) if i else 1.0)
        angle, out = rng.between(0, 2 * math.pi), (spread * math.sqrt(rng.between(0.05, 1)) if i else 0.0)
        centre = (cx + out * math.cos(angle), cy + out * math.sin(angle))
        far = part.ellipse(centre, (radius * rng.between(1.0, 1.35), radius), rng.between(0, math.pi))
        far += ragged
        bowl = rise(-far, -1.1, -0.2)
        rim = np.exp(-((far - 1.25) ** 2) * 9)
        part.height += (steep * radius) * (0.12 * rim - bowl)
        part.darken(bowl, dark)
        part.gloss *= 1 - bowl
        part.mark(rise(-far, -1.2, -0.9))


def _blob(rng: Stream, part: Part, radius: float, ragged: float) -> Field:
    """Return the distance from an irregular blob's edge in units of its radius: 1 on the edge."""
    slim = rng.between(0.5, 1.0)
    far = part.ellipse(part.spot(rng, 0.2), (radius, radius * slim), rng.between(0, math.pi))
    far += ragged * rng.noise(part.size, 0.6 * radius)
    far += (0.45 * ragged) * rng.noise(part.size, 0.22 * radius)
    far += (0.2 * ragged) * rng.noise(part.size, 0.09 * radius)
    return far


def _stain(rng: Stream, part: Part) -> None:
    """Dried or wet liquid: a large flat patch of other colour, often with a darker edge; texture shows through."""
    radius = rng.between(15, 38) * part.unit
    far = _blob(rng, part, radius, rng.between(0.12, 0.28))
    soft = rng.between(0.08, 0.4)
    inside = rise(-far, -1 - soft, -1 + soft)
    edge = np.exp(-((far - 0.95) ** 2) * rng.between(40, 110))
    tints = ((0.50, 0.62, 0.72), (0.52, 0.54, 0.56), (0.72, 0.64, 0.57), (0.45, 0.55, 0.60))
    strength = rng.between(0.45, 0.95)
    tint = 1 - strength * (1 - bgr(*rng.pick(tints)))
    if rng.chance(0.18):  # lime: a pale veil
        part.tint((0.45 * strength) * inside, bgr(0.8, 0.8, 0.78))
    else:
        part.darken(inside, tint)
    part.darken(rng.between(0.1, 0.55) * edge, 0.45)
    part.gloss *= 1 + rng.between(-0.8, 0.4) * inside
    part.mark(inside)


def _inclusion(rng: Stream, part: Part) -> None:
    """Foreign matter in the surface: sharp-edged flat flakes of another material, drawn out along the lay."""
    unit = part.unit
    foreign = bgr(*rng.pick(((0.10, 0.12, 0.16), (0.13, 0.20, 0.30), (0.72, 0.76, 0.78), (0.08, 0.08, 0.09))))
    side = part.size * FINE
    canvas = np.zeros((side, side), np.uint8)
    cx, cy = part.spot(rng, 0.24)
    for i in range(rng.count(1, 4)):
        length = rng.between(14, 34) * unit * (1.0 if i == 0 else 0.6)
        width = max(4.0 * unit, length * rng.between(0.22, 0.45))
        angle = part.lay + rng.between(-0.3, 0.3)
        x = cx + (rng.between(-30, 30) * unit if i else 0)
        y = cy + (rng.between(-30, 30) * unit if i else 0)
        corners = rng.count(7, 11)
        turn = (np.arange(corners) + 0.7 * rng.uniform(corners)) * (2 * math.pi / corners)
        reach = 0.65 + 0.35 * rng.uniform(corners)
        u, v = np.cos(turn) * reach * length / 2, np.sin(turn) * reach * width / 2
        px = x + u * math.cos(angle) - v * math.sin(angle)
        py = y + u * math.sin(angle) + v * math.cos(angle)
        cv2.fillPoly(canvas, [np.rint(np.stack([px, py], 1) * FINE).astype(np.int32)], 255)
    cover = cv2.resize(canvas, (part.size, part.size), interpolation=cv2.INTER_AREA).astype(np.float32)
    cover *= 1 / 255
    part.tint(rng.between(0.75, 0.95) * cover, foreign)
    part.colour *= 1 + 0.12 * (cover * rng.noise(part.size, 2 * unit))
    part.height *= 1 - 0.8 * cover
    part.height += (rng.between(-0.4, 0.4) * unit) * cover
    part.gloss *= 1 - cover
    part.mark(cover)


def _dent(rng: Stream, part: Part) -> None:
    """A blow: the surface bends in smoothly and keeps its texture; only the light tells."""
    unit = part.unit
    for i in range(2 if rng.chance(0.25) else 1):
        radius = rng.between(11, 26) * unit * (1.0 if i == 0 else 0.6)
        radii = (radius * rng.between(1.0, 1.5), radius)
        far = part.ellipse(part.spot(rng, 0.22), radii, rng.between(0, math.pi))
        bowl = np.exp(-(far ** rng.between(2.0, 3.2)) * 1.6)
        rim = np.exp(-((far - 1.3) ** 2) * 14)
        deep = rng.between(0.17, 0.36) * radius * (0.6 + 0.4 * part.busy)
        part.height += deep * (0.10 * rim - bowl)
        part.mark(rise(-far, -1.25, -1.05))


def _scuff(rng: Stream, part: Part) -> None:
    """Rubbing: a patch of many short, fine, parallel marks, dulled."""
    unit = part.unit
    angle = rng.between(0, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    cx, cy = part.spot(rng, 0.2)
    long, wide = rng.between(16, 34) * unit, rng.between(10, 24) * unit
    paths: list[_Path] = []
    for _ in range(rng.count(26, 59)):
        u, v = rng.between(-1, 1), rng.between(-1, 1)
        if u * u + v * v > 1:
            continue
        half = rng.between(4, 12) * unit
        tilt = rng.between(-0.08, 0.08) * half
        x, y = cx + u * long * cos - v * wide * sin, cy + u * long * sin + v * wide * cos
        ends = ((-half, -tilt), (half, tilt))
        width, strength = rng.between(0.5, 1.1) * unit, rng.between(0.5, 1.0)
        paths.append([(x + a * cos - b * sin, y + a * sin + b * cos, width, strength) for a, b in ends])
    cover = _stroke(part, paths)
    patch = rise(-part.ellipse((cx, cy), (long * 1.35, wide * 1.25), angle), -1.15, -0.6)
    tone = _bare(rng, part)
    part.tint(min(0.8, rng.between(0.4, 0.65) * part.busy) * cover, tone)
    part.tint(0.15 * patch, tone)
    part.height -= (0.35 * part.busy * unit) * cover
    part.gloss *= 1 - 0.6 * patch
    part.mark(rise(blur(cover, 2.5 * unit), 0.06, 0.18))


def _corrosion(rng: Stream, part: Part) -> None:
    """Rust or oxide: a crowd of rough orange-brown or white specks, thick in the middle, with a halo."""
    unit = part.unit
    radius = rng.between(14, 34) * unit
    far = _blob(rng, part, radius, 0.25)
    near = rise(-far, -1.25, 0.0)
    grain = rng.noise(part.size, 2.2 * unit) + 0.7 * rng.noise(part.size, 5 * unit)
    specks = rise(grain + 2.6 * near, 1.7, 2.5) * rise(near, 0.02, 0.2)
    rusts = ((0.11, 0.20, 0.34), (0.14, 0.25, 0.42), (0.09, 0.14, 0.23), (0.70, 0.72, 0.70))
    rust = bgr(*rng.pick(rusts))
    part.tint(0.30 * near, rust)
    part.tint(rng.between(0.7, 0.95) * specks, rust)
    part.colour *= 1 + 0.16 * (specks * rng.noise(part.size, 1.6 * unit))
    part.height += (0.5 * unit) * specks * (1 + 0.4 * rng.noise(part.size, 1.6 * unit))
    part.gloss *= 1 - np.maximum(specks, 0.5 * near)
    part.mark(np.maximum(specks, rise(near, 0.35, 0.6)))


def _missing(rng: Stream, part: Part) -> None:
    """Material broken out: a sharp edge with corners, a rough floor of other shade below."""
    unit = part.unit
    radius = rng.between(9, 28) * unit
    cx, cy = part.spot(rng, 0.22)
    corners = rng.count(6, 12)
    turn = (np.arange(corners) + 0.8 * rng.uniform(corners)) * (2 * math.pi / corners)
    reach = radius * (0.55 + 0.6 * rng.uniform(corners))
    points = np.stack([cx + np.cos(turn) * reach, cy + rng.between(0.5, 1.0) * np.sin(turn) * reach], 1)
    canvas = np.zeros((part.size * FINE, part.size * FINE), np.uint8)
    cv2.fillPoly(canvas, [np.rint(points * FINE).astype(np.int32)], 255)
    cover = cv2.resize(canvas, (part.size, part.size), interpolation=cv2.INTER_AREA).astype(np.float32)
    cover *= 1 / 255
    floor = rng.noise(part.size, 1.8 * unit) + rng.noise(part.size, 5 * unit)
    part.height *= 1 - cover
    part.height -= (rng.between(1.5, 3.5) * part.busy * unit) * blur(cover, 0.5 * unit)
    part.height += (rng.between(0.2, 0.5) * unit) * cover * floor
    part.tint(rng.between(0.5, 0.95) * cover, bgr(1, 1, 1) * rng.pick((0.12, 0.25, 0.5, 0.7)))
    part.gloss *= 1 - cover
    part.mark(cover)


def _bump(rng: Stream, part: Part) -> None:
    """Blisters: the skin lifted in smooth domes, alone or several."""
    unit = part.unit
    for _ in range(rng.count(1, 5)):
        radius = rng.between(4, 13) * unit
        far = part.ellipse(part.spot(rng, 0.25), (radius * rng.between(1.0, 1.4), radius), rng.between(0, math.pi))
        part.height += (rng.between(0.25, 0.5) * radius) * np.sqrt(np.maximum(1 - far * far, 0))
        part.mark(rise(-far, -1.15, -0.95))


def _spatter(rng: Stream, part: Part) -> None:
    """Drops that flew and stuck: round, of all sizes, many small and few large, standing proud."""
    unit = part.unit
    drops = np.zeros((part.size * FINE, part.size * FINE), np.uint8)
    cx, cy = part.spot(rng, 0.2)
    spread = rng.between(14, 40) * unit
    for _ in range(rng.count(12, 50)):
        out, turn = spread * math.sqrt(rng.between(0.0, 1.0)), rng.between(0, 2 * math.pi)
        radius = unit * min(5.0, 0.7 * rng.between(0.02, 1.0) ** -0.6)
        at = (round((cx + out * math.cos(turn)) * FINE), round((cy + out * math.sin(turn)) * FINE))
        cv2.circle(drops, at, max(1, round(radius * FINE)), 255, -1)
    cover = cv2.resize(drops, (part.size, part.size), interpolation=cv2.INTER_AREA).astype(np.float32)
    cover *= 1 / 255
    part.height += (rng.between(0.8, 2.0) * part.busy * unit) * blur(cover, 0.8 * unit)
    part.tint(rng.between(0.4, 0.9) * cover, _bare(rng, part))
    part.mark(cover)


def _smear(rng: Stream, part: Part) -> None:
    """The texture itself gone: rubbed flat or clogged in a patch, of nearly the same shade."""
    radius = rng.between(13, 32) * part.unit
    far = _blob(rng, part, radius, rng.between(0.1, 0.25))
    inside = rise(-far, -1.15, -0.9)
    wide = rng.between(2.5, 6.0) * part.unit
    part.height += inside * (blur(part.height, wide) - part.height)
    for i, plane in enumerate(part.colour):
        part.colour[i] = plane + inside * (blur(plane, wide) - plane)
    part.darken(inside, rng.between(0.75, 1.2))
    part.gloss *= 1 + rng.between(-0.5, 1.0) * inside
    part.mark(inside)


def _fold(rng: Stream, part: Part) -> None:
    """A crease, lap or seam: one long, gently bending ridge that throws a shadow, broad and without a gap."""
    unit = part.unit
    angle, length, bend = rng.between(0, math.pi), rng.between(60, 140) * unit, rng.between(-0.5, 0.5)
    cx, cy = part.spot(rng, 0.2)
    cos, sin = math.cos(angle), math.sin(angle)
    path: _Path = []
    wave, phase = rng.between(0.0, 0.05) * length, rng.between(0, 6)
    width = rng.between(2.5, 6.0) * unit
    for t in np.linspace(-0.5, 0.5, 33):
        along, across = float(t) * length, bend * float(t) ** 2 * length + wave * math.sin(9 * float(t) + phase)
        taper = min(1.0, 5 * (0.5 - abs(float(t))) + 0.2)
        path.append((cx + along * cos - across * sin, cy + along * sin + across * cos, width * taper, 1.0))
    cover = _stroke(part, [path])
    part.height += (rng.sign() * rng.between(0.5, 0.9) * width) * blur(cover, 0.35 * width)
    part.darken(cover, rng.between(0.75, 1.0))
    part.mark(cover)


DEFECTS: dict[str, Callable[[Stream, Part], None]] = {
    "scratch": _scratch,
    "crack": _crack,
    "pit": _pit,
    "inclusion": _inclusion,
    "dent": _dent,
    "stain": _stain,
    "scuff": _scuff,
    "corrosion": _corrosion,
    "missing": _missing,
    "bump": _bump,
    "spatter": _spatter,
    "smear": _smear,
    "fold": _fold,
}


def worked_in(rng: Stream, part: Part, defect: str, loudness: float) -> None:
    """Work a defect into a part, and leave a share of `loudness` in (0, 1] of it to be seen."""
    if loudness == 1:
        DEFECTS[defect](rng, part)
        return
    before = part.maps()
    DEFECTS[defect](rng, part)
    part.fade(before, loudness)


def blemish(rng: Stream, part: Part) -> None:
    """Add what every good part has too: dust, a hair, streaks along the texture, slow changes of shade."""
    unit, size = part.unit, part.size
    part.colour *= 1 + rng.between(0.01, 0.06) * rng.slow(size, 3)
    if rng.chance(0.4):
        streaks = rng.lines(size, 4 * size, rng.between(2, 6) * unit, part.lay)
        part.colour *= 1 + 0.09 * rise(np.abs(streaks), 1.4, 2.2) * np.sign(streaks)
    specks: list[_Path] = []
    for _ in range(rng.count(0, 13)):
        x, y = rng.between(0, size), rng.between(0, size)
        long, width = rng.between(0.3, 1.6) * unit, rng.between(0.5, 1.3) * unit
        specks.append(
            [(x, y, width, 1.0), (x + long, y + rng.between(-1, 1) * unit, width, rng.between(0.3, 0.9))]
        )
    if rng.chance(0.12):  # lint: curled, pale, thin
        x, y, heading = rng.between(0, size), rng.between(0, size), rng.between(0, 2 * math.pi)
        curl, hair = rng.between(0.25, 0.5) * rng.sign(), [(x, y, 0.5 * unit, 0.6)]
        for _ in range(rng.count(6, 11)):
            heading += curl + rng.between(-0.15, 0.15)
            x, y = x + 2.2 * unit * math.cos(heading), y + 2.2 * unit * math.sin(heading)
            hair.append((x, y, 0.6 * unit, 0.6))
        specks.append(hair)
    if specks:
        tone = bgr(0.72, 0.72, 0.70) if rng.chance(0.6) else bgr(0.15, 0.15, 0.15)
        part.tint(0.6 * _stroke(part, specks), tone)
