"""A database that goes away is waited for: the service goes on, and what was said meanwhile is taken then."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import DatabaseAway, FleetError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.database import DATABASE_NAME, name_database
from sdk.fleet.service import DATABASE_AGAIN_S, FleetService
from sdk.fleet.store import FleetStore
from tests.postgres import Postgres
from tests.simulators import LiveDevice, wait_for
from tests.test_fleet_live import stored

PATIENCE_S = 60.0


class Served:
    """A service on a thread of its own, what it reports, and how it ended."""

    def __init__(self, store: FleetStore, broker: Mosquitto, again_s: float = DATABASE_AGAIN_S) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.error: FleetError | None = None
        self._stop = threading.Event()
        self._again_s = again_s
        self._service = FleetService(store, broker.settings, report=lambda *event: self.events.append(event))
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._service.run(self._stop, database_again_s=self._again_s)
        except FleetError as error:
            self.error = error

    def __enter__(self) -> Served:
        self.thread.start()
        wait_for(lambda: self.told("ready") or not self.thread.is_alive())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.thread.join()

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [more for what, more in self.events if what == kind]


@contextlib.contextmanager
def hidden(directory: Path, table: str) -> Iterator[None]:
    """Take a table out of a fleet's database for the block: whatever needs it fails as on a disk that fails."""

    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(directory / DATABASE_NAME, timeout=PATIENCE_S)) as raw, raw:
            raw.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename(table, "hidden")
    try:
        yield
    finally:
        rename("hidden", table)


@pytest.mark.broker
@pytest.mark.parametrize("table", ["channels", "publications", "entries"])
def test_a_database_that_fails_is_waited_for(mosquitto: Mosquitto, tmp_path: Path, table: str) -> None:
    """Whatever fails: reading or only writing. A label sent meanwhile is acknowledged, and one sent afterwards."""
    directory = tmp_path / "fleet"
    with (
        FleetStore(directory) as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        with hidden(directory, table):
            device.label(2)
            wait_for(lambda: served.told("database") or not served.thread.is_alive(), PATIENCE_S, "the report")
            assert served.thread.is_alive()
            assert mosquitto.pid, "its own broker stays"
        wait_for(lambda: not device.outbox, PATIENCE_S, "what was sent meanwhile")
        device.label(3)
        wait_for(lambda: not device.outbox, PATIENCE_S, "what was sent afterwards")
        # Each fault once, and its end.
        told = [*served.told("database")]
        assert [*map(list, told)] == [["error", "hint"], ["state"]] * (len(told) // 2)
    assert served.error is None
    assert stored(directory) == device.log


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Let a fleet's database take no label for the block, and answer whatever else it is asked."""

    def execute(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(directory / DATABASE_NAME, timeout=PATIENCE_S)) as raw, raw:
            raw.execute(statement)

    execute("CREATE TRIGGER full BEFORE INSERT ON entries BEGIN INSERT INTO nowhere VALUES (1); END")
    try:
        yield
    finally:
        execute("DROP TRIGGER full")


@pytest.mark.broker
def test_a_message_that_the_database_never_takes_holds_up_nobody(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """It is given up after some tries, so that others have their turn, and comes again by its sender's timer."""
    directory = tmp_path / "fleet"
    with (
        FleetStore(directory) as store,
        Served(store, mosquitto, again_s=0.01) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        with full(directory):
            device.label(2)
            wait_for(lambda: {"state": "answers again"} in served.told("database"), PATIENCE_S, "the giving up")
            assert device.outbox
        wait_for(lambda: not device.outbox, PATIENCE_S, "what came again")
    assert served.error is None
    assert stored(directory) == device.log


@pytest.mark.broker
@pytest.mark.postgres
def test_a_postgresql_that_was_killed_and_started_is_served_again(
    mosquitto: Mosquitto, postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database()
    for name in ("fleet", "other"):
        name_database(tmp_path / name, url)
    with (
        FleetStore(tmp_path / "fleet") as store,
        FleetStore(tmp_path / "other") as other,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        postgres.kill()
        try:
            device.label(2)
            wait_for(lambda: served.told("database") or not served.thread.is_alive(), PATIENCE_S, "the report")
            assert served.thread.is_alive()
        finally:
            postgres.start()
        device.label(3)
        wait_for(lambda: not device.outbox, PATIENCE_S, "what was sent meanwhile and afterwards")
        wait_for(other.served, PATIENCE_S, "the lock of the one service")
        assert served.thread.is_alive()
    assert served.error is None
    assert stored(tmp_path / "fleet") == device.log


@pytest.mark.broker
@pytest.mark.postgres
def test_a_postgresql_that_only_reads_is_waited_for(
    mosquitto: Mosquitto, postgres: Postgres, tmp_path: Path
) -> None:
    """As a standby does that an address leads to after a failover, until it is promoted."""
    name_database(tmp_path / "fleet", postgres.new_database())
    with (
        FleetStore(tmp_path / "fleet") as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        with postgres.read_only():
            device.label(2)
            wait_for(lambda: served.told("database") or not served.thread.is_alive(), PATIENCE_S, "the report")
            assert served.thread.is_alive()
            assert "read-only" in served.told("database")[0]["error"]
            assert store.refusal() is not None
        wait_for(lambda: not device.outbox, PATIENCE_S, "what was sent meanwhile")
        wait_for(lambda: store.refusal() is None, PATIENCE_S, "its end")
    assert served.error is None
    assert stored(tmp_path / "fleet") == device.log


@pytest.mark.postgres
@pytest.mark.parametrize("faster", [False, True])
def test_the_one_service_stays_the_one_after_its_database_was_started_anew(
    postgres: Postgres, tmp_path: Path, faster: bool
) -> None:
    """The server has let go of the lock, and no turn need have failed; another service may have it by then."""
    url = postgres.new_database()
    for name in ("one", "other"):
        name_database(tmp_path / name, url)
    with FleetStore(tmp_path / "one") as one, FleetStore(tmp_path / "other") as other, one.serving() as stay:
        stay()
        postgres.kill()
        try:
            for _ in range(2):
                with pytest.raises(DatabaseAway):
                    stay()
        finally:
            postgres.start()
        assert not other.served(), "the control"
        if faster:
            with other.serving(), pytest.raises(FleetError, match="another fleet service"):
                stay()
        else:
            stay()
            assert other.served()
