"""Which classes were made one, and the id that stands for them: the smallest of those made one.

Of two sets of ids the smaller one comes under the larger, so the way to what stands for an id is at most as long
as the binary logarithm of their number, whoever names what in whatever order: a log of merges costs as much as it
is long.

No files, no clock.
"""

from __future__ import annotations


class Merges:
    """Sets of class ids that were made one.

    >>> merges = Merges()
    >>> merges.join(b"b", b"c"), merges.join(b"a", b"c"), merges.join(b"a", b"b")
    (True, True, False)
    >>> merges.canonical(b"c"), merges.canonical(b"d"), sorted(merges.merged())
    (b'a', b'd', [b'b', b'c'])
    """

    def __init__(self) -> None:
        self._above: dict[bytes, bytes] = {}
        self._size: dict[bytes, int] = {}
        self._smallest: dict[bytes, bytes] = {}  # of the set below an id that is below none

    def join(self, one: bytes, other: bytes) -> bool:
        """Make two classes one; return whether they were not before."""
        low, high = sorted((self._top(one), self._top(other)), key=lambda top: self._size.get(top, 1))
        if low == high:
            return False
        # In this order: `canonical` is asked meanwhile, and says of each id what held before or what holds now.
        self._smallest[high] = min(self._smallest.get(low, low), self._smallest.get(high, high))
        self._size[high] = self._size.get(low, 1) + self._size.get(high, 1)
        self._above[low] = high
        return True

    def canonical(self, class_id: bytes) -> bytes:
        """Return the id that stands for this class. Takes no lock."""
        top = self._top(class_id)
        return self._smallest.get(top, top)

    def merged(self) -> dict[bytes, bytes]:
        """Return the id that stands for each one that does not stand for itself."""
        pairs = ((class_id, self.canonical(class_id)) for class_id in (*self._above, *self._smallest))
        return {class_id: canonical for class_id, canonical in pairs if class_id != canonical}

    def __bool__(self) -> bool:
        """Return whether any two are one."""
        return bool(self._above)

    def _top(self, class_id: bytes) -> bytes:
        while (above := self._above.get(class_id)) is not None:
            class_id = above
        return class_id
