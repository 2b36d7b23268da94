"""readout: do more levels of the backbone, or a larger input, help parts that were not learned?

    python -m benchmarks.readout                                 both sets and backbones, ten minutes on one core
    python -m benchmarks.readout --set neu_det --backbone vit_tiny_patch16_224
    python -m benchmarks.readout --sizes --pooling --first-seed 100 --splits 8

Half of each class's groups is learned. Every readout is judged twice: on groups left out of that half, which is
what `headway export --levels auto` chooses by, and on the other half, which is the truth. Best class, whatever its
novelty; differences are to the network's own features at its own input size, paired by split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.features import shared_folder
from benchmarks.report import Cell, Report, Table, as_text, mean_and_error, percent
from export.progress import Log
from export.readout import Budget, Candidate, Readout, balanced, choose, describe, larger_px, read_all
from sdk.codes import Features, encode, fit_scale
from sdk.head import UNCALIBRATED, solve
from sdk.images import ImageSet, open_images
from sdk.moments import Ints, Moments
from sdk.score import decisions_right, leave_one_group_out
from sdk.splits import Part, split

QUESTION: Final = "do more levels help, and is it found out?"
SETS: Final = ("magnetic_tile", "neu_det")
BACKBONES: Final = ("mobilenetv2_100", "vit_tiny_patch16_224")
SPLITS: Final = 5


class _Quiet:
    """A listener that says stages only."""

    def stage(self, words: str) -> None:
        print(f"  {words}", file=sys.stderr, flush=True)

    def step(self, done: int, total: int, note: str = "") -> None:
        """Nothing is said of steps."""

    def say(self, line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)


def measure(images: ImageSet, backbone: str, weights: Path, budget: Budget, seeds: range) -> Table:
    """Return how each readout does on left-out and on held-out groups, and what the choice gains."""
    everything: list[tuple[Features, Candidate]] = []
    paths = [image.path for image in images.images]
    own_px: int | None = None
    while True:
        made = read_all(backbone, str(weights), Readout(own_px), budget.pooling, paths, Log(_Quiet()))
        assert made is not None
        everything += [(made[0], each) for each in made[1]]
        if own_px is not None or not budget.sizes:
            break
        own_px = larger_px(made[1][0].px)
    candidates = [each for _, each in everything]
    left_out, held_out, gains, picked = [], [], [], []
    classes, y = np.unique(np.array(images.labels), return_inverse=True)
    groups = np.unique(np.array(images.groups), return_inverse=True)[1].astype(np.int64)
    for seed in seeds:
        parts = split(images.groups, images.labels, seed)
        learn = np.array([part in (Part.TRAIN, Part.VALIDATION) for part in parts])
        judged = [
            _judge(features[:, each.columns], y, groups, learn, len(classes)) for features, each in everything
        ]
        right = [each[0] for each in judged]
        truth = [each[1] for each in judged]
        readout, reports = choose(candidates, right, y[learn], groups[learn], budget)
        at = next(i for i, each in enumerate(reports) if each.chosen)
        assert candidates[at].readout == readout
        left_out.append([balanced(each, y[learn]) for each in right])
        held_out.append(truth)
        gains.append(percent(truth[at] - truth[0]))
        picked.append(describe(candidates[at]))
    seen, real = np.array(left_out), np.array(held_out)
    rows: list[tuple[Cell, ...]] = [
        (
            describe(each),
            len(each.columns),
            percent(seen[:, i].mean()),
            mean_and_error([percent(x) for x in seen[:, i] - seen[:, 0]]),
            percent(real[:, i].mean()),
            mean_and_error([percent(x) for x in real[:, i] - real[:, 0]]),
        )
        for i, each in enumerate(candidates)
    ]
    chosen = ", ".join(f"{picked.count(each)} x {each}" for each in dict.fromkeys(picked))
    rows.append((f"chosen ({chosen})", "", "", "", "", mean_and_error(gains)))
    columns = ("readout", "d", "left out", "difference", "held out", "difference")
    title = f"{images.folder.name}, {backbone}: balanced accuracy, %, splits {seeds[0]} to {seeds[-1]}"
    return Table(title, columns, tuple(rows))


def _judge(
    features: Features, y: Ints, groups: Ints, learn: np.ndarray[tuple[int], np.dtype[np.bool_]], k: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], float]:
    """Return which left-out decisions are right, and the balanced accuracy on what was held out."""
    ids = [bytes([c]) * 16 for c in range(k)]
    codes = encode(features, fit_scale(features[learn]))
    own = [ids[c] for c in y[learn]]
    moments = Moments(codes.shape[1])
    moments.add(codes[learn], own)
    best = solve(moments).scores(codes[~learn]).argmax(1)
    left_out = leave_one_group_out(codes[learn], own, [str(g) for g in groups[learn]])
    right = decisions_right(left_out, UNCALIBRATED, unknown_is_miss=False)
    return right, balanced(best == y[~learn], y[~learn])


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 2 when an image set or weights are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", action="append", choices=SETS, help="only this image set")
    parser.add_argument("--backbone", action="append", choices=BACKBONES, help="only this backbone")
    parser.add_argument("--sizes", action="store_true", help="also an input half as large again")
    parser.add_argument("--pooling", action="store_true", help="also maxima of the last level")
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="of the splits; 100 and up to choose by"
    )
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N", help="default: 5")
    options = parser.parse_args(arguments)
    budget = Budget(sizes=options.sizes, pooling=options.pooling)
    seeds = range(options.first_seed, options.first_seed + options.splits)
    for name in options.set or SETS:
        for backbone in options.backbone or BACKBONES:
            folder, weights = shared_folder() / "data" / name, shared_folder() / "weights" / backbone
            for needed in (folder / "index.csv", weights / "model.safetensors"):
                if not needed.is_file():
                    print(
                        f"python -m benchmarks.readout: {needed} is missing; set HEADWAY_SHARED", file=sys.stderr
                    )
                    return 2
            table = measure(open_images(folder), backbone, weights, budget, seeds)
            print(as_text(Report("readout", QUESTION, (table,))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
