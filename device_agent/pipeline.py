"""One frame's way to its code: preprocess as the release says, backbone, code. The same for camera and folder.

Decisions, labels and storage are others' business; this is the part that a release fixes.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

import numpy as np

from device_agent.runtime import Runtime
from sdk.bundle import Bundle
from sdk.codes import Codes, encode
from sdk.preprocess import Frame

BATCH_FRAMES: Final = 16
"""Frames per call where many are at hand: 10 MB of input at 224 px."""


class Pipeline:
    """Frames to codes for one precision of one release. Safe to call from several threads.

    Attributes:
        space: Feature space id of the codes, 64 hex digits.
        feature_size: d.
        runtime: What runs the backbone.
    """

    def __init__(self, bundle: Bundle, precision: str | None, runtime: Runtime) -> None:
        entry = bundle.precision(precision)
        self.precision = entry.precision
        self.space = entry.space
        self.feature_size = entry.feature_size
        self.runtime = runtime
        self._scale = entry.code_scale
        self._preprocess = bundle.manifest.preprocess

    def code(self, frame: Frame) -> Codes:
        """Return the code (1, d) int8 of one frame (h, w, 3) uint8 BGR.

        Raises:
            InferenceFailed: the runtime failed.
            FeatureSizeError: its output is not finite.
        """
        return encode(self.runtime.features(self._preprocess.apply(frame)), self._scale)

    def codes(self, frames: Iterable[Frame]) -> Codes:
        """Return the codes (n, d) int8 of many frames, read as they are needed."""
        parts = [np.zeros((0, self.feature_size), np.int8)]
        frames = iter(frames)
        while some := list(islice(frames, BATCH_FRAMES)):
            batch = np.concatenate([self._preprocess.apply(frame) for frame in some])
            parts.append(encode(self.runtime.features(batch), self._scale))
        return np.concatenate(parts)
