"""Pictures that cannot be right: black, over-exposed, frozen. A head asked about one might well call it good.

What is found is told in the camera's report, and the part is rejected (`device_agent.flow`). A line whose good
pictures are black or white by design says so in its `[camera.picture]` table.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from device_agent.camera.shot import Camera, Shot
from device_agent.config import PictureSettings
from sdk.preprocess import Frame

_log = logging.getLogger(__name__)

GRID: Final = 64
"""Pixels looked at along a frame's shorter side, about: thousands in all, enough for shares of a hundredth."""
BLACK: Final = 16
"""A pixel with no channel above is black: video's own black level, and dark current with it."""
WHITE: Final = 250
"""A pixel with no channel below is over-exposed; JPEG and sharpening keep clipped pixels within five of 255."""
FIRST: Final = 4
"""Every fourth pixel of each fourth row is looked at first: of nearly every picture these alone show that it is
neither black nor over-exposed. They are 300 to 500, for which numpy does not give the interpreter up."""


class PictureWatch:
    """Looks at each frame of one camera. One thread calls it.

    Args:
        settings: From when on a picture is wrong.
        camera: Whose; a file that repeats itself is not frozen.
    """

    def __init__(self, settings: PictureSettings, camera: Camera) -> None:
        self._settings, self._camera = settings, camera
        self._last = b""
        self._repeats = 0

    def __call__(self, shot: Shot) -> str:
        """Return what is wrong with a frame, in words; empty for nothing."""
        found = self._look(shot)
        if found != self._camera.tally.picture:
            _log.log(
                logging.WARNING if found else logging.INFO, "%s: %s", self._camera.name, found or "is fine again"
            )
        self._camera.tally.picture = found
        return found

    def _look(self, shot: Shot) -> str:
        some = _some(shot.frame)
        return _exposed(some, self._settings) or self._frozen(some)

    def _frozen(self, some: Frame) -> str:
        if not self._settings.frozen_after or not self._camera.live:
            return ""
        # A sensor's noise never repeats itself, not even in a picture of nothing.
        pixels = some.tobytes()
        self._repeats = self._repeats + 1 if pixels == self._last else 0
        self._last = pixels
        return "the picture is frozen" if self._repeats >= self._settings.frozen_after else ""


def exposed(frame: Frame, settings: PictureSettings) -> str:
    """Return what a single frame shows to be wrong with it: black or over-exposed; empty for nothing."""
    return _exposed(_some(frame), settings)


def _some(frame: Frame) -> Frame:
    step = max(1, min(frame.shape[:2]) // GRID)
    return frame[::step, ::step]


def _exposed(some: Frame, settings: PictureSettings) -> str:
    black, bright, count = settings.black_share, settings.bright_share, some[..., 0].size
    green = some[::FIRST, ::FIRST, 1]
    # One channel may show that a pixel is not dark, or not bright; all others might be.
    perhaps_dark = (count - np.count_nonzero(green > BLACK)) / count
    if black and perhaps_dark >= black and _dark(some) / count >= black:
        return "the picture is black"
    perhaps_bright = (count - np.count_nonzero(green < WHITE)) / count
    if bright and perhaps_bright >= bright and _bright(some) / count >= bright:
        return "the picture is over-exposed"
    return ""


def _dark(some: Frame) -> int:
    """Return how many pixels have no channel above `BLACK`."""
    return int(np.count_nonzero(np.maximum(np.maximum(some[..., 0], some[..., 1]), some[..., 2]) <= BLACK))


def _bright(some: Frame) -> int:
    """Return how many pixels have no channel below `WHITE`."""
    return int(np.count_nonzero(np.minimum(np.minimum(some[..., 0], some[..., 1]), some[..., 2]) >= WHITE))
