"""What one frame costs, step by step, with nothing else going on: the head's share, and 5 megapixels in tiles.

    python -m benchmarks.frame BUNDLE --images DIR                     every precision of it, about half a minute
    python -m benchmarks.frame BUNDLE --images DIR --frames 20         only shows that it runs

One thread, one frame after the other through a real station: preparation, backbone, then code, novelty and
decision together (`head`). Between two decisions the backbone has used the processor's caches for itself, as on a
line; a head that is asked again and again would be several times as fast. The large frame is made of the images,
mirrored beside and below each other, and cut by the station's recipe; tiles go through the backbone in batches.
`benchmarks.agent` measures the same stages while everything runs at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.report import Report, Table, Target, as_json, as_text
from device_agent.camera.shot import Shot
from device_agent.config import RecipeSettings, RuntimeSettings
from device_agent.recipe import Recipe
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.images import read
from sdk.layouts import IMAGE_SUFFIXES
from sdk.preprocess import Frame

WARM: Final = 10
IMAGES: Final = 60
LARGE: Final = (2592, 1944)
"""A usual sensor of 5 megapixels: width, height."""
LARGE_FRAMES: Final = 10
HEAD_TARGET: Final = 0.05
Steps = list[tuple[float, float, float, float]]
"""Milliseconds of cutting, preparation, backbone and head, frame by frame."""


def steps(station: Station, recipe: Recipe, shots: Sequence[Shot], count: int) -> tuple[Steps, int]:
    """Return what each step of so many frames took after some to warm up, and the tiles of a frame."""
    found: Steps = []
    tiles: list[Shot] = []
    for shot in islice(cycle(shots), WARM + count):
        began = time.perf_counter()
        pipeline = station.require().pipeline
        tiles = recipe.tiles(shot, pipeline.input_px, pipeline.picture_px)
        cut = time.perf_counter()
        prepared = station.prepare(tiles)
        there = time.perf_counter()
        embedded = station.embed(prepared)
        seen = time.perf_counter()
        station.judge(embedded)
        done = time.perf_counter()
        found.append((1e3 * (cut - began), 1e3 * (there - cut), 1e3 * (seen - there), 1e3 * (done - seen)))
    return found[WARM:], len(tiles)


def large(frames: Sequence[Frame], size: tuple[int, int] = LARGE) -> Frame:
    """Return a frame of this width and height made of others, mirrored so that no edge shows."""
    width, height = size
    first = frames[0]
    row = np.concatenate([first, first[:, ::-1]], 1)
    both = np.concatenate([row, row[::-1]], 0)
    across, down = -(-width // both.shape[1]), -(-height // both.shape[0])
    return np.ascontiguousarray(np.tile(both, (down, across, 1))[:height, :width])


def measure(bundle: Bundle, precision: str, images: Sequence[Path], frames: int) -> tuple[Table, list[Target]]:
    """Measure one precision."""
    shots = [Shot(read(file)[1], 0.0, "bench/x", file.name, file.read_bytes()) for file in images]
    whole = large([shot.frame for shot in shots])
    big = Shot(whole, 0.0, "bench/large", "large", b"")
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "data", "bench") as store:
        station = Station(store, threads=False)
        try:
            station.serve(bundle, precision, open_runtime(bundle, precision, RuntimeSettings(threads=1)))
            small, _ = steps(station, Recipe(), shots, frames)
            cut, tiles = steps(station, Recipe(RecipeSettings()), [big], min(LARGE_FRAMES, frames))
        finally:
            station.close()
    rows = []
    for name, each in (("one image", small), (f"{LARGE[0]} x {LARGE[1]}, {tiles} tiles", cut)):
        medians = [statistics.median(column) for column in zip(*each, strict=True)]
        share = statistics.median(step[3] / sum(step) for step in each)
        rows.append((name, *medians, statistics.median(sum(step) for step in each), 100 * share))
    head = statistics.median(step[3] / sum(step) for step in small)
    return Table(
        f"{precision}, {bundle.precision(precision).feature_size} features, milliseconds a frame (medians)",
        ("", "cut", "prepare", "backbone", "head", "all", "head, %"),
        tuple(rows),
        2,
    ), [Target(f"head, novelty, code and decision of a frame, {precision}", head, HEAD_TARGET, at_least=False)]


def main(arguments: list[str] | None = None) -> int:
    """Measure every precision of a bundle; print a report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frame",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    files = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        parser.error(f"no images in {options.images}")
    some = files[:: max(1, len(files) // IMAGES)][:IMAGES]
    with threadpool_limits(1):  # as the agent does before it imports NumPy
        found = [measure(bundle, each.precision, some, options.frames) for each in bundle.manifest.precisions]
    report = Report(
        "frame",
        "what one frame costs, step by step",
        tuple(table for table, _ in found),
        tuple(target for _, targets in found for target in targets),
        (f"{bundle.manifest.lineage.backbone}, one thread; load at the end {os.getloadavg()[0]:.1f}",),
    )
    print(as_text(report))
    if options.json is not None:
        options.json.write_text(as_json([report]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
