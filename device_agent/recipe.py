"""What of a camera's frame is inspected, and in which tiles: region of interest, mask, tiles. Pixels to pixels.

A tile is a sample: it is decided, stored, asked about and labelled by itself, and what it shows is all that the
backbone sees of it. Rules kept here:

- A large frame is never squeezed into the backbone's input: without a tile size in the settings, a region that
  would shrink by more than `MAX_SHRINK` is cut into tiles, as large as the pictures that the release learned from.
- Tiles cover the whole region and overlap, so that a defect on a border lies whole in one of them.
- A frame that is one whole tile stays as it was delivered, byte for byte, so its digest is the file's.

Which tile makes a part bad is `parts`'s business.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from device_agent.camera import Box, Shot
from device_agent.config import RecipeSettings
from sdk.errors import BadImages, ConfigError
from sdk.images import read
from sdk.preprocess import Frame

MAX_SHRINK: Final = 4.0
"""Frames of up to four times the input's sides stay whole: 896 px at 224, so VGA is squeezed as ever and HD is
not. What is 8 pixels wide there is 2 wide for the backbone, about the least that its first layer can see."""
MASK_GREY: Final = 124
"""What a masked pixel becomes: the mean of the usual normalisation, so that it is nearly zero for the backbone."""
MASK_THRESHOLD: Final = 128
"""Brighter pixels of a mask are inspected."""
MAX_TILES: Final = 1024
"""More tiles of one frame are surely a mistake in the settings."""

_log = logging.getLogger(__name__)

_P = TypeVar("_P", np.uint8, np.bool_)


class Recipe:
    """How one camera's frames are cut.

    Args:
        settings: The camera's `[camera.recipe]` table.

    Raises:
        ConfigError: the mask is no image, or black everywhere.
    """

    def __init__(self, settings: RecipeSettings | None = None) -> None:
        self._settings = settings or RecipeSettings()
        self._mask = None if self._settings.mask is None else _read_mask(self._settings.mask)
        self._plan: tuple[object, list[Box], npt.NDArray[np.bool_] | None] | None = None

    def tiles(
        self, shot: Shot, input_px: tuple[int, int], picture_px: tuple[int, int] | None = None
    ) -> list[Shot]:
        """Return the tiles of a frame, left to right and top to bottom; the shot itself where it is one whole
        tile.

        Args:
            shot: As the camera gave it.
            input_px: Height and width of the backbone's input.
            picture_px: The same of the pictures that it learned from; None where the release does not say.

        Raises:
            ConfigError: region or mask does not fit this frame.
        """
        height, width = shot.frame.shape[:2]
        boxes, hidden = self._planned((height, width), input_px, picture_px)
        if hidden is None and boxes == [Box(0, 0, width, height)]:
            return [shot]
        frame = shot.frame
        if hidden is not None:
            frame = frame.copy()
            frame[hidden] = MASK_GREY
        name = shot.source
        return [
            replace(
                shot,
                frame=_cut(frame, box),
                source=f"{name}, tile {number} of {len(boxes)}" if len(boxes) > 1 else name,
                delivered=None,
                box=box,
                tile=number,
            )
            for number, box in enumerate(boxes, 1)
        ]

    def _planned(
        self, frame_px: tuple[int, int], input_px: tuple[int, int], picture_px: tuple[int, int] | None
    ) -> tuple[list[Box], npt.NDArray[np.bool_] | None]:
        """Return boxes and hidden pixels for frames, inputs and pictures of these sizes, worked out once."""
        key = frame_px, input_px, picture_px
        if self._plan is None or self._plan[0] != key:
            height, width = frame_px
            region = self._region(width, height)
            hidden = self._hidden(width, height)
            boxes = tile_boxes(region, self._tile(region, input_px, picture_px), self._settings.overlap)
            if hidden is not None:
                boxes = [box for box in boxes if not _cut(hidden, box).all()]
            if not boxes:
                raise ConfigError("camera.recipe: the mask hides the whole region", hint="White is inspected.")
            if len(boxes) > 1:
                size = f"{boxes[0].width} x {boxes[0].height}"
                _log.info("frames of %d x %d are cut into %d tiles of %s", width, height, len(boxes), size)
            self._plan = key, boxes, hidden
        return self._plan[1], self._plan[2]

    def check(self, frame_px: tuple[int, int]) -> None:
        """Check that region and mask fit frames of this height and width, whatever the tiles.

        Raises:
            ConfigError: they do not.
        """
        height, width = frame_px
        region, hidden = self._region(width, height), self._hidden(width, height)
        if hidden is not None and _cut(hidden, region).all():
            raise ConfigError("camera.recipe: the mask hides the whole region", hint="White is inspected.")

    def _hidden(self, width: int, height: int) -> npt.NDArray[np.bool_] | None:
        return None if self._mask is None else _hidden(self._mask, width, height)

    def _region(self, width: int, height: int) -> Box:
        if self._settings.region is None:
            return Box(0, 0, width, height)
        region = Box(*self._settings.region)
        if region.x + region.width > width or region.y + region.height > height:
            raise ConfigError(
                f"camera.recipe.region {list(region)} does not lie in a frame of {width} x {height} pixels",
                hint="region = [x, y, width, height] in the camera's pixels.",
            )
        return region

    def _tile(self, region: Box, input_px: tuple[int, int], picture_px: tuple[int, int] | None) -> tuple[int, int]:
        """Return width and height of a tile, at most the region's; of the input's shape, or the pictures'."""
        input_height, input_width = input_px
        if self._settings.tile_px is not None:
            wide = self._settings.tile_px
            return min(wide, region.width), min(round(wide * input_height / input_width), region.height)
        if region.width <= MAX_SHRINK * input_width and region.height <= MAX_SHRINK * input_height:
            return region.width, region.height
        widest, highest = int(MAX_SHRINK * input_width), int(MAX_SHRINK * input_height)
        largest = min(widest, region.width), min(highest, region.height)
        if picture_px is None:
            return largest
        height, width = picture_px
        as_trained = min(width, largest[0]), min(height, largest[1])
        # So many tiles that no device could follow are surely not what was meant.
        return as_trained if _count(region, as_trained, self._settings.overlap) <= MAX_TILES else largest


def tile_boxes(region: Box, tile: tuple[int, int], overlap: float) -> list[Box]:
    """Return boxes of one size that cover a region, evenly spread, neighbours sharing `overlap` or more of a side.

    Raises:
        ConfigError: they would be more than `MAX_TILES`.

    >>> [box.x for box in tile_boxes(Box(10, 0, 500, 100), (200, 100), 0.1)]
    [10, 160, 310]
    """
    wide, high = tile
    columns, rows = _starts(region.width, wide, overlap), _starts(region.height, high, overlap)
    if _count(region, tile, overlap) > MAX_TILES:
        raise ConfigError(
            f"camera.recipe: {len(columns) * len(rows)} tiles of {wide} x {high} pixels",
            hint=f"At most {MAX_TILES} are possible: raise tile_px, or name a smaller region.",
        )
    return [Box(region.x + x, region.y + y, wide, high) for y in rows for x in columns]


def _count(region: Box, tile: tuple[int, int], overlap: float) -> int:
    return len(_starts(region.width, tile[0], overlap)) * len(_starts(region.height, tile[1], overlap))


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if tile >= length:
        return [0]
    step = max(1.0, tile * (1 - overlap))
    count = int(np.ceil((length - tile) / step)) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _cut(frame: npt.NDArray[_P], box: Box) -> npt.NDArray[_P]:
    return np.ascontiguousarray(frame[box.y : box.y + box.height, box.x : box.x + box.width])


def _read_mask(path: Path) -> Frame:
    hint = "Draw white where it is inspected, PNG."
    try:
        mask = read(path)[1]
    except BadImages as error:
        raise ConfigError(f"camera.recipe.mask: {error}", hint=hint) from error
    if int(mask.max()) < MASK_THRESHOLD:
        raise ConfigError(f"camera.recipe.mask: {path} has no white pixel: nothing would be inspected", hint=hint)
    return mask


def _hidden(mask: Frame, width: int, height: int) -> npt.NDArray[np.bool_]:
    if mask.shape[:2] != (height, width):
        raise ConfigError(
            f"camera.recipe.mask has {mask.shape[1]} x {mask.shape[0]} pixels, the frame {width} x {height}",
            hint="Draw the mask over a whole frame of this camera.",
        )
    return np.asarray(cv2.cvtColor(mask, cv2.COLOR_BGR2GRAY) < MASK_THRESHOLD)
