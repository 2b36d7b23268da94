"""The fleet's database: migrated at open, one transaction at a time, never half a truth."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import BadSignature, FleetError, StoreCorrupt, UnknownDevice
from sdk.fleet.database import DATABASE_NAME, URL_NAME, engine_of, name_database
from sdk.fleet.page.view import FleetView
from sdk.fleet.schema import MIGRATIONS, SCHEMA_REVISION
from sdk.fleet.store import FleetStore, Ledger
from sdk.fleet.tables import Base
from sdk.fleet.union_ledger import Taken
from sdk.labels import MAX_COUNTER_JUMP, Chain, CodeRecord, Fold, KeepApart, Label, Record, entry_hash
from sdk.wire import DeviceState, UpdateEvent, UpdateState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import headway
from tests.other_users import AGENT, as_user, device, needs_root
from tests.postgres import Postgres
from tests.simulators import SimDevice
from tests.test_restored import copied, put_back
from tests.tiny import two_precisions

__all__ = ["device"]


def register(ledger: Ledger, device: str, channel: str = "default", **more: object) -> None:
    state = DeviceState(device=device, channel=channel, online=True, **more)  # type: ignore[arg-type]
    ledger.note_state(state, seen_utc=1.0)


def labelled(device: str, labels: int) -> list[Record]:
    simulated = SimDevice(device)
    for number in range(labels):
        simulated.label(number)
    return simulated.log


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first")


def test_migrations_make_exactly_the_tables_of_the_models(fleet_dir: Path) -> None:
    FleetStore(fleet_dir).close()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION
    with engine_of(fleet_dir).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_commit_is_synced_to_disk(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store, store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE_NAME) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(FleetError, match="newer Headway"):
        FleetStore(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(FleetError, match="damaged"):
        FleetStore(tmp_path)


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FleetError, match="Not a directory"):
        FleetStore(tmp_path / "file" / "fleet")


def test_a_second_service_on_the_directory_is_refused(fleet_dir: Path) -> None:
    with FleetStore(fleet_dir) as one, FleetStore(fleet_dir) as other:
        assert not other.served()
        with one.serving():
            assert other.served()
            with pytest.raises(FleetError, match="another fleet service"), other.serving():
                pass
        assert not other.served()


def test_what_fails_half_way_leaves_nothing(fleet_dir: Path) -> None:
    log = labelled("a", 3)
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            register(ledger, "a")

        def take_and_fail() -> None:
            with store.write() as ledger:
                ledger.take("a", log, {})
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            take_and_fail()
        with store.read() as ledger:
            assert ledger.log_length("default") == 0
            assert ledger.records("default", 1) == []
        with store.write() as ledger:
            assert ledger.take("a", log, {}).first_position == 1


def test_labels_of_an_unregistered_device_are_refused(fleet_dir: Path) -> None:
    with FleetStore(fleet_dir) as store, pytest.raises(UnknownDevice), store.write() as ledger:
        ledger.take("a", labelled("a", 1), {})


def test_positions_have_no_gaps_whoever_writes_at_once(fleet_dir: Path) -> None:
    logs = {name: labelled(name, 20) for name in ("a", "b", "c")}
    with FleetStore(fleet_dir) as store, store.write() as ledger:
        for name in logs:
            register(ledger, name)
    taken: list[Taken] = []

    def write(name: str) -> None:
        with FleetStore(fleet_dir) as store:
            for i in range(0, len(logs[name]), 5):
                with store.write() as ledger:
                    taken.append(ledger.take(name, logs[name][i : i + 5], {}))

    threads = [threading.Thread(target=write, args=(name,)) for name in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(map(len, logs.values()))
    starts = sorted((one.first_position, len(one.verdict.accepted)) for one in taken)
    assert sum(count for _, count in starts) == total
    assert all(first + count == after for (first, count), (after, _) in pairwise(starts))
    with FleetStore(fleet_dir) as store, store.read() as ledger:
        assert ledger.log_length("default") == total
        stored = [record for i in range(1, total + 1) for record in ledger.records("default", i)[:1]]
        assert {name: [r for r in stored if r.entry.device == name] for name in logs} == logs


def test_a_writer_begins_when_the_one_before_has_ended(fleet_dir: Path) -> None:
    """What it reads is then what it changes: a halt is not written over by a service that read before it."""
    entered = threading.Event()

    def write() -> None:
        with FleetStore(fleet_dir) as other, other.write() as ledger:
            ledger.channels()
            entered.set()

    with FleetStore(fleet_dir) as store:
        second = threading.Thread(target=write)
        with store.write() as ledger:
            ledger.channels()  # it has only read, and changed no row that anybody else wants
            second.start()
            assert not entered.wait(0.5)
        assert entered.wait(60)
        second.join()


def test_channels_have_unions_of_their_own(fleet_dir: Path) -> None:
    with FleetStore(fleet_dir) as store, store.write() as ledger:
        register(ledger, "a", "left")
        register(ledger, "b", "right")
        assert ledger.take("a", labelled("a", 2), {}).first_position == 1
        assert ledger.take("b", labelled("b", 1), {}).first_position == 1
        assert (ledger.log_length("left"), ledger.log_length("right")) == (5, 3)
        assert ledger.log_length("none") == 0


def test_counters_of_one_channel_move_none_of_another(fleet_dir: Path, tmp_path: Path) -> None:
    """A device measures a jump from its own channel's union. What it would refuse must not get in: it stays."""
    wild, chain = [], Chain("a")
    for jumps in range(1, 4):
        chain, entry = chain.write(Label(bytes(32), None, "ann"), counter=jumps * MAX_COUNTER_JUMP, wall_time_us=0)
        wild.append(Record(entry))
    mine = labelled("b", 1)
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            register(ledger, "a", "left")
            register(ledger, "b", "right")
            ledger.take("b", mine, {})
            assert len(ledger.take("a", wild, {}).verdict.accepted) == 3
        with store.write() as ledger:
            ledger.decide("right", [KeepApart(bytes(16), bytes([1] * 16), "boss")])
        _, ahead = Chain("b", len(mine), entry_hash(mine[-1].entry)).write(
            Label(bytes(32), None, "ann"), counter=3 * MAX_COUNTER_JUMP, wall_time_us=0
        )
        with store.write() as ledger:
            refused = ledger.take("b", [Record(ahead)], {}).verdict.refused
            assert refused is not None
            assert "jumps more than 2^32" in refused.reason
        with store.read() as ledger:
            union = ledger.records("right", 1)
    with Store.open(tmp_path / "device", "c") as device:
        device.log.receive(union, len(union), "right")
        assert device.log.position("right") == len(mine) + 1


def test_a_restored_union_counts_on_where_a_device_that_is_lost_had_let_it_jump(tmp_path: Path) -> None:
    """Else what honest devices offer again would be many jumps ahead of the copy, and refused for good."""
    wild, chain, mine = [], Chain("evil"), labelled("b", 1)
    for jumps in range(1, 4):
        chain, entry = chain.write(Label(bytes(32), None, "eve"), counter=jumps * MAX_COUNTER_JUMP, wall_time_us=0)
        wild.append(Record(entry))
    _, after = Chain("b", len(mine), entry_hash(mine[-1].entry)).write(
        Label(bytes(32), None, "ann"), counter=3 * MAX_COUNTER_JUMP + 1, wall_time_us=0
    )
    with FleetStore(tmp_path / "fleet") as store:
        with store.write() as ledger:
            register(ledger, "evil", "default")
            register(ledger, "b", "default")
            ledger.take("b", mine, {})
        copied(tmp_path / "fleet", tmp_path / "copy.db")
        with store.write() as ledger:
            assert len(ledger.take("evil", wild, {}).verdict.accepted) == 3
            assert len(ledger.take("b", [Record(after)], {}).verdict.accepted) == 1
        with store.read() as ledger:
            store.mark(ledger, "default")
    put_back(tmp_path / "fleet", tmp_path / "copy.db")
    with FleetStore(tmp_path / "fleet") as store:
        with store.write() as ledger:
            verdict = ledger.take("b", [Record(after)], {}).verdict
            assert (verdict.refused, len(verdict.accepted)) == (None, 1)
        with store.read() as ledger:
            union = ledger.records("default", 1)
    with Store.open(tmp_path / "device", "c") as device:  # one that has seen nothing of it
        device.log.receive(union, len(union), "default")
        assert device.log.position("default") == len(mine) + 2


def test_a_device_keeps_the_channel_it_registered_on(fleet_dir: Path) -> None:
    with FleetStore(fleet_dir) as store, store.write() as ledger:
        register(ledger, "a", "left")
        register(ledger, "a", "right", outbox=3)
        assert [(d.device, d.state.outbox) for d in ledger.devices("left")] == [("a", 3)]
        assert ledger.devices("right") == []


def test_a_last_will_only_says_that_a_device_is_gone(fleet_dir: Path) -> None:
    """Stopped cleanly it says how it left things; killed, what it said before is the last that is known."""
    gone = DeviceState(device="a", channel="default", online=False)
    with FleetStore(fleet_dir) as store, store.write() as ledger:
        register(ledger, "a", agent_version="1.2", outbox=3, log_position=7)
        device, _ = ledger.note_state(gone, seen_utc=9.0)
        assert (device.state.online, device.last_seen_utc) == (False, 9.0)
        assert (device.state.agent_version, device.state.outbox, device.state.log_position) == ("1.2", 3, 7)
        left = DeviceState(device="a", channel="default", online=False, agent_version="1.2", outbox=5)
        assert ledger.note_state(left, seen_utc=10.0)[0].state == left
        stranger = DeviceState(device="b", channel="default", online=False)
        assert ledger.note_state(stranger, seen_utc=1.0)[0].state == stranger


# Releases


def test_a_published_bundle_is_assigned_to_all_devices_now_and_later(fleet_dir: Path, bundle: Bundle) -> None:
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            register(ledger, "early")
            register(ledger, "other", "elsewhere")
        publication = store.publish(bundle, channel="default")
        with store.write() as ledger:
            register(ledger, "late")
            current = ledger.current("default")
            assert current is not None
            assert current.ref == publication.ref
            assert ledger.current("elsewhere") is None
            assert [a.device for a in ledger.assignments(publication.id)] == ["early", "late"]
            assert all(digest in store.chunks for digest in current.release.digests())


def test_a_code_of_a_wrong_length_is_refused_in_each_precisions_space(fleet_dir: Path, tmp_path: Path) -> None:
    """Also in that of a precision that nobody serves yet."""
    both = two_precisions(tmp_path / "both")
    device, code = SimDevice("a"), b"abc"
    other = bytes.fromhex(both.manifest.precisions[1].space)
    device.write(CodeRecord(other, class_id_of("sample") * 2, "a/1", hashlib.sha256(code).digest()), code)
    with FleetStore(fleet_dir) as store:
        store.publish(both, channel="default")
        with store.write() as ledger:
            register(ledger, "a")
            refused = ledger.take("a", device.log, ledger.feature_sizes()).verdict.refused
    assert refused is not None
    assert "is no code of its space" in refused.reason


def test_a_bundle_that_changes_while_it_is_published_is_refused(tmp_path: Path, fleet_dir: Path) -> None:
    changing = make_bundle(tmp_path / "changing")
    (changing.path / "backbone.fp32.onnx").write_bytes(b"other bytes")
    with FleetStore(fleet_dir) as store:
        with pytest.raises(BadSignature, match="changed while it was published"):
            store.publish(changing, channel="default")
        with store.read() as ledger:
            assert ledger.current("default") is None


def test_update_events_are_kept_for_assigned_releases_only(fleet_dir: Path, bundle: Bundle) -> None:
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            register(ledger, "a")
        publication = store.publish(bundle, channel="default")
        rolled = UpdateEvent(release_id=publication.ref.release_id, state=UpdateState.ROLLED_BACK, reason="worse")
        with store.write() as ledger:
            assert ledger.note_event("a", rolled, 1.0) is UpdateState.ROLLED_BACK
            assert ledger.note_event("b", rolled, 1.0) is None
            unknown = UpdateEvent(release_id="0" * 64, state=UpdateState.COMMITTED)
            assert ledger.note_event("a", unknown, 1.0) is None
            assert [(a.state, a.reason) for a in ledger.assignments(publication.id)] == [
                (UpdateState.ROLLED_BACK, "worse")
            ]


def test_the_fleets_live_set_is_the_one_a_device_folds(fleet_dir: Path, bundle: Bundle) -> None:
    """The same base samples and the same records give the same digest, bit for bit, on both sides."""
    device, image = SimDevice("a"), picture("scratch", 7)
    sample, code = class_id_of("sample 7") * 2, code_of(bundle, image).tobytes()
    device.label(1)  # of another feature space: not in this live set
    record = CodeRecord(bytes.fromhex(bundle.space()), sample, "a/1", hashlib.sha256(code).digest())
    device.write(record, code)
    device.write(Label(sample, class_id_of("scratch"), "anna"))

    fold, base = Fold(bundle.space(), bundle.precision().feature_size), bundle.base()
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    with FleetStore(fleet_dir) as store:
        assert store.live_set("default") is None
        with store.write() as ledger:
            register(ledger, "a")
        store.publish(bundle, channel="default")
        empty = store.live_set("default")
        assert empty is not None
        assert empty.digest == fold.digest() == bundle.precision().head.live_set_digest
        with store.write() as ledger:
            ledger.take("a", device.log, ledger.feature_sizes())
        for each in device.log:
            fold.apply(each)
        live = store.live_set("default")
        assert live is not None
        assert (live.digest, len(live)) == (fold.digest(), len(base.samples) + 1)


def test_a_code_of_a_wrong_length_taken_before_its_space_was_known_counts_nowhere(
    fleet_dir: Path, tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """No release has its space yet, so any length is taken. Once one has, fleet and devices leave it out alike."""
    device, space = SimDevice("a"), bytes.fromhex(bundle.space())
    bad, good = class_id_of("sample 1") * 2, class_id_of("sample 2") * 2
    for sample, code in ((bad, b"abc"), (good, code_of(bundle, picture("scratch", 7)).tobytes())):
        device.write(CodeRecord(space, sample, "a/1", hashlib.sha256(code).digest()), code)
        device.write(Label(sample, class_id_of("scratch"), "anna"))
    with FleetStore(fleet_dir) as store:
        with store.write() as ledger:
            register(ledger, "a")
            assert ledger.take("a", device.log, ledger.feature_sizes()).verdict.refused is None
        store.publish(bundle, channel="default")
        learned = store.learned("default")
        again = store.learned("default")
    assert learned is not None
    assert again is not None
    assert (learned.refused, again.refused) == (1, 1)
    assert good in learned.live.samples
    assert bad not in learned.live.samples
    device_store = Store.open(tmp_path / "device", "line-2", limits=StoreLimits(reserve_bytes=0))
    device_store.log.receive(device.log, position=1)
    status = Learner(bundle, None, device_store).status()
    device_store.close()
    assert (status.refused, status.live_set_digest) == (1, learned.live.digest)
    for command in ("devices", "suspects", "classes"):
        assert headway(capsys, "fleet", command, "--dir", fleet_dir).code == 0
    told = headway(capsys, "fleet", "devices", "--dir", fleet_dir)
    assert "records that contradict themselves and count nowhere: 1\n" in told.out


def test_a_damaged_release_takes_away_no_view_of_the_devices(
    fleet_dir: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with FleetStore(fleet_dir) as store:
        publication = store.publish(bundle, channel="default")
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
    for digest in publication.release.digests()[1:]:
        (fleet_dir / "chunks" / digest).unlink()
    told = headway(capsys, "fleet", "devices", "--dir", fleet_dir)
    assert told.code == 0
    assert "line-1" in told.out
    assert "what the channel has learned is not known" in told.out
    told = headway(capsys, "fleet", "devices", "--dir", fleet_dir, "--json")
    (device,), (channel,) = (json.loads(told.out)[of] for of in ("devices", "channels"))
    assert (device["in_sync"], device["head_agrees"], channel["live_set_digest"]) == (None, None, None)
    with FleetStore(fleet_dir) as store:
        (shown,) = FleetView(store).fleet()["channels"]
        assert "headway fleet doctor --mend-from BUNDLE" in shown["without_effect"][0]
        store.publish(bundle, channel="default")
        assert store.live_set("default") is not None
    assert "not known" not in headway(capsys, "fleet", "devices", "--dir", fleet_dir).out


def test_a_damaged_release_on_the_server_is_noticed(fleet_dir: Path, bundle: Bundle) -> None:
    with FleetStore(fleet_dir) as store:
        publication = store.publish(bundle, channel="default")
        for digest in publication.release.digests()[1:]:
            (fleet_dir / "chunks" / digest).write_bytes(b"flipped")
        with pytest.raises(StoreCorrupt, match="is missing or damaged"):
            store.live_set("default")


# PostgreSQL by itself


@pytest.mark.postgres
def test_a_commit_in_postgresql_is_synced_to_disk(postgres: Postgres, tmp_path: Path) -> None:
    name_database(tmp_path, postgres.new_database())
    with FleetStore(tmp_path) as store, store.write() as ledger:
        assert ledger._session.scalar(text("SHOW synchronous_commit")) == "on"


@pytest.mark.postgres
def test_postgresql_soon_lets_go_of_what_a_machine_held_that_is_gone(postgres: Postgres, tmp_path: Path) -> None:
    name_database(tmp_path, postgres.new_database())
    with FleetStore(tmp_path) as store, store.read() as ledger:
        asks = [
            int(
                ledger._session.scalar(
                    text(f"SELECT setting FROM pg_settings WHERE name = 'tcp_keepalives_{name}'")
                )
            )
            for name in ("idle", "interval", "count")
        ]
    assert asks == [30, 10, 3]


@pytest.mark.postgres
def test_a_second_service_on_the_database_is_refused_from_another_directory(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database()
    for directory in ("one", "other"):
        name_database(tmp_path / directory, url)
    with FleetStore(tmp_path / "one") as one, FleetStore(tmp_path / "other") as other:
        with one.serving():
            assert other.served()
            with pytest.raises(FleetError, match="another fleet service"), other.serving():
                pass
        assert not other.served()
        with other.serving():
            pass


@pytest.mark.postgres
def test_a_database_server_that_was_killed_loses_nothing_and_is_used_again(
    postgres: Postgres, tmp_path: Path
) -> None:
    name_database(tmp_path, postgres.new_database())
    records = labelled("a", 3)
    with FleetStore(tmp_path) as store:
        with store.write() as ledger:
            register(ledger, "a")
            ledger.take("a", records, {})
        postgres.kill()
        try:
            with pytest.raises(FleetError, match="PostgreSQL cannot be used") as caught, store.read() as ledger:
                ledger.channels()
            assert caught.value.hint
        finally:
            postgres.start()
        with store.read() as ledger:
            assert ledger.records("default", 1) == records


def test_a_fleets_database_is_for_its_own_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with FleetStore(tmp_path / "fleet") as store, store.read() as ledger:
            assert ledger.records("default", 1) == []
            found = [path for path in (tmp_path / "fleet").iterdir() if path.name.startswith("fleet.db")]
            assert [path for path in found if path.stat().st_mode & 0o077] == []
            assert len(found) == 3, "with its log and index"
    finally:
        os.umask(before)


@pytest.mark.postgres
def test_the_address_of_a_database_is_kept_where_only_its_owner_reads_it(
    postgres: Postgres, tmp_path: Path
) -> None:
    name_database(tmp_path, postgres.new_database())
    assert (tmp_path / URL_NAME).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "no address"),
        ("mysql://root@127.0.0.1/fleet", "mysql is not supported"),
        ("postgresql+asyncpg://127.0.0.1/fleet", "not supported"),
    ],
)
def test_what_is_no_postgresql_is_refused_and_not_remembered(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        name_database(tmp_path / "fleet", url)
    assert "postgresql://" in caught.value.hint
    assert not (tmp_path / "fleet").exists()


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    name_database(tmp_path, "postgresql://headway@127.0.0.1:1/fleet")
    with pytest.raises(FleetError, match="PostgreSQL cannot be used"):
        FleetStore(tmp_path)


def test_a_fleet_does_not_move_to_another_database_unnoticed(tmp_path: Path) -> None:
    FleetStore(tmp_path / "sqlite").close()
    with pytest.raises(FleetError, match="has a fleet"):
        name_database(tmp_path / "sqlite", "postgresql://127.0.0.1/fleet")
    name_database(tmp_path / "named", "postgresql://127.0.0.1/fleet")
    with pytest.raises(FleetError, match="names another"):
        name_database(tmp_path / "named", "postgresql://127.0.0.1/other")


@needs_root
@pytest.mark.parametrize("name", [DATABASE_NAME, "serve.lock"])
def test_what_root_makes_in_a_fleet_is_its_users_else_the_file_is_named(name: str, device: Path) -> None:
    with FleetStore(device) as store:
        with store.serving():
            assert store.served()
        store.chunks.put(hashlib.sha256(b"chunk").hexdigest(), b"chunk")
        (device / "tls").mkdir()
    made = {each.name: each.lstat().st_uid for each in device.rglob("*")}
    assert {uid for each, uid in made.items() if each not in ("tls", "site.toml")} == {AGENT}
    assert made["tls"] == 0, "what keys are for is not given away"
    os.chown(device / name, 0, 0)
    (device / name).chmod(0o600)
    with as_user(AGENT), pytest.raises(FleetError) as refused, FleetStore(device) as store:
        store.served()
    assert f"{device / name} belongs to root, and {AGENT} may not use it" in str(refused.value)
    assert refused.value.hint == f"sudo chown {AGENT} '{device / name}'"
