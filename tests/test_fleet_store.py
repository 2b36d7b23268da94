"""The fleet's database: migrated at open, one transaction at a time, never half a truth."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from sdk.bundle import Bundle
from sdk.errors import BadSignature, FleetError, Incompatible, StoreCorrupt, UnknownDevice
from sdk.fleet.store import DATABASE_NAME, MIGRATIONS, SCHEMA_REVISION, Base, FleetStore, Ledger, Taken
from sdk.labels import CodeRecord, Fold, Label, Record
from sdk.wire import DeviceState, UpdateEvent, UpdateState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.simulators import SimDevice


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


def test_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    FleetStore(tmp_path).close()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION
    with create_engine(f"sqlite:///{tmp_path / DATABASE_NAME}").connect() as connection:
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


def test_a_second_service_on_the_directory_is_refused(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as one, FleetStore(tmp_path) as other:
        assert not other.served()
        with one.serving():
            assert other.served()
            with pytest.raises(FleetError, match="another fleet service"), other.serving():
                pass
        assert not other.served()


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    log = labelled("a", 3)
    with FleetStore(tmp_path) as store:
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


def test_labels_of_an_unregistered_device_are_refused(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store, pytest.raises(UnknownDevice), store.write() as ledger:
        ledger.take("a", labelled("a", 1), {})


def test_positions_have_no_gaps_whoever_writes_at_once(tmp_path: Path) -> None:
    logs = {name: labelled(name, 20) for name in ("a", "b", "c")}
    with FleetStore(tmp_path) as store, store.write() as ledger:
        for name in logs:
            register(ledger, name)
    taken: list[Taken] = []

    def write(name: str) -> None:
        with FleetStore(tmp_path) as store:
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
    with FleetStore(tmp_path) as store, store.read() as ledger:
        assert ledger.log_length("default") == total
        stored = [record for i in range(1, total + 1) for record in ledger.records("default", i)[:1]]
        assert {name: [r for r in stored if r.entry.device == name] for name in logs} == logs


def test_channels_have_unions_of_their_own(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store, store.write() as ledger:
        register(ledger, "a", "left")
        register(ledger, "b", "right")
        assert ledger.take("a", labelled("a", 2), {}).first_position == 1
        assert ledger.take("b", labelled("b", 1), {}).first_position == 1
        assert (ledger.log_length("left"), ledger.log_length("right")) == (5, 3)
        assert ledger.log_length("none") == 0


def test_a_device_keeps_the_channel_it_registered_on(tmp_path: Path) -> None:
    with FleetStore(tmp_path) as store, store.write() as ledger:
        register(ledger, "a", "left")
        register(ledger, "a", "right", outbox=3)
        assert [(d.device, d.state.outbox) for d in ledger.devices("left")] == [("a", 3)]
        assert ledger.devices("right") == []


# Releases


def test_a_published_bundle_is_assigned_to_all_devices_now_and_later(tmp_path: Path, bundle: Bundle) -> None:
    with FleetStore(tmp_path) as store:
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


def test_a_bundle_that_changes_while_it_is_published_is_refused(tmp_path: Path) -> None:
    changing = make_bundle(tmp_path / "changing")
    (changing.path / "backbone.fp32.onnx").write_bytes(b"other bytes")
    with FleetStore(tmp_path / "fleet") as store:
        with pytest.raises(BadSignature, match="changed while it was published"):
            store.publish(changing, channel="default")
        with store.read() as ledger:
            assert ledger.current("default") is None


def test_a_precision_the_bundle_does_not_have_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    with FleetStore(tmp_path) as store, pytest.raises(Incompatible):
        store.publish(bundle, channel="default", precision="int8")


def test_update_events_are_kept_for_assigned_releases_only(tmp_path: Path, bundle: Bundle) -> None:
    with FleetStore(tmp_path) as store:
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


def test_the_fleets_live_set_is_the_one_a_device_folds(tmp_path: Path, bundle: Bundle) -> None:
    """The same base samples and the same records give the same digest, bit for bit, on both sides."""
    device, image = SimDevice("a"), picture("scratch", 7)
    sample, code = class_id_of("sample 7") * 2, code_of(bundle, image).tobytes()
    device.label(1)  # of another feature space: not in this live set
    record = CodeRecord(bytes.fromhex(bundle.space()), sample, "a/1", hashlib.sha256(code).digest())
    device.write(record, code)
    device.write(Label(sample, class_id_of("scratch"), "anna"))

    fold, base = Fold(bundle.space(), bundle.precision().feature_size), bundle.base()
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    with FleetStore(tmp_path) as store:
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


def test_a_damaged_release_on_the_server_is_noticed(tmp_path: Path, bundle: Bundle) -> None:
    with FleetStore(tmp_path) as store:
        publication = store.publish(bundle, channel="default")
        for digest in publication.release.digests()[1:]:
            (tmp_path / "chunks" / digest).write_bytes(b"flipped")
        with pytest.raises(StoreCorrupt, match="is damaged"):
            store.live_set("default")
