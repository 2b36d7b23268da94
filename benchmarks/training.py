"""Throughput of feature extraction and of fine-tuning beside a bare torch loop with the same model and loader.

    python -m benchmarks.training                         mobilenetv2_100 with random weights, 160 px
    python -m benchmarks.training --backbone vit_tiny_patch16_224 --input-size 224

Both take turns on drawn images, so that whatever else the machine does falls on both. Figures are images a second
of processor time on a processor (what else runs there then counts little), and of wall time on a GPU, where
training is measured with and without mixed precision. There the clock is read when the GPU has done its work, at
the end of the first step and of the last, and nothing waits for it in between.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.report import Report, Table, Target, as_text
from export.augment import Augmentation, Frames, augmented, normalised, to_pixels
from export.backbones import Backbone, Origin, load_backbone
from export.embed import EVALUATION_BATCH, features
from export.finetune import BATCH, Aids, Epoch, Rows, Schedule, finetune
from export.precision import Precision, finished
from export.recipes import RECIPES, Strategy, batch_norms

CLASSES: Final = 4
SHARE: Final = 0.9
"""Of the bare loop's throughput."""


IMAGES: Final = {"cpu": 128, "cuda": 1024}
"""Four steps take a processor some seconds, and a GPU less than its clock's noise."""


def device() -> torch.device:
    """Return where everything is computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds() -> float:
    """Return the time that counts: of the processor, or of the wall where a GPU works."""
    if device().type == "cpu":
        return time.process_time()
    finished(device())
    return time.perf_counter()


def ours_training(backbone: Backbone, frames: Frames, labels: Rows, *, mixed: bool) -> float:
    """Return images a second of `export.finetune`, from the first step's end to the last's."""
    times: list[float] = []

    def on_step(done: int, total: int, _epoch: Epoch | None) -> None:
        if done in (1, total):
            times.append(seconds())

    aids = Aids(mixed=mixed, on_step=on_step)
    fresh = replace(backbone, module=copy.deepcopy(backbone.module))
    recipe = replace(RECIPES[Strategy.FULL], epochs=1)
    finetune(
        fresh, Strategy.FULL, frames, labels, np.zeros(len(frames), bool), Schedule(1), recipe=recipe, aids=aids
    )
    # The last call comes after the epoch's bookkeeping, which is part of what training costs.
    return (len(frames) // BATCH - 1) * BATCH / (times[1] - times[0])


def bare_training(backbone: Backbone, frames: Frames, labels: Rows, *, mixed: bool) -> float:
    """Return images a second of a plain loop over the same loader, loss and optimizer."""
    where = device()
    module = copy.deepcopy(backbone.module).to(where).to(memory_format=torch.channels_last).train()
    for part in batch_norms(module):
        part.eval()
    for weight in module.parameters():
        weight.requires_grad_(True)
    classifier = nn.Linear(backbone.feature_size, CLASSES).to(where)
    optimizer = torch.optim.AdamW([*module.parameters(), *classifier.parameters()], lr=1e-4)
    precision = Precision(where, mixed=mixed)
    rng, times, steps = np.random.default_rng(0), [], len(frames) // BATCH
    for step in range(steps):
        rows = rng.integers(0, len(frames), BATCH)
        images = torch.stack([augmented(frames[row], Augmentation(), (step, i)) for i, row in enumerate(rows)])
        pixels = normalised(images.to(where, memory_format=torch.channels_last), backbone.preprocess)
        with precision.forward():
            logits = classifier(module(pixels))
        loss = functional.cross_entropy(logits.float(), torch.from_numpy(labels[rows]).to(where))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in (0, steps - 1):
            times.append(seconds())
    return (steps - 1) * BATCH / (times[1] - times[0])


def ours_features(backbone: Backbone, frames: Frames) -> float:
    """Return images a second of `export.embed.features`."""
    began = seconds()
    features(backbone, frames)
    return len(frames) / (seconds() - began)


def bare_features(backbone: Backbone, frames: Frames) -> float:
    """Return images a second of a plain loop."""
    where = device()
    module = copy.deepcopy(backbone.module).eval().to(where).to(memory_format=torch.channels_last)
    began = seconds()
    with torch.inference_mode():
        for start in range(0, len(frames), EVALUATION_BATCH):
            pixels = to_pixels(frames[start : start + EVALUATION_BATCH], backbone.preprocess)
            module(pixels.to(where, memory_format=torch.channels_last)).float().cpu().numpy()
    return len(frames) / (seconds() - began)


def run(backbone: Backbone, images: int, rounds: int, say: Callable[[str], None]) -> Report:
    """Return throughputs, the two in turns."""
    rng = np.random.default_rng(0)
    size = backbone.preprocess
    frames = rng.integers(0, 256, (images, size.height, size.width, 3), np.uint8)
    labels = np.arange(images) % CLASSES

    def training(*, mixed: bool) -> tuple[Callable[[], float], Callable[[], float]]:
        return (
            lambda: ours_training(backbone, frames, labels, mixed=mixed),
            lambda: bare_training(backbone, frames, labels, mixed=mixed),
        )

    ways: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "features": (lambda: ours_features(backbone, frames), lambda: bare_features(backbone, frames)),
        "fine-tuning": training(mixed=False),
    }
    if device().type == "cuda":
        ways["fine-tuning, mixed precision"] = training(mixed=True)
    rows: list[tuple[str | float, ...]] = []
    targets = []
    for name, (ours, bare) in ways.items():
        found = [(ours(), bare()) for _ in range(rounds + 1)][1:]  # the first round allocates
        share = statistics.median(a / b for a, b in found)
        mine, plain = (statistics.median(pair[i] for pair in found) for i in range(2))
        say(f"{name}: {mine:.1f} and {plain:.1f} images a second")
        rows.append((name, mine, plain, share))
        targets.append(Target(f"{name}, share of the bare loop", share, SHARE))
    unit = "processor time" if device().type == "cpu" else f"wall time, {torch.cuda.get_device_name()}"
    table = Table(
        f"{backbone.name}, {size.width} px, images a second of {unit}",
        ("", "ours", "bare torch loop", "share"),
        tuple(rows),
        digits=2,
    )
    return Report("training", "what do our loops cost beside bare ones?", (table,), tuple(targets))


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", default="mobilenetv2_100", metavar="NAME")
    parser.add_argument("--input-size", type=int, default=160, metavar="PX")
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES[device().type],
        metavar="N",
        help=f"at least {2 * BATCH}; default: {IMAGES['cpu']}, on a GPU {IMAGES['cuda']}",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    options = parser.parse_args(arguments)
    if options.images < 2 * BATCH:
        parser.error(f"--images {options.images}: two batches are {2 * BATCH}")
    loaded = load_backbone(options.backbone, "none", input_size_px=options.input_size)
    backbone = replace(loaded, origin=Origin("random, as if pretrained", None, "none", True))
    print(as_text(run(backbone, options.images, options.rounds, lambda line: print(f"  {line}", file=sys.stderr))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
