"""Which levels of the backbone features are read from, how they are pooled, at which input size: by measurement.

    for each input size: one pass over the images, all levels and poolings at once -> columns
    for each candidate:  its columns -> codes -> balanced accuracy on groups left out
    the default, or what is better than it beyond chance

Rules this module keeps:

- Only images that are learned from are looked at, and every image is judged by a head that never saw its group.
- Candidates are compared on the same images, group by group. A tie is a difference within its own standard error.
- Features are computed as a device computes them: by ONNX Runtime, one frame at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from export.backbones import Backbone, Tapped, load_backbone, own_levels
from export.forms import features_of
from export.frames import resized_frames
from export.graph import latencies_ms, to_onnx
from export.maps import spatial_of
from export.paired import groups_gained
from export.progress import Log
from export.report import ReadoutReport
from export.selection import Selection
from sdk.codes import Features, encode, fit_scale
from sdk.errors import ExportError
from sdk.head import UNCALIBRATED
from sdk.preprocess import MAX_INPUT_SIDE_PX
from sdk.score import LeftOut, decisions_right, leave_one_group_out
from sdk.verdict import MIN_LOST_GROUPS

MAX_LEVELS: Final = 4
"""Lower levels have few channels and look at few pixels: on magnetic tile a fourth and a third level added nothing
to the second (splits 100 to 107)."""
LARGER: Final = 1.5
"""The other input size that is tried, in units of the weights' own; twice the size costs four times the time."""
SIZE_STEP_PX: Final = 32
"""Input sides are multiples of it: what strides and patches of most networks divide."""
DEFAULT_MAX_FEATURE_SIZE: Final = 2048
"""A head of 2048 is solved in four times the time of one of 1280 (d^3), and its Gram matrix takes 32 MiB (d^2)."""


@dataclass(frozen=True)
class Budget:
    """What a readout may cost.

    Attributes:
        max_feature_size: d, at most.
        max_latency_ms: Of one frame on this machine, fp32, all cores; None is no bound.
        sizes: A larger input is tried too. Not by default: it doubles the latency, where levels cost next to none.
        pooling: Maxima, and averages beside maxima, are tried too, where the network's own features are averages.
            Not by default: on magnetic tile maxima cost two points on parts held out, and looked better on parts
            left out often enough to be chosen (docs/decisions/0016).
    """

    max_feature_size: int = DEFAULT_MAX_FEATURE_SIZE
    max_latency_ms: float | None = None
    sizes: bool = False
    pooling: bool = False


@dataclass(frozen=True)
class Readout:
    """How features are read from a backbone; the options of `load_backbone`."""

    input_size_px: int | None = None
    pool: str | None = None
    levels: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One readout that is tried: at `px` pixels it reads these columns of all there are.

    Attributes:
        default: It has the levels and the pooling that are read where nobody says.
    """

    readout: Readout
    px: int
    columns: npt.NDArray[np.int64]
    latency_ms: float
    default: bool = False

    @property
    def levels(self) -> int:
        """How many levels it reads."""
        return self.readout.levels or 1


class _Everything(Tapped):
    """A network's own features, averages and maxima of all levels below its last, and of its last."""

    def levels_of(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return all columns (n, d) of (n, 3, H, W) pixels, no map, and timm's last level."""
        features, _, last = super().levels_of(pixels)
        top = spatial_of(self.network, last)
        if top is not None:
            features = torch.cat([features, top.mean((2, 3)), top.amax((2, 3))], 1)
        return features, [], last


def choose_readout(
    backbone: str,
    weights: str | None,
    fixed: Readout,
    budget: Budget,
    paths: Sequence[Path],
    learned: Selection,
    log: Log,
) -> tuple[Readout, list[ReadoutReport]]:
    """Return the readout to use, and the report on all that were tried.

    Args:
        backbone, weights: See `load_backbone`. Weights must be pretrained.
        fixed: What the user has chosen already: input size and pooling that are not None stay.
        budget: Candidates over it are reported and not chosen.
        paths: The images, row for row as in `learned`.
        learned: What is learned from.
        log: Told what happens.

    Raises:
        ExportError: the weights are random, or nothing is within the budget.
    """
    first = load_backbone(backbone, weights, input_size_px=fixed.input_size_px, pool=fixed.pool, levels=1)
    if not first.origin.pretrained:
        raise ExportError(
            "--levels auto compares readouts of pretrained features, and --weights none has none",
            hint="Give weights, or say how many --levels.",
        )
    several = Counter(label for label, _ in set(zip(learned.labels, learned.groups, strict=True)))
    if sum(groups > 1 for groups in several.values()) < 2:
        log.warn("The readout was not chosen by measurement: fewer than two classes have images of several parts.")
        return fixed, []
    larger = [larger_px(first.preprocess.height)] if budget.sizes else []
    right: list[npt.NDArray[np.bool_]] = []
    candidates: list[Candidate] = []
    left_out: LeftOut | None = None
    for px in (fixed.input_size_px, *larger):
        made = read_all(backbone, weights, replace(fixed, input_size_px=px), budget.pooling, paths, log)
        if made is None:
            continue
        features, found = made
        for each in found:
            with log.stage("readout", f"Judging {describe(each)}"):
                left_out = _left_out(features[:, each.columns], learned)
            candidates.append(each)
            right.append(decisions_right(left_out, UNCALIBRATED, unknown_is_miss=False))
    if left_out is None:
        raise ExportError(f"{backbone} cannot be read at any input size tried", hint="Say how many --levels.")
    # A class that one group has cannot be scored.
    scored = [c for c in range(len(left_out.class_ids)) if not left_out.orphan[left_out.truth == c].all()]
    if not scored:
        raise ExportError(
            "no readout can be told from another: no class has two groups to judge by",
            hint="Say how many --levels, or add images of other parts.",
        )
    keep = np.isin(left_out.truth, scored)
    truth, groups = left_out.truth[keep], left_out.groups[keep]
    return choose(candidates, [each[keep] for each in right], truth, groups, budget)


def describe(candidate: Candidate) -> str:
    """Return a candidate in words."""
    readout = candidate.readout
    pool = "" if readout.pool is None else f"{readout.pool} pooling, "
    return f"{pool}{candidate.levels} level{'s' * (candidate.levels != 1)} at {candidate.px} px"


def larger_px(px: int) -> int:
    """Return the side of the larger input that is tried beside one of `px` pixels."""
    return min(round(px * LARGER / SIZE_STEP_PX) * SIZE_STEP_PX, MAX_INPUT_SIDE_PX)


def read_all(
    name: str, weights: str | None, readout: Readout, pooling: bool, paths: Sequence[Path], log: Log
) -> tuple[Features, list[Candidate]] | None:
    """Return all columns (n, .) at one input size, and which each candidate reads; None where it cannot be."""
    try:
        backbone = load_backbone(name, weights, input_size_px=readout.input_size_px, pool=readout.pool, levels=1)
    except ExportError as error:
        log.warn(f"Not tried: {error}.")
        return None
    default = own_levels(backbone.network, backbone.feature_size)
    levels = min(MAX_LEVELS, len(getattr(backbone.network, "feature_info", ())))
    if levels < 2 or not hasattr(backbone.network, "forward_intermediates"):
        log.warn(f"{name} does not show its levels: its own features are the only readout.")
        return None
    module = _Everything(backbone.network, levels).eval()
    size = backbone.preprocess
    with torch.inference_mode():
        black = torch.zeros(1, 3, size.height, size.width)
        lower_maps = Tapped.levels_of(module, black)[1]
        total = int(module(black).shape[1])
    own, px = backbone.feature_size, size.height
    ends = own + np.cumsum([0] + [2 * int(level.shape[1]) for level in lower_maps])
    with log.stage("readout", f"Reading all levels at {px} px", len(paths)) as step:
        model = to_onnx(Backbone(name, module, total, size, backbone.origin))
        frames = resized_frames(paths, size)
        features = features_of(model, frames, size, step)
        latency = latencies_ms({"": model}, size.apply(frames[0]), rounds=15)[""]
    lasts: dict[str | None, npt.NDArray[np.int64]] = {readout.pool: np.arange(own)}
    averaged = backbone.maps and [(r.start, r.pool) for r in backbone.maps[-1].reads] == [(0, "avg")]
    if pooling and averaged:
        lasts["max"] = np.arange(total - own, total)
        lasts["catavgmax"] = np.arange(total - 2 * own, total)
    found = []
    for pool, last in lasts.items():
        for count in range(1, levels + 1):
            columns = np.concatenate([last, np.arange(ends[levels - count], ends[-1])]).astype(np.int64)
            is_default = pool == readout.pool and count == default
            found.append(Candidate(Readout(readout.input_size_px, pool, count), px, columns, latency, is_default))
    return features, found


def _left_out(features: Features, learned: Selection) -> LeftOut:
    codes = encode(features, fit_scale(features))
    return leave_one_group_out(codes, learned.ids, learned.groups)


def choose(
    candidates: Sequence[Candidate],
    right: Sequence[npt.NDArray[np.bool_]],
    truth: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    budget: Budget,
) -> tuple[Readout, list[ReadoutReport]]:
    """Return the readout to use, and the report, from which left-out decisions of each candidate are right."""
    accuracy = [balanced(each, truth) for each in right]
    within = [i for i, each in enumerate(candidates) if not _over(each, budget)]
    if not within:
        least = min(candidates, key=lambda each: (len(each.columns), each.latency_ms))
        raise ExportError(
            f"no readout is within the budget: the smallest has {len(least.columns)} features and takes "
            f"{least.latency_ms:.1f} ms a frame",
            hint="Raise --max-feature-size or --max-latency-ms, or take a smaller backbone or --input-size.",
        )
    best = max(within, key=lambda i: (accuracy[i], -candidates[i].px, -len(candidates[i].columns)))
    ties = []
    for i in within:
        behind, error = difference(right[best], right[i], truth, groups)
        # The standard error of an image or two is about the difference itself: too few groups are no evidence.
        if behind <= error or groups_gained(right[best], right[i], groups) < MIN_LOST_GROUPS:
            ties.append(i)
    # What is no better beyond chance on known classes does not displace the default: what it is good for is
    # novelty, which left-out groups of known classes do not show.
    chosen = min(ties, key=lambda i: (candidates[i].px, not candidates[i].default, len(candidates[i].columns), i))
    reports = []
    for i, each in enumerate(candidates):
        gained, error = difference(right[i], right[0], truth, groups)
        over = _over(each, budget)
        verdict = (
            over if over else "chosen" if i == chosen else "no better beyond chance" if i in ties else "worse"
        )
        reports.append(
            ReadoutReport(
                input_px=each.px,
                pool=each.readout.pool,
                levels=each.levels,
                feature_size=len(each.columns),
                latency_ms=round(each.latency_ms, 3),
                balanced_accuracy=accuracy[i],
                difference=gained,
                standard_error=error,
                chosen=i == chosen,
                verdict=verdict,
            )
        )
    return candidates[chosen].readout, reports


def _over(candidate: Candidate, budget: Budget) -> str:
    """Return what a candidate is over the budget in; nothing where it is within."""
    if len(candidate.columns) > budget.max_feature_size:
        return f"over {budget.max_feature_size} features"
    if budget.max_latency_ms is not None and candidate.latency_ms > budget.max_latency_ms:
        return f"over {budget.max_latency_ms:g} ms"
    return ""


def balanced(right: npt.NDArray[np.bool_], truth: npt.NDArray[np.int64]) -> float:
    """Return the mean over classes of the share that is right, of (n,) decisions."""
    return float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def difference(
    one: npt.NDArray[np.bool_],
    other: npt.NDArray[np.bool_],
    truth: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
) -> tuple[float, float]:
    """Return how much better the first is in balanced accuracy, and the standard error of that.

    On the same images: what both get right or wrong does not count. Groups are the independent draws (the variance
    of a sum over clusters).

    >>> right, wrong = np.array([True, True, False, True]), np.array([True, False, False, True])
    >>> difference(right, wrong, np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))[0]
    0.25
    """
    gain = one.astype(np.float64) - other
    classes = np.unique(truth)
    total, part = 0.0, np.zeros(len(gain))
    for c in classes:
        of_class = truth == c
        mean = float(gain[of_class].mean())
        total += mean / len(classes)
        part[of_class] = (gain[of_class] - mean) / (len(classes) * of_class.sum())
    _, index = np.unique(groups, return_inverse=True)
    of_group = np.bincount(index, weights=part)
    g = len(of_group)
    return total, float(np.sqrt(g / max(g - 1, 1) * (of_group**2).sum()))
