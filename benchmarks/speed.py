"""speed: from a label to the head that serves it, the time to score it, and what other ways cost and forget.

One core; `--levels 1` is d = 1280, which the targets are about. A device knows six classes (five of NEU, and good
tiles; 1990 samples) and gets ten labels of a seventh, one by one: n = 2000, k = 7. Time is that of one more label,
until decisions use it. Recall is measured on samples that nothing learned from, before the first and after the
tenth label; what falls for the old classes is forgetting.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import SGDClassifier
from threadpoolctl import threadpool_limits

from benchmarks.features import Rows, Sample
from benchmarks.learners import Logistic, ids_of, moments_of, recalls
from benchmarks.report import Cell, Report, Setup, Table, Target, percent
from sdk.codes import FULL_SCALE, Codes, encode, fit_scale
from sdk.head import Head, solve
from sdk.moments import Floats, Ints, Moments
from sdk.score import leave_one_group_out

QUESTION: Final = "label to live head, leave-one-group-out, and what other ways cost and forget, on one core"
BASE: Final = {"neu_det": 260, "magnetic_tile": 690}
"""Samples of each known class."""
GOOD: Final = "free"
LABELS: Final = 10
NEW_CLASSES: Final = 3
REPEATS: Final = 15
LIVE_TARGET_MS: Final = 80.0
TARGET_D: Final = 1280
"""What the target is of: `--levels 1`."""
SCORE_TARGET_S: Final = 1.0
EPOCHS: Final = 50
BATCH: Final = 16
LEARNING_RATE: Final = 1e-3
"""Epochs, batch and rate as Frigate trains its classifier at every relearning (frigate/util/classification.py)."""


@dataclass(frozen=True)
class Line:
    """What a device has learned, what arrives, and what is never learned."""

    codes: Codes
    labels: Ints
    base: Rows
    arriving: Rows
    test: Rows
    k: int


class Way(Protocol):
    """A way to learn on a device: first a base, then one label at a time."""

    def start(self, codes: Codes, labels: Ints, k: int) -> None:
        """Learn the base."""
        ...

    def learn(self, code: Codes, label: Ints) -> None:
        """Learn one more sample, (1, d) and (1,), which decisions use when this returns.

        Ways that start from scratch take several at once.
        """
        ...

    def decide(self, codes: Codes) -> Ints:
        """Return the classes (n,) of codes."""
        ...


class Solved:
    """This head, canonical: exact moments and a full solve at every label."""

    def start(self, codes: Codes, labels: Ints, k: int) -> None:  # noqa: ARG002
        """Learn the base."""
        self._moments = moments_of(codes, labels)
        self._head = solve(self._moments)

    def learn(self, code: Codes, label: Ints) -> None:
        """Add the code to the moments and solve."""
        self._moments.add(code, ids_of(label))
        self._head = solve(self._moments)

    def decide(self, codes: Codes) -> Ints:
        """Return the classes."""
        return _decided(self._head, codes)


def _decided(head: Head, codes: Codes) -> Ints:
    columns = np.array([int.from_bytes(class_id, "big") for class_id in head.class_ids], np.int64)
    return np.asarray(columns[head.scores(codes).argmax(1)])


class Updated(Solved):
    """This head, served at once: an update of order d^2, with lambda and delta as they were at the last solve."""

    def learn(self, code: Codes, label: Ints) -> None:
        """Update the head that serves."""
        self._head = self._head.with_sample(code[0], ids_of(label)[0])


class Refit:
    """scikit-learn's logistic regression on everything, again at every label; its C was chosen on the base."""

    def start(self, codes: Codes, labels: Ints, k: int) -> None:
        """Learn the base."""
        self._codes, self._labels, self._k = codes, labels, k
        self._C = Logistic().choose(codes, labels, np.arange(len(labels)).astype(str))
        self._refit()

    def learn(self, code: Codes, label: Ints) -> None:
        """Refit."""
        self._codes = np.concatenate([self._codes, code])
        self._labels = np.concatenate([self._labels, label])
        self._refit()

    def _refit(self) -> None:
        groups = np.arange(len(self._labels)).astype(str)
        self._fitted = Logistic(C=self._C).fit(self._codes, self._labels, groups, self._k)

    def decide(self, codes: Codes) -> Ints:
        """Return the classes."""
        return np.asarray(self._fitted.scores(codes).argmax(1))


class Streamed:
    """scikit-learn's SGDClassifier: ten passes over the base, then partial_fit with the new sample alone."""

    def start(self, codes: Codes, labels: Ints, k: int) -> None:
        """Learn the base."""
        self._model = SGDClassifier(loss="log_loss", random_state=0)
        order = np.random.default_rng(0)
        for _ in range(10):
            rows = order.permutation(len(labels))
            self._model.partial_fit(_plain(codes[rows]), labels[rows], classes=np.arange(k))

    def learn(self, code: Codes, label: Ints) -> None:
        """Take one step."""
        self._model.partial_fit(_plain(code), label)

    def decide(self, codes: Codes) -> Ints:
        """Return the classes."""
        return np.asarray(self._model.predict(_plain(codes)), np.int64)


class Retrained:
    """A torch head trained from scratch on everything, 50 epochs of Adam: what a click on "train" does in Frigate.

    Args:
        hidden: 0 for a linear head; 128 for Frigate's own (a layer of 128, dropout 0.3), there trained on 80 %.
    """

    def __init__(self, hidden: int, epochs: int = EPOCHS) -> None:
        self._hidden, self._epochs = hidden, epochs

    def start(self, codes: Codes, labels: Ints, k: int) -> None:
        """Learn the base."""
        self._codes, self._labels, self._k = codes, labels, k
        self._train()

    def learn(self, code: Codes, label: Ints) -> None:
        """Train again."""
        self._codes = np.concatenate([self._codes, code])
        self._labels = np.concatenate([self._labels, label])
        self._train()

    def _train(self) -> None:
        import torch
        from torch import nn

        torch.set_num_threads(1)
        torch.manual_seed(0)
        x = torch.from_numpy(_plain(self._codes).astype(np.float32))
        y = torch.from_numpy(self._labels)
        if self._hidden:
            kept = torch.from_numpy(np.random.default_rng(0).permutation(len(y))[: round(0.8 * len(y))])
            x, y = x[kept], y[kept]
            layers: list[nn.Module] = [nn.Linear(x.shape[1], self._hidden), nn.ReLU(), nn.Dropout(0.3)]
        else:
            layers = []
        model = nn.Sequential(*layers, nn.Linear(self._hidden or x.shape[1], self._k))
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        for _ in range(self._epochs):
            for rows in torch.split(torch.randperm(len(y)), BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(x[rows]), y[rows]))
                optimizer.step()
        self._model: Any = model.eval()

    def decide(self, codes: Codes) -> Ints:
        """Return the classes."""
        import torch

        with torch.no_grad():
            scores = self._model(torch.from_numpy(_plain(codes).astype(np.float32)))
        return np.asarray(scores.argmax(1).numpy(), np.int64)


class DeepSLDA:
    """Streaming linear discriminant analysis (Hayes and Kanan, arXiv:1909.01520, equations 1 to 4).

    Running class means and one running covariance, precision [(1 - e) S + e I]^-1 with their e = 1e-4; each new
    sample updates both, and the precision is computed when a decision is wanted.
    """

    SHRINKAGE: Final = 1e-4

    def start(self, codes: Codes, labels: Ints, k: int) -> None:
        """Learn the base: the batch form, which their streaming form equals up to the first samples."""
        x = _plain(codes)
        self._n = np.bincount(labels, minlength=k).astype(np.float64)
        self._means = np.zeros((k, x.shape[1]))
        np.add.at(self._means, labels, x)
        self._means /= np.maximum(self._n, 1)[:, None]
        within = x - self._means[labels]
        self._covariance = within.T @ within / len(x)
        self._total = len(x)
        self._invert()

    def learn(self, code: Codes, label: Ints) -> None:
        """Update mean, covariance and precision."""
        x, y = _plain(code)[0], int(label[0])
        offset = x - self._means[y]
        step = self._total / (self._total + 1)
        self._covariance = (self._total * self._covariance + step * np.outer(offset, offset)) / (self._total + 1)
        self._total += 1
        self._means[y] += offset / (self._n[y] + 1)
        self._n[y] += 1
        self._invert()

    def _invert(self) -> None:
        shrunk = (1 - self.SHRINKAGE) * self._covariance
        shrunk[np.diag_indices(len(shrunk))] += self.SHRINKAGE
        self._weights = cho_solve(cho_factor(shrunk, overwrite_a=True), self._means.T).T
        self._offset = -0.5 * (self._means * self._weights).sum(1)

    def decide(self, codes: Codes) -> Ints:
        """Return the classes."""
        scores = _plain(codes) @ self._weights.T + self._offset
        return np.asarray(np.where(self._n > 0, scores, -np.inf).argmax(1))


def _plain(codes: Codes) -> Floats:
    return np.asarray(codes / np.float64(FULL_SCALE))


def ways(quick: bool) -> dict[str, Callable[[], Way]]:
    """Return the ways that are compared, by the name people read."""
    epochs = 1 if quick else EPOCHS
    return {
        "this head: updated at once": Updated,
        "this head: add and solve": Solved,
        "Deep SLDA": DeepSLDA,
        "SGDClassifier.partial_fit": Streamed,
        "logistic regression, refitted": Refit,
        f"torch linear head, {EPOCHS} epochs": lambda: Retrained(0, epochs),
        f"Frigate's head, {EPOCHS} epochs": lambda: Retrained(128, epochs),
    }


def run(setup: Setup) -> Report:
    """Return the report."""
    import torch

    torch.set_num_threads(1)
    with threadpool_limits(1):
        lines = [_line(setup, new) for new in range(1 if setup.quick else NEW_CLASSES)]
        table = _compare(setup, lines)
        live, parts = _live(lines[0], 3 if setup.quick else REPEATS)
        scored = _score_times(setup, lines[0])
    n, d = len(lines[0].base) + len(lines[0].arriving), lines[0].codes.shape[1]
    steps = Table(
        f"This head, n = {n}, d = {d}, k = {lines[0].k}, ms, {REPEATS} repeats",
        ("", "median", "best"),
        tuple((what, statistics.median(times), min(times)) for what, times in parts.items()),
    )
    targets = [Target(f"leave-one-group-out, {n} groups of one, s", scored[0][1], SCORE_TARGET_S, at_least=False)]
    if d <= TARGET_D:
        what = "label to canonical head (add and solve), ms, median"
        targets.insert(0, Target(what, statistics.median(live), LIVE_TARGET_MS, at_least=False))
    logo = Table(
        f"Leave-one-group-out of all {n} samples, s",
        ("", "closed form", "refitting each, extrapolated"),
        scored,
        2,
    )
    return Report("speed", QUESTION, (steps, logo, table), tuple(targets))


def _line(setup: Setup, new: int) -> Line:
    """Return the line whose seventh class is class `new` of NEU."""
    steel, tile = setup.load("neu_det"), setup.load("magnetic_tile")
    good = tile.classes.index(GOOD) if GOOD in tile.classes else 0
    features = np.concatenate([steel.features, tile.features[tile.labels == good]])
    labels = np.concatenate([steel.labels, np.full((tile.labels == good).sum(), len(steel.classes))])
    base: list[int] = []
    arriving: list[int] = []
    for label in range(len(steel.classes) + 1):
        # Tiles come in the order of their groups, so at most one is divided.
        rows = _ordered(steel, label, setup.first_seed + new, np.flatnonzero(labels == label))
        if label == new:
            arriving = list(rows[: 3 if setup.quick else LABELS])
        else:
            wanted = BASE["neu_det"] if label < len(steel.classes) else BASE["magnetic_tile"]
            base += list(rows[: min(wanted, len(rows) // 2) if setup.quick else wanted])
    used = np.isin(np.arange(len(labels)), [*base, *arriving])
    codes = encode(features, fit_scale(features[base]))
    return Line(codes, labels, np.array(base), np.array(arriving), np.flatnonzero(~used), len(steel.classes) + 1)


def _ordered(steel: Sample, label: int, seed: int, rows: Rows) -> Rows:
    return np.random.default_rng((seed, label)).permutation(rows) if label < len(steel.classes) else rows


def _compare(setup: Setup, lines: Sequence[Line]) -> Table:
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for line in lines:
        new = int(line.labels[line.arriving[0]])
        truth = line.labels[line.test]
        for name, make in ways(setup.quick).items():
            setup.say(f"new class {new}, {name}")
            way = make()
            way.start(line.codes[line.base], line.labels[line.base], line.k)
            before = recalls(way.decide(line.codes[line.test]), truth)
            took = []
            # What starts from scratch at every label need only be watched at the last one.
            for rows_now in [line.arriving] if isinstance(way, Refit | Retrained) else line.arriving[:, None]:
                began = time.perf_counter()
                way.learn(line.codes[rows_now], line.labels[rows_now])
                took.append(1000 * (time.perf_counter() - began))
            after = recalls(way.decide(line.codes[line.test]), truth)
            old = [c for c in after if c != new]
            old_before, old_after = (percent(np.mean([r[c] for c in old])) for r in (before, after))
            balanced = percent(np.mean(list(after.values())))
            took_ms = statistics.median(took)
            found[name].append(
                (took_ms, balanced, percent(after[new]), old_before, old_after, old_after - old_before)
            )
    rows: list[tuple[Cell, ...]] = []
    for name, runs in found.items():
        means = np.mean(runs, axis=0)
        took_ms = statistics.median(run[0] for run in runs)
        rows.append((name, took_ms, *(float(x) for x in means[1:])))
    columns = ("", "ms a label", "balanced accuracy", "new class", "old before", "old after", "forgotten")
    title = f"After {LABELS} labels of a new class, %, mean of {len(lines)} new classes"
    return Table(title, columns, tuple(rows))


def _live(line: Line, repeats: int) -> tuple[list[float], dict[str, list[float]]]:
    """Return the times in ms from a label to the live head, and of its parts."""
    moments = moments_of(line.codes[line.base], line.labels[line.base])
    moments.add(line.codes[line.arriving[1:]], ids_of(line.labels[line.arriving[1:]]))
    one = line.arriving[:1]
    parts: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        fresh: Moments = moments.copy()
        marks = [time.perf_counter()]
        fresh.add(line.codes[one], ids_of(line.labels[one]))
        marks.append(time.perf_counter())
        head = solve(fresh)
        marks.append(time.perf_counter())
        head.decide(line.codes[one])
        marks.append(time.perf_counter())
        head.with_sample(line.codes[one[0]], ids_of(line.labels[one])[0])
        marks.append(time.perf_counter())
        add, solved, decided, updated = (1000 * float(step) for step in np.diff(marks))
        parts["update that serves at once"].append(updated)
        parts["add to the moments"].append(add)
        parts["solve"].append(solved)
        parts["label to canonical head"].append(add + solved)
        parts["one decision"].append(decided)
    return parts["label to canonical head"], parts


def _score_times(setup: Setup, line: Line) -> tuple[tuple[str, float, float], ...]:
    rows = np.concatenate([line.base, line.arriving])
    codes, labels = line.codes[rows], line.labels[rows]
    rows_out = []
    for size in (1, 5):
        groups = [str(i // size) for i in range(len(rows))]
        took = []
        for _ in range(1 if setup.quick else 5):
            began = time.perf_counter()
            leave_one_group_out(codes, ids_of(labels), groups)
            took.append(time.perf_counter() - began)
        moments = moments_of(codes, labels)
        began = time.perf_counter()
        moments.subtract(codes[:size], ids_of(labels[:size]))
        solve(moments).scores(codes[:size])
        refit = (time.perf_counter() - began) * len(set(groups))
        rows_out.append((f"groups of {size}", statistics.median(took), refit))
    return tuple(rows_out)
