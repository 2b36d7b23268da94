"""gate: does a line's trial keep the head that another line's labels would make worse, or let it go?

A line knows some release samples of each class and has labelled a few parts itself, all rightly. Another line
sends labels: all right, some wrong, all wrong. What the head with them costs on the half held out by group says
what the trial should have done. Beside what it did stands what it would have done by counted decisions alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.features import Rows, Sample
from benchmarks.learners import ids_of
from benchmarks.report import Report, Setup, Table, Target, percent
from device_agent.trial import judge
from sdk.adaptation import Labelled, choose
from sdk.codes import Codes
from sdk.head import DEFAULT_KNOBS, UNCALIBRATED, Calibration, Head, solve
from sdk.labels import RELEASE_DEVICE
from sdk.moments import Ints
from sdk.score import LeftOut, calibrate, leave_one_group_out

QUESTION: Final = "another line's wrong labels: heads that cost much refused, others let go live"
SPLITS: Final = 20
OTHERS: Final = {"all right": (0.0, 0.0), "some wrong": (0.2, 0.9), "all wrong": (1.0, 1.0)}
"""What the other line sends, and between which shares of its labels are wrong."""
COSTLY: Final = 0.05
"""A head that costs more than this of the mean recall should not go live (docs/faults.md, T14)."""
HARMLESS: Final = 0.02
RELEASE_PER_CLASS: Final = (8, 15)
OWN_PER_CLASS: Final = (3, 12)
OTHER_PER_CLASS: Final = (5, 25)
_OWN: Final = "line-1"
_OTHER: Final = "line-2"


@dataclass(frozen=True)
class _Line:
    """What the line knows: a head, its left-out scores and its calibration."""

    station: Labelled
    samples: tuple[bytes, ...]
    left_out: LeftOut
    calibration: Calibration
    head: Head


@dataclass(frozen=True)
class _Trial:
    """How one trial ended: what its head costs of the mean recall, and whether it was kept."""

    cost: float
    kept: bool
    kept_by_counts: bool


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        runs = [_one_split(setup, sample, seed) for seed in setup.seeds(SPLITS)]
        rows = []
        for what in OTHERS:
            trials = [each[what] for each in runs]
            costly = [trial for trial in trials if trial.cost > COSTLY]
            harmless = [trial for trial in trials if trial.cost <= HARMLESS]
            kept = sum(trial.kept for trial in costly)
            refused = sum(not trial.kept for trial in harmless)
            rows.append(
                (
                    what,
                    len(costly),
                    sum(trial.kept_by_counts for trial in costly),
                    kept,
                    float(percent(max((trial.cost for trial in trials if trial.kept), default=0.0))),
                    len(harmless),
                    sum(not trial.kept_by_counts for trial in harmless),
                    refused,
                )
            )
            if what == "all right":
                targets.append(
                    Target(f"{name}, {what}: heads refused that cost at most 2 points", refused, 0, False)
                )
            else:
                targets.append(Target(f"{name}, {what}: heads kept that cost over 5 points", kept, 0, False))
        columns = (
            "another line's labels",
            "cost over 5",
            "kept by counts",
            "kept",
            "worst kept, points",
            "cost at most 2",
            "refused by counts",
            "refused",
        )
        title = f"{name}: {len(runs)} trials each; cost is of the mean recall on the half held out by group"
        tables.append(Table(title, columns, tuple(rows)))
    note = "By counts: what the trial would do without expecting anything of margins (docs/head.md, section 5)."
    return Report("gate", QUESTION, tuple(tables), tuple(targets), (note,))


def _one_split(setup: Setup, sample: Sample, seed: int) -> dict[str, _Trial]:
    setup.say(f"{sample.name}, split {seed}")
    learn, test = sample.halves(seed)
    codes, rng = sample.codes(learn), np.random.default_rng(seed)
    rows, devices = _dealt(sample, learn, rng)
    mine = np.array([device != _OTHER for device in devices])
    before = _line(codes, sample, rows[mine], sample.labels[rows[mine]], devices[mine])
    recall = _recall(before.head, codes, sample, test)
    found = {}
    for what, (low, high) in OTHERS.items():
        labels = sample.labels[rows].copy()
        wrong = ~mine & (rng.random(len(rows)) < rng.uniform(low, high))
        labels[wrong] = (labels[wrong] + 1) % len(sample.classes)
        after = _line(codes, sample, rows, labels, devices)
        end = judge(
            (before.left_out, before.calibration),
            (after.left_out, before.calibration),
            names=lambda class_id: class_id.hex(),
            own=frozenset(s for s, own in zip(after.samples, after.station.own, strict=True) if own),
        )
        cost = recall - _recall(after.head.recalibrated(end.calibration), codes, sample, test)
        found[what] = _Trial(cost, end.keep, end.keep or end.why.code == "less-clear")
    return found


def _dealt(sample: Sample, learn: Rows, rng: np.random.Generator) -> tuple[Rows, npt.NDArray[np.str_]]:
    """Return rows of each class for the release, the line and the other line, and whose each of them is."""
    counts = [
        int(rng.integers(low, high + 1)) for low, high in (RELEASE_PER_CLASS, OWN_PER_CLASS, OTHER_PER_CLASS)
    ]
    owners = np.repeat([RELEASE_DEVICE, _OWN, _OTHER], counts)
    rows, devices = [], []
    for label in range(len(sample.classes)):
        of_class = rng.permutation(learn[sample.labels[learn] == label])[: len(owners)]
        rows.append(of_class)
        devices.append(owners[: len(of_class)])
    return np.concatenate(rows), np.concatenate(devices)


def _line(codes: Codes, sample: Sample, rows: Rows, labels: Ints, devices: npt.NDArray[np.str_]) -> _Line:
    """Return what a line makes of labels, as its learner would."""
    samples = tuple(int(row).to_bytes(32, "big") for row in rows)
    ids, groups = ids_of(labels), [str(group) for group in sample.groups[rows]]
    station = Labelled(codes[rows], ids, groups, devices.tolist(), devices == _OWN)
    adaptation = choose(station, codes[:0], knobs=DEFAULT_KNOBS).adaptation
    left_out = leave_one_group_out(
        codes[rows],
        ids,
        groups,
        own=station.own,
        adaptation=adaptation,
        samples=samples,
        learned=station.everything,
    )
    calibration = calibrate(left_out, UNCALIBRATED.false_alarm_rate)
    head = solve(station.everything, own=station.moments(station.own), adaptation=adaptation)
    return _Line(station, samples, left_out, calibration, head.recalibrated(calibration))


def _recall(head: Head, codes: Codes, sample: Sample, rows: Rows) -> float:
    """Return the mean recall of decisions as shown: unknown is a miss."""
    decisions, truth = head.decide(codes[rows]), sample.labels[rows]
    shown = np.array(ids_of(np.arange(len(sample.classes))))
    right = np.array(head.class_ids)[decisions.class_index] == shown[truth]
    right &= ~decisions.unknown
    return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))
