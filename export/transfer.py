"""What a start and a strategy are worth on one set: judged on groups left out, in pairs, and tried on new classes.

Everything is judged as a device would use it: codes, and the head solved from them. Differences are taken image by
image on the same images and summed by group, so that what all share, a hard part or a rare class, cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import nn

from export.augment import Frames, to_pixels
from export.backbones import Backbone
from export.paired import groups_gained
from export.recipes import FOLDED
from sdk.codes import Features, encode, fit_scale
from sdk.head import solve
from sdk.moments import Moments
from sdk.splits import Part, split

Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHOTS: Final = 5
"""Labels that a class held back is taught with: what an operator gives in the first minutes."""
DRAWS: Final = 5
"""Of those labels; which they are decides much."""
SURE: Final = 0.95
"""One-sided: how sure a difference must be to be called one."""
ONE_GROUP_VARIANCE: Final = 0.25
"""Of a class's difference where one group has it: it could be anything, and half the range is its deviation."""
SHIFT_IMAGES: Final = 128


@dataclass(frozen=True)
class Field:
    """One split of labelled images, by group: some to learn from, others to judge by.

    Attributes:
        labels: (n,) class index in [0, k).
        groups: (n,) group id.
        fit: Rows to learn from.
        validation: (n,) bool; of `fit`, those that choose the epoch.
        judged: Rows of groups that nothing has learned from.
    """

    labels: Rows
    groups: tuple[str, ...]
    fit: Rows
    validation: Bools
    judged: Rows

    @property
    def classes(self) -> list[int]:
        """Classes that can be learned and judged."""
        return sorted(set(self.labels[self.fit].tolist()) & set(self.labels[self.judged].tolist()))

    def without(self, held: int) -> Rows:
        """Return the rows to learn from when a class is held back."""
        known: Bools = self.labels[self.fit] != held
        return np.asarray(self.fit[known], np.int64)


def field_of(labels: Rows, groups: Sequence[str], seed: int) -> Field:
    """Return a split of these images: half of each class's groups to learn from, half to judge by."""
    parts = split(groups, [str(label) for label in labels], seed)
    fit = np.array([part in (Part.TRAIN, Part.VALIDATION) for part in parts], bool)
    validation = np.array([part is Part.VALIDATION for part in parts], bool)
    return Field(labels, tuple(groups), np.flatnonzero(fit), validation, np.flatnonzero(~fit))


@dataclass(frozen=True)
class Judged:
    """What a head learned from `fit` says of the judged images.

    Attributes:
        right: (m,) bool, the best class is the label.
        truth: (m,) class index.
        groups: (m,) group id.
        balanced_accuracy: Mean recall of the classes.
        auroc: Mean over classes of the area under the curve of its score against the others.
    """

    right: Bools
    truth: Rows
    groups: tuple[str, ...]
    balanced_accuracy: float
    auroc: float


@dataclass(frozen=True)
class Difference:
    """Balanced accuracy of one minus another on the same images, each group one draw.

    Attributes:
        points: In percent points.
        error: Its standard error.
        low, high: What it is at least, and at most, each with a chance of 95 %.
        gained: Groups that it decides more rightly.
    """

    points: float
    error: float
    low: float
    high: float
    gained: int = 0

    @property
    def worse(self) -> bool:
        """Surely below zero."""
        return self.high < 0

    @property
    def better(self) -> bool:
        """Surely above zero."""
        return self.low > 0


@dataclass(frozen=True)
class Readiness:
    """How a class that fine-tuning never saw is learned from `SHOTS` labels, mean of `DRAWS` draws.

    Attributes:
        held: The class.
        recall: Of it.
        others: Mean recall of the others then.
    """

    held: int
    recall: float
    others: float


def judge(features: Features, field: Field) -> Judged:
    """Return how the head does on groups left out, with features (n, d) of all images of the field."""
    scores = scores_of(features, field, field.fit)
    truth = field.labels[field.judged]
    right = scores.argmax(1) == truth
    present = np.unique(truth)
    curves = [auroc(scores[:, c] - np.delete(scores, c, 1).max(1), truth == c) for c in present]
    return Judged(
        right,
        truth,
        tuple(field.groups[row] for row in field.judged),
        float(np.mean([right[truth == c].mean() for c in present])),
        float(np.nanmean(curves)) if not np.isnan(curves).all() else float("nan"),
    )


def ready(features: Features, field: Field, held: int, seed: int) -> Readiness:
    """Return how a class is learned from few labels, with features whose backbone never saw it."""
    rng = np.random.default_rng([seed, held])
    known, shots = field.without(held), field.fit[field.labels[field.fit] == held]
    truth = field.labels[field.judged]
    recalls, others = [], []
    for _ in range(DRAWS):
        few = _of_many_groups(shots, field.groups, rng)
        choice = scores_of(features, field, np.concatenate([known, few]), scale_from=known).argmax(1)
        recalls.append(float((choice[truth == held] == held).mean()))
        rest = [c for c in np.unique(truth) if c != held]
        others.append(float(np.mean([(choice[truth == c] == c).mean() for c in rest])))
    return Readiness(held, float(np.mean(recalls)), float(np.mean(others)))


def _of_many_groups(rows: Rows, groups: Sequence[str], rng: np.random.Generator) -> Rows:
    """Return at most `SHOTS` rows, of as many groups as can be: an operator labels part after part."""
    taken: dict[str, list[int]] = {}
    for row in rng.permutation(rows).tolist():
        taken.setdefault(groups[row], []).append(row)
    order = sorted((turn, i) for i, members in enumerate(taken.values()) for turn in range(len(members)))
    lists = list(taken.values())
    return np.array([lists[i][turn] for turn, i in order[:SHOTS]], np.int64)


def scores_of(
    features: Features, field: Field, learned: Rows, scale_from: Rows | None = None
) -> npt.NDArray[np.float64]:
    """Return scores (m, k) of the judged images; a class that was not learned scores minus infinity.

    Args:
        features: (n, d) of all images of the field; only rows learned from or judged are read.
        field: Says what is judged.
        learned: Rows that the head learns from.
        scale_from: Rows that the code scale comes from, as the release's would; None is those learned from.
    """
    codes = encode(features, fit_scale(features[learned if scale_from is None else scale_from]))
    moments = Moments(codes.shape[1])
    moments.add(codes[learned], [int(y).to_bytes(16, "big") for y in field.labels[learned]])
    head = solve(moments)
    k = int(field.labels.max()) + 1
    scores = np.full((len(field.judged), k), -np.inf)
    scores[:, [int.from_bytes(c, "big") for c in head.class_ids]] = head.scores(codes[field.judged])
    return scores


def auroc(scores: npt.NDArray[np.float64], positive: Bools) -> float:
    """Return the chance that a positive scores above a negative, ties counting half; NaN without both.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    up, down = int(positive.sum()), int((~positive).sum())
    if not up or not down:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[positive].sum() - up * (up + 1) / 2) / (up * down))


def compare(one: Judged, other: Judged) -> Difference:
    """Return by how much one is better than another on the same judged images.

    A class's recall is a mean over its images, and a group of images is one draw: the variance is that of the
    group sums of what each image adds, within classes, and classes add up.
    """
    gain = one.right.astype(float) - other.right
    present = np.unique(one.truth)
    points, variance, freedom = 0.0, 0.0, 0
    names = np.array(one.groups, object).astype(str)
    for c in present:
        of_class = one.truth == c
        mean = float(gain[of_class].mean())
        points += mean / len(present)
        _, group = np.unique(names[of_class], return_inverse=True)
        sums = np.bincount(group, gain[of_class] - mean)
        if len(sums) > 1:
            spread = float(np.square(sums).sum()) / int(of_class.sum()) ** 2 * len(sums) / (len(sums) - 1)
            freedom += len(sums) - 1
        else:
            spread = ONE_GROUP_VARIANCE
        variance += spread / len(present) ** 2
    error = float(np.sqrt(variance))
    half = float(stdtrit(max(1, freedom), SURE)) * error
    gained = groups_gained(one.right, other.right, one.groups)
    return Difference(100 * points, 100 * error, 100 * (points - half), 100 * (points + half), gained)


# --- How far the images are from what the weights were learned on


@dataclass(frozen=True)
class Shift:
    """Distance of these images from those that the weights were learned on.

    Attributes:
        distance: Fréchet distance of single channels, in deviations of the source: the root of the mean over
            channels of (difference of means)^2 / variance + (ratio of deviations - 1)^2. 0 is the same, 1 is a
            whole deviation.
        first, last: The same for the first and the last layer that can be compared.
        layers: How many were.
        words: What it is, for people, or why it is not known.
    """

    distance: float | None
    first: float | None
    last: float | None
    layers: int
    words: str


UNKNOWN_SHIFT: Final = (
    "not known: the weights carry no statistics of the images they were learned on (no batch norm, or one that "
    "was folded into the convolutions)"
)
SHIFT_LIMITS: Final = (
    "It compares means and deviations of single channels at the batch norms with those that came with the "
    "weights. It does not see how channels go together, and it does not say whether the features serve: images "
    "far away can be told apart well, and near ones badly. Only figures of the same weights can be compared."
)


def shift_from_source(backbone: Backbone, frames: Frames) -> Shift:
    """Return how far images are from the source domain, by the statistics that batch norms carry.

    Only pretrained weights have a source. Costs one pass over `SHIFT_IMAGES` images.
    """
    norms = [
        part
        for part in backbone.module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and _has_statistics(part)
    ]
    if not norms or not backbone.origin.pretrained:
        return Shift(None, None, None, 0, UNKNOWN_SHIFT)
    sums: dict[int, list[torch.Tensor]] = {}

    def listen(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1).double()
        found = [channels.sum(1), channels.square().sum(1), torch.tensor(float(channels.shape[1]))]
        kept = sums.get(id(module))
        sums[id(module)] = found if kept is None else [a + b for a, b in zip(kept, found, strict=True)]

    handles = [norm.register_forward_pre_hook(listen) for norm in norms]
    try:
        some = np.linspace(0, len(frames) - 1, min(len(frames), SHIFT_IMAGES)).astype(int)
        with torch.inference_mode():
            for part in np.array_split(some, max(1, len(some) // 16)):
                backbone.module.eval()(to_pixels(frames[part], backbone.preprocess))
    finally:
        for handle in handles:
            handle.remove()
    distances = [_channel_distance(norm, sums[id(norm)]) for norm in norms if id(norm) in sums]
    if not distances:
        return Shift(None, None, None, 0, UNKNOWN_SHIFT)
    whole = float(np.sqrt(np.mean(np.square(distances))))
    words = f"{whole:.2f} deviations of the source, mean of {len(distances)} layers"
    return Shift(whole, distances[0], distances[-1], len(distances), words)


def _has_statistics(norm: Any) -> bool:
    if norm.running_mean is None:
        return False
    still = float(norm.running_mean.abs().max()) <= FOLDED and float((norm.running_var - 1).abs().max()) <= FOLDED
    return not still


def _channel_distance(norm: Any, sums: list[torch.Tensor]) -> float:
    total, squares, count = sums
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    source = (norm.running_var.double() + norm.eps).sqrt()
    apart = ((mean - norm.running_mean.double()) / source).square() + (deviation / source - 1).square()
    return float(apart.mean().sqrt())
