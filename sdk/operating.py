"""The operating point: from which probability of a defect on a part is rejected, chosen for a target escape rate.

An *escape* is a defect that passes as good, *overkill* a good part that is rejected. Both are estimated on samples
whose group was never learned (`sdk.score`), and groups count, not images. No files, no clock, no random numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sdk.errors import HeadError
from sdk.head import Calibration, probabilities_of
from sdk.moments import Floats, Ints
from sdk.score import LeftOut, balanced_share, share


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] with its 95 % interval, and the samples and groups it rests on.

    `count` of the samples are what it is the share of; where classes weigh the same, it is not count / samples.
    """

    share: float
    low: float
    high: float
    samples: int
    groups: int
    count: int


@dataclass(frozen=True)
class OperatingPoint:
    """Where accepting ends.

    Attributes:
        threshold: A part is rejected when its probability of a defect is at least this, or when it is unknown.
        target: The escape rate that was asked for.
        escapes: Defects that would pass, of left-out defects, each class weighing the same.
        overkill: Good parts that would be rejected, of left-out good parts; unknown ones among them.
        reachable: The target is met. If not, this threshold rejects all it can: every part.
    """

    threshold: float
    target: float
    escapes: Rate
    overkill: Rate
    reachable: bool


@dataclass(frozen=True)
class Costs:
    """What accepting by the class that is decided costs.

    Attributes:
        escapes: As of an `OperatingPoint`.
        overkill: As of an `OperatingPoint`.
    """

    escapes: Rate
    overkill: Rate


class Judged(NamedTuple):
    """Which left-out samples are rejected, each (n,) bool.

    Attributes:
        tells: It tells of accepting: nothing here counts another.
        good: It is labelled as a good class.
        rejected: It goes out.
    """

    tells: npt.NDArray[np.bool_]
    good: npt.NDArray[np.bool_]
    rejected: npt.NDArray[np.bool_]

    @property
    def escapes(self) -> npt.NDArray[np.bool_]:
        """Defects that pass, (n,) bool."""
        return np.asarray(self.tells & ~self.good & ~self.rejected)

    @property
    def overkill(self) -> npt.NDArray[np.bool_]:
        """Good parts that are rejected, (n,) bool."""
        return np.asarray(self.tells & self.good & self.rejected)


def defect_probability(scores: Floats, good: npt.NDArray[np.bool_], temperature: float) -> Floats:
    """Return the probability (n,) of any class but the good ones, from scores (n, k).

    Args:
        scores: `Head.scores` or left-out scores; minus infinity is no class.
        good: (k,) bool.
        temperature: Of the calibration.
    """
    return np.asarray(probabilities_of(scores, temperature)[:, ~good].sum(1))


def operating_point(
    left_out: LeftOut, calibration: Calibration, good: Collection[bytes], *, escape_rate: float = 0.01
) -> OperatingPoint:
    """Return the highest threshold whose escapes on left-out defects stay within the target.

    Args:
        left_out: Of the head.
        calibration: Its temperature and novelty threshold; an unknown part never passes.
        good: Ids of the classes that are not defects.
        escape_rate: Target share of defects that may pass, in [0, 1).

    Raises:
        HeadError: there is no good class or no defect among the left-out samples.
    """
    if not 0 <= escape_rate < 1:
        raise ValueError("escape_rate is a share in [0, 1)")
    left_out, is_good = _told(left_out, good)
    truly_good = is_good[left_out.truth]
    p = _defect(left_out, calibration, is_good)
    defect = ~truly_good
    per_class = np.bincount(left_out.truth[defect], minlength=len(is_good)).astype(float)
    weight = 1 / per_class[left_out.truth[defect]]
    weight /= weight.sum()
    order = np.argsort(p[defect])
    passing = np.cumsum(weight[order])  # share that passes when the threshold is just above each
    allowed = int(np.searchsorted(passing, escape_rate + 1e-12, side="right"))
    values = p[defect][order]
    threshold = float(values[allowed]) if allowed < len(values) else float("inf")
    if not np.isfinite(threshold):  # every defect that counts is unknown anyway
        finite = p[np.isfinite(p)]
        threshold = float(np.nextafter(finite.max(), np.inf)) if finite.size else 1.0
    rejected = p >= threshold
    costs = _costs(rejected, truly_good, left_out)
    reachable = costs.escapes.share <= escape_rate + 1e-9
    return OperatingPoint(threshold, escape_rate, costs.escapes, costs.overkill, reachable)


def by_class(left_out: LeftOut, calibration: Calibration, good: Collection[bytes]) -> Costs:
    """Return what it costs to reject every part that is decided as no good class, or as unknown.

    Args:
        left_out: Of the head.
        calibration: Its novelty threshold.
        good: Ids of the classes that are not defects.

    Raises:
        HeadError: as `operating_point`.
    """
    left_out, is_good = _told(left_out, good)
    return _costs(_by_class(left_out, calibration, is_good), is_good[left_out.truth], left_out)


def judged(
    left_out: LeftOut, calibration: Calibration, good: Collection[bytes], *, threshold: float | None = None
) -> Judged:
    """Return which left-out samples `operating_point` and `by_class` count.

    Args:
        left_out: Of the head.
        calibration: As of `operating_point`.
        good: Ids of the classes that are not defects.
        threshold: That of an `OperatingPoint`; None rejects by the class that is decided.

    Raises:
        HeadError: as `operating_point`.
    """
    tells, rejected = left_out.tells, np.zeros(len(left_out.truth), bool)
    told, is_good = _told(left_out, good)
    if threshold is None:
        rejected[tells] = _by_class(told, calibration, is_good)
    else:
        rejected[tells] = _defect(told, calibration, is_good) >= threshold
    return Judged(tells, is_good[left_out.truth], rejected)


def _defect(left_out: LeftOut, calibration: Calibration, is_good: npt.NDArray[np.bool_]) -> Floats:
    """Return the probability of a defect (n,), infinity where it is unknown: that is always rejected."""
    # A class in no other group cannot be recognised: where its sample passes as good, that is an honest escape.
    scores = np.where(np.isfinite(left_out.scores), left_out.scores, -np.inf)
    p = defect_probability(scores, is_good, calibration.temperature)
    return np.where(left_out.unknown(calibration), np.inf, p)


def _by_class(
    left_out: LeftOut, calibration: Calibration, is_good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return what is decided as no good class, or as unknown: (n,) bool."""
    return np.asarray(~is_good[left_out.scores.argmax(1)] | left_out.unknown(calibration), bool)


def _told(left_out: LeftOut, good: Collection[bytes]) -> tuple[LeftOut, npt.NDArray[np.bool_]]:
    """Return those left-out samples that tell of accepting, and which of their classes are good (k,)."""
    left_out = left_out.chosen(left_out.tells)  # a head of one class says nothing of accepting
    is_good = np.array([class_id in good for class_id in left_out.class_ids])
    truly_good = is_good[left_out.truth]
    if not truly_good.any() or truly_good.all():
        raise HeadError(
            "an operating point needs good parts and defects of more than one group",
            hint="Name the good class, and label defects of two parts or more.",
        )
    return left_out, is_good


def _costs(rejected: npt.NDArray[np.bool_], truly_good: npt.NDArray[np.bool_], left_out: LeftOut) -> Costs:
    defect = ~truly_good
    passes, out = ~rejected[defect], rejected[truly_good]
    groups = left_out.groups[defect]
    escapes = _rate(balanced_share(passes, left_out.truth[defect], groups), groups, passes)
    groups = left_out.groups[truly_good]
    return Costs(escapes, _rate(share(out, groups), groups, out))


def _rate(found: tuple[float, float, float], groups: Ints, counted: npt.NDArray[np.bool_]) -> Rate:
    return Rate(*found, len(groups), len(np.unique(groups)), int(counted.sum()))
