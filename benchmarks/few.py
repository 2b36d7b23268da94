"""few: how good is the head with few labels of every class, against joint logistic regression?

Labels are drawn from the half that is learned from; balanced accuracy is measured on the half held out by group.
All methods see the same labels, so their differences are paired.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from benchmarks.learners import PLAIN, Learner, Logistic, Ours, Ridge, mean_recall
from benchmarks.report import Cell, Report, Setup, Table, Target, mean_and_error, percent

QUESTION: Final = "balanced accuracy with few labels of each class, against joint logistic regression"
LABELS: Final = (5, 20, 0)
"""Per class; 0 is all there are."""
SPLITS: Final = 5
DRAWS: Final = 4
"""Of the few labels, in each split: one draw of five says little."""
RIVAL: Final = "logistic regression"


def run(setup: Setup) -> Report:
    """Return the report."""
    methods: list[Learner] = [Ours(), Ours("plain whitened cosine", PLAIN), Ridge(), Logistic()]
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        for seed in setup.seeds(SPLITS):
            setup.say(f"{name}, split {seed}")
            learn, test = sample.halves(seed)
            codes = sample.codes(learn)
            for count in LABELS:
                recalls: dict[str, list[float]] = defaultdict(list)
                for draw in range(DRAWS if count and not setup.quick else 1):
                    order = np.random.default_rng((seed, count, draw)).permutation(learn)
                    per_class = [order[sample.labels[order] == c] for c in range(len(sample.classes))]
                    rows = np.concatenate([own[:count] if count else own for own in per_class])
                    given = codes[rows], sample.labels[rows], sample.groups[rows], len(sample.classes)
                    for method in methods:
                        scores = method.fit(*given).scores(codes[test])
                        recalls[method.name].append(percent(mean_recall(scores, sample.labels[test])))
                for method in methods:
                    found[method.name, count].append(float(np.mean(recalls[method.name])))
        rows_out: list[tuple[Cell, ...]] = []
        for method in methods:
            row: list[Cell] = [method.name]
            for count in LABELS:
                own = found[method.name, count]
                row.append(float(np.mean(own)))
                row.append(mean_and_error([a - b for a, b in zip(own, found[RIVAL, count], strict=True)]))
            rows_out.append(tuple(row))
        columns = [c for count in LABELS for c in (str(count) if count else "all", "against LR")]
        title = f"{name}: balanced accuracy, %, by labels of each class; paired difference +- its standard error"
        tables.append(Table(title, ("", *columns), tuple(rows_out)))
        for count in LABELS:
            gap = np.mean(np.subtract(found["this head", count], found[RIVAL, count]))
            what = f"{name}, {count or 'all'} labels, points above logistic regression"
            targets.append(Target(what, float(gap), 0.0))
    notes = (
        f"{len(setup.seeds(SPLITS))} splits, of few labels the mean of {DRAWS} draws in each.",
        "Penalties by cross-validation by group on the labels given.",
    )
    return Report("few", QUESTION, tuple(tables), tuple(targets), notes)
