"""A part as maps of relief, reflectance and gloss, and the random streams and shapes that they are made of.

Lengths are in pixels of the part; textures and defects give them in units, of which `FRAME_UNITS` span a frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
"""(s, s) float32: one value per pixel of a part."""
Indices = npt.NDArray[np.int32]
"""(s, s) int32."""
Maps = tuple[Field, npt.NDArray[np.float32], Field]
"""Relief (s, s), reflectance (3, s, s) and gloss (s, s)."""
Colour = npt.NDArray[np.float32]
"""(3, 1, 1) float32: blue, green, red reflectance, so that it spreads over a (3, s, s) map."""
_T = TypeVar("_T")

FRAME_UNITS = 120
"""A frame is this many units wide, whatever its pixels: a larger frame shows the same, sharper."""


def bgr(blue: float, green: float, red: float) -> Colour:
    """Return a reflectance."""
    return np.array((blue, green, red), np.float32)[:, None, None]


def _generator(key: Sequence[int | str]) -> np.random.Generator:
    words = [int.from_bytes(hashlib.sha256(str(word).encode()).digest()[:8], "little") for word in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


class Stream:
    """The random numbers of whatever `key` names: nothing drawn elsewhere changes them.

    Single numbers decide what something is (`between`, `count`, `chance`, `pick`), fields how it lies there this
    time (`noise`, `lines`, `cells`, `uniform`, `normal`, `slow`). With `again`, fields come from that key instead:
    another piece of the same surface.
    """

    def __init__(self, *key: int | str, again: Sequence[int | str] = ()) -> None:
        self._one = _generator(key)
        self._rng = _generator(again) if again else self._one

    def between(self, low: float, high: float) -> float:
        """Return a number from [low, high)."""
        return low + (high - low) * float(self._one.random())

    def count(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return int(self._one.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True as often as told."""
        return float(self._one.random()) < probability

    def sign(self) -> int:
        """Return 1 or -1."""
        return 1 if self.chance(0.5) else -1

    def pick(self, among: Sequence[_T]) -> _T:
        """Return one of a few."""
        return among[self.count(0, len(among) - 1)]

    def uniform(self, *shape: int) -> Field:
        """Return numbers from [0, 1)."""
        return self._rng.random(shape, dtype=np.float32)

    def normal(self, *shape: int) -> Field:
        """Return numbers of mean 0 and deviation 1."""
        return self._rng.standard_normal(shape, dtype=np.float32)

    def noise(self, size: int, grain: float) -> Field:
        """Return noise without direction, mean 0, deviation near 1, with features of `grain` pixels."""
        # Blurred white noise, since enlarging a coarse grid would show the grid. Coarse grain is blurred small.
        shrink = max(1.0, grain / 4)
        sigma = 0.45 * grain / shrink
        cells = math.ceil(size / shrink) + 2
        white = (self.uniform(cells, cells) - 0.5) * (math.sqrt(12) * max(1.0, 2 * math.sqrt(math.pi) * sigma))
        soft = blur(white, sigma)
        if shrink > 1:
            soft = _as_field(cv2.resize(soft, (size + 8, size + 8), interpolation=cv2.INTER_CUBIC))
        return soft[:size, :size]

    def lines(self, size: int, along: float, across: float, angle: float) -> Field:
        """Return noise drawn out in one direction, mean 0, deviation near 1: features of along x across pixels."""
        rows, columns = math.ceil(1.45 * size / across) + 4, math.ceil(1.45 * size / along) + 4
        grid = (self.uniform(rows, columns) - 0.5) * 4.5
        cos, sin = math.cos(angle), math.sin(angle)
        middle = size / 2
        matrix = np.array(
            [
                [cos / along, sin / along, columns / 2 - middle * (cos + sin) / along],
                [-sin / across, cos / across, rows / 2 - middle * (cos - sin) / across],
            ]
        )
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return _as_field(cv2.warpAffine(grid, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_WRAP))

    def cells(self, size: int, pitch: float, slim: float, angle: float) -> tuple[Field, Indices]:
        """Return cells about points strewn `pitch` pixels apart: distance to the cell's border, and its number.

        Distances are in units of half a pitch, so that 0 is the border and about 1 the middle. Cells are `slim`
        times as long in one direction as in the other.
        """
        side = math.ceil(1.45 * size / pitch) + 3
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), 2).reshape(-1, 2)
        stretch = (pitch * math.sqrt(slim), pitch / math.sqrt(slim))
        points = (grid + 0.85 * self.uniform(len(grid), 2) - 0.42 - side / 2) * stretch
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = (points @ np.array([[cos, sin], [-sin, cos]])).T + size / 2
        seeds = np.full((size, size), 255, np.uint8)
        inside = (x >= 0) & (y >= 0) & (x < size) & (y < size)
        seeds[y[inside].astype(int), x[inside].astype(int)] = 0
        _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
        cell: Indices = np.asarray(labels, np.int32)
        border = np.full((size, size), 255, np.uint8)
        border[:, 1:][cell[:, 1:] != cell[:, :-1]] = 0
        border[1:][cell[1:] != cell[:-1]] = 0
        return _as_field(cv2.distanceTransform(border, cv2.DIST_L2, 3)) * np.float32(2 / pitch), cell

    def slow(self, size: int, cells: int) -> Field:
        """Return noise in about [-1, 1] that changes `cells` times from side to side."""
        grid = self.uniform(cells + 1, cells + 1) * 2 - 1
        return _as_field(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC))


def _as_field(values: object) -> Field:
    return np.asarray(values, np.float32)  # OpenCV's types do not say what it returns; this copies nothing


def blur(field: Field, sigma: float) -> Field:
    """Return the field blurred by a Gaussian of `sigma` pixels."""
    return _as_field(cv2.GaussianBlur(field, (0, 0), sigma))


def rise(field: Field, low: float, high: float) -> Field:
    """Return 0 where the field is below `low`, 1 above `high`, smooth between."""
    t = np.clip((field - low) * (1 / (high - low)), 0, 1)
    return _as_field(t * t * (3 - 2 * t))


def axes(size: int, angle: float, centre: tuple[float, float] | None = None) -> tuple[Field, Field]:
    """Return each pixel's place along and across a direction, in pixels from the centre."""
    cx, cy = centre or (size / 2, size / 2)
    x = np.arange(size, dtype=np.float32)[None, :] - cx
    y = np.arange(size, dtype=np.float32)[:, None] - cy
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


@dataclass
class Part:
    """What a piece of surface is, as maps of s x s pixels; defects are worked into it in place.

    Attributes:
        height: (s, s) relief in pixels, towards the camera.
        colour: (3, s, s) diffuse reflectance, about [0, 1]. Planes, since numpy is several times faster on them
            than on pixels of three.
        gloss: (s, s) mirror-like reflectance.
        mask: (s, s) how much of a pixel is defect, [0, 1].
        lay: Direction of the texture in radians.
        busy: How loud the texture is; defects are drawn that much louder.
        unit: Pixels per unit of length.
        anywhere: Defects may lie anywhere, not only where every photograph of the part shows them.
    """

    height: Field
    colour: npt.NDArray[np.float32]
    gloss: Field
    mask: Field
    lay: float
    busy: float
    unit: float
    anywhere: bool = False

    @property
    def size(self) -> int:
        """Pixels of one side."""
        return int(self.height.shape[0])

    def tint(self, where: Field, colour: Colour) -> None:
        """Blend the reflectance to `colour` by `where` in [0, 1]."""
        self.colour += where * (colour - self.colour)

    def darken(self, where: Field, by: Colour | float) -> None:
        """Multiply the reflectance by `by` where `where` is 1."""
        self.colour *= 1 - where * (1 - by)

    def mark(self, where: Field) -> None:
        """Add to the defect's mask."""
        np.maximum(self.mask, where, out=self.mask)

    def maps(self) -> Maps:
        """Return copies of relief, reflectance and gloss as they are now."""
        return self.height.copy(), self.colour.copy(), self.gloss.copy()

    def fade(self, before: Maps, loudness: float) -> None:
        """Take back what was worked in since `before`, but for a share of `loudness`; the mask stays."""
        for now, then in zip((self.height, self.colour, self.gloss), before, strict=True):
            now[...] = then + loudness * (now - then)

    def spot(self, rng: Stream, spread: float) -> tuple[float, float]:
        """Return a place (x, y) that every photograph shows, at most `spread` of a side from the middle."""
        spread = 0.47 if self.anywhere else spread
        x, y = (0.5 + rng.between(-spread, spread) for _ in range(2))
        return x * self.size, y * self.size

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], angle: float) -> Field:
        """Return the distance from a centre in units of two radii: 1 on the ellipse."""
        u, v = axes(self.size, angle, centre)
        u *= 1 / radii[0]
        v *= 1 / radii[1]
        return _as_field(np.sqrt(u * u + v * v))


def plain(size: int, unit: float, colour: Colour, *, gloss: float, lay: float, busy: float) -> Part:
    """Return a flat part of one colour."""
    height, shine, mask = np.zeros((3, size, size), np.float32)
    shine += gloss
    base = np.empty((3, size, size), np.float32)
    base[:] = colour
    return Part(height, base, shine, mask, lay, busy, unit)
