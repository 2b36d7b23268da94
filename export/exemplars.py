"""Which samples of a large set keep their codes in a bundle: the exemplars. The others become exact sums.

What a device can do with a base sample besides learning from it needs its code: correct it, withdraw it, leave
its group out to score the head. So exemplars are whole groups, or the score would leave out half of a part and
judge it by the other half. They are spread evenly over the classes, since the score weighs classes alike. Those
that the backbone was not trained on come first, since only they can be scored.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.errors import ExportError

MAX_BASE_CODES: Final = 10_000
"""Codes of base samples in a bundle, by default. A trial scores all of them, and then takes some seconds of a
core at d = 1280 (docs/head.md, section 9)."""


def check_limit(groups: Sequence[str], limit: int) -> None:
    """Refuse a limit that would leave nothing to score, before the work is done.

    Raises:
        ExportError: fewer than two groups are at most half of it, and there are more images than it.
    """
    sizes = sorted(Counter(groups).values())
    if len(groups) > limit and (len(sizes) < 2 or sizes[1] > limit // 2):
        raise ExportError(
            f"--max-base-codes {limit} leaves no two whole groups to score a head by",
            hint=f"The set needs {2 * sizes[1]} at least, or finer groups."
            if len(sizes) > 1
            else "All images are one group: name finer ones.",
        )


def exemplars(
    labels: Sequence[str],
    groups: Sequence[str],
    fitted: npt.NDArray[np.bool_],
    limit: int,
) -> list[int]:
    """Return the rows that keep their codes, in order: at most `limit`, all of them where there are no more.

    Again and again the class with the fewest exemplars so far, the first by name among equals, gets its next whole
    group that still fits and is at most half of the limit: groups with a sample that is not `fitted` first, then
    by the SHA-256 of their id. So the choice depends on the set only, not on its order, and is the same in every
    precision.

    Raises:
        ExportError: as `check_limit`.

    >>> exemplars(["a", "a", "a", "b", "b"], ["1", "1", "2", "3", "4"], np.zeros(5, bool), 4)
    [0, 1, 3, 4]
    """
    check_limit(groups, limit)
    if len(labels) <= limit:
        return list(range(len(labels)))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    order = sorted(
        rows_of, key=lambda g: (bool(fitted[rows_of[g]].all()), hashlib.sha256(g.encode()).digest()), reverse=True
    )
    waiting: dict[str, list[str]] = defaultdict(list)  # groups of each class, the next at the end
    for group in order:
        for label in {labels[row] for row in rows_of[group]}:
            waiting[label].append(group)
    counts = dict.fromkeys(waiting, 0)
    heap = sorted((0, label) for label in waiting)
    taken: set[str] = set()
    left = limit
    while heap:
        count, label = heapq.heappop(heap)
        if count != counts[label]:  # it came along in another class's group
            heapq.heappush(heap, (counts[label], label))
            continue
        while waiting[label]:
            group = waiting[label].pop()
            if group not in taken and len(rows_of[group]) <= min(left, limit // 2):
                taken.add(group)
                left -= len(rows_of[group])
                for row in rows_of[group]:
                    counts[labels[row]] += 1
                heapq.heappush(heap, (counts[label], label))
                break
    return [row for row, group in enumerate(groups) if group in taken]


def said(labels: Sequence[str], rows: Sequence[int]) -> str | None:
    """Return what the user should know of a bundle whose rows keep their codes; None where all do."""
    if len(rows) == len(labels):
        return None
    without = sorted(set(labels) - {labels[row] for row in rows})
    none = f" No image of {', '.join(without)} has a code: its groups are too large." if without else ""
    return (
        f"{len(labels) - len(rows)} of {len(labels)} images are in the bundle as sums, without their codes. "
        "Devices learn from them as from the others, to the same head; they cannot correct or withdraw them, and "
        f"their scores do not cover them.{none} A larger --max-base-codes keeps more codes."
    )
