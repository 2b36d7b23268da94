"""A fleet's SQLite: may this user use it, is every page whole, and does nobody keep its write lock?"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from sdk.disk_check import mib
from sdk.errors import DatabaseAway, FleetError
from sdk.finding import Finding, Level
from sdk.fleet.database import DATABASE_FILES, DATABASE_NAME, database_errors, in_use
from sdk.fleet.one_service import holder_here, locked_by
from sdk.fleet.port_holder import command_of
from sdk.owners import denied, mending, quote, user_name

RESTORE: Final = 'Restore it from a backup (docs/fleet.md, "What is where"): devices offer again what it lacks.'
WRITER_LOOKS: Final = 4
WRITER_LOOK_S: Final = 0.25
"""A label's commit holds the write lock for milliseconds: who has it at every look of a second is stuck, or at
something that keeps labels out."""
_WRITE_BYTE: Final = "120"
"""Where SQLite locks its index while it writes (wal.c, WAL_WRITE_LOCK)."""


def may_use(directory: Path) -> Generator[Finding, None, bool]:
    """Look whether this user may read and write what SQLite has there; return whether he may read it."""
    if found := denied(directory, *DATABASE_FILES):
        yield Finding(
            "database",
            Level.FAULT,
            str(found),
            f"Run this as the service's user: sudo -u {found.owner} headway fleet doctor --dir "
            f"{quote(directory)}. If that is {found.user}: {mending(found.user, found.path)}",
        )
        return False
    for place in (directory, directory / DATABASE_NAME):
        if place.exists() and not os.access(place, os.W_OK, effective_ids=True):
            me = user_name(os.geteuid())
            fix = f"How is that disk mounted? findmnt --target {quote(place)}. Else: {mending(me, place)}"
            yield Finding("database", Level.FAULT, f"{me} may not write to {place}: no label is stored", fix)
            break
    return True


def examine(directory: Path, engine: Engine) -> Iterator[Finding]:
    """Yield what is so of it, read as it was last committed."""
    file = directory / DATABASE_NAME
    began_s = time.monotonic()
    verdict = _verdict(directory, engine)
    took_s = time.monotonic() - began_s
    size = f"{mib(file.stat().st_size)} MiB"
    if verdict != "ok":
        yield Finding("database", Level.FAULT, f"{file} is damaged: {verdict[:200]}", RESTORE)
        return
    yield Finding(
        "database", Level.GOOD, f"{file}: SQLite, {size}, every page whole (quick_check, {took_s:.1f} s)"
    )
    if (writer := _stuck_writer(directory)) is not None:
        yield Finding(
            "database",
            Level.FAULT,
            f"process {writer} ({command_of(writer) or 'of another user'}) keeps the write lock of {file}: no "
            "label is stored meanwhile",
            f"Let it finish, or end it: kill {writer}",
        )


def _verdict(directory: Path, engine: Engine) -> str:
    """Return what SQLite says of its pages: "ok", or what is wrong."""
    while True:
        alone = not in_use(directory)
        try:
            with database_errors(directory), engine.connect() as connection:
                verdict = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
        except DatabaseAway:
            raise
        except (DatabaseError, FleetError) as error:
            verdict = str(getattr(error, "orig", error))
        if verdict != "ok" and alone and in_use(directory):
            continue  # a service began meanwhile: what was read as a file that does not change has changed
        return verdict


def _stuck_writer(directory: Path) -> int | None:
    """Return the process that holds the write lock at every look; None where nobody does, or the service works."""
    index, server = directory / f"{DATABASE_NAME}-shm", holder_here(directory)
    writer = locked_by(index, kind="POSIX", at=_WRITE_BYTE)
    for _ in range(1, WRITER_LOOKS):
        if writer is None or (server is not None and writer == server.pid):
            return None
        time.sleep(WRITER_LOOK_S)
        if locked_by(index, kind="POSIX", at=_WRITE_BYTE) != writer:
            return None
    return writer
