"""Whether a release is fast enough here: before it goes live beside the one that serves, and by its first frames.

Both releases are timed in turns, so that whatever else the device is doing slows them alike. A release that is too
slow before it goes live never serves; one that turns out slow on the line's own frames is rolled back.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final

from device_agent.config import RuntimeSettings
from device_agent.pipeline import Pipeline
from device_agent.runtime import Batch
from device_agent.runtime.engines import compare_ms
from sdk.bundle import Bundle
from sdk.errors import InferenceFailed

FRAMES_TO_COMMIT: Final = 50
"""So many frames in service commit a provisional release, before its time of watch is over."""
TIMES_SLOWER: Final = 2.0
"""Timing in turns on a busy machine varies by tens of percent; twice the time is another kind of release."""
FRAMES_TO_REFUSE: Final = 8
"""After so many frames their median tells a slow release; a slow line must not commit one by time alone."""
ALWAYS_FAST_MS: Final = 50.0
"""By when a part is to be rejected; what stays below it is fast enough whatever the release before it took."""


def limit_ms(settings: RuntimeSettings, before_ms: float | None) -> float:
    """Return what a frame may take.

    >>> limit_ms(RuntimeSettings(), None), limit_ms(RuntimeSettings(), 40.0), limit_ms(RuntimeSettings(), 4.0)
    (inf, 80.0, 50.0)
    >>> limit_ms(RuntimeSettings(max_frame_ms=20.0), 40.0)
    20.0
    """
    if settings.max_frame_ms:
        return settings.max_frame_ms
    return math.inf if before_ms is None else max(TIMES_SLOWER * before_ms, ALWAYS_FAST_MS)


def check_pace(
    settings: RuntimeSettings, candidate: tuple[Pipeline, Bundle], serving: tuple[Pipeline, Bundle] | None
) -> None:
    """Refuse a candidate that is too slow on this device.

    Args:
        settings: What a frame may take.
        candidate: Not live yet.
        serving: What serves meanwhile; None where nothing does.

    Raises:
        InferenceFailed: it is too slow, or a runtime failed.
    """
    both = [candidate] if serving is None else [candidate, serving]
    now_ms, *before_ms = compare_ms(*((pipeline.runtime, _golden_frame(pipeline, b)) for pipeline, b in both))
    limit = limit_ms(settings, before_ms[0] if before_ms else None)
    if now_ms > limit:
        beside = f"; the release that serves takes {before_ms[0]:.0f}" if before_ms else ""
        raise InferenceFailed(
            f"a frame takes {now_ms:.0f} ms on this device, at most {limit:.0f} are allowed{beside}",
            hint="Export a smaller or quantized backbone, or raise [runtime] max_frame_ms.",
        )


def _golden_frame(pipeline: Pipeline, bundle: Bundle) -> Batch:
    return bundle.manifest.preprocess.apply(bundle.golden(pipeline.precision).frames[0])


class ReleaseWatch:
    """Judges the release in service by the frames it decides. One thread at a time.

    Args:
        settings: What a frame may take.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        self._release: str | None = None
        self._frames = 0
        self._fit = self._said = False
        self._newest: deque[float] = deque(maxlen=FRAMES_TO_COMMIT)
        self._before_ms: float | None = None

    def saw(self, release: str, latency_ms: float) -> str | None:
        """Count a decided frame.

        Args:
            release: Which release decided it: its digest.
            latency_ms: From the frame in hand to its decision.

        Returns:
            None while there is nothing to say; once, after enough frames, "" for a release that does its work, or
            why it does not.
        """
        if release != self._release:
            if self._fit:
                self._before_ms = statistics.median(self._newest)
            self._release, self._frames = release, 0
            self._fit = self._said = False
            self._newest.clear()
        self._frames += 1
        self._newest.append(latency_ms)
        if self._said or self._frames < FRAMES_TO_REFUSE:
            return None
        now_ms, limit = statistics.median(self._newest), limit_ms(self._settings, self._before_ms)
        if now_ms <= limit and self._frames < FRAMES_TO_COMMIT:
            return None
        self._said, self._fit = True, now_ms <= limit
        if self._fit:
            return ""
        beside = "" if self._before_ms is None else f"; the release before took {self._before_ms:.0f}"
        return f"a frame takes {now_ms:.0f} ms on the line, at most {limit:.0f} are allowed{beside}"
