"""Where in a frame the evidence for a decision lies, from the backbone's spatial maps of the same pass.

docs/head.md, section 10, has the formulas and says what is exact and what is not. Rules this module keeps:

- A map of evidence sums to the score that the head gave the class: nothing is added and nothing left out.
- It is a pure function of head, features and maps; drawing it is the page's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdk.bundle import MapEntry, Pool
from sdk.codes import FULL_SCALE, Features, encode
from sdk.errors import FeatureSizeError
from sdk.head import Head
from sdk.moments import Floats

Map = npt.NDArray[np.float32]
"""(c, h, w) float32: one level of the backbone, before it is pooled."""


@dataclass(frozen=True)
class Spatial:
    """What one pass of the backbone gave for one frame.

    Attributes:
        features: (1, d) float32.
        maps: One for each of the bundle's `maps`, in their order.
    """

    features: Features
    maps: tuple[Map, ...]


def evidence(head: Head, class_id: bytes, seen: Spatial, layout: Sequence[MapEntry], scale: float) -> Floats:
    """Return where the evidence for a class lies, (h, w) float64 on the grid of the finest map.

    The sum is the class's score. Each cell's share is what its own activations put into the pooled features;
    the frame's lengths, in the code and in the whitened space, are held at what they are for the whole frame.

    Args:
        head: Any head of this feature space.
        class_id: One of the head's classes; with one class, minus the result is where the frame is strange.
        seen: The frame's features and maps.
        layout: The bundle's `maps`: which columns of the features are pooled from which map, and how.
        scale: The code scale.

    Raises:
        FeatureSizeError: features or maps have other sizes than head and layout say.
        UnknownClassError: the head knows no such class.
    """
    _check(seen, layout)
    code = encode(seen.features, scale)[0]
    weights, centre, rest = head.reading(code, class_id)
    features = seen.features[0].astype(np.float64)
    # x = sign(f) sqrt|f| / length, and length^2 = sum |f|: brings the root of a feature to the scale of codes.
    length = float(np.sqrt(np.abs(features).sum()))
    unit = FULL_SCALE / (scale * length) if length > 0 else 0.0

    height = max(entry.height for entry in layout)
    width = max(entry.width for entry in layout)
    plain = weights * (code - centre)  # (d,): each column's part of the score
    total = np.zeros((height, width))
    read = np.zeros(len(plain), bool)
    for entry, values in zip(layout, seen.maps, strict=True):
        F = values.astype(np.float64).reshape(entry.channels, -1)  # (c, cells)
        part = np.zeros(F.shape[1])
        for each in entry.reads:
            columns = slice(each.start, each.start + entry.channels)
            read[columns] = True
            part += _shares(each.pool, F, weights[columns], plain[columns], unit)
        rows, across = _spread(entry.height, height), _spread(entry.width, width)
        total += rows @ part.reshape(entry.height, entry.width) @ across.T
    return np.asarray(total + (plain[~read].sum() + rest) / total.size)


def _shares(pool: Pool, F: Floats, weights: Floats, plain: Floats, unit: float) -> Floats:
    """Return the part of each cell, (cells,), in the score of the columns pooled from a map F (c, cells)."""
    cells = F.shape[1]
    if pool == "max":
        # Only the cells that hold a channel's maximum were seen; equal ones share it.
        top = F.max(1, keepdims=True) == F
        return np.asarray((plain / top.sum(1)) @ top)
    # An average: the column's part is spread evenly, and what a cell has above the average comes on top, along the
    # secant of the root from 0 to the frame's own feature. Taking mean |F| for |f| changes nothing where a map has
    # one sign, and bounds the slope where positive and negative cells cancel.
    mean = F.mean(1, keepdims=True)
    size = np.sqrt(np.abs(F).mean(1))
    slope = np.divide(weights * unit, size, out=np.zeros_like(size), where=size > 0)
    return np.asarray((plain.sum() + slope @ (F - mean)) / cells)


def _spread(coarse: int, fine: int) -> Floats:
    """Return the matrix (fine, coarse) that spreads each coarse cell evenly over the fine ones it covers."""
    edges = np.arange(fine + 1) * (coarse / fine)
    starts = np.arange(coarse)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.maximum(overlap, 0.0))


def _check(seen: Spatial, layout: Sequence[MapEntry]) -> None:
    found = [values.shape for values in seen.maps]
    wanted = [(entry.channels, entry.height, entry.width) for entry in layout]
    if not layout or found != wanted or seen.features.ndim != 2 or len(seen.features) != 1:
        raise FeatureSizeError(
            f"features {seen.features.shape} with maps {found}, not one frame's with {wanted}",
            hint="Features, maps and layout must come from one backbone and one frame.",
        )
