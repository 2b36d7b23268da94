"""The union of a channel's label logs in one transaction of the fleet's database.

A label entry is stored once, in the order of its device's log, and gets the next position of its channel's union
in the same transaction: positions have no gaps, and what was acknowledged has one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
from sqlalchemy import func, select

from sdk.compact import Once
from sdk.errors import UnknownDevice
from sdk.fleet import fleetlog
from sdk.fleet.channel_ledger import ChannelLedger
from sdk.fleet.registry import Room, Standing, Verdict, judge
from sdk.fleet.tables import ChannelRow, DeviceRow, EntryRow, RestoreRow
from sdk.labels import (
    FLEET_LOG_PREFIX,
    MAX_COUNTER,
    MAX_COUNTER_JUMP,
    Body,
    Chain,
    CodeRecord,
    Entry,
    KeepApart,
    Label,
    MergeClasses,
    Quarantine,
    Record,
    entry_hash,
    fleet_log_of,
)
from sdk.sources import MERGES
from sdk.wire import MAX_BATCH_RECORDS, MAX_RESTORED, Restored, batches

MERGES_REASON: Final = "in a fleet its people merge classes"


@dataclass(frozen=True)
class Taken:
    """What became of one device's batch: the verdict, and where its records went in the channel's union."""

    device: str
    channel: str
    first_position: int
    verdict: Verdict


class LastCodes:
    """Which samples have a code left in each feature space, by the records that count (docs/labels.md, 2).

    A device's, of a sample that it has labelled, after the last of the fleet's; else the last of the fleet's.
    Quarantines aside: a code that may return is one.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[bytes, bytes], dict[str, tuple[int, str, bool]]] = {}
        self._labelled: dict[bytes, frozenset[str]] = {}
        self._devices = Once[frozenset[str]]()

    def add(self, record: Record) -> None:
        """Take in one record; order does not matter."""
        entry, body = record.entry, record.entry.body
        if isinstance(body, Label):
            known = self._labelled.get(body.sample, frozenset())
            if entry.device not in known:
                self._labelled[body.sample] = self._devices(known | {entry.device})
        if not isinstance(body, CodeRecord):
            return
        fleets = entry.device.startswith(FLEET_LOG_PREFIX)
        if record.code is None and not fleets:
            return
        by, said = "" if fleets else entry.device, (entry.counter, entry.device, record.code is not None)
        words = self._last.setdefault((body.space, body.sample), {})
        words[by] = max(said, words.get(by, said))

    def left(self) -> dict[tuple[bytes, bytes], bool]:
        """Return it by feature space and sample."""
        return {key: left for key, words in self._last.items() if (left := self._left(key[1], words)) is not None}

    def _left(self, sample: bytes, words: Mapping[str, tuple[int, str, bool]]) -> bool | None:
        labelled = self._labelled.get(sample, frozenset())
        said = max((word for by, word in words.items() if by in labelled or not by), default=None)
        return None if said is None else said[2]

    def erased_for_good(self, samples: Collection[bytes]) -> frozenset[bytes]:
        """Return those of some samples that had codes, and have none left in any space."""
        if not samples:
            return frozenset()
        spoken: dict[bytes, bool] = {}
        for (_, sample), words in self._last.items():
            if sample in samples and (left := self._left(sample, words)) is not None:
                spoken[sample] = left or spoken.get(sample, False)
        return frozenset(sample for sample, left in spoken.items() if not left)


class Arrival(NamedTuple):
    """When an entry was made by its device's clock, and when it came here by ours, seconds since 1970."""

    device: str
    said_utc: float
    received_utc: float


class UnionLedger(ChannelLedger):
    """What all devices of a channel have said."""

    def take(
        self,
        device: str,
        records: Sequence[Record],
        feature_sizes: Mapping[bytes, int],
        class_entries: int | None = None,
        classes: AbstractSet[bytes] = frozenset(),
        room: Room | None = None,
    ) -> Taken:
        """Store what a device's batch adds to its log, at the end of its channel's union.

        Args:
            device: Whose.
            records: The batch.
            feature_sizes, class_entries, classes, room: As of `sdk.fleet.registry.judge`.

        Raises:
            UnknownDevice: the device was never registered.
        """
        row = self._session.get(DeviceRow, device, with_for_update=True)
        if row is None:
            raise UnknownDevice(
                f"device {device} has sent labels before its state", hint="It will send them again."
            )
        channel = self._channel(row.channel)
        verdict = judge(
            device,
            records,
            standing=Standing(Chain(device, row.last_seq, row.last_hash), row.last_counter),
            hash_at=lambda seq: self._hash_at(device, seq),
            highest_counter=self.highest_counter(channel.name),
            feature_sizes=feature_sizes,
            class_entries=class_entries,
            classes=classes,
            room=room,
        )
        if any(isinstance(record.entry.body, MergeClasses | KeepApart) for record in verdict.accepted):
            self._hold_merges(channel.name, device)
        first = channel.log_length + 1
        now_utc = time.time()
        for i, record in enumerate(verdict.accepted):
            self._session.add(
                EntryRow(
                    device=device,
                    seq=record.entry.seq,
                    counter=record.entry.counter,
                    hash=entry_hash(record.entry),
                    channel=channel.name,
                    position=first + i,
                    record=msgspec.msgpack.encode(record),
                    received_utc=now_utc,
                )
            )
        channel.log_length += len(verdict.accepted)
        chain = verdict.standing.chain
        row.last_seq, row.last_hash, row.last_counter = chain.seq, chain.last_hash, verdict.standing.counter
        row.refused = None if verdict.refused is None else verdict.refused.reason
        row.last_seen_utc = now_utc
        self._session.flush()
        return Taken(device, channel.name, first, verdict)

    def _hold_merges(self, channel: str, device: str) -> None:
        """Let what a device says is one class, or is not, count nowhere: for all lines the fleet's people say so.

        Before the first of these in the union, so that no line ever goes by it. It is taken all the same, as a
        station that merged before it joined the fleet has it in the middle of its log.
        """
        for entry in self.decisions(channel):
            if isinstance(entry.body, Quarantine) and (entry.body.device, entry.body.source) == (device, MERGES):
                return
        self.decide(channel, [Quarantine(device, MERGES, MAX_COUNTER, MERGES_REASON, "")])

    def decide(
        self, channel: str, bodies: Sequence[Body], codes: Mapping[bytes, bytes] | None = None
    ) -> list[Record]:
        """Write what the fleet's people decided into its own log, at the end of a channel's union.

        A running service shares it within a second.

        Args:
            channel: Whose union.
            bodies: What they say.
            codes: By sample, for the code records that bring one.

        Raises:
            LabelError: one of the bodies is none that a fleet may say.
        """
        row = self._channel(channel)
        records = fleetlog.append(self._session, row, bodies, self.highest_counter(channel), codes)
        self.decided.append((channel, records))
        return records

    def count_on(self, channel: str, counter: int) -> None:
        """Let a union that came back from an older copy count on from where it was, for what devices offer again.

        Where a device that is lost had let the counters jump, again and again, the others' entries since would be
        so many jumps ahead of the copy at once. An entry of the fleet's own, which says nothing, has the counter.
        """
        if counter > self.highest_counter(channel) + MAX_COUNTER_JUMP // 2:
            said = [Quarantine("restored", "*restored", 0, "counts on from here after an older copy", "")]
            self.decided.append(
                (channel, fleetlog.append(self._session, self._channel(channel), said, counter - 1))
            )

    def own(self, channel: str, *, after: int = 0) -> list[Record]:
        """Return the records of a channel's own log after a number, in order: what the fleet's people decided."""
        encoded = self._session.scalars(
            select(EntryRow.record)
            .where(EntryRow.device == fleet_log_of(channel), EntryRow.seq > after)
            .order_by(EntryRow.seq)
        )
        return [msgspec.msgpack.decode(record, type=Record) for record in encoded]

    def own_end(self, channel: str) -> tuple[int, bytes] | None:
        """Return the number and hash of the last entry of a channel's own log; None where it has none."""
        row = self._session.get(DeviceRow, fleet_log_of(channel))
        return None if row is None or not row.last_seq else (row.last_seq, row.last_hash)

    def take_back(self, channel: str, records: Sequence[Record]) -> None:
        """Write entries of a channel's own log again that the database had lost, at the end of its union.

        Raises:
            LabelError: they do not follow those that are there.
        """
        if records:
            fleetlog.take_back(self._session, self._channel(channel), records)

    # A database that came back from an older copy

    def hash_at(self, channel: str, position: int) -> bytes | None:
        """Return the hash of the entry at a position of a channel's union; None where there is none."""
        return self._session.scalar(
            select(EntryRow.hash).where(EntryRow.channel == channel, EntryRow.position == position)
        )

    def note_restored(self, channel: str, since: int, found_utc: float) -> None:
        """Note that positions of a channel's union above `since` mean other entries from now on."""
        self._channel(channel)
        self._session.add(RestoreRow(id=secrets.token_hex(8), channel=channel, since=since, found_utc=found_utc))
        self._session.flush()

    def restored(self, channel: str) -> list[Restored]:
        """Return when a channel's union came back from an older copy, the newest that a message may name."""
        rows = self._session.scalars(
            select(RestoreRow)
            .where(RestoreRow.channel == channel)
            .order_by(RestoreRow.number.desc())
            .limit(MAX_RESTORED)
        )
        return [Restored(id=row.id, since=row.since) for row in reversed(list(rows))]

    def came(self, channel: str) -> list[float]:
        """Return when each record of a channel's union came, in order, by the clock of that moment."""
        rows = select(EntryRow.received_utc).where(EntryRow.channel == channel).order_by(EntryRow.position)
        return list(self._session.scalars(rows))

    def said_bytes(self, channel: str, since_utc: float) -> dict[str, int]:
        """Return how many bytes of a channel's union each device has said since a time, by the service's clock.

        Cost: that of what came since; what came before is not looked at.
        """
        low, high = 1, self.log_length(channel) + 1
        while low < high:  # the first that came since: entries come one after the other
            middle = (low + high) // 2
            came = self._session.scalar(
                select(EntryRow.received_utc).where(EntryRow.channel == channel, EntryRow.position == middle)
            )
            low, high = (low, middle) if came is None or came >= since_utc else (middle + 1, high)
        rows = self._session.execute(
            select(EntryRow.device, func.sum(func.length(EntryRow.record)))
            .where(EntryRow.channel == channel, EntryRow.position >= low)
            .group_by(EntryRow.device)
        )
        return {device: int(size_bytes) for device, size_bytes in rows}

    def log_ends(self, channel: str) -> dict[str, tuple[int, bytes]]:
        """Return the number and hash of the last entry of every log in a channel's union, the fleet's own too."""
        rows = self._session.scalars(select(DeviceRow).where(DeviceRow.channel == channel, DeviceRow.last_seq > 0))
        return {row.device: (row.last_seq, row.last_hash) for row in rows}

    def codes_left(self, channel: str) -> dict[tuple[bytes, bytes], bool]:
        """Return of each feature space and sample that has a code record that counts whether it has its code.

        Cost: the channel's union is read once.
        """
        codes, position = LastCodes(), 1
        while page := self.records(channel, position):
            for record in page:
                codes.add(record)
            position += len(page)
        return codes.left()

    def erase_codes(self, channel: str, positions: Sequence[int]) -> int:
        """Take the codes out of these records of a channel's union; return how many there were."""
        rows = self._session.scalars(
            select(EntryRow).where(EntryRow.channel == channel, EntryRow.position.in_(positions))
        )
        count = 0
        for row in rows:
            record = msgspec.msgpack.decode(row.record, type=Record)
            count += record.code is not None
            row.record = msgspec.msgpack.encode(Record(record.entry))
        return count

    def decisions(self, channel: str) -> list[Entry]:
        """Return the entries of a channel's own log, in order: what the fleet's people decided."""
        return [record.entry for record in self.own(channel)]

    def last_counter(self, device: str) -> int:
        """Return the Lamport counter of a device's last stored entry, 0 where it has none."""
        return self._session.scalar(select(DeviceRow.last_counter).where(DeviceRow.device == device)) or 0

    def _hash_at(self, device: str, seq: int) -> bytes | None:
        return self._session.scalar(select(EntryRow.hash).where(EntryRow.device == device, EntryRow.seq == seq))

    def highest_counter(self, channel: str) -> int:
        """Return the highest Lamport counter of any entry in a channel's union, 0 where there is none.

        Of that channel alone: it is what its devices have seen, and measure a jump from as well.
        """
        # A log's counters rise, so its last is its highest: no need to look at every entry.
        counters = select(func.max(DeviceRow.last_counter)).where(DeviceRow.channel == channel)
        return self._session.scalar(counters) or 0

    def log_length(self, channel: str) -> int:
        """Return the length of a channel's union."""
        return self._session.scalar(select(ChannelRow.log_length).where(ChannelRow.name == channel)) or 0

    def records(self, channel: str, first: int) -> list[Record]:
        """Return the records from a position on that fit one message; empty past the end."""
        encoded = self._session.scalars(
            select(EntryRow.record)
            .where(EntryRow.channel == channel, EntryRow.position >= first)
            .order_by(EntryRow.position)
            .limit(MAX_BATCH_RECORDS)
        )
        decoded = (msgspec.msgpack.decode(record, type=Record) for record in encoded)
        return next(batches(decoded), [])

    def received_utc(self, channel: str, position: int) -> float | None:
        """Return when the entry at a position of a channel's union came, seconds since 1970; None without one."""
        return self._session.scalar(
            select(EntryRow.received_utc).where(EntryRow.channel == channel, EntryRow.position == position)
        )

    def arrivals(self, channel: str, count: int) -> list[Arrival]:
        """Return the newest entries of a channel's union that devices have sent, the newest first.

        Args:
            channel: Whose.
            count: Of so many at its end, the fleet's own among them.
        """
        rows = self._session.execute(
            select(EntryRow.device, EntryRow.record, EntryRow.received_utc)
            .where(EntryRow.channel == channel, EntryRow.position > self.log_length(channel) - count)
            .order_by(EntryRow.position.desc())
        )
        return [
            Arrival(row.device, _said_utc(row.record), row.received_utc)
            for row in rows
            if not row.device.startswith(FLEET_LOG_PREFIX)
        ]


def _said_utc(record: bytes) -> float:
    return msgspec.msgpack.decode(record, type=Record).entry.wall_time_us / 1e6


def records_of(taken: Iterable[Taken]) -> dict[str, tuple[int, list[Record]]]:
    """Return the new records of one transaction by channel: where they begin in its union, and all of them."""
    new: dict[str, tuple[int, list[Record]]] = {}
    for one in taken:
        if one.verdict.accepted:
            _, records = new.setdefault(one.channel, (one.first_position, []))
            records.extend(one.verdict.accepted)
    return new
