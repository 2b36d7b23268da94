"""How well this device does with the release that serves, for the fleet's rollouts to watch.

Counted since the release took over, so that before and after are told apart. Figures are rounded to what they can
say, and the state that carries them is sent once a minute, not at every frame.
"""

from __future__ import annotations

import statistics
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from device_agent.heads import Reference
from device_agent.station import Serving, Station
from sdk.score import decisions_right
from sdk.wire import Quality

NEWEST_FRAMES: Final = 500


class _Since(NamedTuple):
    """Where the station's counts stood when a release took over."""

    release: str
    frames: int
    unknown: int


class QualityWatch:
    """Looks at a station when asked. One thread at a time."""

    def __init__(self) -> None:
        self._since = _Since("", 0, 0)
        self._recall: tuple[tuple[str, int], float | None, int] | None = None

    def now(self, station: Station) -> Quality | None:
        """Return how well the release that serves does; None where none does.

        Cost: one pass over the live set after each new confirmed head, little otherwise.
        """
        serving, counts = station.serving, station.counts
        if serving is None:
            return None
        if self._since.release != serving.digest:
            self._since = _Since(serving.digest, counts.frames, counts.unknown)
        frames = counts.frames - self._since.frames
        recall, samples = self._own_recall(station, serving)
        times = list(islice(reversed(station.latencies_ms.copy()), min(frames, NEWEST_FRAMES)))
        return Quality(
            recall=recall,
            samples=samples,
            frames=frames,
            unknown=round((counts.unknown - self._since.unknown) / frames, 2) if frames else 0.0,
            latency_ms=float(f"{statistics.median(times):.2g}") if times else 0.0,
        )

    def _own_recall(self, station: Station, serving: Serving) -> tuple[float | None, int]:
        """Return the balanced accuracy on own labels, each scored without its part, and how many there are."""
        reference = serving.learner.reference
        if reference is None:
            return None, 0
        key = (serving.digest, reference.number)
        if self._recall is None or self._recall[0] != key:
            self._recall = key, *_recall(reference, serving, station.store.device)
        return self._recall[1], self._recall[2]


def _recall(reference: Reference, serving: Serving, device: str) -> tuple[float | None, int]:
    live, left_out = serving.learner.live_set(), reference.left_out
    own = {sample for sample, owner in zip(live.samples, live.devices, strict=True) if owner == device}
    rows = np.array([sample in own for sample in left_out.samples], bool)
    if rows.size:
        rows &= left_out.known
    if not rows.any():
        return None, 0
    right, truth = decisions_right(left_out, reference.calibration)[rows], left_out.truth[rows]
    return round(float(np.mean([right[truth == c].mean() for c in np.unique(truth)])), 3), int(rows.sum())
