"""What a service says, as messages on their topics: signed where the fleet has keys.

What is said to whom and when is decided elsewhere: `sdk.fleet.notices`, `sdk.fleet.sharing`, `sdk.fleet.seeding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdk.errors import KeyRefused
from sdk.fleet.reports import Report
from sdk.labels import Record
from sdk.mqtt import Publication
from sdk.trust.repository import OnlineTrust
from sdk.wire import (
    WIRE_VERSION,
    Ack,
    ChannelMeta,
    Desired,
    LogSegment,
    Topics,
    batches,
    encode_json,
    encode_msgpack,
)


class Saying:
    """Puts it into messages.

    Args:
        topics: Where they go.
        trust: Signs with the fleet's online key; None where the fleet has no keys.
        report: Told of a key that cannot be used.
    """

    def __init__(self, topics: Topics, trust: OnlineTrust | None, report: Report) -> None:
        self._topics = topics
        self._trust = trust
        self._report = report
        self._fault: str | None = None  # complained about once

    def ack(self, device: str, ack: Ack) -> Publication:
        """Return what a device is told of its own log: how much of it is committed."""
        if self._trust is not None:
            ack = self._trust.sign_ack(ack, device)
        return Publication(self._topics.ack(device), encode_json(ack))

    def stretch(self, channel: str, first: int, records: Sequence[Record]) -> Iterator[Publication]:
        """Return a stretch of a channel's union, from a position on, for all of its devices."""
        return self._segments(self._topics.log(channel), channel, first, records)

    def page(self, device: str, channel: str, first: int, records: Sequence[Record]) -> Iterator[Publication]:
        """Return the same for a device that asked for it."""
        return self._segments(self._topics.down_log(device), channel, first, records)

    def _segments(self, topic: str, channel: str, first: int, records: Sequence[Record]) -> Iterator[Publication]:
        for batch in batches(records):
            segment = LogSegment(WIRE_VERSION, channel, first, batch)
            if self._trust is not None:
                segment = self._trust.sign(segment)
            yield Publication(topic, encode_msgpack(segment))
            first += len(batch)

    def meta(self, meta: ChannelMeta) -> Publication:
        """Return a channel's metadata."""
        return Publication(self._topics.meta(meta.channel), encode_json(meta), retain=True)

    def desired(self, device: str, desired: Desired) -> Publication:
        """Return a device's assignment."""
        return Publication(self._topics.desired(device), encode_json(desired), retain=True)

    def chunk(self, digest: str, chunk: bytes) -> Publication:
        """Return a chunk of a release; an empty one takes it off the broker."""
        return Publication(self._topics.chunk(digest), chunk, retain=True)

    def trust(self, *, again: bool = False) -> list[Publication]:
        """Return the signed metadata where it is new, or with `again` as it is; nothing without keys."""
        if self._trust is None:
            return []
        try:
            message = self._trust.message() if again else self._trust.poll()
        except KeyRefused as error:
            if str(error) != self._fault:
                self._fault = str(error)
                self._report("trust", {"error": str(error)})
            return []
        self._fault = None
        return [] if message is None else [Publication(self._topics.trust(), message, retain=True)]
