"""What the page keeps beside the store: accounts and sessions, the audit log, marks, counters, settings.

One SQLite file, `page/page.sqlite3` in the agent's data folder. Labels are never here. Unlike the store it is
shared with `headway agent user`, which works while the agent runs.

It names people, so no backup takes it. What the station goes by is in the store too, which backups take: a
restored device rejects what it rejected (`StationSetting`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from device_agent.database import Database, disk
from device_agent.store import Store
from sdk.errors import StoreFull

FOLDER: Final = "page"
BOOK_NAME: Final = "page.sqlite3"
MAX_BYTES: Final = 64 * 1024**2
"""`access.KEEP_AUDIT` lines take a third of it."""

MIGRATIONS: Final = (
    (
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        # `id` is what the label log says of this person; `name` goes when the account does.
        """CREATE TABLE accounts (
            id TEXT PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, role TEXT NOT NULL, secret TEXT,
            created_utc REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE sessions (
            token BLOB PRIMARY KEY, account TEXT NOT NULL, csrf TEXT NOT NULL, began_utc REAL NOT NULL,
            used_utc REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE tokens (
            token BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, role TEXT NOT NULL,
            created_utc REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE tries (
            who TEXT PRIMARY KEY, failed INTEGER NOT NULL, until_utc REAL NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE audit (
            number INTEGER PRIMARY KEY AUTOINCREMENT, at_utc REAL NOT NULL, who TEXT NOT NULL,
            action TEXT NOT NULL, what TEXT NOT NULL, address TEXT NOT NULL)""",
        "CREATE TABLE unsure (sample BLOB PRIMARY KEY, at_utc REAL NOT NULL, who TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE counts (
            slot INTEGER NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (slot, what))
            WITHOUT ROWID""",
    ),
)
"""Statements from schema n to n + 1."""


def open_book(data_dir: Path) -> Database:
    """Return the page's own file in an agent's data folder; made where it is missing.

    Raises:
        StoreCorrupt: it is damaged, or of a newer version.
        StoreFull: the disk takes no writes.
    """
    folder = data_dir / FOLDER
    with disk(data_dir, opening=True):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # secrets' hashes are in it
    return Database(folder / BOOK_NAME, MIGRATIONS, max_bytes=MAX_BYTES, shared=True, overwrite=True)


def setting(book: Database, key: str) -> str | None:
    """Return a setting; None where nobody has set it."""
    value = book.value("SELECT value FROM settings WHERE key = ?", key)
    return None if value is None else str(value)


def set_setting(book: Database, key: str, value: str) -> None:
    """Store a setting; durable when it returns."""
    with book.transaction() as db:
        db.execute("REPLACE INTO settings VALUES (?, ?)", (key, value))


class StationSetting:
    """Something that the station goes by, in the page's file, and the same in its store. Any thread may call.

    The page's file has the last word where both say something: an older Headway, which may have run here in
    between, writes it alone. It has none after a restore, or where somebody had to move it away.

    Args:
        book: The page's file.
        store: The station's.
        key: Its name in both.
    """

    def __init__(self, book: Database, store: Store, key: str) -> None:
        self._book, self._store, self._key = book, store, key
        stored = setting(book, key)
        if stored is not None and stored.encode() != store.kept(key):
            with contextlib.suppress(StoreFull):  # it keeps nobody from starting; the next start tries again
                store.keep(key, stored.encode())

    def get(self) -> bytes | None:
        """Return it; None where nobody has set it."""
        stored = setting(self._book, self._key)
        return self._store.kept(self._key) if stored is None else stored.encode()

    def set(self, value: bytes) -> None:
        """Store it; on disk in both files when this returns.

        Raises:
            StoreFull: the disk takes no writes.
        """
        # The store first: where only this is written, the page's file says at the next start what it was.
        self._store.keep(self._key, value)
        set_setting(self._book, self._key, value.decode())
