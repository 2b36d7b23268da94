"""Crops of drawn sheets to train on: a pool of sheets that is renewed step by step, and what a crop shows.

Rules this module keeps:

- What a step sees follows from the seed and the step's number alone: a run that was killed goes on as if it had
  not been, whatever the number of processes that draw.
- A crop is labelled by what is in it: a defect that was cut away does not count, one that was cut through is left
  out of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from export.sheet_source import Drawer, Source
from sdk.surfaces.sheets import DEFECT_NAMES, MARK_PX

SMALLEST_SCALE: Final = 0.55
LARGEST_SCALE: Final = 1.8
"""Pixels of the sheet per pixel of the crop."""
SHOWN: Final = 0.3
HIDDEN: Final = 0.02
"""Of a defect's marks on the sheet: from the one it is shown, up to the other it is not; between, neither."""
SHOWN_OF_CROP: Final = 0.03
"""Of the crop: so much of a large defect is enough."""
STRETCH: Final = 0.15
"""Logarithm of how much wider and lower a crop is shown at most, or the other way."""
DIMMEST: Final = -0.7
BRIGHTEST: Final = 0.5
"""Logarithms of the least and the largest contrast."""
MOST_NOISE: Final = 0.05
"""Deviation, of the range from black to white."""


@dataclass(frozen=True)
class Crops:
    """One step's images and what they show.

    Attributes:
        images: (n, s, s, 3) uint8 BGR.
        recipes: (n,) int64.
        shown: (n, defects) float32: 1 where the defect kind is shown.
        counted: (n, defects) float32: 0 where it is cut through.
        cells: (n, s / 4, s / 4) uint16: where which defect kind is, as in `sdk.surfaces.sheets.Marks`.
    """

    images: npt.NDArray[np.uint8]
    recipes: npt.NDArray[np.int64]
    shown: npt.NDArray[np.float32]
    counted: npt.NDArray[np.float32]
    cells: npt.NDArray[np.uint16]


class Pool:
    """The sheets that crops are taken from.

    Args:
        source: Which.
        processes: That draw ahead; 0 draws in this one when a step needs it.
    """

    def __init__(self, source: Source, processes: int = 0) -> None:
        self.source = source
        side, marks = source.size_px, source.size_px // MARK_PX
        self._frames = np.empty((source.pool, side, side, 3), np.uint8)
        self._marks = np.empty((source.pool, marks, marks), np.uint16)
        self._recipes = np.empty(source.pool, np.int64)
        self._drawer = Drawer(source, processes)

    def close(self) -> None:
        """End the drawing processes."""
        self._drawer.close()

    def missing(self, step: int) -> range:
        """Return the numbers of the sheets to draw before this step."""
        return self._drawer.missing(step)

    def draw(self, number: int) -> None:
        """Put a sheet into the place of the oldest."""
        sheet = self._drawer.sheet(number)
        place = number % self.source.pool
        self._frames[place], self._marks[place], self._recipes[place] = sheet.frame, sheet.marks, sheet.recipe

    def crops(self, step: int, count: int, side_px: int) -> Crops:
        """Return what a step trains on."""
        for number in self.missing(step):
            self.draw(number)
        return self.again(step, count, side_px)

    def again(self, key: int, count: int, side_px: int) -> Crops:
        """Return crops of the sheets at hand, others for every key."""
        rng = np.random.default_rng([self.source.seed, 1, key])
        images = np.empty((count, side_px, side_px, 3), np.uint8)
        shown = np.empty((count, len(DEFECT_NAMES)), np.float32)
        counted = np.empty_like(shown)
        cells = np.empty((count, side_px // MARK_PX, side_px // MARK_PX), np.uint16)
        places = rng.integers(0, self.source.pool, count)
        for i, place in enumerate(places):
            matrix, scale = _view(rng, self.source, self._marks[place], side_px)
            cv2.warpAffine(
                self._frames[place], matrix, (side_px, side_px), dst=images[i],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101,
            )  # fmt: skip
            shown[i], counted[i] = _visible(self._marks[place], matrix, scale, side_px)
            cells[i] = _cells(self._marks[place], matrix, side_px)
        return Crops(images, self._recipes[places], shown, counted, cells)


def _view(
    rng: np.random.Generator, source: Source, marks: npt.NDArray[np.uint16], side_px: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the way from a crop's pixels to the sheet's, (2, 3), and its scale: place, size, turn, mirror."""
    sheet_px = source.size_px
    reach = min(LARGEST_SCALE, 1.15 * sheet_px / side_px)
    scale = math.exp(rng.uniform(math.log(min(SMALLEST_SCALE, reach)), math.log(reach)))
    stretch = math.exp(rng.uniform(-STRETCH, STRETCH))
    angle = rng.integers(0, 4) * math.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 2 * math.pi)
    mirror = 1 if rng.random() < 0.5 else -1
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * stretch * mirror, scale / stretch])
    room = max(0.0, (sheet_px - scale * side_px) / 2)
    middle = sheet_px / 2 + rng.uniform(-room, room, 2)
    if source.aimed and rng.random() < source.aimed and marks.any():
        rows, columns = np.nonzero(marks)
        one = rng.integers(len(rows))
        there = MARK_PX * np.array([columns[one], rows[one]]) + scale * side_px * rng.uniform(-0.3, 0.3, 2)
        middle = np.clip(there, sheet_px / 2 - room, sheet_px / 2 + room)
    return np.column_stack([turn, middle - turn @ np.full(2, side_px / 2)]), scale


def _visible(
    marks: npt.NDArray[np.uint16], matrix: npt.NDArray[np.float64], scale: float, side_px: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return which defects a crop shows, and which count."""
    coarse = matrix.copy()
    coarse[:, 2] /= MARK_PX
    cells = side_px // MARK_PX
    seen = cv2.warpAffine(
        marks,
        coarse,
        (cells, cells),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
    here, in_all = _count(np.asarray(seen, np.uint16)), _count(marks)
    share = here * scale * scale / np.maximum(in_all, 1)
    shown = (share >= SHOWN) | (here >= SHOWN_OF_CROP * cells * cells)
    return shown.astype(np.float32), (shown | (share <= HIDDEN)).astype(np.float32)


def _cells(marks: npt.NDArray[np.uint16], matrix: npt.NDArray[np.float64], side_px: int) -> npt.NDArray[np.uint16]:
    """Return where the defects are in a crop: mirrored at the sheet's edge as the picture is."""
    middle = (MARK_PX - 1) / 2  # of a mark's square, from its first pixel
    turn = matrix[:, :2]
    coarse = np.column_stack([turn, (turn @ np.full(2, middle) + matrix[:, 2] - middle) / MARK_PX])
    cells = side_px // MARK_PX
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(marks, coarse, (cells, cells), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(seen, np.uint16)


def _count(marks: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    """Return how many marks each defect has."""
    values = marks[marks != 0]
    return np.array([np.count_nonzero(values & np.uint16(1 << i)) for i in range(len(DEFECT_NAMES))], np.float64)


def augmented(crops: Crops, mean: float, std: float, seed: int, step: int) -> npt.NDArray[np.float32]:
    """Return the images (n, 3, s, s) float32, red first, as other cameras see them: colour, contrast, noise.

    What differs from `export.augment`: nothing here is a real part whose defects must survive, so half the images
    lose their colour, contrast halves or doubles, and some turn negative. Everything but noise is a table look-up.

    Args:
        crops: Left as they are.
        mean, std: What the network's input is shifted and divided by, on the scale of 0 to 1.
        seed, step: The same two give the same images.
    """
    rng = np.random.default_rng([seed, 2, step])
    n, side = len(crops.images), crops.images.shape[1]
    out = np.empty((n, 3, side, side), np.float32)
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    noise = rng.standard_normal((2 * side, 2 * side), dtype=np.float32) * np.float32(1 / std)
    for image, planes in zip(crops.images, out, strict=True):
        middle = float(np.mean(cv2.mean(image)[:3])) / 255
        sign = -1.0 if rng.random() < 0.1 else 1.0
        contrast = sign * math.exp(rng.uniform(DIMMEST, BRIGHTEST))
        bright = float(np.clip(middle + rng.uniform(-0.15, 0.15), 0.12, 0.88))
        grey = rng.random() < 0.5
        gains = [1.0] if grey else rng.uniform(0.85, 1.15, 3).tolist()
        seen = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)] if grey else [image[..., 2 - i] for i in range(3)]
        for plane, gain, own in zip(planes, gains, seen, strict=False):
            table = np.clip(contrast * (gain * levels - middle) + bright, 0, 1)
            np.take((table - mean) / np.float32(std), own, out=plane)
        if rng.random() < 0.3:
            top, left = rng.integers(0, side + 1, 2)
            planes[: len(gains)] += rng.uniform(0, MOST_NOISE) * noise[top : top + side, left : left + side]
        if grey:
            planes[1:] = planes[0]
    return out
