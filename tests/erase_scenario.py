"""A device that erases a picture as one that shows a person; `test_erasing` cuts its power."""

from __future__ import annotations

import sys
from pathlib import Path

from device_agent.limits import StoreLimits
from device_agent.store import Store
from tests.test_store import image_of, label, sample_of

LIMITS = StoreLimits(reserve_bytes=0)
KEPT, ERASED = sample_of(1), sample_of(2)


def main(folder: Path) -> None:
    """Keep two pictures on disk, and erase one."""
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        for sample, image in ((KEPT, image_of(1)), (ERASED, image_of(2))):
            store.samples.put(sample, image)
            label(store, sample)
        label(store, ERASED, None)
        store.samples.erase(ERASED.sample_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
