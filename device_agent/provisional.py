"""What changed in the live set, and the head that serves meanwhile: the latest one, updated by these few changes.

A canonical head takes a solve, O(d^3) and beside frames up to a second; an update O(d^2) for each change. So an
updated head serves until the canonical one of the same live set is there. The history has its number, and nobody
compares it between devices.

Pure functions: no lock, no clock, no store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import numpy as np

from sdk.errors import HeadwayError
from sdk.head import Head
from sdk.liveset import LiveRow

AT_ONCE: Final = 16
"""More changes than this, as a fleet's log brings them, wait for the solve. At d = 1584 these take 9 ms and the
solve 84; and until then each makes a decision slower by O(d)."""

Changes = dict[bytes, tuple[LiveRow | None, LiveRow | None]]
"""Rows of the live set, before and after, by sample."""


def joined(earlier: Changes, later: Changes) -> Changes:
    """Return changes, one after the other, as one."""
    both = dict(earlier)
    for sample, (before, after) in later.items():
        both[sample] = (both[sample][0] if sample in both else before, after)
    return both


def real(changes: Changes) -> list[tuple[LiveRow | None, LiveRow | None]]:
    """Return the changes that change what is learned: a label given again with the same class does not."""
    return [(before, after) for before, after in changes.values() if not _same(before, after)]


def updated(
    head: Head,
    changes: Changes,
    *,
    learned: Collection[bytes],
    canonical: Mapping[bytes, bytes],
    is_own: Callable[[LiveRow], bool],
) -> Head | None:
    """Return a head after changes; None where it takes a solve.

    Args:
        head: Of the live set before the changes.
        changes: Since then.
        learned: Class ids in the moments that it was solved from, before merges.
        canonical: The class id that stands for each of these and of the changes' now.
        is_own: Whether a row was labelled by this station's operators.
    """
    some = real(changes)
    if not head.updatable or len(some) > AT_ONCE:
        return None
    if any(canonical.get(class_id, class_id) != class_id for class_id in head.class_ids):
        return None  # a merge: two columns become one
    if not {canonical[class_id] for class_id in learned} <= set(head.class_ids):
        return None  # a merge that no longer counts: one column becomes two
    try:
        for before, after in some:
            if after is not None:
                head = head.with_sample(after.code, canonical[after.class_id], own=is_own(after))
            if before is not None:
                head = head.without_sample(before.code, canonical[before.class_id], own=is_own(before))
    except HeadwayError:
        return None
    return head


def _same(one: LiveRow | None, other: LiveRow | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.class_id, one.device) == (other.class_id, other.device) and (
        one.place == other.place or np.array_equal(one.code, other.code)
    )
