"""A store on a disk that refuses its k-th operation, for every k; `test_disk_errors` runs it."""

from __future__ import annotations

import ctypes
import errno
import json
import sys
from pathlib import Path

from device_agent.store import Store, check_store
from sdk.errors import StoreFull
from sdk.labels import Record
from tests.test_store import LIMITS, image_of, label, sample_of

MOST = 200
"""Operations that one sample and its label can take at most; the loop ends by itself long before."""


def main(root: Path) -> None:
    """Store and label with every single operation refused once, and print what came of it."""
    disk_fails = ctypes.CDLL(None).disk_fails
    counts = {"operations": 0, "refused": 0, "acknowledged": 0, "samples_lost": 0}
    taken: list[Record] = []
    number = 0
    for error in (errno.ENOSPC, errno.EIO):
        for length in (1, 1_000_000):  # once, and until somebody makes room
            with Store.open(root / "data", "line-1", limits=LIMITS) as store:
                for after in range(MOST):
                    number += 1
                    sample = sample_of(number)
                    disk_fails(after, length, error)
                    try:
                        store.samples.put(sample, image_of(number))
                    except StoreFull:
                        counts["samples_lost"] += 1
                    try:
                        taken += label(store, sample)
                        counts["acknowledged"] += 1
                    except StoreFull:
                        counts["refused"] += 1
                    if not disk_fails(-1, 0, 0):
                        break
                    counts["operations"] += 1
                    # The disk takes writes again: no restart is needed.
                    taken += label(store, sample)
                    assert list(store.log.records())[-1] == taken[-1]
                else:
                    raise AssertionError("it never got through")
                assert list(store.log.records()) == taken, "what was acknowledged, and nothing else"
            with Store.open(root / "data", "line-1", limits=LIMITS) as store:
                assert list(store.log.records()) == taken
    facts = check_store(root / "data" / "store.sqlite3", whole=True)
    assert facts.entries == len(taken)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
