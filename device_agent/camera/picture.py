"""Pictures that cannot be right: black, over-exposed, frozen. A head asked about one might well call it good.

What is found is told in the camera's report, and the part is rejected (`device_agent.flow`). A line whose good
pictures are black or white by design says so in its `[camera.picture]` table.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Final

import numpy as np

from device_agent.camera.shot import Camera, Shot
from device_agent.config import PictureSettings

_log = logging.getLogger(__name__)

GRID: Final = 64
"""Pixels looked at along a frame's shorter side, about: thousands in all, enough for shares of a hundredth."""
BLACK: Final = 16
"""A pixel with no channel above is black: video's own black level, and dark current with it."""
WHITE: Final = 250
"""A pixel with no channel below is over-exposed; JPEG and sharpening keep clipped pixels within five of 255."""


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
        step = max(1, min(shot.frame.shape[:2]) // GRID)
        some = np.ascontiguousarray(shot.frame[::step, ::step])
        blue, green, red = some[..., 0], some[..., 1], some[..., 2]
        dark = np.maximum(np.maximum(blue, green), red) <= BLACK  # far faster than some.max(2)
        bright = np.minimum(np.minimum(blue, green), red) >= WHITE
        settings = self._settings
        if settings.black_share and dark.mean() >= settings.black_share:
            return "the picture is black"
        if settings.bright_share and bright.mean() >= settings.bright_share:
            return "the picture is over-exposed"
        if settings.frozen_after and self._camera.live:
            # A sensor's noise never repeats itself, not even in a picture of nothing.
            digest = hashlib.blake2b(some.tobytes(), digest_size=16).digest()
            self._repeats = self._repeats + 1 if digest == self._last else 0
            self._last = digest
            if self._repeats >= settings.frozen_after:
                return "the picture is frozen"
        return ""
