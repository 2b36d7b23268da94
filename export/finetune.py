"""Training a backbone, or its last stages, on labelled images, under a temporary classifier that is thrown away.

- `frozen`: nothing is trained here; only the head learns, on features as they are.
- `last`: the last stages, the rest and all batch norm statistics frozen.
- `full`: everything. Batch norm statistics are learned only where none came with the weights.

Classes are drawn equally often. Augmentation respects defects: mirror images (from scratch, quarter turns too),
small shifts, a little brightness and contrast; no crop (a defect may lie at the edge), no blur or noise (a defect
may be that). The weights of the epoch that is best on left-out validation groups are kept.

Images are decoded and resized once and kept as bytes, so that the cores spend their time on the network.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn import functional

from export.backbones import Backbone
from export.graph import cores
from sdk.errors import ExportError
from sdk.images import read
from sdk.preprocess import Preprocess, resize


class Strategy(str, Enum):
    """What is trained besides the head."""

    FROZEN = "frozen"
    LAST = "last"
    FULL = "full"


LAST_SHARE: Final = 1 / 3
"""`last` trains the fewest last stages that hold this share of the weights: one of eight stages of mobilenetv2,
five of twelve blocks of vit_tiny, one of four of resnet18."""
DEFAULT_EPOCHS: Final = {Strategy.FROZEN: 0, Strategy.LAST: 12, Strategy.FULL: 40}
BATCH: Final = 32
VALIDATION_BATCH: Final = 64
STATISTICS_IMAGES: Final = 256
"""Enough for means and variances to a few percent."""
LEARNING_RATE: Final = {True: 3e-4, False: 3e-3}
"""Peak of OneCycle for the backbone, by whether its weights are pretrained."""
CLASSIFIER_RATE: Final = {True: 2e-3, False: 3e-3}
WEIGHT_DECAY: Final = {True: 0.02, False: 0.05}
WARM_UP: Final = 0.2
"""Share of the steps in which the rate rises."""
SHIFT: Final = 0.05
"""Largest shift, as a share of the side: about what a part moves under a fixed camera."""
CONTRAST: Final = 0.15
BRIGHTNESS: Final = 0.06
"""Of the full range."""
MAX_RESIDENT_BYTES: Final = 2 * 1024**3
"""Resized images above this go to a file that the system pages in and out."""

Frames = npt.NDArray[np.uint8]
"""(n, H, W, 3) uint8 BGR at the backbone's input size."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and from which seed.

    Attributes:
        epochs: Passes over as many images as there are.
        seed: Of the order, the augmentation and the classifier's start.
        budget_s: Fewer epochs are planned when a trial batch says that they would take longer; None is no limit.
    """

    epochs: int
    seed: int = 0
    budget_s: float | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch brought.

    Attributes:
        number: From 1.
        loss: Mean training loss.
        balanced_accuracy: Of the temporary classifier on validation images; None without any.
    """

    number: int
    loss: float
    balanced_accuracy: float | None


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        epochs: As many as were planned; fewer than asked for where the budget did not allow them.
        best: The epoch whose weights were kept.
        history: Every epoch.
        trained_weights: How many of the backbone's numbers were trained.
    """

    epochs: int
    best: Epoch
    history: tuple[Epoch, ...]
    trained_weights: int


def resized_frames(
    paths: Sequence[Path], preprocess: Preprocess, scratch: Path, on_image: Callable[[], None] = lambda: None
) -> Frames:
    """Return the images of these files at input size: in memory or, when they are many, in a file under `scratch`.

    Raises:
        BadImages: a file changed since it was checked.
    """
    shape = (len(paths), preprocess.height, preprocess.width, 3)
    frames: Frames
    if math.prod(shape) > MAX_RESIDENT_BYTES:
        frames = np.lib.format.open_memmap(scratch / "frames.npy", "w+", np.uint8, shape)
    else:
        frames = np.empty(shape, np.uint8)

    def load(row: int) -> None:
        frames[row] = resize(read(paths[row])[1], preprocess.height, preprocess.width)

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(load, range(len(paths))):
            on_image()
    return frames


def finetune(
    backbone: Backbone,
    strategy: Strategy,
    frames: Frames,
    labels: npt.NDArray[np.int64],
    validation: npt.NDArray[np.bool_],
    schedule: Schedule,
    on_step: Callable[[int, int, Epoch | None], None] = lambda _done, _total, _epoch: None,
) -> Outcome:
    """Train the backbone in place, and leave it in evaluation mode with the best epoch's weights.

    Args:
        backbone: Changed in place.
        strategy: `last` or `full`.
        frames: n images at its input size.
        labels: (n,) class index of each, at least two classes among those that are not for validation.
        validation: (n,) images that are not trained on and choose the epoch. Without any, the last epoch is kept.
        schedule: How long.
        on_step: Called with (steps done, steps in all, the epoch that just ended or None).

    Raises:
        ExportError: training diverged, or there is nothing to train.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(schedule.seed)
    generator = torch.Generator().manual_seed(schedule.seed)
    trained = _choose_weights(backbone, strategy)
    pretrained = backbone.origin.pretrained
    module = backbone.module.to(device).to(memory_format=torch.channels_last)
    rows, held = np.flatnonzero(~validation), np.flatnonzero(validation)
    classifier = nn.Linear(backbone.feature_size, int(labels.max()) + 1).to(device)
    run = _Run(
        backbone.preprocess,
        module,
        classifier,
        frames,
        torch.from_numpy(labels),
        device,
        generator,
        not pretrained,
    )
    steps = math.ceil(len(rows) / BATCH)
    epochs = _within_budget(run, rows, schedule, steps)
    rates = [LEARNING_RATE[pretrained], CLASSIFIER_RATE[pretrained]]
    optimizer = torch.optim.AdamW(
        [{"params": trained}, {"params": list(classifier.parameters())}], weight_decay=WEIGHT_DECAY[pretrained]
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=epochs * steps, pct_start=WARM_UP
    )
    counts = torch.bincount(run.labels[rows], minlength=classifier.out_features)
    chance = 1.0 / counts[run.labels[rows]]

    history: list[Epoch] = []
    best: tuple[tuple[float, float], Epoch, dict[str, torch.Tensor]] | None = None
    for number in range(1, epochs + 1):
        _training_mode(module, freeze_statistics=pretrained)
        losses = 0.0
        for step in range(steps):
            drawn = torch.multinomial(chance, min(BATCH, max(2, len(rows))), replacement=True, generator=generator)
            loss = run.loss(rows[drawn.numpy()])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            cycle.step()
            losses += float(loss.detach())
            if step + 1 < steps:
                on_step((number - 1) * steps + step + 1, epochs * steps, None)
        if not math.isfinite(losses):
            raise ExportError(
                f"training diverged in epoch {number}",
                hint="Try --strategy frozen, other weights or another --seed.",
            )
        if not pretrained:
            run.measure_statistics(rows)
        quality, accuracy = run.validate(held, fallback=(float(number), 0.0))
        epoch = Epoch(number, losses / steps, accuracy)
        history.append(epoch)
        if best is None or quality >= best[0]:
            best = (quality, epoch, copy.deepcopy(module.state_dict()))
        on_step(number * steps, epochs * steps, epoch)
    assert best is not None
    module.load_state_dict(best[2])
    module.to("cpu").to(memory_format=torch.contiguous_format).eval()
    for weight in module.parameters():
        weight.requires_grad_(False)
    return Outcome(epochs, best[1], tuple(history), sum(w.numel() for w in trained))


@dataclass(frozen=True)
class _Run:
    """The fixed parts of one training run."""

    preprocess: Preprocess
    module: nn.Module
    classifier: nn.Linear
    frames: Frames
    labels: torch.Tensor
    device: torch.device
    generator: torch.Generator
    turns: bool

    def loss(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the loss of a batch, augmented."""
        pixels = augment(to_pixels(self.frames[rows], self.preprocess), self.generator, turns=self.turns)
        return functional.cross_entropy(self._logits(pixels), self.labels[rows].to(self.device))

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.module(pixels.to(self.device, memory_format=torch.channels_last))
        logits: torch.Tensor = self.classifier(features)
        return logits

    def measure_statistics(self, rows: npt.NDArray[np.int64]) -> None:
        """Set batch norm statistics to what they are over training images now, instead of a trailing average.

        Few images give few steps, and the average then lags far behind the weights.
        """
        norms = [part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over what follows
        self.module.train()
        seen = rows[np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_IMAGES)).astype(int)]
        with torch.inference_mode():
            for part in np.array_split(seen, math.ceil(len(seen) / VALIDATION_BATCH)):
                self._logits(to_pixels(self.frames[part], self.preprocess))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def validate(
        self, rows: npt.NDArray[np.int64], fallback: tuple[float, float]
    ) -> tuple[tuple[float, float], float | None]:
        """Return how good this epoch is (more is better, in order), and its balanced accuracy."""
        if len(rows) == 0:
            return fallback, None
        self.module.eval()
        with torch.inference_mode():
            logits = torch.cat(
                [
                    self._logits(to_pixels(self.frames[part], self.preprocess)).cpu()
                    for part in np.array_split(rows, math.ceil(len(rows) / VALIDATION_BATCH))
                ]
            )
        truth = self.labels[rows]
        right = (logits.argmax(1) == truth).double()
        present = np.unique(truth.numpy()).tolist()
        accuracy = float(torch.stack([right[truth == c].mean() for c in present]).mean())
        # Equal accuracies, frequent on few images, are told apart by the likelihood.
        loss = functional.cross_entropy(logits, truth, reduction="none").double()
        balanced_loss = float(torch.stack([loss[truth == c].mean() for c in present]).mean())
        return (accuracy, -balanced_loss), accuracy


def to_pixels(frames: Frames, preprocess: Preprocess) -> torch.Tensor:
    """Return (n, 3, H, W) float32 of frames at input size: what `Preprocess.apply` gives, for a batch."""
    rgb = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).permute(0, 3, 1, 2).float()
    mean = torch.tensor(preprocess.mean).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std).view(3, 1, 1) * 255
    return (rgb - mean) / std


def augment(pixels: torch.Tensor, generator: torch.Generator, *, turns: bool = False) -> torch.Tensor:
    """Return the batch (n, 3, H, W) mirrored, shifted, brightened and contrasted, each image in its own way.

    Args:
        pixels: Changed in place.
        generator: Of every choice.
        turns: Square images are turned by quarters as well.
    """
    n, _, height, width = pixels.shape
    if turns and height == width:
        turned = torch.rand(n, generator=generator) < 0.5
        pixels[turned] = pixels[turned].transpose(2, 3)  # with mirrors, all eight ways to lay a square
    for axis in (2, 3):
        flip = torch.rand(n, generator=generator) < 0.5
        pixels[flip] = pixels[flip].flip(axis)
    down, right = max(1, round(SHIFT * height)), max(1, round(SHIFT * width))
    wide = functional.pad(pixels, (right, right, down, down), mode="reflect")
    tops = torch.randint(0, 2 * down + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * right + 1, (n,), generator=generator).tolist()
    corners = zip(tops, lefts, strict=True)
    shifted = torch.stack([wide[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(corners)])
    gain = 1 + CONTRAST * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    # In units of the normalised pixels, whose full range is about 4 deviations.
    offset = 4 * BRIGHTNESS * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    centre = shifted.mean((1, 2, 3), keepdim=True)
    return (shifted - centre) * gain + centre + offset


def _choose_weights(backbone: Backbone, strategy: Strategy) -> list[nn.Parameter]:
    """Mark what will be trained, and return it."""
    module: Any = backbone.network
    for weight in module.parameters():
        weight.requires_grad_(strategy is Strategy.FULL)
    if strategy is Strategy.LAST:
        named = dict(module.named_parameters())
        stages: dict[int, list[str]] = group_parameters(module, module.group_matcher(coarse=True))
        wanted, have = LAST_SHARE * backbone.parameters(), 0
        for number in sorted(stages, reverse=True):
            if have >= wanted:
                break
            for weight in (named[name] for name in stages[number] if name in named):
                weight.requires_grad_(True)
                have += weight.numel()
    chosen = [weight for weight in module.parameters() if weight.requires_grad]
    if not chosen:
        raise ExportError(
            f"strategy {strategy.value} finds nothing to train in {backbone.name}", hint="Use --strategy frozen."
        )
    return chosen


def _training_mode(module: nn.Module, *, freeze_statistics: bool) -> None:
    module.train()
    if freeze_statistics:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


def _within_budget(run: _Run, rows: npt.NDArray[np.int64], schedule: Schedule, steps: int) -> int:
    """Return how many epochs fit the budget, by one trial batch; at least one."""
    if schedule.budget_s is None:
        return schedule.epochs
    state = run.generator.get_state()
    run.module.eval()
    for _ in range(2):  # the first allocates
        start = time.perf_counter()
        run.loss(rows[:BATCH]).backward()  # type: ignore[no-untyped-call]
        step_s = (time.perf_counter() - start) * BATCH / min(BATCH, len(rows))
    run.module.zero_grad(set_to_none=True)
    run.classifier.zero_grad(set_to_none=True)
    run.generator.set_state(state)
    return max(1, min(schedule.epochs, int(schedule.budget_s / (step_s * steps))))
