"""calibration: when the head says 90 %, is it right nine times in ten, on parts that it has never seen?

Expected calibration error of the probability shown, on the half held out by group: fifteen bins with equally many
samples, the mean of |confidence - accuracy| over the bins. Fewer than about sixty samples a bin make the figure of
a perfect method about one point.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from benchmarks.learners import Logistic, Ours
from benchmarks.report import Cell, Report, Setup, Table, Target
from sdk.score import CALIBRATION_BINS as BINS
from sdk.score import calibration_error

QUESTION: Final = "expected calibration error of the probabilities shown"
SPLITS: Final = 5
TARGETS: Final = {"neu_det": 0.01, "magnetic_tile": 0.06}


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for seed in setup.seeds(SPLITS):
            setup.say(f"{name}, split {seed}")
            learn, test = sample.halves(seed)
            codes, truth = sample.codes(learn), sample.labels[test]
            given = codes[learn], sample.labels[learn], sample.groups[learn], len(sample.classes)
            balanced = 1 / np.bincount(truth)[truth]
            shown = {
                "this head": Ours().fit_calibrated(*given)[0].probabilities(codes[test]),
                "logistic regression": Logistic(for_probabilities=True).fit(*given).probabilities(codes[test]),
            }
            for method, p in shown.items():
                likelihood = float(-np.log(np.maximum(p[np.arange(len(truth)), truth], 1e-12)).mean())
                error = calibration_error(p, truth)
                found[method].append((error, calibration_error(p, truth, balanced), likelihood))
        rows: list[tuple[Cell, ...]] = []
        for method, runs in found.items():
            error, balanced_error, likelihood = np.mean(runs, axis=0)
            rows.append((method, float(error), float(balanced_error), float(likelihood)))
        columns = ("", "ECE", "ECE, classes weigh the same", "negative log likelihood")
        tables.append(Table(f"{name}, mean of {len(setup.seeds(SPLITS))} splits", columns, tuple(rows), digits=4))
        mean = float(np.mean([run[0] for run in found["this head"]]))
        targets.append(Target(f"{name}, expected calibration error", mean, TARGETS[name], at_least=False))
    notes = (
        f"{BINS} bins of equally many samples, confidence of the best class (forced choice).",
        "C of logistic regression is chosen for likelihood here, in cross-validation by group.",
    )
    return Report("calibration", QUESTION, tuple(tables), tuple(targets), notes)
