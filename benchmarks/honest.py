"""honest: is the score that the device shows the accuracy on parts that it has never seen?

The score is computed on the half that is learned from, by leaving out each group; the truth is the accuracy of the
same head on the half held out by group. Beside it, what one would have believed from leaving out images one by
one, and from the training images themselves, and what groups derived from codes make of it, without given groups
and beside them. The truth is measured on as few groups as the score, so it is as
noisy: an ideal 95 % interval would cover it in 83 % of the splits (|z| < 1.96 / sqrt 2), and in 95 % when widened
by the truth's own interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmarks.features import Rows, Sample
from benchmarks.learners import Ours, SolvedHead, ids_of, label_of, moments_of, recalls
from benchmarks.report import Cell, Report, Setup, Table, Target, mean_and_error, percent
from sdk.codes import Codes
from sdk.grouping import derive_groups
from sdk.head import DEFAULT_KNOBS, Knobs, geometry_of
from sdk.moments import Floats, Ints, sums_of
from sdk.score import Score, calibrate, leave_one_group_out, score, share

QUESTION: Final = "the score shown against the accuracy on parts never seen"
SPLITS: Final = 20
GROUPS_CHECKED: Final = 8
TOLERANCE: Final = 1e-9
DERIVED_NEAR: Final = 5.0
DERIVED_COST: Final = 1.0
"""Where each image is a group of its own, deriving groups must change next to nothing."""


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        rows = [_one_split(setup, sample, seed) for seed in setup.seeds(SPLITS if name == "magnetic_tile" else 5)]
        shown, truth, images, training, derived, further, low, high, noise = (
            np.array(column) for column in zip(*rows, strict=True)
        )
        gap = shown - truth
        covered = percent(np.mean((low <= truth) & (truth <= high)))
        lines: list[tuple[Cell, ...]] = [
            ("truth: held-out groups", float(truth.mean()), float(truth.std()), "", ""),
            ("score shown, groups left out", *_against(shown, truth)),
            ("groups given, joined further", *_against(further, truth)),
            ("no groups given, derived from codes", *_against(derived, truth)),
            ("leaving out single images", *_against(images, truth)),
            ("training images", *_against(training, truth)),
        ]
        columns = ("", "mean", "spread", "minus truth", "spread of difference")
        tables.append(
            Table(f"{name}, {len(rows)} splits: balanced accuracy, %, unknown is a miss", columns, tuple(lines))
        )
        what = "groups derived from codes against groups given, |mean difference|, points"
        limit = DERIVED_NEAR if name == "magnetic_tile" else DERIVED_COST
        targets.append(Target(f"{name}, {what}", abs(float((derived - shown).mean())), limit, False))
        half = (high - low) / 2
        both = percent(np.mean(np.abs(gap) <= np.hypot(half, noise)))
        if name == "magnetic_tile":
            targets.append(
                Target(f"{name}, |score - truth|, mean difference, points", abs(float(gap.mean())), 3.0, False)
            )
            targets.append(Target(f"{name}, splits whose truth is inside the interval shown, %", covered, 85.0))
        tables.append(
            Table(
                f"{name}: the interval shown",
                ("95 % interval", "% of splits", "half width, points"),
                (
                    ("covers the truth as measured", covered, float(np.mean(high - low) / 2)),
                    (
                        "covers it, widened by the truth's own interval",
                        both,
                        float(np.mean(np.hypot(half, noise))),
                    ),
                ),
            )
        )
    largest = max(_refit_difference(setup.load(name), setup.first_seed) for name in setup.sets)
    targets.append(Target("largest score difference from refitting without the group", largest, TOLERANCE, False))
    return Report("honest", QUESTION, tuple(tables), tuple(targets))


def _against(claimed: Floats, truth: Floats) -> tuple[float, float, str, float]:
    difference = claimed - truth
    return (
        float(claimed.mean()),
        float(claimed.std()),
        mean_and_error(difference.tolist()),
        float(difference.std()),
    )


def _one_split(setup: Setup, sample: Sample, seed: int) -> tuple[float, ...]:
    setup.say(f"{sample.name}, split {seed}")
    learn, test = sample.halves(seed)
    codes, k = sample.codes(learn), len(sample.classes)
    given = codes[learn], sample.labels[learn], sample.groups[learn]
    head, left_out = Ours().fit_calibrated(*given, k)
    found = score(left_out, head.head.calibration)
    # The same classes on both sides: those with one group only have no score.
    scored = [label_of(c.class_id) for c in found.classes if c.class_id not in found.one_group]
    single = [f"{row:06}" for row in range(len(learn))]
    ids = ids_of(given[1])
    images = _claimed(given[0], ids, single)
    derived = _claimed(given[0], ids, derive_groups(given[0], ids, single).groups)
    further = _claimed(given[0], ids, derive_groups(given[0], ids, given[2].tolist()).groups)
    return (
        percent(_known(found)),
        percent(shown_accuracy(head, codes, sample.labels, test, scored)),
        percent(images),
        percent(shown_accuracy(head, codes, sample.labels, learn, scored)),
        percent(derived),
        percent(further),
        percent(found.low),
        percent(found.high),
        percent(own_half_width(head.shown(codes[test]), sample, test, scored)),
    )


def _known(found: Score) -> float:
    assert found.balanced_accuracy is not None, "each half of the sets has classes of several groups"
    return found.balanced_accuracy


def _claimed(codes: Codes, ids: Sequence[bytes], groups: Sequence[str]) -> float:
    left_out = leave_one_group_out(codes, ids, groups)
    return _known(score(left_out, calibrate(left_out)))


def shown_accuracy(head: SolvedHead, codes: Codes, labels: Ints, rows: Rows, classes: list[int]) -> float:
    found = recalls(head.shown(codes[rows]), labels[rows])
    return float(np.mean([found[c] for c in classes if c in found]))


def own_half_width(shown: Ints, sample: Sample, test: Rows, classes: list[int]) -> float:
    """Return half the width of the 95 % interval that the held-out groups themselves allow."""
    truth = sample.labels[test]
    groups = np.unique(sample.groups[test], return_inverse=True)[1].astype(np.int64)
    widths = []
    for c in classes:
        _, low, high = share(shown[truth == c] == c, groups[truth == c])
        widths.append(high - low)
    return float(np.sqrt(np.sum(np.square(widths))) / 2 / len(classes))


def _refit_difference(sample: Sample, seed: int) -> float:
    """Return the largest difference of left-out scores from a head fitted without the group, some groups."""
    learn, _ = sample.halves(seed)
    codes, labels, groups = sample.codes(learn)[learn], sample.labels[learn], sample.groups[learn]
    left_out = Ours().left_out(codes, labels, groups)
    sums, knobs = sums_of(moments_of(codes, labels)), DEFAULT_KNOBS
    geometry, _ = geometry_of(sums, knobs.rho)
    diagonal = np.diag(sums.gram) - (geometry.m * sums.s).sum(0)
    rho = knobs.rho * (1 + 0.1 * codes.shape[1] / len(codes))
    ridge = rho * (diagonal + diagonal.mean()) / 2
    names = np.unique(groups)
    worst = 0.0
    for name in np.random.default_rng(seed).permutation(names)[:GROUPS_CHECKED]:
        out = groups == name
        plainly = _scores_written_plainly(codes[~out], labels[~out], codes[out], ridge, geometry.delta, knobs)
        worst = max(worst, float(np.abs(plainly - left_out.scores[out][:, np.unique(labels[~out])]).max()))
    return worst


def _scores_written_plainly(
    codes: Codes, labels: Ints, test: Codes, ridge: Floats, delta: float, knobs: Knobs
) -> Floats:
    """docs/head.md, equations 5 to 10, in float64 and by themselves: no code shared with the head."""
    x, q = codes.astype(np.float64), test.astype(np.float64)
    classes, n = np.unique(labels, return_counts=True)
    m = np.stack([x[labels == c].mean(0) for c in classes])
    within = x - m[np.searchsorted(classes, labels)]
    P = np.linalg.inv(within.T @ within + np.diag(ridge))
    w = n / (n + knobs.centre_damping)
    w /= w.sum()
    V, q = m - w @ m, q - w @ m
    plain = np.einsum("kd,de,ke->k", V, P, V, optimize=True)
    shares = np.eye(len(n)) - w
    own = plain - delta * (shares**2 / n).sum(1)
    typical = w @ np.maximum(own, knobs.lift_floor * plain)
    squared = np.maximum((n * np.maximum(own, 0) + delta) / (n + delta / typical), knobs.lift_floor * plain)
    norm = np.sqrt(np.einsum("nd,de,ne->n", q, P, q, optimize=True))
    lost = delta * (shares * w / n).sum(1)
    return np.asarray((q @ P @ V.T + lost) / norm[:, None] / np.sqrt(squared))
