"""What must survive on the device: label log, outbox, samples with their pictures, heads, updates.

One SQLite file (`store.sqlite3`, WAL) and a folder of pictures, in the agent's data folder.

Rules this module keeps:

- A label is on disk before `append` returns (`synchronous=FULL`), and its code record, the sample's status and
  the picture are on disk with it: one transaction, whole or not at all.
- The device's own log is one hash chain without gaps, and its Lamport counter is above every counter seen. Both
  move in memory only after the commit.
- When the disk is full, or the store at its size limit, writing raises `StoreFull` and changes nothing; it works
  again without a restart as soon as there is room. Samples are refused earlier than labels (`reserve_bytes`), so
  that what an operator types finds room longest.
- A picture that operators may have labelled is never deleted, not even where nothing here knows it any more. What
  goes when pictures take too much room is said at `StoreLimits`.
- A ballast file stands for labels: it is given up when the disk is full, and made again when there is room.

SQLite itself is `database`'s; the rows of heads and updates are `heads_and_updates`'; what the records mean is the
learner's; what goes over the wire is `sync`'s. Any thread may call.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from device_agent.ballast import Ballast
from device_agent.database import Database, damaged, disk, open_to_read
from device_agent.heads_and_updates import Heads, Updates
from device_agent.images import ImageFolder
from device_agent.queue import Question
from device_agent.stored_codes import StoredCodes
from sdk.codes import Code
from sdk.durable import sync_path
from sdk.errors import ConfigError, LabelError, StoreFull
from sdk.labels import (
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

T = TypeVar("T")

_log = logging.getLogger(__name__)

STORE_NAME: Final = "store.sqlite3"
IMAGES_NAME: Final = "images"
BALLAST_NAME: Final = "ballast"
AWAIT_FLEET: Final = "await_fleet"
"""Key of `meta`: restored from a backup, and the fleet may hold later entries of this device."""
_EVICT_TO: Final = 0.95  # of the pictures' limit, so that not every frame has to look for what must go
_BATCH: Final = 500  # records read per query, so that no reader holds the lock long

_MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        # `arrival` counts every record, own and received, in the order they were committed here.
        """CREATE TABLE records (
            arrival INTEGER PRIMARY KEY AUTOINCREMENT,
            device TEXT NOT NULL, seq INTEGER NOT NULL, counter INTEGER NOT NULL,
            sample BLOB, space BLOB, entry BLOB NOT NULL, code BLOB,
            UNIQUE (device, seq))""",
        "CREATE INDEX records_by_counter ON records (counter)",
        "CREATE INDEX codes_of_sample ON records (sample, space) WHERE space IS NOT NULL",
        """CREATE TABLE samples (
            arrival INTEGER PRIMARY KEY, sample BLOB NOT NULL UNIQUE, captured_utc REAL NOT NULL,
            part TEXT NOT NULL, space TEXT NOT NULL, code BLOB NOT NULL, decision TEXT NOT NULL, class_id BLOB,
            probability REAL NOT NULL, novelty REAL NOT NULL, unknown INTEGER NOT NULL, status TEXT NOT NULL,
            reason TEXT NOT NULL, priority REAL NOT NULL, source TEXT NOT NULL)""",
        "CREATE INDEX samples_by_status ON samples (status, arrival)",
        "CREATE INDEX queue_by_group ON samples (part) WHERE status != 'seen'",
        """CREATE TABLE heads (
            number INTEGER PRIMARY KEY, created_utc REAL NOT NULL, space TEXT NOT NULL, digest TEXT NOT NULL,
            through INTEGER NOT NULL, samples INTEGER NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
            score BLOB, calibration BLOB)""",
        """CREATE TABLE updates (
            number INTEGER PRIMARY KEY AUTOINCREMENT, at_utc REAL NOT NULL, release_id TEXT NOT NULL,
            job BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, starts INTEGER NOT NULL)""",
    ),
    ("ALTER TABLE heads ADD COLUMN adaptation BLOB",),
    ("ALTER TABLE samples ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0",),
    ("ALTER TABLE heads ADD COLUMN why BLOB", "ALTER TABLE samples ADD COLUMN lot TEXT NOT NULL DEFAULT ''"),
)
"""Statements from schema n to n + 1; `PRAGMA user_version` says how many have been run."""


class SampleStatus(str, Enum):
    """What the operator has had to do with a sample. Values are stored."""

    SEEN = "seen"
    QUEUED = "queued"
    LABELLED = "labelled"


@dataclass(frozen=True)
class Sample:
    """One image-level decision made on this device.

    Attributes:
        sample_id: SHA-256 of the picture's bytes.
        captured_utc: Seconds since 1970 by the device's clock.
        group: What must not be divided between training and scoring: `device/part`, or `device/first frame`.
        space: Feature space of the code, 64 hex digits.
        code: (d,) int8.
        decision: The class name shown, or "unknown".
        class_id: The class chosen if it had to be one; None where there was no head.
        probability: Of that class.
        novelty: By the head that decided.
        unknown: Whether novelty was above the threshold.
        status: What the operator has had to do with it.
        reason: Why the operator is asked, in words for the page.
        priority: Order of the queue, higher first.
        source: The file or camera it came from.
        lot: The lot that its part is of; empty where nobody said.
    """

    sample_id: bytes
    captured_utc: float
    group: str
    space: str
    code: Code = field(compare=False)
    decision: str
    class_id: bytes | None
    probability: float
    novelty: float
    unknown: bool
    status: SampleStatus = SampleStatus.SEEN
    reason: str = ""
    priority: float = 0.0
    source: str = ""
    lot: str = ""


@dataclass(frozen=True)
class Waiting:
    """What a new head needs of a sample that an operator is asked about: its code, and what is asked now."""

    sample: bytes
    space: str
    code: Code = field(compare=False)
    question: Question


@dataclass(frozen=True)
class StoreLimits:
    """How much the store keeps.

    Where pictures are over their limit these go, until a twentieth of it is free: the oldest that nobody is asked
    about; then those of the last parts; then questions, the least important first. Labelled ones never.

    Attributes:
        keep_samples: Unlabelled samples with pictures; the oldest go first. Labelled ones stay.
        keep_parts: Of the last so many parts everything stays at hand for labelling, as long as there is room.
        max_image_bytes: Pictures on disk, labelled ones included; where these alone fill it, others are refused.
        ballast_bytes: Kept on the disk to be given up for labels when it is full; 0 for none.
        queue: Questions waiting for the operator; beyond it the least important one falls out.
        queue_per_group: Of one part or burst: more of the same teaches little.
        outbox: Own records the fleet has not acknowledged; beyond it labels are refused.
        keep_heads: Rows of the heads' history.
        max_store_bytes: Size of the SQLite file, pictures not counted.
        reserve_bytes: Samples are refused while less than this is free on the disk. Labels are not.
    """

    keep_samples: int = 2000
    queue: int = 200
    queue_per_group: int = 2
    outbox: int = 200_000
    keep_heads: int = 2000
    max_store_bytes: int = 4 * 1024**3
    reserve_bytes: int = 64 * 1024**2
    keep_parts: int = 50
    max_image_bytes: int = 16 * 1024**3
    ballast_bytes: int = 0


class Store:
    """The device's durable state. Use `Store.open`; close it or use it in a `with` block.

    Attributes:
        folder: The agent's data folder.
        device: Whose it is.
        limits: How much it keeps.
        heads: The history of the heads that served here.
        updates: The attempts to bring releases here.
    """

    def __init__(
        self, folder: Path, device: str, db: Database, *, clock: Callable[[], float], limits: StoreLimits
    ) -> None:
        self.folder = folder
        self.device = device
        self.limits = limits
        self._db = db
        self._clock = clock
        self._images = ImageFolder(folder / IMAGES_NAME)
        self._ballast = Ballast(folder / BALLAST_NAME, limits.ballast_bytes)
        self._image_bytes = 0
        self.heads = Heads(db, keep=limits.keep_heads)
        self.updates = Updates(db, clock=clock, with_room=self._with_room)
        # Under the database's lock, as everything that belongs to several calls.
        self._chain = Chain(device)
        self._counter = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str,
        *,
        clock: Callable[[], float] = time.time,
        limits: StoreLimits | None = None,
    ) -> Store:
        """Return the store in a folder, made or brought to this version's schema where needed.

        Args:
            folder: The agent's data folder; made where it is missing.
            device: This device's id.
            clock: Seconds since 1970; only ever a record, never an order.
            limits: How much to keep.

        Raises:
            ConfigError: another agent has it open, or it is another device's.
            StoreCorrupt: it is damaged, from a newer version, or not ours.
            StoreFull: the disk takes no writes.
        """
        limits = limits or StoreLimits()
        with disk(folder):
            made = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for each in made:
                sync_path(each.parent)  # else a power cut may take the whole folder, synced files and all
            db = Database(folder / STORE_NAME, _MIGRATIONS, max_bytes=limits.max_store_bytes)
            try:
                store = cls(folder, device, db, clock=clock, limits=limits)
                store._load()
            except BaseException:
                db.close()
                raise
        return store

    def close(self) -> None:
        """Let go of the store. Closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        owner = self._get("device")
        if owner is None:
            with self._db.transaction() as db:
                _set(db, "device", self.device)
            sync_path(self.folder)
        elif owner != self.device:
            raise ConfigError(
                f"the store in {self.folder} belongs to device {owner!r}, not {self.device!r}",
                hint="Use that device id, or another data folder.",
            )
        last = self._db.value("SELECT entry FROM records WHERE device = ? ORDER BY seq DESC LIMIT 1", self.device)
        if last is not None:
            entry = _decode_entry(last)
            self._chain = Chain(self.device, entry.seq, entry_hash(entry))
        self._counter = self._db.value("SELECT coalesce(max(counter), 0) FROM records")
        self._images.sweep()
        self._measure_images()
        self._ballast.fill(self.limits.reserve_bytes)

    def _measure_images(self) -> None:
        """Note sizes that an earlier version did not, and add them up."""
        unknown = [row[0] for row in self._db.rows("SELECT sample FROM samples WHERE size_bytes = 0")]
        sizes = [(self._images.size_bytes(sample), sample) for sample in unknown]
        with self._db.transaction(durable=False) as db:
            db.executemany(
                "UPDATE samples SET size_bytes = ? WHERE sample = ?", [each for each in sizes if each[0]]
            )
        self._image_bytes = int(self._db.value("SELECT coalesce(sum(size_bytes), 0) FROM samples"))

    # -- the label log ------------------------------------------------------------------------------------

    def append(self, bodies: Sequence[Body], codes: Mapping[bytes, Code] | None = None) -> list[Record]:
        """Write entries to this device's own log; when it returns they are on disk, with all that goes with them.

        A label also sets its sample's status and makes its picture durable.

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
            return self._with_room(lambda: self._append(bodies, codes or {}))

    def _with_room(self, write: Callable[[], T]) -> T:
        """Write; where the disk is full, give the ballast up for it and write again."""
        try:
            written = write()
        except StoreFull:
            if not self._ballast.give_up():
                raise
            _log.error("the disk is full: the ballast was given up for labels; free space soon")
            self._db.shrink()
            written = write()
        if self._ballast.given_up:
            # SQLite's log takes ten times a label's size until it is written back, for which it needs room too.
            self._db.shrink()
        return written

    @property
    def ballast_given_up(self) -> bool:
        """Whether the disk was full, and is not free enough yet to make the ballast again."""
        return self._ballast.given_up

    def _append(self, bodies: Sequence[Body], codes: Mapping[bytes, Code]) -> list[Record]:
        with self._db.lock:
            chain, counter, records = self._chain, self._counter, []
            wall_time_us = int(self._clock() * 1_000_000)
            with self._db.transaction() as db:
                for body in bodies:
                    counter += 1
                    chain, entry = chain.write(body, counter=counter, wall_time_us=wall_time_us)
                    code = None
                    if isinstance(body, CodeRecord):
                        if body.sample not in codes:
                            raise ValueError(f"no code for {body.sample.hex()}")
                        code = np.ascontiguousarray(codes[body.sample], np.int8).tobytes()
                    record = Record(entry, code)
                    check_record(record)
                    _check_readable(entry)
                    _insert(db, record)
                    if isinstance(body, Label):
                        self._mark_labelled(db, body)
                    records.append(record)
            self._chain, self._counter = chain, counter
            return records

    def _mark_labelled(self, db: sqlite3.Connection, label: Label) -> None:
        status = SampleStatus.SEEN if label.class_id is None else SampleStatus.LABELLED
        db.execute("UPDATE samples SET status = ? WHERE sample = ?", (status.value, label.sample))
        self._images.sync(label.sample)

    def _check_outbox(self, more: int) -> None:
        depth = self.outbox_depth()
        if depth + more > self.limits.outbox:
            raise StoreFull(
                f"{depth} entries wait for the fleet, at most {self.limits.outbox} may",
                hint="Connect the device to its broker, or raise the store's outbox limit.",
            )

    def _check_caught_up(self) -> None:
        if self._get(AWAIT_FLEET):
            raise StoreFull(
                "this store was restored from a backup and has not heard from its fleet yet",
                hint="Connect the device to its broker: its later labels come back first.",
            )

    def receive(self, records: Sequence[Record], position: int, channel: str = "") -> list[Record]:
        """Store entries of the fleet's union and how far this device has read it; return those that were new.

        Where we hold an entry's predecessor it must continue it. Own entries that this store has never seen are
        taken in as the start of its log: that is how a replaced device finds its earlier labels again.

        Args:
            records: In the union's order.
            position: Position in the channel's union of the last of them.
            channel: Whose union.

        Raises:
            LabelError: an entry contradicts itself or one we hold; nothing was stored.
            StoreFull: no room; nothing was stored.
        """
        with self._db.lock:
            chain, counter, new = self._chain, self._counter, []
            with self._db.transaction() as db:
                for record in records:
                    check_record(record)
                    entry = record.entry
                    if self._holds(db, entry):
                        continue
                    if entry.counter > counter + MAX_COUNTER_JUMP:
                        raise LabelError(
                            f"entry {entry.seq} of {entry.device} jumps ahead by {entry.counter - counter}",
                            hint="Its device is at fault; withdraw its entries on the fleet service.",
                        )
                    if entry.device == self.device:
                        chain = chain.follow(entry)
                        _set(db, "acknowledged", entry.seq)
                    _insert(db, record)
                    counter = max(counter, entry.counter)
                    new.append(record)
                key = f"log_position/{channel}"
                _set(db, key, max(position, int(self._get(key) or 0)))
            self._chain, self._counter = chain, counter
            return new

    def _holds(self, db: sqlite3.Connection, entry: Entry) -> bool:
        """Return whether we have this entry; refuse one that cannot stand beside those we have."""
        rows = db.execute(
            "SELECT seq, entry FROM records WHERE device = ? AND seq BETWEEN ? AND ?",
            (entry.device, entry.seq - 1, entry.seq + 1),
        )
        held = {seq: _decode_entry(raw) for seq, raw in rows}
        same, before, after = held.get(entry.seq), held.get(entry.seq - 1), held.get(entry.seq + 1)
        if (
            (same is not None and same != entry)
            or (before is not None and entry.prev != entry_hash(before))
            or (after is not None and after.prev != entry_hash(entry))
        ):
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
        return [(number, Record(_decode_entry(entry), code)) for number, entry, code in rows]

    def shelf(self, feature_size: int) -> StoredCodes:
        """Return where codes of d numbers lie: those of the log here, a release's own in memory."""
        return StoredCodes(self._db, feature_size)

    def has_code(self, sample_id: bytes, space: str) -> bool:
        """Return whether any code record for this sample in this feature space is in the log."""
        row = self._db.row(
            "SELECT 1 FROM records WHERE sample = ? AND space = ? AND code IS NOT NULL LIMIT 1",
            sample_id,
            bytes.fromhex(space),
        )
        return row is not None

    def outbox(self, limit: int, *, after: int = 0) -> list[Record]:
        """Return the first own records that the fleet has not acknowledged, in order, from `after` on."""
        rows = self._db.rows(
            "SELECT entry, code FROM records WHERE device = ? AND seq > ? ORDER BY seq LIMIT ?",
            self.device,
            max(after, self.acknowledged()),
            limit,
        )
        return [Record(_decode_entry(entry), code) for entry, code in rows]

    def outbox_depth(self) -> int:
        """Return how many own records the fleet has not acknowledged."""
        with self._db.lock:
            return self._chain.seq - self.acknowledged()

    def length(self) -> int:
        """Return how many entries this device's own log has."""
        with self._db.lock:
            return self._chain.seq

    def acknowledged(self) -> int:
        """Return the sequence number up to which the fleet has committed our log."""
        return int(self._get("acknowledged") or 0)

    def acknowledge(self, through: int) -> None:
        """Note that the fleet has committed our log up to `through`. It never goes back.

        Raises:
            LabelError: we have not written that far: the fleet knows entries of ours that we lost.
        """
        with self._db.lock:
            if through > self._chain.seq:
                raise LabelError(
                    f"the fleet holds {through} entries of {self.device}, this store has {self._chain.seq}",
                    hint="Let the device fetch its log before labelling, or enrol it under a new id.",
                )
            if through > self.acknowledged() or self._get(AWAIT_FLEET):
                with self._db.transaction() as db:
                    _set(db, "acknowledged", max(through, self.acknowledged()))
                    _set(db, AWAIT_FLEET, None)

    def log_position(self, channel: str = "") -> int:
        """Return how far this device has read the channel's union; 0 for nothing yet."""
        return int(self._get(f"log_position/{channel}") or 0)

    def keep(self, key: str, value: bytes) -> None:
        """Keep a value under a name; when it returns it is on disk.

        Raises:
            StoreFull: no room; the value kept before is still there.
        """
        with self._db.transaction() as db:
            _set(db, f"kept/{key}", value)

    def kept(self, key: str) -> bytes | None:
        """Return what is kept under a name; None if nothing is."""
        value = self._get(f"kept/{key}")
        return value if isinstance(value, bytes) else None

    # -- samples and pictures -----------------------------------------------------------------------------

    def put_sample(self, sample: Sample, image: bytes | None) -> SampleStatus:
        """Store a decision and its picture; return the status it now has.

        It is written at once, but a power cut (not a crash) may take the last of them: syncing each frame would
        wear the disk out. A sample seen before keeps its group, and stays queued or labelled. A question that its
        group has been asked often enough, or that is the least important of a full queue, is not asked.

        Raises:
            StoreFull: less than `reserve_bytes` are free, or the store is at its limit; nothing was stored.
        """
        with self._db.lock, disk(self.folder):
            free = shutil.disk_usage(self.folder).free
            if free < self.limits.reserve_bytes:
                raise StoreFull(
                    f"less than {self.limits.reserve_bytes // 1024**2} MiB are free in {self.folder}",
                    hint="Free space; until then samples are not kept, decisions and labels go on.",
                )
            self._ballast.fill(self.limits.reserve_bytes, free)
            size_bytes = 0 if image is None else len(image)
            self._check_image_room(size_bytes)
            if image is not None:
                self._images.put(sample.sample_id, image)
            with self._db.transaction(durable=False) as db:
                status, more = self._upsert_sample(db, sample, size_bytes)
                if status is SampleStatus.QUEUED:
                    self._bound_queue(db)
                gone = self._prune_samples(db)
                total = self._image_bytes + more - sum(size for _, size in gone)
                if total > self.limits.max_image_bytes:
                    evicted = self._evict(db, total, sample.sample_id)
                    total -= sum(size for _, size in evicted)
                    gone += evicted
            self._image_bytes = total
            self._images.drop(each for each, _ in gone)
            row = self._db.row("SELECT status FROM samples WHERE sample = ?", sample.sample_id)
            return SampleStatus(row[0]) if row else SampleStatus.SEEN

    def _check_image_room(self, size_bytes: int) -> None:
        """Refuse a picture that would not have room even if everything without a label went."""
        limit = self.limits.max_image_bytes
        if self._image_bytes + size_bytes <= limit:
            return
        labelled = int(
            self._db.value("SELECT coalesce(sum(size_bytes), 0) FROM samples WHERE status = 'labelled'")
        )
        if labelled + size_bytes > limit:
            raise StoreFull(
                f"labelled pictures take {labelled // 1024**2} of {limit // 1024**2} MiB that pictures may take",
                hint="Raise [store] max_image_mib; until then other samples are not kept.",
            )

    def _evict(self, db: sqlite3.Connection, total: int, just_now: bytes) -> list[tuple[bytes, int]]:
        """Delete the samples that matter least until pictures are well below their limit; return what went."""
        rows = db.execute(
            "WITH last AS (SELECT part FROM samples GROUP BY part ORDER BY max(arrival) DESC LIMIT ?)"
            " SELECT sample, size_bytes FROM samples WHERE status != 'labelled' AND sample != ?"
            " ORDER BY status = 'queued', part IN last, priority, arrival",
            (self.limits.keep_parts, just_now),
        ).fetchall()
        gone: list[tuple[bytes, int]] = []
        for sample, size_bytes in rows:
            if total <= self.limits.max_image_bytes * _EVICT_TO:
                break
            gone.append((sample, size_bytes))
            total -= size_bytes
        db.executemany("DELETE FROM samples WHERE sample = ?", [(sample,) for sample, _ in gone])
        return gone

    def _upsert_sample(self, db: sqlite3.Connection, s: Sample, size_bytes: int) -> tuple[SampleStatus, int]:
        """Return the status, and by how much the pictures grew."""
        old = self._db.row(
            "SELECT status, part, reason, priority, size_bytes, lot FROM samples WHERE sample = ?", s.sample_id
        )
        status, group, reason, priority = s.status, s.group, s.reason, s.priority
        before, lot = 0, s.lot
        if old is not None:
            group, before, lot = old[1], old[4], s.lot or old[5]
            size_bytes = size_bytes or before
            was = SampleStatus(old[0])
            if was is SampleStatus.LABELLED or (was is SampleStatus.QUEUED and status is SampleStatus.SEEN):
                status, _, reason, priority = was, *old[1:4]
        if status is SampleStatus.QUEUED and (old is None or old[0] == SampleStatus.SEEN.value):
            asked = self._db.value("SELECT count(*) FROM samples WHERE part = ? AND status != 'seen'", group)
            if asked >= self.limits.queue_per_group:
                status, reason, priority = SampleStatus.SEEN, "", 0.0
        db.execute(
            "REPLACE INTO samples VALUES ((SELECT coalesce(max(arrival), 0) + 1 FROM samples),"
            "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                s.sample_id,
                s.captured_utc,
                group,
                s.space,
                np.ascontiguousarray(s.code, np.int8).tobytes(),
                s.decision,
                s.class_id,
                s.probability,
                s.novelty,
                s.unknown,
                status.value,
                reason,
                priority,
                s.source,
                size_bytes,
                lot,
            ),
        )
        return status, size_bytes - before

    def _bound_queue(self, db: sqlite3.Connection) -> None:
        db.execute(
            "UPDATE samples SET status = 'seen', reason = '', priority = 0 WHERE sample IN (SELECT sample"
            " FROM samples WHERE status = 'queued' ORDER BY priority DESC, arrival DESC LIMIT -1 OFFSET ?)",
            (self.limits.queue,),
        )

    def _prune_samples(self, db: sqlite3.Connection) -> list[tuple[bytes, int]]:
        rows = db.execute(
            "DELETE FROM samples WHERE sample IN (SELECT sample FROM samples WHERE status = 'seen'"
            " ORDER BY arrival DESC LIMIT -1 OFFSET ?) RETURNING sample, size_bytes",
            (self.limits.keep_samples,),
        )
        return list(rows.fetchall())

    def sample(self, sample_id: bytes) -> Sample | None:
        """Return a sample; None where it is not, or no longer, kept."""
        row = self._db.row(f"SELECT {_SAMPLE_COLUMNS} FROM samples WHERE sample = ?", sample_id)
        return None if row is None else _sample(row)

    def samples(self, *, limit: int, status: SampleStatus | None = None, offset: int = 0) -> list[Sample]:
        """Return samples, newest first."""
        if status is None:
            return self._samples("ORDER BY arrival DESC LIMIT ? OFFSET ?", limit, offset)
        return self._samples(
            "WHERE status = ? ORDER BY arrival DESC LIMIT ? OFFSET ?", status.value, limit, offset
        )

    def newest_codes(self, space: str, *, limit: int) -> list[Code]:
        """Return those codes of the newest samples that are of this feature space, newest first."""
        rows = self._db.rows("SELECT space, code FROM samples ORDER BY arrival DESC LIMIT ?", limit)
        return [np.frombuffer(code, np.int8) for of, code in rows if of == space]

    def make_durable(self, samples: Iterable[bytes]) -> None:
        """Make pictures durable that somebody is about to label: the label then waits for one sync, not for four.

        Does nothing for those that are not there.
        """
        with disk(self.folder):
            for sample in samples:
                self._images.sync(sample)

    def samples_of(self, group: str, *, limit: int) -> list[Sample]:
        """Return a group's samples that nobody has labelled, newest first."""
        return self._samples("WHERE part = ? AND status != 'labelled' ORDER BY arrival DESC LIMIT ?", group, limit)

    def queue(self, limit: int) -> list[Sample]:
        """Return the samples an operator is asked about, most important first."""
        return self._samples("WHERE status = 'queued' ORDER BY priority DESC, arrival DESC LIMIT ?", limit)

    def waiting(self, limit: int) -> list[Waiting]:
        """Return what `queue` does, as far as a new head needs it."""
        rows = self._db.rows(
            "SELECT sample, space, code, reason, priority FROM samples WHERE status = 'queued'"
            " ORDER BY priority DESC, arrival DESC LIMIT ?",
            limit,
        )
        return [
            Waiting(sample, space, np.frombuffer(code, np.int8), Question(reason, priority))
            for sample, space, code, reason, priority in rows
        ]

    def queue_depth(self) -> int:
        """Return how many samples wait for an operator."""
        return int(self._db.value("SELECT count(*) FROM samples WHERE status = 'queued'"))

    def requeue(self, questions: Mapping[bytes, Question | None]) -> None:
        """Ask these queued samples' questions anew, by what a newer head thinks; None asks no more."""
        if not questions:
            return
        with self._db.transaction(durable=False) as db:
            for sample_id, question in questions.items():
                status = SampleStatus.SEEN if question is None else SampleStatus.QUEUED
                reason, priority = question or Question("", 0.0)
                db.execute(
                    "UPDATE samples SET status = ?, reason = ?, priority = ?"
                    " WHERE sample = ? AND status = 'queued'",
                    (status.value, reason, priority, sample_id),
                )

    def labelled_without_code(self, space: str) -> list[Sample]:
        """Return this device's labelled samples that have no code in this feature space, oldest first."""
        return self._samples(
            "WHERE status = 'labelled' AND NOT EXISTS (SELECT 1 FROM records WHERE records.sample = samples.sample"
            " AND records.space = ? AND records.code IS NOT NULL) ORDER BY arrival",
            bytes.fromhex(space),
        )

    def image(self, sample_id: bytes) -> bytes | None:
        """Return a sample's picture; None where it is not, or no longer, kept."""
        with disk(self.folder):
            return self._images.get(sample_id)

    def _get(self, key: str) -> Any:
        return self._db.value("SELECT value FROM meta WHERE key = ?", key)

    def _samples(self, tail: str, *values: object) -> list[Sample]:
        return [_sample(row) for row in self._db.rows(f"SELECT {_SAMPLE_COLUMNS} FROM samples {tail}", *values)]


@dataclass(frozen=True)
class StoreFacts:
    """What a store says of itself to somebody who only reads it.

    Attributes:
        device: Whose it is.
        entries: Of its own log.
        labelled: Samples with a label from here.
        lost: Of these, pictures that are gone or damaged; None where nobody looked.
    """

    device: str
    entries: int
    labelled: int
    lost: int | None


def check_store(file: Path, *, whole: bool) -> StoreFacts:
    """Read a store, whether or not an agent has it open, and return what it holds.

    Args:
        file: The SQLite file, its `images` folder beside it.
        whole: Also check every page, the own log's hash chain from end to end, and labelled pictures.

    Raises:
        StoreCorrupt: it is damaged, from a newer version, not ours, or its log does not hold together.
        StoreFull: it cannot be read.
    """
    with disk(file.parent), open_to_read(file, len(_MIGRATIONS), whole=whole) as db:
        (device,) = db.execute("SELECT value FROM meta WHERE key = 'device'").fetchone() or ("",)
        chain = Chain(device)
        for (raw,) in db.execute("SELECT entry FROM records WHERE device = ? ORDER BY seq", (device,)):
            entry = _decode_entry(raw)
            try:
                chain = chain.follow(entry) if whole else Chain(device, entry.seq, b"")
            except LabelError as error:
                raise damaged(f"{file}: {error}") from error
        labelled = [row[0] for row in db.execute("SELECT sample FROM samples WHERE status = 'labelled'")]
        lost = None
        if whole:
            images = ImageFolder(file.parent / IMAGES_NAME)
            lost = sum(images.get(sample) is None for sample in labelled)
        return StoreFacts(str(device), chain.seq, len(labelled), lost)


_SAMPLE_COLUMNS: Final = (
    "sample, captured_utc, part, space, code, decision, class_id, probability, novelty, unknown, status, reason,"
    " priority, source, lot"
)

_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(Entry)


def _decode_entry(raw: bytes) -> Entry:
    try:
        return _entry_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise damaged(f"a stored entry is damaged: {str(error)[:100]}") from error


def _check_readable(entry: Entry) -> None:
    # msgspec checks lengths only when it decodes; what nobody could read again must not enter the log.
    try:
        _entry_decoder.decode(_encoder.encode(entry))
    except msgspec.DecodeError as error:
        raise LabelError(
            f"this cannot be stored: {str(error)[:120]}", hint="Use a shorter name; names may not be empty."
        ) from error


def _insert(db: sqlite3.Connection, record: Record) -> None:
    entry = record.entry
    db.execute(
        "INSERT INTO records (device, seq, counter, sample, space, entry, code) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            entry.device,
            entry.seq,
            entry.counter,
            entry.body.sample if isinstance(entry.body, CodeRecord) else None,
            entry.body.space if isinstance(entry.body, CodeRecord) else None,
            _encoder.encode(entry),
            record.code,
        ),
    )


def _set(db: sqlite3.Connection, key: str, value: object) -> None:
    db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))


def _sample(row: tuple[Any, ...]) -> Sample:
    return Sample(
        sample_id=row[0],
        captured_utc=row[1],
        group=row[2],
        space=row[3],
        code=np.frombuffer(row[4], np.int8),
        decision=row[5],
        class_id=row[6],
        probability=row[7],
        novelty=row[8],
        unknown=bool(row[9]),
        status=SampleStatus(row[10]),
        reason=row[11],
        priority=row[12],
        source=row[13],
        lot=row[14],
    )
