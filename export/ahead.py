"""What the next steps need, made by threads while a GPU computes this one.

A step's batch follows from its number alone, so it does not matter when it is made, nor in which order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

from export.graph import cores

MAX_THREADS: Final = 16
"""More hold each other up: between two of torch's calls a thread needs the interpreter's lock."""

_T = TypeVar("_T")


class Ahead(Generic[_T]):
    """Calls of a function of the step's number, made before they are asked for.

    Args:
        make: Safe to be called by several threads at once.
        threads: 0 makes everything when it is asked for: where the processor does the training too.
    """

    def __init__(self, make: Callable[[int], _T], threads: int) -> None:
        self._make = make
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "views") if threads else None
        self._coming: dict[int, Future[_T]] = {}

    def get(self, step: int, total: int) -> _T:
        """Return what was made for a step, and have that of the steps after it made, as far as the last."""
        if self._pool is None:
            return self._make(step)
        for coming in range(step, min(step + self.threads + 1, total)):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(self._make, coming)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Make no more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def threads_beside(device_type: str) -> int:
    """Return how many threads make batches for training on a device of this type (`cpu`, `cuda`)."""
    return 0 if device_type == "cpu" else min(MAX_THREADS, cores())
