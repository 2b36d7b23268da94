"""What answers the generator's questions while a backbone is trained on drawn surfaces; thrown away afterwards.

Of the whole crop: which surface, of which kind, and which defects. Of each cell of the two levels that are finer
than the last: which defects lie there. A defect of a few pixels is one cell among hundreds, and drowns in what is
asked of the crop as a whole; asked of its cell, it earns its gradient.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, MARK_PX

CELL_LEVELS: Final = 2
"""Of the levels below the last, from the last downwards: cells of 16 and 8 px in most networks."""
AREA: Final = 0.05
"""Of the crop's cells: a defect on fewer weighs as if it lay on so many."""
HEAVIEST: Final = 16.0
"""No cell weighs more than so many cells that show nothing."""


class Said(NamedTuple):
    """Logits.

    Attributes:
        surface: (n, surfaces).
        kind: (n, kinds).
        defects: (n, defects).
        cells: Of each level that is asked, (n, defects + 1, h, w); the last one says that any defect is there.
    """

    surface: torch.Tensor
    kind: torch.Tensor
    defects: torch.Tensor
    cells: list[torch.Tensor]


class Answers(nn.Module):
    """A small network on the features, and one layer on each level that is asked by the cell.

    Args:
        feature_size: Of the features.
        channels: Of the levels that are asked by the cell, lower first.
        surfaces: How many.
        hidden: Width of the network on the features.
    """

    def __init__(self, feature_size: int, channels: list[int], surfaces: int, hidden: int) -> None:
        super().__init__()
        self.between = nn.Sequential(
            nn.Linear(feature_size, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
        )
        self.surface = nn.Linear(hidden, surfaces)
        self.kind = nn.Linear(hidden, len(KIND_NAMES))
        self.defects = nn.Linear(hidden, len(DEFECT_NAMES))
        self.cells = nn.ModuleList(nn.Conv2d(width, len(DEFECT_NAMES) + 1, 1) for width in channels)

    def forward(self, features: torch.Tensor, levels: list[torch.Tensor]) -> Said:
        """Return what is said of features (n, d) and of levels (n, c, h, w)."""
        hidden = self.between(features)
        cells = [ask(level) for ask, level in zip(self.cells, levels, strict=True)]
        return Said(self.surface(hidden), self.kind(hidden), self.defects(hidden), cells)


def wanted_cells(cells: torch.Tensor, px: int) -> torch.Tensor:
    """Return which defects lie in squares of `px` pixels, (n, defects + 1, h, w) float32 of 0 and 1.

    Args:
        cells: (n, s / 4, s / 4) int32, as in `export.looks.Batch`.
        px: Side of a square, a multiple of `MARK_PX`.
    """
    kinds = torch.arange(len(DEFECT_NAMES), dtype=cells.dtype, device=cells.device)[:, None, None]
    bits = cells[:, None] >> kinds & 1
    each = functional.max_pool2d(bits.float(), px // MARK_PX)
    return torch.cat([each, each.amax(1, keepdim=True)], 1)


def cell_loss(said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy over cells; each defect kind in a crop weighs alike, be it small or large.

    Args:
        said: Logits (n, defects + 1, h, w).
        wanted: 0 or 1, of the same shape.
    """
    area = AREA * wanted.shape[2] * wanted.shape[3]
    weight = (area / wanted.sum((2, 3), keepdim=True).clamp(min=1)).clamp(1.0, HEAVIEST)
    return functional.binary_cross_entropy_with_logits(said.float(), wanted, 1 + wanted * (weight - 1))
