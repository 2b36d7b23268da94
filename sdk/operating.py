"""The operating point: from which probability of a defect on a part is rejected, chosen for a target escape rate.

An *escape* is a defect that passes as good, *overkill* a good part that is rejected. Both are estimated on samples
whose group was never learned (`sdk.score`), and groups count, not images. No files, no clock, no random numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdk.errors import HeadError
from sdk.head import Calibration, probabilities_of
from sdk.moments import Floats, Ints
from sdk.score import LeftOut, balanced_share, share


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] with its 95 % interval, and the samples and groups it rests on."""

    share: float
    low: float
    high: float
    samples: int
    groups: int


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
    # A class in no other group cannot be recognised: where its sample passes as good, that is an honest escape.
    scores = np.where(np.isfinite(left_out.scores), left_out.scores, -np.inf)
    p = defect_probability(scores, is_good, calibration.temperature)
    p = np.where(left_out.unknown(calibration), np.inf, p)  # unknown: always rejected
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
    rejected = ~is_good[left_out.scores.argmax(1)] | left_out.unknown(calibration)
    return _costs(rejected, is_good[left_out.truth], left_out)


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
    groups = left_out.groups[defect]
    escapes = _rate(balanced_share(~rejected[defect], left_out.truth[defect], groups), groups)
    groups = left_out.groups[truly_good]
    return Costs(escapes, _rate(share(rejected[truly_good], groups), groups))


def _rate(found: tuple[float, float, float], groups: Ints) -> Rate:
    return Rate(*found, len(groups), len(np.unique(groups)))
