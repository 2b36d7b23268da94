"""An older fleet's database: brought up to date with a way back, and never under a service that runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from sdk.errors import FleetError
from sdk.fleet.database import DATABASE_NAME, ServiceLock, engine_of, name_database
from sdk.fleet.schema import MIGRATIONS, SCHEMA_REVISION, bring_up_to_date
from sdk.fleet.store import FleetStore
from tests.commands import headway
from tests.postgres import Postgres

OLD = "0002"
KEPT = f"{DATABASE_NAME}.{OLD}"


def make_old(directory: Path, revision: str = OLD) -> Engine:
    """Make a database as an earlier Headway left it, a row of its own in it."""
    directory.mkdir(exist_ok=True)
    engine = engine_of(directory)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(headway_write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.execute(text("CREATE TABLE what_was_here (word TEXT)"))
        connection.execute(text("INSERT INTO what_was_here VALUES ('label')"))
    return engine


def schema_of(database: Path) -> str:
    with closing(sqlite3.connect(database)) as db:
        (found,) = db.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found)


@pytest.mark.parametrize("arguments", [("devices",), ("log",), ("serve",)])
def test_no_command_changes_the_schema_under_a_service(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServiceLock(tmp_path, make_old(tmp_path)) as service:
        assert service.take()
        refused = headway(capsys, "fleet", *arguments, "--dir", tmp_path)
        assert refused.code == 2
        assert f"has schema {OLD}, this Headway wants {SCHEMA_REVISION}, and a fleet service runs" in refused.err
        assert "hint: Nothing was changed. Stop that service" in refused.err
        assert schema_of(tmp_path / DATABASE_NAME) == OLD
        assert not (tmp_path / KEPT).exists()


def test_where_nobody_serves_the_database_is_copied_and_then_brought_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make_old(tmp_path).dispose()
    if os.geteuid() == 0:  # whoever else may serve it
        os.chown(tmp_path / DATABASE_NAME, 12345, 12345)
    for _ in range(2):
        assert headway(capsys, "fleet", "devices", "--dir", tmp_path).code == 0
    assert caplog.messages == [
        f"the fleet's database was brought from schema {OLD} to {SCHEMA_REVISION}; "
        f"as it was before: {tmp_path / KEPT}"
    ]
    assert schema_of(tmp_path / DATABASE_NAME) == SCHEMA_REVISION
    facts = (tmp_path / KEPT).stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert facts.st_uid == (tmp_path / DATABASE_NAME).stat().st_uid
    with closing(sqlite3.connect(tmp_path / KEPT)) as db:
        assert db.execute("SELECT word FROM what_was_here").fetchall() == [("label",)]
    assert schema_of(tmp_path / KEPT) == OLD


def test_the_copy_in_the_databases_place_is_the_fleet_before(tmp_path: Path) -> None:
    make_old(tmp_path).dispose()
    FleetStore(tmp_path).close()
    shutil.move(tmp_path / KEPT, tmp_path / DATABASE_NAME)
    assert schema_of(tmp_path / DATABASE_NAME) == OLD
    FleetStore(tmp_path).close()
    assert schema_of(tmp_path / KEPT) == OLD


def test_a_fleet_that_is_new_or_up_to_date_leaves_no_copy(tmp_path: Path) -> None:
    for _ in range(2):
        FleetStore(tmp_path).close()
    assert [each.name for each in tmp_path.glob("*.0*")] == []


def test_what_cannot_be_copied_is_not_changed(tmp_path: Path) -> None:
    make_old(tmp_path).dispose()
    (tmp_path / KEPT).mkdir()
    with pytest.raises(FleetError, match="cannot be copied first") as refused:
        FleetStore(tmp_path)
    assert "Nothing was changed. Free" in refused.value.hint
    assert schema_of(tmp_path / DATABASE_NAME) == OLD
    assert sorted(each.name for each in tmp_path.glob(".*")) == []


def test_an_older_headway_names_the_copy_to_go_back_to(tmp_path: Path) -> None:
    make_old(tmp_path, SCHEMA_REVISION).dispose()
    shutil.copy(tmp_path / DATABASE_NAME, tmp_path / f"{DATABASE_NAME}.{SCHEMA_REVISION}")
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(FleetError, match="newer Headway") as refused:
        FleetStore(tmp_path)
    assert str(tmp_path / f"{DATABASE_NAME}.{SCHEMA_REVISION}") in refused.value.hint


@pytest.mark.postgres
def test_no_other_machine_changes_the_schema_of_postgresql_under_a_service(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database()
    for directory in (tmp_path / "serves", tmp_path / "asks"):
        name_database(directory, url)
    old = make_old(tmp_path / "serves")
    with ServiceLock(tmp_path / "serves", old) as service:
        assert service.take()
        with pytest.raises(FleetError, match=f"has schema {OLD}"):
            FleetStore(tmp_path / "asks")
    bring_up_to_date(tmp_path / "asks", old)
    FleetStore(tmp_path / "asks").close()
    old.dispose()
