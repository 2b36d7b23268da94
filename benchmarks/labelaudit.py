"""labelaudit: of labels planted wrong in a whole set, how many does `headway audit` list, and what do they cost?

30 labels are changed to another class at random: of single images, or of whole groups, all images of a part alike.
Every image is judged as the command does it, by a head without its group and by near-duplicates among the pixels.
Somebody who looks at all that is listed corrects what is wrong; the head is then judged on the half of the groups
that it did not learn from, by the true labels.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from benchmarks.features import Sample
from benchmarks.leaks import drawn_looks, looks_of
from benchmarks.learners import Ours, ids_of, mean_recall
from benchmarks.report import Report, Setup, Table, mean_and_error, percent
from export.label_audit import Why, hard_pairs, opinions, to_look_at
from export.leaks import find_near_duplicates
from sdk.grouping import derive_groups
from sdk.moments import Ints
from sdk.score import calibrate, leave_one_group_out, score

QUESTION: Final = "wrong labels of a whole set: how many are listed, and what does correcting them give?"
WRONG: Final = 30
SPLITS: Final = 10


def run(setup: Setup) -> Report:
    """Return the report."""
    tables = []
    for name in setup.sets:
        sample = setup.load(name)
        setup.say(f"{name}: looking for near-duplicates")
        near = find_near_duplicates(drawn_looks(sample) if setup.quick else looks_of(name))
        twins = [(pair.first, pair.second) for pair in near.pairs]
        grouped = len(set(sample.groups.tolist())) < len(sample.groups)
        for whole in (False, True) if grouped else (False,):
            runs = [_one(setup, sample, twins, seed, whole=whole) for seed in setup.seeds(SPLITS)]
            tables.append(_table(f"{name}, {'whole groups' if whole else 'single images'}", np.array(runs)))
    notes = (
        f"About {WRONG} labels are planted wrong over the whole set; each figure is a mean over the plantings.",
    )
    return Report("labelaudit", QUESTION, tuple(tables), (), notes)


def _table(title: str, runs: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Table:
    planted, found, first, proposed, listed, twin, twin_found, *accuracies = runs.mean(0).tolist()
    dirty, corrected, clean, told, told_corrected = accuracies
    gain = mean_and_error((runs[:, 8] - runs[:, 7]).tolist())
    left = mean_and_error((runs[:, 9] - runs[:, 8]).tolist())
    truer = mean_and_error((runs[:, 11] - runs[:, 10]).tolist())
    return Table(
        f"{title}: what is listed, and balanced accuracy on the half held out by group",
        ("", "mean"),
        (
            ("labels planted wrong", planted),
            ("of these listed", found),
            ("of these among as many as were planted", first),
            ("of these with the true class proposed", proposed),
            ("listed in all", listed),
            ("listed for a near-duplicate", twin),
            ("of these planted", twin_found),
            ("with the wrong labels, %", dirty),
            (f"with those listed corrected, % ({gain})", corrected),
            (f"with no label planted wrong, % ({left} more)", clean),
            ("the whole set's own score, by the wrong labels, %", told),
            (f"the same with those listed corrected, % ({truer})", told_corrected),
        ),
    )


def planted(sample: Sample, seed: int, *, whole: bool) -> Ints:
    """Return the labels (n,) with about `WRONG` of them wrong: of single images, or of whole groups."""
    rng, k, given = np.random.default_rng(seed), len(sample.classes), sample.labels.copy()
    if not whole:
        rows = rng.permutation(len(given))[:WRONG]
        given[rows] = (given[rows] + rng.integers(1, k, len(rows))) % k
        return given
    left = WRONG
    for group in rng.permutation(np.unique(sample.groups)):
        rows = np.flatnonzero(sample.groups == group)
        if len(rows) <= left:
            given[rows] = (given[rows] + rng.integers(1, k)) % k
            left -= len(rows)
    return given


def _one(
    setup: Setup, sample: Sample, twins: list[tuple[int, int]], seed: int, *, whole: bool
) -> tuple[float, ...]:
    setup.say(f"{sample.name}, planting {seed}")
    truth, k = sample.labels, len(sample.classes)
    given = planted(sample, seed, whole=whole)
    wrong = given != truth
    codes = sample.codes(np.arange(len(truth)))
    groups = sample.groups.tolist()
    if len(set(groups)) == len(groups):
        groups = list(derive_groups(codes, ids_of(given), groups).groups)
    left_out = leave_one_group_out(codes, ids_of(given), groups)
    found = opinions(left_out, calibrate(left_out), np.arange(len(truth)), given, twins)
    listed = to_look_at(found, given, hard_pairs(found, given, groups))
    rows = [row for row, _ in listed]
    twin = [row for row, why in listed if why is Why.NEAR_DUPLICATE]
    corrected = given.copy()
    corrected[rows] = truth[rows]
    again = leave_one_group_out(codes, ids_of(corrected), groups)
    learn, test = sample.halves(seed)
    half = sample.codes(learn)

    def accuracy(labels: Ints) -> float:
        scores = Ours().fit(half[learn], labels[learn], sample.groups[learn], k).scores(half[test])
        return percent(mean_recall(scores, truth[test]))

    proposed = found.probabilities.argmax(1)
    return (
        float(wrong.sum()),
        float(wrong[rows].sum()),
        float(wrong[rows[: int(wrong.sum())]].sum()),
        float((wrong & (proposed == truth))[rows].sum()),
        float(len(rows)),
        float(len(twin)),
        float(wrong[twin].sum()),
        accuracy(given),
        accuracy(corrected),
        accuracy(truth),
        percent(score(left_out, calibrate(left_out)).balanced_accuracy or 0.0),
        percent(score(again, calibrate(again)).balanced_accuracy or 0.0),
    )
