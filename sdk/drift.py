"""Drift of the unlabelled stream: evidence that parts no longer look as they did when the head was scored.

Each part's novelty becomes a conformal p-value among earlier parts and left-out samples that the head decides
alike, so that a shift with more scratches than yesterday is no drift by itself. While parts and reference are
exchangeable these p-values are independent and uniform; bets against that multiply into a martingale (Vovk,
Nouretdinov and Gammerman, 2003). It starts again from 1 whenever it falls below, so that evidence is of the time
since: false alarms then come once in 1/rate parts or less often, on average (Shin, Ramdas and Rinaldo, 2022).

No files, no clock; random numbers, for ties and for which picture stands for a part, come from a seed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sdk.moments import Floats, Ints
from sdk.score import LeftOut

EPSILONS: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Exponents of the bets e p^(e - 1): low ones win much on few very strange parts, high ones little on many."""
MIN_REFERENCE: Final = 20
"""A decision with fewer parts to compare with than this is compared with all of them."""
MAX_REFERENCE: Final = 50_000
"""Parts remembered per decision; beyond it new ones are compared and forgotten."""
SHOWN: Final = 12


@dataclass(frozen=True)
class Drift:
    """How the stream stands.

    Attributes:
        evidence: The martingale; 1 is none, `threshold` is an alarm.
        threshold: 1 / rate.
        alarm: The threshold was reached since the last restart.
        parts: Parts since the watch began.
        strangest: What was passed as `key` with the strangest parts since evidence last was 1, strangest first.
    """

    evidence: float
    threshold: float
    alarm: bool
    parts: int
    strangest: tuple[Hashable, ...]


class DriftWatch:
    """Watches the novelty of a stream of parts, one number per part.

    Args:
        left_out: Left-out scores of the head that decides: the reference, one picture of each part.
        rate: An unchanged stream gives a false alarm once in 1 / rate parts or more, on average.
        seed: Of that picture, and of the tie-breaks.

    Raises:
        ValueError: there are no known samples in the reference, or rate is not in (0, 1).
    """

    def __init__(self, left_out: LeftOut, *, rate: float = 1e-4, seed: int = 0) -> None:
        if not 0 < rate < 1:
            raise ValueError("rate is in (0, 1)")
        known = left_out.known & np.isfinite(left_out.novelty)
        if not known.any():
            raise ValueError("the reference has no known samples")
        self._random = np.random.default_rng(seed)
        # As of the stream, one picture of each part: many of one would say that its like is common.
        drawn = self._random.permutation(np.flatnonzero(known))
        novelty, said, groups = left_out.novelty[drawn], left_out.scores[drawn].argmax(1), left_out.groups[drawn]
        self._of_class: dict[bytes, list[float]] = {
            class_id: _one_of_each(novelty[said == i], groups[said == i])
            for i, class_id in enumerate(left_out.class_ids)
        }
        self._all = _one_of_each(novelty, groups)
        self._threshold = 1 / rate
        self._bets = np.ones(len(EPSILONS))
        self._alarm = False
        self._parts = 0
        self._strange: deque[tuple[float, Hashable]] = deque(maxlen=10_000)

    def _p_value(self, novelty: float, class_id: bytes) -> float:
        """Return the share of parts of the same decision that are as novel, and let this part be one of them."""
        alike = self._of_class.setdefault(class_id, [])
        reference = alike if len(alike) >= MIN_REFERENCE else self._all
        above = len(reference) - bisect_right(reference, novelty)
        ties = len(reference) - bisect_left(reference, novelty) - above
        p = (above + float(self._random.uniform(0, 1)) * (ties + 1)) / (len(reference) + 1)
        for remembered in (alike, self._all):
            if len(remembered) < MAX_REFERENCE:
                insort(remembered, novelty)
        return p

    def see(self, novelty: float, class_id: bytes, key: Hashable = None) -> Drift:
        """Count one part; pass one frame of each, frames of one part are no evidence of their own.

        Args:
            novelty: Of the frame, from the same head.
            class_id: The decision, unknown or not (forced choice).
            key: Given back among the strangest.
        """
        p = self._p_value(novelty, class_id)
        self._parts += 1
        exponents = np.array(EPSILONS)
        self._bets = self._bets * exponents * max(p, 1e-12) ** (exponents - 1)
        self._strange.append((p, key))
        if self._bets.mean() >= self._threshold:
            self._alarm = True
        elif self._bets.mean() < 1:
            self._bets = np.ones(len(EPSILONS))
            self._strange.clear()
        return self.now()

    def now(self) -> Drift:
        """Return how the stream stands."""
        strangest = sorted(self._strange, key=lambda each: each[0])[:SHOWN]
        return Drift(
            evidence=float(self._bets.mean()),
            threshold=self._threshold,
            alarm=self._alarm,
            parts=self._parts,
            strangest=tuple(key for _, key in strangest),
        )

    def restart(self) -> None:
        """Forget the evidence, as after somebody looked at the parts behind it."""
        self._bets = np.ones(len(EPSILONS))
        self._alarm = False
        self._strange.clear()


def _one_of_each(novelty: Floats, groups: Ints) -> list[float]:
    """Return the first novelty of each group, sorted."""
    found: list[float] = np.sort(novelty[np.unique(groups, return_index=True)[1]]).tolist()
    return found
