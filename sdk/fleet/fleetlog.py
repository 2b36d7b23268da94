"""The fleet's own log: what its people decide about a union of logs, as events in that union.

Each channel has one, under a device id that no device may have (`sdk.labels.fleet_log_of`). It is chained, sent
and folded like a device's, so every device draws the same conclusion. `Ledger.decide` writes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from sdk.fleet.tables import ChannelRow, DeviceRow, EntryRow
from sdk.labels import (
    FLEET_LOG_PREFIX,
    GENESIS,
    Body,
    Chain,
    CodeRecord,
    Record,
    check_record,
    entry_hash,
    fleet_log_of,
)
from sdk.wire import DeviceState, encode_json


def is_device() -> ColumnElement[bool]:
    """Return the condition that a row of the devices' table is a device, not a fleet's own log."""
    return DeviceRow.device.not_like(f"{FLEET_LOG_PREFIX}%")


def append(
    session: Session,
    channel: ChannelRow,
    bodies: Sequence[Body],
    highest_counter: int,
    codes: Mapping[bytes, bytes] | None = None,
) -> list[Record]:
    """Write entries into a channel's own log, at the end of its union; return them.

    Args:
        session: A write transaction.
        channel: Whose union.
        bodies: What they say.
        highest_counter: The highest Lamport counter of any entry in that union: these are above it.
        codes: By sample, for the code records that bring one.

    Raises:
        LabelError: one of them cannot be said.
    """
    row = _own_row(session, channel.name)
    chain, now_utc = Chain(row.device, row.last_seq, row.last_hash), time.time()
    records = []
    for counter, body in enumerate(bodies, highest_counter + 1):
        chain, entry = chain.write(body, counter=counter, wall_time_us=int(now_utc * 1e6))
        code = (codes or {}).get(body.sample) if isinstance(body, CodeRecord) else None
        record = Record(entry, code)
        check_record(record)
        records.append(record)
        _add(session, channel, record, now_utc)
        row.last_counter = counter
    row.last_seq, row.last_hash = chain.seq, chain.last_hash
    session.flush()
    return records


def take_back(session: Session, channel: ChannelRow, records: Sequence[Record]) -> None:
    """Write entries of a channel's own log again, as they were, at the end of its union.

    Raises:
        LabelError: they do not follow those that are there.
    """
    row = _own_row(session, channel.name)
    chain, now_utc = Chain(row.device, row.last_seq, row.last_hash), time.time()
    for record in records:
        check_record(record)
        chain = chain.follow(record.entry)
        _add(session, channel, record, now_utc)
        row.last_counter = record.entry.counter
    row.last_seq, row.last_hash = chain.seq, chain.last_hash
    session.flush()


def _add(session: Session, channel: ChannelRow, record: Record, now_utc: float) -> None:
    channel.log_length += 1
    session.add(
        EntryRow(
            device=record.entry.device,
            seq=record.entry.seq,
            counter=record.entry.counter,
            hash=entry_hash(record.entry),
            channel=channel.name,
            position=channel.log_length,
            record=msgspec.msgpack.encode(record),
            received_utc=now_utc,
        )
    )


def _own_row(session: Session, channel: str) -> DeviceRow:
    name = fleet_log_of(channel)
    row = session.get(DeviceRow, name, with_for_update=True)
    if row is None:
        now_utc = time.time()
        state = DeviceState(device=name, channel=channel, online=False)
        row = DeviceRow(
            device=name,
            channel=channel,
            registered_utc=now_utc,
            last_seen_utc=now_utc,
            state=encode_json(state),
            last_seq=0,
            last_hash=GENESIS,
            last_counter=0,
        )
        session.add(row)
        session.flush()
    return row
