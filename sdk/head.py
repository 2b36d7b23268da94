"""The head: exact integer moments and the closed-form solve. How it is scored is `sdk.score`.

docs/head.md has the equations and their sources; the names here are its letters. Rules this module keeps:

- The state is four sums of small integers per class (count, class sum, squared length) and one Gram matrix, held
  as exact integers: the same bit for bit whatever the order, the batches or the device.
- A head is a pure function of the moments, the merges of classes and the knobs. Updating gives a new head.

No files, no clock, no random numbers.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, dpotrs, strtri
from scipy.special import softmax  # scipy.stats takes a second to import

from sdk.codes import FULL_SCALE, Code, Codes
from sdk.errors import FeatureSizeError, HeadError, UnknownClassError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FALSE_ALARM_RATE: Final = 0.02
"""Share of known samples that may be called unknown, by default. On NEU, 10 labels of a new class, 5 / 2 / 1 %
show its recall as 92 / 95 / 97 % and flag 89 / 83 / 76 % of a class never seen."""
MAX_SAMPLES: Final = 100_000_000
"""Beyond it sums of code products could leave the integers that float64 holds exactly (2^53)."""
TINY: Final = 1e-30
_EXACT_F32_ROWS: Final = 1024
"""Rows per float32 product: 1024 x 127^2 < 2^24, below which float32 sums of integers are exact."""
MAX_OWN_WEIGHT: Final = 16
"""One own label in seventeen then has half the say; heavier ones gained little (decision 0019)."""
_MAX_SHIFT: Final = 254
"""Codes lie in [-127, 127]."""
_ROUNDING: Final = 1e-9
"""Share of the samples' squared lengths by which a scatter may be negative. Rounding is below 1e-12, d 2^-53."""
_MIN_REST: Final = 1e-6
"""A sample's leverage is below 1; taking out one that never was in can reach it."""


@dataclass(frozen=True)
class Knobs:
    """Fixed constants of the head's format version (docs/head.md, section 2).

    Attributes:
        rho: Shrinkage of the within-class scatter, in units of its diagonal and mean eigenvalue.
        centre_damping: Labels at which a class counts half in the centre.
        lift_floor: Smallest share of |v|^2 that the few-label correction may leave.
        distance_weight: Of the logarithm of the squared distance in novelty.
    """

    rho: float = 1.0
    centre_damping: float = 15.0
    lift_floor: float = 0.25
    distance_weight: float = 0.05


DEFAULT_KNOBS: Final = Knobs()


@dataclass(frozen=True)
class Calibration:
    """What turns scores into probabilities and novelty into "unknown".

    Attributes:
        temperature: T of `probabilities_of`.
        novelty_threshold: Novelty above it is unknown.
        false_alarm_rate: Share of left-out known samples above the threshold, as asked for.
        classes: Number of classes it was made with. Cosines of one, two and more classes are on different
            scales, so a head with another number of classes needs a new calibration.
    """

    temperature: float
    novelty_threshold: float
    false_alarm_rate: float = FALSE_ALARM_RATE
    classes: int = 0


UNCALIBRATED: Final = Calibration(temperature=10.0, novelty_threshold=np.inf)
"""Nothing is unknown, and probabilities are a guess: for a head that has no left-out scores yet."""


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

    def add(self, codes: Codes, class_ids: Sequence[bytes]) -> None:
        """Add samples: codes (n, d) int8 and one class id of 16 bytes for each.

        Cost: O(n d^2), and O(d^2) for one sample.

        Raises:
            FeatureSizeError: the codes are not (n, d) int8.
        """
        self._change(codes, class_ids, +1)

    def subtract(self, codes: Codes, class_ids: Sequence[bytes]) -> None:
        """Take samples out again: the moments are then as if these had never been added.

        Raises:
            FeatureSizeError: the codes are not (n, d) int8.
            UnknownClassError: more samples of a class are taken out than are in; nothing is changed.
        """
        codes = self._checked(codes, class_ids)
        for class_id in set(class_ids):
            if class_ids.count(class_id) > self._counts.get(class_id, 0):
                raise UnknownClassError(
                    f"class {class_id.hex()[:8]} has fewer samples than are taken out",
                    hint="Fold the log again: the moments do not belong to it.",
                )
        self._change(codes, class_ids, -1)

    def _checked(self, codes: Codes, class_ids: Sequence[bytes]) -> Codes:
        d = self.feature_size
        if codes.ndim != 2 or codes.shape[1] != d or codes.dtype != np.int8 or len(codes) != len(class_ids):
            raise FeatureSizeError(
                f"codes {codes.dtype} {codes.shape} for {len(class_ids)} labels, not int8 (n, {d})",
                hint="These codes come from another feature space.",
            )
        return codes

    def _change(self, codes: Codes, class_ids: Sequence[bytes], sign: int) -> None:
        codes = self._checked(codes, class_ids)
        if sum(self._counts.values()) + len(codes) > MAX_SAMPLES:
            raise HeadError(f"over {MAX_SAMPLES} samples", hint="Ship exemplars instead (docs/head.md).")
        index = {class_id: i for i, class_id in enumerate(dict.fromkeys(class_ids))}
        y = np.fromiter((index[class_id] for class_id in class_ids), np.int64, len(codes))
        n = np.bincount(y, minlength=len(index))
        s = np.zeros((len(index), self.feature_size), np.int64)
        q = np.zeros(len(index), np.int64)
        for start in range(0, len(codes), _EXACT_F32_ROWS):
            rows, of = codes[start : start + _EXACT_F32_ROWS], y[start : start + _EXACT_F32_ROWS]
            block = rows.astype(np.float32)
            product = np.outer(block[0], block[0]) if len(block) == 1 else block.T @ block
            if sign > 0:
                self.gram += product.astype(np.int64)
            else:
                self.gram -= product.astype(np.int64)
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
        digest = hashlib.sha256(b"headway-moments-1\0" + self.gram.astype("<i8").tobytes())
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
    W = gram.astype(np.float64) - s.T.astype(np.float64) @ m
    W[np.diag_indices(d)] += slack + TINY
    if dpotrf(W.T, lower=1, overwrite_a=1)[1]:
        return "the scatter is negative in some direction"
    return None


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
    gram = moments.gram + (w - 1) * own.gram
    if adaptation.shift:
        cross = np.outer(total, shift)
        gram -= w * (cross + cross.T - int(own_n.sum()) * np.outer(shift, shift))
    samples, others = n.copy(), n[at] - own_n
    n[at] = others + w * own_n
    s[at] += w * moved_s - own_s
    squares[at] += w * moved_squares - own_squares
    effective = n.astype(np.float64)
    effective[at] = effective[at] ** 2 / (others + w**2 * own_n)
    return Sums(ids, samples, n, s, squares, gram, effective)


@dataclass(frozen=True)
class Decisions:
    """What a head says of n codes; row i of each belongs to code i.

    Attributes:
        class_index: (n,) int64, the best class, unknown or not (forced choice).
        probability: (n,) float64, of that class.
        novelty: (n,) float64, higher is stranger; its scale is the head's own.
        unknown: (n,) bool, novelty above the threshold: the decision shown is "unknown".
        probabilities: (n, k) float64.
    """

    class_index: Ints
    probability: Floats
    novelty: Floats
    unknown: npt.NDArray[np.bool_]
    probabilities: Floats


@dataclass(frozen=True)
class Head:
    """A solved head. Columns of all results are in the order of `class_ids`.

    With one class there is nothing to tell apart: its score is minus the Mahalanobis distance to the mean, its
    probability 1, and novelty that distance, so that the head says known or unknown.

    Attributes:
        class_ids: k class ids after merges, sorted.
        counts: Samples per class, own and others.
        feature_size: d.
        knobs: With which it was solved.
        calibration: See `Calibration`.
        delta: How much longer one noisy sample is than its class's mean (docs/head.md, equation 6).
        adaptation: How own samples were weighed and shifted; the codes it is asked about are shifted alike.
    """

    class_ids: tuple[bytes, ...]
    counts: tuple[int, ...]
    feature_size: int
    knobs: Knobs
    calibration: Calibration
    delta: float
    _R: npt.NDArray[np.float32]  # (d, d), R' of P = R'R, R the inverse of the Cholesky factor
    _mu: npt.NDArray[np.float32]  # (d,): the centre, and the station's shift: what is taken off a code
    _PV: npt.NDArray[np.float32]  # (d, k): P v_c
    _offset: Floats  # (k,): b_c, what the noise of the means takes from q' P v_c
    _plain: Floats  # (k,): v_c' P v_c
    _length: Floats  # (k,): D_c, the corrected |v_c|
    _m: Floats  # (k, d): class means
    _PM: Floats  # (d, k): P m_c
    _n: Floats  # (k,): weights of the samples, added up
    _squared_n: Floats  # (k,): their squares, added up
    adaptation: Adaptation = UNADAPTED
    _steps: tuple[tuple[float, Floats], ...] = ()  # a, u (d,): P = R'R - sum a u u', of samples since the solve

    def _cosines(self, codes: Codes) -> tuple[Floats, Floats]:
        """Return scores (n, k) and novelty (n,)."""
        if codes.ndim != 2 or codes.shape[1] != self.feature_size or codes.dtype != np.int8:
            raise FeatureSizeError(
                f"codes {codes.dtype} {codes.shape} for a head of int8 (n, {self.feature_size})",
                hint="The codes come from another feature space; check the release.",
            )
        q = codes.astype(np.float32) - self._mu
        white = q @ self._R
        squared = np.einsum("nd,nd->n", white, white).astype(np.float64)
        for a, u in self._steps:
            squared -= a * (q @ u) ** 2
        lengths = Lengths(self._n**2 / self._squared_n, self._plain, self._length, self._offset)
        along = np.asarray(q @ self._PV, np.float64)
        return scores_and_novelty(np.maximum(squared, 0), along, lengths, self.delta, self.knobs)

    def scores(self, codes: Codes) -> Floats:
        """Return the score (n, k) of codes (n, d): cosine to each class direction, few-label classes corrected.

        Raises:
            FeatureSizeError: the codes are not (n, d) int8.
        """
        return self._cosines(codes)[0]

    def novelty(self, codes: Codes) -> Floats:
        """Return the novelty (n,) of codes (n, d): by direction and distance; with one class, the distance."""
        return self._cosines(codes)[1]

    def reading(self, code: Code, class_id: bytes) -> tuple[Floats, Floats, float]:
        """Return weights (d,), centre (d,) and rest: this code's score is weights @ (code - centre) + rest.

        What the score is made of, column by column. With one class, minus the distance is read in the same way.
        The weights hold for this code only: its own whitened length divides them. The rest is what the noise of
        the means took from the class (docs/head.md, equation 8), and lies in no column.

        Args:
            code: (d,) int8.
            class_id: After merges.

        Raises:
            FeatureSizeError: the code is not (d,) int8.
            UnknownClassError: the head knows no such class.
        """
        if class_id not in self.class_ids:
            raise UnknownClassError(f"the head knows no class {class_id.hex()[:8]}", hint="Ask for another class.")
        if code.shape != (self.feature_size,):
            raise FeatureSizeError(
                f"a code of shape {code.shape} for a head of ({self.feature_size},)",
                hint="The code comes from another feature space; check the release.",
            )
        c = self.class_ids.index(class_id)
        centre = self._mu.astype(np.float64)
        q = code - centre
        Pq = self._whitened(q)
        norm = float(np.sqrt(max(float(q @ Pq), 0.0))) or 1.0
        if len(self.class_ids) == 1:
            return -Pq / norm, centre, 0.0
        scale = norm * float(self._length[c])
        return np.asarray(self._PV[:, c], np.float64) / scale, centre, float(self._offset[c]) / scale

    def predict_proba(self, codes: Codes) -> Floats:
        """Return class probabilities (n, k) of codes (n, d), calibrated on left-out scores."""
        return probabilities_of(self.scores(codes), self.calibration.temperature)

    def decide(self, codes: Codes) -> Decisions:
        """Return the decisions for codes (n, d). Cost: O(d^2 + d k) for each."""
        scores, novelty = self._cosines(codes)
        probabilities = probabilities_of(scores, self.calibration.temperature)
        best = scores.argmax(1)
        return Decisions(
            class_index=best,
            probability=probabilities[np.arange(len(best)), best],
            novelty=novelty,
            unknown=novelty > self.calibration.novelty_threshold,
            probabilities=probabilities,
        )

    def recalibrated(self, calibration: Calibration) -> Head:
        """Return this head with another calibration."""
        return replace(self, calibration=calibration)

    def with_shift(self, shift: tuple[int, ...]) -> Head:
        """Return this head for codes that lie elsewhere by `shift`; what it has learned stays where it is.

        Raises:
            FeatureSizeError: the shift is of another feature space.
        """
        adaptation = Adaptation(self.adaptation.own_weight, shift)
        step = adaptation.offset(self.feature_size) - self.adaptation.offset(self.feature_size)
        return replace(self, adaptation=adaptation, _mu=self._mu + step.astype(np.float32))

    @property
    def updatable(self) -> bool:
        """Whether `with_sample` and `without_sample` apply: some class has two samples, so there is a scatter."""
        return self.delta > 0

    def with_sample(self, code: Code, class_id: bytes, *, own: bool = False) -> Head:
        """Return this head with one more sample of a class, which may be new.

        For serving at once, before `solve` has the canonical head: Lambda and delta keep their values, everything
        else is as exact as float32 allows (docs/head.md, section 6). Cost: O(d^2 + d k), against O(d^3), and O(d)
        more for each later decision.

        Args:
            code: (d,) int8.
            class_id: After merges.
            own: Whether the station's own operators labelled it: then it is weighed and shifted as they are.

        Raises:
            FeatureSizeError: the code is not (d,) int8.
            HeadError: not `updatable`.
        """
        x, w = self._checked(code, own)
        if class_id not in self.class_ids:
            at = bisect_left(self.class_ids, class_id)
            return self._changed(
                ids=(*self.class_ids[:at], class_id, *self.class_ids[at:]),
                classes=_Classes(self.counts, self._n, self._squared_n).inserted(at, w),
                m=np.insert(self._m, at, x, 0),
                PM=np.insert(self._PM, at, self._whitened(x), 1),
            )
        return self._moved(self.class_ids.index(class_id), x, w)

    def without_sample(self, code: Code, class_id: bytes, *, own: bool = False) -> Head:
        """Return this head without one of its samples; the reverse of `with_sample`, at the same cost.

        Args:
            code: (d,) int8, of a sample that it was solved with.
            class_id: After merges.
            own: As it was learned.

        Raises:
            FeatureSizeError: the code is not (d,) int8.
            UnknownClassError: the head knows no such class.
            HeadError: not `updatable`, nothing would be left, or the sample was not in.
        """
        x, w = self._checked(code, own)
        if class_id not in self.class_ids:
            raise UnknownClassError(f"the head knows no class {class_id.hex()[:8]}", hint="Solve it anew.")
        c = self.class_ids.index(class_id)
        if self.counts[c] == 1:
            if len(self.counts) == 1:
                raise HeadError("no sample would be left", hint="Solve the base samples anew.")
            ids = self.class_ids[:c] + self.class_ids[c + 1 :]
            keep = np.arange(len(self.counts)) != c
            classes = _Classes(self.counts, self._n, self._squared_n).kept(keep)
            return self._changed(ids=ids, classes=classes, m=self._m[keep], PM=self._PM[:, keep])
        return self._moved(c, x, -w)

    def _checked(self, code: Code, own: bool) -> tuple[Floats, int]:
        """Return what a code is learned as, and how many times it counts."""
        if code.shape != (self.feature_size,) or code.dtype != np.int8:
            raise FeatureSizeError(
                f"a code {code.dtype} {code.shape} for a head of int8 ({self.feature_size},)",
                hint="The code comes from another feature space; check the release.",
            )
        if not self.updatable:
            raise HeadError("a head without scatter cannot be updated", hint="Solve it anew.")
        if not own:
            return np.asarray(code, np.float64), 1
        return np.asarray(code - self.adaptation.offset(self.feature_size), np.float64), self.adaptation.own_weight

    def _moved(self, c: int, x: Floats, w: int) -> Head:
        """Return the head whose class c, which stays, has sample x counted w times more, or -w times less."""
        classes = _Classes(self.counts, self._n, self._squared_n).counted(c, w)
        if classes.n[c] <= 0:
            raise HeadError("this sample was not in the head", hint="Solve it anew.")
        step, r = w / classes.n[c], x - self._m[c]
        share = self._n[c] * step  # of r r' in the within-class scatter
        Pr = self._whitened(r)
        rest = 1 + share * float(r @ Pr)  # Sherman and Morrison, 1950
        if rest <= _MIN_REST:
            raise HeadError("this sample was not in the head", hint="Solve it anew.")
        factor = share / rest
        steps = (*self._steps, (factor, Pr))
        PM = self._PM - np.outer(factor * Pr, r @ self._PM)
        m = self._m.copy()
        m[c] += step * r
        PM[:, c] += step / rest * Pr
        return self._changed(ids=self.class_ids, classes=classes, m=m, PM=PM, steps=steps)

    def _whitened(self, x: Floats) -> Floats:
        """Return P x."""
        found = np.asarray(self._R @ (x.astype(np.float32) @ self._R), np.float64)
        for a, u in self._steps:
            found -= a * float(u @ x) * u
        return found

    def _changed(
        self,
        *,
        ids: tuple[bytes, ...],
        classes: _Classes,
        m: Floats,
        PM: Floats,
        steps: tuple[tuple[float, Floats], ...] | None = None,
    ) -> Head:
        effective = classes.n**2 / classes.squared_n
        w = centre_weights(effective, self.knobs.centre_damping)
        mu, V = w @ m, m - w @ m
        PV = PM - (PM @ w)[:, None]
        lengths = lengths_of(np.einsum("kd,dk->k", V, PV), effective, w, self.delta, self.knobs)
        return replace(
            self,
            class_ids=ids,
            counts=classes.counts,
            _steps=self._steps if steps is None else steps,
            _mu=(mu + self.adaptation.offset(self.feature_size)).astype(np.float32),
            _PV=PV.astype(np.float32),
            _offset=lengths.offset,
            _plain=lengths.plain,
            _length=lengths.corrected,
            _m=m,
            _PM=PM,
            _n=classes.n,
            _squared_n=classes.squared_n,
        )


class _Classes(NamedTuple):
    """How many samples each class has, their weights added up, and the squares of these."""

    counts: tuple[int, ...]
    n: Floats
    squared_n: Floats

    def inserted(self, at: int, w: int) -> _Classes:
        return _Classes(
            (*self.counts[:at], 1, *self.counts[at:]),
            np.insert(self.n, at, float(w)),
            np.insert(self.squared_n, at, float(w * w)),
        )

    def kept(self, keep: npt.NDArray[np.bool_]) -> _Classes:
        counts = tuple(count for count, stays in zip(self.counts, keep, strict=True) if stays)
        return _Classes(counts, self.n[keep], self.squared_n[keep])

    def counted(self, c: int, w: int) -> _Classes:
        sign = 1 if w > 0 else -1
        one = np.arange(len(self.n)) == c
        counts = tuple(count + sign * int(here) for count, here in zip(self.counts, one, strict=True))
        return _Classes(counts, self.n + w * one, self.squared_n + sign * w * w * one)


@dataclass(frozen=True)
class Geometry:
    """The solved quantities that both serving and scoring start from."""

    n: Floats  # (k,) weights of the samples, added up
    effective: Floats  # (k,) see `Sums`
    m: Floats  # (k, d)
    L: Floats  # (d, d) lower Cholesky factor of W + Lambda
    delta: float


def geometry_of(sums: Sums, rho: float) -> tuple[Geometry, npt.NDArray[np.float32]]:
    """Return the geometry and R = L^-1, lower triangular (d, d), so that (W + Lambda)^-1 = R'R.

    R is float32, as decisions are, and is computed in it: |R q|^2 changed by 6e-9 of itself at d = 1280.
    """
    d = len(sums.gram)
    count = sums.n.astype(np.float64)
    m = sums.s / count[:, None]
    spread = sums.squares - (m * sums.s).sum(1)  # tr W_c, exact up to one rounding
    trace = float(spread.sum())
    if trace <= 0:  # each class one sample, or all samples of a class alike: no scatter to whiten by
        return Geometry(count, sums.effective, m, np.eye(d), 0.0), np.eye(d, dtype=np.float32)
    W = sums.gram.astype(np.float64)
    W -= sums.s.T.astype(np.float64) @ m
    diagonal = np.diag_indices(d)
    ridge = rho * (np.maximum(W[diagonal], 0) + trace / d) / 2
    W[diagonal] += ridge
    # LAPACK works in place on column order; W is symmetric, so its transpose is W in that order.
    L, failed = dpotrf(W.T, lower=1, clean=1, overwrite_a=1)
    if failed:
        raise HeadError(
            "the scatter matrix is not positive definite",
            hint="The moments are damaged: fold the label log again.",
        )
    R, _ = strtri(L.astype(np.float32), lower=1, overwrite_c=1)
    return Geometry(count, sums.effective, m, L, _delta(count, spread, R, ridge)), R


def _delta(n: Floats, spread: Floats, R: npt.NDArray[np.float32], ridge: Floats) -> float:
    """Return delta (docs/head.md, equation 6), from the moments alone.

    tr(P W) = d - tr(P Lambda) is the sum of all samples' leverages h; classes share it as they share tr W.
    """
    total = len(R) - float(np.einsum("ij,ij->j", R, R) @ ridge)  # the diagonal of P = R'R
    many = n > 1
    h = (total * spread / spread.sum() / n)[many]
    return float(np.mean(h / np.maximum(1 - 1 / n[many] - h, 0.1)))


def centre_weights(n: Floats, damping: float) -> Floats:
    w = n / (n + damping)
    return np.asarray(w / w.sum(axis=-1, keepdims=True))


class Lengths(NamedTuple):
    """What scores need of the class directions v_c beside themselves; (k,) each.

    Attributes:
        n: Samples of like weight.
        plain: v_c' P v_c.
        corrected: D_c, how long v_c is without the noise of the means.
        offset: b_c, how much smaller that noise makes q' P v_c.
    """

    n: Floats
    plain: Floats
    corrected: Floats
    offset: Floats


def lengths_of(plain: Floats, n: Floats, w: Floats, delta: float, knobs: Knobs) -> Lengths:
    """Return the corrected lengths (docs/head.md, equations 8 and 9) from v_c' P v_c.

    A class of few labels cannot say itself how long its direction is without noise. As far as its labels do not
    outweigh that, it is taken to be as long as those of all classes are on average, by their weight in the centre.
    """
    plain = np.maximum(plain, TINY)
    off = np.eye(len(n)) - w
    own = plain - delta * (off**2 / n).sum(1)
    least = knobs.lift_floor * plain
    typical = float(w @ np.maximum(own, least))
    squared = np.maximum((n * np.maximum(own, 0) + delta) / (n + delta / typical), least)
    return Lengths(n, plain, np.sqrt(squared), delta * (off * w / n).sum(1))


def scores_and_novelty(
    squared: Floats, along: Floats, lengths: Lengths, delta: float, knobs: Knobs
) -> tuple[Floats, Floats]:
    """Return scores (m, k) and novelty (m,) of m samples (docs/head.md, equations 10 and 11).

    Args:
        squared: (m,), q' P q.
        along: (m, k), q' P v_c.
        lengths: Of the k classes.
        delta: Typical squared distance of a new sample to the true mean of its class.
        knobs: Of the head.
    """
    norm = np.sqrt(squared)
    if len(lengths.n) == 1:
        return -norm[:, None], norm
    scores = (along + lengths.offset) / np.where(norm > 0, norm, 1)[:, None] / lengths.corrected
    novelty = 1 - scores.max(1)
    if delta > 0:
        distance = (squared[:, None] - 2 * along + lengths.plain) / (1 + 1 / lengths.n)
        novelty += knobs.distance_weight * np.log(np.maximum(distance.min(1) / delta, TINY))
    return scores, novelty


def probabilities_of(scores: Floats, temperature: float) -> Floats:
    """Return the probabilities (m, k) of scores (m, k), of which minus infinity is no class.

    The softmax of T score, and of 0 for a direction at right angles to all classes, whose probability these share:
    what is like none of them may be any (docs/head.md, equation 12).
    """
    there = np.isfinite(scores)
    p = softmax(np.hstack([temperature * scores, np.zeros((len(scores), 1))]), axis=1)
    return np.asarray(p[:, :-1] + p[:, -1:] * there / there.sum(1, keepdims=True))


def solve(
    moments: Moments,
    *,
    canonical: Callable[[bytes], bytes] = same,
    knobs: Knobs = DEFAULT_KNOBS,
    calibration: Calibration = UNCALIBRATED,
    own: Moments | None = None,
    adaptation: Adaptation = UNADAPTED,
) -> Head:
    """Return the head of these moments.

    Cost: one Cholesky factorisation and the inverse of its factor, O(d^3), whatever the number of samples.

    Args:
        moments: Exact sums; unchanged.
        canonical: The class id that stands for an id after merges (`Fold.canonical`).
        knobs: Constants of the format version.
        calibration: From left-out scores; without one nothing is unknown.
        own, adaptation: The station's own samples among them, and how they count; see `sums_of`.

    Raises:
        HeadError: no samples, or moments that no set of samples has.
        FeatureSizeError: `own` or `adaptation` is of another feature space.

    >>> moments = Moments(3)
    >>> moments.add(np.array([[9, 1, 0], [8, 2, 0], [0, 1, 9]], np.int8), [b"g" * 16, b"g" * 16, b"b" * 16])
    >>> head = solve(moments)
    >>> head.class_ids[head.decide(np.array([[1, 0, 9]], np.int8)).class_index[0]]
    b'bbbbbbbbbbbbbbbb'
    """
    sums = sums_of(moments, canonical=canonical, own=own, adaptation=adaptation)
    if not sums.class_ids:
        raise HeadError("there are no labelled samples to learn from", hint="Label at least one image.")
    if (sums.n < 0).any() or (np.diag(sums.gram) < 0).any():
        raise HeadError("the moments have negative counts", hint="They are damaged: fold the log again.")
    geometry, R = geometry_of(sums, knobs.rho)
    w = centre_weights(geometry.effective, knobs.centre_damping)
    mu = w @ geometry.m
    V = geometry.m - mu
    PM, _ = dpotrs(geometry.L, geometry.m.T, lower=1)
    PV = PM - (PM @ w)[:, None]
    lengths = lengths_of(np.einsum("kd,dk->k", V, PV), geometry.effective, w, geometry.delta, knobs)
    return Head(
        class_ids=sums.class_ids,
        counts=tuple(int(c) for c in sums.samples),
        feature_size=moments.feature_size,
        knobs=knobs,
        calibration=calibration,
        delta=geometry.delta,
        _R=R.T,
        _mu=(mu + adaptation.offset(moments.feature_size)).astype(np.float32),
        _PV=PV.astype(np.float32),
        _offset=lengths.offset,
        _plain=lengths.plain,
        _length=lengths.corrected,
        _m=geometry.m,
        _PM=PM,
        _n=geometry.n,
        _squared_n=geometry.n**2 / geometry.effective,
        adaptation=adaptation,
    )
