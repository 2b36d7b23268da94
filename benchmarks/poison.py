"""poison: is a device that labels wrongly found at the fleet's union, and is the fleet as before without it?

Ten devices add labels to a release. In one run a device gives every label wrong, in another one operator gives a
fifth of hers wrong. `sdk.fleet.suspicion` points at sources; what it points at is quarantined. The head must then
be within two points of the one that nobody ever poisoned, and the moments those of a fleet without that source.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.features import Sample
from benchmarks.learners import ids_of, label_of, mean_recall
from benchmarks.report import Report, Setup, Table, Target, percent
from sdk.fleet.suspicion import Suspect, find_suspects
from sdk.head import solve
from sdk.labels import RELEASE_DEVICE
from sdk.liveset import LiveSet
from sdk.moments import Ints, Moments

QUESTION: Final = "a device or operator that labels wrongly: found, quarantined, undone"
DEVICES: Final = 10
OPERATORS: Final = ("ann", "bob")
RELEASE_SHARE: Final = 0.3
"""Of the samples learned from; the devices have labelled the others."""
FLIPS: Final = 0.2
SPLITS: Final = 5
BAD: Final = "line-3"


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        for what, operator, share in (
            ("one device of ten, every label wrong", "", 1.0),
            ("one operator of twenty, a fifth of the labels wrong", "ann", FLIPS),
        ):
            runs = np.array([_one_split(setup, sample, seed, operator, share) for seed in setup.seeds(SPLITS)])
            clean, dirty, after, found, others, equal, innocent = runs.mean(0)
            title = f"{name}: {what}; balanced accuracy on the half held out by group, %"
            rows = (
                ("nobody labels wrongly", float(clean)),
                ("poisoned", float(dirty)),
                ("what was suspected quarantined", float(after)),
                ("runs in which the source was found", percent(found)),
                ("others suspected, per run", float(others)),
                ("sources suspected where nobody labels wrongly, per run", float(innocent)),
            )
            tables.append(Table(title, ("", "%"), rows))
            short = f"{name}, {'operator' if operator else 'device'}"
            targets += [
                Target(f"{short}: points below nobody wrong", float(clean - after), 2.0, False),
                Target(f"{short}: runs in which nobody else is suspected, %", percent(1 - others), 100.0),
                Target(f"{short}: runs with moments as if it had never been there, %", percent(equal), 100.0),
            ]
            if not operator:
                targets.append(Target(f"{short}: found in % of runs", percent(found), 100.0))
    return Report("poison", QUESTION, tuple(tables), tuple(targets), (f"{DEVICES} devices, two operators each.",))


def _one_split(setup: Setup, sample: Sample, seed: int, operator: str, share: float) -> tuple[float, ...]:
    setup.say(f"{sample.name}, split {seed}")
    learn, test = sample.halves(seed)
    codes, truth, groups = sample.codes(learn), sample.labels[learn], sample.groups[learn]
    rng = np.random.default_rng(seed)
    names, index = np.unique(groups, return_inverse=True)
    owner = rng.integers(0, DEVICES, len(names))
    owner[rng.random(len(names)) < RELEASE_SHARE] = -1
    device = owner[index]
    person = np.where(device < 0, -1, rng.integers(0, len(OPERATORS), len(names))[index])
    devices = [RELEASE_DEVICE if d < 0 else f"line-{d}" for d in device]
    people = ["" if p < 0 else OPERATORS[p] for p in person]
    bad = np.array([d == BAD and operator in ("", p) for d, p in zip(devices, people, strict=True)])
    wrong = bad & (rng.random(len(learn)) < share)
    k = len(sample.classes)
    # A device calls each class another one, always the same; an operator's mistakes are of all kinds.
    step = rng.integers(1, k, len(learn)) if operator else np.ones(len(learn), np.int64)
    given = np.where(wrong, (truth + step) % k, truth)

    def accuracy(labels: Ints, rows: npt.NDArray[np.bool_]) -> float:
        moments = Moments(codes.shape[1])
        moments.add(codes[learn][rows], ids_of(labels[rows]))
        head = solve(moments)
        wide = np.full((len(test), k), -np.inf)
        wide[:, [label_of(c) for c in head.class_ids]] = head.scores(codes[test])
        return percent(mean_recall(wide, sample.labels[test]))

    every = np.ones(len(learn), bool)

    def suspects_of(labels: Ints) -> list[Suspect]:
        live = LiveSet(
            space="00" * 32,
            samples=tuple(int(row).to_bytes(32, "big") for row in learn),
            class_ids=tuple(ids_of(labels)),
            groups=tuple(str(group) for group in groups),
            devices=tuple(devices),
            operators=tuple(people),
            codes=codes[learn],
            digest="",
        )
        return find_suspects(live)

    suspects = suspects_of(given)
    held = np.zeros(len(learn), bool)
    for each in suspects:
        held |= _rows_of(each, devices, people)
    found = any(each.device == BAD and each.operator in ("", operator) for each in suspects)
    moments, never = Moments(codes.shape[1]), Moments(codes.shape[1])
    moments.add(codes[learn], ids_of(given))
    moments.subtract(codes[learn][held], ids_of(given[held]))
    never.add(codes[learn][~held], ids_of(given[~held]))
    return (
        accuracy(truth, every),
        accuracy(given, every),
        accuracy(given, ~held),
        float(found),
        float(sum(each.device != BAD for each in suspects)),
        float(moments == never),
        float(len(suspects_of(truth))),
    )


def _rows_of(suspect: Suspect, devices: list[str], people: list[str]) -> npt.NDArray[np.bool_]:
    pairs = zip(devices, people, strict=True)
    return np.array([d == suspect.device and suspect.operator in ("", p) for d, p in pairs])
