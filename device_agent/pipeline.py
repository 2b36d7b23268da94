"""One frame's way to its code: preprocess as the release says, backbone, code. The same for camera and folder.

Decisions, labels and storage are others' business; this is the part that a release fixes. `prepare` and `codes_of`
are the two halves of `codes`, so that one frame can be prepared while another is in the backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import msgspec
import numpy as np

from device_agent.runtime import Batch, MappingRuntime, Runtime
from sdk.bundle import Bundle
from sdk.codes import Codes, Features, encode
from sdk.errors import NoMaps
from sdk.head import Head
from sdk.heatmap import Spatial, evidence
from sdk.moments import Floats
from sdk.preprocess import Frame

BATCH_FRAMES: Final = 16
"""Frames per call where many are at hand: 10 MB of input at 224 px."""


class Pipeline:
    """Frames to codes for one precision of one release. Safe to call from several threads.

    Attributes:
        space: Feature space id of the codes, 64 hex digits.
        feature_size: d.
        scale: Of the codes, as the release says.
        runtime: What runs the backbone.
        input_px: Height and width of the backbone's input.
        picture_px: The same of the pictures that the release learned from; None where it does not say.
    """

    def __init__(self, bundle: Bundle, precision: str | None, runtime: Runtime) -> None:
        entry = bundle.precision(precision)
        self.precision = entry.precision
        self.space = entry.space
        self.feature_size = entry.feature_size
        self.runtime = runtime
        self.scale = entry.code_scale
        self._layout = entry.layout
        self._preprocess = bundle.manifest.preprocess
        self.input_px = self._preprocess.height, self._preprocess.width
        pictures = bundle.manifest.pictures
        self.picture_px = None if isinstance(pictures, msgspec.UnsetType) else (pictures.height, pictures.width)

    def code(self, frame: Frame) -> Codes:
        """Return the code (1, d) int8 of one frame (h, w, 3) uint8 BGR.

        Raises:
            InferenceFailed: the runtime failed.
            FeatureSizeError: its output is not finite.
        """
        return encode(self.runtime.features(self._preprocess.apply(frame)), self.scale)

    def spatial(self, frame: Frame) -> Spatial:
        """Return the features and maps of one frame (h, w, 3) uint8 BGR, from one pass.

        Raises:
            NoMaps: this release, or the runtime that serves it, gives features only.
            InferenceFailed: the runtime failed.
        """
        if not self._layout:
            raise NoMaps(
                "this release's backbone gives no maps to draw a heatmap from",
                hint="Export it again with this version; networks with layers after their pooling have none.",
            )
        if not isinstance(self.runtime, MappingRuntime):
            raise NoMaps(f"{self.runtime.name} gives no maps", hint="Let ONNX Runtime serve on this device.")
        features, maps = self.runtime.spatial(self._preprocess.apply(frame))
        return Spatial(features, tuple(each[0] for each in maps))

    def code_of(self, seen: Spatial) -> Codes:
        """Return the code (1, d) int8 of a frame that `spatial` saw."""
        return encode(seen.features, self.scale)

    def evidence(self, seen: Spatial, head: Head, class_id: bytes) -> Floats:
        """Return where the evidence for a class lies in a frame, (h, w); it sums to the class's score.

        Raises:
            UnknownClassError: the head knows no such class.
        """
        return evidence(head, class_id, seen, self._layout, self.scale)

    def codes(self, frames: Iterable[Frame]) -> Codes:
        """Return the codes (n, d) int8 of many frames, read as they are needed."""
        parts = [np.zeros((0, self.feature_size), np.int8)]
        frames = iter(frames)
        while some := list(islice(frames, BATCH_FRAMES)):
            parts.append(self.codes_of(self.features(self.prepare(some))))
        return np.concatenate(parts)

    def prepare(self, frames: Sequence[Frame]) -> Batch:
        """Return the input (n, 3, H, W) float32 of some frames, n > 0."""
        batch = np.empty((len(frames), 3, *self.input_px), np.float32)
        for i, frame in enumerate(frames):
            self._preprocess.apply(frame, out=batch[i : i + 1])
        return batch

    def features(self, batch: Batch) -> Features:
        """Return the features (n, d) float32 of prepared frames, at most `BATCH_FRAMES` in one call.

        Raises:
            InferenceFailed: the runtime failed.
        """
        if len(batch) <= BATCH_FRAMES:
            return self.runtime.features(batch)
        calls = range(0, len(batch), BATCH_FRAMES)
        return np.concatenate([self.runtime.features(batch[i : i + BATCH_FRAMES]) for i in calls])

    def codes_of(self, features: Features) -> Codes:
        """Return the codes (n, d) int8 of features (n, d).

        Raises:
            FeatureSizeError: they are not finite.
        """
        return encode(features, self.scale)
