"""Two forms of a backbone judged on the same left-out images: how much worse is one, and is that chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sdk.head import Calibration
from sdk.score import LeftOut, decisions_right


@dataclass(frozen=True)
class Paired:
    """A difference of balanced accuracy on the same images.

    Attributes:
        difference: Of the second to the first: negative where the second does worse.
        error: Its standard error; each group is one draw.
        samples: Images that both were judged on.
    """

    difference: float
    error: float
    samples: int

    @property
    def loss(self) -> float:
        """How much worse the second is; negative where it is better."""
        return -self.difference

    def beyond_chance(self, allowed: float) -> bool:
        """Return whether the loss is more than allowed, and more than its standard error."""
        return self.loss > allowed and self.loss > self.error


SAME: Final = Paired(0.0, 0.0, 0)
"""Of a form beside itself."""


def paired(first: tuple[LeftOut, Calibration], second: tuple[LeftOut, Calibration]) -> Paired:
    """Compare two heads on the images that both were judged on. Both carry sample ids, and the same labels.

    Classes weigh the same. A class that one group alone has says nothing, as in the score.
    """
    (one, _), (two, _) = first, second
    row_in_two = {sample: row for row, sample in enumerate(two.samples)}
    rows = [(row, row_in_two[sample]) for row, sample in enumerate(one.samples) if sample in row_in_two]
    if not rows:
        return SAME
    a, b = (np.array(side, np.int64) for side in zip(*rows, strict=True))
    change = decisions_right(*second)[b].astype(np.int64) - decisions_right(*first)[a]
    truth, groups, orphan = one.truth[a], one.groups[a], one.orphan[a]
    means, variances = [], []
    for label in np.unique(truth):
        of_class = truth == label
        if orphan[of_class].all():
            continue
        own = change[of_class]
        mean = float(own.mean())
        _, index = np.unique(groups[of_class], return_inverse=True)
        g = int(index.max()) + 1
        by_group = np.bincount(index, weights=own - mean)
        # One group is one draw, whose spread nobody knows: its whole difference may be chance.
        variances.append(float((by_group**2).sum()) * g / (g - 1) / len(own) ** 2 if g > 1 else mean**2)
        means.append(mean)
    if not means:
        return Paired(0.0, 0.0, len(rows))
    return Paired(float(np.mean(means)), float(np.sqrt(np.sum(variances))) / len(means), len(rows))
