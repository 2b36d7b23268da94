"""How much each device may say: its log is kept for good, by the fleet and on every device of its channel.

A station that was by itself for years says all of it at once when it joins, and a new backbone makes every device
say its labels' codes anew. So much is taken as it comes. Beyond it, and much sooner of a device that is
quarantined, what it says is refused for now, and taken in its turn. No files, no clock; who is quarantined is read
from the fleet's own log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sdk.fleet.registry import Budgets, Room, said_bytes
from sdk.fleet.store import Ledger
from sdk.labels import Quarantine, Record
from sdk.sources import Hold, Holds, Order

MIB: Final = 1024 * 1024
LOG_BURST_BYTES: Final = 64 * MIB
LOG_BYTES_PER_S: Final = MIB / 3600
"""At once 36,000 codes of 1,584 numbers, seven moves to a new backbone of a station with 5,000 labels; then 570 an
hour, 24 MiB a day."""
HELD_BURST_BYTES: Final = MIB
HELD_BYTES_PER_S: Final = MIB / 16 / 3600
"""Of a device that is quarantined: 570 such codes, then 35 an hour. Its people may go on labelling."""


class Spending:
    """What each device may say now."""

    def __init__(self) -> None:
        self._budgets = Budgets(LOG_BURST_BYTES, LOG_BYTES_PER_S)
        self._held = Budgets(HELD_BURST_BYTES, HELD_BYTES_PER_S)
        self._holds: dict[str, tuple[int, Holds]] = {}  # by channel, and how far its own log was read

    def room(self, ledger: Ledger, device: str, channel: str, now: float) -> Room:
        """Return how much a device may say at a moment of a clock that never goes back."""
        left = self._budgets.left(device, now)
        if not self._is_held(ledger, device, channel):
            return Room(left, "64 MiB may come at once, then 1 an hour")
        return Room(
            min(left, self._held.left(device, now)),
            "while the device is quarantined 1 MiB may come at once, then 64 KiB an hour",
        )

    def spend(self, device: str, records: Iterable[Record], now: float) -> None:
        """Note that these were taken."""
        size_bytes = sum(map(said_bytes, records))
        self._budgets.spend(device, size_bytes, now)
        self._held.spend(device, min(size_bytes, self._held.left(device, now)), now)

    def _is_held(self, ledger: Ledger, device: str, channel: str) -> bool:
        through, holds = self._holds.get(channel, (0, Holds()))
        end = ledger.own_end(channel)
        if end is not None and end[0] != through:
            if end[0] < through:  # the database is another
                through, holds = 0, Holds()
            for entry in (record.entry for record in ledger.own(channel, after=through)):
                if isinstance(body := entry.body, Quarantine):
                    hold = Hold(body.device, body.source, body.through, body.reason, body.operator, 0)
                    holds.put(Order(entry.counter, entry.device), hold)
            self._holds[channel] = end[0], holds
        last = holds.last(device)
        return last is not None and last.through > ledger.last_counter(device)
