"""wronglabels: does the head point at labels that are wrong, and does withdrawing them undo the harm exactly?

A tenth of the labels given is changed to another class at random. All samples are ranked by the product's own
suspicion, how little the head without the sample's group believes its label. Somebody looks at the top of that
ranking and withdraws the wrong; the moments must then be those of a device that never had them. What the product
lists is told beside: no more than so many, and only what the head calls something else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from benchmarks.features import Sample
from benchmarks.learners import Ours, ids_of, mean_recall, moments_of
from benchmarks.report import Report, Setup, Table, Target, percent
from sdk.audit import suspects, suspicion
from sdk.head import solve
from sdk.moments import Ints

QUESTION: Final = "wrong labels found by left-out residuals, and withdrawn"
WRONG: Final = 0.10
LOOKED_AT: Final = 0.15
SPLITS: Final = 5


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        runs = [_one_split(setup, sample, seed) for seed in setup.seeds(SPLITS)]
        found, listed, shown, dirty, withdrawn, never, clean, equal = np.mean(runs, axis=0)
        rows = (
            ("with the wrong labels", float(dirty)),
            ("after withdrawing the confirmed ones", float(withdrawn)),
            ("never having had those", float(never)),
            ("with no wrong label at all", float(clean)),
        )
        title = (
            f"{name}: balanced accuracy on the half held out by group, %; {found:.1f} % of the wrong labels in "
            f"the top {LOOKED_AT:.0%}, {shown:.1f} % in the list of {listed:.0f} that the product shows"
        )
        tables.append(Table(title, ("", "%"), rows))
        if name == "neu_det":
            targets += [
                Target(f"{name}, share of wrong labels in the top {LOOKED_AT:.0%}, %", float(found), 70.0),
                Target(f"{name}, points from never having had those", abs(float(withdrawn - never)), 0.5, False),
                Target(f"{name}, points below no wrong label at all", float(clean - withdrawn), 0.5, False),
            ]
        targets.append(
            Target(f"{name}, share of runs with equal digests of the moments, %", percent(equal), 100.0)
        )
    notes = (f"{WRONG:.0%} of the labels wrong, the top {LOOKED_AT:.0%} looked at.",)
    return Report("wronglabels", QUESTION, tuple(tables), tuple(targets), notes)


def _one_split(setup: Setup, sample: Sample, seed: int) -> tuple[float, ...]:
    setup.say(f"{sample.name}, split {seed}")
    learn, test = sample.halves(seed)
    codes, truth = sample.codes(learn), sample.labels[learn]
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(learn), bool)
    wrong[rng.permutation(len(learn))[: round(WRONG * len(learn))]] = True
    k = len(sample.classes)
    given = np.where(wrong, (truth + rng.integers(1, k, len(learn))) % k, truth)
    own = codes[learn]

    served, left_out = Ours().fit_calibrated(own, given, sample.groups[learn], k)
    calibration = served.head.calibration
    ranked = np.argsort(-suspicion(left_out, calibration), kind="stable")
    numbered = replace(left_out, samples=tuple(row.to_bytes(32, "big") for row in range(len(learn))))
    listed = [int.from_bytes(each.sample, "big") for each in suspects(numbered, calibration)]
    confirmed = np.zeros(len(learn), bool)
    confirmed[ranked[: round(LOOKED_AT * len(learn))]] = True
    confirmed &= wrong

    moments = moments_of(own, given)
    moments.subtract(own[confirmed], ids_of(given[confirmed]))
    never = moments_of(own[~confirmed], given[~confirmed])

    def accuracy(labels: Ints, rows: Ints) -> float:
        scores = Ours().fit(own[rows], labels[rows], sample.groups[learn][rows], k).scores(codes[test])
        return percent(mean_recall(scores, sample.labels[test]))

    everything, kept = np.arange(len(learn)), np.flatnonzero(~confirmed)
    withdrawn = solve(moments).scores(codes[test])
    return (
        percent(confirmed.sum() / wrong.sum()),
        float(len(listed)),
        percent(wrong[listed].sum() / wrong.sum()),
        accuracy(given, everything),
        percent(mean_recall(withdrawn, sample.labels[test])),
        accuracy(given, kept),
        accuracy(given, np.flatnonzero(~wrong)),
        float(moments.digest() == never.digest()),
    )
