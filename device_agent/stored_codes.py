"""Codes of the label log, read from the store when somebody computes with them.

A code is in the log already; a second copy in memory would be 1.6 kB for each sample at d = 1584, for as long as
the agent runs (docs/decisions/0044). The release's own codes, whose number is fixed, stay in memory. The log only
grows, so a place never changes what it means.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from device_agent.courtesy import breathe
from device_agent.database import Database, damaged
from sdk.codes import Code, Codes
from sdk.shelf import Ints

_AT_ONCE: Final = 100
"""Codes read per query: under a millisecond, so that no frame waits longer for the database."""
_READ: Final = f"SELECT arrival, code FROM records WHERE arrival IN ({', '.join('?' * _AT_ONCE)})"
"""One statement however many are read, the rest of its marks empty: SQLite keeps 128 statements, and with one for
each number of marks they grew by 1.1 MiB while labels came."""


class StoredCodes:
    """A shelf (`sdk.shelf`) over a store's log and a release's codes.

    Places from 0 are the release's; below that, minus the arrival number of a record.

    Args:
        db: The store's.
        feature_size: d of the release.
    """

    def __init__(self, db: Database, feature_size: int) -> None:
        self._db = db
        self._release: Codes = np.zeros((0, feature_size), np.int8)

    @property
    def feature_size(self) -> int:
        """d of every code."""
        return int(self._release.shape[1])

    def put_release(self, codes: Codes) -> Ints:
        """Take in a release's own codes (n, d); return their places (n,)."""
        start = len(self._release)
        self._release = np.concatenate([self._release, codes])
        return np.arange(start, len(self._release))

    def put(self, device: str, seq: int, _code: Code) -> int:
        """Return the place of a code that the log has.

        Raises:
            LookupError: it has no such entry.
        """
        arrival = self._db.value("SELECT arrival FROM records WHERE device = ? AND seq = ?", device, seq)
        if arrival is None:
            raise LookupError(f"entry {seq} of {device} is not in the store")
        return -int(arrival)

    def read(self, places: Ints) -> Codes:
        """Return the codes (m, d) at these places (m,).

        Raises:
            StoreCorrupt: the log lost one, or it has another length.
        """
        found = np.empty((len(places), self.feature_size), np.int8)
        released = places >= 0
        found[released] = self._release[places[released]]
        logged = np.flatnonzero(~released)
        # In the order of the file, whatever the caller's: neighbours share its pages.
        logged = logged[np.argsort(-places[logged], kind="stable")]
        for start in range(0, len(logged), _AT_ONCE):
            breathe()
            at = logged[start : start + _AT_ONCE]
            arrivals = (-places[at]).tolist()
            codes = dict(self._db.rows(_READ, *arrivals, *[None] * (_AT_ONCE - len(arrivals))))
            for row, arrival in zip(at.tolist(), arrivals, strict=True):
                code = codes.get(arrival)
                if code is None or len(code) != self.feature_size:
                    raise damaged(f"the code of record {arrival} is gone or has another length")
                found[row] = np.frombuffer(code, np.int8)
        return found
