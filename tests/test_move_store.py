"""A fleet that was begun in SQLite goes to PostgreSQL: all of it, compared, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from sdk.bundle import Bundle
from sdk.durable import PARTIAL
from sdk.errors import FleetError, LabelError
from sdk.fleet.database import DATABASE_NAME, URL_NAME, engine_at, name_database
from sdk.fleet.labellog import log_rows
from sdk.fleet.moving import KEPT_NAME, move_store
from sdk.fleet.schema import _upgrade, begin_in
from sdk.fleet.store import FleetStore
from sdk.fleet.tables import Base
from sdk.labels import KeepApart
from sdk.logrows import Checked
from tests.builders import class_id_of, make_bundle
from tests.commands import headway
from tests.disks import fill, small
from tests.other_users import AGENT, needs_root
from tests.postgres import Postgres
from tests.simulators import SimDevice
from tests.test_fleet_rollout import PLAN, Floor

pytestmark = pytest.mark.postgres
__all__ = ["small"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / name, backbone=name) for name in ("first", "second")]


@pytest.fixture
def teacher() -> SimDevice:
    return SimDevice("a")


@pytest.fixture
def fleet(tmp_path: Path, bundles: list[Bundle], teacher: SimDevice) -> Path:
    """A fleet in SQLite with something in every table: a rollout under way, a decision, an older copy's mark."""
    floor = Floor(tmp_path / "fleet")
    floor.store.publish(bundles[0], channel="default")
    floor.turn()
    floor.obey()
    for number in range(700):  # more than a batch
        teacher.label(number)
    with floor.store.write() as ledger:
        ledger.take("a", teacher.log, {})
        ledger.decide("default", [KeepApart(class_id_of("a"), class_id_of("b"), "ann")])
        ledger.note_broker("192.0.2.10:8883", None)
        ledger.note_restored("default", 3, floor.now)
    floor.store.publish(bundles[1], channel="default", plan=PLAN)
    floor.turn()
    floor.turn()
    floor.store.close()
    return floor.directory


def told_of(directory: Path) -> tuple[object, ...]:
    """Return what a fleet says of itself, with all of its log."""
    with FleetStore(directory) as store:
        rows = list(log_rows(store, "default", Checked()))
        with store.read() as ledger:
            live, found = store.live_set("default"), ledger.rollout("default")
            assert live is not None
            assert found is not None
            return live.digest, rows, found, ledger.members(found[0].id), ledger.devices("default")


def rows_at(url: str) -> int:
    engine = engine_at(url)
    try:
        with engine.connect() as connection:
            counts = [connection.scalar(select(func.count()).select_from(t)) for t in Base.metadata.sorted_tables]
            return sum(count or 0 for count in counts)
    finally:
        engine.dispose()


def test_a_fleet_that_was_moved_is_what_it_was_and_goes_on(
    fleet: Path, teacher: SimDevice, bundles: list[Bundle], postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    before = told_of(fleet)
    url = postgres.new_database()
    refused = headway(capsys, "fleet", "serve", "--dir", fleet, "--database", url)
    assert f"headway fleet move-store --dir {fleet} --database-file FILE" in refused.err
    moved = headway(capsys, "fleet", "move-store", "--dir", fleet, "--database", url, "--json")
    assert moved.code == 0, moved
    rows = json.loads(moved.out)["rows"]
    assert rows["entries"] == len(before[1])  # type: ignore[arg-type]
    assert [name for name, count in rows.items() if not count] == [], "the test leaves no table out"
    assert told_of(fleet) == before
    assert (fleet / URL_NAME).stat().st_mode & 0o077 == 0
    assert [path.name for path in fleet.glob("fleet.db*")] == [KEPT_NAME]
    name_database(fleet, url)  # as `serve --database` does again and again
    for number in range(3):
        teacher.label(9000 + number)
    with FleetStore(fleet) as store, store.write() as ledger:
        last = ledger.newest_publication()
        ledger.halt("default", "enough")
        assert ledger.take("a", teacher.log, {}).verdict.refused is None
        ledger.note_restored("default", 5, 2000.0)
        current = ledger.current("default")
        assert current is not None
        again = ledger.publish(
            current.release, channel="default", space=current.space, feature_size=current.feature_size
        )
        assert again.id == last + 1, "numbers go on after those that came along"


def test_a_move_that_was_cut_short_after_the_last_row_goes_on(fleet: Path, postgres: Postgres) -> None:
    before, url = told_of(fleet), postgres.new_database()
    move_store(fleet, url)
    (fleet / URL_NAME).unlink()  # the power went before it was written
    (fleet / KEPT_NAME).rename(fleet / DATABASE_NAME)
    move_store(fleet, url)
    assert told_of(fleet) == before


@needs_root
def test_the_address_that_root_writes_is_for_whom_the_fleet_belongs_to(fleet: Path, postgres: Postgres) -> None:
    """Nobody else reads it, and the service is that user's."""
    url = postgres.new_database()
    for path in [fleet, *fleet.rglob("*")]:
        os.chown(path, AGENT, AGENT)
    move_store(fleet, url)
    assert (fleet / URL_NAME).stat().st_uid == AGENT
    assert (fleet / KEPT_NAME).stat().st_uid == AGENT
    (fleet / KEPT_NAME).unlink()
    (fleet / URL_NAME).unlink()
    begin_in(fleet, url)
    FleetStore(fleet).close()
    assert (fleet / URL_NAME).stat().st_uid == AGENT


def go_on(fleet: Path, teacher: SimDevice, bundles: list[Bundle]) -> None:
    """Let a fleet have a shift more of everything: labels, a decision, a release."""
    for number in range(3):
        teacher.label(9000 + number)
    with FleetStore(fleet) as store:
        with store.write() as ledger:
            assert ledger.take("a", teacher.log, {}).verdict.refused is None
            ledger.decide("default", [KeepApart(class_id_of("a"), class_id_of("c"), "ann")])
            ledger.halt("default", "enough")
        store.publish(bundles[0], channel="default")
        store.publish(bundles[1], channel="default", plan=PLAN)


def cut_short(fleet: Path, url: str) -> None:
    """Have a move fail where all has arrived and nothing names it."""
    (fleet / URL_NAME).mkdir()
    with pytest.raises(FleetError, match="nothing was moved") as caught:
        move_store(fleet, url)
    assert caught.value.hint
    (fleet / URL_NAME).rmdir()
    assert rows_at(url), "the control"


def test_a_move_that_was_cut_short_is_made_again_when_the_fleet_has_gone_on(
    fleet: Path, postgres: Postgres, teacher: SimDevice, bundles: list[Bundle]
) -> None:
    url = postgres.new_database()
    cut_short(fleet, url)
    (fleet / f".{URL_NAME}.1234{PARTIAL}").write_text(url)  # as where it was killed
    go_on(fleet, teacher, bundles)
    before = told_of(fleet)
    move_store(fleet, url)
    assert told_of(fleet) == before
    assert [path.name for path in fleet.glob("*database.url*")] == [URL_NAME]
    assert not (fleet / DATABASE_NAME).exists()


def use(_fleet: Path, url: str) -> None:
    """Let another directory name what was copied, and change something there."""
    directory = _fleet.parent / "another"
    name_database(directory, url)
    with FleetStore(directory) as store, store.write() as ledger:
        ledger.note_broker("192.0.2.11:8883", None)


def forget_mark(_fleet: Path, url: str) -> None:
    """Let the copy be one that an earlier version left."""
    engine = engine_at(url)
    with engine.execution_options(headway_write=True).begin() as connection:
        connection.exec_driver_sql("COMMENT ON TABLE entries IS NULL")
    engine.dispose()


@pytest.mark.parametrize("spoil", [use, forget_mark])
def test_a_copy_that_may_be_in_use_is_not_taken_away(
    fleet: Path, postgres: Postgres, teacher: SimDevice, bundles: list[Bundle], spoil: Callable[[Path, str], None]
) -> None:
    url = postgres.new_database()
    cut_short(fleet, url)
    spoil(fleet, url)
    there = rows_at(url)
    go_on(fleet, teacher, bundles)
    with pytest.raises(FleetError, match="an earlier state of this fleet") as caught:
        move_store(fleet, url)
    assert "dropdb" in caught.value.hint
    assert rows_at(url) == there
    assert (fleet / DATABASE_NAME).is_file()


def test_a_fleet_that_came_from_elsewhere_takes_no_copy_away(
    fleet: Path, postgres: Postgres, teacher: SimDevice, bundles: list[Bundle], tmp_path: Path
) -> None:
    """The copy has what this one lacks: it is another fleet's, or this one's of later."""
    backup = shutil.copytree(fleet, tmp_path / "backup")
    go_on(fleet, teacher, bundles)
    url = postgres.new_database()
    cut_short(fleet, url)
    there = rows_at(url)
    with pytest.raises(FleetError, match="holds another fleet"):
        move_store(backup, url)
    assert rows_at(url) == there


def test_a_disk_without_room_for_the_address_is_found_before_anything_goes_over(
    fleet: Path, postgres: Postgres, small: Path
) -> None:
    directory, url = small / "fleet", postgres.new_database()
    shutil.copytree(fleet, directory)
    with FleetStore(directory) as store, store.read() as ledger:
        assert ledger.channels()  # SQLite has the files that it needs, as while a command of before runs
        hog = fill(small)
        with pytest.raises(FleetError, match=r"nothing was moved: .*No space left"):
            move_store(directory, url)
        assert rows_at(url) == 0
        hog.unlink()
    before = told_of(directory)
    move_store(directory, url)
    assert told_of(directory) == before


def test_a_database_that_cannot_hold_every_name_takes_no_fleet(fleet: Path, postgres: Postgres) -> None:
    """Also where an earlier Headway has made the tables there."""
    url = postgres.new_latin_database()
    for _ in range(2):
        with pytest.raises(FleetError, match="encoding is LATIN1"):
            move_store(fleet, url)
        engine = engine_at(url)
        _upgrade(fleet, engine)
        engine.dispose()
    assert (fleet / DATABASE_NAME).is_file()


def test_a_fleet_whose_file_could_not_be_put_away_is_in_postgresql(fleet: Path, postgres: Postgres) -> None:
    before, url = told_of(fleet), postgres.new_database()
    (fleet / KEPT_NAME).mkdir()
    (fleet / KEPT_NAME / "other").touch()
    with pytest.raises(FleetError, match="is in PostgreSQL now") as caught:
        move_store(fleet, url)
    assert caught.value.hint
    name_database(fleet, url)
    assert told_of(fleet) == before


def damage(fleet: Path, _url: str) -> None:
    connection = sqlite3.connect(fleet / DATABASE_NAME)
    connection.execute("UPDATE entries SET hash = zeroblob(32), record = (SELECT record FROM entries LIMIT 1)")
    connection.commit()
    connection.close()


def another_fleet(_fleet: Path, url: str) -> None:
    directory = _fleet.parent / "another"
    name_database(directory, url)
    Floor(directory, ("x",)).store.close()


def unwritable(fleet: Path, _url: str) -> None:
    connection = sqlite3.connect(fleet / DATABASE_NAME)
    connection.execute("UPDATE devices SET refused = 'a' || char(0) || 'b'")  # no text of PostgreSQL holds a zero
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(damage, "entry"), (another_fleet, "holds another fleet"), (unwritable, "nothing was moved")],
    ids=["a damaged log", "another fleet there", "a value it does not take"],
)
def test_what_cannot_be_moved_stays_where_it_is(
    fleet: Path, postgres: Postgres, spoil: Callable[[Path, str], None], says: str
) -> None:
    url = postgres.new_database()
    spoil(fleet, url)
    there = rows_at(url) if spoil is another_fleet else 0
    with pytest.raises((FleetError, LabelError), match=says) as caught:
        move_store(fleet, url)
    assert caught.value.hint
    assert ((fleet / DATABASE_NAME).is_file(), (fleet / URL_NAME).exists()) == (True, False)
    if spoil is not damage:
        assert rows_at(url) == there


def test_a_fleet_that_is_served_is_not_moved(fleet: Path, postgres: Postgres) -> None:
    with FleetStore(fleet) as store, store.serving(), pytest.raises(FleetError, match="a fleet service runs on"):
        move_store(fleet, postgres.new_database())
    assert not (fleet / URL_NAME).exists()


def test_a_command_that_had_the_file_open_writes_nothing_into_it(fleet: Path, postgres: Postgres) -> None:
    with FleetStore(fleet) as store:
        move_store(fleet, postgres.new_database())
        with pytest.raises(FleetError, match="was moved to PostgreSQL meanwhile"), store.write() as ledger:
            ledger.halt("default", "enough")
    with sqlite3.connect(fleet / KEPT_NAME) as kept:
        assert kept.execute("SELECT count(*) FROM rollouts WHERE state = 'halted'").fetchone() == (0,)


@pytest.mark.parametrize(
    ("directory", "url", "says"),
    [
        ("none", "postgresql://headway@127.0.0.1:1/fleet", "holds no fleet in fleet.db"),
        ("fleet", "sqlite:///fleet.db", "sqlite is not supported"),
        ("fleet", "postgresql://headway@127.0.0.1:1/fleet", "nothing was moved"),
        ("named", "postgresql://headway@127.0.0.1:1/fleet", "names a database already"),
    ],
)
def test_where_nothing_can_be_moved_is_one_line_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], directory: str, url: str, says: str
) -> None:
    FleetStore(tmp_path / "fleet").close()
    name_database(tmp_path / "named", "postgresql://headway@127.0.0.1:1/fleet")
    ended = headway(capsys, "fleet", "move-store", "--dir", tmp_path / directory, "--database", url)
    assert (ended.code, says in ended.err, "hint: " in ended.err) == (2, True, True)
