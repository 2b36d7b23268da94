"""Many equal things kept once: what a long log needs in memory beside what it says.

Each entry is decoded into objects of its own. 5,000 of them name the same device, operator and classes, and their
numbers come in turn.
"""

from __future__ import annotations

from typing import TypeVar

Name = str | bytes | None
N = TypeVar("N", bound=Name)


class Names:
    """One object for all that are equal."""

    def __init__(self) -> None:
        self._few: dict[Name, Name] = {}
        self._last: dict[str, Name] = {}

    def once(self, name: N) -> N:
        """Return the one object for this name, which is one of few: a device, an operator, a class."""
        return self._few.setdefault(name, name)  # type: ignore[return-value]

    def again(self, kind: str, name: N) -> N:
        """Return the last name of its kind where it is equal to that.

        For names of which there are many: a label and its code come one after the other, and so do the samples of
        one group.
        """
        if self._last.get(kind) != name:
            self._last[kind] = name
        return self._last[kind]  # type: ignore[return-value]


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
