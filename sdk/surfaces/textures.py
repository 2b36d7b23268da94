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


def _ground(rng: Stream, size: int, unit: float) -> Part:
    """Ground or lapped metal: short marks of single grains, in one direction or two."""
    lay = rng.between(0, math.pi)
    part = plain(size, unit, bgr(*rng.pick(_STEEL)), gloss=rng.between(0.15, 0.35), lay=lay, busy=1.0)
    length, rough = rng.between(6, 24) * unit, rng.between(0.5, 1.1)
    marks = rng.lines(size, length, 0.9 * unit, lay)
    deep = rise(rng.lines(size, 1.5 * length, 1.5 * unit, lay), 0.5, 1.8)
    if rng.chance(0.4):  # turned between two passes
        marks += rng.lines(size, length, 0.9 * unit, lay + rng.between(0.5, 1.6))
    part.height += (0.13 * rough * unit) * marks - (0.35 * rough * unit) * deep
    part.colour *= 1 + (0.04 * rough) * marks
    part.darken(deep, rng.between(0.6, 0.95))
    return part


def _oxidised(rng: Stream, size: int, unit: float) -> Part:
    """Hot-worked or weathered metal: layers of scale that flake at all sizes, dark beside bright."""
    part = plain(
        size, unit, bgr(*rng.pick(_STEEL)), gloss=rng.between(0.05, 0.2), lay=rng.between(0, math.pi), busy=1.2
    )
    grain, fall = rng.between(1.2, 2.5) * unit, rng.between(0.55, 1.1)
    field = np.zeros((size, size), np.float32)
    for octave in range(5):  # the finer the fainter: noise whose spectrum falls by a power
        field += rng.noise(size, grain * 2.2**octave) * (2.2 ** (fall * (octave - 4)))
    field *= 1 / float(field.std() + 1e-6)
    edge, soft = rng.between(-0.8, 0.8), rng.between(0.05, 0.9)
    layer = rise(field, edge - soft, edge + soft)
    part.tint(
        rng.between(0.3, 0.9) * layer, bgr(*rng.pick(((0.22, 0.24, 0.28), (0.18, 0.22, 0.32), (0.66, 0.66, 0.64))))
    )
    part.height += (rng.between(0.1, 0.6) * unit) * (layer + 0.3 * field)
    part.gloss *= 1 - 0.7 * layer
    return part


def _leather(rng: Stream, size: int, unit: float) -> Part:
    """Grained skin, hammered paint, crystals of zinc: cells with a border, each a little its own."""
    tones = ((0.20, 0.28, 0.42), (0.14, 0.15, 0.17), (0.34, 0.45, 0.60), (0.55, 0.56, 0.57), (0.30, 0.22, 0.16))
    part = plain(
        size, unit, bgr(*rng.pick(tones)), gloss=rng.between(0.05, 0.35), lay=rng.between(0, math.pi), busy=1.2
    )
    far, cell = rng.cells(size, rng.between(4.0, 14.0) * unit, rng.between(1.0, 2.2), part.lay)
    border, sign = rise(-far, -rng.between(0.15, 0.4), 0.0), rng.pick((1.0, 1.0, -1.0))
    part.height += (sign * rng.between(0.5, 1.4) * unit) * (
        rise(far, 0.0, 0.7) + 0.1 * rng.noise(size, 1.5 * unit)
    )
    part.darken(border, rng.between(0.5, 1.0))
    shades = (rng.uniform(1024) - 0.5) * rng.between(0.0, 0.45)
    part.colour *= 1 + shades[cell % 1024]
    return part


def _wood(rng: Stream, size: int, unit: float) -> Part:
    """Wood, or anything in layers: bands that wander, fine pores along them."""
    lay = rng.between(0, math.pi)
    woods = ((0.30, 0.48, 0.66), (0.22, 0.34, 0.48), (0.48, 0.62, 0.72), (0.12, 0.18, 0.28), (0.50, 0.50, 0.52))
    part = plain(size, unit, bgr(*rng.pick(woods)), gloss=rng.between(0.03, 0.2), lay=lay, busy=1.0)
    _, across = axes(size, lay)
    wander, pitch = rng.between(0.2, 1.4), rng.between(5.0, 18.0) * unit
    phase = across * (1 / pitch) + wander * rng.lines(size, 90 * unit, 24 * unit, lay)
    phase += 0.15 * wander * rng.noise(size, 10 * unit) + 500
    band = (phase % 1) ** rng.between(0.6, 3.0)
    uneven = rng.uniform(1024)[phase.astype(np.int32) % 1024]
    part.darken(band * (0.5 + 0.5 * uneven), bgr(0.55, 0.65, 0.75) * rng.between(0.7, 1.2))
    pores = rise(rng.lines(size, 12 * unit, 0.9 * unit, lay), 0.9, 1.8)
    part.darken(pores, rng.between(0.5, 0.9))
    part.height -= (0.35 * unit) * pores + (rng.between(0.0, 0.25) * unit) * band
    return part


def _knurled(rng: Stream, size: int, unit: float) -> Part:
    """Knurls, perforations, studs: one shape repeated on a lattice."""
    lay = rng.between(0, math.pi)
    part = plain(size, unit, bgr(*rng.pick(_STEEL)), gloss=rng.between(0.1, 0.35), lay=lay, busy=1.5)
    pitch, skew = rng.between(5.0, 14.0) * unit, rng.between(0.9, 1.9)
    u, v = axes(size, lay)
    u, v = u * (1 / pitch) + 0.04 * rng.noise(size, 40 * unit) + 500, v * (skew / pitch) + 500
    if rng.chance(0.5):  # every second row moved by half a pitch
        u = u + 0.5 * (v.astype(np.int32) % 2)
    x, y = (u % 1) * 2 - 1, (v % 1) * 2 - 1
    way = rng.count(0, 2)
    far = np.maximum(abs(x), abs(y)) if way == 0 else abs(x) + abs(y) if way == 1 else np.sqrt(x * x + y * y)
    reach, soft = rng.between(0.45, 0.9), rng.between(0.1, 0.5)
    shape = rise(-far, -reach - soft, -reach + soft)
    if rng.chance(0.4):  # holes
        part.darken(shape, rng.between(0.15, 0.6))
        part.height -= (0.12 * pitch) * shape
    else:
        part.height += (rng.between(0.1, 0.25) * pitch) * shape
    part.height += (0.07 * unit) * rng.noise(size, 1.4 * unit)
    return part


def _felt(rng: Stream, size: int, unit: float) -> Part:
    """Felt, fleece, paper, chipped composite: fibres in all directions, or nearly one."""
    lay = rng.between(0, math.pi)
    tones = ((0.60, 0.62, 0.62), (0.30, 0.32, 0.34), (0.20, 0.30, 0.38), (0.50, 0.40, 0.30), (0.78, 0.80, 0.80))
    part = plain(size, unit, bgr(*rng.pick(tones)), gloss=rng.between(0.0, 0.1), lay=lay, busy=1.2)
    length, wide = rng.between(8, 40) * unit, rng.between(0.8, 2.4) * unit
    spread, layers = rng.between(0.1, 1.57), rng.count(3, 5)
    shade, high = rng.between(0.06, 0.3), rng.between(0.2, 0.6) * wide
    for layer in range(layers):
        tilt = lay + spread * (2 * (layer + 0.5) / layers - 1)
        fibres = rise(rng.lines(size, length, wide, tilt), 0.5, 1.6)
        part.height = np.maximum(part.height, fibres * (high * (1 + 0.2 * layer)))
        part.colour *= 1 + shade * (fibres - 0.3)
    return part


def _stone(rng: Stream, size: int, unit: float) -> Part:
    """Stone, terrazzo, filled plastic: grains of several materials, polished or broken."""
    tones = ((0.62, 0.63, 0.64), (0.35, 0.36, 0.38), (0.45, 0.52, 0.60), (0.20, 0.20, 0.22))
    part = plain(
        size, unit, bgr(*rng.pick(tones)), gloss=rng.between(0.05, 0.3), lay=rng.between(0, math.pi), busy=1.4
    )
    others = ((0.85, 0.85, 0.84), (0.08, 0.08, 0.09), (0.30, 0.38, 0.50), (0.55, 0.50, 0.42), (0.20, 0.22, 0.30))
    grain = rng.between(1.5, 6.0) * unit
    for part_of in range(rng.count(1, 3)):
        field = rng.noise(size, grain * (1.0, 2.2, 0.6)[part_of])
        rare = rng.between(0.3, 1.7)
        grains = rise(field, rare, rare + rng.between(0.1, 0.5))
        part.tint(rng.between(0.4, 0.95) * grains, bgr(*rng.pick(others)))
        part.height += (rng.between(-0.3, 0.3) * unit) * grains
    part.height += (rng.between(0.02, 0.3) * unit) * rng.noise(size, 1.5 * unit)
    return part


TEXTURES: dict[str, Callable[[Stream, int, float], Part]] = {
    "cast": _cast,
    "rolled": _rolled,
    "brushed": _brushed,
    "machined": _machined,
    "painted": _painted,
    "printed": _printed,
    "woven": _woven,
    "ground": _ground,
    "oxidised": _oxidised,
    "leather": _leather,
    "wood": _wood,
    "knurled": _knurled,
    "felt": _felt,
    "stone": _stone,
}
