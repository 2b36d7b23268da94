"""Train a backbone on drawn surfaces alone: no image of anybody's, no weights of anybody's.

Two questions are asked of a crop (`export.crops`): which of several hundred surfaces is it, and which kinds of
defect does it show, as a whole and in each of its cells (`export.answers`)? The first wants texture told apart
whatever light, scale, turn and noise; the second wants what lies on it seen whatever the texture. What answers
them is thrown away afterwards, the features stay.

Rules this module keeps:

- The same seed, recipe and number of steps go through the same images in the same order, after a kill as well.
- Some combinations of surface and defect are never shown (`HELD_OUT`): choices are made by how well a head learns
  those from a few labels (`export.drawn_tasks`), never by an image set that is reported on.
- Answers are given by a small network on top of the features, not by one layer: then the features need not be as
  narrow as the answers (Wang et al., arXiv:2112.00496).
"""

from __future__ import annotations

import difflib
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

import cv2
import msgspec
import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from export.answers import CELL_LEVELS, Answers, Said, cell_loss, wanted_cells
from export.backbones import Tapped
from export.checkpoint import Checkpoint, load_optimizer, optimizer_tensors, under
from export.looks import Batch, Looks, looks
from export.precision import finished
from export.recipes import batch_norms, share_of_peak
from export.sheet_source import Source
from sdk.damaged import DAMAGED
from sdk.errors import ExportError
from sdk.surfaces import PRODUCT
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, Combination

MEAN: Final = 0.5
STD: Final = 0.25
"""Of the input, alike for all channels: half the images have no colour."""
INPUT_PX: Final = 224
READ_LEVELS: Final = 4
"""Of the trained network: it was trained to answer from two, four measure better on drawn tasks."""
DEMO_NEWS: Final = "crack"
"""The class that the demo holds back is news on its product's surfaces to the backbone too."""
HELD_OUT: Final[frozenset[Combination]] = frozenset(
    (kind, DEFECT_NAMES[(5 * i + far) % len(DEFECT_NAMES)])
    for i, kind in enumerate(KIND_NAMES)
    for far in (0, 4, 9)
) | {(kind, DEMO_NEWS) for kind in PRODUCT}
"""Three kinds of defect for each kind of surface, in turn, and the demo's."""
TRIAL_STEPS: Final = 6
STATISTICS_BATCH: Final = 24
NOTE_EVERY: Final = 100
MAX_GRADIENT: Final = 5.0
LOSSES: Final = ("surface_loss", "kind_loss", "defect_loss", "cell_loss")
"""As in `Mark`."""

OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        architecture, model_args: timm's.
        levels: Of the features, as in `export.backbones.Tapped`.
        surfaces: Classes of the first question.
        batch: Crops a step.
        sides_px: Of crops, at the beginning and at the end: small ones teach most of it for a part of the cost.
        rate: Peak learning rate (AdamW).
        weight_decay: Not of biases and norms.
        smoothing: Share of the first question's label given to all surfaces alike.
        kinds_weight: Of the loss of the surface's kind beside that of the surface: a coarse question for a start.
        defects_weight: Of the second question's loss beside the first's.
        cells_weight: Of the loss of the same question asked of each cell; 0 does not ask it.
        hidden: Width of the network that answers.
        pool, fresh, aimed, faint: See `export.sheet_source.Source`.
        statistics: Batches that batch norm's statistics come from at the end, of crops at the input size: pooled
            maxima and edges differ by size.
    """

    architecture: str = "resnet10t"
    model_args: dict[str, Any] = field(
        default_factory=lambda: {
            "channels": [16, 48, 96, 224],
            "stem_width": 8,
            "stem_type": "deep",
            "avg_down": False,
            "global_pool": "catavgmax",
        }
    )
    levels: int = 4
    surfaces: int = 700
    batch: int = 96
    sides_px: tuple[int, int] = (96, 192)
    rate: float = 3e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    kinds_weight: float = 0.5
    defects_weight: float = 16.0
    cells_weight: float = 16.0
    hidden: int = 512
    pool: int = 2000
    fresh: int = 2
    aimed: float = 0.5
    faint: float = 0.5
    statistics: int = 40


def recipe_of(text: bytes, source: str) -> Recipe:
    """Return the recipe that differs from the usual one as a JSON object says.

    Args:
        text: JSON, with any of the recipe's members.
        source: What to call it in errors.

    Raises:
        ExportError: it is no such object.
    """
    hint = f"Members are {', '.join(one.name for one in fields(Recipe))}."
    try:
        given = msgspec.json.decode(text, type=dict[str, Any])
        unknown = sorted(given.keys() - {one.name for one in fields(Recipe)})
        if unknown:
            near = difflib.get_close_matches(unknown[0], [one.name for one in fields(Recipe)], n=1)
            raise ExportError(
                f"{source}: a recipe has no {unknown[0]!r}", hint=f"Did you mean {near[0]!r}?" if near else hint
            )
        return msgspec.convert({**asdict(Recipe()), **given}, Recipe)
    except DAMAGED as error:
        raise ExportError(f"{source}: {error}", hint=hint) from error


@dataclass(frozen=True)
class Plan:
    """How long, and from which seed.

    Attributes:
        seed: Of weights, surfaces and crops.
        steps: None plans as many as fit `minutes`.
        minutes: For drawing and training.
        processes: That draw ahead.
        mixed: Train in bfloat16 where that is faster; weights and losses stay float32.
    """

    seed: int = 0
    steps: int | None = None
    minutes: float = 60.0
    processes: int = 0
    mixed: bool = True


class Mark(msgspec.Struct):
    """The losses around a step, each a mean since the mark before; `cell_loss` is 0 where cells are not asked."""

    step: int
    surface_loss: float
    kind_loss: float
    defect_loss: float
    cell_loss: float = 0.0


class Outcome(msgspec.Struct):
    """How it went.

    Attributes:
        steps: Taken.
        crops: Seen.
        sheets: Drawn.
        seconds: Of wall time, of all runs together where one was killed.
        resumed_at: The step that this run began with.
        marks: Losses on the way.
    """

    steps: int
    crops: int
    sheets: int
    seconds: float
    resumed_at: int
    marks: list[Mark]


class _State(msgspec.Struct):
    step: int
    total: int
    seconds: float
    marks: list[Mark]


def bare_network(recipe: Recipe) -> nn.Module:
    """Return timm's network without weights of anybody, without a classifier."""
    network: nn.Module = timm.create_model(
        recipe.architecture, pretrained=False, num_classes=0, **recipe.model_args
    )
    return network


class _Whole(nn.Module):
    """Features, and what answers from them and from the levels below the last."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        network = bare_network(recipe)
        asked = CELL_LEVELS if recipe.cells_weight else 0
        if asked and recipe.levels <= asked:
            raise ExportError(
                f"cells are asked of {asked} levels below the last, and the recipe has {recipe.levels} levels",
                hint=f"Set levels to {asked + 1} or more, or cells_weight to 0.",
            )
        self.asked = asked
        self.features: nn.Module = Tapped(network, recipe.levels) if recipe.levels > 1 else network
        with torch.no_grad():
            features, levels = self.eval()._seen(torch.zeros(1, 3, 64, 64))
        channels = [level.shape[1] for level in levels]
        self.answers = Answers(features.shape[1], channels, recipe.surfaces, recipe.hidden)

    def _seen(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if self.asked and isinstance(self.features, Tapped):
            features, levels, _ = self.features.levels_of(pixels)
            return features, levels[-self.asked :]
        return self.features(pixels), []

    def forward(self, pixels: torch.Tensor) -> Said:
        said: Said = self.answers(*self._seen(pixels))
        return said


def pretrain(
    plan: Plan,
    recipe: Recipe,
    *,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = lambda _done, _total, _note: None,
    on_scalars: Callable[[int, dict[str, float]], None] = lambda _step, _figures: None,
) -> tuple[nn.Module, Outcome]:
    """Return timm's network, trained and in evaluation mode on the processor, and how it went.

    Raises:
        ExportError: training diverged, or the checkpoint is damaged or cannot be written.
    """
    source = Source(
        plan.seed,
        recipe.surfaces,
        HELD_OUT,
        recipe.pool,
        recipe.fresh,
        recipe.aimed,
        recipe.faint,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown = looks(source, plan.processes, device, MEAN, STD)
    try:
        return _Run(plan, recipe, device, source, shown, checkpoint, on_step, on_scalars).run()
    finally:
        shown.close()


class _Run:
    def __init__(
        self,
        plan: Plan,
        recipe: Recipe,
        device: torch.device,
        source: Source,
        shown: Looks,
        checkpoint: Checkpoint | None,
        on_step: OnStep,
        on_scalars: Callable[[int, dict[str, float]], None],
    ) -> None:
        self.plan, self.recipe, self.device, self.source, self.shown = plan, recipe, device, source, shown
        self.checkpoint, self.on_step, self.on_scalars = checkpoint, on_step, on_scalars
        self.began = time.perf_counter()
        torch.manual_seed(plan.seed)
        self.whole = _Whole(recipe).to(self.device).to(memory_format=torch.channels_last)
        decayed = [w for w in self.whole.parameters() if w.ndim > 1]
        others = [w for w in self.whole.parameters() if w.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=recipe.rate,
            fused=device.type == "cuda",
        )
        self.weights = torch.tensor(
            [1, recipe.kinds_weight, recipe.defects_weight, recipe.cells_weight], device=device
        )
        said = (plan, asdict(recipe), self.device.type, torch.__version__, timm.__version__, cv2.__version__)
        self.fingerprint = hashlib.sha256(repr(said).encode()).hexdigest()

    def run(self) -> tuple[nn.Module, Outcome]:
        state = self._start()
        resumed, before = state.step, state.seconds
        self._fill(state.step)
        if state.total == 0:
            state.total = self._steps_within_budget()
        losses = torch.zeros(4, device=self.device)
        self.whole.train()
        while state.step < state.total:
            losses += self._step(state.step, state.total)
            state.step += 1
            state.seconds = before + time.perf_counter() - self.began
            self._note(state, losses, resumed)
            if self.checkpoint is not None and self.checkpoint.due():
                self._save(state)
        self._measure_statistics(state.step)
        network = self.whole.features.network if isinstance(self.whole.features, Tapped) else self.whole.features
        plain = network.to("cpu").to(memory_format=torch.contiguous_format).eval()
        for weight in plain.parameters():
            weight.requires_grad_(False)
        sheets = self.recipe.pool + self.recipe.fresh * (state.total - 1)
        seconds = before + time.perf_counter() - self.began
        return plain, Outcome(
            state.total, state.total * self.recipe.batch, sheets, round(seconds, 1), resumed, state.marks
        )

    def _start(self) -> _State:
        saved = None if self.checkpoint is None else self.checkpoint.load(self.fingerprint)
        if saved is None:
            return _State(0, self.plan.steps or 0, 0.0, [])
        tensors, state = saved[0], msgspec.json.decode(saved[1], type=_State)
        self.whole.load_state_dict(under("whole.", tensors))
        load_optimizer(self.optimizer, under("adamw.", tensors))
        return state

    def _save(self, state: _State) -> None:
        assert self.checkpoint is not None
        tensors = {f"whole.{name}": value for name, value in self.whole.state_dict().items()}
        tensors |= {f"adamw.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        self.checkpoint.save(self.fingerprint, tensors, msgspec.json.encode(state).decode())

    def _fill(self, step: int) -> None:
        missing = self.shown.missing(step)
        for done, number in enumerate(missing, 1):
            self.shown.draw(number)
            self.on_step(done, len(missing), "drawing the first sheets")

    def _steps_within_budget(self) -> int:
        """Return how many steps fit the budget, by a few that teach nothing."""
        self.whole.train()
        began = self._now()
        for step in range(TRIAL_STEPS):
            if step == 2:  # the first ones allocate
                began = self._now()
            side = side_px(self.recipe, self.plan.seed, step, TRIAL_STEPS)
            self._loss(self.shown.batch(0, self.recipe.batch, side)).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=True)
        now = self._now()
        step_s = (now - began) / (TRIAL_STEPS - 2)
        self.source.sheet(0)
        drawn_s = (self._now() - now) * self.recipe.fresh
        # Drawn in between, sheets add to a step; drawn beside, a step waits for them where they take longer.
        each = max(step_s, drawn_s / self.plan.processes) if self.plan.processes else step_s + drawn_s
        left = 60 * self.plan.minutes - (now - self.began)
        # The trial moved batch norm's averages only, which the first steps forget.
        return max(1, math.floor(left / each))

    def _now(self) -> float:
        """Return the time, in seconds, when all that was asked of the device is done."""
        finished(self.device)
        return time.perf_counter()

    def _loss(self, batch: Batch) -> torch.Tensor:
        """Return the losses (4,): surface, its kind, defects, defects by the cell."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.mixed):
            said: Said = self.whole(batch.pixels)
        first = functional.cross_entropy(
            said.surface.float(), batch.recipes, label_smoothing=self.recipe.smoothing
        )
        second = functional.cross_entropy(said.kind.float(), batch.recipes % len(KIND_NAMES))
        third = functional.binary_cross_entropy_with_logits(said.defects.float(), batch.shown, batch.counted)
        fourth = first.new_zeros(())
        for cells in said.cells:
            px = batch.pixels.shape[3] // cells.shape[3]
            fourth = fourth + cell_loss(cells, wanted_cells(batch.cells, px)) / len(said.cells)
        return torch.stack([first, second, third, fourth])

    def _step(self, step: int, total: int) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * share_of_peak(step, total)
        side = side_px(self.recipe, self.plan.seed, step, total)
        losses = self._loss(self.shown.batch(step, self.recipe.batch, side))
        self.optimizer.zero_grad(set_to_none=True)
        (losses @ self.weights).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.whole.parameters(), MAX_GRADIENT)
        self.optimizer.step()
        return losses.detach()  # not read before a note is due: a GPU need not be waited for

    def _note(self, state: _State, losses: torch.Tensor, resumed: int) -> None:
        note = ""
        if state.step % NOTE_EVERY == 0 or state.step == state.total:
            since = state.step - (state.marks[-1].step if state.marks else 0)
            means = dict(zip(LOSSES, (losses / max(1, since)).tolist(), strict=True))
            if not math.isfinite(sum(means.values())):
                raise ExportError("training diverged", hint="Try another --seed.")
            losses.zero_()
            state.marks.append(Mark(state.step, **{name: round(mean, 4) for name, mean in means.items()}))
            self.on_scalars(state.step, means)
            ran = time.perf_counter() - self.began
            left = ran / max(1, state.step - resumed) * (state.total - state.step) / 60
            note = (
                f"step {state.step} of {state.total}: "
                + ", ".join(f"{name.removesuffix('_loss')} {mean:.3f}" for name, mean in means.items())
                + f"; about {left:.0f} min left"
            )
        self.on_step(state.step, state.total, note)

    def _measure_statistics(self, step: int) -> None:
        norms = batch_norms(self.whole.features)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over what follows
        self.whole.train()
        with torch.inference_mode():
            for i in range(self.recipe.statistics):
                self.whole.features(self.shown.again(step + i, STATISTICS_BATCH, INPUT_PX).pixels)


def side_px(recipe: Recipe, seed: int, step: int, total: int) -> int:
    """Return the side of a step's crops: growing, give or take a step of 16 pixels."""
    first, last = recipe.sides_px
    about = first + (last - first) * step / total + np.random.default_rng([seed, 3, step]).uniform(-16, 16)
    return int(np.clip(16 * round(about / 16), first, last))
