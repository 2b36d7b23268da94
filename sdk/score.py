"""The honest score: leave-one-group-out in closed form, calibration, and shares with their intervals.

docs/head.md, sections 4 and 5. Whole groups are left out, and the result equals refitting without the group.
No files, no clock, no random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk import triangular
from sdk.codes import check_codes
from sdk.errors import HeadError
from sdk.head import (
    DEFAULT_KNOBS,
    FALSE_ALARM_RATE,
    UNCALIBRATED,
    Calibration,
    Geometry,
    Knobs,
    centre_weights,
    geometry_of,
    lengths_of,
    probabilities_of,
    scores_and_novelty,
)
from sdk.moments import TINY, UNADAPTED, Adaptation, Floats, Ints, Moments, sums_of
from sdk.quantile import beta_quantile, lowest, t_quantile
from sdk.shelf import STRIP_BYTES, CodeRows, chosen, strip_rows, strips

_LARGE: Final = 0.5
"""Of d samples, beyond which a group is left out by solving anew: the algebra of larger ones takes longer, and
(|g| + k)^2 numbers several times."""
_STACK_BYTES: Final = 256 * 1024
"""Of the Grams of groups that are scored in one go; a dozen arrays of that size are needed for it."""
_UPPER: Final = 0.975
"""Of a two-sided 95 % interval."""
_NEW_PARTS: Final = 2.0
"""A score says what as many new parts will show: their chance adds to that of the parts it was made from."""
_DEPENDENCE: Final = 1.2
"""Left-out scores of one set depend on each other, and their variance is underestimated (Bates, Hastie and
Tibshirani, 2021). Chosen on splits 100 to 119 of magnetic tile; how it covers is reported on others."""


@dataclass(frozen=True)
class LeftOut:
    """Each sample as the head sees it that never saw the sample's group.

    Attributes:
        class_ids: k class ids, sorted: columns of `scores`.
        truth: (n,) int64, the column each sample is labelled as.
        groups: (n,) int64, an index for each group.
        scores: (n, k) float64; minus infinity for a class that consists of the left-out group only.
        novelty: (n,) float64.
        orphan: (n,) bool, the sample's own class is in no other group: it counts as wrong, and says nothing of
            how known samples look.
        samples: n sample ids, by which two heads are compared on what both were scored on.
        summed: Samples that were learned from besides, known by their sums only, which nothing here covers.
    """

    class_ids: tuple[bytes, ...]
    truth: Ints
    groups: Ints
    scores: Floats
    novelty: Floats
    orphan: npt.NDArray[np.bool_]
    samples: tuple[bytes, ...] = ()
    summed: int = 0

    @property
    def tells(self) -> npt.NDArray[np.bool_]:
        """Whether the head without the sample's group told classes apart, as the whole head does: (n,) bool.

        A head that has one class left agrees with every label it can, and its novelty is a distance, not on the
        scale of the others' (docs/head.md, section 3).
        """
        return np.asarray((np.isfinite(self.scores).sum(1) > 1) | (len(self.class_ids) == 1), bool)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which samples say how known ones look, (n,) bool: no orphans, and of heads that told classes apart."""
        return self.tells & ~self.orphan

    @property
    def counts(self) -> npt.NDArray[np.bool_]:
        """Which samples the honest score counts, (n,) bool: those that tell, and orphans, which are wrong."""
        return self.tells | self.orphan

    def chosen(self, rows: npt.NDArray[np.bool_]) -> LeftOut:
        """Return some of the samples, by (n,) bool."""
        samples = tuple(compress(self.samples, rows)) if self.samples else ()
        return LeftOut(
            self.class_ids,
            self.truth[rows],
            self.groups[rows],
            self.scores[rows],
            self.novelty[rows],
            self.orphan[rows],
            samples,
            self.summed,
        )

    def merged(self, canonical: Callable[[bytes], bytes]) -> LeftOut:
        """Return the same after classes were made one: a decision for any of them is one for that class.

        Args:
            canonical: Gives the id that stands for a class.
        """
        ids = [canonical(class_id) for class_id in self.class_ids]
        if ids == list(self.class_ids):
            return self
        roots = sorted(set(ids))
        column = np.array([roots.index(class_id) for class_id in ids], np.int64)
        scores = np.full((len(self.scores), len(roots)), -np.inf)
        for at, to in enumerate(column):
            scores[:, to] = np.maximum(scores[:, to], self.scores[:, at])
        return replace(self, class_ids=tuple(roots), truth=column[self.truth], scores=scores)

    def check_samples(self, argument: str) -> None:
        """Refuse left-out scores whose samples are not told apart by ids.

        Raises:
            ValueError: they have none, or two have the same; `argument` is what they were passed as.
        """
        if len(self.samples) != len(self.truth):
            raise ValueError(f"`{argument}` has no sample ids: give `leave_one_group_out` its `samples`")
        if len(set(self.samples)) != len(self.samples):
            raise ValueError(f"`{argument}` has a sample id twice: a picture is one sample")

    def unknown(self, calibration: Calibration) -> npt.NDArray[np.bool_]:
        """Return which samples would be called unknown, (n,) bool; none of those that nothing `tells`."""
        return self.tells & (self.novelty > calibration.novelty_threshold)


def leave_one_group_out(
    codes: CodeRows,
    class_ids: Sequence[bytes],
    groups: Sequence[str],
    *,
    knobs: Knobs = DEFAULT_KNOBS,
    only: npt.NDArray[np.bool_] | None = None,
    own: npt.NDArray[np.bool_] | None = None,
    adaptation: Adaptation = UNADAPTED,
    samples: Sequence[bytes] = (),
    learned: Moments | None = None,
    stop: Callable[[], bool] | None = None,
) -> LeftOut:
    """Return the left-out scores of every sample, exactly as refitting without its group would give.

    Lambda and delta are held at their values for the whole set (docs/head.md, section 4).

    Cost: one solve, an O(d^2) projection of each sample whose group is scored, then O(|g|^2 (d + |g|)) for each
    such group g, or O(d^3 + |g| d^2) where that is less. Memory besides codes and result: O(d^2), and a strip of
    projected samples (`sdk.shelf`).

    Args:
        codes: (n, d) int8.
        class_ids: Class after merges, n.
        groups: Group id, n. What shares a group is left out together.
        only: (n,) bool, rows to score; the others are learned from all the same.
        own: (n,) bool, the station's own samples, which `adaptation` is about; None where there are none.
        adaptation: How these are weighed and shifted.
        samples: Sample id, n, or none; given back with the scored rows.
        learned: Moments of all there is to learn from, class ids after merges, where they are at hand: of these
            samples, and of others of other groups, which are learned from and not scored. None: of these.
        stop: Asked between groups; true ends the work with `InterruptedError`.

    Raises:
        HeadError: there are no samples, or fewer than two groups, or some that are not in `learned`.
        ValueError, TypeError: a list is not of n, a class id is not 16 bytes, or `only` or `own` is not bool.
        FeatureSizeError: the codes are not (n, d) int8; the shift is of another feature space.
    """
    check_codes(codes)
    _check_lengths(len(codes), class_ids=class_ids, groups=groups, only=only, own=own, samples=samples or None)
    if learned is None:
        learned = Moments(codes.shape[1])
        learned.add(codes, class_ids)
    if not Counter(class_ids) <= Counter(learned.counts()):
        raise HeadError("samples are scored that are not learned", hint="Fold the log again.")
    others = sum(learned.counts().values()) - len(codes)
    # Others are of other groups, so one group of these is enough to leave out.
    if len(set(groups)) + (others > 0) < 2 or not len(codes):
        raise HeadError(
            "a score needs labelled samples of at least two groups", hint="Label parts of another group too."
        )
    ids = tuple(sorted(learned.counts()))
    column = {class_id: i for i, class_id in enumerate(ids)}
    y = np.array([column[c] for c in class_ids], np.int64)
    place = {group: i for i, group in enumerate(sorted(set(groups)))}
    group_index = np.array([place[group] for group in groups], np.int64)
    scored = np.ones(len(y), bool) if only is None else np.asarray(only)
    mine = np.zeros(len(y), bool) if own is None else np.asarray(own)
    own_moments = None
    if adaptation != UNADAPTED:
        own_moments = Moments(codes.shape[1])
        own_moments.add(chosen(codes, mine), list(compress(class_ids, mine)))
    sums = sums_of(learned, own=own_moments, adaptation=adaptation)
    del own_moments  # d x d each, as the two that the factor is made from
    geometry, _ = geometry_of(sums, knobs.rho, overwrite=sums.gram is not learned.gram)
    del _, sums
    weight = np.where(mine, float(adaptation.own_weight), 1.0)

    # All that follows lives in the span of a group's samples and the means.
    ZM = triangular.whiten(geometry.L, geometry.m)
    M_M = ZM @ ZM.T

    k = len(ids)
    scores = np.full((len(y), k), -np.inf)
    novelty = np.full(len(y), np.inf)
    orphan = np.zeros(len(y), bool)

    def put(members: Ints, left: _Without) -> None:
        scores[members[..., None], np.flatnonzero(left.kept)] = left.scores
        novelty[members] = left.novelty
        orphan[members] = ~left.kept[y[members]]
        if stop is not None and stop():
            raise InterruptedError("scoring was asked to stop")

    read = _Shifted(codes, mine, adaptation)
    small, large = _by_size(group_index, scored, int(_LARGE * codes.shape[1]))
    for block in _blocks(small, codes.shape[1]):
        Z = triangular.whiten(geometry.L, read(np.concatenate(block)), overwrite=True)
        Z_M = Z @ ZM.T
        for at in _stacks(list(map(len, block)), k, codes.shape[1]):
            members = np.concatenate(block)[at]
            for some, left in _by_kept(y[members], weight[members], geometry.n):
                T = _grams(Z[at[some]], Z_M[at[some]], M_M)
                put(members[some], _without(T, y[members[some]], weight[members[some]], left, geometry, knobs))
        del Z, Z_M  # before the next strip is made
    for members in large:
        put(members, _solved_without(read, members, y[members], weight[members], geometry, knobs))
    kept = tuple(sample for sample, keep in zip(samples, scored, strict=True) if keep) if samples else ()
    return LeftOut(
        ids, y[scored], group_index[scored], scores[scored], novelty[scored], orphan[scored], kept, others
    )


def _check_lengths(n: int, **lists: Sequence[object] | npt.NDArray[np.bool_] | None) -> None:
    """Refuse lists that are not of n, or that should be of bool and are not.

    Raises:
        ValueError: there is one.
    """
    for name, each in lists.items():
        if each is None:
            continue
        if len(each) != n:
            raise ValueError(f"{len(each)} {name} for {n} codes: one for each")
        if name in ("only", "own") and np.asarray(each).dtype != np.bool_:
            raise ValueError(f"`{name}` is (n,) bool, not {np.asarray(each).dtype}")


class _Shifted:
    """Samples as a head learns them: own ones less the station's shift."""

    def __init__(self, codes: CodeRows, own: npt.NDArray[np.bool_], adaptation: Adaptation) -> None:
        self._codes = codes
        self._own = own
        self._offset = adaptation.offset(codes.shape[1])

    def __call__(self, rows: Ints) -> Floats:
        """Return these rows, (m, d) float64."""
        x = self._codes[rows].astype(np.float64)
        x[self._own[rows]] -= self._offset
        return x


def _by_size(group_index: Ints, scored: npt.NDArray[np.bool_], most: int) -> tuple[list[Ints], list[Ints]]:
    """Return the rows of each group that is scored: of those of at most so many rows, and of the others."""
    order = np.argsort(group_index, kind="stable")
    bounds = np.flatnonzero(np.diff(group_index[order])) + 1
    groups = [members for members in np.split(order, bounds) if scored[members].any()]
    small, large = ([each for each in groups if (len(each) > most) is big] for big in (False, True))
    return small, large


def _blocks(groups: list[Ints], feature_size: int) -> Iterator[list[Ints]]:
    """Yield the groups' rows in turn, as many groups at a time as a strip holds, at least one."""
    most = strip_rows(feature_size)
    block: list[Ints] = []
    rows = 0
    for members in groups:
        if block and rows + len(members) > most:
            yield block
            block, rows = [], 0
        block.append(members)
        rows += len(members)
    if block:
        yield block


def _stacks(sizes: Sequence[int], k: int, d: int) -> Iterator[Ints]:
    """Yield the rows of groups that lie one after the other, (g, m): g groups of one size m at a time.

    One group at a time is thirty calls of NumPy for a few numbers each, most of it the interpreter's time.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    for size in np.unique(sizes):
        first = starts[np.equal(sizes, size)]
        most = max(1, min(_STACK_BYTES // (8 * int(size + k) ** 2), STRIP_BYTES // 4 // (8 * int(size) * d)))
        for start in range(0, len(first), most):
            yield first[start : start + most, None] + np.arange(size)


def _by_kept(y: Ints, weight: Floats, n: Floats) -> Iterator[tuple[Ints, npt.NDArray[np.bool_]]]:
    """Yield which of g groups (g, m) leave the same classes (k,) with samples, and these; mostly all leave all."""
    left = np.round(n - _weights(y, weight, len(n)))  # whole numbers
    for kept in np.unique(left > 0, axis=0):
        yield np.flatnonzero(((left > 0) == kept).all(1)), kept


def _weights(y: Ints, weight: Floats, k: int) -> Floats:
    """Return the weight of each class in each of g groups, (g, k)."""
    flat = k * np.arange(len(y))[:, None] + y
    return np.bincount(flat.ravel(), weight.ravel(), k * len(y)).reshape(len(y), k).astype(np.float64, copy=False)


def _grams(Z: Floats, Z_M: Floats, M_M: Floats) -> Floats:
    """Return T of g groups of m samples, (g, m + k, m + k), from Z (g, m, d) and its products with the means."""
    m, k = Z.shape[1], len(M_M)
    T = np.empty((len(Z), m + k, m + k))
    T[:, :m, :m] = Z @ Z.transpose(0, 2, 1)
    T[:, :m, m:] = Z_M
    T[:, m:, :m] = Z_M.transpose(0, 2, 1)
    T[:, m:, m:] = M_M
    return T


@dataclass(frozen=True)
class _Without:
    kept: npt.NDArray[np.bool_]  # (k,): classes that still have samples
    scores: Floats  # (..., m, k kept)
    novelty: Floats  # (..., m)


def _without(
    T: Floats, y: Ints, weight: Floats, kept: npt.NDArray[np.bool_], geometry: Geometry, knobs: Knobs
) -> _Without:
    """Score each of g groups by the head without it, from T, the Grams of [its samples; all means] under P.

    The letters are those of docs/head.md, section 4.

    Args:
        T: (g, m + k, m + k).
        y: (g, m), class index of each sample.
        weight: (g, m), how many times it counts.
        kept: (k,), classes that have samples without any of these groups.
        geometry: Of all samples.
        knobs: Of the head.
    """
    m, k = y.shape[1], len(geometry.n)
    Y = np.eye(k)[y]
    n_left = np.round(geometry.n - _weights(y, weight, k))  # whole numbers
    squared_left = geometry.n**2 / geometry.effective - _weights(y, weight**2, k)
    rooted = np.sqrt(weight)[..., None] * Y
    one = np.sqrt(weight)[..., None] * np.eye(m)
    C = np.concatenate([one, -rooted], -1)
    B_inverse = np.eye(m) - (rooted * np.where(kept, 1 / geometry.n, 0)) @ _turned(rooted)
    CT = C @ T
    H = B_inverse - CT @ _turned(C)
    T = T + _turned(CT) @ np.linalg.solve(H, CT)
    means = np.broadcast_to(np.diag(geometry.n), (len(y), k, k))
    A = np.concatenate([-_turned(weight[..., None] * Y), means], -1)[:, kept] / n_left[:, kept, None]
    n = n_left[:, kept] ** 2 / squared_left[:, kept]  # as many samples of like weight
    w = centre_weights(n, knobs.centre_damping)
    centre = w[:, None] @ A
    Q = np.hstack([np.eye(m), np.zeros((m, k))]) - centre
    V = A - centre
    QT = Q @ T
    lengths = lengths_of(np.einsum("gij,gij->gi", V @ T, V), n, w, geometry.delta, knobs)
    squared = np.maximum(np.einsum("gij,gij->gi", QT, Q), 0)
    scores, novelty = scores_and_novelty(squared, QT @ _turned(V), lengths, geometry.delta, knobs)
    return _Without(kept, scores, novelty)


def _turned(A: Floats) -> Floats:
    """Return the transposes of a stack of matrices."""
    return A.swapaxes(-1, -2)


def _solved_without(
    read: Callable[[Ints], Floats], members: Ints, y: Ints, weight: Floats, geometry: Geometry, knobs: Knobs
) -> _Without:
    """Score a large group by the head without it, solved anew: the same as `_without`, in other steps.

    What the group brings to W is taken off it: about the means of before, u u' of each sample; and since these
    means go along with the group, r_c r_c' / n_c' of each class that stays, r_c the sum of its u.

    Args:
        read: Samples (m, d) of these rows, shifted.
        members: Rows of the group.
        y, weight: Class index of each, and how many times it counts.
        geometry: Of all samples.
        knobs: Of the head.
    """
    k, d = geometry.m.shape
    A = geometry.L @ geometry.L.T
    r = np.zeros((k, d))
    places = np.arange(len(members))
    for strip in strips(places, d):
        U = np.sqrt(weight[strip])[:, None] * (read(members[strip]) - geometry.m[y[strip]])
        r += (np.sqrt(weight[strip]) * (np.arange(k)[:, None] == y[strip])) @ U
        _subtract_products(A, U)
    n_left = np.round(geometry.n - np.bincount(y, weight, k))  # whole numbers
    squared_left = geometry.n**2 / geometry.effective - np.bincount(y, weight**2, k)
    kept = n_left > 0
    step = r[kept] / n_left[kept, None]
    _subtract_products(A, step * np.sqrt(n_left[kept, None]))
    L = triangular.cholesky(A, overwrite=True)
    assert L is not None, "what is left has a scatter, and Lambda is in it"
    m, n = geometry.m[kept] - step, n_left[kept] ** 2 / squared_left[kept]
    w = centre_weights(n, knobs.centre_damping)
    centre = w @ m
    V = triangular.whiten(L, m - centre)
    lengths = lengths_of(np.einsum("kd,kd->k", V, V), n, w, geometry.delta, knobs)
    scores, novelty = np.empty((len(members), len(m))), np.empty(len(members))
    for strip in strips(places, d):
        Z = triangular.whiten(L, read(members[strip]) - centre, overwrite=True)
        squared = np.einsum("nd,nd->n", Z, Z)
        scores[strip], novelty[strip] = scores_and_novelty(squared, Z @ V.T, lengths, geometry.delta, knobs)
    return _Without(kept, scores, novelty)


def _subtract_products(A: Floats, U: Floats) -> None:
    """Take U'U off A (d, d), some rows of it at a time."""
    for start in range(0, len(A), triangular.BLOCK):
        at = slice(start, start + triangular.BLOCK)
        A[at] -= U[:, at].T @ U


def calibrate(left_out: LeftOut, false_alarm_rate: float = FALSE_ALARM_RATE) -> Calibration:
    """Return temperature and novelty threshold from left-out scores.

    The stated rate is that of known parts: groups weigh alike, in the threshold as in T, which maximises the
    likelihood. So a rare class may be called unknown more often than the rate, and a frequent one less.

    Raises:
        ValueError: the rate is not in [0, 1].
    """
    if not 0 <= false_alarm_rate <= 1:
        raise ValueError(f"`false_alarm_rate` is a share in [0, 1], not {false_alarm_rate}")
    known = left_out.known
    if not known.any():
        return replace(UNCALIBRATED, false_alarm_rate=false_alarm_rate, classes=len(left_out.class_ids))
    truth, scores, novelty = left_out.truth[known], left_out.scores[known], left_out.novelty[known]
    per_group = np.bincount(left_out.groups[known]).astype(float)
    weight, groups = 1 / per_group[left_out.groups[known]], int(np.sum(per_group > 0))
    return Calibration(
        temperature=_temperature(scores, truth, weight, 0.5 / (groups + 2)),
        novelty_threshold=_conformal(novelty, weight, false_alarm_rate),
        false_alarm_rate=false_alarm_rate,
        classes=len(left_out.class_ids),
    )


def quadratic_score(left_out: LeftOut) -> Floats:
    """Return the quadratic score (n,) of each label, at the temperature that suits the left-out scores best.

    2 p_label - sum_c p_c^2 (Brier, 1950): 1 for certainty, -1 for certainty of the contrary, so that no label
    weighs more than that. It sees more than the few decisions that change. That of a sample that is not `known`
    says nothing: of one class left, any label is certain.
    """
    known = left_out.known
    T = UNCALIBRATED.temperature
    if known.any():
        per_group = np.bincount(left_out.groups[known]).astype(float)
        weight = 1 / per_group[left_out.groups[known]]
        doubt = 0.5 / (len(np.unique(left_out.groups)) + 2)
        T = _temperature(left_out.scores[known], left_out.truth[known], weight, doubt)
    p = probabilities_of(left_out.scores, T)
    return np.asarray(2 * p[np.arange(len(p)), left_out.truth] - (p**2).sum(1))


def _temperature(scores: Floats, truth: Ints, weight: Floats, doubt: float) -> float:
    """Return the T of the highest likelihood, where each label is wrong with probability `doubt`.

    Without doubt, samples that are all right would make T infinite.
    """
    if scores.shape[1] < 2:
        return UNCALIBRATED.temperature
    rows = np.arange(len(truth))
    there = np.isfinite(scores)

    def loss(log_t: float) -> float:
        p = probabilities_of(scores, float(np.exp(log_t)))
        log_p = np.log(np.where(there, np.maximum(p, TINY), 1))
        any_class = log_p.sum(1) / there.sum(1)
        return -float(weight @ ((1 - doubt) * log_p[rows, truth] + doubt * any_class)) / float(weight.sum())

    # Cosines differ by at most 2: below 1 nothing is ever sure, above 1000 everything is.
    return float(np.exp(lowest(loss, 0.0, float(np.log(1000)))))


def _conformal(values: Floats, weight: Floats, rate: float) -> float:
    """Return the lowest of the values that a new group is expected to exceed at most at this rate.

    Conformal risk control (Angelopoulos and others, arXiv:2208.02814): the new group may be as bad as can be, so
    one more is counted. A rate below 1 / (g + 1) cannot be promised; then it is the highest value.

    Args:
        values: (n,), n > 0.
        weight: (n,), adding up to the number of groups g.
        rate: In (0, 1).
    """
    order = np.argsort(values)[::-1]
    above = (np.cumsum(weight[order]) + 1) / (weight.sum() + 1)
    return float(values[order][int(np.searchsorted(above[:-1], rate + 1e-12, side="right"))])


@dataclass(frozen=True)
class ClassScore:
    """How often samples of one class are recognised when their group was never learned.

    Attributes:
        recall: Share in [0, 1].
        low, high: Where it will lie for as many new groups, 95 %. Images of one group count as one.
        samples, groups: How many it rests on.
    """

    class_id: bytes
    recall: float
    low: float
    high: float
    samples: int
    groups: int


@dataclass(frozen=True)
class Score:
    """The honest score: left-out groups only.

    Attributes:
        balanced_accuracy: Mean recall over classes seen in more than one group; None where there is no such class.
        low, high: 95 % interval of it; 0 and 1 where nothing is known.
        classes: Per class, in column order; a class seen in one group only has recall 0 and is reported apart.
        one_group: Classes that only one group has, which therefore cannot be scored yet.
        samples, groups: How many it rests on: those of classes that are judged.
        summed: Samples that were learned from and are not scored: a release's, known by their sums only.
        unjudged: Samples of the classes in `one_group`, which it does not rest on.
    """

    balanced_accuracy: float | None
    low: float
    high: float
    classes: tuple[ClassScore, ...]
    one_group: tuple[bytes, ...]
    samples: int
    groups: int
    summed: int = 0
    unjudged: int = 0


def decisions_right(
    left_out: LeftOut, calibration: Calibration, *, unknown_is_miss: bool = True
) -> npt.NDArray[np.bool_]:
    """Return (n,) bool: the decision shown would have been the label; the forced one where nothing `tells`."""
    right = (left_out.scores.argmax(1) == left_out.truth) & ~left_out.orphan
    if unknown_is_miss:
        right &= ~left_out.unknown(calibration)
    return np.asarray(right, bool)


def score(left_out: LeftOut, calibration: Calibration, *, unknown_is_miss: bool = True) -> Score:
    """Return the honest score of left-out decisions.

    Intervals say where the recall of as many new groups will lie in 95 % of cases; each group is one draw
    (docs/head.md, section 5). Where one class is left when a group is, its samples of that class are not counted.
    """
    left_out = left_out.chosen(left_out.counts)
    right = decisions_right(left_out, calibration, unknown_is_miss=unknown_is_miss)
    classes: list[ClassScore] = []
    one_group: list[bytes] = []
    for i, class_id in enumerate(left_out.class_ids):
        of_class = left_out.truth == i
        if not of_class.any():
            continue
        groups = len(np.unique(left_out.groups[of_class]))
        recall, low, high = share(right[of_class], left_out.groups[of_class], repeats=_NEW_PARTS)
        classes.append(ClassScore(class_id, recall, low, high, int(of_class.sum()), groups))
        if left_out.orphan[of_class].all():
            one_group.append(class_id)
    scored = [c for c in classes if c.class_id not in one_group]
    balanced, low, high = _mean_recall(scored, right, left_out) if scored else (None, 0.0, 1.0)
    judged = np.isin(left_out.truth, [left_out.class_ids.index(c.class_id) for c in scored])
    if len(scored) == 1:  # one figure has one interval
        classes = [replace(c, low=low, high=high) if c is scored[0] else c for c in classes]
    return Score(
        balanced_accuracy=balanced,
        low=low,
        high=high,
        classes=tuple(classes),
        one_group=tuple(one_group),
        samples=int(judged.sum()),
        groups=len(np.unique(left_out.groups[judged])),
        summed=left_out.summed,
        unjudged=int((~judged).sum()),
    )


def _mean_recall(
    scored: Sequence[ClassScore], right: npt.NDArray[np.bool_], left_out: LeftOut
) -> tuple[float, float, float]:
    """Return the mean recall of these classes, with its 95 % interval from low to high.

    Below and above apart: each class reaches as far as its own interval, and `_DEPENDENCE` times half its width at
    least. Half a width alone says too much of a class whose few groups were all right: its interval lies below.
    """
    columns = [left_out.class_ids.index(c.class_id) for c in scored]
    wider = float(np.sqrt(_together(right, left_out.truth, left_out.groups, columns))) / len(scored)
    recall, low, high = np.array([(c.recall, c.low, c.high) for c in scored]).T
    least = _DEPENDENCE * (high - low) / 2
    below, above = (wider * float(np.linalg.norm(np.maximum(d, least))) for d in (recall - low, high - recall))
    mean = float(recall.mean())
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def share(right: npt.NDArray[np.bool_], groups: Ints, *, repeats: float = 1.0) -> tuple[float, float, float]:
    """Return the share that is right, with its 95 % interval from low to high.

    Args:
        right: (n,) bool, n > 0.
        groups: (n,) int64. Images of one group are repetitions of one draw, not evidence of their own.
        repeats: Divides the evidence; 2 asks where the share of as many other groups will lie.
    """
    p = float(right.mean())
    low, high = _interval(p, _effective(right, groups) / repeats)
    return p, low, high


def balanced_share(right: npt.NDArray[np.bool_], truth: Ints, groups: Ints) -> tuple[float, float, float]:
    """Return the mean over classes of the share that is right, with its 95 % interval from low to high.

    Classes weigh the same in the interval too, where a rare one is most of it: their half widths below and above
    add up apart, squared, since the interval of a small share is longer above than below.

    Args:
        right: (n,) bool, n > 0.
        truth: (n,) int64, class of each.
        groups: (n,) int64; see `share`.
    """
    classes = np.unique(truth).tolist()
    p, low, high = np.array([share(right[truth == c], groups[truth == c]) for c in classes]).T
    wider = float(np.sqrt(_together(right, truth, groups, classes))) / len(classes)
    mean = float(p.mean())
    below, above = (wider * float(np.linalg.norm(p - end)) for end in (low, high))
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def _together(right: npt.NDArray[np.bool_], truth: Ints, groups: Ints, columns: Sequence[int]) -> float:
    """Return how many times the variance of the mean recall is that of classes which have no group in common.

    One part may show several classes, and be hard as a whole: then its classes are right and wrong together. The
    variance of each group's sum over the classes, against the sum of their variances (a ratio mean's, linearised;
    Cochran, 1977). 1 where no group has two of the classes; never below it, which would mostly be luck.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    off = np.zeros((int(groups.max(initial=-1)) + 1, len(columns)))
    for i, column in enumerate(columns):
        rows = truth == column
        residual = (right[rows] - right[rows].mean()) / rows.sum()
        off[:, i] = np.bincount(groups[rows], weights=residual, minlength=len(off))
    apart = float((off**2).sum())
    if apart == 0:  # nothing varies from group to group: what one group alone shows has all of it in common
        return float(len(columns)) if len(off) == 1 else 1.0
    return max(1.0, float((off.sum(1) ** 2).sum()) / apart)


def _effective(right: npt.NDArray[np.bool_], groups: Ints) -> float:
    """Return how many independent draws these clustered results are worth.

    The design effect from the variance between groups (Kish, 1965), never more than one draw a group, and fewer
    where that variance itself rests on few groups (Korn and Graubard, 1998).
    """
    _, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    n, g = sizes.sum(), len(sizes)
    p = right.mean()
    few = (t_quantile(np.inf, _UPPER) / t_quantile(max(g - 1, 1), _UPPER)) ** 2
    if p in (0.0, 1.0) or g < 2:
        return float(n**2 / (sizes**2).sum()) * few  # nothing varies: as if groups were wholly alike
    residual = np.bincount(index, weights=right - p)
    cluster = float((residual**2).sum() * g / (g - 1) / n**2)
    return float(np.clip(p * (1 - p) / max(cluster, 1e-12), 1.0, g)) * few


def _interval(p: float, n: float) -> tuple[float, float]:
    """Return the Jeffreys 95 % interval of a share p seen in n draws."""
    tail = 1 - _UPPER
    a, b = n * p + 0.5, n * (1 - p) + 0.5
    low = 0.0 if p == 0 else beta_quantile(a, b, tail)
    high = 1.0 if p == 1 else beta_quantile(a, b, 1 - tail)
    return min(low, p), max(high, p)


CALIBRATION_BINS: Final = 15


def calibration_error(probabilities: Floats, truth: Ints, weight: Floats | None = None) -> float:
    """Return the expected calibration error: how far the probability shown is from how often it is right.

    Over `CALIBRATION_BINS` bins of equally many samples by the probability of the best class (Naeini, 2015).

    Args:
        probabilities: (n, k), n > 0.
        truth: (n,) column of the right class.
        weight: (n,) positive; None weighs every sample alike.

    Raises:
        ValueError: there are no samples.

    >>> float(calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1])))
    0.0
    """
    if not len(truth):
        raise ValueError("`truth` is empty: an error needs samples")
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    weight = np.ones(len(truth)) if weight is None else weight
    order = np.argsort(confidence, kind="stable")
    if confidence[order[0]] == confidence[order[-1]]:
        bins = [order]
    else:
        bins = [rows for rows in np.array_split(order, CALIBRATION_BINS) if len(rows)]
    error = sum(abs(float(weight[rows] @ (confidence[rows] - right[rows]))) for rows in bins)
    return error / float(weight.sum())
