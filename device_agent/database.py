"""One SQLite file that is ours, whole and of a version we know; short transactions from any thread; plain errors.

Rules this module keeps:

- WAL, and `synchronous=FULL` for what must survive a power cut when the call returns. Other transactions are only
  written: the next durable one takes them along.
- A transaction happens whole or not at all, also when the disk fills in the middle of it.
- What SQLite and the file system say becomes `StoreFull` (no write is possible now; it may be later) or
  `StoreCorrupt` (the file is damaged, another program's, or from a newer version).
- One process per folder: a lock file refuses the second, unless the file is meant to be shared.
- Before its schema changes the file is copied beside itself, to `store.sqlite3.5` of schema 5, where there is
  room: the Headway of before goes back to that (docs/agent.md, "Update").
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from device_agent.limits import StoreLimits
from sdk.durable import PARTIAL, give_to_owner, sync_path
from sdk.errors import ConfigError, HeadwayError, StoreCorrupt, StoreFull
from sdk.owners import denied, mending

_log = logging.getLogger(__name__)

LOCK_NAME: Final = "store.lock"
APPLICATION_ID: Final = 0x48575931
"""Tells our SQLite files from other programs'."""
BUSY_TIMEOUT_S: Final = 5.0
MAX_KEPT_BYTES: Final = 512 * 1024**2
"""A minute on a slow card (10 MB/s); systemd waits two for the agent to be ready."""
_PAGE_BYTES: Final = 4096
_RESTORE: Final = (
    "Move the file away and start again: the device fetches its log from the fleet; or `headway agent restore`."
)


class Database:
    """An SQLite file. Hold `lock` where several calls must not be interleaved with other threads'.

    Args:
        path: The file; made where it is missing, in a folder that exists.
        migrations: Statements from schema n to n + 1. `PRAGMA user_version` says how many have been run.
        max_bytes: Its largest size.
        shared: Other processes may have it open too; each transaction is whole all the same.
        cache_kib: Pages kept in memory, at most; SQLite's own default.
        overwrite: What is deleted is overwritten with zeros, not only given free.
        on_copy: Statements for the copy that is kept of an earlier schema: what is so of an old copy only.

    Raises:
        ConfigError: another process has the folder's lock.
        StoreCorrupt: the file is damaged, another program's, or has a newer schema.
        StoreFull: the disk takes no writes.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[Sequence[str]],
        *,
        max_bytes: int,
        shared: bool = False,
        cache_kib: int = 2000,
        overwrite: bool = False,
        on_copy: Sequence[str] = (),
    ) -> None:
        self.lock = threading.RLock()
        self._path, self._folder = path, path.parent
        self._durable: bool | None = None  # what `synchronous` was last set to; None where nobody can know
        with disk(path.parent, opening=True):
            self._lock_file = _take_lock(path.parent, shared)
            try:
                self._db = _connect(path, migrations, max_bytes, cache_kib, on_copy)
                if overwrite:  # left to itself it does what it was built for, which differs
                    self._db.execute("PRAGMA secure_delete = ON")
            except BaseException:
                self._lock_file.close()
                raise

    def close(self) -> None:
        """Write everything back into the one file and let go of it. Closing twice is harmless."""
        with self.lock:
            if self._lock_file.closed:
                return
            self.shrink()  # a full disk does not keep us from stopping
            self._db.close()
            self._lock_file.close()

    def shrink(self) -> None:
        """Write SQLite's log back into the file and give its room up: on a full disk it cannot grow any more."""
        with self.lock, contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rewrite(self) -> None:
        """Write the file anew, with nothing in it, its copy or SQLite's log of what was deleted.

        It takes as long as the file is large.

        Overwriting alone does not do that: a row that SQLite has moved to another page stays in the room it left.

        Raises:
            StoreFull: there is no room for a second file, or another process does not let go of this one.
        """
        with self.lock, disk(self._folder):
            for copy in _copies(self._path):  # of an earlier schema: what was deleted since is in it
                copy.unlink(missing_ok=True)
            self._db.execute("VACUUM")
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise _full(self._folder, "the database is locked")

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Commit at the end, or change nothing. Durable ones, and all before them, survive a power cut."""
        with self.lock, disk(self._folder):
            self._be_durable(durable)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _be_durable(self, durable: bool) -> None:
        # SQLite compiles a PRAGMA anew each time it is run: a fifth of what storing a sample took.
        if durable != self._durable:
            self._durable = None
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.lock, disk(self._folder):
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query; None where there is none."""
        rows = self.rows(sql, *values)
        return rows[0] if rows else None

    def committed(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query, as last committed: it does not wait for a write that the disk keeps."""
        with disk(self._folder), contextlib.closing(sqlite3.connect(read_uri(self._path), uri=True)) as db:
            found: tuple[Any, ...] | None = db.execute(sql, values).fetchone()
            return found

    def value(self, sql: str, *values: object) -> Any:
        """Return the first column of the first row; None where there is none."""
        row = self.row(sql, *values)
        return None if row is None else row[0]


def read_uri(path: Path) -> str:
    """Return the URI to read a file of ours by, also on a disk that is mounted read-only."""
    # SQLite reads WAL files through a shared one beside them, which it must be able to make. A file without a log
    # in a folder that nobody can write to does not change.
    still = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    return f"{path.resolve().as_uri()}?{'immutable=1' if still else 'mode=ro'}"


@contextlib.contextmanager
def open_to_read(path: Path, newest: int, *, whole: bool) -> Iterator[sqlite3.Connection]:
    """Open a file of ours to read it as it stands now, also while an agent writes to it.

    Args:
        path: The file.
        newest: The newest schema that this version knows.
        whole: Check every page and index, which reads all of it.

    Raises:
        StoreCorrupt: it is damaged, another program's, or has a newer schema.
    """
    db = sqlite3.connect(read_uri(path), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        _check(db, path, newest)
        if whole:
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(f"{path} is damaged: {str(verdict)[:100]}")
        db.execute("BEGIN")
        yield db
    finally:
        db.close()


def damaged(what: str) -> StoreCorrupt:
    """Return the error for something in the store that is not what it was."""
    return StoreCorrupt(what, hint=_RESTORE)


def _take_lock(folder: Path, shared: bool) -> IO[bytes]:
    lock = (folder / LOCK_NAME).open("ab")
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ConfigError(
            f"another agent has the store in {folder} open",
            hint="Stop it, or give this one another data folder.",
        ) from error
    return lock


def _connect(
    path: Path, migrations: Sequence[Sequence[str]], max_bytes: int, cache_kib: int, on_copy: Sequence[str]
) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    try:
        _check(db, path, len(migrations))
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute(f"PRAGMA cache_size = -{cache_kib}")
        db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // _PAGE_BYTES)}")
        _migrate(db, path, migrations, on_copy)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path, newest: int) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is another program's", hint="Give the agent a data folder of its own.")
    if version > newest:
        kept = path.with_name(f"{path.name}.{newest}")
        back = f" Or go back: {kept} is the file as it was before (docs/agent.md)." if kept.is_file() else ""
        raise StoreCorrupt(
            f"{path} has schema {version}, this Headway knows {newest}",
            hint=f"Install the version of Headway that last ran here, or a newer one.{back}",
        )
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(f"{path} is damaged: {str(verdict)[:100]}")


def _migrate(
    db: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]], on_copy: Sequence[str]
) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == len(migrations):
        return
    kept = _keep(db, path, version, on_copy) if version else None
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute(
        "PRAGMA user_version"
    ).fetchone()  # of a shared file another process may have been faster
    for statements in migrations[version:]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {len(migrations)}")
    db.execute("COMMIT")
    if version:
        _log.warning(
            "%s was brought from schema %d to %d; %s",
            path,
            version,
            len(migrations),
            f"as it was before: {kept}" if kept else "an earlier Headway opens it no more",
        )


def _keep(db: sqlite3.Connection, path: Path, version: int, on_copy: Sequence[str]) -> Path | None:
    """Copy the file as it is, for the Headway that knows no newer schema; return where, None where it cannot be.

    One copy is kept. That there is no room, or too much to copy, keeps no line from starting.
    """
    (size_bytes,) = db.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()
    kept = path.with_name(f"{path.name}.{version}")
    draft = path.with_name(f".{path.name}{PARTIAL}")
    try:
        draft.unlink(missing_ok=True)  # a kill left it
        # The change may write as much again, into SQLite's log.
        free_bytes = shutil.disk_usage(path.parent).free - StoreLimits().reserve_bytes
        if size_bytes > MAX_KEPT_BYTES or free_bytes < 2 * size_bytes:
            why = f"it has {_mib(size_bytes)} MiB, and {_mib(max(0, free_bytes))} MiB are free"
        else:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            db.execute("VACUUM INTO ?", (str(draft),))
            with contextlib.closing(sqlite3.connect(draft)) as copy, copy:
                for statement in on_copy:
                    copy.execute(statement)
            give_to_owner(draft, path)
            sync_path(draft)
            draft.replace(kept)
            sync_path(path.parent)
            for other in _copies(path):
                if other != kept:
                    other.unlink(missing_ok=True)
            return kept
    except (OSError, sqlite3.Error) as error:
        why = str(error)
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    _log.warning("%s is not copied before its schema changes: %s", path, why)
    return None


def _copies(path: Path) -> list[Path]:
    return [each for each in path.parent.glob(f"{path.name}.*") if each.name[len(path.name) + 1 :].isdecimal()]


def _mib(size_bytes: int) -> int:
    return size_bytes // 1024**2


_NO_WRITES: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
}
_NO_WRITES_SQLITE: Final = ("is full", "disk I/O error", "readonly database", "unable to open", "is locked")


_DENIED: Final = (errno.EACCES, errno.EPERM)
_DENIED_SQLITE: Final = ("readonly database", "unable to open")


@contextlib.contextmanager
def disk(folder: Path, *, opening: bool = False) -> Iterator[None]:
    """Turn what SQLite and the file system say about a folder into our errors.

    Args:
        folder: Where it is.
        opening: Whoever asks ends where this fails, and has to be started again.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError, HeadwayError):
        raise  # our own mistakes, and what is translated already
    except sqlite3.DatabaseError as error:
        # Python 3.10 does not tell SQLite's error codes, only their texts.
        text = str(error)
        if any(part in text for part in _DENIED_SQLITE) and (refusal := _denied(folder, folder)):
            raise refusal from error
        if any(part in text for part in _NO_WRITES_SQLITE):
            raise _full(folder, text, opening=opening) from error
        raise damaged(f"the store in {folder} is damaged: {text}") from error
    except OSError as error:
        if error.errno not in _NO_WRITES:
            raise
        if error.errno in _DENIED and isinstance(error.filename, str | os.PathLike):
            refusal = _denied(folder, Path(error.filename).parent)
            if refusal is not None:
                raise refusal from error
        raise _full(folder, _NO_WRITES[error.errno], opening=opening) from error


def _full(folder: Path, what: str, *, opening: bool = False) -> StoreFull:
    again = "then start it again" if opening else "then try again, no restart is needed"
    return StoreFull(
        f"nothing can be stored in {folder}: {what}",
        hint=f"Free space there, or check the disk and its permissions; {again}.",
    )


def _denied(folder: Path, place: Path) -> StoreFull | None:
    """Return the error that names whose a file is; None where no file in that place is another user's."""
    for each in (place, folder):
        if found := denied(each):
            return StoreFull(
                f"nothing can be stored in {folder}: {found}",
                hint=f"{mending(found.user, folder)}; `headway doctor` looks for more of them.",
            )
    return None
