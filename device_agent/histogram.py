"""How long something takes: counts in fixed buckets, so that it costs the same after a year as after a minute."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

BOUNDS_MS: Final = tuple(round(0.1 * 2 ** (i / 8), 4) for i in range(161))
"""Upper bounds of the buckets, eight to a doubling: 0.1 ms to 105 s. A quantile is then at most 9 % too high."""


@dataclass(frozen=True)
class Latency:
    """What a histogram says. Quantiles are upper bounds of their bucket."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float


class Histogram:
    """Durations in milliseconds. Any thread may add and read.

    >>> h = Histogram()
    >>> for ms in (1.0, 1.0, 40.0): h.add(ms)
    >>> h.latency().count, round(h.quantile(0.5), 2), round(h.quantile(0.99))
    (3, 1.04, 40)
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self._sum = self._max = 0.0
        self._lock = threading.Lock()

    def add(self, ms: float) -> None:
        """Count one duration."""
        with self._lock:
            self._counts[bisect_left(BOUNDS_MS, ms)] += 1
            self._sum += ms
            self._max = max(self._max, ms)

    def quantile(self, share: float) -> float:
        """Return a bound that this share of all durations kept; 0 where there are none."""
        counts, _, most = self.read()
        wanted, seen = share * sum(counts), 0
        for bound, count in zip(BOUNDS_MS, counts, strict=False):
            seen += count
            if count and seen >= wanted:
                return min(bound, most)
        return most

    def latency(self) -> Latency:
        """Return the usual figures."""
        counts, total, most = self.read()
        count = sum(counts)
        mean = total / count if count else 0.0
        return Latency(count, mean, self.quantile(0.5), self.quantile(0.99), most)

    def read(self) -> tuple[list[int], float, float]:
        """Return the counts (one more than `BOUNDS_MS`), the sum and the largest duration, of one moment."""
        with self._lock:
            return list(self._counts), self._sum, self._max
