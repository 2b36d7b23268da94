"""Fine-tuning beside frozen features, on the real image sets: by group, paired over splits.

    python -m benchmarks.strategies                     both sets, `last`, splits 0 to 4
    python -m benchmarks.strategies --set neu_det --readiness
    python -m benchmarks.strategies --strategy full --first-seed 100 --splits 1

A split's training and validation half teaches, backbone and head alike; the other half judges and is looked at
once. On neu_det, 20 images of each class teach (a fifth of them for validation), and the test quarter judges. The
recipes were chosen on splits from 100 up.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.features import BACKBONE, INPUT_SIZE_PX, NoImageSets, shared_folder
from benchmarks.report import Report, Table, Target, as_json, as_text, mean_and_error, percent
from export.augment import Frames
from export.backbones import Backbone, load_backbone
from export.embed import features
from export.finetune import Aids, Rows, Schedule, finetune, resized_frames
from export.recipes import RECIPES, Strategy
from export.tail import Memory
from export.transfer import Field, Readiness, auroc, judge, ready, scores_of
from sdk.codes import Features
from sdk.images import open_images
from sdk.splits import Part, split

SETS: Final = ("magnetic_tile", "neu_det")
GOOD: Final = "free"
"""magnetic_tile's class of good parts."""
FEW: Final = 20
"""Images a class that teach on neu_det."""
POINTS: Final = {"magnetic_tile": 4.0}
AUROC_POINTS: Final = 6.0
NEU_TARGET: Final = 97.5


@dataclass(frozen=True)
class Set:
    """A set at the backbone's input size."""

    name: str
    classes: tuple[str, ...]
    frames: Frames
    labels: Rows
    groups: tuple[str, ...]

    def field(self, seed: int, judges: int | None = None) -> Field:
        """Return the split of this seed: what teaches, and what judges, at most so many images a class."""
        parts = split(self.groups, [self.classes[y] for y in self.labels], seed)
        teaches = np.array([part in (Part.TRAIN, Part.VALIDATION) for part in parts], bool)
        validation = np.array([part is Part.VALIDATION for part in parts], bool)
        judged = np.flatnonzero(~teaches)
        fit = np.flatnonzero(teaches)
        if self.name == "neu_det":
            kept = []
            for c in range(len(self.classes)):
                for held, count in ((True, FEW // 5), (False, FEW - FEW // 5)):
                    rows = fit[(self.labels[fit] == c) & (validation[fit] == held)]
                    kept.append(np.random.default_rng([seed, c, held]).permutation(rows)[:count])
            fit = np.sort(np.concatenate(kept))
            judged = np.flatnonzero(np.array([part is Part.TEST for part in parts], bool))
        if judges is not None:
            judged = np.sort(
                np.concatenate([judged[self.labels[judged] == c][:judges] for c in np.unique(self.labels)])
            )
        return Field(self.labels, self.groups, fit, validation, judged)


def read(name: str, say: Callable[[str], None], side_px: int = INPUT_SIZE_PX) -> tuple[Set, Backbone]:
    """Return a set and the pretrained backbone.

    Raises:
        NoImageSets: they are not on this machine.
    """
    shared = shared_folder()
    folder, weights = shared / "data" / name, shared / "weights" / BACKBONE
    for needed in (folder / "index.csv", weights / "model.safetensors"):
        if not needed.is_file():
            raise NoImageSets(f"{needed} is missing; set HEADWAY_SHARED to the folder with data/ and weights/")
    say(f"reading {name}")
    images = open_images(folder)
    backbone = load_backbone(BACKBONE, str(weights), input_size_px=side_px)
    with tempfile.TemporaryDirectory() as scratch:
        frames = resized_frames([image.path for image in images.images], backbone.preprocess, Path(scratch))
    labels = np.array([images.classes.index(label) for label in images.labels], np.int64)
    return Set(name, tuple(images.classes), frames, labels, tuple(images.groups)), backbone


@dataclass(frozen=True)
class Figures:
    """One split, one strategy."""

    seed: int
    strategy: str
    balanced_accuracy: float
    good_auroc: float
    seconds: float
    readiness: tuple[Readiness, ...] = ()


def measure(
    images: Set,
    backbone: Backbone,
    strategy: Strategy,
    seed: int,
    memory: Memory,
    *,
    readiness: bool = False,
    judges: int | None = None,
) -> Figures:
    """Return the figures of one strategy on one split.

    Args:
        images, backbone: The backbone is not changed.
        strategy: `frozen` too.
        seed: Of the split; training has seed 0.
        memory: Activations of the trunk below the last stages.
        readiness: Hold each class back too.
        judges: At most so many images of each class; None is all of them.
    """
    field, began = images.field(seed, judges), time.perf_counter()
    found = _features(images, backbone, strategy, field, field.fit, memory)
    scores, good = scores_of(found, field, field.fit), images.classes.index(GOOD) if GOOD in images.classes else 0
    defect = np.delete(scores, good, 1).max(1) - scores[:, good]
    seconds = time.perf_counter() - began
    held = [
        ready(
            found
            if strategy is Strategy.FROZEN
            else _features(images, backbone, strategy, field, field.without(c), memory),
            field,
            c,
            seed,
        )
        for c in field.classes
        if readiness
    ]
    return Figures(
        seed,
        strategy.value,
        judge(found, field).balanced_accuracy,
        auroc(defect, field.labels[field.judged] != good),
        seconds,
        tuple(held),
    )


def _features(
    images: Set, backbone: Backbone, strategy: Strategy, field: Field, rows: Rows, memory: Memory
) -> Features:
    """Return features of the rows that the field uses; others stay zero and are never read."""
    ours = replace(backbone, module=copy.deepcopy(backbone.module))
    if strategy is not Strategy.FROZEN:
        aids = Aids(memory=memory if strategy is Strategy.LAST else None)
        schedule = Schedule(RECIPES[strategy].epochs)
        finetune(ours, strategy, images.frames, images.labels, field.validation, schedule, rows=rows, aids=aids)
    used = np.sort(np.concatenate([field.fit, field.judged]))
    through = Strategy.LAST if strategy in (Strategy.FROZEN, Strategy.LAST) else strategy
    some = features(
        ours, images.frames, strategy=through, memory=memory if through is Strategy.LAST else None, rows=used
    )
    whole = np.zeros((len(images.frames), some.shape[1]), np.float32)
    whole[used] = some
    return whole


def report(name: str, classes: Sequence[str], figures: Sequence[Figures]) -> Report:
    """Return the figures as tables, with what was asked for."""
    seeds = sorted({f.seed for f in figures})
    of = {(f.strategy, f.seed): f for f in figures}
    strategies = list(dict.fromkeys(f.strategy for f in figures))
    rows: list[tuple[str | float, ...]] = []
    targets = []
    for strategy in strategies:
        accuracy = [percent(of[strategy, s].balanced_accuracy) for s in seeds]
        area = [percent(of[strategy, s].good_auroc) for s in seeds]
        gain = [a - percent(of["frozen", s].balanced_accuracy) for a, s in zip(accuracy, seeds, strict=True)]
        area_gain = [a - percent(of["frozen", s].good_auroc) for a, s in zip(area, seeds, strict=True)]
        rows.append(
            (
                strategy,
                float(np.mean(accuracy)),
                "" if strategy == "frozen" else mean_and_error(gain),
                float(np.mean(area)) if GOOD in classes else "",
                "" if strategy == "frozen" or GOOD not in classes else mean_and_error(area_gain),
                float(np.mean([of[strategy, s].seconds for s in seeds])),
            )
        )
        if strategy == "frozen":
            continue
        if name in POINTS:
            said = f"{strategy}, above frozen, points of"
            targets.append(Target(f"{said} balanced accuracy", float(np.mean(gain)), POINTS[name]))
            targets.append(Target(f"{said} AUROC", float(np.mean(area_gain)), AUROC_POINTS))
        else:
            said = f"{strategy}, balanced accuracy, {FEW} images a class, %"
            targets.append(Target(said, float(np.mean(accuracy)), NEU_TARGET))
    each: tuple[tuple[str | float, ...], ...] = tuple(
        (strategy, *(percent(of[strategy, s].balanced_accuracy) for s in seeds)) for strategy in strategies
    )
    columns = ("strategy", "balanced accuracy", "to frozen", "AUROC good/defect", "to frozen", "s a split")
    tables = [
        Table(f"{name}, {len(seeds)} splits, %", columns, tuple(rows)),
        Table("balanced accuracy by split, %", ("strategy", *(f"split {s}" for s in seeds)), each),
    ]
    tried = [f for f in figures if f.readiness]
    if tried:
        held = sorted({r.held for f in tried for r in f.readiness})
        tables.append(
            Table(
                "recall of a class after 5 labels / mean recall of the others, %",
                ("strategy", "split", *(classes[c] for c in held)),
                tuple(
                    (
                        f.strategy,
                        str(f.seed),
                        *(f"{percent(r.recall):.1f} / {percent(r.others):.1f}" for r in f.readiness),
                    )
                    for f in tried
                ),
            )
        )
    return Report(
        f"strategies, {name}", "what does fine-tuning add to frozen features?", tuple(tables), tuple(targets)
    )


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit status is 2 when the image sets are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strategies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", action="append", choices=SETS, help="only this one")
    parser.add_argument("--strategy", action="append", choices=[s.value for s in RECIPES], help="default: last")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--splits", type=int, default=5, metavar="N")
    parser.add_argument("--readiness", action="store_true", help="hold each class back too, on the first split")
    parser.add_argument("--input-size", type=int, default=INPUT_SIZE_PX, metavar="PX")
    parser.add_argument("--judges", type=int, metavar="N", help="judge by at most N images of each class")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    reports = []
    for name in options.set or SETS:
        try:
            images, backbone = read(name, say, options.input_size)
        except NoImageSets as error:
            print(f"python -m benchmarks.strategies: {error}", file=sys.stderr)
            return 2
        memory = Memory(len(images.frames), RECIPES[Strategy.LAST].views, 0)
        figures = []
        for seed in range(options.first_seed, options.first_seed + options.splits):
            for strategy in ["frozen", *(options.strategy or ["last"])]:
                tried = options.readiness and seed == options.first_seed
                figures.append(
                    measure(
                        images, backbone, Strategy(strategy), seed, memory, readiness=tried, judges=options.judges
                    )
                )
                found = figures[-1]
                say(
                    f"{name}, split {seed}, {strategy}: {percent(found.balanced_accuracy):.1f}, AUROC "
                    f"{percent(found.good_auroc):.1f} ({found.seconds:.0f} s)"
                )
        reports.append(report(name, images.classes, figures))
        print(as_text(reports[-1]), flush=True)
        if options.json is not None:
            options.json.write_text(as_json(reports) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
