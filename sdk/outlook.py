"""How many more labels? The learning curve from what is there, and what more labels would give, with an interval.

docs/head.md, section 5. Heads are learned from a quarter, a half and four fifths of the groups and judged on the
others. Misses fall as a power of the number of groups, towards a plateau; how fast, and to where, is as uncertain
as the groups leave it. Unknown is a miss: the rate of false alarms comes on top, however many labels there are. No
files; clock and seed come in.

The same samples give the same forecast whatever the ids of their classes, which every export draws anew: groups
are dealt out by a hash of their own, and classes stand in an order that their samples say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.codes import check_codes
from sdk.errors import HeadError
from sdk.head import DEFAULT_KNOBS, FALSE_ALARM_RATE, Knobs, solve
from sdk.moments import TINY, Floats, Ints, Moments
from sdk.shelf import CodeRows, chosen, strips

ADDED: Final = (5, 10, 20)
"""More labels of each class that are looked ahead to."""
TIMES: Final = (2, 4)
"""And so many times the labels there are."""
HELP: Final = 10
"""Which class more labels help most is asked for this many of them."""
WORTH: Final = 0.01
"""A gain of less than a point of balanced accuracy is not worth a sentence."""
FEW: Final = 5
"""A forecast of fewer groups judged is mostly prior: that labels change little is not known of such a class."""
ROUNDS: Final = 3
"""More divisions of many groups than this say little more."""
MORE_ROUNDS: Final = 9
"""Of few groups each division says something else: over seeds 0 to 5 the balanced accuracy of 16 judged pictures
has a standard deviation of 6 points with three rounds, of 4 with nine; of 80 pictures 1.6 with either (magnetic
tile, built-in backbone)."""
DIVIDED: Final = 150
"""So many groups in all rounds together ask for more of them."""
_SHARES: Final = ((1, 4), (1, 2), (4, 5))
"""Learn from so many of so many blocks of groups, each block in turn."""
_RATES: Final = np.linspace(0.05, 1.5, 12)
"""Power of the number of groups at which avoidable misses fall: from hardly to faster than one over it."""
_PLATEAUS: Final = np.linspace(0.0, 0.95, 12)
"""Share of today's misses that no number of labels avoids."""
_POOLED: Final = 0.2
"""How far, as a logarithm, a mean over classes may be off the curve."""
_OWN: Final = 0.5
"""The same for one class, which goes its own way and has fewer groups."""
_EVIDENCE: Final = 0.35
"""Of a group. As many new groups will be compared, whose chance adds to that of the groups a forecast was made
from, and heads of one set depend on each other: half, and less by 1.2 squared, as for the score (`sdk.score`)."""
_DRAWS: Final = 500
_LOW: Final = 0.025

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Expected:
    """A share in [0, 1] that is expected, and where that of as many new groups will lie in 95 % of cases."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Step:
    """What more labels would give.

    Attributes:
        added: Labels more of each class, of parts not seen before; None where it is `times` the labels of each.
        times: None where it is `added` labels more.
        balanced_accuracy: Mean of the recalls.
        recalls: Per class, in the order of `Outlook.classes`.
    """

    added: int | None
    times: int | None
    balanced_accuracy: Expected
    recalls: tuple[Expected, ...]


@dataclass(frozen=True)
class ClassOutlook:
    """One class.

    Attributes:
        class_id: After merges.
        groups: It has.
        recall: Now, on groups never learned.
        gain: Of balanced accuracy by `HELP` more labels of this class alone.
    """

    class_id: bytes
    groups: int
    recall: Expected
    gain: Expected


@dataclass(frozen=True)
class Outlook:
    """The learning curve.

    Attributes:
        balanced_accuracy: Now.
        steps: For each of `ADDED`, then of `TIMES`.
        classes: Those of more than one group.
        one_group: The others, of which nothing can be said.
        few: Those of both with fewer than `FEW` groups that may be judged.
        heads: How many were learned for it.
    """

    balanced_accuracy: Expected
    steps: tuple[Step, ...]
    classes: tuple[ClassOutlook, ...]
    one_group: tuple[bytes, ...]
    few: tuple[bytes, ...]
    heads: int

    def helps_most(self) -> ClassOutlook:
        """Return the class of which more labels are worth most."""
        return max(self.classes, key=lambda each: each.gain.share)

    def sentence(self, names: Callable[[bytes], str]) -> str:
        """Return it for an operator.

        Args:
            names: Class id to the name people use.
        """
        now, doubled, best = self.balanced_accuracy, self.steps[len(ADDED)].balanced_accuracy, self.helps_most()
        twice = (
            f"with twice the labels of every class expect {doubled.share:.0%} ({doubled.low:.0%} to "
            f"{doubled.high:.0%}), now {now.share:.0%}"
        )
        if best.gain.share < WORTH and self.few:
            which = " and ".join(sorted(names(class_id) for class_id in self.few))
            return (
                f"Label {which} first, of which there are fewer than {FEW} parts to judge by: too few to say what "
                f"more labels bring; {twice}."
            )
        if best.gain.share < WORTH:
            return f"{HELP} more labels of any one class would change little: {twice}."
        return (
            f"Label {names(best.class_id)} next: {HELP} more are worth about {100 * best.gain.share:.1f} points "
            f"({100 * best.gain.low:.1f} to {100 * best.gain.high:.1f}) of balanced accuracy; {twice}."
        )


def outlook(
    codes: CodeRows,
    class_ids: Sequence[bytes],
    groups: Sequence[str],
    *,
    seed: int,
    budget_s: float,
    clock: Callable[[], float],
    knobs: Knobs = DEFAULT_KNOBS,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    only: Bools | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outlook:
    """Return the learning curve of these labels.

    Cost: a solve for each head, 11 of them at least; `ROUNDS` rounds of 11, up to `MORE_ROUNDS` with few groups,
    while there is time.

    Args:
        codes: (n, d) int8.
        class_ids: Class after merges, n.
        groups: Group id, n; see `sdk.grouping`.
        seed: Another seed divides the groups otherwise.
        budget_s: No round begins that would end later than this. The first always runs.
        clock: Monotonic seconds.
        knobs: Of the head.
        false_alarm_rate: Share of known samples that it calls unknown.
        only: (n,) bool, rows to judge by; the others are learned from all the same.
        stop: Asked between heads; true ends the work with `InterruptedError`.

    Raises:
        HeadError: fewer than two classes of two groups that may be judged.
        FeatureSizeError: the codes are not (n, d) int8.
        ValueError: a list is not of n, or a rate or the budget is none.
    """
    if not 0 <= false_alarm_rate <= 1:
        raise ValueError(f"`false_alarm_rate` is a share in [0, 1], not {false_alarm_rate}")
    if math.isnan(budget_s):
        raise ValueError("`budget_s` is not a number of seconds")
    check_codes(codes)
    if not len(codes) == len(class_ids) == len(groups) or (only is not None and len(only) != len(codes)):
        raise ValueError(f"{len(class_ids)} classes and {len(groups)} groups for {len(codes)} codes: one for each")
    measured = _Misses.of(codes, class_ids, groups, np.ones(len(class_ids), bool) if only is None else only)
    heads_of, began = _Heads(codes), clock()
    rounds, heads = 0, 0
    most = min(max(ROUNDS, DIVIDED // measured.judged_groups()), MORE_ROUNDS)
    while rounds == 0 or (rounds < most and (clock() - began) * (rounds + 1) / rounds < budget_s):
        for j, learned in measured.divisions(seed, rounds):
            if stop is not None and stop():
                raise InterruptedError("the learning curve was asked to stop")
            measured.judge(j, learned, heads_of, knobs)
            heads += 1
        rounds += 1
    return _forecast(measured, np.random.default_rng(seed), heads, false_alarm_rate)


class _Misses:
    """How often each group is missed by heads that learned from so many of the others."""

    def __init__(
        self,
        ids: tuple[bytes, ...],
        one_group: tuple[bytes, ...],
        few: tuple[bytes, ...],
        y: Ints,
        names: Sequence[str],
        group: Ints,
        judged: Bools,
    ) -> None:
        self.ids = ids  # classes of more than one group that may be judged
        self.one_group, self.few = one_group, few
        self._names = names  # of the groups, sorted
        self._y, self._group, self._judged = y, group, judged
        # A group is dealt out with its most frequent class.
        first: dict[int, Counter[int]] = {}
        for g, c in zip(group.tolist(), y.tolist(), strict=True):
            first.setdefault(g, Counter())[c] += 1
        self._of_class: dict[int, list[int]] = {}
        for g, classes in sorted(first.items()):
            self._of_class.setdefault(min(classes, key=lambda c: (-classes[c], c)), []).append(g)
        shape = (len(_SHARES), len(ids), int(group.max()) + 1)
        self._missed, self._seen = np.zeros(shape), np.zeros(shape)
        self._learned = np.zeros(shape[:2])  # sum over heads of groups of each class learned from
        self._heads = np.zeros(len(_SHARES))

    @classmethod
    def of(cls, codes: CodeRows, class_ids: Sequence[bytes], groups: Sequence[str], judged: Bools) -> _Misses:
        """Return an empty table.

        Raises:
            HeadError: fewer than two classes of two groups that may be judged.
        """
        names, group = np.unique(np.array([str(g) for g in groups], object).astype(str), return_inverse=True)
        of: dict[bytes, set[int]] = {c: set() for c in class_ids}
        for c, g, may in zip(class_ids, group.tolist(), judged.tolist(), strict=True):
            if may:
                of[c].add(g)
        order = _in_order_of_content(codes, class_ids, group)
        ids = tuple(c for c in order if len(of[c]) > 1)
        if len(ids) < 2:
            raise HeadError(
                "a learning curve needs two classes of two groups each", hint="Label parts of another group too."
            )
        others, few = (tuple(c for c in order if len(of[c]) < least) for least in (2, FEW))
        column = {c: i for i, c in enumerate((*ids, *others))}
        y = np.array([column[c] for c in class_ids], np.int64)
        return cls(ids, others, few, y, names.tolist(), group.astype(np.int64), judged & (y < len(ids)))

    def judged_groups(self) -> int:
        """Return how many groups have a sample that may be judged."""
        return len(np.unique(self._group[self._judged]))

    def divisions(self, seed: int, turn_of: int) -> Iterator[tuple[int, Bools]]:
        """Yield (share, rows to learn from): for each of `_SHARES` every block of groups in turn.

        As in a split (`sdk.splits`), the order within a class comes from a hash of each group: a new one moves few
        others.
        """
        dealt = {
            c: np.array(sorted(found, key=lambda g: _drawn(seed, turn_of, self._names[g])), np.int64)
            for c, found in self._of_class.items()
        }
        for j, (learn, blocks) in enumerate(_SHARES):
            for turn in range(blocks):
                chosen = np.zeros(int(self._group.max()) + 1, bool)
                for found in dealt.values():
                    n = len(found)
                    take = min(max(round(n * learn / blocks), 1), max(n - 1, 1))
                    chosen[np.roll(found, -round(turn * n / blocks))[:take]] = True
                yield j, chosen[self._group]

    def judge(self, j: int, learned: Bools, heads_of: _Heads, knobs: Knobs) -> None:
        """Learn from some rows and judge by the others."""
        test = self._judged & ~learned
        missed = heads_of.missed(self._y, learned, test, knobs)
        y, group = self._y[test], self._group[test]
        np.add.at(self._missed[j], (y, group), missed)
        np.add.at(self._seen[j], (y, group), 1)
        for c in range(len(self.ids)):
            self._learned[j, c] += len(np.unique(self._group[learned & (self._y == c)]))
        self._heads[j] += 1

    def groups_of(self, c: int) -> int:
        """Return how many groups a class has."""
        return len(np.unique(self._group[self._y == c]))

    def of_class(self, c: int) -> tuple[Floats, Floats, Floats]:
        """Return (shares,) groups learned from relative to all, and missed and weight (shares, groups judged).

        The weight is of samples, as a recall counts them.
        """
        here = self._seen[:, c].sum(0) > 0
        seen = self._seen[:, c][:, here]
        missed = self._missed[:, c][:, here] / np.maximum(seen, 1)
        samples = np.bincount(self._group[self._judged & (self._y == c)], minlength=len(here))[here]
        ratio = np.maximum(self._learned[:, c] / self._heads, 0.5) / self.groups_of(c)
        return ratio, missed, np.where(seen > 0, samples, 0.0)


def _drawn(seed: int, turn: int, group: str) -> bytes:
    """Return what a group is ordered by: its own, and as good as random."""
    return sha256(b"headway-outlook-1\0%d\0%d\0" % (seed, turn) + group.encode("utf-8", "surrogatepass")).digest()


def _in_order_of_content(codes: CodeRows, class_ids: Sequence[bytes], group: Ints) -> list[bytes]:
    """Return the classes in an order that their samples say and their ids do not: by groups, then by codes."""
    ids = sorted(set(class_ids))
    column = {c: i for i, c in enumerate(ids)}
    y = np.array([column[c] for c in class_ids], np.int64)
    sums = np.zeros((len(ids), codes.shape[1]), np.int64)
    for strip in strips(np.arange(len(y)), codes.shape[1]):
        np.add.at(sums, y[strip], codes[strip].astype(np.int64))
    return sorted(ids, key=lambda c: (sorted(group[y == column[c]].tolist()), sums[column[c]].tolist()))


class _Heads:
    """Heads of some of the samples, solved as a device does, and what they miss of the others."""

    def __init__(self, codes: CodeRows) -> None:
        self._codes = codes

    def missed(self, y: Ints, learned: Bools, test: Bools, knobs: Knobs) -> Bools:
        """Return for each row of `test` whether the head of the rows `learned` would choose another class."""
        classes = np.unique(y[learned])
        moments = Moments(self._codes.shape[1])
        moments.add(chosen(self._codes, learned), [int(c).to_bytes(16, "big") for c in y[learned]])
        head = solve(moments, knobs=knobs)
        rows = np.flatnonzero(test)
        said = [head.decide(self._codes[strip]).class_index for strip in strips(rows, self._codes.shape[1])]
        return np.asarray(classes[np.concatenate([np.zeros(0, np.int64), *said])] != y[rows], bool)


def _curve(ratio: Floats, rate: Floats, plateau: Floats) -> Floats:
    """Return misses relative to today's, at `ratio` times today's groups."""
    return np.asarray(plateau + (1 - plateau) * ratio ** (-rate))


def _forecast(measured: _Misses, rng: np.random.Generator, heads: int, rate_unknown: float) -> Outlook:
    """Return the curve and its uncertainty: groups are drawn anew (Rubin, 1981), then the curve to their misses.

    Each class counts as if it had one group more, that fares as the groups of all classes do: no recall is sure
    because a few parts were all right.
    """
    k = len(measured.ids)
    rate, plateau = (grid.ravel() for grid in np.meshgrid(_RATES, _PLATEAUS, indexing="ij"))
    n = np.array([measured.groups_of(c) for c in range(k)], np.float64)
    found = [measured.of_class(c) for c in range(k)]
    mean = np.mean([(w * missed).sum(1) / np.maximum(w.sum(1), TINY) for _, missed, w in found], axis=0)
    common = (mean * n.sum() + 0.5) / (n.sum() + 1)  # (shares,): misses of a group of any class
    logs, models = np.empty((_DRAWS, k, len(_SHARES))), np.empty((k, len(_SHARES), len(rate)))
    for c, (ratio, missed, weight) in enumerate(found):
        drawn = rng.gamma(_EVIDENCE, size=(_DRAWS, 1, missed.shape[1])) * (
            weight / np.maximum(weight.mean(1, keepdims=True), TINY)  # nothing where no group of it was judged
        )
        more = rng.gamma(_EVIDENCE, size=(_DRAWS, 1))
        # Half of it as sure as the mean, half wholly missed or wholly right.
        fares = (common + (rng.random((_DRAWS, 1)) < common)) / 2
        logs[:, c] = np.log(((drawn * missed).sum(2) + more * fares) / (drawn.sum(2) + more))
        models[c] = np.log(_curve(ratio[:, None], rate, plateau))
    pooled = _distance(np.log(np.exp(logs).mean(1)), models.mean(0)) / _POOLED**2
    today = np.empty((_DRAWS, k))
    rates, plateaus = np.empty((_DRAWS, k)), np.empty((_DRAWS, k))
    for c in range(k):
        fit = pooled + _distance(logs[:, c], models[c]) / _OWN**2
        chance = np.exp(-(fit - fit.min(1, keepdims=True)) / 2)
        reached = np.cumsum(chance, 1)
        pick = (reached < rng.random((_DRAWS, 1)) * reached[:, -1:]).sum(1)
        rates[:, c], plateaus[:, c] = rate[pick], plateau[pick]
        today[:, c] = np.exp((logs[:, c] - models[c].T[pick]) @ _LEVEL)
    today = np.minimum(today, 1.0)

    def missed_with(added: Floats) -> Floats:
        return np.asarray(today * _curve((n + added) / n, rates, plateaus))

    # A threshold from so many groups keeps its rate only so well, and classes share it unevenly.
    every = float(n.sum())
    unknown = rng.beta(rate_unknown * every + 0.5, (1 - rate_unknown) * every + 0.5, size=(_DRAWS, 1))
    known = 1 - rng.beta(unknown * (n + 1), (1 - unknown) * (n + 1))
    steps = []
    looks: list[tuple[int | None, int | None, Floats]] = [
        *((added, None, np.full(k, float(added))) for added in ADDED),
        *((None, times, (times - 1) * n) for times in TIMES),
    ]
    for labels, times, added in looks:
        recalls = known * (1 - missed_with(added))
        expected = tuple(_expected(recalls[:, c]) for c in range(k))
        steps.append(Step(labels, times, _expected(recalls.mean(1)), expected))
    gains = known * (today - missed_with(np.full(k, float(HELP)))) / k
    return Outlook(
        balanced_accuracy=_expected((known * (1 - today)).mean(1)),
        steps=tuple(steps),
        classes=tuple(
            ClassOutlook(class_id, int(n[c]), _expected(known[:, c] * (1 - today[:, c])), _expected(gains[:, c]))
            for c, class_id in enumerate(measured.ids)
        ),
        one_group=measured.one_group,
        few=measured.few,
        heads=heads,
    )


_LEVEL: Final = np.array([1.0, 2.0, 3.0]) / 6
"""How much each of `_SHARES` says of today's level: the nearest most."""


def _distance(logs: Floats, models: Floats) -> Floats:
    """Return squared distances (draws, curves) of misses (draws, shares) from curves (shares, curves).

    Whatever their level: a curve says how misses fall, not how many there are.
    """
    off = logs[:, :, None] - models[None]
    level = np.einsum("s,bsm->bm", _LEVEL, off)
    return np.asarray(np.einsum("s,bsm->bm", _LEVEL * len(_LEVEL), (off - level[:, None]) ** 2))


def _expected(values: Floats) -> Expected:
    return Expected(*(float(x) for x in np.quantile(values, (0.5, _LOW, 1 - _LOW))))
