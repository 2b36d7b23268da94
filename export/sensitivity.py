"""Which layers cost int8 the most: each left in fp32 in turn, judged by what that gives back of the features.

Layers are tried in units of neighbours, as small as the time allows: a network of fifty layers is tried layer by
layer where minutes are there, block by block where seconds are. The worst units then stay fp32, one after another,
until the features are as near as wanted, the next gives nothing, or the file would grow too much.

Features are computed by the file's exact arithmetic, so that the choice does not depend on this processor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from export.graph import OnnxBackbone, Pixels
from export.parity import feature_cosine
from export.profiles import Profile
from export.quantize import Prepared, Ranges, to_int8
from sdk.codes import Features
from sdk.errors import CalibrationFailed

SENSITIVITY_IMAGES: Final = 12
"""The cosine of a form is a mean over them; units differ by far more than images do."""
GROWTH: Final = 0.15
"""Share of the fp32 weights that may stay fp32. All of it int8 makes about 27 % of the size, this makes 38 %."""
WORTH: Final = 0.02
"""A unit is worth leaving out when it gives back this share of what int8 lost; less is within the noise."""
MIN_UNITS: Final = 4
"""Fewer say nothing; the budget is overrun rather."""


@dataclass(frozen=True)
class Unit:
    """Neighbouring layers, and what leaving them in fp32 gives.

    Attributes:
        layers: Their names.
        weight_bytes: In fp32.
        cosine: Of features to fp32's when only these stay fp32.
    """

    layers: tuple[str, ...]
    weight_bytes: int
    cosine: float


@dataclass(frozen=True)
class Sensitivity:
    """What was tried and what came of it.

    Attributes:
        base_cosine: Everything int8.
        units: In the order they run.
        excluded: Layers to leave in fp32.
        cosine: With them left out.
        seconds: It took.
    """

    base_cosine: float
    units: tuple[Unit, ...]
    excluded: tuple[str, ...]
    cosine: float
    seconds: float


def units_of(prepared: Prepared, count: int) -> list[tuple[tuple[str, ...], int]]:
    """Return the layers in at most `count` runs of neighbours, with the bytes of their weights.

    Runs hold equally many layers rather than bytes: errors come from activations, and early layers are small.
    """
    parts = np.array_split(np.arange(len(prepared.layers)), min(max(count, 1), len(prepared.layers)))
    return [
        (tuple(prepared.layers[i] for i in part), sum(prepared.weight_bytes[i] for i in part)) for part in parts
    ]


def find_sensitive(
    prepared: Prepared,
    ranges: Ranges,
    profile: Profile,
    reference: Features,
    pixels: Pixels,
    *,
    wanted: float,
    budget_s: float,
    on_unit: Callable[[int, int], None] = lambda _done, _total: None,
    clock: Callable[[], float] = time.monotonic,
) -> Sensitivity:
    """Return how much each part of the network costs, and which layers to leave in fp32.

    Args:
        prepared: The graph.
        ranges: Of its tensors.
        profile: What the form is made for.
        reference: (n, d) features of fp32 on `pixels`.
        pixels: (n, 3, H, W), images that calibration need not have seen.
        wanted: Stop excluding at this cosine.
        budget_s: For all of it; decides how small the units are.
        on_unit: Called with (units done, units in all).
        clock: Seconds that only grow.

    Raises:
        CalibrationFailed: the network cannot be quantized at all.
    """
    began = clock()

    def cosine(without: Sequence[str]) -> float:
        model = to_int8(prepared, ranges, profile, reference.shape[1], without=without)
        runner = OnnxBackbone(model, exact=True)
        features = np.concatenate([runner.features(pixels[i : i + 1]) for i in range(len(pixels))])
        return feature_cosine(reference, features)

    base = cosine(())
    each = clock() - began
    # Half for trying units, half for trying them together, which ends early more often than not.
    affordable = math.floor((budget_s / 2 - each) / max(each, 1e-3))
    tried: list[Unit] = []
    groups = units_of(prepared, max(affordable, MIN_UNITS))
    for layers, weight_bytes in groups:
        if len(layers) < len(prepared.layers):
            tried.append(Unit(layers, weight_bytes, cosine(layers)))
        on_unit(len(tried), len(groups))

    allowed = GROWTH * sum(prepared.weight_bytes)
    excluded: tuple[str, ...] = ()
    best, used = base, 0
    for unit in sorted(tried, key=lambda unit: unit.cosine, reverse=True):
        if best >= wanted or clock() - began + each > budget_s:
            break
        if unit.cosine - base < WORTH * (1 - base):
            break
        if used + unit.weight_bytes > allowed:
            continue
        found = cosine((*excluded, *unit.layers))
        if found - best < WORTH * (1 - best):
            continue  # what it gives, another one gave already
        excluded, best, used = (*excluded, *unit.layers), found, used + unit.weight_bytes
    return Sensitivity(base, tuple(tried), excluded, best, clock() - began)


def growth(prepared: Prepared, excluded: Sequence[str]) -> float:
    """Return the share of the fp32 weights that stay fp32.

    Raises:
        CalibrationFailed: a layer is none of the network's.
    """
    size_of = dict(zip(prepared.layers, prepared.weight_bytes, strict=True))
    unknown = [name for name in excluded if name not in size_of]
    if unknown:
        raise CalibrationFailed(f"the network has no layer {unknown[0]}", hint="Leave it out of the exclusions.")
    return sum(size_of[name] for name in excluded) / sum(prepared.weight_bytes)
