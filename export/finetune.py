"""Training a backbone, or its last stages, on labelled images, under a temporary classifier that is thrown away.

- `frozen`: nothing is trained here; only the head learns, on features as they are.
- `last`: the last stages, on what the rest gives for a few fixed views of each image.
- `full`: everything, on views that are new each time.
- `head-then-full`: first the classifier on frozen features, then everything, so that a classifier of random
  numbers does not spoil the features in the first steps (arXiv 2202.10054).

Lower stages learn more slowly than upper ones. Classes are drawn equally often. Labels are smoothed. Statistics of
batch norm are learned only where none came with the weights. The weights of the epoch that is best on left-out
validation groups are kept, and training ends when there has been no better one for a while.

Everything random follows from the seed and the number of the step, never from what was drawn before: a run that
was killed goes on from its checkpoint as if it had not been, and several processes draw the same batches.

Images are decoded and resized once (`export.frames`), so that the cores spend their time on the network.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn
from torch.nn import functional

from export.ahead import Ahead, threads_beside
from export.augment import Frames, as_image, augmented, normalised, to_pixels
from export.backbones import Backbone
from export.checkpoint import Checkpoint, Tensors, load_optimizer, optimizer_tensors, under
from export.distributed import Ranks, alone
from export.embed import EVALUATION_BATCH
from export.frames import resized_frames
from export.precision import Precision, finished
from export.recipes import (
    DEFAULT_EPOCHS,
    Recipe,
    Strategy,
    batch_norms,
    choose_weights,
    norms,
    recipe_for,
    share_of_peak,
)
from export.tail import Cut, Memory, cut, digest_of
from sdk.errors import ExportError

__all__ = ["DEFAULT_EPOCHS", "Frames", "Strategy", "finetune", "resized_frames", "to_pixels"]

BATCH: Final = 32
STATISTICS_IMAGES: Final = 256
"""Enough for means and variances to a few percent."""
HEAD_VIEWS: Final = 2
DRAWS_A_VIEW: Final = 3
"""A fixed view costs a pass through the trunk; an image of a frequent class is drawn a few times in all."""
HEAD_RATE: Final = 1e-2
"""Of the classifier alone, on features scaled to deviation 1."""
_STEP, _DRAW, _HEAD = 0, 1, 2
"""First member of a key of random numbers: what they are for."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and from which seed.

    Attributes:
        epochs: Passes over as many images as there are, at most.
        seed: Of the order, the augmentation and the classifier's start.
        budget_s: Fewer epochs are planned when a trial batch says that they would take longer; None is no limit.
    """

    epochs: int
    seed: int = 0
    budget_s: float | None = None


class Epoch(msgspec.Struct, frozen=True):
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
        history: Every epoch that was run; training may end before the planned number.
        trained_weights: How many of the backbone's numbers were trained.
        norms: What was done with batch norm, in words.
        cached: The trunk ran once for each view, not at every step.
        resumed_at: The step at which an earlier run's checkpoint was taken up; 0 for a run from the start.
    """

    epochs: int
    best: Epoch
    history: tuple[Epoch, ...]
    trained_weights: int
    norms: str = ""
    cached: bool = False
    resumed_at: int = 0


Rows = npt.NDArray[np.int64]
"""Indices."""
OnStep = Callable[[int, int, Epoch | None], None]
OnScalars = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Aids:
    """What helps a run and does not change its result.

    Attributes:
        ranks: The processes that train together.
        checkpoint: Where the run stands, for the next start; None keeps nothing.
        memory: The trunk's activations, shared by runs over the same images; None keeps them for this run.
        mixed: Compute in a short type, on GPUs only (`export.precision`).
        threads: That make batches ahead; None is as many as suit the device.
        on_step: Called with (steps done, steps in all, the epoch that just ended or None).
        on_scalars: Called with a step and its figures, at each epoch's end.
    """

    ranks: Ranks = field(default_factory=alone)
    checkpoint: Checkpoint | None = None
    memory: Memory | None = None
    mixed: bool = True
    threads: int | None = None
    on_step: OnStep = lambda _done, _total, _epoch: None
    on_scalars: OnScalars = lambda _step, _figures: None


class _State(msgspec.Struct):
    """Where a run stands, besides its tensors."""

    epochs: int
    step: int
    losses: float
    history: list[Epoch]
    best: int
    """Index of the best epoch in the history; -1 before the first."""
    quality: tuple[float, float] | None = None
    """Of the best epoch; None before the first, since JSON has no infinity."""
    scale: dict[str, float] = {}
    """Of gradients, where they are computed in float16."""


def finetune(
    backbone: Backbone,
    strategy: Strategy,
    frames: Frames,
    labels: npt.NDArray[np.int64],
    validation: npt.NDArray[np.bool_],
    schedule: Schedule,
    on_step: OnStep | None = None,
    *,
    recipe: Recipe | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    aids: Aids | None = None,
) -> Outcome:
    """Train the backbone in place, and leave it in evaluation mode with the best epoch's weights.

    Args:
        backbone: Changed in place.
        strategy: Not `frozen`.
        frames: n images at its input size.
        labels: (n,) class index of each, at least two classes among those that are not for validation.
        validation: (n,) images that are not trained on and choose the epoch. Without any, the last epoch is kept.
        schedule: How long.
        on_step: Of the aids, for short.
        recipe: None is the strategy's own.
        rows: Images that this run may see, for training or validation; None is all.
        aids: Other processes, a checkpoint, a memory.

    Raises:
        ExportError: training diverged, there is nothing to train, or a checkpoint cannot be read or written.
    """
    recipe = recipe or recipe_for(strategy, pretrained=backbone.origin.pretrained)
    run = _Run(backbone, strategy, frames, labels, validation, schedule, recipe, rows, aids or Aids())
    try:
        return run.train(on_step or run.aids.on_step)
    finally:
        run.batches.close()


class _Run:
    """One training run."""

    def __init__(
        self,
        backbone: Backbone,
        strategy: Strategy,
        frames: Frames,
        labels: npt.NDArray[np.int64],
        validation: npt.NDArray[np.bool_],
        schedule: Schedule,
        recipe: Recipe,
        rows: npt.NDArray[np.int64] | None,
        aids: Aids,
    ) -> None:
        self.began = time.perf_counter()
        self.backbone, self.frames, self.schedule, self.recipe, self.aids = (
            backbone,
            frames,
            schedule,
            recipe,
            aids,
        )
        self.ranks, self.device = aids.ranks, aids.ranks.device
        seen = np.arange(len(frames)) if rows is None else rows
        self.rows, self.held = seen[~validation[seen]], seen[validation[seen]]
        self.labels = torch.from_numpy(labels)
        self.trained = choose_weights(backbone, strategy)
        self.fingerprint = "" if aids.checkpoint is None else self._fingerprint(strategy)
        self.module = backbone.module.to(self.device).to(memory_format=torch.channels_last)
        torch.manual_seed(schedule.seed)
        self.classifier = nn.Linear(backbone.feature_size, int(labels.max()) + 1).to(self.device)
        self.frozen_norms, self.norms = norms(backbone)
        self.batch = max(self.ranks.world, min(BATCH, max(2, len(self.rows))))
        self.steps = math.ceil(len(self.rows) / self.batch)
        counts = np.bincount(labels[self.rows], minlength=self.classifier.out_features)
        chance = 1.0 / counts[labels[self.rows]]
        self.chance = chance / chance.sum()
        self.views = self._views_of_each()
        self.cut: Cut | None = None
        self.memory: Memory | None = None
        self.precision = Precision(self.device, mixed=aids.mixed)
        self.batches = Ahead(
            self._batch, threads_beside(self.device.type) if aids.threads is None else aids.threads
        )
        self.losses = torch.zeros((), dtype=torch.float64, device=self.device)

    def _views_of_each(self) -> npt.NDArray[np.int64]:
        """Return how many fixed views each image has: more for images of rare classes, which are drawn often.

        A view for every `DRAWS_A_VIEW` times that an image is drawn; one that is not trained on has itself.
        """
        views = np.ones(len(self.frames), np.int64)
        drawn = self.recipe.epochs * self.steps * self.batch * self.chance
        views[self.rows] = np.clip(np.ceil(drawn / DRAWS_A_VIEW), 1, max(1, self.recipe.views))
        return views

    # --- Images to logits

    def _view(self, row: int, view: int) -> torch.Tensor:
        """Return a fixed view of an image."""
        if view == 0:
            return as_image(self.frames[row])
        return augmented(self.frames[row], self.recipe.augmentation, (self.schedule.seed, row, view))

    def _pixels(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self._on_device(torch.stack(images))

    def _on_device(self, images: torch.Tensor) -> torch.Tensor:
        return normalised(images.to(self.device, memory_format=torch.channels_last), self.backbone.preprocess)

    def _drawn(self, step: int) -> tuple[Rows, Rows, int]:
        """Return the images that a step trains on, the fixed view of each, and the seed of dropout."""
        rng = np.random.default_rng([self.schedule.seed, _DRAW, step])
        drawn = rng.choice(self.rows, self.batch, p=self.chance)
        return drawn, rng.integers(0, self.views[drawn]), int(rng.integers(2**62)) + self.ranks.rank

    def _batch(self, step: int) -> torch.Tensor:
        """Return this process's share of a step's batch, (n, 3, H, W) uint8 RGB."""
        drawn, views, _ = self._drawn(step)
        places = range(self.batch)[self.ranks.rank :: self.ranks.world]
        if self.recipe.views:
            return torch.stack([self._view(int(drawn[i]), int(views[i])) for i in places])
        changed = self.recipe.augmentation
        keys = [(self.schedule.seed, _STEP, step, i) for i in places]
        return torch.stack(
            [augmented(self.frames[drawn[i]], changed, key) for i, key in zip(places, keys, strict=True)]
        )

    def _plain(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return features of images as they are."""
        if self.memory is not None and self.cut is not None:
            crossing = self.memory.get(rows, np.zeros(len(rows), np.int64))
            return self.cut.rest(tuple(part.to(self.device) for part in crossing))
        features: torch.Tensor = self.module(self._pixels([as_image(self.frames[row]) for row in rows]))
        return features

    # --- Training

    def train(self, on_step: OnStep) -> Outcome:
        """Return what came of it."""
        self._keep_activations(on_step)
        optimizer = self._optimizer()
        state, best, resumed = self._start(optimizer)
        network = self.ranks.shared(_Classified(self.module, self.classifier))
        total = state.epochs * self.steps
        while state.step < total and not self._is_over(state):
            if state.step % self.steps == 0:
                self.losses.zero_()
            if state.step % self.steps == 0 or state.step == resumed:
                self._training_mode()
            self._step(network, optimizer, state.step, total)
            state.step += 1
            if state.step % self.steps:
                on_step(state.step, total, None)
            else:
                epoch, better = self._end_of_epoch(state)
                if better:
                    best = copy.deepcopy(self.module.state_dict())
                on_step(state.step, total, epoch)
            self._save(optimizer, state, best)
        if not state.history:
            raise AssertionError("no epoch was run")
        self.module.load_state_dict(best)
        self.module.to("cpu").to(memory_format=torch.contiguous_format).eval()
        for weight in self.module.parameters():
            weight.requires_grad_(False)
        return Outcome(
            epochs=state.epochs,
            best=state.history[state.best],
            history=tuple(state.history),
            trained_weights=sum(weight.numel() for weight in self.trained),
            norms=self.norms,
            cached=self.memory is not None,
            resumed_at=resumed,
        )

    def _is_over(self, state: _State) -> bool:
        """Whether no epoch was better for as long as patience lasts."""
        has_validation = len(self.held) > 0
        return has_validation and len(state.history) - 1 - state.best >= self.recipe.patience

    def _keep_activations(self, on_step: OnStep) -> None:
        """Run the trunk once for each view, where views are fixed and a trunk is there to run."""
        views, module = self.recipe.views, self.module
        if not views or not self.frozen_norms or self.ranks.world > 1:
            return
        module.eval()
        probe = self._pixels([as_image(self.frames[row]) for row in self.rows[:2]])
        found = cut(module, probe)
        if found is None:
            return
        memory = self.aids.memory or Memory(len(self.frames), views, self.schedule.seed)
        if (memory.views, memory.seed) != (views, self.schedule.seed):
            raise ValueError("this memory holds other views")
        if not memory.serves(digest_of(module, frozen_only=True), found.kept(probe[:1])):
            return
        where = memory.missing(self.rows, self.views[self.rows]) + memory.missing(self.held, self.views[self.held])
        for start in range(0, len(where), EVALUATION_BATCH):
            part = where[start : start + EVALUATION_BATCH]
            memory.put(part, found.kept(self._pixels([self._view(row, view) for row, view in part])))
            on_step(start + len(part), len(where), None)
        self.cut, self.memory = found, memory

    def _optimizer(self) -> torch.optim.AdamW:
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.backbone.network, weight_decay=self.recipe.weight_decay, layer_decay=self.recipe.layer_decay
        )
        for group in groups:
            group["peak"] = self.recipe.rate * group.pop("lr_scale")
        groups.append(
            {
                "params": list(self.classifier.parameters()),
                "peak": self.recipe.classifier_rate,
                "weight_decay": self.recipe.weight_decay,
            }
        )
        return torch.optim.AdamW(groups, lr=self.recipe.rate, fused=self.device.type == "cuda")

    def _start(self, optimizer: torch.optim.AdamW) -> tuple[_State, Tensors, int]:
        """Return where to begin: at an earlier run's checkpoint, or at the start."""
        saved = None if self.aids.checkpoint is None else self.aids.checkpoint.load(self.fingerprint)
        if saved is None:
            self._teach_classifier()
            epochs = self.ranks.agree(self._epochs_within_budget())
            return _State(epochs, 0, 0.0, [], -1), {}, 0
        tensors, state = saved[0], self._state_of(saved[1])
        self.module.load_state_dict(under("module.", tensors))
        self.classifier.load_state_dict(under("classifier.", tensors))
        load_optimizer(optimizer, under("optimizer.", tensors))
        self.precision.load(state.scale)
        self.losses.fill_(state.losses)
        return state, under("best.", tensors), state.step

    def _state_of(self, text: str) -> _State:
        try:
            return msgspec.json.decode(text, type=_State)
        except msgspec.DecodeError as error:
            assert self.aids.checkpoint is not None
            raise ExportError(
                f"{self.aids.checkpoint.file} is no checkpoint: {error}",
                hint="Delete it; training then starts from the beginning.",
            ) from error

    def _save(self, optimizer: torch.optim.AdamW, state: _State, best: Tensors) -> None:
        checkpoint = self.aids.checkpoint
        if checkpoint is None or not self.ranks.writes or not checkpoint.due():
            return
        state.losses, state.scale = float(self.losses), self.precision.state()
        tensors = {
            **{f"module.{name}": value for name, value in self.module.state_dict().items()},
            **{f"classifier.{name}": value for name, value in self.classifier.state_dict().items()},
            **{f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer).items()},
            **{f"best.{name}": value for name, value in best.items()},
        }
        checkpoint.save(self.fingerprint, tensors, msgspec.json.encode(state).decode())

    def _step(self, network: nn.Module, optimizer: torch.optim.AdamW, step: int, total: int) -> None:
        """Take one step, and count its loss; nothing waits for the device here."""
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share_of_peak(step, total)
        # Each process has its share of the batch; gradients are averaged, so shares are scaled up by their number.
        loss = self._loss(network, step, total) / self.batch
        self.precision.step(loss * self.ranks.world, self.trained, optimizer)
        self.losses += self.ranks.total(loss.detach())

    def _loss(self, network: nn.Module, step: int, total: int) -> torch.Tensor:
        """Return the loss of this process's share of a step's batch, summed over its images."""
        drawn, views, seed = self._drawn(step)
        torch.manual_seed(seed)
        with self.precision.forward():
            if self.memory is not None and self.cut is not None:
                crossing = self.memory.get(drawn, views)
                logits = self.classifier(self.cut.rest(tuple(part.to(self.device) for part in crossing)))
            else:
                logits = network(self._on_device(self.batches.get(step, total)))
        return functional.cross_entropy(
            logits.float(),
            self.labels[drawn[self.ranks.rank :: self.ranks.world]].to(self.device),
            label_smoothing=self.recipe.smoothing,
            reduction="sum",
        )

    def _end_of_epoch(self, state: _State) -> tuple[Epoch, bool]:
        """Return the epoch that has just ended, and whether it is the best so far."""
        number = state.step // self.steps
        state.losses = float(self.losses)
        if not math.isfinite(state.losses):
            raise ExportError(
                f"training diverged in epoch {number}",
                hint="Try --strategy frozen, other weights or another --seed.",
            )
        if not self.frozen_norms:
            self._measure_statistics()
        quality, accuracy = self._validate(fallback=(float(number), 0.0))
        epoch = Epoch(number, state.losses / self.steps, accuracy)
        state.history.append(epoch)
        self.aids.on_scalars(
            state.step,
            {"loss": epoch.loss} if accuracy is None else {"loss": epoch.loss, "balanced_accuracy": accuracy},
        )
        better = state.quality is None or quality > state.quality
        if better:
            state.best, state.quality = len(state.history) - 1, quality
        return epoch, better

    def _training_mode(self) -> None:
        self.module.train()
        if self.frozen_norms:
            for part in batch_norms(self.module):
                part.eval()

    def _teach_classifier(self) -> None:
        """Fit the classifier to features as they are."""
        if not self.recipe.head_epochs:
            return
        self.module.eval()
        known = [
            self._features_of([self._view(row, view) for row in self.rows.tolist()]) for view in range(HEAD_VIEWS)
        ]
        features = torch.cat(known)
        labels = self.labels[self.rows].repeat(HEAD_VIEWS).to(self.device)
        chance = np.tile(self.chance, HEAD_VIEWS) / HEAD_VIEWS
        # At deviation 1 one rate suits every backbone; the scale is folded into the weights afterwards.
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-3 * float(features.std()) + 1e-12)
        scaled = (features - mean) / deviation
        optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=HEAD_RATE, weight_decay=0.1)
        total = self.recipe.head_epochs * self.steps
        rng = np.random.default_rng([self.schedule.seed, _HEAD])
        for step in range(total):
            optimizer.param_groups[0]["lr"] = HEAD_RATE * share_of_peak(step, total)
            drawn = torch.from_numpy(rng.choice(len(labels), self.batch, p=chance))
            loss = functional.cross_entropy(
                self.classifier(scaled[drawn]), labels[drawn], label_smoothing=self.recipe.smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            self.classifier.weight.div_(deviation)
            self.classifier.bias.sub_(self.classifier.weight @ mean)

    def _features_of(self, images: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    self.module(self._pixels(images[start : start + EVALUATION_BATCH]))
                    for start in range(0, len(images), EVALUATION_BATCH)
                ]
            )

    def _measure_statistics(self) -> None:
        """Set batch norm statistics to what they are over training images now, instead of a trailing average.

        Few images give few steps, and the average then lags far behind the weights.
        """
        norms = batch_norms(self.module)
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over what follows
        self.module.train()
        seen = self.rows[np.linspace(0, len(self.rows) - 1, min(len(self.rows), STATISTICS_IMAGES)).astype(int)]
        with torch.inference_mode():
            for part in np.array_split(seen, math.ceil(len(seen) / EVALUATION_BATCH)):
                self._plain(part)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _validate(self, fallback: tuple[float, float]) -> tuple[tuple[float, float], float | None]:
        """Return how good this epoch is (more is better, in order), and its balanced accuracy."""
        if len(self.held) == 0:
            return fallback, None
        self.module.eval()
        logits = torch.zeros(len(self.held), self.classifier.out_features, device=self.device)
        places = np.arange(len(self.held))[self.ranks.rank :: self.ranks.world]
        with torch.inference_mode(), self.precision.forward():
            for part in np.array_split(places, math.ceil(len(places) / EVALUATION_BATCH) or 1):
                if len(part):
                    found = self.classifier(self._plain(self.held[part]))
                    logits[torch.from_numpy(part).to(self.device)] = found.float()
        logits = self.ranks.total(logits).cpu()
        truth = self.labels[self.held]
        right = (logits.argmax(1) == truth).double()
        present = np.unique(truth.numpy()).tolist()
        accuracy = float(torch.stack([right[truth == c].mean() for c in present]).mean())
        # Equal accuracies, frequent on few images, are told apart by the likelihood.
        loss = functional.cross_entropy(logits, truth, reduction="none").double()
        balanced_loss = float(torch.stack([loss[truth == c].mean() for c in present]).mean())
        return (accuracy, -balanced_loss), accuracy

    def _epochs_within_budget(self) -> int:
        """Return how many epochs fit the budget, by a few steps that teach nothing; at least one."""
        if self.schedule.budget_s is None:
            return self.schedule.epochs
        self.module.eval()
        network = _Classified(self.module, self.classifier)
        tried = 1 + max(1, 2 * self.batches.threads)  # until batches come as fast as they will
        start = 0.0
        for step in range(tried):
            self._loss(network, step, tried).backward()  # type: ignore[no-untyped-call]
            finished(self.device)
            start = start or time.perf_counter()  # the first allocates
        step_s = (time.perf_counter() - start) / (tried - 1)
        self.module.zero_grad(set_to_none=True)
        self.classifier.zero_grad(set_to_none=True)
        left_s = self.schedule.budget_s - (time.perf_counter() - self.began)
        return max(1, min(self.schedule.epochs, int(left_s / (step_s * self.steps))))

    def _fingerprint(self, strategy: Strategy) -> str:
        """Return the digest of everything that decides the result."""
        digest = hashlib.sha256(digest_of(self.backbone.module).encode())
        for array in (self.frames[self.rows], self.frames[self.held], self.labels.numpy(), self.rows, self.held):
            digest.update(np.ascontiguousarray(array).data)
        # Which levels are read, and how they are pooled, has no tensors of its own.
        read = (self.backbone.name, self.backbone.levels, self.backbone.feature_size, self.backbone.preprocess)
        run = (strategy, self.schedule, self.recipe, self.ranks.world, self.device.type, self.aids.mixed)
        digest.update(repr((read, run, torch.__version__)).encode())
        return digest.hexdigest()


class _Classified(nn.Module):
    """A backbone and its temporary classifier, as one module for several processes."""

    def __init__(self, module: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.module, self.classifier = module, classifier

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.module(pixels))
        return logits
