"""The tables of the device's store, and what one schema adds to the one before.

`records` is `label_log`'s, `samples` is `samples`', `heads` and `updates` are `heads_and_updates`', and named
values are `meta`'s. A migration that has been released never changes.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
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
    (
        # Whether it is a label that was given here: the fleet may send entries under this device's own name.
        "ALTER TABLE records ADD COLUMN here INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX labels_given_here ON records (arrival) WHERE here",
        # Entries of before, of which nobody can tell: an undo among them that was refused takes effect now.
        "UPDATE records SET here = 1 WHERE device = (SELECT value FROM meta WHERE key = 'device')",
    ),
    ("ALTER TABLE samples ADD COLUMN defect REAL", "ALTER TABLE samples ADD COLUMN rejected INTEGER"),
    ("ALTER TABLE samples ADD COLUMN camera TEXT NOT NULL DEFAULT ''",),
)
"""Statements from schema n to n + 1; `PRAGMA user_version` says how many have been run."""
