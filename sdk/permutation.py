"""Whether some parts score lower than others of the same class, beyond chance: a stratified permutation test.

If it did not matter whose a part is, any other draw of as many parts of each class would do as well. The share of
draws that score as low in the mean as those asked about is the probability of so low a score by chance; it needs
no assumption about the scores, and holds for few parts. A part's labels of one class count as one, since its
pictures resemble each other. Who sees another mix of classes, or only hard ones, does not score low by that.

Drawn one after the other until it is clear (Besag and Clifford, 1991): what is likely costs little.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.moments import Floats, Ints

ENOUGH: Final = 20
"""So many draws as low end the drawing: the probability is then known to a fifth of itself."""
BATCH: Final = 1000
MOST_DRAWS: Final = 1_000_000
FINER: Final = 10
"""Draws for each that the sought probability stands for."""

Mask = npt.NDArray[np.bool_]


def chance_as_low(values: Floats, parts: Ints, classes: Ints, asked: Mask, *, finest: float) -> float:
    """Return the probability that parts drawn at random score as low as those asked about; 1 where none compare.

    The same for the same input: the draws begin at a fixed seed.

    Args:
        values: (n,) of labels; higher is better.
        parts: (n,) the part of each.
        classes: (n,) the class of each: parts are compared within one.
        asked: (n,) whose are asked about.
        finest: Smaller probabilities need not be told apart; in (0, 1).
    """
    strata = [
        (mine, others)
        for each in np.unique(classes[asked])
        if len(others := _means(values, parts, ~asked & (classes == each)))
        and len(mine := _means(values, parts, asked & (classes == each)))
    ]
    if not strata:
        return 1.0
    found = sum(float(mine.sum()) for mine, _ in strata)
    rng = np.random.default_rng(0)
    most = min(MOST_DRAWS, int(np.ceil(FINER / finest)))
    low = drawn = 0
    while low < ENOUGH and drawn < most:
        sums = np.zeros(BATCH)
        for mine, others in strata:
            every = np.concatenate([mine, others])
            first = rng.random((BATCH, len(every))).argpartition(len(mine) - 1, axis=1)[:, : len(mine)]
            sums += every[first].sum(1)
        low += int((sums <= found + 1e-9).sum())  # sums of the same numbers in another order differ by rounding
        drawn += BATCH
    return (low + 1) / (drawn + 1)


def _means(values: Floats, parts: Ints, rows: Mask) -> Floats:
    """Return the mean value of each part among these rows."""
    if not rows.any():
        return np.zeros(0)
    index = np.unique(parts[rows], return_inverse=True)[1]
    return np.asarray(np.bincount(index, values[rows]) / np.bincount(index))
