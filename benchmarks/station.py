"""station: does weighing own labels by what they gain help a station that differs, and spare one that does not?

The release learns from half of a set as its own cameras saw it; the station sees other parts with another camera.
Its stream is a quarter of the groups, of which some are labelled at random; balanced accuracy is measured on the
last quarter, as the station sees it. Magnetic tile has its own stations: trained on exposures 1 to 3, adapted on 4
to 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmarks.features import CAMERAS, Rows, Sample, column
from benchmarks.learners import SolvedHead, ids_of, mean_recall
from benchmarks.report import Cell, Report, Setup, Table, mean_and_error, percent
from sdk.adaptation import Choice, Labelled, Mask, choose
from sdk.codes import Codes, encode, fit_scale
from sdk.head import solve
from sdk.moments import UNADAPTED, Adaptation, Ints
from sdk.splits import Part, split

QUESTION: Final = "a station's own labels weighed and its shift allowed for, against all labels counting alike"
LABELS: Final = (12, 30, 100)
SPLITS: Final = 5
LEARNED: Final = (Part.TRAIN, Part.VALIDATION)
STATION_EXPOSURES: Final = ("4", "5", "6")


def run(setup: Setup) -> Report:
    """Return the report."""
    rows: list[tuple[Cell, ...]] = []
    worst = 0.0
    for name in setup.sets:
        release = setup.load(name)
        stations = ["the same", *CAMERAS] if name == "neu_det" else ["other exposures"]
        for station in stations:
            setup.say(f"{name}, {station}")
            seen = setup.load(f"{name}+{station}") if station in CAMERAS else release
            for labels in LABELS:
                plain, chosen, choices = [], [], []
                for seed in setup.seeds(SPLITS):
                    here = (
                        _exposed(setup, release)
                        if station == "other exposures"
                        else np.ones(len(seen.labels), bool)
                    )
                    before, after, choice = _one(release, seen, here, seed, labels)
                    plain.append(before)
                    chosen.append(after)
                    choices.append(choice)
                gain = [b - a for a, b in zip(plain, chosen, strict=True)]
                worst = min(worst, float(np.mean(gain)))
                weights = Counter(choice.adaptation.own_weight for choice in choices)
                rows.append(
                    (
                        f"{name}, {station}",
                        labels,
                        float(np.mean(plain)),
                        float(np.mean(chosen)),
                        mean_and_error(gain),
                        sum(bool(choice.adaptation.shift) for choice in choices),
                        ", ".join(f"{weight} x {count}" for weight, count in sorted(weights.items())),
                    )
                )
    table = Table(
        "balanced accuracy on the station's test images, %",
        ("station", "own labels", "all alike", "as chosen", "gain", "splits shifted", "own weight x splits"),
        tuple(rows),
    )
    notes = (f"{len(setup.seeds(SPLITS))} splits; the largest mean loss is {-worst:.1f} points.",)
    return Report("station", QUESTION, (table,), notes=notes)


def _exposed(setup: Setup, sample: Sample) -> Mask:
    exposure = np.arange(len(sample.labels)) % 6 + 1 if setup.quick else column(sample.name, "exposure")
    return np.isin(exposure.astype(str), STATION_EXPOSURES)


def _one(release: Sample, seen: Sample, here: Mask, seed: int, labels: int) -> tuple[float, float, Choice]:
    """Return balanced accuracy, in percent, without and with the choice, and the choice."""
    parts = list(split(release.groups.tolist(), [release.classes[y] for y in release.labels], seed))
    elsewhere = ~here if not here.all() else here
    learn: Rows = _rows(parts, LEARNED, elsewhere)
    stream: Rows = _rows(parts, (Part.STREAM,), here)
    test: Rows = _rows(parts, (Part.TEST,), here)
    scale = fit_scale(release.features[learn])
    theirs, codes = encode(release.features, scale), encode(seen.features, scale)
    passed = np.random.default_rng(seed).permutation(stream)
    own = passed[:labels]
    live = Labelled(
        np.concatenate([theirs[learn], codes[own]]),
        ids_of(np.concatenate([release.labels[learn], seen.labels[own]])),
        [f"release/{release.groups[row]}" for row in learn] + [f"me/{seen.groups[row]}" for row in own],
        ["release"] * len(learn) + ["me"] * len(own),
        np.arange(len(learn) + len(own)) >= len(learn),
    )
    choice = choose(live, codes[passed])
    truth, k = seen.labels[test], len(seen.classes)
    before, after = (_recall(live, a, codes[test], truth, k) for a in (UNADAPTED, choice.adaptation))
    return before, after, choice


def _rows(parts: Sequence[Part], wanted: Sequence[Part], where: Mask) -> Rows:
    return np.flatnonzero(np.array([part in wanted for part in parts]) & where)


def _recall(live: Labelled, adaptation: Adaptation, test: Codes, truth: Ints, k: int) -> float:
    everything = live.moments(np.ones(len(live.own), bool))
    head = solve(everything, own=live.moments(live.own), adaptation=adaptation)
    return percent(mean_recall(SolvedHead(head, k).scores(test), truth))
