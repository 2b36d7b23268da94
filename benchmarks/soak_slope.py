"""By how much an agent's memory grows with labels, and how sure that is.

After a start an agent warms up: caches fill, heaps of threads grow to what they need, a release that comes
brings its own. In one short life labels cannot be told from age by a line through all readings. Labels outlive a
restart and warmth does not, so readings of different lives are compared, of the same age and after as many
releases. What grows in a life, of whatever cause, is told by a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

AS_OLD_S: Final = 15.0
"""Readings that differ by less in age are of the same age: one burst and its trial."""
LEVEL: Final = 0.95
DRAWS: Final = 400
BLOCK: Final = 5
"""Neighbouring readings of a life that are drawn together: what is freed late shows in several of them."""
MIN_PAIRS: Final = 10


class Reading(NamedTuple):
    """Memory at one moment.

    Attributes:
        life: Which of the agent's starts it belongs to.
        age_s: Since that start.
        releases: Served since that start.
        labels: In all.
        mib: Resident.
    """

    life: int
    age_s: float
    releases: int
    labels: int
    mib: float


@dataclass(frozen=True)
class Slope:
    """MiB for 1,000 labels, and between what it lies, with 95 %."""

    mib: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mib:+.2f} MiB ({self.low:+.2f} to {self.high:+.2f})"


def between_lives(readings: Sequence[Reading]) -> Slope | None:
    """Return what labels cost, by readings of the same age in different lives; None where few can be compared.

    The median of the slopes of all such pairs; the interval is drawn by bootstrap over lives.
    """
    lives = sorted({each.life for each in readings})
    of_life = [[each for each in readings if each.life == life] for life in lives]
    pairs = {
        (i, j): _slopes(
            [
                (a, b)
                for a in of_life[i]
                for b in of_life[j]
                if abs(a.age_s - b.age_s) < AS_OLD_S and a.releases == b.releases
            ]
        )
        for j in range(len(lives))
        for i in range(j)
    }
    if sum(map(len, pairs.values())) < MIN_PAIRS:
        return None

    def of(rows: Sequence[int]) -> list[float]:
        return [slope for (i, j), slopes in pairs.items() for slope in slopes * (rows.count(i) * rows.count(j))]

    return _drawn(of, len(lives))


def within_a_life(readings: Sequence[Reading]) -> Slope | None:
    """Return what memory grew by while labels came, of whatever cause; None for fewer than three blocks.

    Args:
        readings: Of one life, in order.
    """
    blocks = [list(readings[at : at + BLOCK]) for at in range(0, len(readings), BLOCK)]
    if len(blocks) < 3:
        return None

    def of(rows: Sequence[int]) -> list[float]:
        drawn = [each for row in rows for each in blocks[row]]
        return _slopes([(a, b) for i, a in enumerate(drawn) for b in drawn[i + 1 :]])

    return _drawn(of, len(blocks))


def _slopes(pairs: Sequence[tuple[Reading, Reading]]) -> list[float]:
    return [1000 * (b.mib - a.mib) / (b.labels - a.labels) for a, b in pairs if a.labels != b.labels]


def _drawn(of: Callable[[Sequence[int]], list[float]], count: int) -> Slope:
    rng = np.random.default_rng(0)
    draws = [of(rng.integers(0, count, count).tolist()) for _ in range(DRAWS)]
    medians = [float(np.median(slopes)) for slopes in draws if slopes]
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Slope(float(np.median(of(list(range(count))))), float(low), float(high))
