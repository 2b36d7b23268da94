"""newclass: how well is a class known after its first 1, 3, 5 and 10 labels, and what does it cost the others?

Each class is held back in turn. The rest of the half that is learned from stays as it is; 1, 3, 5 and 10 labels of
the class are drawn from its groups in that half, several times. Recall is measured on the half held out by group:
by forced choice, which is all that rivals can say, and by the decision shown, where "unknown" is a miss. The
targets are told for both; docs/head.md, section 5, means the second.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np

from benchmarks.features import Sample
from benchmarks.learners import PLAIN, Learner, Logistic, Ours, Ridge, SolvedHead, ids_of, moments_of, recalls
from benchmarks.report import Report, Setup, Table, Target, percent
from sdk.head import DEFAULT_KNOBS, solve
from sdk.moments import Ints

QUESTION: Final = "recall of a new class after its first labels, and of the others"
LABELS: Final = (1, 3, 5, 10)
SPLITS: Final = 5
DRAWS: Final = 5
"""Of the labels, in each split, for this head."""
RIVAL_DRAWS: Final = 1
"""The first of the same draws, for what takes longer."""
OURS: Final = "this head"
SHOWN: Final = f"{OURS}, unknown is a miss"
TARGETS: Final = dict(zip(LABELS, (85.0, 93.0, 95.0, 96.0), strict=True))
OTHERS: Final = 98.8

Found = dict[tuple[str, int], list[tuple[float, float]]]
"""(method, labels) to (recall of the new class, mean recall of the others) of each run."""


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        found = _measure(setup, setup.load(name))
        methods = list(dict.fromkeys(method for method, _ in found))
        means = {key: tuple(percent(m) for m in np.mean(runs, axis=0)) for key, runs in found.items()}
        rows = [(m, *(f"{means[m, r][0]:.1f} / {means[m, r][1]:.1f}" for r in LABELS)) for m in methods]
        title = f"{name}: recall of the new class / mean recall of the others, %, mean of all classes and splits"
        tables.append(Table(title, ("", *(f"{r} labels" for r in LABELS)), tuple(rows)))
        if name == "neu_det":
            for method, how in ((OURS, "by forced choice"), (SHOWN, "by the decision shown")):
                targets += [
                    Target(f"{name}, new class after {r} labels, {how}, %", means[method, r][0], TARGETS[r])
                    for r in LABELS
                ]
                least = min(means[method, r][1] for r in LABELS)
                targets.append(Target(f"{name}, other classes, lowest of the columns, {how}, %", least, OTHERS))
    notes = (
        f"{SPLITS} splits, forced choice unless it says otherwise.",
        f"In each split {DRAWS} draws of labels for the first three rows, {RIVAL_DRAWS} of them for the others.",
        "The penalties of logistic regression and ridge were tuned on the learning half with all classes' labels: "
        "more than anybody has at the first label.",
    )
    return Report("newclass", QUESTION, tuple(tables), tuple(targets), notes)


def _measure(setup: Setup, sample: Sample) -> Found:
    found: Found = defaultdict(list)
    for seed in setup.seeds(SPLITS):
        setup.say(f"{sample.name}, split {seed}")
        learn, test = sample.halves(seed)
        codes = sample.codes(learn)
        C = Logistic().choose(codes[learn], sample.labels[learn], sample.groups[learn])
        penalty = Ridge().choose(codes[learn], sample.labels[learn], sample.groups[learn])
        rivals: list[Learner] = [Ridge(penalty=penalty), Logistic(C=C)]
        k = len(sample.classes)
        for new in range(len(sample.classes)):
            others = learn[sample.labels[learn] != new]
            codes = sample.codes(others)  # the release's code scale knows nothing of the new class
            before = moments_of(codes[others], sample.labels[others])
            truth = sample.labels[test]
            for draw in range(1 if setup.quick else DRAWS):
                own = np.random.default_rng((seed, new, draw)).permutation(learn[sample.labels[learn] == new])
                for labels in LABELS:
                    rows = np.concatenate([others, own[:labels]])
                    moments = before.copy()
                    moments.add(codes[own[:labels]], ids_of(sample.labels[own[:labels]]))
                    for method, knobs in ((OURS, DEFAULT_KNOBS), ("plain whitened cosine", PLAIN)):
                        head = SolvedHead(solve(moments, knobs=knobs), k)
                        found[method, labels].append(_recalls(head.scores(codes[test]).argmax(1), truth, new))
                    given = codes[rows], sample.labels[rows], sample.groups[rows], k
                    served, _ = Ours().fit_calibrated(*given)
                    found[SHOWN, labels].append(_recalls(served.shown(codes[test]), truth, new))
                    if draw >= RIVAL_DRAWS:
                        continue
                    for rival in rivals:
                        choice = rival.fit(*given).scores(codes[test]).argmax(1)
                        found[rival.name, labels].append(_recalls(choice, truth, new))
    return found


def _recalls(choice: Ints, truth: Ints, new: int) -> tuple[float, float]:
    of = recalls(choice, truth)
    return of.get(new, np.nan), float(np.mean([recall for c, recall in of.items() if c != new]))
