"""The moments: exact integer sums of labelled codes, and how a station's own samples count in them.

docs/head.md, sections 2 and 7, has the equations; what a head makes of them is `sdk.head`. Rules of this module:

- The state is four sums of small integers per class (count, class sum, squared length) and one Gram matrix, held
  as exact integers: the same bit for bit whatever the order, the batches or the device.
- Weights and shifts of own samples are whole numbers, so weighted sums are as exact.

No files, no clock, no random numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk import triangular
from sdk.class_ids import check_class_ids
from sdk.codes import FULL_SCALE, check_codes
from sdk.errors import FeatureSizeError, HeadError, UnknownClassError
from sdk.shelf import CodeRows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_SAMPLES: Final = 100_000_000
"""Beyond it sums of code products could leave the integers that float64 holds exactly (2^53)."""
TINY: Final = 1e-30
_EXACT_F32_ROWS: Final = 1024
"""Rows per float32 product: 1024 x 127^2 < 2^24, below which float32 sums of integers are exact."""
_GRAM_ROWS: Final = 64
"""Rows of a d x d matrix that are made and added to another at a time: 0.8 MB at d = 1584 instead of 20. As fast
for many samples, and three times as fast for one."""
MAX_OWN_WEIGHT: Final = 16
"""One own label in seventeen then has half the say; heavier ones gained little (decision 0019)."""
_MAX_SHIFT: Final = 254
"""Codes lie in [-127, 127]."""
_ROUNDING: Final = 1e-9
"""Share of the samples' squared lengths by which a scatter may be negative. Rounding is below 1e-12, d 2^-53."""


class Moments:
    """Counts, class sums, squared lengths and the Gram matrix of labelled codes, as exact integers.

    Classes are kept apart by id as they were labelled; merging classes is adding their sums, so it happens
    when solving and can neither lose nor change anything here.

    >>> moments = Moments(2)
    >>> good, bad = b"g" * 16, b"b" * 16
    >>> moments.add(np.array([[1, 2], [3, 4]], np.int8), [good, bad])
    >>> moments.subtract(np.array([[3, 4]], np.int8), [bad])
    >>> moments.counts()[good], bad in moments.counts(), moments.gram.tolist()
    (1, False, [[1, 2], [2, 4]])
    """

    def __init__(self, feature_size: int) -> None:
        if feature_size < 1:
            raise ValueError("feature_size must be positive")
        self.feature_size = feature_size
        self.gram: Ints = np.zeros((feature_size, feature_size), np.int64)
        self._counts: dict[bytes, int] = {}
        self._sums: dict[bytes, Ints] = {}
        self._squares: dict[bytes, int] = {}

    def add(self, codes: CodeRows, class_ids: Sequence[bytes]) -> None:
        """Add samples: codes (n, d) int8 and one class id of 16 bytes for each.

        Cost: O(n d^2), and O(d^2) for one sample. Memory: of `_EXACT_F32_ROWS` samples, and one d x d float32.

        Raises:
            FeatureSizeError: the codes are not (n, d) int8.
            ValueError, TypeError: not as many class ids as codes, or one is not 16 bytes. Nothing is changed.
        """
        self._change(codes, class_ids, +1)

    def subtract(self, codes: CodeRows, class_ids: Sequence[bytes]) -> None:
        """Take samples out again: the moments are then as if these had never been added.

        Raises:
            FeatureSizeError: the codes are not (n, d) int8.
            ValueError, TypeError: not as many class ids as codes, or one is not 16 bytes.
            UnknownClassError: more samples of a class are taken out than are in; nothing is changed.
        """
        codes = self._checked(codes, class_ids)
        for class_id, count in Counter(class_ids).items():
            if count > self._counts.get(class_id, 0):
                raise UnknownClassError(
                    f"class {class_id.hex()[:8]} has fewer samples than are taken out",
                    hint="Fold the log again: the moments do not belong to it.",
                )
        self._change(codes, class_ids, -1)

    def _checked(self, codes: CodeRows, class_ids: Sequence[bytes]) -> CodeRows:
        check_codes(codes, self.feature_size)
        if len(codes) != len(class_ids):
            raise ValueError(f"{len(class_ids)} class ids for {len(codes)} codes: one for each")
        check_class_ids(class_ids)
        return codes

    def _change(self, codes: CodeRows, class_ids: Sequence[bytes], sign: int) -> None:
        codes = self._checked(codes, class_ids)
        if sum(self._counts.values()) + len(codes) > MAX_SAMPLES:
            raise HeadError(f"over {MAX_SAMPLES} samples", hint="Ship exemplars instead (docs/head.md).")
        index = {class_id: i for i, class_id in enumerate(dict.fromkeys(class_ids))}
        y = np.fromiter((index[class_id] for class_id in class_ids), np.int64, len(codes))
        n = np.bincount(y, minlength=len(index))
        s = np.zeros((len(index), self.feature_size), np.int64)
        q = np.zeros(len(index), np.int64)
        for start in range(0, len(codes), _EXACT_F32_ROWS):
            at = np.arange(start, min(start + _EXACT_F32_ROWS, len(codes)))
            rows, of = codes[at], y[at]
            block = rows.astype(np.float32)
            self._add_to_gram(block, sign)
            here = np.unique(of)
            s[here] += ((here[:, None] == of).astype(np.float32) @ block).astype(np.int64)
            # One row's squares may pass 2^24 where d is large.
            np.add.at(q, of, np.einsum("nd,nd->n", rows, rows, dtype=np.int64))
        for class_id, i in index.items():
            count = self._counts.get(class_id, 0) + sign * int(n[i])
            if count == 0:
                del self._counts[class_id], self._sums[class_id], self._squares[class_id]
                continue
            self._counts[class_id] = count
            self._sums[class_id] = sign * s[i] + self._sums.get(class_id, 0)
            self._squares[class_id] = self._squares.get(class_id, 0) + sign * int(q[i])

    def _add_to_gram(self, block: npt.NDArray[np.float32], sign: int) -> None:
        """Add the products of whole numbers (m, d), m at most `_EXACT_F32_ROWS`, with themselves."""
        product = None if len(block) == 1 else block.T @ block
        for start in range(0, self.feature_size, _GRAM_ROWS):
            at = slice(start, start + _GRAM_ROWS)
            some = np.outer(block[0, at], block[0]) if product is None else product[at]
            if sign > 0:
                self.gram[at] += some.astype(np.int64)
            else:
                self.gram[at] -= some.astype(np.int64)

    @classmethod
    def of_sums(cls, class_ids: Sequence[bytes], n: Ints, s: Ints, squares: Ints, gram: Ints) -> Moments:
        """Return the moments that these sums are, as `per_class` and `gram` gave them.

        What no set of codes can have is refused: sums beyond int8, a Gram matrix that is not symmetric or whose
        diagonal is not the squared lengths, a scatter with an eigenvalue below zero.

        Cost: O(d^3), a Cholesky factorisation.

        Args:
            class_ids: k ids of 16 bytes, none twice.
            n: (k,) samples of each class, above 0.
            s: (k, d) class sums.
            squares: (k,) squared lengths.
            gram: (d, d).

        Raises:
            HeadError: no set of codes has these sums.
        """
        moments = cls(len(gram))
        fault = _impossible(class_ids, n, s, squares, gram)
        if fault is not None:
            raise HeadError(f"no samples have these moments: {fault}", hint="Export the bundle again.")
        moments.gram = gram.copy()
        for i, class_id in enumerate(class_ids):
            moments._counts[class_id] = int(n[i])
            moments._sums[class_id] = s[i].copy()
            moments._squares[class_id] = int(squares[i])
        return moments

    def merged(self, canonical: Callable[[bytes], bytes]) -> Moments:
        """Return moments of the same samples under the class ids that stand for theirs after merges."""
        twin = Moments(self.feature_size)
        twin.gram = self.gram.copy()
        for i, class_id in enumerate((found := self.per_class(canonical))[0]):
            twin._counts[class_id] = int(found[1][i])
            twin._sums[class_id] = found[2][i]
            twin._squares[class_id] = int(found[3][i])
        return twin

    def counts(self) -> dict[bytes, int]:
        """Return the number of samples of each class that has any."""
        return dict(self._counts)

    def per_class(self, canonical: Callable[[bytes], bytes]) -> tuple[tuple[bytes, ...], Ints, Ints, Ints]:
        """Return class ids after merges, sorted, with counts (k,), sums (k, d) and squared lengths (k,)."""
        ids = sorted({canonical(c) for c in self._counts})
        column = {class_id: i for i, class_id in enumerate(ids)}
        n = np.zeros(len(ids), np.int64)
        s = np.zeros((len(ids), self.feature_size), np.int64)
        q = np.zeros(len(ids), np.int64)
        for class_id, count in self._counts.items():
            i = column[canonical(class_id)]
            n[i] += count
            s[i] += self._sums[class_id]
            q[i] += self._squares[class_id]
        return tuple(ids), n, s, q

    def copy(self) -> Moments:
        """Return moments of their own with the same sums."""
        twin = Moments(self.feature_size)
        twin.gram = self.gram.copy()
        twin._counts = dict(self._counts)
        twin._sums = {c: s.copy() for c, s in self._sums.items()}
        twin._squares = dict(self._squares)
        return twin

    def digest(self) -> str:
        """Return SHA-256 over all sums, 64 hex digits: equal when and only when the moments are."""
        digest = hashlib.sha256(b"headway-moments-1\0")
        digest.update(np.ascontiguousarray(self.gram, "<i8").data)
        for class_id in sorted(self._counts):
            digest.update(class_id + self._counts[class_id].to_bytes(8, "little"))
            digest.update(self._sums[class_id].astype("<i8").tobytes())
            digest.update(self._squares[class_id].to_bytes(16, "little"))
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moments) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]  # mutable


def _impossible(class_ids: Sequence[bytes], n: Ints, s: Ints, squares: Ints, gram: Ints) -> str | None:
    """Return why no set of codes has these sums; None where one may."""
    d, most = len(gram), FULL_SCALE**2
    if len(set(class_ids)) < len(class_ids) or any(len(class_id) != 16 for class_id in class_ids):
        return "a class stands twice"
    if (n < 1).any() or int(n.max(initial=0)) > MAX_SAMPLES or int(n.sum()) > MAX_SAMPLES:
        return f"counts are not from 1 to {MAX_SAMPLES}"
    # No product below leaves 64 bits. The absolute value of the smallest integer would: two comparisons.
    bound = FULL_SCALE * n[:, None]
    if (s > bound).any() or (s < -bound).any() or (squares < 0).any() or (squares > most * d * n).any():
        return "a sum is larger than so many codes can make it"
    if (gram > most * n.sum()).any() or (gram < -most * n.sum()).any():
        return "the Gram matrix is larger than so many codes can make it"
    if not np.array_equal(gram, gram.T):
        return "the Gram matrix is not symmetric"
    if int(np.trace(gram)) != int(squares.sum()):
        return "the diagonal of the Gram matrix is not the squared lengths"
    slack = _ROUNDING * float(squares.sum())
    m = s / n[:, None]
    if (squares - (m * s).sum(1) < -slack).any():
        return "a class's mean is longer than its samples"
    W = scatter(gram, s, m)
    W[np.diag_indices(d)] += slack + TINY
    if triangular.cholesky(W, overwrite=True) is None:
        return "the scatter is negative in some direction"
    return None


def scatter(gram: Ints, s: Ints, m: Floats, *, overwrite: bool = False) -> Floats:
    """Return W = G - sum_c n_c m_c m_c' (d, d); no other d x d is made.

    Args:
        gram: G (d, d).
        s, m: Class sums and means (k, d).
        overwrite: Put W into the memory of G, whose numbers are then gone.
    """
    W = gram.view(np.float64) if overwrite else np.empty(gram.shape)
    for start in range(0, len(W), _GRAM_ROWS):
        at = slice(start, start + _GRAM_ROWS)
        W[at] = gram[at] - s[:, at].T.astype(np.float64) @ m
    return W


def same(class_id: bytes) -> bytes:
    return class_id


@dataclass(frozen=True)
class Adaptation:
    """How a station's own samples enter its head, beside those of the release and of other devices.

    It belongs to one station's head, never to the live set that all devices share. `sdk.adaptation` chooses it.

    Attributes:
        own_weight: An own sample counts as so many, at least 1. Whole numbers keep the sums exact.
        shift: d whole numbers, how this station's codes lie beside the release's: taken off every code of its
            own, learned or decided. Empty is no shift.
    """

    own_weight: int = 1
    shift: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.own_weight <= MAX_OWN_WEIGHT:
            raise HeadError(
                f"own samples cannot count {self.own_weight} times",
                hint=f"From 1 to {MAX_OWN_WEIGHT} times can be.",
            )
        if any(abs(step) > _MAX_SHIFT for step in self.shift):
            raise HeadError(
                f"a shift of over {_MAX_SHIFT} is more than codes can differ by", hint="Estimate it again."
            )

    def offset(self, feature_size: int) -> Ints:
        """Return the shift as (feature_size,) int64, zeros where there is none.

        Raises:
            FeatureSizeError: it is a shift of another feature space.
        """
        if not self.shift:
            return np.zeros(feature_size, np.int64)
        if len(self.shift) != feature_size:
            raise FeatureSizeError(
                f"a shift of {len(self.shift)} numbers for codes of {feature_size}",
                hint="It was made for another feature space; estimate it again.",
            )
        return np.array(self.shift, np.int64)


UNADAPTED: Final = Adaptation()


@dataclass(frozen=True)
class Sums:
    """What a head is solved from: exact sums per class after merges, weights and shift applied.

    Attributes:
        class_ids: k ids, sorted.
        samples: (k,) how many samples there are.
        n: (k,) their weights added up.
        s: (k, d) class sums, weighted.
        squares: (k,) squared lengths, weighted.
        gram: (d, d), weighted.
        effective: (k,) float64, equally weighted samples that give a mean as certain: (sum w)^2 / sum w^2
            (Kish, 1965).
    """

    class_ids: tuple[bytes, ...]
    samples: Ints
    n: Ints
    s: Ints
    squares: Ints
    gram: Ints
    effective: Floats


def sums_of(
    moments: Moments,
    *,
    canonical: Callable[[bytes], bytes] = same,
    own: Moments | None = None,
    adaptation: Adaptation = UNADAPTED,
) -> Sums:
    """Return the sums of all samples, the station's own among them shifted and weighted.

    Cost: O(d^2) where something is adapted, O(k d) otherwise.

    Args:
        moments: Of all samples, the own ones too.
        canonical: The class id that stands for an id after merges.
        own: Of the station's own samples.
        adaptation: What is done with these.

    Raises:
        FeatureSizeError: `own` or the shift is of another size.
        HeadError: `own` has what `moments` has not.
    """
    ids, n, s, squares = moments.per_class(canonical)
    if own is None or adaptation == UNADAPTED or not own.counts():
        return Sums(ids, n, n, s, squares, moments.gram, n.astype(np.float64))
    if own.feature_size != moments.feature_size:
        raise FeatureSizeError(
            f"own samples of {own.feature_size} numbers among samples of {moments.feature_size}",
            hint="They are of another feature space.",
        )
    w, shift = adaptation.own_weight, adaptation.offset(own.feature_size)
    own_ids, own_n, own_s, own_squares = own.per_class(canonical)
    column = {class_id: i for i, class_id in enumerate(ids)}
    at = np.array([column.get(class_id, -1) for class_id in own_ids])
    if (at < 0).any() or (own_n > n[at]).any():
        raise HeadError("own samples are missing among all samples", hint="Fold the log again.")
    total = own_s.sum(0)
    moved_s = own_s - own_n[:, None] * shift
    moved_squares = own_squares - 2 * (own_s @ shift) + own_n * (shift @ shift)
    gram = moments.gram.copy()
    for start in range(0, len(gram), _GRAM_ROWS):
        some = slice(start, start + _GRAM_ROWS)
        gram[some] += (w - 1) * own.gram[some]
        if adaptation.shift:
            less = np.outer(total[some], shift) + np.outer(shift[some], total - int(own_n.sum()) * shift)
            gram[some] -= w * less
    samples, others = n.copy(), n[at] - own_n
    n[at] = others + w * own_n
    s[at] += w * moved_s - own_s
    squares[at] += w * moved_squares - own_squares
    effective = n.astype(np.float64)
    effective[at] = effective[at] ** 2 / (others + w**2 * own_n)
    return Sums(ids, samples, n, s, squares, gram, effective)
