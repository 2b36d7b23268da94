"""The head: solved in closed form from exact moments (`sdk.moments`). How it is scored is `sdk.score`.

docs/head.md has the equations and their sources; the names here are its letters. Rules this module keeps:

- A head is a pure function of the moments, the merges of classes and the knobs. Updating gives a new head.

No files, no clock, no random numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sdk import triangular
from sdk.class_ids import check_class_ids
from sdk.codes import Code, Codes, check_codes
from sdk.errors import FeatureSizeError, HeadError, UnknownClassError
from sdk.moments import (
    TINY,
    UNADAPTED,
    Adaptation,
    Floats,
    Ints,
    Moments,
    Sums,
    same,
    scatter,
    sums_of,
)

FALSE_ALARM_RATE: Final = 0.02
"""Share of known parts that may be called unknown, by default. On NEU ten labels of a new class then show a recall
of 94 %, and 82 % of a class never seen are flagged (5 %: 88)."""
_FEW: Final = 0.1
"""How fast the ridge grows as samples get fewer than numbers in a code: rho (1 + d / (10 n)). Fewer say less of
how features vary together (docs/decisions/0020)."""
_STRIPS: Final = 8
"""Of the factor, for one code: nine sixteenths of it are read. More strips take as long in calls."""
_LANES: Final = 32
"""Strips of a multiple of so many columns gave bit for bit what the whole gives (OpenBLAS, x86) where the size is
a multiple of half of it: zeros are left out by whole vector registers. Other sizes are left whole."""
_MIN_REST: Final = 1e-6
"""A sample's leverage is below 1; taking out one that never was in can reach it."""


@dataclass(frozen=True)
class Knobs:
    """Fixed constants of the head's format version (docs/head.md, section 2).

    Attributes:
        rho: Shrinkage of the within-class scatter where samples are many, in units of its diagonal and mean
            eigenvalue; few are shrunk more.
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
            scales, so a head with another number of classes needs a new calibration. 0 where nobody says.
    """

    temperature: float
    novelty_threshold: float
    false_alarm_rate: float = FALSE_ALARM_RATE
    classes: int = 0

    def of_classes(self, k: int) -> Calibration:
        """Return the calibration for a head of k classes that has none of its own yet.

        A distance to one class and a cosine to several are not on one scale: from one to the other nothing is
        unknown until left-out scores say what is. From several to one more the old threshold errs towards asking.
        """
        if not self.classes or (self.classes == 1) == (k == 1):
            return self
        return replace(UNCALIBRATED, false_alarm_rate=self.false_alarm_rate, classes=k)


UNCALIBRATED: Final = Calibration(temperature=10.0, novelty_threshold=np.inf)
"""Nothing is unknown, and probabilities are a guess: for a head that has no left-out scores yet."""


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


class Factors(NamedTuple):
    """What decisions multiply a code with (`Head.decided`).

    Attributes:
        whitening: (d, d) float32, upper triangular: R' of P = R'R.
        centre: (d,) float32: what is taken off a code first.
        directions: (d, k + u) float32: of the k classes, and of u updates since the solve.
    """

    whitening: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32]


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

    @property
    def factors(self) -> Factors:
        """What a code is multiplied with; the whitening is one object until the head is solved anew."""
        return Factors(self._R, self._mu, self._directions)

    def _cosines(self, codes: Codes) -> tuple[Floats, Floats]:
        """Return scores (n, k) and novelty (n,)."""
        check_codes(codes, self.feature_size)
        q = codes.astype(np.float32) - self._mu
        white = self._white(q)
        return self._said(np.einsum("nd,nd->n", white, white), np.asarray(q @ self._directions, np.float32))

    def _said(self, squared: npt.NDArray[np.float32], along: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return scores (n, k) and novelty (n,) from |q R'|^2 (n,) and q's products with `_directions`."""
        whole, some = squared.astype(np.float64), along.astype(np.float64)
        k = len(self.class_ids)
        for i, (a, _) in enumerate(self._steps, k):
            whole -= a * some[:, i] ** 2
        return scores_and_novelty(np.maximum(whole, 0), some[:, :k], self._lengths, self.delta, self.knobs)

    @cached_property
    def _directions(self) -> npt.NDArray[np.float32]:
        """P v_c of each class, and u of each step since the solve: (d, k + steps)."""
        return np.column_stack([self._PV, *(u for _, u in self._steps)]).astype(np.float32)

    @cached_property
    def _lengths(self) -> Lengths:
        return Lengths(self._n**2 / self._squared_n, self._plain, self._length, self._offset)

    def _white(self, q: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return q R', (n, d).

        R' has zeros below its diagonal, and is larger than the caches: of each strip one code reads only what is
        above them.
        """
        d = self.feature_size
        width = -(-d // (_STRIPS * _LANES)) * _LANES
        if len(q) > 1 or d % (_LANES // 2):
            return np.asarray(q @ self._R, np.float32)
        white = np.empty_like(q)
        for start in range(0, d, width):
            end = min(start + width, d)
            np.matmul(q[:, :end], self._R[:end, start:end], out=white[:, start:end])
        return white

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
        return self._decided(*self._cosines(codes))

    def decided(self, squared: npt.NDArray[np.float32], along: npt.NDArray[np.float32]) -> Decisions:
        """Return the decisions for codes that somebody else multiplied with `factors`.

        Args:
            squared: (n,) float32, |(code - centre) whitening|^2.
            along: (n, columns of directions) float32, (code - centre) directions.
        """
        return self._decided(*self._said(squared, along))

    def _decided(self, scores: Floats, novelty: Floats) -> Decisions:
        probabilities = probabilities_of(scores, self.calibration.temperature)
        best = scores.argmax(1)
        return Decisions(
            class_index=best,
            probability=probabilities.max(1),
            novelty=novelty,
            unknown=novelty > self.calibration.novelty_threshold,
            probabilities=probabilities,
        )

    def recalibrated(self, calibration: Calibration) -> Head:
        """Return this head with another calibration, as far as it applies (`Calibration.of_classes`)."""
        return replace(self, calibration=calibration.of_classes(len(self.class_ids)))

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

        For serving at once, before `solve` has the canonical head: Lambda, delta and the calibration keep their
        values (but see `Calibration.of_classes` for a second class), everything else is as exact as float32 allows
        (docs/head.md, section 6). Cost: O(d^2 + d k), against O(d^3), and O(d) more for each later decision.

        Args:
            code: (d,) int8.
            class_id: After merges.
            own: Whether the station's own operators labelled it: then it is weighed and shifted as they are.

        Raises:
            FeatureSizeError: the code is not (d,) int8.
            HeadError: not `updatable`.
            ValueError, TypeError: the class id is not 16 bytes.
        """
        check_class_ids((class_id,))
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
        check_class_ids((class_id,))
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
            calibration=self.calibration.of_classes(len(ids)),
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


def geometry_of(sums: Sums, rho: float, *, overwrite: bool = False) -> tuple[Geometry, npt.NDArray[np.float32]]:
    """Return the geometry and R = L^-1, lower triangular (d, d), so that (W + Lambda)^-1 = R'R.

    R is float32, as decisions are, and is computed in it: |R q|^2 changed by 6e-9 of itself at d = 1280.
    With `overwrite`, the Gram matrix of the sums is gone afterwards: one d x d less.
    """
    d = len(sums.gram)
    count = sums.n.astype(np.float64)
    m = sums.s / count[:, None]
    spread = sums.squares - (m * sums.s).sum(1)  # tr W_c, exact up to one rounding
    trace = float(spread.sum())
    if trace <= 0:  # each class one sample, or all samples of a class alike: no scatter to whiten by
        return Geometry(count, sums.effective, m, np.eye(d), 0.0), np.eye(d, dtype=np.float32)
    W = scatter(sums.gram, sums.s, m, overwrite=overwrite)
    diagonal = np.diag_indices(d)
    ridge = shrinkage(rho, d, float(sums.effective.sum())) * (np.maximum(W[diagonal], 0) + trace / d) / 2
    W[diagonal] += ridge
    L = triangular.cholesky(W, overwrite=True)
    if L is None:
        raise HeadError(
            "the scatter matrix is not positive definite",
            hint="The moments are damaged: fold the label log again.",
        )
    R = triangular.inverse(L.astype(np.float32), overwrite=True)
    return Geometry(count, sums.effective, m, L, _delta(count, spread, R, ridge)), R


def shrinkage(rho: float, d: int, n: float) -> float:
    """Return by how much W is shrunk (docs/head.md, equation 5).

    Args:
        rho: Of the knobs.
        d: Numbers in a code.
        n: Samples of like weight, of all classes.
    """
    return rho * (1 + _FEW * d / n)


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
    """What scores need of the class directions v_c beside themselves; (..., k) each.

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

    Args:
        plain: (..., k), of one head or a stack of them.
        n: (..., k), samples of like weight.
        w: (..., k), weights of the classes in the centre.
        delta: As in `scores_and_novelty`.
        knobs: Of the head.
    """
    plain = np.maximum(plain, TINY)
    off = np.eye(n.shape[-1]) - w[..., None, :]
    own = plain - delta * (off**2 / n[..., None, :]).sum(-1)
    least = knobs.lift_floor * plain
    typical = (w[..., None, :] @ np.maximum(own, least)[..., None])[..., 0]
    squared = np.maximum((n * np.maximum(own, 0) + delta) / (n + delta / typical), least)
    return Lengths(n, plain, np.sqrt(squared), delta * (off * (w / n)[..., None, :]).sum(-1))


def scores_and_novelty(
    squared: Floats, along: Floats, lengths: Lengths, delta: float, knobs: Knobs
) -> tuple[Floats, Floats]:
    """Return scores (..., m, k) and novelty (..., m) of m samples (docs/head.md, equations 10 and 11).

    Args:
        squared: (..., m), q' P q.
        along: (..., m, k), q' P v_c.
        lengths: (..., k), of the classes.
        delta: Typical squared distance of a new sample to the true mean of its class.
        knobs: Of the head.
    """
    norm = np.sqrt(squared)
    if lengths.n.shape[-1] == 1:
        return -norm[..., None], norm
    n, plain, corrected, offset = (each[..., None, :] for each in lengths)
    scores = (along + offset) / np.where(norm > 0, norm, 1)[..., None] / corrected
    novelty = 1 - scores.max(-1)
    if delta > 0:
        distance = (squared[..., None] - 2 * along + plain) / (1 + 1 / n)
        novelty += knobs.distance_weight * np.log(np.maximum(distance.min(-1) / delta, TINY))
    return scores, novelty


def probabilities_of(scores: Floats, temperature: float) -> Floats:
    """Return the probabilities (m, k) of scores (m, k), of which minus infinity is no class.

    The softmax of T score, and of 0 for a direction at right angles to all classes, whose probability these share:
    what is like none of them may be any (docs/head.md, equation 12).
    """
    there = np.isfinite(scores)
    logits = temperature * scores
    top = np.maximum(logits.max(1, keepdims=True), 0)
    p, none = np.exp(logits - top), np.exp(-top)
    return np.asarray((p + none * there / there.sum(1, keepdims=True)) / (p.sum(1, keepdims=True) + none))


def solve(
    moments: Moments,
    *,
    canonical: Callable[[bytes], bytes] = same,
    knobs: Knobs = DEFAULT_KNOBS,
    calibration: Calibration = UNCALIBRATED,
    own: Moments | None = None,
    adaptation: Adaptation = UNADAPTED,
    overwrite: bool = False,
) -> Head:
    """Return the head of these moments.

    Cost: one Cholesky factorisation and the inverse of its factor, O(d^3), whatever the number of samples.

    Args:
        moments: Exact sums; unchanged, but for `overwrite`.
        canonical: The class id that stands for an id after merges (`Fold.canonical`).
        knobs: Constants of the format version.
        calibration: From left-out scores; without one nothing is unknown. Of a head of one class it is none for
            several, and the reverse (`Calibration.of_classes`).
        own, adaptation: The station's own samples among them, and how they count; see `sums_of`.
        overwrite: Nobody needs the moments any more: their Gram matrix is gone afterwards, one d x d less.

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
    geometry, R = geometry_of(sums, knobs.rho, overwrite=overwrite or sums.gram is not moments.gram)
    w = centre_weights(geometry.effective, knobs.centre_damping)
    mu = w @ geometry.m
    V = geometry.m - mu
    PM = triangular.solve(geometry.L, geometry.m).T
    PV = PM - (PM @ w)[:, None]
    lengths = lengths_of(np.einsum("kd,dk->k", V, PV), geometry.effective, w, geometry.delta, knobs)
    return Head(
        class_ids=sums.class_ids,
        counts=tuple(int(c) for c in sums.samples),
        feature_size=moments.feature_size,
        knobs=knobs,
        calibration=calibration.of_classes(len(sums.class_ids)),
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
