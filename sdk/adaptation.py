"""How a station's own samples count in its head: chosen by how well the station's own left-out groups are known.

A release comes from elsewhere: other cameras, other light. What a station's operators labelled may count more than
what the release brought (`own_weight`), and its codes may lie beside the release's by a common shift, which the
unlabelled stream shows without a single label. Rules this module keeps:

- Only the station's own labelled groups, left out, decide. They are judged by the likelihood of their labels,
  which sees more than the few decisions that change.
- The plain head stays unless another is better by more than one standard error over the groups: on a station that
  is like the release nothing is gained, and nothing is lost.
- Everything stays a function of exact sums; labels, codes and the live set's digest know nothing of it.

docs/head.md, section 7, has the measurements. No files, no clock: the caller's `enough` ends the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.codes import Codes
from sdk.errors import HeadError
from sdk.head import DEFAULT_KNOBS, Knobs, solve
from sdk.labels import RELEASE_DEVICE
from sdk.moments import MAX_OWN_WEIGHT, UNADAPTED, Adaptation, Floats, Moments, sums_of
from sdk.score import LeftOut, calibrate, leave_one_group_out, quadratic_score
from sdk.shelf import CodeRows, chosen

WEIGHTS: Final = (1, 2, 4, 8, MAX_OWN_WEIGHT)
MIN_GROUPS: Final = 5
"""Fewer own groups have no standard error worth the name."""
MIN_CLASS_GROUPS: Final = 2
"""One label of a class, left out, leaves none of it."""
MIN_STREAM: Final = 50
"""Fewer unlabelled samples say more about which parts passed than about the station."""
MAX_STREAM: Final = 500
"""More do not move a mean that will be rounded to whole numbers."""
_ROUNDS: Final = 5
"""Of estimating the class mix under the shift and the shift under the class mix."""
_SOURCE_ERRORS: Final = 2.0
"""Several sources are tried, so each needs stronger evidence than the one adaptation."""
_MAX_SOURCES: Final = 4
"""The largest only: each costs a solve."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Labelled:
    """A live set as one station sees it.

    Attributes:
        codes: (n, d) int8.
        class_ids: Class after merges, n.
        groups: Group id, n.
        devices: Who labelled it, n; `release` for the release's own.
        own: (n,) bool, labelled by the station's own operators.
        rest: Moments of the release's summed samples, class ids after merges; None where it has none.
        stop: Asked between groups that are left out; true ends the work with `InterruptedError`.
    """

    codes: CodeRows
    class_ids: Sequence[bytes]
    groups: Sequence[str]
    devices: Sequence[str]
    own: Mask
    rest: Moments | None = None
    stop: Callable[[], bool] | None = None

    def own_groups(self) -> int:
        """Return how many groups the station's own labels are of."""
        return len({group for group, own in zip(self.groups, self.own, strict=True) if own})

    def all_classes_owned(self) -> bool:
        """Return whether the station has labelled `MIN_CLASS_GROUPS` groups of every class there is.

        Where it has not, heavier own labels would draw all that looks like the station into the classes that have
        some, and no own label would say so.
        """
        own = {(c, g) for c, g, mine in zip(self.class_ids, self.groups, self.own, strict=True) if mine}
        counts = Counter(class_id for class_id, _ in own)
        classes = set(self.class_ids) | set(() if self.rest is None else self.rest.counts())
        return all(counts[class_id] >= MIN_CLASS_GROUPS for class_id in classes)

    def moments(self, rows: Mask) -> Moments:
        """Return the moments of some rows."""
        return self._added(Moments(self.codes.shape[1]), rows)

    @cached_property
    def everything(self) -> Moments:
        """Moments of all rows and of the summed samples, not to be changed: made once for all that is tried."""
        return self.with_rest(np.ones(len(self.own), bool))

    def with_rest(self, rows: Mask) -> Moments:
        """Return the moments of some rows and of the release's summed samples."""
        return self._added(Moments(self.codes.shape[1]) if self.rest is None else self.rest.copy(), rows)

    def _added(self, moments: Moments, rows: Mask) -> Moments:
        moments.add(chosen(self.codes, rows), list(compress(self.class_ids, rows)))
        return moments

    def left_out(self, adaptation: Adaptation, knobs: Knobs, learned: Mask | None = None) -> LeftOut:
        """Return the own samples' left-out scores, by a head of the rows `learned`; all of them by default."""
        rows = np.ones(len(self.own), bool) if learned is None else learned
        moments = self.everything
        if not rows.all():
            moments = moments.copy()
            moments.subtract(chosen(self.codes, ~rows), list(compress(self.class_ids, ~rows)))
        return leave_one_group_out(
            chosen(self.codes, rows),
            list(compress(self.class_ids, rows)),
            list(compress(self.groups, rows)),
            knobs=knobs,
            only=self.own[rows],
            own=self.own[rows],
            adaptation=adaptation,
            learned=moments,
            stop=self.stop,
        )


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how sure it is.

    Attributes:
        adaptation: `UNADAPTED` unless another is better.
        gain: Mean log-likelihood of own left-out labels above that of the plain head, classes weighing the same.
        error: Its standard error over groups.
        tried: How many adaptations were tried, the plain one among them; fewer than `WEIGHTS` and shifts allow
            where the time was up.
    """

    adaptation: Adaptation = UNADAPTED
    gain: float = 0.0
    error: float = 0.0
    tried: int = 0


def choose(
    labelled: Labelled,
    stream: Codes,
    *,
    knobs: Knobs = DEFAULT_KNOBS,
    enough: Callable[[], bool] = lambda: False,
) -> Choice:
    """Return how the station's own samples should count.

    First whether to shift, then how often to count: not all pairs, since each costs a solve.

    Cost: one solve and the projection of the own samples for each adaptation tried, at most 7, and five decisions
    of the stream.

    Args:
        labelled: The live set.
        stream: (m, d) int8, unlabelled codes of the station, any number.
        knobs: The head's constants.
        enough: Asked before each adaptation; true ends the search with the best so far.

    Raises:
        HeadError: there are no samples.
    """
    if labelled.own_groups() < MIN_GROUPS or (labelled.own.all() and labelled.rest is None):
        return Choice()
    try:
        left_out = labelled.left_out(UNADAPTED, knobs)
    except HeadError:
        return Choice()  # one group altogether
    plain = _Judged.of(left_out)
    if not plain.known.any():
        return Choice(tried=1)
    best, tried = Choice(), 1
    shifts = stream_shifts(labelled, stream[:MAX_STREAM], knobs, left_out) if len(stream) >= MIN_STREAM else ()
    weights = WEIGHTS[1:] if labelled.all_classes_owned() else ()
    for weight, shift in [(1, shift) for shift in shifts] + [(weight, None) for weight in weights]:
        if enough():
            break
        adaptation = Adaptation(weight, best.adaptation.shift if shift is None else shift)
        gain, error = _Judged.of(labelled.left_out(adaptation, knobs)).above(plain)
        tried += 1
        if gain > error and gain > best.gain:
            best = Choice(adaptation, gain, error)
    return Choice(best.adaptation, best.gain, best.error, tried)


def stream_shifts(
    labelled: Labelled, stream: Codes, knobs: Knobs = DEFAULT_KNOBS, left_out: LeftOut | None = None
) -> list[tuple[int, ...]]:
    """Return how the station's codes may lie beside the others', estimated from unlabelled ones.

    Two estimates, both the mean of the stream less the mean that the others' classes would have: in their own
    shares, which is right where the station sees the same parts; and in the shares that the head itself finds in
    the stream, shift and shares in turns, which is right where it sees other parts but knows most of them.

    Args:
        labelled: The live set; its rows of other devices are what is shifted from.
        stream: (m, d) int8, m > 0.
        knobs: The head's constants.
        left_out: The own samples' scores by the plain head, where they are at hand.
    """
    if left_out is None:  # first: moments and head below are as large as what it needs
        left_out = _try_left_out(labelled, knobs)
    others = labelled.with_rest(~labelled.own)
    sums = sums_of(others)
    means = sums.s / sums.n[:, None]
    mean = stream.astype(np.float64).mean(0)
    same_mix = _whole(mean - sums.s.sum(0) / sums.n.sum())
    found = [same_mix]
    if len(sums.class_ids) > 1:
        head = solve(others, knobs=knobs, overwrite=True)
        head = head if left_out is None else head.recalibrated(calibrate(left_out))
        shift: tuple[int, ...] = ()
        for _ in range(_ROUNDS):
            shares = head.with_shift(shift).predict_proba(stream).mean(0)
            shift = _whole(mean - shares @ means)
        found.append(shift)
    return [shift for shift in dict.fromkeys(found) if any(shift)]


def _try_left_out(labelled: Labelled, knobs: Knobs) -> LeftOut | None:
    """Return the own samples' left-out scores, for a temperature; None where there is one group only."""
    try:
        return labelled.left_out(UNADAPTED, knobs)
    except HeadError:
        return None


def _whole(shift: Floats) -> tuple[int, ...]:
    return tuple(int(step) for step in np.rint(shift))


@dataclass(frozen=True)
class Harm:
    """Samples of another source make this station's own left-out groups less well known.

    Attributes:
        source: The device that labelled them; `release` for the release's own.
        samples: How many there are.
        recall: Mean recall of own left-out samples as it is.
        recall_without: Without that source.
    """

    source: str
    samples: int
    recall: float
    recall_without: float


def harmful_source(
    labelled: Labelled,
    shift: tuple[int, ...] = (),
    *,
    knobs: Knobs = DEFAULT_KNOBS,
    enough: Callable[[], bool] = lambda: False,
) -> Harm | None:
    """Return the other device whose samples harm this station most; None where none does for sure.

    A source harms when the own left-out labels are likelier without it by more than two standard errors. Samples
    whose class only that source knows elsewhere are not judged. The release's samples are never asked about:
    without them there would be nothing to start from, and `choose` weighs against them.

    Args:
        labelled: The live set.
        shift: How the station's codes are shifted. Own samples count once here: heavier ones may make up for a
            source that harms, and it would go unnoticed.
        knobs: The head's constants.
        enough: Asked before each source; true ends the search.
    """
    if labelled.own_groups() < MIN_GROUPS:
        return None
    devices, adaptation = np.array(labelled.devices, object), Adaptation(1, shift)
    others = devices[~labelled.own]
    names, counts = np.unique(others.astype(str), return_counts=True)
    sources = [str(name) for name in names[np.argsort(-counts, kind="stable")] if name != RELEASE_DEVICE]
    worst: Harm | None = None
    most = 0.0
    with_all: _Judged | None = None
    for source in sources[:_MAX_SOURCES]:
        if enough():
            break
        theirs = (devices == source) & ~labelled.own
        try:
            with_all = with_all or _Judged.of(labelled.left_out(adaptation, knobs))
            without = _Judged.of(labelled.left_out(adaptation, knobs, ~theirs))
        except HeadError:
            continue  # nothing would be left to compare with
        both = with_all.known & without.known
        gain, error = without.above(with_all)
        if gain > _SOURCE_ERRORS * error and gain > most:
            most = gain
            worst = Harm(source, int(theirs.sum()), with_all.recall(both), without.recall(both))
    return worst


@dataclass(frozen=True)
class _Judged:
    """Own samples as a head sees them that never saw their group."""

    truth: tuple[bytes, ...]
    groups: npt.NDArray[np.int64]
    right: Mask
    quality: Floats
    known: Mask

    @classmethod
    def of(cls, left_out: LeftOut) -> _Judged:
        ids = left_out.class_ids
        return cls(
            truth=tuple(ids[i] for i in left_out.truth),
            groups=left_out.groups,
            right=left_out.scores.argmax(1) == left_out.truth,
            quality=quadratic_score(left_out),
            known=left_out.known,
        )

    def recall(self, rows: Mask) -> float:
        """Return the mean recall over the classes of these rows; 0 without rows."""
        truth = np.array([t.hex() for t in self.truth])
        return float(np.mean([self.right[rows & (truth == c)].mean() for c in np.unique(truth[rows])] or [0.0]))

    def above(self, other: _Judged) -> tuple[float, float]:
        """Return how much likelier the labels are, in nats, classes weighing the same, and the standard error."""
        rows = self.known & other.known
        if not rows.any():
            return 0.0, np.inf
        truth = np.unique([t.hex() for t in self.truth], return_inverse=True)[1][rows]
        weight = 1 / np.bincount(truth)[truth]
        gain = weight / weight.sum() * (self.quality[rows] - other.quality[rows])
        by_group = np.bincount(np.unique(self.groups[rows], return_inverse=True)[1], weights=gain)
        count, total = len(by_group), float(by_group.sum())
        if count < MIN_GROUPS:
            return total, np.inf
        spread = max(float((by_group**2).sum()) - total**2 / count, 0.0)
        return total, float(np.sqrt(spread * count / (count - 1)))
