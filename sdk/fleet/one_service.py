"""Who holds the turn of a fleet's one service, read without taking it.

The service holds a lock on `DIR/serve.lock`, and in PostgreSQL one on the database (`sdk.fleet.database`). Whoever
only asks leaves both as they are: a service that starts meanwhile finds them free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Connection, Engine, text

from sdk.errors import FleetError
from sdk.fleet.database import LOCK_NAME, POSTGRES, SERVICE_LOCK, mending_of
from sdk.owners import denied

_HOLDERS = text(
    "SELECT l.pid, host(a.client_addr), extract(epoch FROM a.backend_start) FROM pg_locks l "
    "LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted "
    "AND l.mode = 'ExclusiveLock' AND l.classid = :high AND l.objid = :low "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@dataclass(frozen=True)
class Holder:
    """Who holds the turn.

    Attributes:
        pid: The process of this machine, or of the database's server; None where nothing says so.
        since_utc: When it began, seconds since 1970; None where nothing says so.
        status: Of a process of this machine, as psutil calls it: running, sleeping, stopped; empty where unknown.
        host: From where it is connected with PostgreSQL; empty for this machine's own, or where that is not known.
    """

    pid: int | None = None
    since_utc: float | None = None
    status: str = ""
    host: str = ""


def served(directory: Path, engine: Engine) -> bool:
    """Return whether a service holds a fleet's directory, or its database, now.

    Raises:
        FleetError: the lock's file may not be read.
        DBAPIError: the database does not answer.
    """
    if holder_here(directory) is not None:
        return True
    if engine.dialect.name != POSTGRES:
        return False
    with engine.connect() as connection:
        return holder_at(connection) is not None


def holder_here(directory: Path) -> Holder | None:
    """Return who holds the directory, on this machine; None where nobody does.

    Raises:
        FleetError: the lock's file may not be read.
    """
    file = directory / LOCK_NAME
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _process(locked_by(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        if found := denied(directory, LOCK_NAME):
            raise FleetError(f"the fleet cannot be used: {found}", hint=mending_of(found)) from error
        raise FleetError(f"{file}: {error.strerror}", hint="Check the disk, and who may read there.") from error
    return None


def holder_at(connection: Connection) -> Holder | None:
    """Return who holds a PostgreSQL database; None where nobody does."""
    row = connection.execute(_HOLDERS, {"high": SERVICE_LOCK >> 32, "low": SERVICE_LOCK & 0xFFFF_FFFF}).first()
    if row is None:
        return None
    return Holder(row[0], None if row[2] is None else float(row[2]), host=row[1] or "")


def locked_by(file: Path, *, kind: str = "FLOCK", at: str | None = None) -> int | None:
    """Return the process that holds a lock for itself on a file, as the kernel lists it (proc_locks(5)).

    None where there is none, or nothing says so: on other systems, in another container, and on file systems
    that have another number for the kernel than for us.

    Args:
        file: It.
        kind: FLOCK, or POSIX for one of fcntl(2).
        at: The first byte that is locked; any, where None.
    """
    with contextlib.suppress(OSError, ValueError):
        facts = file.stat()
        place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, this, _, how, pid, where, first, *_ = line.split()
            if (this, how, where) == (kind, "WRITE", place) and at in (None, first):
                return int(pid) if int(pid) > 0 else None
    return None


def _process(pid: int | None) -> Holder:
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        if pid is not None:
            process = psutil.Process(pid)
            return Holder(pid, process.create_time(), process.status())
    return Holder(pid)
