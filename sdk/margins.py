"""Recall as margins tell it: how often parts will be decided rightly, where too few have been counted to say.

Twenty parts that are all right say little of a head that errs one time in ten; how narrowly they are right says
more. A class's margins (its score less the best other class's), and by what its parts stay below the threshold of
the unknown, are taken for normal, with one spread for all classes; its recall is the product of the chances that
either is above zero. docs/head.md, section 5, has the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.head import Calibration
from sdk.moments import Floats, Ints
from sdk.score import LeftOut

MIN_GROUPS: Final = 5
"""Fewer have no standard error worth the name."""
_NORMAL: Final = NormalDist()


@dataclass(frozen=True)
class Margins:
    """Left-out samples as a head tells them.

    Attributes:
        of_class: (n,) float64, the score of the sample's own class less the best other one; not finite where the
            head could tell no other class.
        of_known: (n,) float64, novelty threshold less novelty; not finite there too.
    """

    of_class: Floats
    of_known: Floats

    @classmethod
    def of(cls, left_out: LeftOut, calibration: Calibration, rows: Ints) -> Margins:
        """Return those of some rows of left-out scores."""
        scores, truth = left_out.scores[rows].copy(), (np.arange(len(rows)), left_out.truth[rows])
        own = scores[truth]
        scores[truth] = -np.inf
        best_other = scores.max(1, initial=-np.inf)
        known = calibration.novelty_threshold - left_out.novelty[rows]
        return cls(own - best_other, np.where(left_out.tells[rows], known, np.inf))

    def expected_recall(self, class_of: Ints) -> Floats | None:
        """Return the recall (k,) to expect of each class; None where no class has two samples to tell a spread by.

        Args:
            class_of: (n,) int64, 0 to k - 1, each at least once.
        """
        classes = [class_of == index for index in range(int(class_of.max(initial=-1)) + 1)]
        chances = [_chances(values, classes) for values in (self.of_class, self.of_known)]
        right, known = chances
        return None if right is None or known is None else right * known


def fell(before: Margins, after: Margins, groups: Ints) -> float:
    """Return by how many standard errors over groups margins between classes fell; 0 where nothing tells."""
    finite = np.isfinite(before.of_class) & np.isfinite(after.of_class)
    change = after.of_class[finite] - before.of_class[finite]
    names, group = np.unique(groups[finite], return_inverse=True)
    if len(names) < MIN_GROUPS:
        return 0.0
    means = np.bincount(group, change) / np.bincount(group)
    error = means.std(ddof=1) / math.sqrt(len(names))
    return float(-means.mean() / error) if error > 0 else 0.0


def _chances(values: Floats, classes: list[npt.NDArray[np.bool_]]) -> Floats | None:
    """Return how likely a value of each class is above zero, with one spread for all."""
    of_class = [values[rows & np.isfinite(values)] for rows in classes]
    variances = [some.var(ddof=1) for some in of_class if len(some) > 1]
    if not variances:
        return None
    spread = max(math.sqrt(float(np.mean(variances))), 1e-9)
    return np.array([_NORMAL.cdf(float(some.mean()) / spread) if len(some) else 1.0 for some in of_class])
