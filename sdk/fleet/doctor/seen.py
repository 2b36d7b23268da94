"""What a fleet's database says of its devices and log, read once for all who judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sdk.fleet.cli import fleet_overview
from sdk.fleet.store import FleetStore
from sdk.fleet.union_ledger import Arrival

ARRIVALS: Final = 200
"""Entries at the end of each channel's union whose times are looked at."""


@dataclass(frozen=True)
class Seen:
    """A fleet as its database has it.

    Attributes:
        overview: As `sdk.fleet.cli.fleet_overview` says it.
        arrivals: The newest entries that devices have sent, by channel, the newest first.
        lacks_since: Of each device that lacks entries of its channel's union, when the oldest of them came,
            seconds since 1970.
        older: Channels whose union came back from an older copy, and up to which entry it is what it was.
    """

    overview: Mapping[str, Any]
    arrivals: Mapping[str, Sequence[Arrival]] = field(default_factory=dict)
    lacks_since: Mapping[str, float] = field(default_factory=dict)
    older: Mapping[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> list[dict[str, Any]]:
        """Those that were not revoked."""
        return [one for one in self.overview["devices"] if one["revoked_utc"] is None]

    @property
    def wrote_utc(self) -> float | None:
        """When the service last wrote down that it heard a device; None for never."""
        came = [one.received_utc for arrivals in self.arrivals.values() for one in arrivals[:1]]
        return max([*came, *(one["last_seen_utc"] for one in self.overview["devices"])], default=None)


def see(store: FleetStore) -> Seen:
    """Read a fleet.

    Raises:
        FleetError: its database cannot be read.
    """
    overview = fleet_overview(store)
    lengths = {one["channel"]: one["log_length"] for one in overview["channels"]}
    lacks_since: dict[str, float] = {}
    with store.read() as ledger:
        arrivals = {channel: ledger.arrivals(channel, ARRIVALS) for channel in lengths}
        for one in overview["devices"]:
            if one["log_position"] < lengths.get(one["channel"], 0):
                utc = ledger.received_utc(one["channel"], one["log_position"] + 1)
                if utc is not None:
                    lacks_since[one["device"]] = utc
    return Seen(overview, arrivals, lacks_since, store.missing())
