"""The trial of a head: keep it or take it back, by left-out scores of both, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from sdk.head import Calibration
from sdk.moments import Floats
from sdk.reason import Reason
from sdk.score import LeftOut, Score, decisions_right, score


@dataclass(frozen=True)
class Verdict:
    """Whether a provisional head may stay, and why."""

    keep: bool
    why: Reason
    before: Score | None
    after: Score

    @property
    def reason(self) -> str:
        """Why, in an operator's words."""
        return self.why.sentence()


MAX_DROP: Final = 0.02
"""A head may cost this much mean recall before it is taken back; what it newly knows counts in its favour."""
CAUTION_GROUPS: Final = 4
"""A new class counts as if it had been missed in this many more groups: two lucky parts are not much."""
MAX_CLASS_DROP: Final = 0.25
"""No new class is worth more than this of the recall of a known one."""
MIN_LOST_GROUPS: Final = 3
"""Fewer groups than this that the new head gets wrong are no evidence of anything."""


def trial(
    before: tuple[LeftOut, Calibration] | None,
    after: tuple[LeftOut, Calibration],
    *,
    names: Callable[[bytes], str],
    judged: frozenset[bytes] | None = None,
) -> Verdict:
    """Compare a provisional head with the confirmed one on left-out groups of both.

    Known classes are compared on samples that both were scored on under the same class: what was labelled since,
    however hard, never counts against the head that has just learned it. A class that is new counts too, as if it
    had been missed in `CAUTION_GROUPS` more groups, where more than one group has it. The new head is taken back
    when

    - the mean change over these classes is a drop of more than `MAX_DROP`, or one known class drops by more than
      `MAX_CLASS_DROP`, and
    - the groups it loses outnumber those it gains by more than chance: b - c > sqrt(b + c) and b >= 3 (McNemar).

    Args:
        before: The confirmed head's left-out scores and calibration; None for a first head.
        after: The provisional head's. Both carry sample ids.
        names: Class id to the name people use.
        judged: Samples that known classes are compared on; None is all.
    """
    new = score(*after)
    if before is None:
        return Verdict(True, Reason("first-head"), None, new)
    old = score(*before)
    paired = _pair(before, after, judged)
    if not paired.classes:
        return Verdict(True, Reason("nothing-to-compare"), old, new)
    change = paired.after - paired.before
    worst = int(change.argmin())

    def about_worst(code: str, classes: tuple[tuple[str, float], ...] = ()) -> Reason:
        share, was = float(paired.after[worst]), float(paired.before[worst])
        return Reason(code, name=names(paired.classes[worst]), share=share, before=was, classes=classes)

    if len(old.classes) == 1:
        # One class is known or unknown; telling it from another is a new ability, not a better or worse old one.
        return Verdict(True, about_worst("tells-apart"), old, new)
    fresh = [c for c in new.classes if c.class_id not in paired.classes and c.class_id not in new.one_group]
    gained_recall = sum(c.recall * c.groups / (c.groups + CAUTION_GROUPS) for c in fresh)
    worth = (change.sum() + gained_recall) / (len(change) + len(fresh))
    lost, gained = paired.lost_groups, paired.gained_groups
    more_than_chance = lost >= MIN_LOST_GROUPS and lost - gained > np.sqrt(lost + gained)
    if more_than_chance and (worth < -MAX_DROP or change[worst] < -MAX_CLASS_DROP):
        return Verdict(False, about_worst("worse"), old, new)
    if fresh:
        learned = tuple((names(c.class_id), float(c.recall)) for c in fresh)
        has_price = more_than_chance and change[worst] < -MAX_DROP
        why = about_worst("also-knows-price", learned) if has_price else Reason("also-knows", classes=learned)
        return Verdict(True, why, old, new)
    return Verdict(True, Reason("better" if change.mean() > 0.001 else "as-good"), old, new)


@dataclass(frozen=True)
class _Paired:
    """Two heads on the samples both were scored on: recall per class, and groups that changed sides."""

    classes: tuple[bytes, ...]
    before: Floats
    after: Floats
    lost_groups: int
    gained_groups: int


def _pair(
    before: tuple[LeftOut, Calibration], after: tuple[LeftOut, Calibration], judged: frozenset[bytes] | None
) -> _Paired:
    (old, _), (new, _) = before, after
    was_right = dict(zip(old.samples, decisions_right(*before), strict=True))
    was_class = dict(zip(old.samples, (old.class_ids[i] for i in old.truth), strict=True))
    orphaned = {sample for sample, alone in zip(old.samples, old.orphan, strict=True) if alone}
    now_right = decisions_right(*after)
    rows = [
        row
        for row, sample in enumerate(new.samples)
        if sample not in orphaned
        and was_class.get(sample) == new.class_ids[new.truth[row]]
        and (judged is None or sample in judged)
    ]
    of_class: dict[bytes, list[tuple[bool, bool]]] = {}
    net: dict[int, int] = {}
    for row in rows:
        then, now = bool(was_right[new.samples[row]]), bool(now_right[row])
        of_class.setdefault(new.class_ids[new.truth[row]], []).append((then, now))
        group = int(new.groups[row])
        net[group] = net.get(group, 0) + now - then
    classes = tuple(sorted(of_class))
    shares = np.array([np.mean(of_class[c], axis=0) for c in classes]).reshape(len(classes), 2)
    return _Paired(
        classes,
        shares[:, 0],
        shares[:, 1],
        lost_groups=sum(change < 0 for change in net.values()),
        gained_groups=sum(change > 0 for change in net.values()),
    )
