"""heatmap: does the evidence lie where the defect is, on magnetic tile, whose masks mark the defects' pixels?

    python -m benchmarks.heatmap                            about five minutes on one core
    python -m benchmarks.heatmap --sheet sheet.png          also draws some, the mask outlined

The head learns half of each class's groups; defects of the other half are judged, with the evidence for their own
label: that class's (`class`), and its lead over good parts (`lead`), which is what the page draws. The evidence is
brought to the picture's size and asked two things: does its highest point lie in the mask (the pointing game,
Zhang 2016), and which share of the positive evidence does. Chance is the share of the picture in the mask.
The grid is coarse and blowholes are small, so it is also asked whether the best cell touches the mask; chance is
then the share of cells that do.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.features import BACKBONE, shared_folder
from benchmarks.report import Cell, Report, Table, as_text, percent
from device_agent.heatmap import draw
from sdk.bundle import MapEntry
from sdk.codes import Features, encode, fit_scale
from sdk.head import Head, solve
from sdk.heatmap import Map, Spatial, evidence
from sdk.moments import Floats, Moments
from sdk.splits import Part, split

QUESTION: Final = "does the evidence lie where the defect is?"
SET: Final = "magnetic_tile"
GOOD: Final = "free"
SPLITS: Final = 5
LEVELS: Final = (1, 2, 4)
SHEET_COLUMNS: Final = 6
SHEET_TILE_PX: Final = 180

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """How one heatmap fits one mask: shares in [0, 1], hits 0 or 1."""

    hit: float
    energy: float
    chance: float
    cell_hit: float
    cell_chance: float


def judge(found: Floats, mask: Mask) -> Judged:
    """Return how evidence (h, w) fits a mask (H, W) that marks at least one pixel.

    >>> mask = np.zeros((4, 4), bool)
    >>> mask[:2, :2] = True
    >>> fits = judge(np.array([[1.0, 0.0], [0.0, -9.0]]), mask)
    >>> fits.hit, fits.chance, fits.cell_hit, fits.cell_chance
    (1.0, 0.25, 1.0, 0.25)
    """
    height, width = mask.shape
    smooth = cv2.resize(found.astype(np.float32), (width, height))
    positive = np.maximum(smooth, 0)
    rows, columns = (
        np.minimum(np.arange(n) * g // n, g - 1) for n, g in zip(mask.shape, found.shape, strict=True)
    )
    touched = np.zeros(found.shape, bool)
    np.logical_or.at(touched, (rows[:, None], columns[None, :]), mask)
    return Judged(
        hit=float(mask.flat[int(smooth.argmax())]),
        energy=float(positive[mask].sum() / max(float(positive.sum()), 1e-12)),
        chance=float(mask.mean()),
        cell_hit=float(touched.flat[int(found.argmax())]),
        cell_chance=float(touched.mean()),
    )


@dataclass(frozen=True)
class _Passed:
    """The set after one pass of the backbone; maps of defects only, by row."""

    labels: list[str]
    groups: list[str]
    paths: list[Path]
    features: Features
    maps: dict[int, tuple[Map, ...]]
    layout: tuple[MapEntry, ...]


def _pass(folder: Path, weights: Path, levels: int, say: Callable[[str], None]) -> _Passed:
    from device_agent.config import RuntimeSettings
    from device_agent.runtime.onnx import OnnxRuntime
    from export.backbones import load_backbone
    from export.finetune import resized_frames
    from export.graph import to_onnx
    from sdk.images import open_images

    say(f"one pass over {folder.name}, {levels} level{'s' * (levels > 1)}")
    images = open_images(folder)
    backbone = load_backbone(BACKBONE, str(weights), levels=levels)
    size = backbone.preprocess
    shape, settings = (3, size.height, size.width), RuntimeSettings(threads=1)
    runtime = OnnxRuntime(to_onnx(backbone), BACKBONE, shape, backbone.feature_size, settings, backbone.maps)
    features, kept = [], {}
    paths = [image.path for image in images.images]
    with tempfile.TemporaryDirectory() as scratch:
        for row, frame in enumerate(resized_frames(paths, size, Path(scratch))):
            found, maps = runtime.spatial(size.apply(frame))
            features.append(found)
            if images.labels[row] != GOOD:
                kept[row] = tuple(each[0] for each in maps)
    return _Passed(list(images.labels), list(images.groups), paths, np.concatenate(features), kept, backbone.maps)


def _masks(folder: Path) -> dict[str, Path]:
    with (folder / "index.csv").open(newline="") as file:
        return {row["path"]: folder / row["mask"] for row in csv.DictReader(file) if row["mask"]}


def _read_mask(file: Path) -> Mask:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) > 127


Shown = tuple[str, npt.NDArray[np.uint8]]


def run(
    folder: Path, weights: Path, seeds: range, say: Callable[[str], None], sheet: Path | None = None
) -> Report:
    """Return the report; with `sheet`, also draw some of the first split's heatmaps there."""
    masks = {str(folder / path): _read_mask(file) for path, file in _masks(folder).items()}
    tables = []
    for levels in LEVELS:
        seen = _pass(folder, weights, levels, say)
        found: dict[tuple[str, str], list[Judged]] = defaultdict(list)
        shown: dict[str, list[Shown]] = defaultdict(list)
        for seed in seeds:
            parts = split(seen.groups, seen.labels, seed)
            learn = np.array([part in (Part.TRAIN, Part.VALIDATION) for part in parts])
            ids = {label: label.encode().ljust(16, b".") for label in set(seen.labels)}
            scale = fit_scale(seen.features[learn])
            codes = encode(seen.features, scale)
            moments = Moments(codes.shape[1])
            moments.add(codes[learn], [ids[seen.labels[row]] for row in np.flatnonzero(learn)])
            head = solve(moments)
            best = head.decide(codes).class_index
            for row, maps in seen.maps.items():
                mask = masks[str(seen.paths[row])]
                if learn[row] or not mask.any():
                    continue
                label = seen.labels[row]
                here = Spatial(seen.features[row : row + 1], maps)
                own = evidence(head, ids[label], here, seen.layout, scale)
                lead = own - evidence(head, ids[GOOD], here, seen.layout, scale)
                decided_right = head.class_ids[int(best[row])] == ids[label]
                for what, values in (("class", own), ("lead", lead)):
                    found[what, label].append(judge(values, mask))
                    if decided_right:
                        found[f"{what}, where the head is right", label].append(found[what, label][-1])
                if sheet is not None and seed == seeds[0]:
                    shown[label].append(_tile(seen.paths[row], lead, mask, head, best[row], ids))
        grid = f"{max(e.height for e in seen.layout)} x {max(e.width for e in seen.layout)} cells"
        tables.append(_table(f"{levels} level{'s' * (levels > 1)}, {grid}, {len(seeds)} splits", found))
        if sheet is not None:
            file = sheet.with_name(f"{sheet.stem}-{levels}{sheet.suffix}")
            _write_sheet(file, shown)
            say(f"drawn: {file}")
    return Report("heatmap", QUESTION, tuple(tables))


def _table(title: str, found: dict[tuple[str, str], list[Judged]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for what in dict.fromkeys(what for what, _ in found):
        labels = sorted(label for each, label in found if each == what)
        figures = []
        for label in labels:
            judged = found[what, label]
            figures.append([np.mean([getattr(j, field) for j in judged]) for field in _FIELDS])
            rows.append((f"{what}: {label}", len(judged), *(percent(x) for x in figures[-1])))
        rows.append((f"{what}: mean of classes", "", *(percent(x) for x in np.mean(figures, 0))))
    columns = ("evidence", "images", "points at it", "energy in it", "chance", "cell touches it", "chance")
    return Table(f"{SET}, {title}, %", columns, tuple(rows))


_FIELDS: Final = ("hit", "energy", "chance", "cell_hit", "cell_chance")


def _tile(path: Path, lead: Floats, mask: Mask, head: Head, best: int, ids: dict[str, bytes]) -> Shown:
    """Return what the head says of a picture, and the picture beside its heatmap with the mask outlined."""
    frame = cv2.imread(str(path))
    assert frame is not None
    drawn = draw(np.asarray(frame, np.uint8), lead)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, (0, 255, 0), 1)
    both = [cv2.resize(each, (SHEET_TILE_PX // 2, SHEET_TILE_PX)) for each in (frame, drawn)]
    name = next(label for label, class_id in ids.items() if class_id == head.class_ids[int(best)])
    return name, np.asarray(np.hstack(both), np.uint8)


def _write_sheet(file: Path, shown: dict[str, list[Shown]]) -> None:
    """Write one row of pictures for each class, spread over those there are, each with what the head decided."""
    lines = []
    for label in sorted(shown):
        at = np.linspace(0, len(shown[label]) - 1, SHEET_COLUMNS).round().astype(int)
        tiles = []
        for i in at:
            name, tile = shown[label][i]
            titled = cv2.copyMakeBorder(tile, 18, 4, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
            text = f"{label}: {name}"
            cv2.putText(titled, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            tiles.append(titled)
        lines.append(np.hstack(tiles))
    cv2.imwrite(str(file), np.vstack(lines))


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 2 when the image set is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heatmap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="of the splits; 100 and up to choose by"
    )
    parser.add_argument("--splits", type=int, default=SPLITS, metavar="N", help="default: 5")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw some of them there")
    options = parser.parse_args(arguments)
    folder, weights = shared_folder() / "data" / SET, shared_folder() / "weights" / BACKBONE
    for needed in (folder / "index.csv", weights / "model.safetensors"):
        if not needed.is_file():
            print(f"python -m benchmarks.heatmap: {needed} is missing; set HEADWAY_SHARED", file=sys.stderr)
            return 2

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    seeds = range(options.first_seed, options.first_seed + options.splits)
    print(as_text(run(folder, weights, seeds, say, options.sheet)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
