"""The backbone's spatial maps beside its features, from the same pass: what a device draws heatmaps from.

Which columns of the features are pooled from which map, and how, is found by looking at what the network gives,
not by knowing architectures: averages and maxima are recognised by their values. Where the last level makes as
many features in another way (a class token, a norm after pooling), its map is `near`: it shows where, not how
much.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from sdk.bundle import MAX_MAP_VALUES, MAX_MAPS, MapEntry, Pool, ReadEntry
from sdk.preprocess import Preprocess

MAP_NAMES: Final = "map{}"
"""Names of the ONNX outputs, lowest level first."""
_ALIKE: Final = 1e-4
"""Largest difference, of the features' root mean square, between a pooled map and the features it makes: sums in
another order differ by 1e-6, another way of pooling by 1e-1."""


class WithMaps(nn.Module):
    """A backbone that gives features and then its maps.

    Args:
        module: What `load_backbone` made: a timm model without classifier, or a `Tapped` one.
        outputs: Names of the maps to give, of those that it has.
    """

    def __init__(self, module: nn.Module, outputs: list[str]) -> None:
        super().__init__()
        self.module = module
        self.outputs = outputs

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return features (n, d) and maps (n, c, h, w) of (n, 3, H, W) pixels."""
        features, maps = read(self.module, pixels)
        return (features, *(maps[name] for name in self.outputs))


def read(module: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return features (n, d) and every map (n, c, h, w) by name, lowest level first."""
    found: Any = module
    if hasattr(found, "levels_of"):
        features, lower, last = found.levels_of(pixels)
        network = found.network
    else:
        network = found
        last = network.forward_features(pixels)
        features, lower = network.forward_head(last, pre_logits=True), []
    top = spatial_of(network, last)
    maps = [*lower, *([] if top is None else [top])]
    return features, {MAP_NAMES.format(i): values for i, values in enumerate(maps)}


def spatial_of(network: Any, last: torch.Tensor) -> torch.Tensor | None:
    """Return the last level as (n, c, h, w); None where it has no places."""
    if last.ndim == 4:
        return last.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "NCHW") == "NHWC" else last
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if last.ndim != 3 or grid is None:
        return None
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    if last.shape[1] - prefix != grid[0] * grid[1]:
        return None
    return last[:, prefix:].transpose(1, 2).reshape(-1, last.shape[2], grid[0], grid[1])


def layout_of(module: nn.Module, preprocess: Preprocess) -> tuple[MapEntry, ...]:
    """Return the maps that a backbone can give, and which features come from them; none where it has none."""
    noise = torch.rand(2, 3, preprocess.height, preprocess.width, generator=torch.Generator().manual_seed(0))
    found: Any = module
    try:
        with torch.inference_mode():
            features, maps = read(module.eval(), noise)
            same = torch.allclose(features, found(noise), rtol=1e-4, atol=1e-6)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return ()  # it shows no levels; features it does give, or `load_backbone` would have refused it
    if not same:
        return ()
    entries, taken = [], torch.zeros(features.shape[1], dtype=torch.bool)
    for name, values in maps.items():
        c, h, w = values.shape[1:]
        if h * w < 2 or c * h * w > MAX_MAP_VALUES:
            continue
        reads = _reads(features, values, taken)
        if reads:
            entries.append(MapEntry(output=name, channels=c, height=h, width=w, reads=reads))
    return tuple(entries[-MAX_MAPS:])


def _reads(features: torch.Tensor, values: torch.Tensor, taken: torch.Tensor) -> list[ReadEntry]:
    """Return which columns of features (n, d) come from a map (n, c, h, w), and mark them as taken."""
    c, d = values.shape[1], features.shape[1]
    unit = float(features.square().mean().sqrt()) or 1.0
    reads = []
    kinds: tuple[tuple[Pool, torch.Tensor], ...] = (("avg", values.mean((2, 3))), ("max", values.amax((2, 3))))
    for pool, pooled in kinds:
        for start in range(d - c + 1):
            columns = slice(start, start + c)
            if taken[columns].any():
                continue
            if float((features[:, columns] - pooled).abs().max()) <= _ALIKE * unit:
                reads.append(ReadEntry(start=start, pool=pool))
                taken[columns] = True
                break
    if not reads and c == d - int(taken.sum()) and not taken[:c].any():
        reads.append(ReadEntry(start=0, pool="near"))
        taken[:c] = True
    return reads
