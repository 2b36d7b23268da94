"""Endless sheets of surface to learn from: any number of surfaces, several defects on each, and where they are.

A *recipe* is one surface: its kind and everything that the kind leaves open (grain, pitch, colour, gloss, scale in
pixels). A *piece* is another stretch of it, with other noise, other defects and under another camera. So there are
as many classes of surface as one asks for, and each has as many pictures.

What differs from `sdk.surfaces.make`: lengths and cameras vary several times as much, defects lie anywhere and in
any number, and several kinds meet. That is what a backbone should have seen; a station is calmer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from sdk.preprocess import Frame
from sdk.surfaces.defects import DEFECTS, blemish, worked_in
from sdk.surfaces.light import lit
from sdk.surfaces.parts import Part, Stream, blur
from sdk.surfaces.textures import TEXTURES

Marks = npt.NDArray[np.uint16]
"""(h, w) uint16: bit i is set where the i-th of `DEFECT_NAMES` is."""

SHEET_PX: Final = 256
MARK_PX: Final = 4
"""Side of the square that one mark stands for."""
DEFECT_NAMES: Final = tuple(DEFECTS)
KIND_NAMES: Final = tuple(TEXTURES)
SMALLEST_UNIT_PX: Final = 0.6
LARGEST_UNIT_PX: Final = 2.6
"""Pixels a unit, of which `make` puts 120 into a frame: the same pit is 3 pixels here and 14 there, as between
cameras."""
MOST_DEFECTS: Final = 5
QUIETEST: Final = 0.3
"""Of a faint defect: less than a third of what it would change is lost in the noise of most cameras."""
_MARKED: Final = 0.2

Combination = tuple[str, str]
"""A surface kind and a defect kind."""


@dataclass(frozen=True)
class Sheet:
    """A picture of a piece of surface.

    Attributes:
        frame: (s, s, 3) uint8 BGR.
        marks: (s / 4, s / 4) uint16.
        recipe: Which surface it is.
    """

    frame: Frame
    marks: Marks
    recipe: int


def kind_of(recipe: int) -> str:
    """Return the kind of a recipe; kinds take turns."""
    return KIND_NAMES[recipe % len(KIND_NAMES)]


def draw_sheet(
    recipe: int,
    piece: int,
    *,
    seed: int = 0,
    size_px: int = SHEET_PX,
    without: Collection[Combination] = (),
    faint: float = 0.0,
) -> Sheet:
    """Return a piece of a surface.

    About 20 ms at 256 px on one core.

    Args:
        recipe: Which surface, 0 or more.
        piece: Which piece of it, 0 or more.
        seed: Another seed has other surfaces behind the same numbers.
        size_px: Both sides, a multiple of `MARK_PX`.
        without: Defect kinds that a surface kind never shows.
        faint: Share of the defects that are faded, to anything from `QUIETEST` of what they would be; nothing else
            about the picture changes.

    >>> sheet = draw_sheet(3, 0, size_px=64)
    >>> sheet.frame.shape, sheet.marks.shape
    ((64, 64, 3), (16, 16))
    """
    if recipe < 0 or piece < 0 or size_px < 8 * MARK_PX or size_px % MARK_PX:
        raise ValueError(f"no sheet {recipe}, {piece} of {size_px} px")
    kind = kind_of(recipe)
    about = Stream("recipe", seed, recipe)
    unit = math.exp(about.between(math.log(SMALLEST_UNIT_PX), math.log(LARGEST_UNIT_PX)))
    part = TEXTURES[kind](Stream("texture", seed, recipe, again=("piece", seed, recipe, piece)), size_px, unit)
    part.anywhere = True
    part.busy *= about.between(0.6, 1.3)
    rng, loud = Stream("sheet", seed, recipe, piece), Stream("loudness", seed, recipe, piece)
    marks = np.zeros((size_px // MARK_PX, size_px // MARK_PX), np.uint16)
    for index in _defects(rng, kind, without):
        part.mask[:] = 0
        loudness = loud.between(QUIETEST, 1.0) if loud.chance(faint) else 1.0
        worked_in(rng, part, DEFECT_NAMES[index], loudness)
        small = cv2.resize(part.mask, marks.shape[::-1], interpolation=cv2.INTER_AREA)
        marks |= np.where(np.asarray(small) > _MARKED, np.uint16(1 << index), np.uint16(0))
    blemish(rng, part)
    return Sheet(_seen(rng, part, negative=about.chance(0.1)), marks, recipe)


def _defects(rng: Stream, kind: str, without: Collection[Combination]) -> list[int]:
    """Return which defects a piece has; a fifth of the pieces are good."""
    if rng.chance(0.2):
        return []
    allowed = [i for i, name in enumerate(DEFECT_NAMES) if (kind, name) not in without]
    return [rng.pick(allowed) for _ in range(rng.count(1, MOST_DEFECTS))] if allowed else []


def _seen(rng: Stream, part: Part, *, negative: bool) -> Frame:
    """Return what one of many cameras makes of a part."""
    seen = lit(rng, part)
    if rng.chance(0.5):
        seen = np.asarray(blur(seen, rng.between(0.3, 1.5)), np.float32)
    seen *= rng.between(0.25, 0.7) / max(*cv2.mean(seen), 1e-3)
    gamma = math.exp(rng.between(-0.4, 0.4))
    seen = np.asarray(cv2.pow(np.maximum(seen, 0, out=seen), gamma), np.float32)
    seen += rng.normal(*seen.shape) * math.exp(rng.between(math.log(0.003), math.log(0.04)))
    if negative:  # light from below, or a sensor that shows depth: dark is bright
        np.subtract(1, seen, out=seen)
    return np.asarray(cv2.convertScaleAbs(np.maximum(seen, 0, out=seen), alpha=255), np.uint8)
