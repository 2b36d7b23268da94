"""Surface kinds: each draws a good part's relief, reflectance and gloss.

A texture is a function of a stream, the map's side in pixels and the pixels per unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sdk.surfaces.parts import Part, Stream, axes, bgr, plain, rise

_STEEL = ((0.50, 0.50, 0.50), (0.56, 0.54, 0.52), (0.44, 0.45, 0.46), (0.50, 0.53, 0.55))


def _cast(rng: Stream, size: int, unit: float) -> Part:
    """Sand casting: grainy, dull, mottled."""
    colour = bgr(*rng.pick(((0.36, 0.37, 0.38), (0.45, 0.45, 0.45), (0.33, 0.36, 0.40), (0.52, 0.52, 0.53))))
    part = plain(size, unit, colour, gloss=rng.between(0.03, 0.12), lay=rng.between(0, math.pi), busy=1.15)
    grain = rng.between(1.0, 2.0) * unit
    rough = rng.between(0.5, 0.95)
    for octave, weight in ((1, 0.22), (2, 0.20), (4, 0.20), (10, 0.30)):
        part.height += rng.noise(size, grain * octave) * (weight * rough * grain)
    part.colour *= 1 + 0.05 * (rng.noise(size, grain * 7) + rng.noise(size, grain))
    return part


def _rolled(rng: Stream, size: int, unit: float) -> Part:
    """Rolled sheet: long faint streaks, patches of scale."""
    lay = rng.between(0, math.pi)
    part = plain(size, unit, bgr(*rng.pick(_STEEL)), gloss=rng.between(0.10, 0.25), lay=lay, busy=0.8)
    wide = rng.between(1.4, 2.6) * unit
    streaks = rng.lines(size, 110 * unit, wide, lay)
    fine = rng.lines(size, 14 * unit, 1.1 * unit, lay)
    rough = rng.between(0.5, 1.0)
    part.height += (0.09 * rough) * wide * streaks + (0.10 * rough * unit) * fine
    scale = rise(rng.lines(size, 30 * unit, 11 * unit, lay) + 0.45 * fine, 0.0, 1.9)
    dark = rng.between(0.05, 0.25)
    part.colour *= 1 + 0.035 * (streaks + fine)
    part.darken(scale, bgr(1 - 0.7 * dark, 1 - dark, 1 - dark))
    return part


def _brushed(rng: Stream, size: int, unit: float) -> Part:
    """Brushed metal: dense fine lines, a band of light across them."""
    lay = rng.between(0, math.pi)
    colour = bgr(*rng.pick((*_STEEL, (0.40, 0.55, 0.62), (0.42, 0.47, 0.60))))
    part = plain(size, unit, colour, gloss=rng.between(0.22, 0.40), lay=lay, busy=1.2)
    length = rng.between(30, 90) * unit
    lines = rng.lines(size, length, 0.8 * unit, lay)
    coarse = rng.lines(size, 1.7 * length, 2.0 * unit, lay)
    rough = rng.between(0.5, 1.0)
    part.height += (0.11 * unit * rough) * lines + (0.12 * unit * rough) * coarse
    part.colour *= 1 + (0.05 * rough) * (lines + coarse)
    _, across = axes(size, lay)
    band = np.cos(across * (rng.between(1.5, 3.5) / size) + rng.between(-2, 2))
    part.gloss *= 1 + 0.5 * band
    return part


def _machined(rng: Stream, size: int, unit: float) -> Part:
    """Face-milled or turned metal: arcs of the tool at an even pitch."""
    lay = rng.between(0, 2 * math.pi)
    part = plain(
        size, unit, bgr(*rng.pick(_STEEL)), gloss=rng.between(0.18, 0.35), lay=lay + math.pi / 2, busy=1.15
    )
    far = rng.between(130, 700) * unit
    centre = (size / 2 + far * math.cos(lay), size / 2 + far * math.sin(lay))
    u, v = axes(size, 0.0, centre)
    radius = np.sqrt(u * u + v * v)
    pitch = rng.between(2.8, 7.0) * unit
    turns = radius * (1 / pitch) + 0.12 * rng.noise(size, 60 * unit)
    cusp = np.abs((turns % 1) - 0.5) * 2
    # Each turn of the tool cuts a little deeper or shallower than the one before.
    uneven = rng.uniform(4096)[turns.astype(np.int32) % 4096]
    part.height += (0.11 * pitch) * cusp * cusp * (0.6 + 0.8 * uneven)
    part.height += (0.05 * unit) * rng.noise(size, 1.3 * unit)
    if rng.chance(0.4):  # the trailing edge of the cutter leaves a second, fainter set of arcs
        u, v = axes(size, 0.0, (size - centre[0], size - centre[1]))
        back = np.sqrt(u * u + v * v) * (2 * math.pi / (1.3 * pitch))
        part.height += (0.025 * pitch) * np.cos(back)
    part.colour *= 1 + 0.08 * (uneven - 0.5)
    return part


def _woven(rng: Stream, size: int, unit: float) -> Part:
    """Technical cloth: warp over weft, threads of uneven thickness and shade."""
    lay = rng.between(0, math.pi)
    cloths = ((0.62, 0.62, 0.60), (0.48, 0.62, 0.68), (0.45, 0.33, 0.25), (0.20, 0.20, 0.20), (0.34, 0.36, 0.40))
    part = plain(size, unit, bgr(*rng.pick(cloths)), gloss=rng.between(0.02, 0.10), lay=lay, busy=1.5)
    pitch = rng.between(4.0, 8.0) * unit
    u, v = axes(size, lay)
    slack = rng.between(0.10, 0.25)
    u = u * (1 / pitch) + slack * rng.noise(size, 45 * unit) + 500
    v = v * (1 / pitch) + slack * rng.noise(size, 45 * unit) + 500
    ui, vi = u.astype(np.int32), v.astype(np.int32)
    shift = 2 if rng.chance(0.35) else 1  # twill moves one thread on per row, plain weave alternates
    over = ((ui + shift * vi) % (2 * shift)) < shift if shift == 2 else ((ui + vi) % 2) == 0
    round_u, round_v = np.sin(math.pi * (u % 1)), np.sin(math.pi * (v % 1))
    thread = np.where(over, round_u, round_v)
    along = np.where(over, round_v, round_u)
    part.height += (0.22 * pitch) * np.sqrt(thread) * (0.55 + 0.45 * along)
    part.height += (0.06 * unit) * rng.noise(size, 1.2 * unit)
    shades = (rng.uniform(2, 1024) - 0.5) * rng.between(0.06, 0.25)
    shade = np.where(over, shades[0][ui % 1024], shades[1][vi % 1024])
    gaps = 0.55 + 0.45 * np.sqrt(thread)
    part.colour *= gaps * (1 + shade)
    return part


def _printed(rng: Stream, size: int, unit: float) -> Part:
    """Printed sheet: a raster of ink dots over a tone that changes slowly, with plain bars."""
    lay = rng.between(0, math.pi / 2)
    papers = ((0.80, 0.82, 0.84), (0.70, 0.76, 0.80), (0.85, 0.84, 0.82))
    inks = ((0.45, 0.30, 0.15), (0.25, 0.22, 0.55), (0.30, 0.42, 0.22), (0.20, 0.20, 0.22), (0.20, 0.45, 0.60))
    part = plain(size, unit, bgr(*rng.pick(papers)), gloss=rng.between(0.03, 0.12), lay=lay, busy=1.3)
    pitch = rng.between(3.6, 6.0) * unit
    u, v = axes(size, lay)
    wave = 2 * math.pi / pitch
    raster = np.cos(u * wave) * np.cos(v * wave)
    tone = rng.between(-0.35, 0.35) + 0.35 * rng.slow(size, 2)
    ink = bgr(*rng.pick(inks))
    part.tint(0.85 * rise(raster + tone, -0.25, 0.25), ink)
    if rng.chance(0.6):
        edge = rng.between(-0.35, 0.35) * size
        wide = rng.between(0.05, 0.22) * size
        bar = rise(-np.abs(u - edge), -wide - unit, -wide)
        part.tint(0.9 * bar, bgr(*rng.pick(inks)))
    part.height += (0.05 * unit) * (rng.noise(size, 1.6 * unit) + rng.noise(size, 7 * unit))
    part.colour *= 1 + 0.025 * rng.noise(size, 2 * unit)
    return part


def _painted(rng: Stream, size: int, unit: float) -> Part:
    """Paint or powder coat: saturated, glossy, orange peel, flakes."""
    paints = (
        (0.55, 0.28, 0.12),
        (0.14, 0.13, 0.52),
        (0.30, 0.42, 0.16),
        (0.13, 0.52, 0.66),
        (0.66, 0.67, 0.67),
        (0.20, 0.20, 0.21),
        (0.40, 0.36, 0.33),
    )
    colour = bgr(*rng.pick(paints))
    part = plain(size, unit, colour, gloss=rng.between(0.20, 0.45), lay=rng.between(0, math.pi), busy=0.75)
    peel = rng.between(3.5, 7.5) * unit
    part.height += (0.03 * peel * rng.between(0.4, 1.1)) * rng.noise(size, peel)
    part.height += (0.035 * unit) * rng.noise(size, 1.4 * unit)
    flakes = rng.between(0.01, 0.08)
    part.colour *= 1 + flakes * rng.noise(size, 1.1 * unit)
    return part


TEXTURES: dict[str, Callable[[Stream, int, float], Part]] = {
    "cast": _cast,
    "rolled": _rolled,
    "brushed": _brushed,
    "machined": _machined,
    "painted": _painted,
    "printed": _printed,
    "woven": _woven,
}
