"""Named values in the device's store, one row each: its owner, how far the log has come, what others keep.

Who sets a value says in which transaction, so that it is on disk with what it belongs to.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from device_agent.database import Database


class Meta:
    """The table of named values. Any thread may call.

    Args:
        db: The store's.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, key: str) -> Any:
        """Return the value of this name; None where there is none."""
        return self._db.value("SELECT value FROM meta WHERE key = ?", key)

    @staticmethod
    def put(db: sqlite3.Connection, key: str, value: object) -> None:
        """Set a value within an open transaction."""
        db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))
