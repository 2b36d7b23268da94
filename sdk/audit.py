"""Label errors: labels that do not fit what all other groups say, and how well operators and devices agree.

A suspect is a left-out sample whose own label is improbable. Nobody is accused by it: the head may be the one
that errs. No files, no clock, no random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sdk.head import Calibration, probabilities_of
from sdk.moments import TINY, Floats
from sdk.score import LeftOut, share

DOUBTFUL: Final = 0.1
"""A label that is less probable than this is worth a look.

Chosen on labels planted wrong at random, 1, 3 and 8 of a hundred, with frozen built-in features. Of NEU's, all
that fell below it were wrong, and 98 to 100 % of the wrong ones did; none fell below it where none was planted. Of
magnetic tile's, of which the head tells half, most that fall below it are the head's errors: 5, 17 and 30 % were
wrong.
"""


@dataclass(frozen=True)
class Suspect:
    """A label to look at again.

    Attributes:
        sample: Sample id.
        labelled: Class id it is labelled as.
        looks_like: Class id the head without its group says.
        suspicion: Minus the logarithm of the probability of its label; 0 is beyond doubt. Where its class is in
            no other group it cannot be judged and is not listed.
    """

    sample: bytes
    labelled: bytes
    looks_like: bytes
    suspicion: float


def suspicion(left_out: LeftOut, calibration: Calibration) -> Floats:
    """Return how improbable each left-out sample's own label is, (n,): minus log probability; orphans get 0."""
    rows = np.arange(len(left_out.truth))
    p = probabilities_of(left_out.scores, calibration.temperature)[rows, left_out.truth]
    return np.asarray(-np.log(np.where(left_out.orphan, 1.0, np.maximum(p, TINY))))


def suspects(left_out: LeftOut, calibration: Calibration, *, limit: int = 50, below: float = 1.0) -> list[Suspect]:
    """Return the labels that fit least, most suspicious first.

    Only samples are listed that the head without their group calls something else.

    Args:
        left_out: With sample ids.
        calibration: Its temperature.
        limit: At most this many.
        below: Only labels with less probability than this; in (0, 1].

    Raises:
        ValueError: there are no sample ids, or two samples have the same; or the limit is below none.
    """
    left_out.check_samples("left_out")
    if limit < 0:
        raise ValueError(f"`limit` is 0 or more, not {limit}")
    found = suspicion(left_out, calibration)
    said = left_out.scores.argmax(1)
    order = [int(i) for i in np.argsort(-found, kind="stable") if said[i] != left_out.truth[i]]
    return [
        Suspect(
            left_out.samples[i],
            left_out.class_ids[left_out.truth[i]],
            left_out.class_ids[said[i]],
            float(found[i]),
        )
        for i in order
        if not left_out.orphan[i] and found[i] >= -np.log(below)
    ][:limit]


@dataclass(frozen=True)
class Agreement:
    """How often the head without a sample's group gives the label that somebody gave.

    Attributes:
        who: Operator or device.
        share: In [0, 1], with the 95 % interval `low` to `high`, over groups.
        labels: How many of theirs could be judged.
    """

    who: str
    share: float
    low: float
    high: float
    labels: int


def agreement(left_out: LeftOut, who: Sequence[str]) -> list[Agreement]:
    """Return the agreement of everybody with labels, the lowest first.

    Args:
        left_out: n samples; those that are not `known` cannot be judged.
        who: Operator or device of each, n; empty for nobody.

    Raises:
        ValueError: `who` is not of n.
    """
    if len(who) != len(left_out.truth):
        raise ValueError(f"{len(who)} `who` for {len(left_out.truth)} samples: one for each")
    said = left_out.scores.argmax(1) == left_out.truth
    names = np.array(who, object)
    found = []
    for name in sorted(set(who) - {""}):
        rows = (names == name) & left_out.known
        if rows.any():
            mean, low, high = share(said[rows], left_out.groups[rows])
            found.append(Agreement(name, mean, low, high, int(rows.sum())))
    return sorted(found, key=lambda each: (each.share, each.who))
