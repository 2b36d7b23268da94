"""What a training step is shown of the drawn sheets, as tensors: made by the processor, or by the GPU itself.

On a processor OpenCV cuts the crops and tables change their light (`export.crops`), four times as fast there as
torch does. A GPU would wait for that: a step of 384 crops takes it some milliseconds, and one core 100 to cut
them. So there the sheets lie in its memory and the same is done in torch for a whole step at once. The two draw
their views by the same rule from other random numbers; what they make of one view differs by rounding only.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from export.crops import (
    BRIGHTEST,
    DIMMEST,
    HIDDEN,
    LARGEST_SCALE,
    MOST_NOISE,
    SHOWN,
    SHOWN_OF_CROP,
    SMALLEST_SCALE,
    STRETCH,
    Crops,
    Pool,
    augmented,
)
from export.sheet_source import Drawer, Source
from sdk.surfaces.sheets import DEFECT_NAMES, MARK_PX

GREY: Final = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey (ITU-R BT.601), as OpenCV has them."""


class Batch(NamedTuple):
    """One step's crops.

    Attributes:
        pixels: (n, 3, s, s) float32 as the network wants them, channels last.
        recipes: (n,) int64.
        shown, counted: (n, defects) float32, as in `export.crops.Crops`.
        cells: (n, s / 4, s / 4) int32, likewise.
    """

    pixels: torch.Tensor
    recipes: torch.Tensor
    shown: torch.Tensor
    counted: torch.Tensor
    cells: torch.Tensor


class Looks(Protocol):
    """Sheets, and crops of them: the same for the same seed and step, on the same kind of device."""

    def missing(self, step: int) -> range:
        """Return the numbers of the sheets to draw before this step."""

    def draw(self, number: int) -> None:
        """Put a sheet into the place of the oldest."""

    def batch(self, step: int, count: int, side_px: int) -> Batch:
        """Return what a step trains on."""

    def again(self, key: int, count: int, side_px: int) -> Batch:
        """Return crops of the sheets at hand, others for every key."""

    def close(self) -> None:
        """End the drawing processes."""


def looks(source: Source, processes: int, device: torch.device, mean: float, std: float) -> Looks:
    """Return what suits a device.

    Args:
        source: Which sheets.
        processes: That draw ahead.
        device: Of the network.
        mean, std: What its input is shifted and divided by, on the scale of 0 to 1.
    """
    kind = OnProcessor if device.type == "cpu" else OnGpu
    return kind(source, processes, device, mean, std)


class OnProcessor:
    """Crops cut by OpenCV; arguments as of `looks`."""

    def __init__(self, source: Source, processes: int, device: torch.device, mean: float, std: float) -> None:
        self._pool = Pool(source, processes)
        self._device, self._mean, self._std = device, mean, std

    def close(self) -> None:
        self._pool.close()

    def missing(self, step: int) -> range:
        return self._pool.missing(step)

    def draw(self, number: int) -> None:
        self._pool.draw(number)

    def batch(self, step: int, count: int, side_px: int) -> Batch:
        return self._batch(self._pool.crops(step, count, side_px), step)

    def again(self, key: int, count: int, side_px: int) -> Batch:
        return self._batch(self._pool.again(key, count, side_px), key)

    def _batch(self, crops: Crops, key: int) -> Batch:
        pixels = torch.from_numpy(augmented(crops, self._mean, self._std, self._pool.source.seed, key))
        return Batch(
            pixels.to(self._device, memory_format=torch.channels_last),
            torch.from_numpy(crops.recipes).to(self._device),
            torch.from_numpy(crops.shown).to(self._device),
            torch.from_numpy(crops.counted).to(self._device),
            torch.from_numpy(crops.cells.astype(np.int32)).to(self._device),
        )


class Views(NamedTuple):
    """Where crops lie on their sheets.

    Attributes:
        matrices: (n, 2, 3) float32, from a crop's pixels to the sheet's.
        scales: (n,) float32, pixels of the sheet per pixel of the crop.
    """

    matrices: torch.Tensor
    scales: torch.Tensor


class OnGpu:
    """Sheets in the device's memory, 200 kB each, and crops cut there; arguments as of `looks`."""

    def __init__(self, source: Source, processes: int, device: torch.device, mean: float, std: float) -> None:
        self.source, self._device, self._mean, self._std = source, device, mean, std
        side, marks = source.size_px, source.size_px // MARK_PX
        self._frames = torch.empty((source.pool, 3, side, side), dtype=torch.uint8, device=device)
        self._marks = torch.empty((source.pool, marks, marks), dtype=torch.int32, device=device)
        self._recipes = torch.empty(source.pool, dtype=torch.int64, device=device)
        self._drawer = Drawer(source, processes)

    def close(self) -> None:
        self._drawer.close()

    def missing(self, step: int) -> range:
        return self._drawer.missing(step)

    def draw(self, number: int) -> None:
        sheet = self._drawer.sheet(number)
        place = number % self.source.pool
        rgb = torch.from_numpy(np.ascontiguousarray(sheet.frame[..., ::-1].transpose(2, 0, 1)))
        self._frames[place].copy_(rgb)
        self._marks[place].copy_(torch.from_numpy(sheet.marks.astype(np.int32)))
        self._recipes[place] = sheet.recipe

    def batch(self, step: int, count: int, side_px: int) -> Batch:
        for number in self.missing(step):
            self.draw(number)
        return self.again(step, count, side_px)

    @torch.no_grad()
    def again(self, key: int, count: int, side_px: int) -> Batch:
        rng = np.random.default_rng([self.source.seed, 1, key])
        places = torch.from_numpy(rng.integers(0, self.source.pool, count)).to(self._device)
        marks = self._marks[places]
        views = views_of(rng, self.source, marks, side_px)
        shown, counted = visible(marks, views, side_px)
        pixels = warped(self._frames[places], views.matrices, side_px)
        light = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        pixels = relit(pixels, rng, light, self._mean, self._std)
        cells = cells_of(marks, views.matrices, side_px)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return Batch(pixels, self._recipes[places], shown, counted, cells)


def views_of(rng: np.random.Generator, source: Source, marks: torch.Tensor, side_px: int) -> Views:
    """Return views: place, size, turn and mirror of each drawn at random, some aimed at a defect.

    Args:
        rng: Moved on by as many numbers for any marks.
        source: Says how many are aimed.
        marks: (n, m, m) int32, of each view's sheet.
        side_px: Of the crops.
    """
    n, sheet_px = len(marks), source.size_px
    drawn = rng.random((12, n)).astype(np.float32)
    size, stretched, still, quarter, turned, mirrored, right, down, aim, which, aside, below = torch.from_numpy(
        drawn
    ).to(marks.device)
    reach = min(LARGEST_SCALE, 1.15 * sheet_px / side_px)
    low = math.log(min(SMALLEST_SCALE, reach))
    scale = torch.exp(low + (math.log(reach) - low) * size)
    stretch = torch.exp(STRETCH * (2 * stretched - 1))
    angle = torch.where(still < 0.5, (4 * quarter).floor() * (math.pi / 2), 2 * math.pi * turned)
    mirror = torch.where(mirrored < 0.5, 1.0, -1.0)
    cos, sin = angle.cos(), angle.sin()
    across, along = scale * stretch * mirror, scale / stretch
    turn = torch.stack([cos * across, -sin * along, sin * across, cos * along], 1).view(n, 2, 2)
    room = ((sheet_px - scale * side_px) / 2).clamp(min=0)[:, None]
    middle = sheet_px / 2 + room * (2 * torch.stack([right, down], 1) - 1)
    # The `which`-th of the marked squares, counted row by row; a sheet without marks counts to none.
    counts = (marks != 0).flatten(1).cumsum(1)
    one = (counts <= (which * counts[:, -1]).floor()[:, None]).sum(1).clamp(max=counts.shape[1] - 1)
    squares = torch.stack([one % marks.shape[2], one // marks.shape[2]], 1)
    there = MARK_PX * squares + (scale * side_px)[:, None] * (0.6 * torch.stack([aside, below], 1) - 0.3)
    there = torch.minimum(torch.maximum(there, sheet_px / 2 - room), sheet_px / 2 + room)
    middle = torch.where(((aim < source.aimed) & (counts[:, -1] > 0))[:, None], there, middle)
    return Views(torch.cat([turn, (middle - turn.sum(2) * (side_px / 2))[..., None]], 2), scale)


def warped(frames: torch.Tensor, matrices: torch.Tensor, side_px: int) -> torch.Tensor:
    """Return crops (n, 3, s, s) float32 of frames (n, 3, h, h) uint8: linear between pixels, mirrored at edges."""
    places = _places(matrices, side_px) * (2 / (frames.shape[2] - 1)) - 1
    return functional.grid_sample(frames.float(), places, padding_mode="reflection", align_corners=True)


def _places(matrices: torch.Tensor, side: int) -> torch.Tensor:
    """Return where pixels of crops lie, (n, s, s, 2): x, y."""
    steps = torch.arange(side, dtype=matrices.dtype, device=matrices.device)
    pixels = torch.stack([steps.expand(side, side), steps[:, None].expand(side, side)], 2)
    return torch.einsum("hwj,nij->nhwi", pixels, matrices[:, :, :2]) + matrices[:, None, None, :, 2]


def _nearest(matrices: torch.Tensor, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return columns and rows of the nearest marks, (n, c, c) each; outside of the sheet too."""
    found = (_places(matrices, cells) + 0.5).floor().long()
    return found[..., 0], found[..., 1]


def cells_of(marks: torch.Tensor, matrices: torch.Tensor, side_px: int) -> torch.Tensor:
    """Return where the defects are in crops, (n, s / 4, s / 4) int32; mirrored at edges as pictures are."""
    middle = (MARK_PX - 1) / 2  # of a mark's square, from its first pixel
    shift = (matrices[:, :, :2].sum(2) * middle + matrices[:, :, 2] - middle) / MARK_PX
    coarse = torch.cat([matrices[:, :, :2], shift[..., None]], 2)
    far = marks.shape[2] - 1
    columns, rows = (far - (far - at.abs() % (2 * far)).abs() for at in _nearest(coarse, side_px // MARK_PX))
    return _picked(marks, rows, columns)


def _picked(marks: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    flat = (rows * marks.shape[2] + columns).flatten(1)
    return marks.flatten(1).gather(1, flat).view(rows.shape)


def visible(marks: torch.Tensor, views: Views, side_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which defects crops show, and which count, (n, defects) float32 each."""
    cells, far = side_px // MARK_PX, marks.shape[2] - 1
    coarse = views.matrices.clone()
    coarse[:, :, 2] /= MARK_PX
    columns, rows = _nearest(coarse, cells)
    inside = (columns >= 0) & (columns <= far) & (rows >= 0) & (rows <= far)
    seen = torch.where(inside, _picked(marks, rows.clamp(0, far), columns.clamp(0, far)), 0)
    here, in_all = _count(seen), _count(marks)
    share = here * views.scales[:, None] ** 2 / in_all.clamp(min=1)
    shown = (share >= SHOWN) | (here >= SHOWN_OF_CROP * cells * cells)
    return shown.float(), (shown | (share <= HIDDEN)).float()


def _count(marks: torch.Tensor) -> torch.Tensor:
    """Return how many marks of each defect there are, (n, defects) float32."""
    kinds = torch.arange(len(DEFECT_NAMES), dtype=marks.dtype, device=marks.device)[:, None, None]
    return (marks[:, None] >> kinds & 1).float().sum((2, 3))


def relit(
    images: torch.Tensor, rng: np.random.Generator, noise: torch.Generator, mean: float, std: float
) -> torch.Tensor:
    """Return crops as other cameras see them, as `export.crops.augmented` does.

    Args:
        images: (n, 3, s, s) float32, red first, 0 to 255.
        rng: Of what is the same for a whole crop.
        noise: Of what is not.
        mean, std: Of the network's input.
    """
    n = len(images)
    drawn = torch.from_numpy(rng.random((9, n)).astype(np.float32)).to(images.device)[..., None, None, None]
    negative, contrasts, brightness, greys, noisy, strength = drawn[:6].unbind()
    gains = 0.85 + 0.3 * drawn[6:].squeeze(-1).squeeze(-1).squeeze(-1).T[..., None, None]
    levels = images / 255
    middle = levels.mean((1, 2, 3), keepdim=True)
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    grey = greys < 0.5
    seen = torch.where(grey, (levels * weights).sum(1, keepdim=True), levels) * torch.where(grey, 1.0, gains)
    contrast = torch.exp(DIMMEST + (BRIGHTEST - DIMMEST) * contrasts) * torch.where(negative < 0.1, -1.0, 1.0)
    bright = (middle + 0.3 * brightness - 0.15).clamp(0.12, 0.88)
    lit = (contrast * (seen - middle) + bright).clamp(0, 1)
    own = torch.randn(lit.shape, generator=noise, device=images.device)
    own = torch.where(grey, own[:, :1], own)
    deviation = torch.where(noisy < 0.3, MOST_NOISE * strength, 0.0)
    return (lit + deviation * own).sub(mean).div(std)
