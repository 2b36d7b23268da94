"""The label log on the device: own entries as one chain, those of the fleet, and what the fleet has not yet.

Rules this module keeps:

- An entry is on disk before `append` returns (`synchronous=FULL`), and its code and what a label changes elsewhere
  are on disk with it: one transaction, whole or not at all.
- The device's own log is one hash chain without gaps, and its Lamport counter is above every counter seen. Both
  move in memory only after the commit.
- What the fleet has not acknowledged is bounded, and refused visibly beyond it.
- Nothing is written while the fleet holds entries of this device that this store lacks: it would contradict them.
- The first that a store hears of its own log is believed only as far as the log here is the same. Labels that were
  given in a new store before it heard that the fleet holds an earlier log of this device are written again after
  that. They are set aside for it at the next start: who has folded an entry takes no other of its number.

What the entries mean is the learner's; what goes over the wire is `sync`'s.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from device_agent.database import Database, damaged
from device_agent.meta import Meta
from device_agent.stored_codes import StoredCodes
from sdk.codes import Code
from sdk.damaged import DAMAGED
from sdk.errors import LabelError, StoreFull
from sdk.labels import (
    FLEET_LOG_PREFIX,
    MAX_COUNTER_JUMP,
    Body,
    Chain,
    CodeRecord,
    Entry,
    Label,
    Record,
    check_record,
    entry_hash,
)

AWAIT_FLEET: Final = "await_fleet"
"""Named value: restored from a backup, and the fleet may hold later entries of this device."""
ON_COPY: Final = (
    f"REPLACE INTO meta SELECT '{AWAIT_FLEET}', 1 WHERE EXISTS (SELECT 1 FROM meta"
    " WHERE key IN ('acknowledged', 'fleet_holds') OR key LIKE 'log_position/%')",
)
"""For a copy of the store that somebody goes back to: where it has heard from a fleet, it is to hear it first."""
FLEET_HOLDS: Final = "fleet_holds"
"""Named value: how many entries of this device the fleet said it holds, while those are not all found here; 0 from
then on. Not there: it has said nothing yet, or an older version heard it."""
FORKED: Final = "forked"
"""Named value: the fleet holds other entries of this device than this store, of which it has none."""
ASIDE: Final = "aside/"
"""Named values: records that were written before the device's earlier log came back, by their old numbers."""
KEPT_RESTORES: Final = 64
"""Times that the fleet came back from an older copy, remembered by their ids; a message names eight."""
_BATCH: Final = 500  # records read per query, so that no reader holds the lock long


class _Said(NamedTuple):
    """What an entry to be written says, with its code where it is a code record."""

    body: Body
    code: bytes | None
    wall_time_us: int


class _Forked(LabelError):
    """The fleet holds other entries of this device; it has none of those here."""


class LabelLog:
    """Own and received records in the order they were committed here, and the outbox. Any thread may call.

    Args:
        db: The store's.
        meta: Its named values.
        device: Whose own log it is.
        clock: Seconds since 1970; only ever a record, never an order.
        outbox: Own records the fleet has not acknowledged, at most; None is no limit.
        with_room: Runs a write, and finds room for it where the disk is full.
        on_label: Writes what else a label changes, in the label's own transaction.

    Raises:
        StoreCorrupt: the last own entry is damaged.
    """

    def __init__(
        self,
        db: Database,
        meta: Meta,
        device: str,
        *,
        clock: Callable[[], float],
        outbox: int | None,
        with_room: Callable[[Callable[[], list[Record]]], list[Record]],
        on_label: Callable[[sqlite3.Connection, Label], None],
    ) -> None:
        self._db = db
        self._meta = meta
        self._device = device
        self._clock = clock
        self._outbox = outbox
        self._with_room = with_room
        self._on_label = on_label
        if meta.get(FORKED):
            with contextlib.suppress(StoreFull):  # at a later start, then; until there is room nothing is worse
                self._set_aside()
        # Under the database's lock, as everything that belongs to several calls.
        self._aside = int(db.value(f"SELECT count(*) FROM meta WHERE key LIKE '{ASIDE}%'"))
        self._chain = Chain(device)
        last = db.value("SELECT entry FROM records WHERE device = ? ORDER BY seq DESC LIMIT 1", device)
        if last is not None:
            entry = decode_entry(last)
            self._chain = Chain(device, entry.seq, entry_hash(entry))
        self._counter = int(db.value("SELECT coalesce(max(counter), 0) FROM records"))

    def append(self, bodies: Sequence[Body], codes: Mapping[bytes, Code] | None = None) -> list[Record]:
        """Write entries to this device's own log; when it returns they are on disk, with all that goes with them.

        With a label goes what `on_label` writes.

        Args:
            bodies: What the entries say, in order.
            codes: Code (d,) int8 by sample id, for the code records among them.

        Raises:
            StoreFull: no room; nothing was written.
            LabelError: a text in it is too long or empty; nothing was written.
            ValueError: a code record without its code.
        """
        if not bodies:
            return []
        with self._db.lock:
            self._check_outbox(len(bodies))
            self._check_caught_up()
            now_us = int(self._clock() * 1_000_000)
            said = [_Said(body, _code_of(body, codes or {}), now_us) for body in bodies]
            return self._with_room(lambda: self._append(said))

    def _append(self, all_said: Sequence[_Said], *, again: bool = False) -> list[Record]:
        with self._db.lock:
            chain, counter, records = self._chain, self._counter, []
            with self._db.transaction() as db:
                for said in all_said:
                    counter += 1
                    chain, entry = chain.write(said.body, counter=counter, wall_time_us=said.wall_time_us)
                    record = Record(entry, said.code)
                    check_record(record)
                    _insert(db, record, here=isinstance(said.body, Label))
                    if isinstance(said.body, Label):
                        self._on_label(db, said.body)
                    records.append(record)
                if again:
                    db.execute(f"DELETE FROM meta WHERE key LIKE '{ASIDE}%'")
            self._chain, self._counter = chain, counter
            return records

    def _set_aside(self) -> None:
        """Take out the entries that the fleet has not, since it holds others of their numbers."""
        rows = self._db.rows(
            "SELECT seq, entry, code FROM records WHERE device = ? AND seq > ? ORDER BY seq",
            self._device,
            self.acknowledged(),
        )
        with self._db.transaction() as db:
            for seq, entry, code in rows:
                self._meta.put(db, f"{ASIDE}{seq:012}", _encoder.encode((entry, code)))
                db.execute("DELETE FROM records WHERE device = ? AND seq = ?", (self._device, seq))
            self._meta.put(db, FORKED, None)

    def write_again(self) -> list[Record]:
        """Write what was set aside after this device's earlier log, once all of that is here; return what is new.

        Raises:
            StoreFull: no room; nothing was written.
            StoreCorrupt: what was set aside is damaged.
        """
        with self._db.lock:
            if not self._aside or self._meta.get(FLEET_HOLDS) != 0:
                return []
            rows = self._db.rows(f"SELECT value FROM meta WHERE key LIKE '{ASIDE}%' ORDER BY key")
            said = [_decode_aside(value) for (value,) in rows]
            records = self._with_room(lambda: self._append(said, again=True))
            self._aside = 0
            return records

    def _check_outbox(self, more: int) -> None:
        if self._outbox is None:
            return
        depth = self.outbox_depth()
        if depth + more > self._outbox:
            raise StoreFull(
                f"{depth} entries wait for the fleet, at most {self._outbox} may",
                hint="Connect the device to its broker; one that is to stay alone has no [mqtt] in its site.toml.",
            )

    def _check_caught_up(self) -> None:
        if self._meta.get(AWAIT_FLEET):
            raise StoreFull(
                "this store was restored from a backup and has not heard from its fleet yet",
                hint="Connect the device to its broker: its later labels come back first.",
            )
        if self._aside and not self.lacking():
            raise StoreFull(
                f"{self._aside} entries wait for this device's earlier log",
                hint="Connect the device to its broker: its earlier labels come back first.",
            )
        if self.lacking():
            raise StoreFull(
                f"the fleet holds {self.unconfirmed()} entries of this device, its store only {self._chain.seq}",
                hint="Wait until its earlier labels are back; the device's page says what keeps them.",
            )

    def receive(self, records: Sequence[Record], position: int, channel: str = "") -> list[Record]:
        """Store entries of the fleet's union and how far this device has read it; return those that were new.

        Where we hold an entry's predecessor it must continue it. Own entries that this store has never seen are
        taken in as the start of its log: that is how a replaced device finds its earlier labels again. With the
        last of those that `heard` tells of, labels may be written again.

        Args:
            records: In the union's order.
            position: Position in the channel's union of the last of them.
            channel: Whose union.

        Raises:
            LabelError: an entry contradicts itself or one we hold; nothing was stored.
            StoreFull: no room; nothing was stored.
        """
        try:
            return self._receive(records, position, channel)
        except _Forked:
            with self._db.transaction() as db:
                self._meta.put(db, FORKED, 1)
            raise

    def _receive(self, records: Sequence[Record], position: int, channel: str) -> list[Record]:
        with self._db.lock:
            chain, counter, new = self._chain, self._counter, []
            with self._db.transaction() as db:
                for record in records:
                    check_record(record)
                    entry = record.entry
                    own = entry.device == self._device
                    if self._holds(db, entry):
                        if own and not self._is_settled():  # so the fleet has it, and all before it
                            self._meta.put(db, "acknowledged", max(entry.seq, self.acknowledged()))
                        continue
                    jumps = entry.counter > counter + MAX_COUNTER_JUMP
                    if jumps and not entry.device.startswith(FLEET_LOG_PREFIX):
                        raise LabelError(
                            f"entry {entry.seq} of {entry.device} jumps ahead by {entry.counter - counter}",
                            hint="Its device is at fault; withdraw its entries on the fleet service.",
                        )
                    if own:
                        chain = chain.follow(entry)
                        self._meta.put(db, "acknowledged", entry.seq)
                    _insert(db, record, here=False)
                    counter = max(counter, entry.counter)
                    new.append(record)
                key = f"log_position/{channel}"
                self._meta.put(db, key, max(position, int(self._meta.get(key) or 0)))
                if 0 < self.unconfirmed() <= self.acknowledged():
                    self._settle(db)
            self._chain, self._counter = chain, counter
            return new

    def _holds(self, db: sqlite3.Connection, entry: Entry) -> bool:
        """Return whether we have this entry; refuse one that cannot stand beside those we have."""
        rows = db.execute(
            "SELECT seq, entry FROM records WHERE device = ? AND seq BETWEEN ? AND ?",
            (entry.device, entry.seq - 1, entry.seq + 1),
        )
        held = {seq: decode_entry(raw) for seq, raw in rows}
        same, before, after = held.get(entry.seq), held.get(entry.seq - 1), held.get(entry.seq + 1)
        if (
            (same is not None and same != entry)
            or (before is not None and entry.prev != entry_hash(before))
            or (after is not None and after.prev != entry_hash(entry))
        ):
            if entry.device == self._device and not self.acknowledged() and not self._is_settled():
                raise _Forked(
                    f"{self._chain.seq} entries were written here before this device's earlier log came back; "
                    "a restart of the agent takes that log, and writes them again after it",
                    hint="Restart the agent.",
                )
            raise LabelError(
                f"entry {entry.seq} of {entry.device} contradicts the log we hold",
                hint="Two devices share this id, or a store is an old copy: enrol it under a new id.",
            )
        return same is not None

    def records(self) -> Iterator[Record]:
        """Yield all records, own and received, in the order they were committed here."""
        after = 0
        while batch := self.records_after(after, _BATCH):
            yield from (record for _, record in batch)
            after = batch[-1][0]

    def records_after(self, arrival: int, limit: int = _BATCH) -> list[tuple[int, Record]]:
        """Return up to `limit` records that were committed after this arrival number, each with its own."""
        rows = self._db.rows(
            "SELECT arrival, entry, code FROM records WHERE arrival > ? ORDER BY arrival LIMIT ?", arrival, limit
        )
        return [(number, Record(decode_entry(entry), code)) for number, entry, code in rows]

    def count(self) -> int:
        """Return how many records there are, own and received."""
        return int(self._db.value("SELECT count(*) FROM records"))

    def labelled_here(self, after: int) -> list[tuple[bytes, bytes | None]]:
        """Return samples with the class that people here gave them after this arrival number, in order.

        What the fleet sent under this device's name is not among them.
        """
        rows = self._db.rows("SELECT entry FROM records WHERE here AND arrival > ? ORDER BY arrival", after)
        bodies = (decode_entry(entry).body for (entry,) in rows)
        return [(body.sample, body.class_id) for body in bodies if isinstance(body, Label)]

    def shelf(self, feature_size: int) -> StoredCodes:
        """Return where codes of d numbers lie: those of the log here, a release's own in memory."""
        return StoredCodes(self._db, feature_size)

    def has_code(self, sample_id: bytes, space: str) -> bool:
        """Return whether this device has said a sample's code in this feature space, or its fleet, and it is left.

        Whoever labels a sample says its code too: another device's counts only as long as that device does.
        """
        row = self._db.row(
            "SELECT code IS NOT NULL FROM records WHERE sample = ? AND space = ? AND (device = ? OR device GLOB ?)"
            " ORDER BY counter DESC, device DESC LIMIT 1",
            sample_id,
            bytes.fromhex(space),
            self._device,
            f"{FLEET_LOG_PREFIX}*",
        )
        return row is not None and bool(row[0])

    def outbox(self, limit: int, *, after: int | None = None) -> list[Record]:
        """Return the first own records that the fleet has not acknowledged, in order; or those after `after`."""
        rows = self._db.rows(
            "SELECT entry, code FROM records WHERE device = ? AND seq > ? ORDER BY seq LIMIT ?",
            self._device,
            self.acknowledged() if after is None else after,
            limit,
        )
        return [Record(decode_entry(entry), code) for entry, code in rows]

    def outbox_depth(self) -> int:
        """Return how many own records the fleet has not acknowledged."""
        with self._db.lock:
            return self._aside + self._chain.seq - self.acknowledged()

    def length(self) -> int:
        """Return how many entries this device's own log has."""
        with self._db.lock:
            return self._chain.seq

    def acknowledged(self) -> int:
        """Return the sequence number up to which the fleet has committed our log."""
        return int(self._meta.get("acknowledged") or 0)

    def heard(self, through: int) -> bool:
        """Note that the fleet says it has committed our log up to `through`; return whether that log is this one.

        Where it is, that is acknowledged, which never goes back. Where this store lacks entries of it, or has yet
        to see that its own are the same, the union brings them; until then nothing is acknowledged, and where it
        lacks some, nothing is written.

        Raises:
            StoreFull: no room; nothing was noted.
        """
        with self._db.lock:
            if through > (self._chain.seq if self._is_settled() else self.acknowledged()):
                if self._meta.get(FLEET_HOLDS) != through:
                    with self._db.transaction() as db:
                        self._meta.put(db, FLEET_HOLDS, through)
                        # What would show whose entries they are may have been read already, by an older version.
                        if through <= self._chain.seq:
                            db.execute("UPDATE meta SET value = 0 WHERE key LIKE 'log\\_position/%' ESCAPE '\\'")
                return False
            news = through > self.acknowledged() or self._meta.get(FLEET_HOLDS) != 0
            if news or self._meta.get(AWAIT_FLEET):
                with self._db.transaction() as db:
                    self._meta.put(db, "acknowledged", max(through, self.acknowledged()))
                    self._settle(db)
            return True

    def _is_settled(self) -> bool:
        """Return whether the log here and the one that the fleet has are known to be one."""
        told = self._meta.get(FLEET_HOLDS)
        return self.acknowledged() > 0 if told is None else told == 0

    def _settle(self, db: sqlite3.Connection) -> None:
        self._meta.put(db, FLEET_HOLDS, 0)
        self._meta.put(db, AWAIT_FLEET, None)

    def unconfirmed(self) -> int:
        """Return how many entries of ours the fleet said it holds, while those are not all found here; else 0."""
        return int(self._meta.get(FLEET_HOLDS) or 0)

    def lacking(self) -> bool:
        """Return whether the fleet holds more entries of this device than there are here."""
        with self._db.lock:
            return self.unconfirmed() > self._chain.seq

    def union_restored(self, channel: str, restored: Mapping[str, int]) -> bool:
        """Read the union again from where the fleet, come back from an older copy, means something else by it.

        What is read twice is kept once. Returns whether that was news.

        Args:
            channel: Whose union.
            restored: Each time that it came back: an id, and up to which position the union is what it was.

        Raises:
            StoreFull: no room; nothing was noted.
        """
        key = f"restored/{channel}"
        with self._db.lock:
            known = str(self._meta.get(key) or "").split()
            new = {number: since for number, since in restored.items() if number not in known}
            if new:
                with self._db.transaction() as db:
                    self._meta.put(db, f"log_position/{channel}", min(self.position(channel), *new.values()))
                    self._meta.put(db, key, " ".join([*known, *new][-KEPT_RESTORES:]))
            return bool(new)

    def position(self, channel: str = "") -> int:
        """Return how far this device has read the channel's union; 0 for nothing yet."""
        return int(self._meta.get(f"log_position/{channel}") or 0)


_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_aside_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes | None])


def decode_entry(raw: bytes) -> Entry:
    """Return a stored entry; StoreCorrupt where it is none."""
    try:
        return _entry_decoder.decode(raw)
    except DAMAGED as error:
        raise damaged(f"a stored entry is damaged: {str(error)[:100]}") from error


def _decode_aside(value: bytes) -> _Said:
    try:
        raw, code = _aside_decoder.decode(value)
    except DAMAGED as error:
        raise damaged(f"an entry that was set aside is damaged: {str(error)[:100]}") from error
    entry = decode_entry(raw)
    return _Said(entry.body, code, entry.wall_time_us)


def _code_of(body: Body, codes: Mapping[bytes, Code]) -> bytes | None:
    if not isinstance(body, CodeRecord):
        return None
    if body.sample not in codes:
        raise ValueError(f"no code for {body.sample.hex()}")
    return np.ascontiguousarray(codes[body.sample], np.int8).tobytes()


def _insert(db: sqlite3.Connection, record: Record, *, here: bool) -> None:
    entry = record.entry
    db.execute(
        "INSERT INTO records (device, seq, counter, sample, space, entry, code, here)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.device,
            entry.seq,
            entry.counter,
            entry.body.sample if isinstance(entry.body, CodeRecord) else None,
            entry.body.space if isinstance(entry.body, CodeRecord) else None,
            _encoder.encode(entry),
            record.code,
            here,
        ),
    )
