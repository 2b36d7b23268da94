"""Codes lie in one place, and whoever computes with them reads a strip of them at a time.

5,000 codes of 1,584 numbers are 8 MB as int8 and 63 MB as float64. So nothing that learns or scores makes an array
of all of them: it asks a `CodeRows` for the rows of one strip, of which `STRIP_BYTES` is the bound. An array
(n, d) int8 is a `CodeRows`; `Kept` is one whose codes lie on a shelf; `Some` is a choice of another's rows.

A shelf takes codes in and never changes one, so that a live set of yesterday still reads what it read then. The
one here keeps them in memory; a device's reads them from its store. No files here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from sdk.codes import Code, Codes

STRIP_BYTES: Final = 4 * 1024**2
"""Of float64 made from codes at a time, 330 rows at d = 1584. With 2 to 32 MiB it takes as long within a tenth."""
STRIP_ROWS: Final = 2048
"""More at a time is no faster, however short the codes."""
_BLOCK_BYTES: Final = 1024**2
"""By so much a shelf in memory grows: one block is never moved, so nothing is held twice meanwhile."""

Ints = npt.NDArray[np.int64]
Rows = Ints | npt.NDArray[np.bool_] | slice
"""Row numbers, a mask of all rows, or a range."""


class CodeRows(Protocol):
    """Codes (n, d) int8 by their row, wherever they lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """int8."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, rows: Rows, /) -> Codes:
        """Return these rows, (m, d), to be read and not changed."""


class Shelf(Protocol):
    """Where codes lie. A place is a number that only the shelf understands."""

    @property
    def feature_size(self) -> int:
        """d of every code."""

    def put_release(self, codes: Codes) -> Ints:
        """Take in a release's own codes (n, d); return their places (n,)."""

    def put(self, device: str, seq: int, code: Code) -> int:
        """Take in the code (d,) that came with this entry of this device's log; return its place."""

    def read(self, places: Ints) -> Codes:
        """Return the codes (m, d) at these places (m,)."""


class MemoryShelf:
    """A shelf in memory: each code once, in blocks.

    >>> shelf = MemoryShelf(2)
    >>> there = shelf.put_release(np.array([[1, 2], [3, 4]], np.int8)), shelf.put("line-1", 1, np.int8([5, 6]))
    >>> shelf.read(np.array([2, 0])).tolist()
    [[5, 6], [1, 2]]
    """

    def __init__(self, feature_size: int) -> None:
        self._feature_size = feature_size
        self._rows = max(1, _BLOCK_BYTES // feature_size)  # of a block
        self._blocks: list[Codes] = []
        self._used = 0

    @property
    def feature_size(self) -> int:
        """d of every code."""
        return self._feature_size

    def put_release(self, codes: Codes) -> Ints:
        """Take in a release's own codes (n, d); return their places (n,)."""
        return np.array([self._put(code) for code in codes], np.int64)

    def put(self, _device: str, _seq: int, code: Code) -> int:
        """Take in a code (d,); return its place."""
        return self._put(code)

    def _put(self, code: Code) -> int:
        place = self._used
        if place == len(self._blocks) * self._rows:
            self._blocks.append(np.empty((self._rows, self._feature_size), np.int8))
        self._blocks[-1][place % self._rows] = code
        self._used += 1
        return place

    def read(self, places: Ints) -> Codes:
        """Return the codes (m, d) at these places (m,)."""
        found = np.empty((len(places), self._feature_size), np.int8)
        block = places // self._rows
        for number in np.unique(block):
            here = block == number
            found[here] = self._blocks[number][places[here] % self._rows]
        return found


class Kept:
    """The codes at some places of a shelf, in this order."""

    def __init__(self, shelf: Shelf, places: Ints) -> None:
        self._shelf = shelf
        self._places = places

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return len(self._places), self._shelf.feature_size

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """int8."""
        return np.dtype(np.int8)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Rows, /) -> Codes:
        return self._shelf.read(self._places[rows])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        """Return all of them as an array, for those who want one: n d bytes."""
        if copy is False:
            raise ValueError("codes on a shelf are read, so they are copied")
        return self._shelf.read(self._places).astype(dtype or np.int8, copy=False)


class Some:
    """A choice of another's rows, which are read there."""

    def __init__(self, codes: CodeRows, rows: npt.NDArray[np.bool_]) -> None:
        self._codes = codes
        self._rows = np.flatnonzero(rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        return len(self._rows), self._codes.shape[1]

    @property
    def dtype(self) -> np.dtype[np.int8]:
        """int8."""
        return self._codes.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Rows, /) -> Codes:
        return self._codes[self._rows[rows]]


def at_hand(codes: CodeRows) -> CodeRows:
    """Return codes for one who reads them many times: read now where all of them are no more than a strip."""
    n, d = codes.shape
    return codes[:] if n * d <= STRIP_BYTES else codes


def chosen(codes: CodeRows, rows: npt.NDArray[np.bool_]) -> CodeRows:
    """Return the rows where `rows` (n,) is true, unread; the same object where that is all of them."""
    return codes if rows.all() else Some(codes, rows)


def strip_rows(feature_size: int) -> int:
    """Return how many rows are one strip: as many as `STRIP_BYTES` of float64 hold, at most `STRIP_ROWS`."""
    return max(1, min(STRIP_ROWS, STRIP_BYTES // (8 * feature_size)))


def strips(rows: Ints, feature_size: int) -> Iterator[Ints]:
    """Yield row numbers in turn, a strip at a time.

    >>> [len(strip) for strip in strips(np.arange(1200), 1024)]
    [512, 512, 176]
    """
    step = strip_rows(feature_size)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
