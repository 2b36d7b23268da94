"""A device that erases a picture, or lets the oldest go where there are too many; `test_erasing` ends it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from device_agent.limits import StoreLimits
from device_agent.store import Store
from tests.test_store import image_of, label, sample_of

LIMITS: Final = StoreLimits(reserve_bytes=0)
KEPT, ERASED = sample_of(1), sample_of(2)
FEW: Final = {
    "too many": replace(LIMITS, keep_samples=3),
    "too large": replace(LIMITS, max_image_bytes=3 * len(image_of(10))),
}
"""Limits by what there is then."""


def erase(folder: Path) -> None:
    """Keep two pictures on disk, and erase one."""
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        for sample, image in ((KEPT, image_of(1)), (ERASED, image_of(2))):
            store.samples.put(sample, image)
            label(store, sample)
        label(store, ERASED, None)
        store.samples.erase(ERASED.sample_id)


def go(folder: Path, limits: StoreLimits) -> None:
    """See seven parts where three are kept, one of them twice."""
    with Store.open(folder, "line-1", limits=limits) as store:
        for number in (10, 11, 12, 13, 10, 14, 15, 16):
            store.samples.put(sample_of(number), image_of(number))


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "erase":
        erase(where)
    else:
        go(where, FEW[what])
