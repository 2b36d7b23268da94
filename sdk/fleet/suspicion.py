"""Which devices and operators label against all others: leave-one-device-out scoring at the fleet's union.

Each device's labels are compared with what a head says that has learned from everything but that device. A source
is suspected when its parts score lower than the others' parts with the same labels, beyond chance
(`sdk.permutation`, decision 0047); what the others lose by learning from it is told beside it. Nobody is accused
by it: a person looks and decides (`headway fleet quarantine`).

- Labels of a class that only this device knows are not judged: a new kind of defect is not a wrong label.
- The worst source is found first, and the others are looked at again without it, so that one who errs does not
  make those suspect who do not.

No files, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.adaptation import Labelled, harmful_source
from sdk.audit import Agreement, agreement
from sdk.errors import HeadError
from sdk.head import DEFAULT_KNOBS, Knobs
from sdk.labels import RELEASE_DEVICE
from sdk.liveset import LiveSet
from sdk.moments import Floats, Moments
from sdk.permutation import chance_as_low
from sdk.score import LeftOut, leave_one_group_out, quadratic_score
from sdk.sources import ANYBODY

MIN_GAP: Final = 0.1
"""So much less agreement than the others is worth a person's look. Lines differ by some points; somebody who
mistakes one part in five differs by about twenty."""
MAX_CHANCE: Final = 0.02
"""Of pointing at somebody in a fleet where nobody errs, once for all devices and once for all operators."""
MIN_LABELS: Final = 10
"""Fewer judged labels are an operator's first hour."""
MAX_SUSPECTS: Final = 5
"""Each costs a solve; where more err, somebody should look at the release."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Suspect:
    """A source whose labels do not fit what all others say.

    Attributes:
        device: Whose.
        operator: This operator's on it; `sdk.sources.ANYBODY` for the device.
        labels: How many of its labels could be judged.
        agreement: Share of these that a head without the device agrees with, with its interval `low` to `high`.
        others: The same of the others' labels, in the mix of classes that this source has.
        harms: Whether the others' labels are less well known for it, beyond doubt.
        recall: Mean recall of the others' left-out labels as it is; None where `harms` is false.
        recall_without: Without this source.
    """

    device: str
    operator: str
    labels: int
    agreement: float
    low: float
    high: float
    others: float
    harms: bool
    recall: float | None
    recall_without: float | None


def find_suspects(
    live: LiveSet,
    rest: Moments | None = None,
    *,
    knobs: Knobs = DEFAULT_KNOBS,
    stop: Callable[[], bool] = lambda: False,
) -> list[Suspect]:
    """Return the sources that label against all others, in the order they were found: the worst first.

    Cost: for each suspect, and once more, two solves and the projection of all that devices have labelled; memory
    besides: O(g^2) for the g labels of the largest device.

    Args:
        live: The union's live set.
        rest: Moments of the release's summed samples, class ids after merges.
        knobs: The head's constants.
        stop: Asked between devices; true ends with `InterruptedError`.
    """
    found: list[Suspect] = []
    kept = np.ones(len(live.samples), bool)
    while len(found) < MAX_SUSPECTS:
        labelled = _labelled(live, kept, rest)
        if not labelled.own.any():
            break
        operators = [operator for operator, keep in zip(live.operators, kept, strict=True) if keep]
        worst = _worst(labelled, operators, knobs, stop)
        if worst is None:
            break
        device, operator, its, others = worst
        theirs = _rows_of(live, device, operator)
        found.append(_suspect(labelled, device, operator, its, others, theirs[kept], knobs))
        kept &= ~theirs
    return found


def _labelled(live: LiveSet, kept: Mask, rest: Moments | None) -> Labelled:
    rows = np.flatnonzero(kept)
    devices = [live.devices[int(row)] for row in rows]
    return Labelled(
        codes=live.codes[rows],
        class_ids=[live.class_ids[int(row)] for row in rows],
        groups=[live.groups[int(row)] for row in rows],
        devices=devices,
        own=np.array([device != RELEASE_DEVICE for device in devices], bool),
        rest=rest,
    )


def _rows_of(live: LiveSet, device: str, operator: str) -> Mask:
    pairs = zip(live.devices, live.operators, strict=True)
    return np.array([d == device and operator in (ANYBODY, o) for d, o in pairs], bool)


def without_each_device(labelled: Labelled, knobs: Knobs, stop: Callable[[], bool]) -> LeftOut | None:
    """Return what a head says of each device's labels that learned from all else; None where nothing is left.

    The groups of the result are parts, so that intervals are over parts.
    """
    left_out_together = [
        f"device {device}" if own else f"part {group}"
        for device, own, group in zip(labelled.devices, labelled.own, labelled.groups, strict=True)
    ]
    try:
        left_out = leave_one_group_out(
            labelled.codes,
            labelled.class_ids,
            left_out_together,
            knobs=knobs,
            only=labelled.own,
            learned=labelled.everything,
            stop=stop,
        )
    except HeadError:
        return None
    parts = [group for group, own in zip(labelled.groups, labelled.own, strict=True) if own]
    return replace(left_out, groups=np.unique(parts, return_inverse=True)[1].astype(np.int64))


def _worst(
    labelled: Labelled, operators: Sequence[str], knobs: Knobs, stop: Callable[[], bool]
) -> tuple[str, str, Agreement, float] | None:
    """Return the source that agrees least, its agreement and that of all others; None where none stands out."""
    left_out = without_each_device(labelled, knobs, stop)
    if left_out is None:
        return None
    rows = np.flatnonzero(labelled.own)
    devices = np.array([labelled.devices[int(row)] for row in rows], object)
    people = np.array([operators[int(row)] for row in rows], object)
    union = _Union(left_out, left_out.scores.argmax(1) == left_out.truth, quadratic_score(left_out))
    labels = Counter(zip(devices, people, strict=True))
    everybody = sorted(labels)
    device_chance, operator_chance = MAX_CHANCE / len(set(devices)), MAX_CHANCE / len(everybody)
    candidates: list[tuple[str, str, Agreement, float]] = []
    for device in sorted(set(devices)):
        here = devices == device
        names = [name for each, name in everybody if each == device]
        # A device may write as many names as it has labels: most could not be judged.
        worth = [name for name in names if labels[device, name] >= MIN_LABELS] if len(names) > 1 else []
        for operator in (*worth, ANYBODY):
            theirs = here & (people == operator) if operator != ANYBODY else here
            found = union.stands_out(theirs, device_chance if operator == ANYBODY else operator_chance)
            if found is None:
                continue
            # Who errs alone, while the rest of the device does as the others do, is the one to look at.
            if operator == ANYBODY or union.gap(here & ~theirs) < MIN_GAP:
                candidates.append((device, operator, *found))
                break
    return min(candidates, key=lambda each: (each[2].share, each[0], each[1]), default=None)


@dataclass(frozen=True)
class _Union:
    """All labels of devices, judged without the device that gave each.

    Attributes:
        left_out: What the heads say.
        said: (n,) whether that is the label.
        scores: (n,) how well the label does, misgivings included.
    """

    left_out: LeftOut
    said: Mask
    scores: Floats

    def gap(self, theirs: Mask) -> float:
        """Return how much less often their labels are agreed with than others of the same classes; 0 if none."""
        judged, expected = self._judged(theirs)
        return expected - float(self.said[judged].mean()) if judged.any() else 0.0

    def stands_out(self, theirs: Mask, chance: float) -> tuple[Agreement, float] | None:
        """Return a source's agreement and the others' on labels of its classes; None where it is as the others."""
        judged, expected = self._judged(theirs)
        found = agreement(self.left_out, ["its" if each else "" for each in judged])
        if not found or found[0].labels < MIN_LABELS or found[0].share > expected - MIN_GAP:
            return None
        known, left_out = self.left_out.known, self.left_out
        p = chance_as_low(
            self.scores[known], left_out.groups[known], left_out.truth[known], theirs[known], finest=chance
        )
        return (found[0], expected) if p < chance else None

    def _judged(self, theirs: Mask) -> tuple[Mask, float]:
        """Return which labels have others of their class to compare with, and how often those are agreed with."""
        truth, known = self.left_out.truth, self.left_out.known
        others = known & ~theirs
        k = len(self.left_out.class_ids)
        count = np.bincount(truth[others], minlength=k)
        judged = known & theirs & (count > 0)[truth]
        recall = np.bincount(truth[others], self.said[others], minlength=k) / np.maximum(count, 1)
        return judged, float(recall[truth[judged]].mean()) if judged.any() else 0.0


def _suspect(
    labelled: Labelled, device: str, operator: str, its: Agreement, others: float, theirs: Mask, knobs: Knobs
) -> Suspect:
    """Return the suspect with what the others lose by it (`sdk.adaptation.harmful_source`)."""
    name = device if operator == ANYBODY else f"{device} {operator}"
    named = [name if its_row else each for each, its_row in zip(labelled.devices, theirs, strict=True)]
    harm = harmful_source(replace(labelled, devices=named, own=labelled.own & ~theirs), knobs=knobs)
    return Suspect(
        device=device,
        operator=operator,
        labels=its.labels,
        agreement=its.share,
        low=its.low,
        high=its.high,
        others=others,
        harms=harm is not None,
        recall=None if harm is None else harm.recall,
        recall_without=None if harm is None else harm.recall_without,
    )
