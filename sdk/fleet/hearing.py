"""Whether the fleet's service hears its broker, written down for whoever looks.

What devices last said of themselves is old while it does not: then devices, page and metrics say "unknown" of
those that were online, and no rollout decides anything. So it is while another service, of a copy of the fleet's
directory, takes its session again and again: what devices say goes to the one or the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sdk.fleet.reports import Report
from sdk.fleet.store import FleetStore

PATIENCE_S: Final = 2.0
"""A broker that was started anew is there again by then: no news."""


NAMESAKE: Final = "another fleet service with this one's name is at this broker"


class Hearing:
    """Notes and reports when the broker goes away, and when it is back.

    Args:
        store: The fleet.
        address: The broker's.
        report: Told each time.
        clock: Seconds of a clock that never goes back.
        clock_utc: Seconds since 1970.
    """

    def __init__(
        self,
        store: FleetStore,
        address: str,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
        clock_utc: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._address = address
        self._report = report
        self._clock = clock
        self._clock_utc = clock_utc
        with store.read() as ledger:
            away = ledger.broker_away()
        self._noted_utc = None if away is None else away.since_utc
        self._noted_contested = away is not None and away.contested
        self._silent_since: float | None = None

    def look(self, *, connected: bool, contested: bool = False) -> None:
        """Note what has changed. Cost: nothing where nothing has.

        Args:
            connected: The broker is there.
            contested: Another service takes the session again and again.

        Raises:
            DatabaseAway: it is noted when this is called again.
        """
        away_utc: float | None = None
        if contested:
            self._silent_since = None
            away_utc = (self._noted_utc if self._noted_contested else None) or self._clock_utc()
        elif connected:
            self._silent_since = None
        else:
            now = self._clock()
            self._silent_since = now if self._silent_since is None else self._silent_since
            if now < self._silent_since + PATIENCE_S:
                return
            away_utc = self._noted_utc or self._clock_utc() - PATIENCE_S
        if (away_utc, contested) == (self._noted_utc, self._noted_contested):
            return
        with self._store.write() as ledger:
            ledger.note_broker(self._address, away_utc, contested=contested)
        self._noted_utc, self._noted_contested = away_utc, contested
        state = "contested" if contested else "answers again" if away_utc is None else "away"
        more = {"reason": f"{NAMESAKE}: stop one of the two"} if contested else {}
        self._report("broker", {"broker": self._address, "state": state, **more})
