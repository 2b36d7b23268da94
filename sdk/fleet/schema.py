"""The schema of the fleet's database, and how an older one is brought up to date.

Rules this module keeps:

- No schema changes under a service that runs: one of an older Headway would refuse its database when it starts
  next. Whoever finds an older schema then changes nothing and says so.
- A SQLite database is copied before, to `fleet.db.0002` of schema 0002: what the Headway of before goes back to.
  Nobody writes between the copy and the change. PostgreSQL has its own backups (docs/fleet.md, "Update").
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from sdk.durable import appearing, give_to_owner
from sdk.errors import FleetError
from sdk.fleet.database import (
    DATABASE_NAME,
    LOCK_PATIENCE_S,
    ServiceLock,
    check_encoding,
    database_errors,
    engine_at,
    make_directory,
    name_database,
    names_already,
)

MIGRATIONS: Final = Path(__file__).parent / "migrations"
SCHEMA_REVISION: Final = "0007"
"""The newest migration: a database that has it is opened without Alembic."""

log = logging.getLogger(__name__)


def bring_up_to_date(directory: Path, engine: Engine, *, held: bool = False) -> None:
    """Bring a database's schema up to date; of an empty one, make it.

    Args:
        directory: The fleet's.
        engine: Its database, or the one that it is to be moved to.
        held: The caller holds the one service's lock.

    Raises:
        FleetError: it was written by a newer Headway; or by an older one, and a service runs on it or it cannot be
            copied; or it is empty, and not of UTF-8. Nothing was changed then.
    """
    with engine.connect() as connection:
        before = revision_of(connection)
        if before is None:
            check_encoding(connection)
    if before == SCHEMA_REVISION:
        return
    check_not_newer(directory, before)
    if before is None or held:
        _upgrade(directory, engine)
        return
    with ServiceLock(directory, engine) as lock:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not lock.take():
            if time.monotonic() > deadline:
                raise FleetError(
                    f"the fleet in {directory} has schema {before}, this Headway wants {SCHEMA_REVISION}, and a "
                    "fleet service runs on it",
                    hint="Nothing was changed. Stop that service and start this Headway's; until then use the "
                    "Headway that it runs with.",
                )
            time.sleep(0.02)
        _upgrade(directory, engine)


def check_not_newer(directory: Path, revision: str | None) -> None:
    """Check that a database of this schema is none of a newer Headway.

    Raises:
        FleetError: it is.
    """
    if revision is not None and revision > SCHEMA_REVISION:  # four digits each
        kept = directory / f"{DATABASE_NAME}.{SCHEMA_REVISION}"
        back = f", or go back: {kept} is the fleet as it was before (docs/fleet.md)" if kept.is_file() else ""
        raise FleetError(
            "the fleet database was written by a newer Headway", hint=f"Update Headway on this machine{back}."
        )


def check_current(directory: Path, engine: Engine) -> None:
    """Check that a database has this Headway's schema, and change nothing.

    Raises:
        FleetError: it has another, or none.
    """
    with engine.connect() as connection:
        found = revision_of(connection)
    check_not_newer(directory, found)
    if found != SCHEMA_REVISION:
        raise FleetError(
            f"the fleet in {directory} has schema {found or 'none'}, this Headway wants {SCHEMA_REVISION}",
            hint="The next command, or `headway fleet serve`, brings it up to date.",
        )


def begin_in(directory: Path, url: str) -> None:
    """Let a directory's fleet be kept in a PostgreSQL database from now on, once that is seen to be usable.

    Args:
        directory: Made if it is not there.
        url: As for `sdk.fleet.database.name_database`.

    Raises:
        FleetError: as `name_database` and `bring_up_to_date`. Nothing is remembered then.
        DatabaseAway: it cannot be reached, or does not let its user. Nothing is remembered then.
    """
    if names_already(directory, url):
        return
    engine = engine_at(url)
    try:
        make_directory(directory)
        with database_errors(directory, named=False):
            bring_up_to_date(directory, engine)
    finally:
        engine.dispose()
    name_database(directory, url)


def revision_of(connection: Connection) -> str | None:
    """Return a database's schema; None of an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def _upgrade(directory: Path, engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(headway_write=True).begin() as connection:
        before = revision_of(connection)  # with the write lock: another command may have been faster
        if before == SCHEMA_REVISION:
            return
        kept = None
        if before is not None and engine.dialect.name == "sqlite":
            kept = _keep(directory / DATABASE_NAME, before)
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise FleetError(
                "the fleet database was written by another Headway", hint="Update Headway on this machine."
            ) from error
    if before is not None:
        log.warning(
            "the fleet's database was brought from schema %s to %s; %s",
            before,
            SCHEMA_REVISION,
            "an earlier Headway opens it no more" if kept is None else f"as it was before: {kept}",
        )


def _keep(database: Path, revision: str) -> Path:
    """Copy a SQLite database as it was last committed; return where the copy is."""
    kept = database.with_name(f"{database.name}.{revision}")
    try:
        with appearing(kept) as draft:
            draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(database, isolation_level=None)) as reader:
                reader.execute("VACUUM INTO ?", (str(draft),))
            give_to_owner(draft, database)
    except (OSError, sqlite3.Error) as error:
        needed_mib = 1 + database.stat().st_size // 1024**2
        raise FleetError(
            f"{database} wants a newer schema and cannot be copied first: {error}",
            hint=f"Nothing was changed. Free {needed_mib} MiB on that disk, and try again.",
        ) from error
    return kept
