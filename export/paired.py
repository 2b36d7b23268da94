"""Two forms of a backbone judged on the same left-out images: how much worse is one, and is that chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.head import Calibration
from sdk.score import LeftOut, decisions_right
from sdk.verdict import beyond_chance


@dataclass(frozen=True)
class Paired:
    """A difference of balanced accuracy on the same images.

    Attributes:
        difference: Of the second to the first: negative where the second does worse.
        error: Its standard error; each group is one draw.
        samples: Images that both were judged on.
        lost: Groups of which the second decides more wrongly than the first.
        gained: Groups of which it decides fewer wrongly.
    """

    difference: float
    error: float
    samples: int
    lost: int = 0
    gained: int = 0

    @property
    def loss(self) -> float:
        """How much worse the second is; negative where it is better."""
        return -self.difference

    def loses(self, allowed: float) -> bool:
        """Return whether the second loses more than allowed, and more than chance.

        The standard error alone does not say so: of one image decided otherwise, among groups of one image each,
        it is the very loss, and rounding decides which is larger. So groups are counted too, as in a trial.
        """
        return self.loss > max(allowed, self.error) and beyond_chance(self.lost, self.gained)

    def gains(self, allowed: float) -> bool:
        """Return whether the second gains more than this, and more than chance."""
        return Paired(-self.difference, self.error, self.samples, self.gained, self.lost).loses(allowed)


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
    net = np.zeros(int(groups.max()) + 1, np.int64)
    for label in np.unique(truth):
        of_class = truth == label
        if orphan[of_class].all():
            continue
        own = change[of_class]
        mean = float(own.mean())
        _, index = np.unique(groups[of_class], return_inverse=True)
        g = int(index.max()) + 1
        by_group = np.bincount(index, weights=own - mean)
        np.add.at(net, groups[of_class], own)
        # One group is one draw, whose spread nobody knows: its whole difference may be chance.
        variances.append(float((by_group**2).sum()) * g / (g - 1) / len(own) ** 2 if g > 1 else mean**2)
        means.append(mean)
    if not means:
        return Paired(0.0, 0.0, len(rows))
    return Paired(
        difference=float(np.mean(means)),
        error=float(np.sqrt(np.sum(variances))) / len(means),
        samples=len(rows),
        lost=int((net < 0).sum()),
        gained=int((net > 0).sum()),
    )


def groups_gained(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], groups: Sequence[str] | npt.NDArray[np.int64]
) -> int:
    """Return of how many groups the first decides more rightly than the other.

    >>> groups_gained(np.array([True, True, True]), np.array([False, False, True]), ["a", "a", "b"])
    1
    """
    _, index = np.unique(np.array(groups), return_inverse=True)
    return int((np.bincount(index, weights=one.astype(np.float64) - other) > 0).sum())
