"""Pictures that wait for the same answer: of the same part, or so alike that one look settles them.

Two rules: samples of one group (a part, a burst) belong together; so do samples of one decision whose codes are
more alike than nearly all pairs that the head calls different (docs/decisions/0030-...). The second is a
proposal: the page shows every picture of it, and what the operator takes out is not labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from device_agent.sample import Sample
from sdk.grouping import MIN_PAIRS

FALSE_PAIR_RATE: Final = 0.002
"""Share of pairs of different decisions that are as alike as the threshold (decision 0030)."""
MAX_ALIKE: Final = 12
"""More thumbnails cannot be looked at in one go."""


def alike(samples: Sequence[Sample]) -> dict[bytes, list[bytes]]:
    """Return for each sample the others of these that one look settles with it, most alike first.

    Args:
        samples: Of one feature space are compared; others only by their group. At most a few hundred.
    """
    if len(samples) < 2:
        return {s.sample_id: [] for s in samples}
    group = np.unique([s.group for s in samples], return_inverse=True)[1]
    same_group = group[:, None] == group[None, :]
    similarity = _similarity(samples)
    decided = [None if s.unknown else s.class_id for s in samples]
    place = {each: i for i, each in enumerate(dict.fromkeys(decided))}
    decision = np.array([place[each] for each in decided])
    same = decision[:, None] == decision[None, :]
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    apart = similarity[upper & ~same & np.isfinite(similarity)]
    threshold = float(np.quantile(apart, 1 - FALSE_PAIR_RATE)) if len(apart) >= MIN_PAIRS else np.inf
    together = same_group | (same & (similarity > threshold))
    np.fill_diagonal(together, False)
    order = np.argsort(-np.where(same_group, 2.0, similarity), axis=1, kind="stable")
    return {
        s.sample_id: [samples[j].sample_id for j in order[i] if together[i, j]][:MAX_ALIKE]
        for i, s in enumerate(samples)
    }


def _similarity(samples: Sequence[Sample]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return cosines (n, n) of the codes from their mean; minus infinity between feature spaces."""
    found = np.full((len(samples), len(samples)), -np.inf, np.float32)
    spaces = np.array([s.space for s in samples])
    for space in set(spaces.tolist()):
        rows = np.flatnonzero(spaces == space).tolist()
        codes = np.stack([samples[i].code for i in rows]).astype(np.float32)
        codes -= codes.mean(0)
        codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-6)
        found[np.ix_(rows, rows)] = codes @ codes.T
    return found
