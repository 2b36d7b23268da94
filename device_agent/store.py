"""What must survive on the device: label log, outbox, samples with their pictures, heads, updates.

One SQLite file (`store.sqlite3`, WAL) and a folder of pictures, in the agent's data folder. Here it is opened, put
together of its parts, and read from outside. The parts share one file and its lock, and so one transaction where
something belongs to two of them: a label and its sample's status.

Rules the store keeps:

- A label is on disk before `log.append` returns, and its code record, the sample's status and the picture are on
  disk with it (`label_log`).
- When the disk is full, or the store at its size limit, writing raises `StoreFull` and changes nothing; it works
  again without a restart as soon as there is room. Samples are refused earlier than labels, so that what an
  operator types finds room longest (`room`).
- A picture that operators may have labelled is never deleted (`samples`).

SQLite itself is `database`'s, its tables `schema`'s; what the records mean is the learner's; what goes over the
wire is `sync`'s. Any thread may call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_agent.database import Database, damaged, disk, open_to_read
from device_agent.heads_and_updates import MAY_SERVE, NEWEST_UPDATES, Heads, Updates, in_service, update_row
from device_agent.images import ImageFolder
from device_agent.label_log import ON_COPY, LabelLog, decode_entry
from device_agent.limits import StoreLimits
from device_agent.meta import Meta
from device_agent.room import Room
from device_agent.samples import IMAGES_NAME, Samples
from device_agent.schema import MIGRATIONS
from sdk.durable import sync_path
from sdk.errors import ConfigError, LabelError
from sdk.labels import Chain

STORE_NAME: Final = "store.sqlite3"


class Store:
    """The device's durable state. Use `Store.open`; close it or use it in a `with` block.

    Attributes:
        folder: The agent's data folder.
        device: Whose it is.
        limits: How much it keeps.
        log: The label log and the outbox.
        samples: Samples with their pictures, and the questions about them.
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
        self._meta = Meta(db)
        self._room = Room(folder, db, limits)
        self.samples = Samples(db, folder, limits, self._room)
        self.log = LabelLog(
            db,
            self._meta,
            device,
            clock=clock,
            outbox=limits.outbox,
            with_room=self._room.found_for,
            on_label=self.samples.mark_labelled,
        )
        self.heads = Heads(db, keep=limits.keep_heads)
        self.updates = Updates(db, clock=clock, with_room=self._room.found_for)

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
        with disk(folder, opening=True):
            made = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for each in made:
                sync_path(each.parent)  # else a power cut may take the whole folder, synced files and all
            db = Database(folder / STORE_NAME, MIGRATIONS, max_bytes=limits.max_store_bytes, on_copy=ON_COPY)
            try:
                store = cls(folder, device, db, clock=clock, limits=limits)
                store._load()
            except BaseException:
                db.close()
                raise
        return store

    def held(self) -> AbstractContextManager[object]:
        """Return what nobody else writes here within: what the caller has looked at stays until it has written."""
        return self._db.lock

    def close(self) -> None:
        """Let go of the store. Closing twice is harmless."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        owner = self._meta.get("device")
        if owner is None:
            with self._db.transaction() as db:
                self._meta.put(db, "device", self.device)
            sync_path(self.folder)
        elif owner != self.device:
            raise ConfigError(
                f"the store in {self.folder} belongs to device {owner!r}, not {self.device!r}",
                hint="Use that device id, or another data folder.",
            )
        self.samples.tidy()
        self._room.make_ballast()

    @property
    def ballast_given_up(self) -> bool:
        """Whether the disk was full, and is not free enough yet to make the ballast again."""
        return self._room.ballast_given_up

    def keep(self, key: str, value: bytes) -> None:
        """Keep a value under a name; when it returns it is on disk.

        Raises:
            StoreFull: no room; the value kept before is still there.
        """
        with self._db.transaction() as db:
            self._meta.put(db, f"kept/{key}", value)

    def kept(self, key: str) -> bytes | None:
        """Return what is kept under a name; None if nothing is."""
        value = self._meta.get(f"kept/{key}")
        return value if isinstance(value, bytes) else None


def read_kept(file: Path, key: str) -> bytes | None:
    """Return what a store keeps under a name, whether or not an agent has it open; None if nothing is.

    Raises:
        StoreCorrupt, StoreFull: as `check_store`.
    """
    with disk(file.parent), open_to_read(file, len(MIGRATIONS), whole=False) as db:
        row = db.execute("SELECT value FROM meta WHERE key = ?", (f"kept/{key}",)).fetchone()
    return row[0] if row is not None and isinstance(row[0], bytes) else None


def read_in_service(file: Path) -> list[str]:
    """Return the ids of the releases that an agent with this store would serve, the first whose slot is whole.

    Whether or not one has it open. Empty where no update brought a release.

    Raises:
        StoreCorrupt, StoreFull: as `check_store`.
    """
    with disk(file.parent), open_to_read(file, len(MIGRATIONS), whole=False) as db:
        rows = db.execute(NEWEST_UPDATES, (MAY_SERVE,)).fetchall()
    return [row.release_id for row in in_service(update_row(row) for row in rows)]


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
    with disk(file.parent), open_to_read(file, len(MIGRATIONS), whole=whole) as db:
        (device,) = db.execute("SELECT value FROM meta WHERE key = 'device'").fetchone() or ("",)
        chain = Chain(device)
        for (raw,) in db.execute("SELECT entry FROM records WHERE device = ? ORDER BY seq", (device,)):
            entry = decode_entry(raw)
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
