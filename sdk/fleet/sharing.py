"""The union's way to devices: each new stretch once to all, and pages to those who ask for what they missed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdk.fleet.registry import LogReader
from sdk.fleet.saying import Saying
from sdk.fleet.store import FleetStore, Ledger
from sdk.labels import Record
from sdk.mqtt import Publication


class Sharing:
    """How much of each channel's union has been told, and to whom more of it is on its way.

    Args:
        store: The fleet.
        saying: Puts it into messages.
    """

    def __init__(self, store: FleetStore, saying: Saying) -> None:
        self._store = store
        self._saying = saying
        self._shared: dict[str, int] = {}  # channel -> how much of its union has been published
        self._readers: dict[str, tuple[str, LogReader]] = {}  # device -> its channel, how far it is

    def begin(self, channel: str, length: int) -> None:
        """Note how long a channel's union was when this service began; later calls change nothing."""
        self._shared.setdefault(channel, length)

    def share(self, channel: str, first: int, records: Sequence[Record]) -> list[Publication]:
        """Return a stretch that was committed, for all devices of its channel."""
        out = list(self._saying.stretch(channel, first, records))
        if self._shared[channel] == first - 1:
            self._shared[channel] += len(records)
        return out

    def unshared(self, ledger: Ledger) -> Iterator[tuple[str, int, list[Record]]]:
        """Yield, with channel and first position, what is in the unions and was not shared.

        That is what a person decided by a command (`Ledger.decide`), and what came between two of these.
        """
        for channel, shared in list(self._shared.items()):
            if records := ledger.records(channel, shared + 1):
                yield channel, shared + 1, records

    def want(self, device: str, channel: str, log_from: int, length: int, now: float) -> None:
        """A device asks for its channel's union from a position on; one that is at its end needs nothing more."""
        if log_from == length + 1:
            self.away(device)
        elif device in self._readers:
            self._readers[device][1].want(log_from, now)
        else:
            self._readers[device] = (channel, LogReader(log_from, now))

    def away(self, device: str) -> None:
        """A device needs no pages any more, until it asks again."""
        self._readers.pop(device, None)

    def forget(self) -> None:
        """What was on its way to anybody is lost; they ask again."""
        self._readers.clear()

    @property
    def busy(self) -> bool:
        """Whether there are pages to send."""
        return any(reader.may_send for _, reader in self._readers.values())

    def pages(self, room_bytes: int, now: float) -> list[Publication]:
        """Return pages for those who asked, as many as there is room for; the last one may go beyond."""
        out: list[Publication] = []
        sending = {name: known for name, known in self._readers.items() if known[1].may_send}
        if not sending or room_bytes <= 0:
            return out
        with self._store.read() as ledger:
            for name, (channel, reader) in sending.items():
                if room_bytes <= 0:
                    break
                # To the end of the queue, so that all readers get their pages in turn.
                del self._readers[name]
                records = ledger.records(channel, reader.next)
                self._readers[name] = (channel, reader)
                if not records:
                    reader.at_end()
                for page in self._saying.page(name, channel, reader.next, records):
                    out.append(page)
                    room_bytes -= len(page.payload)
                    reader.sent(reader.next + len(records) - 1, len(page.payload), now)
        return out
