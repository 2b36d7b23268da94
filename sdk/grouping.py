"""Groups for a score: those given, joined where codes are so alike that they must show one part.

A score is honest only if what is left out is new to the head. Pictures of one part that carry no common group id
vouch for each other: on magnetic tile leaving out single images claims 94 % where the truth on parts never seen is
57 %. docs/head.md, section 4, has the rule and what it measured. Rules this module keeps:

- Computed when scoring, from codes alone; never stored.
- A given group is never divided. Groups are joined within a class only: a copy under another
  label flatters no score, and the audit wants to see it.
- What is only somewhat alike is joined where something in it is very alike: parts of one texture are the former,
  pictures of one part are both.
- Groups of a release that somebody named are settled: never joined with each other.
- The same result whatever the order of the samples and the ids of their classes. No files, no clock, no random
  numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk import triangular
from sdk.codes import check_codes
from sdk.head import DEFAULT_KNOBS, Knobs
from sdk.moments import Floats, Ints, Moments, same, scatter
from sdk.shelf import CodeRows, strips

FALSE_JOIN_RATE: Final = 0.005
"""Share of pairs of unrelated samples that are as alike as the threshold. From 0.002 to 0.01 it matters little
(decision 0010)."""
EVIDENCE: Final = 0.2
"""What was joined needs two groups in it whose likeness lies this far on the way from the threshold to being the
same (decision 0064)."""
MIN_PAIRS: Final = 200
"""Fewer unrelated pairs cannot show that share: groups stay as given."""
MAX_CLASS_GROUPS: Final = 4096
"""Groups of one class that are compared with each other: 67 MB of similarities."""
MANY: Final = 0.1
"""Joining this share of the groups is worth a note."""
GROUPED: Final = 0.5
"""A class with this share of its samples in groups of several was grouped by somebody, single samples too."""
_REFERENCE_SAMPLES: Final = 1024
"""Samples whose pairs set the threshold, spread evenly over the classes: half a million pairs."""
_DIGEST_BYTES: Final = 16
"""Of a code, to tell it from another of its class and group: no two codes share them by chance."""
_MIN_CLASS: Final = 3
"""Of two samples the residuals are opposite, however alike they are."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grouping:
    """Groups to leave out together, and how they came about.

    Attributes:
        groups: Group id, n: of each sample the smallest of the given ids that were joined.
        given: Number of groups given.
        found: Number of groups after joining.
        shared_given: Given groups of several samples.
        joined_shared: Those of them that were joined with another group of several samples.
        threshold: Mean similarity from which on groups were joined; None where nothing could be compared.
        skipped: Classes of more than `MAX_CLASS_GROUPS` groups, whose groups stay as given.
    """

    groups: tuple[str, ...]
    given: int
    found: int
    shared_given: int
    joined_shared: int
    threshold: float | None
    skipped: tuple[bytes, ...]

    def note(self, *, none_given: bool = True) -> str | None:
        """Return what people should know of it, in a sentence; None where next to nothing was joined.

        Args:
            none_given: Whoever calls knows that groups of single samples are no groups that somebody gave.
        """
        if self.joined_shared:
            return (
                f"{self.joined_shared} of {self.shared_given} groups of several images look like the same part as "
                "another group and are left out together: check the group ids."
            )
        if self.given - self.found < MANY * self.given:
            return None
        alone = self.shared_given or not none_given
        what = "Single images look like parts that others show" if alone else "No groups were given"
        return (
            f"{what}: {self.given} groups became {self.found}, by how alike their codes are. "
            "Give a group id for each part, and the score needs no guess."
        )


def derive_groups(
    codes: CodeRows,
    class_ids: Sequence[bytes],
    groups: Sequence[str],
    *,
    settled: Set[str] = frozenset(),
    knobs: Knobs = DEFAULT_KNOBS,
    stop: Callable[[], bool] | None = None,
) -> Grouping:
    """Return the groups to leave out together.

    Cost: as much as a solve and the projection of all samples, O(d^3 + n d^2); then O(g^2 d) for each class of g
    groups. Memory: O(d^2), a strip of projected samples (`sdk.shelf`), and O(g (g + d)) for the class at hand.

    Args:
        codes: (n, d) int8.
        class_ids: Class after merges, n.
        groups: Group id, n; an id of its own where nothing is known of a sample.
        settled: Group ids that are not joined with each other, see `sdk.layouts.settled_groups`.
        knobs: Of the head that is scored.
        stop: Asked between steps; true ends the work with `InterruptedError`.

    Raises:
        FeatureSizeError: the codes are not (n, d) int8.
        ValueError, TypeError: a list is not of n, or a class id is not 16 bytes.

    >>> rng = np.random.default_rng(0)
    >>> parts = rng.integers(-90, 90, (40, 64))
    >>> twice = np.concatenate([parts, parts + rng.integers(-9, 9, parts.shape)]).astype(np.int8)
    >>> found = derive_groups(twice, [b"a" * 16, b"b" * 16] * 40, [f"{i:02}" for i in range(80)])
    >>> found.given, found.found <= 40, found.groups[0] == found.groups[40]
    (80, True, True)
    """
    check_codes(codes)
    if not len(codes) == len(class_ids) == len(groups):
        raise ValueError(f"{len(class_ids)} classes and {len(groups)} groups for {len(codes)} codes")
    as_given = groups_as_given(groups)
    given, shared = as_given.given, _shared(groups)
    names = tuple(str(group) for group in groups)
    column = {class_id: i for i, class_id in enumerate(sorted(set(class_ids)))}
    if len(names) < _MIN_CLASS or all(name in settled for name in names):
        return as_given
    order = _in_one_order(codes, class_ids, names)
    y = np.array([column[class_ids[i]] for i in order], np.int64)
    residuals = _Residuals.of(codes, class_ids, order, y, knobs)
    if residuals is None:
        return as_given
    threshold = _threshold(residuals, y)
    _ask(stop)
    if threshold is None:
        return as_given
    ids = [names[i] for i in order]
    joined = Union(sorted(set(ids)))
    together: list[tuple[str, str]] = []
    skipped: list[bytes] = []
    for c in range(int(y.max()) + 1):
        rows = np.flatnonzero(y == c)
        if len(rows) < _MIN_CLASS:
            continue
        here = [ids[i] for i in rows]
        if len(set(here)) > MAX_CLASS_GROUPS:
            skipped.append(class_ids[order[rows[0]]])
            continue
        together += _alike(residuals.whitened(rows), residuals.feature_size, here, shared, settled, threshold)
        _ask(stop)
    for one, other in together:
        joined.join(one, other)
    found = tuple(joined.root(name) for name in names)
    of_root: dict[str, int] = {}
    for name in shared:
        of_root[joined.root(name)] = of_root.get(joined.root(name), 0) + 1
    return Grouping(
        groups=found,
        given=given,
        found=len(set(found)),
        shared_given=len(shared),
        joined_shared=sum(count for count in of_root.values() if count > 1),
        threshold=threshold,
        skipped=tuple(skipped),
    )


def groups_as_given(groups: Sequence[str]) -> Grouping:
    """Return the groups as they are, nothing joined."""
    given = len(set(groups))
    return Grouping(tuple(map(str, groups)), given, given, len(_shared(groups)), 0, None, ())


def _ask(stop: Callable[[], bool] | None) -> None:
    if stop is not None and stop():
        raise InterruptedError("grouping was asked to stop")


def _shared(groups: Sequence[str]) -> frozenset[str]:
    counts: dict[str, int] = {}
    for group in groups:
        counts[str(group)] = counts.get(str(group), 0) + 1
    return frozenset(group for group, count in counts.items() if count > 1)


def _in_one_order(codes: CodeRows, class_ids: Sequence[bytes], names: Sequence[str]) -> Ints:
    """Return the rows by class, group and code, in one order whatever the caller's.

    Sums of floats depend on it, and so might a pair at the threshold; of many samples it says which are compared.
    Classes stand by their first group and code: their ids are drawn anew by every export.
    """
    digests: list[bytes] = []
    for strip in strips(np.arange(len(codes)), codes.shape[1]):
        digests += (
            blake2b(code, digest_size=_DIGEST_BYTES).digest() for code in np.ascontiguousarray(codes[strip])
        )
    own = list(zip(names, digests, strict=True))
    first: dict[bytes, tuple[str, bytes]] = {}
    for class_id, said in zip(class_ids, own, strict=True):
        first[class_id] = min(first.get(class_id, said), said)
    return np.array(sorted(range(len(own)), key=lambda i: (first[class_ids[i]], class_ids[i], *own[i])), np.int64)


@dataclass(frozen=True)
class _Residuals:
    """Rows of length one, (n, d): samples less their class's mean, as the head's metric sees them.

    They are made when asked for, a strip at a time: all of them would be 8 d bytes for each sample.
    """

    _codes: CodeRows
    _order: Ints  # (n,) row of `_codes`, by class
    _y: Ints  # (n,) class index of the sorted ids
    _m: Floats  # (k, d) class means
    _L: Floats  # (d, d) Cholesky factor of their metric's inverse

    @classmethod
    def of(
        cls, codes: CodeRows, class_ids: Sequence[bytes], order: Ints, y: Ints, knobs: Knobs
    ) -> _Residuals | None:
        """Return the residuals; None where all are zero.

        The ridge is rho mean eigenvalues of the directions that the samples span: with fewer samples than numbers
        in a code, the head's own would whiten away what two pictures of one part have in common.

        Args:
            codes: (n, d) int8.
            class_ids: Class, n.
            order: (n,) rows sorted by class.
            y: (n,) class index of these.
            knobs: rho.
        """
        n, d = codes.shape
        moments = Moments(d)
        moments.add(codes, class_ids)
        _, count, s, squares = moments.per_class(same)
        m = s / count[:, None]
        spread = float((squares - (m * s).sum(1)).sum())
        ridge = knobs.rho * spread / max(min(d, n - len(count)), 1)
        if ridge <= 0:
            return None
        W = scatter(moments.gram, s, m, overwrite=True)
        del moments
        W[np.diag_indices(d)] += ridge
        L = triangular.cholesky(W, overwrite=True)
        assert L is not None, "a positive ridge was added"
        return cls(codes, order, y, m, L)

    @property
    def feature_size(self) -> int:
        """d."""
        return len(self._L)

    def some(self, most: int) -> Ints:
        """Return at most so many of the rows that are not zero, spread evenly over them."""
        here = [strip[self._plain(strip).any(1)] for strip in strips(np.arange(len(self._order)), len(self._L))]
        rows = np.concatenate(here)
        return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]

    def whitened(self, rows: Ints) -> Iterator[Float32]:
        """Yield the residuals of these rows in turn, a strip at a time."""
        for strip in strips(rows, len(self._L)):
            white = triangular.whiten(self._L, self._plain(strip), overwrite=True)
            length = np.sqrt(np.einsum("nd,nd->n", white, white))
            white /= np.where(length > 0, length, np.inf)[:, None]
            yield white.astype(np.float32)

    def _plain(self, rows: Ints) -> Floats:
        x = self._codes[self._order[rows]].astype(np.float64)
        x -= self._m[self._y[rows]]
        return x


def _threshold(residuals: _Residuals, y: Ints) -> float | None:
    """Return the similarity that `FALSE_JOIN_RATE` of unrelated pairs reach; None where there are too few.

    Pairs of two classes are unrelated. With one class the lower half of all pairs, mirrored, stands for them:
    pictures of one part are alike, not unlike.
    """
    rows = residuals.some(_REFERENCE_SAMPLES)
    if not len(rows):
        return None
    white = np.concatenate(list(residuals.whitened(rows)))
    upper = np.triu_indices(len(rows), 1)
    found = (white @ white.T)[upper]
    across = (y[rows][:, None] != y[rows][None])[upper]
    if across.any():
        pairs = found[across]
        return None if len(pairs) < MIN_PAIRS else float(np.quantile(pairs, 1 - FALSE_JOIN_RATE))
    if len(found) < MIN_PAIRS:
        return None
    return float(2 * np.median(found) - np.quantile(found, FALSE_JOIN_RATE))


def _alike(
    white: Iterable[Float32],
    feature_size: int,
    ids: Sequence[str],
    shared: frozenset[str],
    settled: Set[str],
    threshold: float,
) -> list[tuple[str, str]]:
    """Return pairs of group ids of one class to join.

    Two groups of several samples each say that they are all of their part, and where most samples of the class are
    in such groups, single ones say so too. These are joined only where they are as alike across as given groups
    are inside (the median of this class).

    Args:
        white: (n_c, d), sorted by group, in strips.
        feature_size: d.
        ids: Group id of each.
        shared: Group ids of several samples, of any class.
        settled: Group ids that are not joined with each other.
        threshold: Mean similarity from which on two groups are joined.
    """
    names, group, counts = np.unique(np.array(ids, object).astype(str), return_inverse=True, return_counts=True)
    total = np.zeros((len(names), feature_size), np.float32)
    start = 0
    for strip in white:
        here, starts = np.unique(group[start : start + len(strip)], return_index=True)
        total[here] += np.add.reduceat(strip, starts, axis=0)
        start += len(strip)
    size = counts.astype(np.float32)
    S = total @ total.T
    inside = (np.diag(S) - size)[size > 1] / (size * (size - 1))[size > 1]
    S /= size
    S /= size[:, None]
    trusted = np.array([name in shared for name in names])
    if size[trusted].sum() >= GROUPED * len(ids):
        trusted[:] = True
    strict = max(threshold, float(np.median(inside))) if len(inside) else np.inf
    S[np.outer(trusted, trusted) & (strict > S)] = -np.inf
    final = np.array([name in settled for name in names])
    S[np.outer(final, final)] = -np.inf
    np.fill_diagonal(S, -np.inf)
    total /= size[:, None]
    joins = _average_linkage(S, size, threshold)
    return [(str(names[a]), str(names[b])) for a, b in _evident(joins, total, threshold)]


def _evident(joins: list[tuple[int, int]], means: Float32, threshold: float) -> Iterator[tuple[int, int]]:
    """Yield the joins of those clusters that have a pair far more alike than the threshold.

    Where classes are large, chance makes many pairs that are as alike as the threshold, and a class has its kinds
    of texture; pictures of one part are alike beyond both: not each of them to each other, but some.

    Args:
        joins: (kept, gone), in the order in which they were joined.
        means: (m, d), mean of each group's residuals.
        threshold: See `_alike`.
    """
    clusters: dict[int, list[int]] = {}
    for kept, gone in joins:
        clusters.setdefault(kept, [kept]).extend(clusters.pop(gone, [gone]))
    enough = threshold + EVIDENCE * (1 - threshold)
    for rows in clusters.values():
        alike = means[rows] @ means[rows].T
        np.fill_diagonal(alike, -np.inf)
        if alike.max() >= enough:
            yield from ((rows[0], row) for row in rows[1:])


def _average_linkage(S: Float32, size: Float32, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs of clusters joined while their mean similarity is at least `threshold`, (kept, gone).

    By chains of nearest neighbours: joining two clusters makes neither more alike to a third, so whatever the
    order, the result is one (Murtagh, 1983).

    Args:
        S: (m, m) similarity, minus infinity on the diagonal and where two must not be joined. Overwritten.
        size: (m,) samples of each. Overwritten.
    """
    joins: list[tuple[int, int]] = []
    alive = np.ones(len(S), bool)
    chain: list[int] = []

    def remove(cluster: int) -> None:
        alive[cluster] = False
        S[cluster], S[:, cluster] = -np.inf, -np.inf

    while alive.any():
        if not chain:
            chain.append(int(alive.argmax()))
        end, before = chain[-1], chain[-2] if len(chain) > 1 else -1
        nearest = int(S[end].argmax())
        if before >= 0 and S[end, before] >= S[end, nearest]:
            nearest = before
        if S[end, nearest] < threshold:  # nothing nearer can come: this one is complete
            remove(chain.pop())
        elif nearest != before:
            chain.append(nearest)
        else:
            del chain[-2:]
            kept, gone = min(end, before), max(end, before)
            joins.append((kept, gone))
            row = (size[kept] * S[kept] + size[gone] * S[gone]) / (size[kept] + size[gone])
            size[kept] += size[gone]
            remove(gone)
            row[[kept, gone]] = -np.inf
            S[kept], S[:, kept] = row, row
    return joins


class Union:
    """Which group ids were joined; the smallest stands for all."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with each of these ids alone."""
        self._parent = {name: name for name in names}

    def root(self, name: str) -> str:
        """Return the id that stands for this one."""
        while self._parent[name] != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        """Let two be one."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low
