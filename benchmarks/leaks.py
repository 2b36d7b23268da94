"""leaks: without a group column, do near-duplicates give the groups that an honest score needs?

The head is scored on the half that is learned from, the same images each time, leaving out single images, the
set's own groups, and the groups derived from near-duplicate pixels; only the grouping differs. Beside them, what
an export would have shown that also splits by the derived groups, and by the set's own joined with the derived:
derived groups that are right but coarser than the set's own tell of leaks in the set's own.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from benchmarks.features import Rows, Sample, shared_folder
from benchmarks.learners import ids_of
from benchmarks.report import Cell, Report, Setup, Table, Target, mean_and_error, percent
from export.leaks import Look, find_near_duplicates, joined, look
from sdk.codes import encode, fit_scale
from sdk.images import open_images
from sdk.score import calibrate, leave_one_group_out, score
from sdk.splits import Part, split

QUESTION: Final = "the score by groups derived from near-duplicates against the score by the set's own groups"
SPLITS: Final = 5
WITHIN_POINTS: Final = {"magnetic_tile": 5.0, "neu_det": 1.0}
DRAWN_PX: Final = 40


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        setup.say(f"{name}: looking for near-duplicates")
        found = find_near_duplicates(drawn_looks(sample) if setup.quick else looks_of(name))
        alone = [str(row) for row in range(len(sample.labels))]
        own = alone if len(set(sample.groups)) == len(sample.groups) else sample.groups.tolist()
        derived, both = joined(alone, found.pairs), joined(own, found.pairs)
        rows = []
        for seed in setup.seeds(SPLITS):
            learned = _learned(sample, own, seed)
            same = [_shown(sample, groups, learned) for groups in (alone, own, derived, both)]
            rows.append((*same, *(_shown(sample, g, _learned(sample, g, seed)) for g in (derived, both))))
        columns = np.array(rows).T
        lines: list[tuple[Cell, ...]] = [
            (what, float(column.mean()), float(column.std()), mean_and_error((column - columns[1]).tolist()))
            for what, column in zip(
                (
                    "leaving out single images",
                    "the set's own groups",
                    "derived groups, the same images",
                    "own groups joined with derived, the same images",
                    "derived groups, split by them too",
                    "own groups joined with derived, split by them",
                ),
                columns,
                strict=True,
            )
        ]
        tables.append(
            Table(
                f"{name}, {len(rows)} splits: left-out balanced accuracy, %, unknown is a miss",
                ("", "mean", "spread", "minus own groups'"),
                tuple(lines),
            )
        )
        tables.append(_grouping(name, own, derived, found.threshold))
        off = abs(float((columns[2] - columns[1]).mean()))
        targets.append(
            Target(f"{name}, |derived - own|, the same images, points", off, WITHIN_POINTS[name], False)
        )
        joint = abs(float((columns[2] - columns[3]).mean()))
        targets.append(Target(f"{name}, |derived - own joined with derived|, points", joint, 1.0, False))
    return Report("leaks", QUESTION, tuple(tables), tuple(targets))


def _learned(sample: Sample, groups: list[str], seed: int) -> Rows:
    parts = split(groups, [sample.classes[y] for y in sample.labels], seed)
    return np.flatnonzero([part in (Part.TRAIN, Part.VALIDATION) for part in parts])


def _shown(sample: Sample, groups: list[str], rows: Rows) -> float:
    codes = encode(sample.features[rows], fit_scale(sample.features[rows]))
    left_out = leave_one_group_out(codes, ids_of(sample.labels[rows]), [groups[row] for row in rows])
    found = score(left_out, calibrate(left_out)).balanced_accuracy
    assert found is not None, "the set has classes of several groups"
    return percent(found)


def _grouping(name: str, own: list[str], derived: list[str], threshold: float) -> Table:
    pieces = sum(len({derived[i] for i in np.flatnonzero(np.array(own) == group)}) > 1 for group in set(own))
    mixed = sum(len({own[i] for i in np.flatnonzero(np.array(derived) == group)}) > 1 for group in set(derived))
    return Table(
        f"{name}: groups",
        ("", "number"),
        (
            ("of the set", len(set(own))),
            ("derived", len(set(derived))),
            ("of the set that are divided among derived ones", pieces),
            ("derived that join several of the set", mixed),
            ("least likeness of a pair, %", percent(threshold)),
        ),
    )


def looks_of(name: str) -> list[Look]:
    """Return what the pictures of a set are compared by, in its order."""
    seen: dict[bytes, Look] = {}
    images = open_images(
        shared_folder() / "data" / name, seen=lambda sample, frame: seen.__setitem__(sample, look(frame))
    )
    return [seen[image.sample_id] for image in images.images]


def drawn_looks(sample: Sample) -> list[Look]:
    """Return pictures that show the sample's groups, each under lights of its own."""
    looks = []
    for row, group in enumerate(sample.groups):
        part = np.random.default_rng([int(b) for b in str(group).encode()])
        blobs = cv2.GaussianBlur(part.normal(0, 1, (DRAWN_PX, DRAWN_PX)).astype(np.float32), (0, 0), 1.5)
        light = np.linspace(1, 0.4 + 0.1 * (row % 5), DRAWN_PX)[None]
        grey = np.clip((120 + 150 * blobs) * light, 0, 255).astype(np.uint8)
        looks.append(look(np.dstack([grey] * 3)))
    return looks
