"""A fleet's PostgreSQL: does it take changes, has its user the rights, and does nobody keep writers out?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from sdk.disk_check import mib
from sdk.errors import FleetError
from sdk.finding import Finding, Level
from sdk.fleet.database import (
    OWN_DATABASE,
    URL_NAME,
    WRITER_LOCK,
    check_encoding,
    database_errors,
)
from sdk.fleet.doctor.sqlite import RESTORE, WRITER_LOOK_S, WRITER_LOOKS
from sdk.fleet.tables import Base

CLOCKS_APART_S: Final = 60.0
"""Of this machine and of its database's server: what is compared is minutes and days."""
_WANTED: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_SHUTTING: Final = "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
"""Locks of a table beside which nobody writes to it."""
_SHUT_OUT: Final = text(
    "SELECT DISTINCT l.pid, a.application_name, host(a.client_addr), a.state, "
    "extract(epoch FROM clock_timestamp() - a.xact_start) "
    "FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.granted AND l.pid <> pg_backend_pid() "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND ((l.locktype = 'advisory' AND l.classid = :high AND l.objid = :low AND l.objsubid = 1) "
    f"OR (l.locktype = 'relation' AND l.mode IN {_SHUTTING} "
    "AND l.relation IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name))) "
    "ORDER BY l.pid"
)
"""Who keeps writers out; since when is told of one's own sessions, and to superusers and `pg_read_all_stats`."""


def examine(directory: Path, engine: Engine, patience_s: float, *, empty: bool) -> Iterator[Finding]:
    """Yield what is so of it.

    Args:
        directory: The fleet's.
        engine: The database.
        patience_s: Who keeps writers out for longer is told of.
        empty: There are no tables in it yet.
    """
    with database_errors(directory), engine.connect() as connection:
        version, size, user, schema = _row(
            connection,
            "SELECT current_setting('server_version'), pg_database_size(current_database()), current_user, "
            "current_schema()",
        )
        yield Finding(
            "database", Level.GOOD, f"{_address(engine)}: PostgreSQL {version}, {mib(size)} MiB, user {user}"
        )
        try:
            check_encoding(connection)
        except FleetError as error:
            yield Finding("database", Level.FAULT, str(error), error.hint)
        yield from _takes_changes(directory, connection)
        if not empty:
            yield from _rights(connection, user, schema)
            yield from _stuck(connection, patience_s)
        yield from _own_faults(connection)
        yield from _archive(connection)
        (its_utc,) = _row(connection, "SELECT extract(epoch FROM clock_timestamp())")
        apart_s = time.time() - float(its_utc)
        if abs(apart_s) > CLOCKS_APART_S:
            yield Finding(
                "clock",
                Level.FAULT,
                f"this machine's clock is {abs(apart_s):.0f} s {'ahead of' if apart_s > 0 else 'behind'} that of "
                "its PostgreSQL",
                "One of the two is wrong: timedatectl on both, and sudo timedatectl set-ntp true where it is.",
            )


def _address(engine: Engine) -> str:
    url = engine.url
    return f"{url.host or 'this machine'}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _row(connection: Connection, statement: str) -> tuple[Any, ...]:
    return tuple(connection.exec_driver_sql(statement).one())


def _takes_changes(directory: Path, connection: Connection) -> Iterator[Finding]:
    standby, read_only = _row(
        connection, "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on'"
    )
    if standby or read_only:
        why = "a standby" if standby else "read-only (default_transaction_read_only)"
        yield Finding(
            "database",
            Level.FAULT,
            f"it is {why}: no label is stored",
            f"Promote it, or name the one that takes changes in {directory / URL_NAME}."
            if standby
            else "ALTER SYSTEM RESET default_transaction_read_only, and for the database and its user likewise; "
            "then SELECT pg_reload_conf(). Or name the one that takes changes.",
        )


def _rights(connection: Connection, user: str, schema: str | None) -> Iterator[Finding]:
    lacking, gone, others = [], [], []
    for table in Base.metadata.sorted_tables:
        there, owned, *may = connection.execute(
            text(
                "SELECT c.oid IS NOT NULL, coalesce(pg_has_role(c.relowner, 'USAGE'), false), "
                + ", ".join(f"coalesce(has_table_privilege(c.oid, '{right}'), false)" for right in _WANTED)
                + " FROM (SELECT to_regclass(:name) AS oid) AS named LEFT JOIN pg_class c ON c.oid = named.oid"
            ),
            {"name": table.name},
        ).one()
        if not there:
            gone.append(table.name)
            continue
        lacking += [f"{right} on {table.name}" for right, yes in zip(_WANTED, may, strict=True) if not yes]
        if not owned:
            others.append(table.name)
        column = table.autoincrement_column
        if column is not None and not connection.scalar(
            text("SELECT coalesce(has_sequence_privilege(pg_get_serial_sequence(:t, :c), 'USAGE'), true)"),
            {"t": table.name, "c": column.name},
        ):
            lacking.append(f"USAGE on the sequence of {table.name}")
    grant = f"GRANT ALL ON SCHEMA {schema or 'public'} TO {user}; " + (
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema or 'public'} TO {user}; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema or 'public'} TO {user}"
    )
    if gone:
        what = f"{user} sees no table {_some(gone)}: it was dropped, or the right to use its schema taken away"
        yield Finding("database", Level.FAULT, what, f"As who may: {grant}. Dropped ones come from a backup.")
    if lacking:
        yield Finding("database", Level.FAULT, f"{user} lacks {_some(lacking)}", f"As who may: {grant}")
    if gone or lacking:
        return
    creates = schema is not None and connection.scalar(
        text("SELECT has_schema_privilege(:schema, 'CREATE')"), {"schema": schema}
    )
    if others or not creates:
        what = "owns not " + _some(others) if others else f"may make no table in schema {schema}"
        yield Finding(
            "database",
            Level.NOTE,
            f"{user} {what}: the next Headway cannot bring the schema up to date",
            f"As who may: {grant}; and for each table ALTER TABLE ... OWNER TO {user}. Or give the fleet a "
            f"database of its own: {OWN_DATABASE}.",
        )
    else:
        yield Finding("database", Level.GOOD, f"{user} may read and change every table, and change the schema")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _stuck(connection: Connection, patience_s: float) -> Iterator[Finding]:
    found = _shut_out(connection)
    for _ in range(1, WRITER_LOOKS):
        # Another user's sessions do not say for how long: who is there at every look is no label's commit.
        hidden = [pid for pid, (*_, since_s) in found.items() if since_s is None]
        if not hidden:
            break
        time.sleep(WRITER_LOOK_S)
        still = _shut_out(connection)
        found = {pid: row for pid, row in found.items() if pid not in hidden or pid in still}
    for pid, (name, host, state, since_s) in found.items():
        if since_s is not None and since_s <= patience_s:
            continue
        who = ", ".join(filter(None, [name, host and f"from {host}", state]))
        long = "another user's, for how long it does not say" if since_s is None else f"for {float(since_s):.0f} s"
        yield Finding(
            "database",
            Level.FAULT,
            f"its process {pid}{f' ({who})' if who else ''} keeps writers out, {long}: no label is stored",
            f"Let it commit, or end it, as a superuser or its own user: SELECT pg_terminate_backend({pid})",
        )


def _shut_out(connection: Connection) -> dict[int, tuple[Any, ...]]:
    rows = connection.execute(
        _SHUT_OUT,
        {
            "high": WRITER_LOCK >> 32,
            "low": WRITER_LOCK & 0xFFFF_FFFF,
            "tables": [table.name for table in Base.metadata.sorted_tables],
        },
    )
    return {pid: tuple(row) for pid, *row in rows}


def _own_faults(connection: Connection) -> Iterator[Finding]:
    failures, last = _row(
        connection,
        "SELECT coalesce(checksum_failures, 0), checksum_last_failure::text FROM pg_stat_database "
        "WHERE datname = current_database()",
    )
    if failures:
        yield Finding(
            "database",
            Level.FAULT,
            f"{failures} pages of it did not match their checksums, the last on {last}",
            f"Check the server's disk and its log (pg_amcheck). {RESTORE}",
        )


def _archive(connection: Connection) -> Iterator[Finding]:
    """Say what the server records of its backups: whether its log is archived."""
    mode, fails, since = _row(
        connection,
        "SELECT current_setting('archive_mode'), coalesce(last_failed_time > last_archived_time, "
        "last_failed_time IS NOT NULL), last_archived_time::timestamp(0)::text FROM pg_stat_archiver",
    )
    if mode != "off":
        yield archived(since, fails=fails)


def archived(since: str | None, *, fails: bool) -> Finding:
    """Return how a server's log is archived.

    Args:
        since: When the last piece was, as the server writes it; None for never.
        fails: The last try has failed.
    """
    if not fails:
        return Finding("database", Level.GOOD, f"its log is archived, the last piece {since or 'not yet'}")
    return Finding(
        "database",
        Level.NOTE,
        f"its log is not archived: archive_command fails; the last that went well: {since or 'none'}",
        "Look at the server's log, and at the place that archive_command writes to.",
    )
