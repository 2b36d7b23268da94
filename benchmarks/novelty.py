"""novelty: does the head notice a class that it has never seen, and are false alarms as rare as it says?

Each class is held back in turn; the others are learned on the half that is learned from. All images of the class
held back are then to be told from the known classes' images in the half held out by group: area under the ROC
curve (AUROC), the mean over the classes. False alarms are known, held-out images called unknown at the threshold
that left-out scores gave; the rate it states is that of groups, each weighing the same.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.features import Sample
from benchmarks.learners import Logistic, Ours, moments_of, scaled
from benchmarks.report import Cell, Report, Setup, Table, Target, percent
from sdk.codes import Codes
from sdk.head import geometry_of
from sdk.moments import Floats, Ints, sums_of
from sdk.score import calibrate

QUESTION: Final = "images of a class never seen against known ones, and false alarms against the stated rate"
RATES: Final = (0.02, 0.05)
SPLITS: Final = 5
NEIGHBOURS: Final = 5
OURS: Final = "this head"
TARGETS: Final = {"neu_det": 96.0, "magnetic_tile": 74.0}
ALARMS_OFF: Final = 1.0
"""Points by which false alarms may miss the stated rate."""


def mahalanobis(codes: Codes, labels: Ints, test: Codes) -> Floats:
    """Return the distance (n,) of `test` to the nearest class mean under the shared, shrunk scatter (Lee 2018)."""
    geometry, R = geometry_of(sums_of(moments_of(codes, labels)), rho=1.0)
    P = R.T @ R
    offsets = [test.astype(np.float64) - mean for mean in geometry.m]
    return np.asarray(np.min([np.einsum("nd,nd->n", q @ P, q) for q in offsets], axis=0))


def neighbours(codes: Codes, test: Codes) -> Floats:
    """Return minus the mean cosine (n,) of `test` to its nearest codes (Sun 2022)."""
    near = np.sort(scaled(test) @ scaled(codes).T, axis=1)[:, -NEIGHBOURS:]
    return np.asarray(-near.mean(1))


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        found: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
        alarms: dict[float, list[tuple[float, ...]]] = defaultdict(list)
        for seed in setup.seeds(SPLITS):
            setup.say(f"{name}, split {seed}")
            for method, per_class in _one_split(sample, seed, alarms).items():
                found[method].append(per_class)
        rows: list[tuple[Cell, ...]] = []
        for method, runs in found.items():
            means = np.mean(runs, axis=0)  # (k, 2)
            rows.append((method, *(float(m) for m in means.mean(0)), *(float(m) for m in means[:, 0])))
        title = f"{name}: AUROC, %, by the class held back, mean of {len(setup.seeds(SPLITS))} splits"
        tables.append(Table(title, ("", "mean", "known classes weigh the same", *sample.classes), tuple(rows)))
        realised = {rate: np.mean(runs, axis=0) for rate, runs in alarms.items()}
        tables.append(
            Table(
                f"{name}: share called unknown, %, by the rate of false alarms stated",
                ("stated", "known, groups alike", "known, all samples", "known, classes alike", "class held back"),
                tuple((f"{rate:.0%}", *(float(x) for x in found)) for rate, found in realised.items()),
            )
        )
        targets.append(Target(f"{name}, AUROC, %", float(np.mean(found[OURS], axis=(0, 1))[0]), TARGETS[name]))
        for rate, shares in realised.items():
            what = f"{name}, false alarms, points away from {rate:.0%}"
            targets.append(Target(what, abs(float(shares[0]) - percent(rate)), ALARMS_OFF, at_least=False))
    return Report("novelty", QUESTION, tuple(tables), tuple(targets))


def _one_split(
    sample: Sample, seed: int, alarms: dict[float, list[tuple[float, ...]]]
) -> dict[str, list[tuple[float, float]]]:
    """Return AUROC of each class held back, by method: against all known samples, and each known class alike."""
    learn, test = sample.halves(seed)
    k = len(sample.classes)
    everything = sample.codes(learn)
    C = Logistic().choose(everything[learn], sample.labels[learn], sample.groups[learn])
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for new in range(k):
        base = learn[sample.labels[learn] != new]
        known, strange = test[sample.labels[test] != new], np.flatnonzero(sample.labels == new)
        codes = sample.codes(base)
        own, labels, shown = codes[base], sample.labels[base], codes[np.concatenate([known, strange])]
        is_new = np.arange(len(shown)) >= len(known)
        of_class = np.bincount(sample.labels[known], minlength=k)[sample.labels[known]]
        weight = np.concatenate([1 / of_class, np.ones(len(strange))])
        served, left_out = Ours().fit_calibrated(own, labels, sample.groups[base], k)
        novelty = served.head.novelty(shown)
        for rate in RATES:
            unknown = novelty > calibrate(left_out, rate).novelty_threshold
            false = unknown[~is_new]
            of_groups, of_classes = (
                np.mean([false[of == each].mean() for each in np.unique(of)])
                for of in (sample.groups[known], sample.labels[known])
            )
            shares = (of_groups, false.mean(), of_classes, unknown[is_new].mean())
            alarms[rate].append(tuple(percent(share) for share in shares))
        logistic = Logistic(C=C).fit(own, labels, sample.groups[base], k)
        strangeness = {
            OURS: novelty,
            "direction alone": 1 - served.head.scores(shown).max(1),
            "logistic regression, largest probability": -logistic.probabilities(shown).max(1),
            "Mahalanobis distance": mahalanobis(own, labels, shown),
            f"{NEIGHBOURS} nearest codes, cosine": neighbours(own, shown),
        }
        for method, values in strangeness.items():
            found[method].append(
                (
                    percent(roc_auc_score(is_new, values)),
                    percent(roc_auc_score(is_new, values, sample_weight=weight)),
                )
            )
    return found
