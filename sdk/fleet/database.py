"""The fleet's database: SQLite in the fleet's directory, or the PostgreSQL that `database.url` there names.

Rules that both keep, each in its own way:

- A commit is on disk when it returns.
- Writers take the write lock when they begin, so that what they read is what they change.
- One service at a time.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)

from sdk.durable import write_whole
from sdk.errors import DatabaseAway, FleetError
from sdk.extras import installing
from sdk.owners import Stranger, denied, quote

DATABASE_NAME: Final = "fleet.db"
URL_NAME: Final = "database.url"
LOCK_NAME: Final = "serve.lock"
LOCK_PATIENCE_S: Final = 0.5
"""A command that only asks whether a service runs holds the lock for a moment."""
BUSY_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 10
KEEPALIVE_S: Final = 30
"""A server that hears nothing from a client asks it after so long, three times in as long again. By default it
holds the one service's lock for two hours for a machine whose cable was pulled."""
POSTGRES: Final = "postgresql"
_CHANGED: Final = "headway_changed"
_READ_ONLY: Final = "25006"
"""PostgreSQL's code of a change that a standby refuses."""
_NOT_OURS: Final = frozenset({"42501", "42P01", "3F000"})
"""Its codes of a right that the fleet's user lacks, of a table that is gone, and of no schema to make one in."""
_DAMAGED: Final = "XX"
"""What its codes of a fault of its own, as of a damaged page, begin with."""
_NO_SUCH_CHARACTER: Final = "22P05"
ENCODING: Final = "UTF8"
OWN_DATABASE: Final = f"CREATE DATABASE name OWNER user ENCODING '{ENCODING}' TEMPLATE template0"
DATABASE_FILES: Final = (DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm")
_DENIED: Final = ("unable to open", "readonly database")
"""What SQLite says of a file that is another user's."""
WRITER_LOCK, SERVICE_LOCK = 0x6865_6164_0001, 0x6865_6164_0002
"""Numbers of PostgreSQL's advisory locks; the database should be the fleet's alone."""


def holds_fleet(directory: Path) -> bool:
    """Return whether a directory has, or names, a fleet's database.

    Raises:
        FleetError: this user may not look into it.
    """
    try:
        return (directory / DATABASE_NAME).is_file() or (directory / URL_NAME).is_file()
    except PermissionError as error:
        found = denied(directory)
        raise FleetError(
            f"the fleet cannot be looked at: {found or f'{directory} is closed to this user'}",
            hint=f"Give the command as its user: sudo -u {found.owner if found else 'USER'} headway fleet ...",
        ) from error


def left_by_fleet(directory: Path) -> Path | None:
    """Return something in a directory that only a fleet with a database leaves there; None where there is none.

    Keys, certificates and enrolled devices may be there before the first `headway fleet serve`.
    """
    with contextlib.suppress(OSError):
        for name in ("chunks", "decisions"):
            if next((directory / name).glob("*"), None) is not None:
                return directory / name
        if (directory / "union.json").is_file():
            return directory / "union.json"
    return None


def name_database(directory: Path, url: str) -> None:
    """Let a directory's fleet be kept in a PostgreSQL database from now on.

    Args:
        directory: Made if it is not there.
        url: As SQLAlchemy and libpq take it: `postgresql://user:password@host/name`.

    Raises:
        FleetError: it is no such address, or the directory has a fleet of its own, or names another one.
    """
    if names_already(directory, url):
        return
    file = directory / URL_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(file, f"{url}\n".encode(), mode=0o600)  # it may hold a password
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint="Name a directory you may write to.") from error


def names_already(directory: Path, url: str) -> bool:
    """Return whether a directory names this database; where it names none, it may.

    Args:
        directory: The fleet's, or the one to be.
        url: As for `name_database`.

    Raises:
        FleetError: as `name_database`.
    """
    _parsed(url)
    file = directory / URL_NAME
    try:
        if file.is_file():
            if file.read_text().strip() == url:
                return True
            raise FleetError(
                f"{file} names another database",
                hint=f"Leave --database out, or name another --dir. Where the server has another address now, or "
                f"its user another password, mend {file}.",
            )
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint="Let this user read it.") from error
    if (directory / DATABASE_NAME).is_file():
        raise FleetError(
            f"{directory} has a fleet in {DATABASE_NAME}",
            hint=f"Move it: headway fleet move-store --dir {directory} --database-file FILE. For a fleet of "
            "its own in PostgreSQL name another --dir.",
        )
    return False


def _parsed(url: str) -> str:
    """Return SQLAlchemy's address for ours, which names no driver."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter of a port
        told = re.sub("://.*@", "://...@", url)  # it may hold a password
        raise FleetError(f"{told[:80]!r} is no address of a database", hint=_EXAMPLE) from error
    if parsed.drivername not in ("postgres", POSTGRES):
        raise FleetError(f"{parsed.drivername} is not supported", hint=_EXAMPLE)
    if "@" in (parsed.host or ""):  # what stands before it is the end of a password, and is not told
        raise FleetError(
            "the address of the database has an @ in its password, or none at its end",
            hint="Write @ in a password as %40, and / as %2F: postgresql://user:p%40ss@host/name.",
        )
    return parsed.set(drivername=f"{POSTGRES}+psycopg").render_as_string(hide_password=False)


def has_password(url: str) -> bool:
    """Return whether an address of a database holds a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "@" in url
    return bool(parsed.password or "password" in parsed.query)


_EXAMPLE: Final = "Give a PostgreSQL database: postgresql://user:password@host/name."


def engine_of(directory: Path) -> Engine:
    """Return the engine of a directory's database.

    Raises:
        FleetError: `database.url` names none that can be reached from here.
    """
    file = directory / URL_NAME
    if not file.is_file():
        return _sqlite(directory / DATABASE_NAME)
    try:
        url = file.read_text().strip()
    except OSError as error:
        raise FleetError(f"{file}: {error.strerror}", hint="Let this user read it.") from error
    try:
        return engine_at(url)
    except FleetError as error:
        raise FleetError(f"{file}: {error}", hint=error.hint) from error


def looking_engine_of(directory: Path) -> Engine:
    """Return the engine of a directory's database for whoever only looks: nothing is made, changed or left there.

    Beside a service it reads what was committed, as any command does. A SQLite that nobody has open is read as a
    file that does not change: opened otherwise it would leave a log and an index beside it.

    Raises:
        FleetError: as `engine_of`.
    """
    if (directory / URL_NAME).is_file():
        return engine_of(directory)
    file = directory / DATABASE_NAME

    def connect() -> sqlite3.Connection:
        how = "mode=ro" if in_use(directory) else "immutable=1"
        uri = f"{file.resolve().as_uri()}?{how}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=NullPool
    )  # a service may begin between two looks

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def in_use(directory: Path) -> bool:
    """Return whether somebody has a directory's SQLite open, or was killed with it open."""
    return (directory / f"{DATABASE_NAME}-wal").exists()


def engine_at(url: str) -> Engine:
    """Return the engine of a PostgreSQL database.

    Raises:
        FleetError: that is no address of one, or its client is not installed, or has no option of that name.
    """
    try:
        engine = _postgres(_parsed(url))
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise FleetError("the PostgreSQL client is not installed", hint=installing("postgres")) from error
    _check_options(engine.url.query)
    return engine


def _check_options(given: Iterable[str]) -> None:
    """Refuse what libpq would refuse at each connection, and what only Python's client has."""
    from psycopg import pq

    known = [option.keyword.decode() for option in pq.Conninfo.get_defaults()]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise FleetError(
                f"the address of the database has an option that PostgreSQL's client does not know: {name[:80]}",
                hint=f"Did you mean {near[0]}?" if near else "Its options are those of libpq, such as sslmode.",
            )


def _sqlite(file: Path) -> Engine:
    # People's names and labels are in it. SQLite gives its log and index the file's own mode.
    with contextlib.suppress(OSError):  # it is there, or cannot be: connecting says why
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    engine = create_engine(f"sqlite:///{file}")

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        for pragma in (
            f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer that began as a reader cannot wait for another writer: SQLite would have to lie to it.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")

    _note_changes(engine)
    return engine


def _postgres(url: str) -> Engine:
    # One view for a whole read; a writer waits for its turn and then sees all that was committed before.
    engine = create_engine(
        url,
        pool_pre_ping=True,  # a server that was restarted is no error
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "headway-fleet"},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for setting, value in (("idle", KEEPALIVE_S), ("interval", KEEPALIVE_S // 3), ("count", 3)):
                cursor.execute(f"SET tcp_keepalives_{setting} = {value}")
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if _writes(connection):
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{int(BUSY_TIMEOUT_S * 1000)}ms'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    _note_changes(engine)
    return engine


def _note_changes(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.info[_CHANGED] = False

    @event.listens_for(engine, "after_cursor_execute")
    def _executed(
        connection: Connection, cursor: Any, _statement: str, _values: Any, context: Any, _many: bool
    ) -> None:
        if (context.isinsert or context.isupdate or context.isdelete) and cursor.rowcount != 0:
            connection.info[_CHANGED] = True


def changed(connection: Connection) -> bool:
    """Return whether the transaction under way has changed any row."""
    return bool(connection.info.get(_CHANGED, False))


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("headway_write", False))


class ServiceLock:
    """What the one service of a fleet holds: a lock on the directory, and in PostgreSQL one on the database.

    Args:
        directory: The fleet's.
        engine: Its database.

    Raises:
        FleetError: the lock's file cannot be written.
    """

    def __init__(self, directory: Path, engine: Engine) -> None:
        self._engine = engine
        file = directory / LOCK_NAME
        try:
            self._file = file.open("wb")
        except OSError as error:
            if found := denied(directory, LOCK_NAME):
                raise FleetError(f"the fleet cannot be used: {found}", hint=mending_of(found)) from error
            raise FleetError(
                f"{file}: {error.strerror}", hint="Check the disk, and who may write there."
            ) from error
        self._shared_server = engine.dialect.name == POSTGRES
        self._connection = engine.connect() if self._shared_server else None

    def __enter__(self) -> ServiceLock:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            # The lock is the session's. A server that is gone has let go of it; the connection is not used again.
            with contextlib.suppress(DBAPIError):
                self._connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
            self._drop()
        self._file.close()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def stands(self) -> bool:
        """Return whether a lock that was taken is still held; a database's server that ends lets go of it.

        Raises:
            DBAPIError: that server does not answer. It has to be asked again.
        """
        if not self._shared_server:
            return True
        try:
            if self._connection is not None:
                self._connection.exec_driver_sql("SELECT 1")
                self._connection.rollback()
                return True
        except DBAPIError:
            self._drop()
        self._connection = self._engine.connect()
        return False

    def take(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if self._connection is None:
            return True
        taken = self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({SERVICE_LOCK})").scalar()
        self._connection.rollback()  # the lock is the session's; an open transaction would keep old rows alive
        if not taken:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return bool(taken)


def mending_of(found: Stranger) -> str:
    """Return the command that lets its user use a file of a fleet's directory."""
    # That file alone: beside it may lie keys that are for nobody else.
    return f"sudo chown {found.user} {quote(found.path)}"


def _no_such_character(encoding: str) -> DatabaseAway:
    return DatabaseAway(
        f"the fleet's PostgreSQL cannot hold a name: {encoding} has not all of its characters",
        hint=f"Move it to a database that can: {OWN_DATABASE}, then pg_dump and psql.",
    )


def check_encoding(connection: Connection) -> None:
    """Check that a database can hold whatever people call their devices and classes.

    Raises:
        FleetError: it is a PostgreSQL of another encoding than UTF-8.
    """
    if connection.dialect.name != POSTGRES:
        return
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != ENCODING:
        raise FleetError(
            f"that database's encoding is {encoding}, which cannot hold every name",
            hint=f"Give the fleet one of its own: {OWN_DATABASE}.",
        )


def make_directory(directory: Path) -> None:
    """Make a fleet's directory, where it is not there.

    Raises:
        FleetError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FleetError(f"{directory}: {error.strerror}", hint="Name a directory you may write to.") from error


@contextlib.contextmanager
def database_errors(directory: Path, *, named: bool = True) -> Iterator[None]:
    """Say what a failing database means.

    Args:
        directory: The fleet's.
        named: False of a PostgreSQL that the directory does not name yet.

    Raises:
        DatabaseAway: it cannot be used now.
        FleetError: it is damaged.
    """
    file = directory / URL_NAME
    address = f"the address in {file}" if named else "that address; it was not remembered"
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        words = " ".join(str(error.orig).split())
        if file.is_file() or not named:
            raise DatabaseAway(
                f"the fleet's PostgreSQL cannot be used: {words[:300]}",
                hint=f"Check that it runs, and {address}.",
            ) from error
        if any(part in words for part in _DENIED) and (found := denied(directory, *DATABASE_FILES)):
            raise DatabaseAway(f"the fleet database cannot be used: {found}", hint=mending_of(found)) from error
        full = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise DatabaseAway(
            f"the fleet database in {directory} cannot be used: {words}",
            hint="Free some space on that disk, or raise the quota there."
            if full
            else "Check the disk, its space and permissions, and that no other program holds it.",
        ) from error
    except UnicodeEncodeError as error:
        # A device's words, in a database of before such were refused: no reason to end for all others.
        if not file.is_file() or error.encoding.lower().replace("-", "") == ENCODING.lower():
            raise
        raise _no_such_character(error.encoding) from error
    except DatabaseError as error:
        state = str(getattr(error.orig, "sqlstate", None))
        words = " ".join(str(error.orig).split())[:300]
        if state == _READ_ONLY:
            raise DatabaseAway(
                f"the fleet's PostgreSQL is read-only: {words}",
                hint=f"Promote it, or name the one that takes changes in {file}."
                if named
                else "Promote it, or name the one that takes changes.",
            ) from error
        if state in _NOT_OURS:
            raise DatabaseAway(
                f"the fleet's PostgreSQL does not let its user: {words}",
                hint=f"Give the fleet a database of its own ({OWN_DATABASE}), or that user all rights again, on "
                f"the schema (GRANT ALL ON SCHEMA public TO user) and on its tables; and check {address}.",
            ) from error
        if state == _NO_SUCH_CHARACTER:
            raise _no_such_character("its encoding") from error
        if type(error) is not DatabaseError and not state.startswith(_DAMAGED):
            raise  # a constraint or a type: our own mistake, not the disk's
        raise FleetError(
            f"the fleet database in {directory} is damaged: {error.orig}", hint="Restore it from a backup."
        ) from error
