"""Many equal things kept once: what a long log needs in memory beside what it says.

Each entry is decoded into objects of its own. 5,000 of them name the same device, operator and classes, and their
numbers come in turn.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """One object for all values that are equal, of which there are few: devices, operators, classes.

    >>> once = Once[bytes]()
    >>> once(bytes([1, 2])) is once(bytes([1, 2]))
    True
    """

    def __init__(self) -> None:
        self._kept: dict[T, T] = {}

    def __call__(self, value: T) -> T:
        """Return the one object for this value."""
        return self._kept.setdefault(value, value)


class Again(Generic[T]):
    """One object for values that are equal and come one after the other, of which there are many.

    A label and its code name one sample, and the samples of a part one group.
    """

    def __init__(self) -> None:
        self._last: T | None = None

    def __call__(self, value: T) -> T:
        """Return the object that came last, where this value is equal to it."""
        if self._last is None or self._last != value:
            self._last = value
        return self._last


class Numbers:
    """Whole numbers from 1 of which nearly all come in turn: of a log of any length, one number.

    >>> seen = Numbers()
    >>> for seq in (1, 2, 4):
    ...     seen.add(seq)
    >>> [seq in seen for seq in (1, 2, 3, 4)]
    [True, True, False, True]
    """

    def __init__(self) -> None:
        self._through = 0
        self._above: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number <= self._through or number in self._above

    def add(self, number: int) -> None:
        """Take one in."""
        self._above.add(number)
        while self._through + 1 in self._above:
            self._through += 1
            self._above.remove(self._through)
