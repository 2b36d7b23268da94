"""What each strategy trains, and how: the recipes, the weights they choose, and what becomes of batch norm.

The numbers of the recipes were chosen on splits that nothing is reported on (docs/decisions/0017, 0051).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from timm.models import group_parameters
from torch import nn

from export.augment import Augmentation
from export.backbones import Backbone
from sdk.errors import ExportError


class Strategy(str, Enum):
    """What is trained besides the head."""

    FROZEN = "frozen"
    LAST = "last"
    FULL = "full"
    HEAD_THEN_FULL = "head-then-full"


@dataclass(frozen=True)
class Recipe:
    """How a strategy trains.

    Attributes:
        epochs: Passes over as many images as there are, at most.
        rate: Peak learning rate of the backbone's uppermost layer.
        classifier_rate: Of the temporary classifier.
        layer_decay: Each layer below learns at this share of the rate of the one above.
        weight_decay: Not of biases and norms.
        smoothing: Share of the label given to all classes alike.
        patience: Epochs without a better one after which training ends.
        views: Fixed views of each image, the image itself among them; 0 is a new one each time. With fixed views,
            a trunk that is not trained runs once for each.
        head_epochs: First, so many passes train the classifier alone.
        augmentation: What a view may change.
    """

    epochs: int
    rate: float
    classifier_rate: float
    layer_decay: float = 1.0
    weight_decay: float = 0.02
    smoothing: float = 0.1
    patience: int = 8
    views: int = 0
    head_epochs: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


LAST_SHARE: Final = 1 / 3
"""`last` trains the fewest last stages that hold this share of the weights: one of eight stages of mobilenetv2,
five of twelve blocks of vit_tiny, one of four of resnet18."""
RECIPES: Final = {
    Strategy.LAST: Recipe(epochs=12, rate=1e-3, classifier_rate=2e-3, layer_decay=0.9, patience=4, views=4),
    Strategy.FULL: Recipe(epochs=20, rate=3e-4, classifier_rate=2e-3, layer_decay=0.8),
    Strategy.HEAD_THEN_FULL: Recipe(epochs=20, rate=3e-4, classifier_rate=1e-3, layer_decay=0.8, head_epochs=20),
}
"""For pretrained weights (docs/decisions/0017, 0051)."""
FROM_SCRATCH: Final = Recipe(
    epochs=40,
    rate=3e-3,
    classifier_rate=3e-3,
    weight_decay=0.05,
    smoothing=0.0,
    patience=40,
    augmentation=Augmentation(turns=True),
)
"""Random weights learn everything, at one rate, and need every view that there is."""
DEFAULT_EPOCHS: Final = {Strategy.FROZEN: 0, **{strategy: recipe.epochs for strategy, recipe in RECIPES.items()}}
WARM_UP: Final = 0.2
"""Share of the steps in which the rate rises."""
FIRST_SHARE: Final = 1 / 25
"""Of the peak rate, at the first step."""
FOLDED: Final = 1e-6
"""Batch norm statistics nearer than this to mean 0 and variance 1 were folded into the convolutions."""


def recipe_for(strategy: Strategy, *, pretrained: bool) -> Recipe:
    """Return how a strategy trains weights that are pretrained or random."""
    return RECIPES[strategy] if pretrained else FROM_SCRATCH


def share_of_peak(step: int, total: int) -> float:
    """Return the learning rate at a step, as a share of its peak: a cosine up, and a longer one down.

    >>> [round(share_of_peak(step, 10), 2) for step in (0, 2, 6, 9)]
    [0.04, 1.0, 0.5, 0.04]
    """
    peak = max(1.0, WARM_UP * total)
    if step < peak:
        return FIRST_SHARE + (1 - FIRST_SHARE) * (1 - math.cos(math.pi * step / peak)) / 2
    return (1 + math.cos(math.pi * (step - peak) / max(1.0, total - peak))) / 2


def choose_weights(backbone: Backbone, strategy: Strategy) -> list[nn.Parameter]:
    """Mark the weights that a strategy trains, and return them.

    Raises:
        ExportError: there is none.
    """
    module: Any = backbone.network
    for weight in module.parameters():
        weight.requires_grad_(strategy in (Strategy.FULL, Strategy.HEAD_THEN_FULL))
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


def norms_are_folded(backbone: Backbone) -> bool:
    """Whether batch norms are there in name only: their statistics were folded into the convolutions."""
    norms = [norm for norm in batch_norms(backbone.module) if norm.running_mean is not None]
    return bool(norms) and all(
        float(norm.running_mean.abs().max()) <= FOLDED and float((norm.running_var - 1).abs().max()) <= FOLDED
        for norm in norms
    )


def norms(backbone: Backbone) -> tuple[bool, str]:
    """Return whether batch norm statistics stay as they are, and why, in words."""
    if not batch_norms(backbone.module):
        return True, "The network has no batch norm."
    if not backbone.origin.pretrained:
        return False, "Batch norm statistics are learned: none came with the weights."
    if norms_are_folded(backbone):
        return True, "Batch norm stays as it is: its statistics were folded into the convolutions."
    return True, "Batch norm keeps the statistics that came with the weights: few images would give worse ones."


def batch_norms(module: nn.Module) -> list[Any]:
    """Return the batch norms of a module."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
