"""What the page keeps beside the store: accounts and sessions, the audit log, marks, counters, settings.

One SQLite file, `page/page.sqlite3` in the agent's data folder. Labels are never here. Unlike the store it is
shared with `headway agent user`, which works while the agent runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from device_agent.database import Database, disk

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
    with disk(data_dir):
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
