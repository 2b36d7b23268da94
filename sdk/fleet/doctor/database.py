"""The fleet's database: does it answer, is it whole, of this Headway's schema, and would it take a label now?"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from sqlalchemy import Engine

from sdk.errors import HeadwayError
from sdk.finding import Finding, Level
from sdk.fleet.database import (
    BUSY_TIMEOUT_S,
    DATABASE_NAME,
    POSTGRES,
    URL_NAME,
    database_errors,
    left_by_fleet,
    looking_engine_of,
)
from sdk.fleet.doctor import postgres, sqlite
from sdk.fleet.schema import SCHEMA_REVISION, check_not_newer, revision_of
from sdk.owners import quote


def examine(directory: Path, patience_s: float = BUSY_TIMEOUT_S) -> Generator[Finding, None, tuple[bool, bool]]:
    """Yield what is so of a fleet's database; return whether it answers, and whether this Headway can read it.

    Args:
        directory: The fleet's.
        patience_s: Who keeps writers of a PostgreSQL out for longer is told of: so long a writer waits.
    """
    engine: Engine | None = None
    answers = False
    try:
        in_file = not (directory / URL_NAME).is_file()
        if in_file and not (yield from sqlite.may_use(directory)):
            return False, False
        left = left_by_fleet(directory) if in_file else None
        if left is not None and not (directory / DATABASE_NAME).is_file():
            yield _lost(directory, left, "is gone")
            return False, False
        engine = looking_engine_of(directory)
        with database_errors(directory), engine.connect() as connection:
            known = revision_of(connection)
        if left is not None and known is None:
            yield _lost(directory, left, "holds nothing")
            return False, False
        if engine.dialect.name == POSTGRES:
            yield from postgres.examine(directory, engine, patience_s, empty=known is None)
        else:
            yield from sqlite.examine(directory, engine)
        answers = True
        return answers, (yield from _schema(directory, engine, known))
    except HeadwayError as error:
        yield Finding.of("database", error)
        return answers, False
    finally:
        if engine is not None:
            engine.dispose()


def _lost(directory: Path, left: Path, how: str) -> Finding:
    what = (
        f"the fleet's database {directory / DATABASE_NAME} {how}, and {left} is there: labels and devices are lost"
    )
    return Finding("database", Level.FAULT, what, f"Start no service before that. {sqlite.RESTORE}")


def _schema(directory: Path, engine: Engine, known: str | None) -> Generator[Finding, None, bool]:
    check_not_newer(directory, known)
    if known == SCHEMA_REVISION:
        yield Finding("database", Level.GOOD, f"schema {known}, which this Headway wants")
        return True
    first = (
        "pg_dump it, then start"
        if engine.dialect.name == POSTGRES
        else f"It is copied first, to {DATABASE_NAME}.{known}. Start"
        if known is not None
        else "Start"
    )
    yield Finding(
        "database",
        Level.NOTE,
        f"schema {known or 'none'}, and this Headway wants {SCHEMA_REVISION}: devices and log were not looked at",
        f"Stop the service of the Headway before, if one runs. {first} this one's: "
        f"headway fleet serve --dir {quote(directory)}",
    )
    return False
