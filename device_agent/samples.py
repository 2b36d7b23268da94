"""Samples on the device: each decision with its code and picture, and which of them an operator is asked about.

Rules this module keeps:

- Pictures stay below their limit, and samples, questions, and questions of one part below theirs; what goes first
  is said at `StoreLimits`. A picture that operators may have labelled is never deleted, not even where nothing
  here knows it any more.
- A picture comes after its sample is written, and one whose sample goes is noted with that: what a kill leaves of
  either goes at the next start. One that is erased goes before its sample.
- A sample is written at once and synced later, with the next label or by `make_durable`: syncing each frame would
  wear the disk out.

Who is asked about what is `queue`'s; the pictures' files are `images`'.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from device_agent.database import Database, disk
from device_agent.images import ImageFolder
from device_agent.limits import StoreLimits
from device_agent.meta import Meta
from device_agent.queue import Question
from device_agent.room import Room
from device_agent.sample import COLUMNS, Sample, SampleStatus, Waiting, from_row
from sdk.codes import Code
from sdk.errors import LabelError, StoreFull
from sdk.labels import FLEET_LOG_PREFIX, Label

IMAGES_NAME: Final = "images"
_CODES: Final = (
    "SELECT 1 FROM records {one} WHERE {one}.sample = {sample} AND {one}.space IS NOT NULL"
    " AND ({one}.device = (SELECT value FROM meta WHERE key = 'device')"
    f" OR {{one}}.device GLOB '{FLEET_LOG_PREFIX}*')"
)
"""A sample's code records that this device goes by: its own and its fleet's. What another device says of a sample
that was labelled here neither brings a code nor takes one away (docs/labels.md, section 2)."""
_CODE_LEFT: Final = (
    f"{_CODES.format(one='r', sample='samples.sample')} AND {{space}} AND r.code IS NOT NULL"
    f" AND NOT EXISTS ({_CODES.format(one='l', sample='r.sample')} AND l.space = r.space"
    " AND (l.counter, l.device) > (r.counter, r.device))"
)
"""Whether the last of these in a feature space, by the order of the log, has its code."""
_TO_SAY: Final = (
    f"status = 'labelled' AND NOT EXISTS ({_CODE_LEFT.format(space='r.space = ?')})"
    f" AND (EXISTS ({_CODE_LEFT.format(space='TRUE')})"
    f" OR NOT EXISTS ({_CODES.format(one='r', sample='samples.sample')}))"
)
_EVICT_TO: Final = 0.95  # of the pictures' limit, so that not every frame has to look for what must go
_PRUNE_SHARE: Final = 0.05  # of the samples' limit, that go at once for the same reason
_PRUNE_AT_ONCE: Final = 100
"""And so many at most: the files of 100 are deleted in 2 to 6 ms, for which a label may have to wait."""
_GOING: Final = "going_pictures"
"""Named value: the samples whose rows were deleted last, and whose pictures go next, one id after the other."""
_ID_BYTES: Final = 32
_ASKED_AT_ONCE: Final = 500
"""Places of one statement; SQLite before 3.32 has 999."""


class Samples:
    """The samples that are kept, with their pictures. Any thread may call.

    Args:
        db: The store's.
        folder: The agent's data folder; pictures are in a folder of it.
        limits: How much is kept.
        room: Where samples are refused before labels are.
    """

    def __init__(self, db: Database, folder: Path, limits: StoreLimits, room: Room) -> None:
        self._db = db
        self._folder = folder
        self._limits = limits
        self._room = room
        self._images = ImageFolder(folder / IMAGES_NAME)
        self._image_bytes = 0  # under the database's lock, and so is:
        self._enough_until = -1  # while no more rows than this have been changed, samples are not too many

    def tidy(self) -> None:
        """Delete pictures that a crash left half written, or left where their samples had gone; note sizes that an
        earlier version did not.

        Raises:
            StoreFull: the disk takes no writes.
        """
        with disk(self._folder):
            self._images.sweep()
            going: bytes = Meta(self._db).get(_GOING) or b""
            ids = [going[at : at + _ID_BYTES] for at in range(0, len(going), _ID_BYTES)]
            self._images.drop(each for each in ids if self.get(each) is None)
            unknown = [row[0] for row in self._db.rows("SELECT sample FROM samples WHERE size_bytes = 0")]
            sizes = [(self._images.size_bytes(sample), sample) for sample in unknown]
        with self._db.transaction(durable=False) as db:
            db.executemany(
                "UPDATE samples SET size_bytes = ? WHERE sample = ?", [each for each in sizes if each[0]]
            )
        self._image_bytes = int(self._db.value("SELECT coalesce(sum(size_bytes), 0) FROM samples"))

    def put(self, sample: Sample, image: bytes | None) -> SampleStatus:
        """Store a decision and its picture; return the status it now has.

        It is written at once, but a power cut (not a crash) may take the last of them: syncing each frame would
        wear the disk out. A sample seen before keeps its group, and stays queued or labelled. A question that its
        group has been asked often enough, or that is the least important of a full queue, is not asked.

        Raises:
            StoreFull: less than `reserve_bytes` are free, or the store is at its limit; nothing was stored.
        """
        with self._db.lock, disk(self._folder):
            size_bytes = 0 if image is None else len(image)
            self._room.check_reserve(size_bytes)
            self._check_image_room(size_bytes)
            with self._images.coming(sample.sample_id, image):
                with self._db.transaction(durable=False) as db:
                    status, more = self._upsert_sample(db, sample, size_bytes)
                    if status is SampleStatus.QUEUED:
                        status = self._bound_queue(db, sample.sample_id)
                    gone, enough_until = self._prune_samples(db)
                    total = self._image_bytes + more - sum(size for _, size in gone)
                    if total > self._limits.max_image_bytes:
                        evicted = self._evict(db, total, sample.sample_id)
                        total -= sum(size for _, size in evicted)
                        gone += evicted
                    if gone:
                        Meta.put(db, _GOING, b"".join(each for each, _ in gone))
                self._image_bytes, self._enough_until = total, enough_until
            self._images.drop(each for each, _ in gone)
            return status

    def _check_image_room(self, size_bytes: int) -> None:
        """Refuse a picture that would not have room even if everything without a label went."""
        limit = self._limits.max_image_bytes
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
        """Delete the samples that matter least until pictures are below their limit; return what went.

        As far below as `_EVICT_TO`, unless that takes more than `_PRUNE_AT_ONCE` of them.
        """
        rows = db.execute(
            "WITH last AS (SELECT part FROM samples GROUP BY part ORDER BY max(arrival) DESC LIMIT ?)"
            " SELECT sample, size_bytes FROM samples WHERE status != 'labelled' AND sample != ?"
            " ORDER BY status = 'queued', part IN last, priority, arrival",
            (self._limits.keep_parts, just_now),
        ).fetchall()
        gone: list[tuple[bytes, int]] = []
        for sample, size_bytes in rows:
            enough = total <= self._limits.max_image_bytes and len(gone) >= _PRUNE_AT_ONCE
            if enough or total <= self._limits.max_image_bytes * _EVICT_TO:
                break
            gone.append((sample, size_bytes))
            total -= size_bytes
        db.executemany("DELETE FROM samples WHERE sample = ?", [(sample,) for sample, _ in gone])
        return gone

    def _upsert_sample(self, db: sqlite3.Connection, s: Sample, size_bytes: int) -> tuple[SampleStatus, int]:
        """Return the status, and by how much the pictures grew."""
        old: tuple[Any, ...] | None = db.execute(
            "SELECT status, part, reason, priority, size_bytes, lot, camera FROM samples WHERE sample = ?",
            (s.sample_id,),
        ).fetchone()
        status, group, reason, priority = s.status, s.group, s.reason, s.priority
        before, lot, camera = 0, s.lot, s.camera
        if old is not None:
            group, before, lot, camera = old[1], old[4], s.lot or old[5], s.camera or old[6]
            size_bytes = size_bytes or before
            was = SampleStatus(old[0])
            if was is SampleStatus.LABELLED or (was is SampleStatus.QUEUED and status is SampleStatus.SEEN):
                status, _, reason, priority = was, *old[1:4]
        if status is SampleStatus.QUEUED and (old is None or old[0] == SampleStatus.SEEN.value):
            asked = self._db.value("SELECT count(*) FROM samples WHERE part = ? AND status != 'seen'", group)
            if asked >= self._limits.queue_per_group:
                status, reason, priority = SampleStatus.SEEN, "", 0.0
        db.execute(
            "REPLACE INTO samples VALUES ((SELECT coalesce(max(arrival), 0) + 1 FROM samples),"
            "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                s.defect,
                s.rejected,
                camera,
            ),
        )
        return status, size_bytes - before

    def _bound_queue(self, db: sqlite3.Connection, just_now: bytes) -> SampleStatus:
        """Ask no more questions than may wait; return what became of the newest."""
        db.execute(
            "UPDATE samples SET status = 'seen', reason = '', priority = 0 WHERE sample IN (SELECT sample"
            " FROM samples WHERE status = 'queued' ORDER BY priority DESC, arrival DESC LIMIT -1 OFFSET ?)",
            (self._limits.queue,),
        )
        row = db.execute("SELECT status FROM samples WHERE sample = ?", (just_now,)).fetchone()
        return SampleStatus(row[0])

    def _prune_samples(self, db: sqlite3.Connection) -> tuple[list[tuple[bytes, int]], int]:
        """Delete the oldest samples that nobody is asked about, where they are too many; return what went.

        Also return how many rows of the store may have been changed in all before they can be too many again: one
        sample more is one row changed, whoever changes it. To count them at each frame took 0.8 ms where 20,000
        are kept.
        """
        if db.total_changes <= self._enough_until:
            return [], self._enough_until
        keep = self._limits.keep_samples
        (seen,) = db.execute("SELECT count(*) FROM samples WHERE status = 'seen'").fetchone()
        gone: list[tuple[bytes, int]] = []
        if seen > keep:
            gone = db.execute(
                "DELETE FROM samples WHERE sample IN (SELECT sample FROM samples WHERE status = 'seen'"
                " ORDER BY arrival DESC LIMIT -1 OFFSET ?) RETURNING sample, size_bytes",
                (keep - min(int(keep * _PRUNE_SHARE), _PRUNE_AT_ONCE),),
            ).fetchall()
        return gone, db.total_changes + keep - (seen - len(gone))

    def mark_labelled(self, db: sqlite3.Connection, label: Label) -> None:
        """Note within a transaction what an operator said, and make the picture durable with it."""
        status = SampleStatus.SEEN if label.class_id is None else SampleStatus.LABELLED
        db.execute("UPDATE samples SET status = ? WHERE sample = ?", (status.value, label.sample))
        self._images.sync(label.sample)

    def erase(self, sample_id: bytes) -> bool:
        """Delete a sample that has no label, and its picture; what the label log has of it stays. Durable when it
        returns. A picture that has no sample goes too: see that nobody has labelled it elsewhere.

        Returns:
            Whether there was anything.

        Raises:
            LabelError: it is labelled.
            StoreFull: the disk takes no writes; the sample is still there to be erased again.
        """
        with self._db.lock, disk(self._folder):
            with self._db.transaction() as db:
                row = db.execute(
                    "DELETE FROM samples WHERE sample = ? AND status != 'labelled' RETURNING size_bytes",
                    (sample_id,),
                ).fetchone()
                if row is None and db.execute("SELECT 1 FROM samples WHERE sample = ?", (sample_id,)).fetchone():
                    raise LabelError(
                        f"sample {sample_id.hex()[:12]} is labelled", hint="Withdraw its label first."
                    )
                # First the picture: cut short before the row is gone for good, there is a row to erase it by.
                there = self._images.erase(sample_id)
            self._image_bytes -= 0 if row is None else row[0]
            return there or row is not None

    def get(self, sample_id: bytes) -> Sample | None:
        """Return a sample; None where it is not, or no longer, kept."""
        row = self._db.row(f"SELECT {COLUMNS} FROM samples WHERE sample = ?", sample_id)
        return None if row is None else from_row(row)

    def among(self, samples: Sequence[bytes]) -> dict[bytes, Sample]:
        """Return those of these samples that are kept."""
        found: dict[bytes, Sample] = {}
        for at in range(0, len(samples), _ASKED_AT_ONCE):
            ids = samples[at : at + _ASKED_AT_ONCE]
            marks = ", ".join("?" * len(ids))
            found |= {s.sample_id: s for s in self._select(f"WHERE sample IN ({marks})", *ids)}
        return found

    def newest(self, *, limit: int, status: SampleStatus | None = None, offset: int = 0) -> list[Sample]:
        """Return samples, newest first."""
        if status is None:
            return self._select("ORDER BY arrival DESC LIMIT ? OFFSET ?", limit, offset)
        return self._select("WHERE status = ? ORDER BY arrival DESC LIMIT ? OFFSET ?", status.value, limit, offset)

    def newest_codes(self, space: str, *, limit: int) -> list[Code]:
        """Return those codes of the newest samples that are of this feature space, newest first."""
        rows = self._db.rows("SELECT space, code FROM samples ORDER BY arrival DESC LIMIT ?", limit)
        return [np.frombuffer(code, np.int8) for of, code in rows if of == space]

    def make_durable(self, samples: Iterable[bytes]) -> None:
        """Make pictures durable that somebody is about to label: the label then waits for one sync, not for four.

        Does nothing for those that are not there.
        """
        with disk(self._folder):
            for sample in samples:
                self._images.sync(sample)

    def of_group(self, group: str, *, limit: int) -> list[Sample]:
        """Return a group's samples that nobody has labelled, newest first."""
        return self._select("WHERE part = ? AND status != 'labelled' ORDER BY arrival DESC LIMIT ?", group, limit)

    def queue(self, limit: int) -> list[Sample]:
        """Return the samples an operator is asked about, most important first."""
        return self._select("WHERE status = 'queued' ORDER BY priority DESC, arrival DESC LIMIT ?", limit)

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
        """Return this device's labelled samples whose code in this feature space is to be said, oldest first.

        Those that have none there, or whose last one was erased. But not those of which no code is left in any
        space: these were erased for good, and come back with a person's label only (docs/labels.md, section 7).
        """
        return self._select(f"WHERE {_TO_SAY} ORDER BY arrival", bytes.fromhex(space))

    def is_without_code(self, sample_id: bytes, space: str) -> bool:
        """Return whether a sample is one of `labelled_without_code`."""
        found = self._db.row(
            f"SELECT 1 FROM samples WHERE {_TO_SAY} AND sample = ?", bytes.fromhex(space), sample_id
        )
        return found is not None

    def labelled_pictures(self) -> int:
        """Return how many pictures with a label from here are kept."""
        return int(self._db.value("SELECT count(*) FROM samples WHERE status = 'labelled' AND size_bytes > 0"))

    def image(self, sample_id: bytes) -> bytes | None:
        """Return a sample's picture; None where it is not, or no longer, kept. Waits for no write."""
        if self._db.committed("SELECT 1 FROM samples WHERE sample = ?", sample_id) is None:
            return None
        with disk(self._folder):
            return self._images.get(sample_id)

    def _select(self, tail: str, *values: object) -> list[Sample]:
        return [from_row(row) for row in self._db.rows(f"SELECT {COLUMNS} FROM samples {tail}", *values)]
