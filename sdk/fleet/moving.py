"""Moving a fleet from the SQLite in its directory to PostgreSQL: every row, compared, or nothing.

Rules this module keeps:

- The fleet is the one in `fleet.db` until `database.url` names the other, which is the last step but one. That
  file is on disk, under another name, before the first row goes over.
- A move that was cut short anywhere before is made again by the same command, also when the fleet has gone on
  since: a copy bears a mark with its sums until it is in use. It is taken away as long as nobody has changed it
  and the fleet has all of its log.
- Nobody else writes meanwhile: the one service's lock is held in both places, and SQLite's write lock.
- `fleet.db` is kept, under another name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, Row, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError

from sdk.durable import PARTIAL, appearing, sync_path
from sdk.errors import FleetError
from sdk.fleet.database import DATABASE_NAME, URL_NAME, ServiceLock, check_encoding, engine_at, engine_of
from sdk.fleet.labellog import log_rows
from sdk.fleet.schema import bring_up_to_date
from sdk.fleet.store import FleetStore
from sdk.fleet.tables import Base, ChannelRow, DeviceRow, EntryRow, PublicationRow
from sdk.logrows import Checked
from sdk.owners import give_to_owner_of

BATCH_ROWS: Final = 500
"""Read and written at once: a record with its code is a few kilobytes."""
_MARK: Final = "headway fleet move-store: a copy that is not in use yet, "
KEPT_NAME: Final = f"{DATABASE_NAME}.moved"


@dataclass(frozen=True)
class Moved:
    """What was moved.

    Attributes:
        rows: How many, by table.
        kept: Where the SQLite database is now.
    """

    rows: dict[str, int]
    kept: Path


@dataclass
class _Sum:
    """Of a table's rows, in whatever order: the two databases sort texts differently."""

    rows: int = 0
    hashes: int = 0

    def add(self, row: Row[tuple[object, ...]]) -> None:
        digest = hashlib.sha256(repr(tuple(row)).encode()).digest()
        self.rows, self.hashes = self.rows + 1, (self.hashes + int.from_bytes(digest, "big")) % (1 << 256)


def move_store(directory: Path, url: str) -> Moved:
    """Move a fleet from SQLite to a PostgreSQL database, and let its directory name that from now on.

    Args:
        directory: The fleet's.
        url: An empty database of its own: `postgresql://user:password@host/name`.

    Raises:
        FleetError: the directory holds no fleet in SQLite, a service runs on it, the database is no PostgreSQL,
            cannot be used or holds another fleet. Nothing was moved then.
        LabelError: a hash chain of its logs does not hold. Nothing was moved then.
    """
    if (directory / URL_NAME).is_file():
        raise FleetError(
            f"{directory / URL_NAME} names a database already",
            hint="The fleet is kept there: see `headway fleet devices`.",
        )
    if not (directory / DATABASE_NAME).is_file():
        raise FleetError(f"{directory} holds no fleet in {DATABASE_NAME}", hint="Name the fleet's directory.")
    target = engine_at(url)
    try:
        with _nothing_moved(), ServiceLock(directory, target) as lock:
            if not lock.take():
                raise FleetError(
                    f"a fleet service runs on {directory}, or with that database",
                    hint="Stop it first: labels wait on the devices meanwhile.",
                )
            for draft in directory.glob(f".{URL_NAME}.*{PARTIAL}"):  # of a move that was killed
                draft.unlink()
            _check_logs(directory)
            bring_up_to_date(directory, target, held=True)
            source = engine_of(directory)
            try:
                # It appears with SQLite's write lock: who waits for that looks for it next (`FleetStore.write`).
                with (
                    source.execution_options(headway_write=True).begin() as old,
                    appearing(directory / URL_NAME) as address,
                ):
                    _write_address(address, url)
                    rows = _copy(old, target)
            finally:
                source.dispose()
            with contextlib.suppress(DBAPIError), target.execution_options(headway_write=True).begin() as new:
                _mark(new, None)  # what is in use changes, and does not fit the mark any more either
            with contextlib.suppress(OSError):
                give_to_owner_of(directory, URL_NAME)
            return Moved(rows, _keep(directory))
    finally:
        target.dispose()


@contextlib.contextmanager
def _nothing_moved() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        words = " ".join(str(error.orig).split())
        raise FleetError(
            f"nothing was moved: {words[:300]}",
            hint="Check that the PostgreSQL runs, its address is right and its user may make tables there, and "
            "try again.",
        ) from error
    except OSError as error:
        raise FleetError(
            f"nothing was moved: {error.filename}: {error.strerror}",
            hint="Mend that and try again: the fleet is where it was, and may go on there meanwhile.",
        ) from error


def _write_address(file: Path, url: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:  # as `name_database`
        stream.write(f"{url}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def _check_logs(directory: Path) -> None:
    """Look at every hash chain, so that no damaged log is taken along for a whole one."""
    with FleetStore(directory, held=True) as store:  # which brings its schema up to date too
        with store.read() as ledger:
            channels = ledger.channels()
        for channel in channels:
            for _ in log_rows(store, channel, Checked()):
                pass


def _copy(old: Connection, target: Engine) -> dict[str, int]:
    """Copy all rows in one transaction, compare what arrived, and return how many there are by table."""
    tables = Base.metadata.sorted_tables
    with target.execution_options(headway_write=True).begin() as new:
        check_encoding(new)
        there = any(new.scalar(select(func.count()).select_from(table)) for table in tables)
        earlier = there and _is_earlier(old, new)
        if earlier and (mark := _marked(new)) is not None and mark == _digest(_sums_of(new)):
            new.exec_driver_sql(f"TRUNCATE {', '.join(table.name for table in tables)}")
            there = earlier = False
        sums = {table.name: _Sum() for table in tables}
        for table in tables:
            for batch in _batches(old, table):
                for row in batch:
                    sums[table.name].add(row)
                if not there:
                    new.execute(insert(table), [dict(row._mapping) for row in batch])
        if _sums_of(new) != sums:
            if earlier:
                raise FleetError(
                    "that database holds an earlier state of this fleet, and may have been used since",
                    hint="If another directory names it, go on there. If an earlier move has left it, make it "
                    "anew (dropdb, createdb) and try again. Nothing was moved.",
                )
            raise FleetError(
                "that database holds another fleet" if there else "what arrived is not what was sent",
                hint="Give the fleet an empty database of its own. Nothing was moved.",
            )
        _count_on(new, tables)
        _mark(new, _digest(sums))
        return {name: found.rows for name, found in sums.items()}


def _is_earlier(old: Connection, new: Connection) -> bool:
    """Return whether all logs there are beginnings of those here, and devices and publications are here too."""
    for known in (
        select(DeviceRow.device, DeviceRow.channel),
        select(PublicationRow.id, PublicationRow.channel, PublicationRow.release_id),
    ):
        if not {*map(tuple, new.execute(known))} <= {*map(tuple, old.execute(known))}:
            return False
    for channel, length in new.execute(select(ChannelRow.name, ChannelRow.log_length)):
        last = select(EntryRow.hash).where(EntryRow.channel == channel, EntryRow.position == length)
        if length and new.scalar(last) != old.scalar(last):
            return False
    return True


def _mark(connection: Connection, digest: str | None) -> None:
    """Mark what a database holds as a copy that is not in use yet, or no more."""
    words = "NULL" if digest is None else f"'{_MARK}{digest}'"
    connection.exec_driver_sql(f"COMMENT ON TABLE {EntryRow.__tablename__} IS {words}")


def _marked(connection: Connection) -> str | None:
    """Return of what the mark speaks; None without."""
    query = f"SELECT obj_description('{EntryRow.__tablename__}'::regclass, 'pg_class')"
    found: str | None = connection.exec_driver_sql(query).scalar()
    return found.removeprefix(_MARK) if found is not None and found.startswith(_MARK) else None


def _digest(sums: dict[str, _Sum]) -> str:
    return hashlib.sha256(
        repr(sorted((name, one.rows, one.hashes) for name, one in sums.items())).encode()
    ).hexdigest()


def _sums_of(connection: Connection) -> dict[str, _Sum]:
    return {table.name: _sum_of(connection, table) for table in Base.metadata.sorted_tables}


def _batches(connection: Connection, table: Table) -> Iterator[list[Row[tuple[object, ...]]]]:
    found = connection.execute(select(table).execution_options(yield_per=BATCH_ROWS))
    yield from (list(batch) for batch in found.partitions(BATCH_ROWS))


def _sum_of(connection: Connection, table: Table) -> _Sum:
    found = _Sum()
    for batch in _batches(connection, table):
        for row in batch:
            found.add(row)
    return found


def _count_on(connection: Connection, tables: list[Table]) -> None:
    """Let the numbers that the database gives go on after those that came with the rows."""
    for table in tables:
        column = table.autoincrement_column
        last = None if column is None else connection.scalar(select(func.max(column)))
        if column is not None and last is not None:
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"),
                {"table": table.name, "column": column.name, "last": last},
            )


def _keep(directory: Path) -> Path:
    """Put the SQLite database out of the way, with what SQLite has beside it; return where it is."""
    kept = directory / KEPT_NAME
    try:
        for more in ("-wal", "-shm", ""):
            beside = directory / f"{DATABASE_NAME}{more}"
            if beside.exists():
                beside.replace(directory / f"{KEPT_NAME}{more}")
        sync_path(directory)
    except OSError as error:
        raise FleetError(
            f"the fleet is in PostgreSQL now, and {directory / DATABASE_NAME} is still there: {error.strerror}",
            hint="Move that file away: it is not used any more.",
        ) from error
    return kept
