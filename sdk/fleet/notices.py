"""What the devices of a channel should know: its metadata, and the release that each should have.

All of it is retained, and said again on every connect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from sdk.fleet.admission import Admission
from sdk.fleet.channel_ledger import Device
from sdk.fleet.saying import Saying
from sdk.fleet.store import FleetStore, Ledger
from sdk.mqtt import Publication
from sdk.wire import ChannelMeta

META_EVERY_S: Final = 1.0
"""A channel's metadata follows its log no faster than this: it is for those who missed a segment."""


class Notices:
    """Says it, when it is due.

    Args:
        store: The fleet.
        saying: Puts it into messages.
        admission: Which devices have an assignment.
    """

    def __init__(self, store: FleetStore, saying: Saying, admission: Admission) -> None:
        self._store = store
        self._saying = saying
        self._admission = admission
        self._due: dict[str, float] = {}  # channel -> its metadata not before
        self._sent: dict[str, float] = {}

    def notice(self, ledger: Ledger, channel: str) -> list[Publication]:
        """Return a channel's metadata and its devices' assignments."""
        return [self._meta(ledger, channel), *self.assignments(ledger, ledger.devices(channel))]

    def assignments(self, ledger: Ledger, devices: Sequence[Device]) -> Iterator[Publication]:
        """Return the release that each of these devices should have."""
        for device, desired in ledger.desired(filter(self._admission.may_speak, devices)):
            yield self._saying.desired(device.device, desired)

    def _meta(self, ledger: Ledger, channel: str) -> Publication:
        current = ledger.current(channel)
        meta = ChannelMeta(
            channel=channel,
            release=None if current is None else current.ref,
            log_length=ledger.log_length(channel),
            restored=ledger.restored(channel) or msgspec.UNSET,
        )
        self._store.mark(ledger, channel)
        return self._saying.meta(meta)

    def grown(self, channel: str, now: float) -> None:
        """Note that a channel's union has grown: its metadata follow, after those that were sent last."""
        self._due.setdefault(channel, max(now, self._sent.get(channel, now) + META_EVERY_S))

    def decided(self, channel: str) -> None:
        """Note that a person has decided something in a channel: its metadata follow, if none are due already."""
        self._due.setdefault(channel, 0.0)

    def restored(self, channel: str) -> None:
        """Note that a channel's union came back from an older copy: its metadata say so at once."""
        self._due[channel] = 0.0

    @property
    def due_at(self) -> float:
        """When metadata are due next; infinity where none are."""
        return min(self._due.values(), default=float("inf"))

    def due(self, now: float, but: Collection[str]) -> list[Publication]:
        """Return the metadata that are due.

        Args:
            now: Seconds of a clock that never goes back.
            but: Channels whose turn has not come.
        """
        due = [channel for channel, at in self._due.items() if at <= now and channel not in but]
        if not due:
            return []
        for channel in due:
            del self._due[channel]
            self._sent[channel] = now
        with self._store.read() as ledger:
            return [self._meta(ledger, channel) for channel in due]
