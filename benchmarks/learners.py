"""What is compared: our head, and what a user would run instead on the same codes.

A learner is fitted on codes, labels in [0, k) and groups, and gives scores (n, k) of other codes; where it has
probabilities, those too. Rivals get the class-balanced loss and the tuning that make them strongest: the penalty
of logistic regression and of ridge comes from cross-validation by group on the rows they learn from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from sdk.codes import Codes
from sdk.head import DEFAULT_KNOBS, FALSE_ALARM_RATE, Calibration, Head, Knobs, solve
from sdk.moments import Floats, Ints, Moments
from sdk.score import LeftOut, calibrate, leave_one_group_out

Groups = npt.NDArray[np.str_]

PLAIN: Final = Knobs(centre_damping=1e9, lift_floor=1.0)
"""Whitened cosine without our two corrections: the grand mean as centre, no lift for few labels."""
FOLDS: Final = 3
C_GRID: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
RIDGE_GRID: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MAX_ITERATIONS: Final = 300


class Fitted(Protocol):
    """What a learner has learned."""

    def scores(self, codes: Codes) -> Floats:
        """Return scores (n, k) of codes (n, d): the largest is the decision."""
        ...


class Learner(Protocol):
    """A way to learn from labelled codes."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def fit(self, codes: Codes, labels: Ints, groups: Groups, k: int) -> Fitted:
        """Return what was learned; every class of [0, k) that has no sample scores minus infinity."""
        ...


def ids_of(labels: Ints) -> list[bytes]:
    """Return a class id of 16 bytes for each label, in the labels' order."""
    return [int(y).to_bytes(16, "big") for y in labels]


def label_of(class_id: bytes) -> int:
    """Return the label of a class id from `ids_of`."""
    return int.from_bytes(class_id, "big")


def moments_of(codes: Codes, labels: Ints) -> Moments:
    """Return the moments of labelled codes."""
    moments = Moments(codes.shape[1])
    moments.add(codes, ids_of(labels))
    return moments


@dataclass(frozen=True)
class SolvedHead:
    """Our head with columns for all k classes."""

    head: Head
    k: int

    def scores(self, codes: Codes) -> Floats:
        """Return scores (n, k)."""
        return self._wide(self.head.scores(codes), -np.inf)

    def probabilities(self, codes: Codes) -> Floats:
        """Return calibrated probabilities (n, k)."""
        return self._wide(self.head.predict_proba(codes), 0.0)

    def shown(self, codes: Codes) -> Ints:
        """Return the decision shown (n,): the best class, or -1 where the head says unknown."""
        return np.where(self.head.decide(codes).unknown, -1, self.scores(codes).argmax(1))

    def _wide(self, narrow: Floats, rest: float) -> Floats:
        wide = np.full((len(narrow), self.k), rest)
        wide[:, [label_of(c) for c in self.head.class_ids]] = narrow
        return wide


@dataclass(frozen=True)
class Ours:
    """The product's head; with `false_alarm_rate`, calibrated on left-out scores as a device does it."""

    name: str = "this head"
    knobs: Knobs = DEFAULT_KNOBS

    def fit(self, codes: Codes, labels: Ints, groups: Groups, k: int) -> SolvedHead:  # noqa: ARG002
        """Return the head, not calibrated."""
        return SolvedHead(solve(moments_of(codes, labels), knobs=self.knobs), k)

    def fit_calibrated(
        self, codes: Codes, labels: Ints, groups: Groups, k: int, false_alarm_rate: float = FALSE_ALARM_RATE
    ) -> tuple[SolvedHead, LeftOut]:
        """Return the head as a device serves it, and the left-out scores that calibrated it."""
        left_out = self.left_out(codes, labels, groups)
        calibration: Calibration = calibrate(left_out, false_alarm_rate)
        head = solve(moments_of(codes, labels), knobs=self.knobs, calibration=calibration)
        return SolvedHead(head, k), left_out

    def left_out(self, codes: Codes, labels: Ints, groups: Groups) -> LeftOut:
        """Return leave-one-group-out scores."""
        return leave_one_group_out(codes, ids_of(labels), groups.tolist(), knobs=self.knobs)


def scaled(codes: Codes) -> Floats:
    """Return codes as float64 rows of length one: what scikit-learn's examples would make of them."""
    x = codes.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1))


def group_folds(labels: Ints, groups: Groups, folds: int = FOLDS) -> Ints:
    """Return the fold (n,) of each row; rows of one group share one, and each class is spread over all.

    A class with fewer groups than folds is learned from in some folds and tested in the others.
    """
    fold = np.zeros(len(labels), np.int64)
    rng = np.random.default_rng(0)
    placed: dict[str, int] = {}
    for label in np.unique(labels):
        names = np.unique(groups[labels == label])
        for i, name in enumerate(rng.permutation(names)):
            placed.setdefault(str(name), i % folds)
    for row, name in enumerate(groups):
        fold[row] = placed[str(name)]
    return fold


def recalls(choice: Ints, labels: Ints) -> dict[int, float]:
    """Return the share that is right of each class in `labels`."""
    return {int(c): float((choice[labels == c] == c).mean()) for c in np.unique(labels)}


def mean_recall(scores: Floats, labels: Ints) -> float:
    """Return the balanced accuracy of the largest score: the mean of the recalls of the classes in `labels`."""
    return float(np.mean(list(recalls(scores.argmax(1), labels).values())))


def likelihood(scores: Floats, labels: Ints) -> float:
    """Return the mean logarithm of the softmax of the true class."""
    return float(log_softmax(np.maximum(scores, -1e3), axis=1)[np.arange(len(labels)), labels].mean())


def _chosen(
    grid: tuple[float, ...],
    fit: Callable[[float, Codes, Ints], Fitted],
    codes: Codes,
    labels: Ints,
    groups: Groups,
    worth: Callable[[Floats, Ints], float] = mean_recall,
) -> float:
    """Return the penalty of the grid that `worth` rates best in cross-validation by group."""
    fold = group_folds(labels, groups)
    found = np.zeros(len(grid))
    for f in range(FOLDS):
        learn, test = fold != f, fold == f
        if len(np.unique(labels[learn])) < 2 or not test.any():
            continue
        for i, value in enumerate(grid):
            found[i] += worth(fit(value, codes[learn], labels[learn]).scores(codes[test]), labels[test])
    return grid[int(found.argmax())]


@dataclass(frozen=True)
class Linear:
    """Scores that are linear in scaled codes, and the softmax of them."""

    weights: Floats  # (k, d)
    offset: Floats  # (k,)
    centre: Floats  # (d,)
    width: Floats  # (d,)

    def scores(self, codes: Codes) -> Floats:
        """Return scores (n, k)."""
        return np.asarray(((scaled(codes) - self.centre) / self.width) @ self.weights.T + self.offset)

    def probabilities(self, codes: Codes) -> Floats:
        """Return the softmax of the scores (n, k)."""
        scores = self.scores(codes)
        power = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(power / power.sum(1, keepdims=True))


@dataclass(frozen=True)
class Logistic:
    """scikit-learn's logistic regression, refitted on everything; balanced, C by cross-validation by group.

    Attributes:
        C: Fixed inverse penalty; None chooses it.
        standardised: Features to unit variance: on splits that are not reported, as good or better than leaving
            them on both sets.
        for_probabilities: Choose C by likelihood instead of balanced accuracy.
    """

    name: str = "logistic regression"
    C: float | None = None
    standardised: bool = True
    for_probabilities: bool = False

    def choose(self, codes: Codes, labels: Ints, groups: Groups) -> float:
        """Return the inverse penalty that cross-validation by group prefers."""
        k = int(labels.max()) + 1
        worth = likelihood if self.for_probabilities else mean_recall
        return _chosen(C_GRID, lambda C, x, y: self._fit(C, x, y, k), codes, labels, groups, worth)

    def fit(self, codes: Codes, labels: Ints, groups: Groups, k: int) -> Linear:
        """Return the fitted model."""
        C = self.choose(codes, labels, groups) if self.C is None else self.C
        return self._fit(C, codes, labels, k)

    def _fit(self, C: float, codes: Codes, labels: Ints, k: int) -> Linear:
        x = scaled(codes)
        centre = x.mean(0)
        width = x.std(0) if self.standardised else np.ones(x.shape[1])
        width = np.where(width > 0, width, 1)
        x = (x - centre) / width
        if self.standardised:
            width = width * np.sqrt(x.shape[1])
            x = x / np.sqrt(x.shape[1])
        # A penalty on the length of the weights does not see rotations: fit in the span of the rows.
        left, strength, right = _thin_svd(x)
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=MAX_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(left * strength, labels)
        found = model.coef_ @ right
        offset = np.asarray(model.intercept_)
        if len(model.classes_) == 2:
            found, offset = np.vstack([-found / 2, found / 2]), np.concatenate([-offset / 2, offset / 2])
        weights, wide = np.zeros((k, x.shape[1])), np.full(k, -np.inf)
        weights[model.classes_], wide[model.classes_] = found, offset
        return Linear(weights, wide, centre, width)


def _thin_svd(x: Floats) -> tuple[Floats, Floats, Floats]:
    if len(x) >= x.shape[1]:
        return x, np.ones(x.shape[1]), np.eye(x.shape[1])
    values, vectors = np.linalg.eigh(x @ x.T)
    keep = values > values[-1] * 1e-10
    strength = np.sqrt(values[keep])
    return vectors[:, keep], strength, (vectors[:, keep] / strength).T @ x


@dataclass(frozen=True)
class Ridge:
    """Least squares to one-hot labels with a penalty, all classes weighing the same, as in ACIL and RanPAC."""

    name: str = "balanced ridge"
    penalty: float | None = None

    def choose(self, codes: Codes, labels: Ints, groups: Groups) -> float:
        """Return the penalty that cross-validation by group prefers."""
        k = int(labels.max()) + 1
        return _chosen(RIDGE_GRID, lambda p, x, y: self._fit(p, x, y, k), codes, labels, groups)

    def fit(self, codes: Codes, labels: Ints, groups: Groups, k: int) -> Linear:
        """Return the fitted model."""
        penalty = self.choose(codes, labels, groups) if self.penalty is None else self.penalty
        return self._fit(penalty, codes, labels, k)

    def _fit(self, penalty: float, codes: Codes, labels: Ints, k: int) -> Linear:
        x = scaled(codes)
        n, d = x.shape
        per_class = np.bincount(labels, minlength=k)
        weight = n / (per_class[labels] * np.count_nonzero(per_class))
        centre = weight @ x / n
        Y = np.zeros((n, k))
        Y[np.arange(n), labels] = 1
        offset = weight @ Y / n
        root = np.sqrt(weight)[:, None]
        X, T = (x - centre) * root, (Y - offset) * root
        if n < d:
            found = X.T @ np.linalg.solve(X @ X.T + penalty * np.eye(n), T)
        else:
            found = np.linalg.solve(X.T @ X + penalty * np.eye(d), X.T @ T)
        return Linear(found.T, np.where(per_class > 0, offset, -np.inf), centre, np.ones(d))
