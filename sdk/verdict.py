"""The trial of a head: keep it or take it back, by left-out scores of both, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.head import Calibration
from sdk.margins import Margins, fell
from sdk.moments import Floats, Ints
from sdk.reason import Reason, sentences
from sdk.score import LeftOut, Score, decisions_right, score


def beyond_chance(lost: int, gained: int) -> bool:
    """Return whether groups lost outnumber those gained by more than chance (McNemar).

    That is b - c > sqrt(b + c), and b of `MIN_LOST_GROUPS` or more.

    >>> beyond_chance(2, 0), beyond_chance(3, 0), beyond_chance(5, 4)
    (False, True, False)
    """
    return bool(lost >= MIN_LOST_GROUPS and lost - gained > np.sqrt(lost + gained))


@dataclass(frozen=True)
class Verdict:
    """Whether a provisional head may stay, and why.

    `also` says what it has learned from and does not recognise yet.
    """

    keep: bool
    why: Reason
    before: Score | None
    after: Score
    also: tuple[Reason, ...] = ()

    @property
    def reason(self) -> str:
        """Why, in an operator's words."""
        return sentences((self.why, *self.also))


MAX_DROP: Final = 0.02
"""A head may cost this much mean recall before it is taken back; what it newly knows counts in its favour."""
CAUTION_GROUPS: Final = 4
"""A new class counts as if it had been missed in this many more groups: two lucky parts are not much."""
MAX_CLASS_DROP: Final = 0.25
"""No new class is worth more than this of the recall of a known one."""
MIN_LOST_GROUPS: Final = 3
"""Fewer groups than this that the new head gets wrong are no evidence of anything."""
MAX_EXPECTED_DROP: Final = 0.03
"""A head may cost this much of the mean recall that margins let expect, where no part need have been lost yet."""
MIN_FALL: Final = 3.0
"""As many standard errors must margins have fallen by before anything is expected of them."""


def trial(
    before: tuple[LeftOut, Calibration] | None,
    after: tuple[LeftOut, Calibration],
    *,
    names: Callable[[bytes], str],
    judged: frozenset[bytes] | None = None,
    one_space: bool = True,
) -> Verdict:
    """Compare a provisional head with the confirmed one on left-out groups of both.

    Known classes are compared on samples that both were scored on under the same class: what was labelled since,
    however hard, never counts against the head that has just learned it. A class that is new counts too, as if it
    had been missed in `CAUTION_GROUPS` more groups, where more than one group has it. New is what the confirmed
    head had not learned, or had scored in one group only: a known class that shares no such sample with it counts
    neither way, since nobody knows what it was worth before. The new head is taken back when

    - the mean change over these classes is a drop of more than `MAX_DROP`, or one known class drops by more than
      `MAX_CLASS_DROP`, and
    - the groups it loses outnumber those it gains by more than chance (`beyond_chance`);

    or when

    - the mean recall that margins let expect (`sdk.margins`) drops by more than `MAX_EXPECTED_DROP`, and
    - margins have fallen by more than `MIN_FALL` standard errors over groups.

    A new class is said to be known once it is recognised more often than by guessing among all classes; until then
    it is said not to be recognised yet, as is a known one that could not be compared.

    Args:
        before: The confirmed head's left-out scores and calibration; None for a first head.
        after: The provisional head's. Both carry sample ids.
        names: Class id to the name people use.
        judged: Samples that known classes are compared on; None is all.
        one_space: Both heads are of one feature space. Between two, scores are on two scales: there margins say
            nothing, and decisions are counted only.

    Raises:
        ValueError: two heads are compared, and samples of one have no ids, or two the same.
    """
    for argument, given in (("before", before), ("after", after)):
        if before is not None and given is not None:
            given[0].check_samples(argument)
    new = score(*after)
    if before is None:
        return Verdict(True, Reason("first-head"), None, new)
    old = score(*before)
    paired = _pair(before, after, judged)
    if not paired.classes:
        return Verdict(True, Reason("nothing-to-compare"), old, new)
    change = paired.after - paired.before
    worst = change.min()

    def about(code: str, before: Floats, after: Floats, classes: tuple[tuple[str, float], ...] = ()) -> Reason:
        which = int((after - before).argmin())
        name = names(paired.classes[which])
        return Reason(code, name=name, share=float(after[which]), before=float(before[which]), classes=classes)

    if len(before[0].class_ids) == 1:  # known, whether scored or not
        # One class is known or unknown; telling it from another is a new ability, not a better or worse old one.
        return Verdict(True, about("tells-apart", paired.before, paired.after), old, new)
    untold = [c for c in new.classes if c.class_id not in paired.classes and c.class_id not in new.one_group]
    known_before = set(before[0].class_ids) - set(old.one_group)  # scored or not, as above
    fresh = [c for c in untold if c.class_id not in known_before]
    gained_recall = sum(c.recall * c.groups / (c.groups + CAUTION_GROUPS) for c in fresh)

    def worth(changes: Floats) -> float:
        return float((changes.sum() + gained_recall) / (len(changes) + len(fresh)))

    more_than_chance = beyond_chance(paired.lost_groups, paired.gained_groups)
    if more_than_chance and (worth(change) < -MAX_DROP or worst < -MAX_CLASS_DROP):
        return Verdict(False, about("worse", paired.before, paired.after), old, new)
    if one_space and paired.expected is not None:
        before_it, after_it = paired.expected
        if paired.fall > MIN_FALL and worth(after_it - before_it) < -MAX_EXPECTED_DROP:
            return Verdict(False, about("less-clear", before_it, after_it), old, new)
    has_price = bool(fresh) and more_than_chance and worst < -MAX_DROP
    chance = 1 / len(after[0].class_ids)
    known, young = (
        tuple((names(c.class_id), float(c.recall)) for c in some)
        for some in ([c for c in fresh if c.recall > chance], [c for c in untold if c.recall <= chance])
    )
    if has_price:
        why = about("also-knows-price" if known else "price", paired.before, paired.after, known)
    elif known:
        why = Reason("also-knows", classes=known)
    else:
        why = Reason("better" if change.mean() > 0.001 else "as-good")
    return Verdict(True, why, old, new, (Reason("not-yet", classes=young),) if young else ())


@dataclass(frozen=True)
class _Paired:
    """Two heads on the samples both were scored on.

    Attributes:
        classes: Those of these samples, sorted.
        before: Recall of each by the confirmed head.
        after: The same by the provisional one.
        expected: Recalls before and after as margins let expect them; None where they tell nothing.
        fall: By so many standard errors over groups margins fell.
        lost_groups: Groups in which more decisions became wrong than right.
        gained_groups: The other way round.
    """

    classes: tuple[bytes, ...]
    before: Floats
    after: Floats
    expected: tuple[Floats, Floats] | None
    fall: float
    lost_groups: int
    gained_groups: int


def _pair(
    before: tuple[LeftOut, Calibration], after: tuple[LeftOut, Calibration], judged: frozenset[bytes] | None
) -> _Paired:
    (old, _), (new, _) = before, after
    row_of = {sample: row for row, sample in enumerate(old.samples)}
    told = set(compress(old.samples, old.known)) & set(compress(new.samples, new.tells))
    pairs = [
        (row_of[sample], row)
        for row, sample in enumerate(new.samples)
        if sample in told
        and old.class_ids[old.truth[row_of[sample]]] == new.class_ids[new.truth[row]]
        and (judged is None or sample in judged)
    ]
    then, now = np.array(pairs, np.int64).reshape(-1, 2).T
    truth, class_of = np.unique(new.truth[now], return_inverse=True)
    was_right, is_right = decisions_right(*before)[then], decisions_right(*after)[now]
    groups = new.groups[now]
    margins = Margins.of(*before, then), Margins.of(*after, now)
    net = np.bincount(groups, is_right.astype(np.float64) - was_right)
    return _Paired(
        tuple(new.class_ids[index] for index in truth),
        _shares(was_right, class_of),
        _shares(is_right, class_of),
        _both(*(each.expected_recall(class_of) for each in margins)),
        fell(*margins, groups),
        lost_groups=int((net < 0).sum()),
        gained_groups=int((net > 0).sum()),
    )


def _shares(right: npt.NDArray[np.bool_], class_of: Ints) -> Floats:
    return np.asarray(np.bincount(class_of, right) / np.bincount(class_of), np.float64)


def _both(before: Floats | None, after: Floats | None) -> tuple[Floats, Floats] | None:
    return None if before is None or after is None else (before, after)
