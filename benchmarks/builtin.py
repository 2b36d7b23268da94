"""Headway's own backbone beside random weights and ImageNet's: frozen, fine-tuned, and how fast.

    python -m benchmarks.builtin                       frozen features, and latency
    python -m benchmarks.builtin --only finetune --splits 1      minutes for each network and split
    python -m benchmarks.builtin --own FOLDER          weights of `headway export pretrain` instead of the shipped

Frozen: the head on codes, balanced accuracy on the half of each set that is held out by group, with 1, 5 and 20
labels a class drawn from the other half, and all. All networks see the same splits and labels. Random weights have
the architecture of ours; their batch norm statistics are calibrated on the half that is learned from.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.features import BACKBONE, CACHE, INPUT_SIZE_PX, NoImageSets, Rows, Sample, real, shared_folder
from benchmarks.learners import Ours, mean_recall
from benchmarks.report import Cell, Report, Table, Target, as_json, as_text, mean_and_error, percent
from export.augment import Frames, to_pixels
from export.backbones import BUILTIN, NO_WEIGHTS, Backbone, load_backbone
from export.embed import features
from export.finetune import Schedule, finetune, resized_frames
from export.graph import OnnxBackbone, to_onnx
from export.profiles import Profile
from export.quantize import Method, calibrate, prepare, to_int8
from export.recipes import RECIPES, Strategy, batch_norms
from sdk.images import open_images
from sdk.preprocess import Preprocess

QUESTION: Final = "is our own backbone, trained on drawn surfaces alone, good enough to start with?"
SETS: Final = ("neu_det", "magnetic_tile")
LABELS: Final = (1, 5, 20, 0)
"""Per class; 0 is all there are."""
SPLITS: Final = 5
DRAWS: Final = 4
CLOSED: Final = 2 / 3
"""Of the gap between random and ImageNet weights."""
RANDOM: Final = "random weights"
IMAGENET: Final = f"ImageNet {BACKBONE}"
OWN: Final = "builtin"
CALIBRATION_IMAGES: Final = 240
TIMED: Final = 40
TRAINED_EPOCHS: Final = 6
TRAINED_PX: Final = 160
"""Of fine-tuning: short, for two cores; the two networks alike."""


class Images:
    """A set's frames at the input size, its labels and its splits; frames are decoded when they are asked for."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._frames: dict[int, Frames] = {}

    def frames(self, side_px: int) -> Frames:
        """Return all frames (n, s, s, 3) uint8 BGR."""
        if side_px not in self._frames:
            images = open_images(shared_folder() / "data" / self.sample.name)
            with tempfile.TemporaryDirectory() as scratch:
                preprocess = Preprocess(height=side_px, width=side_px)
                kept = resized_frames([image.path for image in images.images], preprocess, Path(scratch))
                self._frames[side_px] = np.array(kept)
        return self._frames[side_px]


def own(folder: Path | None, seed: int = 0, *, weights: bool = True, side_px: int = INPUT_SIZE_PX) -> Backbone:
    """Return our backbone, shipped or from a folder, or its architecture with random weights."""
    if folder is None:
        return load_backbone(BUILTIN, None if weights else NO_WEIGHTS, input_size_px=side_px, seed=seed)
    return load_backbone("resnet10t", str(folder), input_size_px=side_px)


def calibrated(backbone: Backbone, frames: Frames) -> None:
    """Set a random network's batch norm statistics to what they are over these frames."""
    for norm in batch_norms(backbone.module):
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over what follows
    backbone.module.train()
    with torch.inference_mode():
        for part in np.array_split(frames, max(1, len(frames) // 24)):
            backbone.module(to_pixels(part, backbone.preprocess))
    backbone.module.eval()


def kept_features(backbone: Backbone, images: Images, key: str) -> npt.NDArray[np.float32]:
    """Return features (n, d) of a set, from `.bench/` where they are there."""
    file = CACHE / f"{images.sample.name}-builtin-{key}-{backbone.feature_size}.npz"
    if not file.is_file():
        found = features(backbone, images.frames(backbone.preprocess.height))
        file.parent.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".part.npz")
        np.savez(unfinished, features=found)
        unfinished.replace(file)
    with np.load(file) as kept:
        return np.asarray(kept["features"])


def few(sample: Sample, seeds: Sequence[int]) -> dict[int, list[float]]:
    """Return the balanced accuracy in percent of each split, by labels a class."""
    found: dict[int, list[float]] = defaultdict(list)
    for seed in seeds:
        learn, test = sample.halves(seed)
        codes = sample.codes(learn)
        for count in LABELS:
            reached = []
            for draw in range(DRAWS if count else 1):
                order = np.random.default_rng((seed, count, draw)).permutation(learn)
                rows = _first(sample, order, count)
                fitted = Ours().fit(codes[rows], sample.labels[rows], sample.groups[rows], len(sample.classes))
                reached.append(percent(mean_recall(fitted.scores(codes[test]), sample.labels[test])))
            found[count].append(float(np.mean(reached)))
    return found


def _first(sample: Sample, order: Rows, count: int) -> Rows:
    per_class = [order[sample.labels[order] == c] for c in range(len(sample.classes))]
    return np.concatenate([rows[:count] if count else rows for rows in per_class])


def frozen(
    folder: Path | None, seeds: Sequence[int], say: Callable[[str], None]
) -> tuple[list[Table], list[Target]]:
    """Return the tables of frozen features and what they were to show."""
    tables, targets = [], []
    for name in SETS:
        sample = real(name, say)
        images = Images(sample)
        ours = own(folder)
        chance = own(None, weights=False)
        say(f"{name}: features")
        calibrated(chance, images.frames(INPUT_SIZE_PX)[_some(sample)])
        ways = {
            RANDOM: kept_features(chance, images, "random"),
            OWN: kept_features(ours, images, str(ours.origin.sha256)[:12]),
            IMAGENET: sample.features,
        }
        found = {way: few(replace(sample, features=own_features), seeds) for way, own_features in ways.items()}
        rows: list[tuple[Cell, ...]] = []
        for way, features_of_way in ways.items():
            row: list[Cell] = [way, features_of_way.shape[1]]
            for count in LABELS:
                here = found[way][count]
                row += [float(np.mean(here)), mean_and_error(np.subtract(here, found[IMAGENET][count]).tolist())]
            rows.append(tuple(row))
        columns = [c for count in LABELS for c in (str(count) if count else "all", "to ImageNet")]
        title = f"{name}: balanced accuracy, %, by labels of each class; paired difference +- its standard error"
        tables.append(Table(title, ("", "d", *columns), tuple(rows)))
        for count in (20,) if name == "neu_det" else (20, 0):
            low, mid, high = (float(np.mean(found[way][count])) for way in (RANDOM, OWN, IMAGENET))
            what = f"{name}, {count or 'all'} labels a class: share of the gap from random to ImageNet closed"
            targets.append(Target(what, (mid - low) / (high - low), CLOSED))
    return tables, targets


def _some(sample: Sample) -> Rows:
    return np.linspace(0, len(sample.labels) - 1, min(CALIBRATION_IMAGES, len(sample.labels))).astype(np.int64)


def latency(folder: Path | None) -> tuple[Table, list[Target]]:
    """Return milliseconds a frame of both networks in ONNX Runtime on one thread, in turns."""
    weights = shared_folder() / "weights" / BACKBONE
    networks = {OWN: own(folder), BACKBONE: load_backbone(BACKBONE, str(weights), input_size_px=INPUT_SIZE_PX)}
    rng = np.random.default_rng(0)
    pixels = [rng.normal(0, 1, (1, 3, INPUT_SIZE_PX, INPUT_SIZE_PX)).astype(np.float32) for _ in range(4)]
    runs: dict[tuple[str, str], OnnxBackbone] = {}
    for name, backbone in networks.items():
        fp32 = to_onnx(backbone)
        prepared = prepare(fp32)
        ranges = calibrate(prepared, pixels, Method.MINMAX)
        int8 = to_int8(prepared, ranges, Profile.CPU, backbone.feature_size)
        runs |= {(name, "fp32"): OnnxBackbone(fp32, threads=1), (name, "int8"): OnnxBackbone(int8, threads=1)}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(TIMED):
        for way, session in runs.items():
            began = time.process_time()
            session.features(pixels[0])
            times[way].append(1000 * (time.process_time() - began))
    took = {way: statistics.median(own_times) for way, own_times in times.items()}
    rows = [(name, took[name, "fp32"], took[name, "int8"]) for name in networks]
    title = f"ms a frame at {INPUT_SIZE_PX} px, processor time of one thread, median of {TIMED}"
    targets = [
        Target(f"{form}: share of {BACKBONE}'s time", took[OWN, form] / took[BACKBONE, form], 0.5, at_least=False)
        for form in ("fp32", "int8")
    ]
    return Table(title, ("", "fp32", "int8"), tuple(rows), digits=2), targets


def fine_tuned(
    folder: Path | None, seeds: Sequence[int], epochs: int, side_px: int, say: Callable[[str], None]
) -> tuple[Table, list[Target]]:
    """Return balanced accuracy on half of NEU after fine-tuning the whole network on the other half."""
    sample = real("neu_det", say)
    images = Images(sample)
    weights = str(shared_folder() / "weights" / BACKBONE)
    ways: dict[str, Callable[[], Backbone]] = {
        OWN: lambda: own(folder, side_px=side_px),
        IMAGENET: lambda: load_backbone(BACKBONE, weights, input_size_px=side_px),
    }
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        learn, test = sample.halves(seed)
        held = np.zeros(len(learn), bool)
        held[np.random.default_rng(seed).permutation(len(learn))[: len(learn) // 5]] = True
        for way, load in ways.items():
            backbone = load()
            frames = images.frames(side_px)
            say(f"fine-tuning {way}, split {seed}")
            recipe = replace(RECIPES[Strategy.FULL], epochs=epochs)
            schedule = Schedule(epochs=epochs, seed=seed)
            tuned = replace(backbone)
            finetune(tuned, Strategy.FULL, frames[learn], sample.labels[learn], held, schedule, recipe=recipe)
            taught = replace(sample, features=features(tuned, frames))
            codes = taught.codes(learn)
            fitted = Ours().fit(codes[learn], sample.labels[learn], sample.groups[learn], len(sample.classes))
            found[way].append(percent(mean_recall(fitted.scores(codes[test]), sample.labels[test])))
            say(f"{found[way][-1]:.1f}")
    rows = [(way, float(np.mean(own_found))) for way, own_found in found.items()]
    gap = float(np.mean(np.subtract(found[OWN], found[IMAGENET])))
    title = (
        f"neu_det: fine-tuned on half of it, {epochs} epochs at {side_px} px, splits {', '.join(map(str, seeds))}"
    )
    what = "neu_det, fine-tuned: points to ImageNet fine-tuned alike"
    return Table(title, ("", "balanced accuracy, %"), tuple(rows)), [Target(what, gap, -1.0)]


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit status is 2 when the image sets are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.builtin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--own", type=Path, metavar="FOLDER", help="a timm model folder; default: the shipped one")
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", choices=("frozen", "latency", "finetune"), action="append")
    parser.add_argument("--epochs", type=int, default=TRAINED_EPOCHS, metavar="N", help="of fine-tuning")
    parser.add_argument("--side", type=int, default=TRAINED_PX, metavar="PX", help="of fine-tuning")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.splits)
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    asked = options.only or ["frozen", "latency"]
    tables: list[Table] = []
    targets: list[Target] = []
    try:
        if "frozen" in asked:
            some, met = frozen(options.own, seeds, say)
            tables, targets = tables + some, targets + met
        if "latency" in asked:
            one, met = latency(options.own)
            tables, targets = [*tables, one], targets + met
        if "finetune" in asked:
            one, met = fine_tuned(options.own, seeds, options.epochs, options.side, say)
            tables, targets = [*tables, one], targets + met
    except NoImageSets as error:
        print(f"python -m benchmarks.builtin: {error}", file=sys.stderr)
        return 2
    report = Report("builtin", QUESTION, tuple(tables), tuple(targets))
    print(as_text(report), flush=True)
    if options.json is not None:
        options.json.write_text(as_json([report]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
