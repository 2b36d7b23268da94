"""`headway fleet doctor` judges the whole ground a fleet stands on, says what to do, and changes none of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from sdk.disk_check import free_bytes
from sdk.errors import BrokerError
from sdk.expiry import DAY_S
from sdk.finding import Finding, Level
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.certificates import CERTIFICATE_LIFE, Authority
from sdk.fleet.cli_enroll import secure_broker, service_settings, tls_folder
from sdk.fleet.database import DATABASE_NAME, LOCK_NAME, WRITER_LOCK, engine_of, name_database
from sdk.fleet.doctor import broker, clock, database, devices, disk, keys, service
from sdk.fleet.doctor.broker import Way
from sdk.fleet.doctor.examine import Examination
from sdk.fleet.doctor.postgres import archived
from sdk.fleet.doctor.seen import Seen
from sdk.fleet.one_service import Holder, holder_here
from sdk.fleet.refusal import Refusal
from sdk.fleet.restoring import MARKS_NAME
from sdk.fleet.schema import SCHEMA_REVISION, _upgrade, begin_in
from sdk.fleet.service import session_name
from sdk.fleet.store import FleetStore
from sdk.fleet.union_ledger import Arrival
from sdk.labels import Quarantine
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import DeviceState, decode_json
from tests.builders import make_bundle
from tests.commands import headway
from tests.other_users import AGENT, as_user, device, needs_root
from tests.postgres import Postgres
from tests.simulators import LiveDevice, SimDevice, wait_for
from tests.test_database_away import PATIENCE_S, Served
from tests.test_fleet_schema import OLD, make_old, schema_of

__all__ = ["device"]

NOW = 1_800_000_000.0
NOWHERE = MqttSettings(port=1)


def faults(found: Iterable[Finding]) -> list[Finding]:
    return [each for each in found if each.level is Level.FAULT]


def examined(directory: Path, settings: MqttSettings = NOWHERE) -> list[Finding]:
    return list(Examination(directory, lambda: Way(settings)))


def state_of(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Return of everything in a folder when it was changed, its mode, and what is in it."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in directory.rglob("*")
    }


# The whole walk


@pytest.mark.broker
def test_a_fleet_that_is_well_has_nothing_to_fix_and_its_service_goes_on(
    mosquitto: Mosquitto, fleet_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        FleetStore(fleet_dir) as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as one,
    ):
        one.label(1)
        wait_for(lambda: not one.outbox, PATIENCE_S, "the label")
        wait_for((fleet_dir / MARKS_NAME).exists, PATIENCE_S, "what the service keeps of the union")
        before = {*fleet_dir.iterdir()}
        found = examined(fleet_dir, mosquitto.settings)
        assert faults(found) == []
        assert {*fleet_dir.iterdir()} == before
        by_area = {each.area: each.what for each in reversed(found)}
        assert f"process {os.getpid()} serves since" in by_area["service"]
        assert "the newest in the database is from" in by_area["service"]
        assert "MQTT 5, no TLS, connected" in by_area["broker"]
        assert by_area["devices"] == "channel default: 1 device, 1 online"
        doctor = ("fleet", "doctor", "--dir", fleet_dir, "--broker", mosquitto.settings.address)
        assert headway(capsys, *doctor).code == 0
        long_ago = datetime.now(timezone.utc) - CERTIFICATE_LIFE + timedelta(days=30)
        Authority.create(fleet_dir / "tls", ["127.0.0.1"], clock=lambda: long_ago)
        ended = headway(capsys, *doctor)
        assert (ended.code, "\n0 to fix, " in ended.out) == (1, True), "what ends soon is to be renewed"
        one.label(2)
        wait_for(lambda: not one.outbox, PATIENCE_S, "a label afterwards")
    assert served.error is None
    assert served.told("broker") == []


def test_without_a_service_that_is_told_and_no_byte_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "fleet"
    with FleetStore(directory) as store:
        store.publish(make_bundle(tmp_path / "bundle"), channel="default")
    min((directory / "chunks").iterdir()).write_bytes(b"flipped")
    before = state_of(directory)
    ended = headway(capsys, "fleet", "doctor", "--dir", directory, "--broker", "127.0.0.1:1", "--json")
    assert state_of(directory) == before
    told = json.loads(ended.out)
    wrong = {each["area"]: each for each in told["findings"] if each["level"] == "fault"}
    assert (ended.code, told["faults"], {*wrong}) == (1, 3, {"service", "broker", "chunks"})
    assert wrong["service"]["fix"].startswith(f"headway fleet serve --dir {directory}")
    assert "1 of " in wrong["chunks"]["what"]
    assert all("\n" not in each["what"] + each["fix"] for each in told["findings"])


@pytest.mark.postgres
def test_with_its_database_away_all_else_is_judged(postgres: Postgres, tmp_path: Path) -> None:
    name_database(tmp_path, postgres.new_database())
    FleetStore(tmp_path).close()
    postgres.kill()
    try:
        found = examined(tmp_path)
    finally:
        postgres.start()
    assert [each.area for each in faults(found)] == ["database", "service", "broker"]
    assert "PostgreSQL cannot be used" in faults(found)[0].what
    assert {"permissions", "disk", "clock", "trust"} <= {each.area for each in found}


def test_what_tells_of_the_broker_may_be_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FleetStore(tmp_path).close()
    tls_folder(tmp_path).mkdir()
    (tls_folder(tmp_path) / "place.json").write_text("{")
    ended = headway(capsys, "fleet", "doctor", "--dir", tmp_path)
    assert "fault broker      " in ended.out
    assert "place.json is damaged" in ended.out
    assert "good  disk" in ended.out
    assert ended.out.endswith("to look at\n")


def test_a_fleet_that_is_looked_at_only_is_not_written(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    with FleetStore(tmp_path, looks=True) as store, pytest.raises(ValueError, match="look only"), store.write():
        pass


# The database


def test_a_damaged_page_is_a_fault(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    file = tmp_path / DATABASE_NAME
    content = bytearray(file.read_bytes())
    content[4096:20480] = bytes(range(256)) * 64
    file.write_bytes(content)
    (found,) = faults(database.examine(tmp_path))
    assert "is damaged: " in found.what
    assert "Restore it from a backup" in found.fix


def test_a_damaged_page_that_nothing_else_reads_is_found_too(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    file = tmp_path / DATABASE_NAME
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("CREATE TABLE more (word TEXT)")
        db.executemany("INSERT INTO more VALUES (?)", [("x" * 1000,)] * 100)
    content = bytearray(file.read_bytes())
    content[-4096:] = os.urandom(4096)
    file.write_bytes(content)
    (found,) = faults(database.examine(tmp_path))
    assert found.what.startswith(f"{file} is damaged: ")
    assert "Restore it from a backup" in found.fix


def test_who_keeps_the_write_lock_is_named(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)) as other:
        assert faults(database.examine(tmp_path)) == []
        other.execute("BEGIN IMMEDIATE")
        (found,) = faults(database.examine(tmp_path))
    assert found.what.startswith(f"process {os.getpid()} (")
    assert found.fix.endswith(f"kill {os.getpid()}")


def test_a_service_that_writes_much_is_no_stuck_writer(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store, store.serving(), store.write() as ledger:
        assert ledger.channels() == [], "it holds the lock from here on"
        assert faults(database.examine(tmp_path)) == []


@pytest.mark.parametrize(("revision", "level"), [(OLD, Level.NOTE), ("0999", Level.FAULT)])
def test_another_schema_is_told_and_left_as_it_is(tmp_path: Path, revision: str, level: Level) -> None:
    make_old(tmp_path, OLD if revision == OLD else SCHEMA_REVISION).dispose()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    found = [each for each in examined(tmp_path) if each.area == "database" and each.fix]
    assert [each.level for each in found] == [level]
    assert "Headway" in found[0].what
    assert f"fleet.db.{OLD}" in found[0].fix or "Update Headway" in found[0].fix
    assert schema_of(tmp_path / DATABASE_NAME) == revision


@needs_root
def test_a_database_of_another_user_is_told_with_the_command_that_mends_it(device: Path) -> None:
    FleetStore(device).close()
    os.chown(device / DATABASE_NAME, 0, 0)
    with as_user(AGENT):
        (found,) = database.examine(device)
    assert found.what == f"{device / DATABASE_NAME} belongs to root, and {AGENT} may not use it"
    assert f"sudo chown -R {AGENT} '{device / DATABASE_NAME}'" in found.fix
    (device / DATABASE_NAME).chmod(0o644)
    with as_user(AGENT):
        assert "may not" in faults(database.examine(device))[0].what


@needs_root
def test_a_directory_that_is_closed_is_told_with_who_may(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FleetStore(device).close()
    os.chown(device, 0, 0)
    device.chmod(0o700)
    with as_user(AGENT):
        ended = headway(capsys, "fleet", "doctor", "--dir", device)
    assert (ended.code, "sudo -u root headway fleet" in ended.err) == (2, True), ended


def test_a_place_of_chunks_that_nobody_knows_is_one_fault_of_many(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    (tmp_path / "chunks.url").write_text("nowhere://fleet")
    found = {each.area: each.what for each in faults(examined(tmp_path))}
    assert {*found} == {"chunks", "service", "broker"}
    assert "nowhere://fleet cannot be used" in found["chunks"]


@pytest.fixture
def own_schema(postgres: Postgres, tmp_path: Path) -> str:
    """A fleet in a schema of its user's own; the name of both."""
    name, url = postgres.new_schema()
    begin_in(tmp_path / "fleet", url)
    return name


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("takes", "level", "words"),
    [
        ("REVOKE UPDATE ON {0}.entries FROM {0}", Level.FAULT, "lacks UPDATE on entries"),
        ("REVOKE USAGE ON SCHEMA {0} FROM {0}", Level.NOTE, "schema none"),
        ("ALTER TABLE {0}.devices OWNER TO headway", Level.FAULT, "lacks SELECT on devices"),
        (
            "REVOKE CREATE ON SCHEMA {0} FROM {0}",
            Level.NOTE,
            "the next Headway cannot bring the schema up",
        ),
        ("DROP TABLE {0}.broker", Level.FAULT, "sees no table broker"),
        ("ALTER ROLE {0} SET default_transaction_read_only = on", Level.FAULT, "is read-only"),
    ],
)
def test_a_right_that_is_lacking_is_named_with_what_gives_it(
    postgres: Postgres, tmp_path: Path, own_schema: str, takes: str, level: Level, words: str
) -> None:
    assert [each for each in database.examine(tmp_path / "fleet") if each.level is not Level.GOOD] == []
    postgres.execute(takes.format(own_schema))
    (found,) = [each for each in database.examine(tmp_path / "fleet") if each.level is not Level.GOOD]
    assert (found.level, words in found.what) == (level, True), found
    assert found.fix


@pytest.mark.postgres
@pytest.mark.parametrize(
    "holds", [f"SELECT pg_advisory_xact_lock({WRITER_LOCK})", "LOCK TABLE {0}.entries IN EXCLUSIVE MODE"]
)
def test_who_keeps_postgresqls_writers_out_is_named(
    postgres: Postgres, tmp_path: Path, own_schema: str, holds: str
) -> None:
    """A superuser's session does not say since when; one of the fleet's own user does."""
    for user, words in (("headway", "does not say"), (own_schema, r"keeps writers out, for \d+ s")):
        url = f"postgresql://{user}@127.0.0.1:{postgres.port}/postgres?application_name=psql"
        with psycopg.connect(url) as other:
            other.execute(holds.format(own_schema).encode())
            (found,) = faults(database.examine(tmp_path / "fleet", patience_s=0.0))
            assert f"its process {other.info.backend_pid} (psql" in found.what
            assert re.search(words, found.what)
            assert found.fix.endswith(f"SELECT pg_terminate_backend({other.info.backend_pid})")
            if user == own_schema:
                assert faults(database.examine(tmp_path / "fleet")) == [], "a commit takes its time"


@pytest.mark.postgres
def test_a_postgresql_of_another_encoding_is_a_fault(postgres: Postgres, tmp_path: Path) -> None:
    name_database(tmp_path, postgres.new_latin_database())  # as it was done before they were refused
    engine = engine_of(tmp_path)
    _upgrade(tmp_path, engine)
    engine.dispose()
    (found,) = faults(database.examine(tmp_path))
    assert "encoding is LATIN1" in found.what


@pytest.mark.parametrize(
    ("since", "fails", "level", "words"),
    [
        ("2027-01-15 08:00:00", False, Level.GOOD, "the last piece 2027-01-15 08:00:00"),
        (None, False, Level.GOOD, "the last piece not yet"),
        ("2027-01-15 08:00:00", True, Level.NOTE, "archive_command fails; the last that went well: 2027-01-15"),
        (None, True, Level.NOTE, "the last that went well: none"),
    ],
)
def test_a_log_that_is_archived_no_more_is_told(since: str | None, fails: bool, level: Level, words: str) -> None:
    found = archived(since, fails=fails)
    assert (found.level, words in found.what, bool(found.fix)) == (level, True, fails)


# Its service


@pytest.mark.postgres
def test_a_service_elsewhere_that_holds_the_same_database_is_told(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.new_database()
    for name in ("fleet", "elsewhere"):
        name_database(tmp_path / name, url)
    FleetStore(tmp_path / "fleet").close()
    with FleetStore(tmp_path / "elsewhere") as other, other.serving():
        (found,) = [each for each in examined(tmp_path / "fleet") if each.area == "service"]
    assert found.level is Level.NOTE
    assert found.what.startswith("a service at 127.0.0.1 holds the database since ")


def test_who_holds_a_directory_is_read_and_not_taken(tmp_path: Path) -> None:
    assert holder_here(tmp_path) is None
    with FleetStore(tmp_path) as store, store.serving():
        found = holder_here(tmp_path)
        assert found is not None
        assert (found.pid, found.since_utc) == (os.getpid(), psutil.Process().create_time())
    assert holder_here(tmp_path) is None
    assert (tmp_path / LOCK_NAME).exists(), "the control: there is a file, and nobody has it"


def device_row(name: str, **more: Any) -> dict[str, Any]:
    """Return a device as `fleet_overview` says it: online, and with all of the log."""
    row = {"device": name, "channel": "default", "presence": "online", "online": True, "revoked_utc": None}
    row |= {"last_seen_utc": NOW - 60, "quarantine": [], "merged": None, "refused": None, "trust": ""}
    row |= {"taken_back": False, "space": "s", "other_precision": False, "faults": [], "said_bytes": 0}
    row |= {"foreign_codes": 0}
    return {**row, **more}


def seen_of(*rows: dict[str, Any], away: dict[str, Any] | None = None, **more: Any) -> Seen:
    overview = {"devices": [*rows], "channels": [{"channel": "default"}], "broker_away": away}
    return Seen(overview, **more)


AWAY = {"address": "b:1883", "since_utc": NOW - 600, "contested": False}
SERVING = Holder(4711, NOW - 3 * DAY_S, "sleeping")
REFUSAL = Refusal(since_utc=NOW - 60, error="disk full", hint="Free some space.")


@pytest.mark.parametrize(
    ("here", "seen", "refusal", "level", "words", "fix"),
    [
        (SERVING, seen_of(device_row("a")), None, Level.GOOD, "process 4711 serves since 2027-01-12", ""),
        (SERVING, None, None, Level.GOOD, "process 4711 serves since", ""),
        (Holder(), None, None, Level.GOOD, "not listed here serves", ""),
        (None, None, None, Level.FAULT, "no service runs for", "headway fleet serve --dir fleet"),
        (Holder(4711, None, "stopped"), None, None, Level.FAULT, "is stopped", "kill -CONT 4711"),
        (
            SERVING,
            seen_of(device_row("a", last_seen_utc=NOW - 3 * 3600)),
            None,
            Level.FAULT,
            "written nothing",
            "log",
        ),
        (SERVING, None, REFUSAL, Level.FAULT, "the fleet stores nothing", "Free some space."),
        (SERVING, seen_of(away=AWAY), None, Level.FAULT, "the broker at b:1883 went away", "Does it run"),
        (
            SERVING,
            seen_of(away={**AWAY, "contested": True}),
            None,
            Level.FAULT,
            "another fleet service",
            "Only you",
        ),
    ],
)
def test_a_service_is_judged_by_who_holds_the_turn_and_what_it_did(
    here: Holder | None, seen: Seen | None, refusal: Refusal | None, level: Level, words: str, fix: str
) -> None:
    found = list(service.judged(Path("fleet"), here, None, seen, refusal, NOW))
    assert [each.level for each in found[:-1]] == [Level.GOOD] * (len(found) - 1)
    assert (found[-1].level, words in found[-1].what, fix in found[-1].fix) == (level, True, True), found


def test_what_a_killed_service_has_left_is_no_fault_of_one_that_is_not_there() -> None:
    found = list(service.judged(Path("fleet"), None, None, None, REFUSAL, NOW))
    assert [each.level for each in found] == [Level.FAULT, Level.NOTE]
    assert "was killed" in found[1].what


def test_a_holiday_of_all_devices_is_no_fault_of_the_service() -> None:
    off = device_row("a", presence="offline", online=False, last_seen_utc=NOW - 9 * DAY_S)
    assert faults(service.judged(Path("fleet"), SERVING, None, seen_of(off), None, NOW)) == []


# The clock


def arrived(name: str, ago_s: float, waited_s: float) -> Arrival:
    return Arrival(name, NOW - ago_s - waited_s, NOW - ago_s)


@pytest.mark.parametrize(
    ("arrivals", "signed", "expected"),
    [
        ([arrived("a", 60, 1), arrived("b", 60, 7200)], NOW - 3600, []),
        ([], 0.0, []),
        ([], NOW + 2 * DAY_S, [(Level.FAULT, "2 d ahead of the clock")]),
        ([arrived("a", -DAY_S, 1)], 0.0, [(Level.FAULT, "1 d ahead of the clock")]),
        ([arrived("a", 60, -7200), arrived("b", 60, -7300)], 0.0, [(Level.FAULT, "this clock is behind")]),
        ([arrived("a", 60, -7200), arrived("b", 60, 2)], 0.0, [(Level.NOTE, "of a came 2 h before")]),
        ([arrived("a", 60, -7200)], 0.0, [(Level.NOTE, "its clock is ahead")]),
        ([arrived("a", 2 * DAY_S, -7200), arrived("b", 2 * DAY_S, -7200)], 0.0, []),
        ([arrived(each, 60, 400 * DAY_S) for each in "abc"], 0.0, [(Level.NOTE, "clock is ahead of theirs")]),
        ([arrived(each, 60, 3 * DAY_S) for each in "ab"] + [arrived("c", 60, 1)], 0.0, []),
    ],
)
def test_the_clock_is_judged_by_what_was_written_and_by_the_devices(
    arrivals: list[Arrival], signed: float, expected: list[tuple[Level, str]]
) -> None:
    found = list(clock.judged(seen_of(arrivals={"default": arrivals}), signed, NOW))
    assert [(each.level, words in each.what) for each, (_, words) in zip(found, expected, strict=True)] == [
        (level, True) for level, _ in expected
    ]
    assert all(each.fix for each in found)


def test_what_the_fleets_people_decide_is_no_devices_clock(tmp_path: Path) -> None:
    line = SimDevice("a")
    line.label(1)
    with FleetStore(tmp_path) as store, store.write() as ledger:
        ledger.note_state(decode_json(line.state().payload, DeviceState), seen_utc=NOW)
        ledger.take("a", line.log, {})
        ledger.decide("default", [Quarantine("a", "", 0, "camera upside down", "")])
        assert {one.device for one in ledger.arrivals("default", 200)} == {"a"}
        assert ledger.arrivals("default", 1) == [], "the newest is the fleet's own"


# The devices


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        (seen_of(device_row("a")), Level.GOOD, "1 device, 1 online"),
        (
            seen_of(device_row("a", presence="offline", online=False, last_seen_utc=NOW - 8 * DAY_S)),
            Level.NOTE,
            "silent: a (for 8 d)",
        ),
        (
            seen_of(device_row("a", presence="offline", online=False, last_seen_utc=NOW - 3 * DAY_S)),
            Level.GOOD,
            "0 online",
        ),
        (
            seen_of(device_row("a"), lacks_since={"a": NOW - 3600}),
            Level.FAULT,
            "without what the others learned: a",
        ),
        (seen_of(device_row("a"), lacks_since={"a": NOW - 60}), Level.GOOD, "1 online"),
        (
            seen_of(device_row("a", presence="offline", online=False), lacks_since={"a": NOW - 3600}),
            Level.GOOD,
            "0 online",
        ),
        (seen_of(device_row("a", refused="counter 9 jumps")), Level.NOTE, "its next label is refused: counter 9"),
        (
            seen_of(*(device_row(f"d{i}", faults=["a camera is lost"]) for i in range(7))),
            Level.NOTE,
            "d4 (a camera is lost) and 2 more",
        ),
        (seen_of(device_row("a", revoked_utc=NOW, faults=["x"])), Level.GOOD, "0 devices, 0 online"),
    ],
)
def test_devices_are_judged_by_channel(seen: Seen, level: Level, words: str) -> None:
    found = list(devices.judged(Path("fleet"), seen, NOW, served=True))
    assert (found[-1].level, words in found[-1].what) == (level, True), found
    assert level is Level.GOOD or found[-1].fix


def test_where_nobody_serves_no_device_is_blamed_for_what_it_lacks() -> None:
    seen = seen_of(device_row("a"), lacks_since={"a": NOW - 3600})
    (found,) = devices.judged(Path("fleet"), seen, NOW, served=False)
    assert found.what == "channel default: 1 device, as they were when the service last heard them"


def test_a_log_that_came_back_from_an_older_copy_is_told_before_the_service_starts(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store:
        with store.write() as ledger:
            ledger._channel("default")
        store.marks.put("default", 7, b"\x01" * 32, 9)
    found = [each for each in examined(tmp_path) if "older copy" in each.what]
    assert [each.level for each in found] == [Level.NOTE]
    assert "devices offer again" in found[0].fix


# Disk and keys


@pytest.mark.parametrize(
    ("free_mib", "next_mib", "level", "words"),
    [
        (10_000, 300, Level.GOOD, "enough for a copy of the database (1 MiB) and the next release (300 MiB)"),
        (500, 300, Level.FAULT, "not enough for"),
        (500, 0, Level.GOOD, "500 MiB free"),
        (100, 0, Level.FAULT, "below 256 MiB labels may be refused"),
    ],
)
def test_room_is_judged_by_what_the_next_release_takes(
    tmp_path: Path, free_mib: int, next_mib: int, level: Level, words: str
) -> None:
    FleetStore(tmp_path).close()
    found = next(disk.examine(tmp_path, next_mib * 1024**2, lambda _: free_mib * 1024**2))
    assert (found.level, words in found.what) == (level, True), found


@pytest.mark.parametrize("left", ["chunks/ab", "decisions/1", "union.json"])
@pytest.mark.parametrize(("emptied", "how"), [(True, "holds nothing"), (False, "is gone")])
def test_a_database_that_is_lost_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str, emptied: bool, how: str
) -> None:
    """Nothing but the database is missing, and the command that would begin an empty one is not advised."""
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("x")
    if emptied:
        (tmp_path / "fleet.db").touch()
    (found,) = database.examine(tmp_path)
    assert (found.level, f"fleet.db {how}" in found.what, "Restore it" in found.fix) == (Level.FAULT, True, True)
    assert headway(capsys, "fleet", "doctor", "--dir", tmp_path).code == 1


def test_a_fleet_that_was_set_up_and_not_served_yet_has_lost_nothing(tmp_path: Path) -> None:
    (tmp_path / "tls" / "issued").mkdir(parents=True)
    (tmp_path / "tls" / "issued" / "line-1.pem").touch()
    (tmp_path / "fleet.db").touch()
    (*_, found) = database.examine(tmp_path)
    assert (found.level, "fleet.db.None" in found.fix) == (Level.NOTE, False)


def test_the_disk_that_chunks_lie_on_is_judged_too(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    (tmp_path / "chunks.url").write_text("memory://fleet")
    found = list(disk.examine(tmp_path, 0, free_bytes))
    assert found[-1].what == "chunks are at memory://fleet: only that place can say what is free there"


@pytest.mark.parametrize(
    ("name", "mode", "level", "fix"),
    [
        ("tls/ca.key", 0o600, Level.GOOD, ""),
        ("tls/ca.key", 0o644, Level.FAULT, "chmod 0600 {}"),
        ("tls/ca.key", 0o640, Level.NOTE, "chmod 0600 {}"),
        ("tls/broker.key", 0o640, Level.GOOD, ""),
        ("tls/broker.key", 0o644, Level.FAULT, "chmod o-rwx {}"),
        ("trust/online.pem", 0o604, Level.FAULT, "chmod 0600 {}"),
        ("database.url", 0o644, Level.FAULT, "chmod 0600 {}"),
        ("fleet.db", 0o644, Level.NOTE, "chmod 0600 {}"),
        (".", 0o777, Level.FAULT, "chmod o-w {}"),
    ],
)
def test_who_may_read_what_is_secret_is_judged(
    tmp_path: Path, name: str, mode: int, level: Level, fix: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        file.write_text("secret")
    file.chmod(mode)
    (found,) = keys.examine(tmp_path)
    assert (found.level, found.fix) == (level, fix.format(file))


@pytest.mark.parametrize(
    "name",
    [
        "trust",
        "tls",
        "tls/issued",
        "chunks",
        "decisions",
        "tls/acl",
        "tls/crl.pem",
        "trust/targets.json",
        "fleet.db",
    ],
)
def test_who_may_write_what_the_fleet_goes_by_is_judged(tmp_path: Path, name: str) -> None:
    """Also where he may write only deep within a directory that is closed to him itself."""
    place = tmp_path / name
    if "." in place.name or place.name == "acl":
        place.parent.mkdir(exist_ok=True)
        place.write_text("believed")
        place.chmod(0o602)
    else:
        place.mkdir(parents=True)
        place.chmod(0o703)
    (found,) = keys.examine(tmp_path)
    assert (found.level, found.fix) == (Level.FAULT, f"chmod o-w {place}")
    place.chmod(0o700)
    (found,) = keys.examine(tmp_path)
    assert found.level is Level.GOOD


def test_what_everybody_may_write_is_one_finding(tmp_path: Path) -> None:
    for name in ("trust", "tls"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (found,) = keys.examine(tmp_path)
    assert found.what.endswith(f"may write to {tmp_path / 'trust'} and 1 more that it goes by")
    assert found.fix == f"chmod o-w {tmp_path / 'trust'} {tmp_path / 'tls'}"


# The broker


@pytest.fixture
def secured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Mosquitto]:
    """The broker of `headway fleet tls` for the fleet in `tmp_path / "fleet"`."""
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    assert headway(capsys, "fleet", "tls", "--dir", tmp_path / "fleet", "--host", "localhost").code == 0
    with secure_broker(tmp_path / "fleet", port=0, host="127.0.0.1") as running:
        yield running


def way_of(directory: Path, running: Mosquitto) -> Way:
    settings = service_settings(directory, here=True)
    assert settings is not None
    return Way(replace(settings, port=running.port), "localhost")


@pytest.mark.broker
def test_the_services_session_is_looked_in_on_and_what_waits_in_it_waits_on(
    secured: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, folder = tmp_path / "fleet", tmp_path / "line-1"
    assert headway(capsys, "fleet", "enroll", "line-1", "--dir", fleet, "--out", folder).code == 0
    way = way_of(fleet, secured)
    name, came = session_name(way.settings.prefix, ["default"]), list[bytes]()
    topic = "headway/v1/dev/+/up/label"
    with MqttSession(way.settings, name, on_message=lambda _: None) as before:
        before.subscribe([topic])
        before.connect(PATIENCE_S)
        assert before.wait_answered(PATIENCE_S)
    own = replace(way.settings, cert_file=folder / "device.pem", key_file=folder / "device.key")
    with MqttSession(own, "line-1", on_message=lambda _: None) as line:
        line.connect(PATIENCE_S)
        for number in range(3):
            line.publish("headway/v1/dev/line-1/up/label", b"%d" % number)
        assert line.wait_taken(PATIENCE_S)
        assert line.refusal is None
    for _ in range(2):
        found = list(broker.examine(lambda: way, ["default"], served=False))
        assert [each.level for each in found] == [Level.GOOD] * 3, found
        assert "its certificate holds for localhost, and it takes the service's" in found[0].what
        assert "a message is taken after" in found[2].what
    remembered: list[bool] = []
    after = MqttSession(
        way.settings, name, on_message=lambda m: came.append(m.payload), on_connect=remembered.append
    )
    with after:
        after.connect(PATIENCE_S)
        wait_for(lambda: len({*came}) == 3, PATIENCE_S, "what waited")
    assert remembered == [True]


@contextlib.contextmanager
def hanging_up(directory: Path, times: int) -> Iterator[int]:
    """A broker of this fleet that closes so many connections without a word; yield its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=directory / "tls" / "ca.pem")
    context.load_cert_chain(directory / "tls" / "broker.pem", directory / "tls" / "broker.key")
    context.verify_mode = ssl.CERT_REQUIRED
    kept: list[ssl.SSLSocket] = []

    def answer() -> None:
        for number in range(times + 1):
            with contextlib.suppress(OSError):
                line = context.wrap_socket(server.accept()[0], server_side=True)
                if number < times:
                    line.close()
                else:
                    kept.append(line)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
    for line in kept:
        line.close()


@pytest.mark.parametrize(
    ("times", "connected", "level"),
    [(2, True, Level.GOOD), (9, True, Level.NOTE), (9, False, Level.FAULT)],
)
def test_a_connection_that_ends_without_a_word_is_no_refused_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int, connected: bool, level: Level
) -> None:
    """A refusal comes as an alert, and the service is there with the very certificate."""
    assert headway(capsys, "fleet", "tls", "--dir", tmp_path, "--host", "localhost").code == 0
    settings = service_settings(tmp_path, here=True)
    assert settings is not None
    with hanging_up(tmp_path, times) as port:
        way = Way(replace(settings, port=port), "localhost")
        found = [*broker.examine(lambda: way, ["default"], served=True, connected=connected)]
    assert {one.level for one in found} == {level}
    assert ("--renew" in found[0].fix) is (level is Level.FAULT)


@pytest.mark.broker
def test_a_session_that_was_not_there_is_not_there_afterwards(secured: Mosquitto, tmp_path: Path) -> None:
    """The service would take it for one that the broker remembers, and not say again what the broker has lost."""
    way = way_of(tmp_path / "fleet", secured)
    assert faults(broker.examine(lambda: way, ["default"], served=False)) == []
    remembered: list[bool] = []
    name = session_name(way.settings.prefix, ["default"])
    with MqttSession(way.settings, name, on_message=lambda _: None, on_connect=remembered.append) as session:
        session.connect(PATIENCE_S)
        wait_for(lambda: remembered)
    assert remembered == [False]


def test_a_session_that_is_taken_away_at_once_is_anothers(tmp_path: Path) -> None:
    """As where this directory is a copy, and the fleet is served elsewhere."""
    with taking_over() as port:
        way = Way(MqttSettings(port=port, username="service"))
        (_, found) = broker.examine(lambda: way, ["default"], served=False)
    assert "something else comes there under its name" in found.what
    assert found.level is Level.FAULT


@pytest.mark.parametrize("username", [None, "service"])
def test_a_service_that_runs_may_have_been_told_of_another_broker(username: str | None) -> None:
    way = Way(replace(NOWHERE, username=username))
    for served in (True, False):
        (found,) = broker.examine(lambda: way, ["default"], served=served)
        assert (found.level, found.what) == (Level.FAULT, "no MQTT broker at 127.0.0.1:1: Connection refused")
        assert ("given another broker? Then give its options here too." in found.fix) is served


@contextlib.contextmanager
def taking_over() -> Iterator[int]:
    """A broker that lets everybody in, and ends the session with the first message; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                server.accept()[0].close()  # who only looks whether anybody is there
                line, _ = server.accept()
                with line:
                    line.recv(1000)
                    line.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK
                    line.recv(1)  # of a PUBLISH
                    line.sendall(b"\xe0\x02\x8e\x00")  # DISCONNECT: session taken over

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.broker
def test_beside_a_service_only_hands_are_shaken(secured: Mosquitto, tmp_path: Path) -> None:
    way = way_of(tmp_path / "fleet", secured)
    ends: list[bool] = []
    name = session_name(way.settings.prefix, ["default"])
    with MqttSession(way.settings, name, on_message=lambda _: None, on_connect=ends.append) as session:
        session.connect(PATIENCE_S)
        found = list(broker.examine(lambda: way, ["default"], served=True))
        assert session.connected
        assert ends == [False]
    assert [each.level for each in found] == [Level.GOOD] * 2
    assert "so limits were not looked at" in found[1].what


@pytest.mark.broker
@pytest.mark.parametrize(
    ("known_as", "served", "words"),
    [
        ("elsewhere.plant.example", True, "certificate of the broker at 127.0.0.1:{port} does not hold"),
        ("localhost", False, "refuses the certificate"),
    ],
)
def test_a_certificate_that_does_not_hold_is_a_fault(
    secured: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str], known_as: str, served: bool, words: str
) -> None:
    way = way_of(tmp_path / "fleet", secured)
    if not served:  # another fleet's certificate
        assert headway(capsys, "fleet", "tls", "--dir", tmp_path / "other", "--host", "localhost").code == 0
        theirs = tls_folder(tmp_path / "other")
        settings = replace(way.settings, cert_file=theirs / "service.pem", key_file=theirs / "service.key")
        way = Way(settings)
    way = Way(way.settings, known_as)
    (found,) = broker.examine(lambda: way, ["default"], served=served)
    assert found.level is Level.FAULT
    assert words.format(port=secured.port) in found.what
    assert "fleet tls --renew" in found.fix
