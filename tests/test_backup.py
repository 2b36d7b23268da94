"""A backup is one whole moment of a store that goes on being written, and comes back only where it may."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace as replace_struct

from device_agent.backup import BACKUP_NAME, make_backup, read_backup, restore_backup
from device_agent.learner import Learner
from device_agent.page.access import Access, Role
from device_agent.page.book import open_book
from device_agent.sample import SampleStatus
from device_agent.store import STORE_NAME, Store, check_store, read_kept
from device_agent.sync import SyncCore
from device_agent.trust import KEY
from sdk.bundle import Bundle, decode_manifest, encode_manifest
from sdk.errors import ConfigError, HeadwayError, StoreCorrupt, StoreFull
from sdk.fleet.core import FleetCore
from sdk.fleet.store import FleetStore
from sdk.labels import DefineClass, new_class_id
from sdk.mqtt import Message
from sdk.trust import verify
from sdk.wire import Desired, DeviceState, Topics, encode_json
from tests.commands import headway
from tests.disks import fill, small
from tests.processes import Doomed
from tests.test_store import LIMITS, image_of, label, label_for_ever, sample_of
from tests.test_update import Rig, bundles, desired, id_of, label_some, rig, rig_on
from tests.trust_builders import GuardedDevice, TrustedFleet, files_of

__all__ = ["bundles", "rig", "small"]

LABELS = 5


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of a store with some labelled samples and some others."""
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as store:
        for number in range(2 * LABELS):
            store.samples.put(sample_of(number), image_of(number))
            if number < LABELS:
                label(store, sample_of(number))
    make_backup(tmp_path / "data", tmp_path / "backup", clock=lambda: 5.0)
    return tmp_path / "backup"


def test_what_was_backed_up_comes_back(backup: Path, tmp_path: Path) -> None:
    facts = restore_backup(backup, tmp_path / "new", "line-1", in_fleet=False)
    assert (facts.entries, facts.labelled, facts.images, facts.made_utc) == (2 * LABELS, LABELS, LABELS, 5.0)
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as old:
        before = list(old.log.records())
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as new:
        assert list(new.log.records()) == before
        assert [new.samples.image(sample_of(n).sample_id) for n in range(LABELS)] == [
            image_of(n) for n in range(LABELS)
        ]
        assert new.samples.image(sample_of(LABELS).sample_id) is None, "what nobody labelled is not worth a backup"
        assert label(new, sample_of(90))[0].entry.seq == 2 * LABELS + 1


def test_a_backup_of_a_store_that_is_written_to_is_one_whole_moment(tmp_path: Path) -> None:
    writer = Doomed(label_for_ever, tmp_path / "data", 0)
    acknowledged = []
    for number in range(3):
        acknowledged.append(max(writer.told()[1] for _ in range(5)))
        made = make_backup(tmp_path / "data", tmp_path / f"backup-{number}")
        assert made.entries >= acknowledged[-1], "what was acknowledged before is in it"
        assert made.entries % 2 == 0, "a label without its code record"
        assert made.images == made.labelled == made.entries // 2
    writer.kill()
    restore_backup(tmp_path / "backup-2", tmp_path / "new", "line-1", in_fleet=False)
    facts = check_store(tmp_path / "new" / "store.sqlite3", whole=True)
    assert (facts.entries, facts.lost) == (made.entries, 0)


@pytest.mark.parametrize("in_fleet", [False, True])
def test_a_restored_device_asks_about_no_picture_that_it_does_not_have(
    tmp_path: Path, backup: Path, in_fleet: bool
) -> None:
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as store:
        store.samples.put(replace(sample_of(90), status=SampleStatus.QUEUED, reason="spot check"), image_of(90))
        assert store.samples.queue_depth() == 1
    make_backup(tmp_path / "data", tmp_path / "later")
    restore_backup(tmp_path / "later", tmp_path / "new", "line-1", in_fleet=in_fleet)
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as restored:
        assert restored.samples.queue_depth() == 0
        kept = restored.samples.newest(limit=100)
        assert len(kept) == LABELS
        assert all(restored.samples.image(sample.sample_id) is not None for sample in kept)


def test_a_restored_device_serves_its_release_without_a_network(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    ids = label_some(rig.store, bundles["old"])
    make_backup(rig.folder, tmp_path / "backup")
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    with rig_on(tmp_path / "new", bundles) as restored:
        assert restored.updater.boot()
        assert restored.served == ["old"]
        assert Learner(bundles["old"], None, restored.store).status().own_labels == len(ids)


def test_a_backup_on_a_disk_with_too_little_room_is_none_and_leaves_nothing(
    rig: Rig, bundles: dict[str, Bundle], small: Path
) -> None:
    """Where the store found room and the release did not, it was said to be one: without a release."""
    label_some(rig.store, bundles["old"])
    hog, refused = fill(small), 0
    for room in range(0, 8 * 1024**2, 32 * 1024):
        with hog.open("r+b") as file:
            file.truncate(8 * 1024**2 - 64 * 1024 - room)
        try:
            made = make_backup(rig.folder, small / "backup")
            break
        except StoreFull:
            refused += 1
            assert [path.name for path in small.iterdir()] == ["others"]
    store = (small / "backup" / STORE_NAME).stat().st_size
    assert refused * 32 * 1024 > store, "there was room for the store long before there was for all"
    assert made.release == id_of(bundles["old"])


def test_a_backup_of_a_device_that_was_restored_and_has_not_run_yet_has_its_release(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    make_backup(rig.folder, tmp_path / "backup")
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    assert make_backup(tmp_path / "new", tmp_path / "second").release == id_of(bundles["old"])


@pytest.mark.parametrize("harm", ["damaged", "gone", "unreadable"])
def test_of_a_release_that_cannot_be_copied_the_one_before_is(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path, harm: str
) -> None:
    """The restored device would serve the first that is whole, too."""
    rig.install(bundles["new"])
    slot = rig.folder / "slots" / id_of(bundles["new"])
    if harm == "damaged":
        next(slot.glob("*.onnx")).write_bytes(b"torn")
    elif harm == "gone":
        shutil.rmtree(slot)
    else:
        (slot / "manifest.json").unlink()
        (slot / "manifest.json").mkdir()
    why: list[str] = []
    assert make_backup(rig.folder, tmp_path / "backup", on_no_release=why.append).release == id_of(bundles["old"])
    assert [slot.name[:8] in each for each in why] == ([] if harm == "gone" else [True])
    restore_backup(tmp_path / "backup", tmp_path / "restored", "line-1", in_fleet=False)
    with rig_on(tmp_path / "restored", bundles) as restored:
        assert restored.updater.boot()
        assert restored.served == ["old"]


def test_a_backup_follows_its_store_and_not_the_link(rig: Rig, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """An update may point it to a release that the store, copied a moment before, does not know."""
    rig.updater.stop()
    shutil.copytree(bundles["new"].path, rig.folder / "slots" / id_of(bundles["new"]))
    (rig.folder / "current").unlink()
    (rig.folder / "current").symlink_to(Path("slots") / id_of(bundles["new"]))
    assert make_backup(rig.folder, tmp_path / "backup").release == id_of(bundles["old"])


def test_backup_and_restore_name_the_release(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    text = (
        'device = "line-1"\ndata_dir = "{}"\n[camera]\nkind = "opencv"\nindex = 0\n[mqtt]\nhost = "broker.plant"\n'
    )
    site.write_text(text.format("data"))
    named = f"release {bundles['old'].manifest.name} ({id_of(bundles['old'])[:8]})"
    assert named in headway(capsys, "agent", "backup", site, tmp_path / "backup").out.splitlines()
    site.write_text(text.format("new"))
    assert named in headway(capsys, "agent", "restore", site, tmp_path / "backup").out.splitlines()


def test_a_restored_device_takes_no_label_before_it_has_its_later_entries_back(
    backup: Path, tmp_path: Path
) -> None:
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as old:
        later = label(old, sample_of(50))  # after the backup, and known to the fleet
    restore_backup(backup, tmp_path / "new", "line-1", in_fleet=True)
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as store:
        with pytest.raises(StoreFull, match="has not heard from its fleet"):
            label(store, sample_of(51))
        store.log.receive(later, position=2 * LABELS + 2)
        store.log.heard(2 * LABELS + 2)
        (first, _) = label(store, sample_of(51))
        assert first.entry.seq == 2 * LABELS + 3
        assert first.entry.prev != later[0].entry.prev


@pytest.mark.parametrize("waiting", [False, True], ids=["all sent", "one waiting"])
def test_a_restored_device_takes_labels_once_the_fleet_has_given_its_later_entries_back(
    tmp_path: Path, waiting: bool
) -> None:
    """The fleet says once how much it has, which is more than the device has then."""
    topics, now = Topics("headway/v1"), 0.0

    def define(store: Store, name: str) -> None:
        store.log.append([DefineClass(new_class_id(), name, "ann")])

    def state(online: bool) -> DeviceState:
        return DeviceState(device="line-1", channel="default", online=online)

    def device(store: Store) -> SyncCore:
        core = SyncCore(
            topics,
            store,
            "default",
            on_records=lambda _: None,
            on_desired=lambda _: None,
            state=lambda: state(True),
        )
        core.connected(now)
        return core

    def talk(fleet: FleetCore, device: SyncCore, seconds: int) -> None:
        nonlocal now
        for _ in range(seconds):
            now += 1
            sent = [Message(each.topic, each.payload) for each in device.poll(now)]
            for each in fleet.turn(sent, now=now, now_utc=1e9 + now, room_bytes=1 << 30):
                if each.topic in device.subscriptions():
                    device.receive(Message(each.topic, each.payload), now)

    with FleetStore(tmp_path / "fleet") as fleet_store:
        fleet = FleetCore(fleet_store, topics, ("default",))
        fleet.broker_connected(remembered=False)
        with Store.open(tmp_path / "old", "line-1", limits=LIMITS) as old:
            line = device(old)
            define(old, "a")
            talk(fleet, line, 10)
            define(old, "b")
            if not waiting:
                talk(fleet, line, 10)
            make_backup(tmp_path / "old", tmp_path / "backup")
            define(old, "c")
            talk(fleet, line, 10)
        will = Message(topics.state("line-1"), encode_json(state(False)))
        fleet.turn([will], now=now, now_utc=1e9 + now, room_bytes=1 << 30)
        restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=True)
        with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as new:
            with pytest.raises(StoreFull, match="has not heard from its fleet"):
                define(new, "d")
            talk(fleet, device(new), 60)
            assert (new.log.length(), new.log.acknowledged()) == (3, 3)
            define(new, "d")


# What is refused


def flip_store(backup: Path) -> None:
    raw = bytearray((backup / "store.sqlite3").read_bytes())
    raw[5000] ^= 1
    (backup / "store.sqlite3").write_bytes(raw)


def flip_picture(backup: Path) -> None:
    path = next((backup / "images").glob("??/*"))
    path.write_bytes(b"torn")


def drop_picture(backup: Path) -> None:
    next((backup / "images").glob("??/*")).unlink()


def link_picture(backup: Path) -> None:
    path = next((backup / "images").glob("??/*"))
    path.rename(backup / "picture")
    path.symlink_to(backup / "picture")  # to what it was, even


def link_folder(backup: Path) -> None:
    (backup / "images").rename(backup / "elsewhere")
    (backup / "images").symlink_to("elsewhere")


def link_store(backup: Path) -> None:
    (backup / "store.sqlite3").rename(backup / "elsewhere")
    (backup / "store.sqlite3").symlink_to("elsewhere")


def pipe_facts(backup: Path) -> None:
    unfinished(backup)
    os.mkfifo(backup / BACKUP_NAME)


def unfinished(backup: Path) -> None:
    (backup / BACKUP_NAME).unlink()


def newer(backup: Path) -> None:
    path = backup / BACKUP_NAME
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))


def no_text(backup: Path) -> None:
    path = backup / BACKUP_NAME
    path.write_bytes(path.read_bytes().replace(b'"line-1"', b'"line-\xff"'))


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (flip_store, "is not what backup.json says"),
        (flip_picture, "is not the picture that its name says"),
        (drop_picture, "not what backup.json says"),
        (link_picture, "is a link, or no plain file"),
        (link_folder, "is a link, or no plain file"),
        (link_store, "is a link, or no plain file"),
        (pipe_facts, "is a link, or no plain file"),
        (unfinished, "is no backup"),
        (newer, "has format 9"),
        (no_text, "is no backup"),
        (shutil.rmtree, "is no backup"),
    ],
)
def test_a_backup_that_is_not_whole_is_refused_and_nothing_is_made(
    backup: Path, tmp_path: Path, harm: Callable[[Path], None], match: str
) -> None:
    harm(backup)
    with pytest.raises(StoreCorrupt, match=match):
        restore_backup(backup, tmp_path / "new", "line-1", in_fleet=False)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.partial").exists()


def test_what_somebody_laid_into_a_backup_is_left_out_and_named(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = open_book(tmp_path / "other")
    Access(book).add("Mallory", Role.ADMIN, "a password of some length")
    book.close()
    shutil.copytree(tmp_path / "other" / "page", backup / "page")
    (tmp_path / "secret").write_text("theirs")
    (backup / "images" / "leak").symlink_to(tmp_path / "secret")
    (backup / "store.sqlite3-wal").write_bytes(b"entries of somebody")
    picture = next((backup / "images").glob("??/*"))
    (picture.parent / ("0" * 64)).write_bytes(b"of no label")
    site = tmp_path / "site.toml"
    site.write_text('device = "line-1"\ndata_dir = "new"\n[camera]\nkind = "opencv"\nindex = 0\n')

    restored = headway(capsys, "agent", "restore", site, backup)
    assert restored.code == 0
    told = {line.rpartition(": ")[2].strip("'") for line in restored.err.splitlines() if "left out" in line}
    assert told == {"page", "images/leak", "store.sqlite3-wal", f"images/{picture.parent.name}/{'0' * 64}"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"store.sqlite3", "images"}
    assert len(list((tmp_path / "new" / "images").rglob("*/*"))) == LABELS
    assert "Mallory" not in headway(capsys, "agent", "user", "list", site).out


def swap_two_names(slot: Path) -> None:
    """What the head says stays; what people read is the other class. The bundle vouches for itself."""
    manifest = decode_manifest((slot / "manifest.json").read_bytes())
    (first, second, *others) = manifest.classes
    swapped = [replace_struct(first, name=second.name), replace_struct(second, name=first.name), *others]
    (slot / "manifest.json").write_bytes(encode_manifest(replace_struct(manifest, classes=swapped)))
    Bundle.open(slot)


@pytest.mark.parametrize("harm", ["damaged", "link", "climbs", "names", "another", "gone"])
def test_labels_come_back_without_a_release_that_is_not_whole(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path, harm: str
) -> None:
    ids = label_some(rig.store, bundles["old"])
    facts = make_backup(rig.folder, tmp_path / "backup")
    slot = tmp_path / "backup" / "slots" / facts.release
    if harm == "damaged":
        (slot / "manifest.json").write_bytes(b"{}")
    elif harm == "link":
        slot.rename(tmp_path / "slot")
        slot.symlink_to(tmp_path / "slot")
    elif harm == "names":
        swap_two_names(slot)
    elif harm == "another":
        shutil.rmtree(slot)
        shutil.copytree(bundles["new"].path, slot)
    elif harm == "gone":
        shutil.rmtree(slot.parent)
    else:
        shutil.copytree(slot, tmp_path / "slot")
        path = tmp_path / "backup" / BACKUP_NAME
        path.write_text(path.read_text().replace(facts.release, "../../slot"))
    left_out: list[str] = []
    why: list[str] = []
    restored = restore_backup(
        tmp_path / "backup",
        tmp_path / "new",
        "line-1",
        in_fleet=True,
        on_left_out=left_out.append,
        on_no_release=why.append,
    )
    assert restored.labelled == len(ids)
    assert [name for name in left_out if name.startswith("slots")] == ([] if harm == "gone" else ["slots"])
    assert not (tmp_path / "new" / "slots").exists()
    assert len(why) == 1
    if harm in ("names", "another"):
        assert f"in the place of {facts.release[:12]}" in why[0]


def in_store(backup: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    """Let somebody who may write to a backup change its store."""
    with contextlib.closing(sqlite3.connect(backup / STORE_NAME)) as db, db:
        change(db)
    facts = msgspec.json.decode((backup / BACKUP_NAME).read_bytes())
    facts["store_sha256"] = hashlib.sha256((backup / STORE_NAME).read_bytes()).hexdigest()
    (backup / BACKUP_NAME).write_bytes(msgspec.json.encode(facts))


def kept_there(backup: Path) -> verify.Seen:
    found = read_kept(backup / STORE_NAME, KEY)
    assert found is not None
    return msgspec.msgpack.decode(found, type=verify.Seen)


def keep_there(backup: Path, content: bytes) -> None:
    in_store(backup, lambda db: db.execute("UPDATE meta SET value = ? WHERE key = ?", (content, f"kept/{KEY}")))


@contextlib.contextmanager
def restored_behind_a_gate(backup: Path, data_dir: Path, fleet: TrustedFleet) -> Iterator[GuardedDevice]:
    restore_backup(backup, data_dir, "line-1", in_fleet=True)
    device = GuardedDevice(data_dir, fleet.repository.root_file())
    yield device
    device.store.close()


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedFleet:
    return TrustedFleet(tmp_path)


@pytest.fixture
def guarded(tmp_path: Path, trusted: TrustedFleet) -> Desired:
    """A backup of a device that has taken a signed release of the fleet; what was taken."""
    device = GuardedDevice(tmp_path / "data", trusted.repository.root_file())
    first = trusted.release("first")
    assert device.takes(trusted.message(), first)
    assert device.gate.standing(first.release.release_id) == "signed"
    device.store.close()
    make_backup(tmp_path / "data", tmp_path / "backup")
    return first


def test_a_backup_does_not_say_what_is_signed(guarded: Desired, trusted: TrustedFleet, tmp_path: Path) -> None:
    thief = TrustedFleet(tmp_path / "thief")
    evil = thief.release("evil")
    theirs, backup = files_of(thief.message()), tmp_path / "backup"
    forged = msgspec.structs.replace(
        kept_there(backup),
        root=theirs["1.root.json"],
        files={role: theirs[f"{role}.json"] for role in ("timestamp", "snapshot", "targets")},
        versions={"root": 1},
        taken={},
        floor_utc=0.0,
    )
    keep_there(backup, msgspec.msgpack.encode(forged))
    with restored_behind_a_gate(backup, tmp_path / "new", trusted) as device:
        assert not device.takes(b"", evil)
        assert not device.takes(thief.message(), evil)
        assert "no signed metadata seen yet" in device.gate.standing(evil.release.release_id)
        assert device.takes(trusted.message(), guarded)
        assert device.gate.standing(guarded.release.release_id) == "signed"
        assert "not signed" in device.gate.standing(evil.release.release_id)


def test_a_restored_device_takes_nothing_older_than_the_backup_has_seen(
    guarded: Desired, trusted: TrustedFleet, tmp_path: Path
) -> None:
    old = trusted.message()
    device = GuardedDevice(tmp_path / "data", trusted.repository.root_file())
    second = trusted.release("second")
    assert device.takes(trusted.message(), second)
    device.store.close()
    make_backup(tmp_path / "data", tmp_path / "later")
    with restored_behind_a_gate(tmp_path / "later", tmp_path / "new", trusted) as restored:
        for _ in range(2):
            restored.gate.receive(old)
            assert "older" in (restored.gate.fault or "")
            restored.restart()
        assert not restored.takes(old, guarded)
        assert restored.takes(trusted.message(), second)
        assert restored.gate.standing(second.release.release_id) == "signed"


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode({"anchor": 5})])
def test_what_a_backup_says_of_trust_in_no_words_stops_no_start(
    guarded: Desired, trusted: TrustedFleet, tmp_path: Path, content: bytes
) -> None:
    keep_there(tmp_path / "backup", content)
    with restored_behind_a_gate(tmp_path / "backup", tmp_path / "new", trusted) as device:
        assert device.takes(trusted.message(), guarded)


def test_a_backups_updates_name_no_folder_and_none_is_under_way(
    rig: Rig, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    label_some(rig.store, bundles["old"])
    rig.install(bundles["old"])
    make_backup(rig.folder, tmp_path / "backup")
    (tmp_path / "victim").mkdir()

    def change(db: sqlite3.Connection) -> None:
        rows = ("../../victim", "committed"), (id_of(bundles["new"]), "candidate"), ("x" * 64, "downloading")
        for release_id, state in rows:
            db.execute(
                "INSERT INTO updates (at_utc, release_id, job, state, reason, starts) VALUES (1, ?, ?, ?, '', 0)",
                (release_id, encode_json(desired(bundles["new"])), state),
            )

    in_store(tmp_path / "backup", change)
    restore_backup(tmp_path / "backup", tmp_path / "new", "line-1", in_fleet=False)
    with rig_on(tmp_path / "new", bundles) as restored:
        assert restored.updater.boot()
        assert restored.served == ["old"]
        assert restored.events == []
        restored.install(bundles["new"])
    assert (tmp_path / "victim").is_dir()


def test_another_devices_backup_is_refused(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of device 'line-1', not of 'line-2'"):
        restore_backup(backup, tmp_path / "new", "line-2", in_fleet=False)


def test_nothing_is_overwritten(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        restore_backup(backup, tmp_path / "data", "line-1", in_fleet=False)
    with pytest.raises(ConfigError, match="exists"):
        make_backup(tmp_path / "data", backup)
    assert read_backup(backup).entries == 2 * LABELS


@pytest.mark.parametrize("harm", ["no store", "damaged"])
def test_a_store_that_is_missing_or_damaged_gives_no_backup(tmp_path: Path, harm: str) -> None:
    data = tmp_path / "data"
    if harm == "damaged":
        with Store.open(data, "line-1", limits=LIMITS) as store:
            for number in range(50):
                label(store, sample_of(number))
        raw = bytearray((data / "store.sqlite3").read_bytes())
        raw[4096:8192] = bytes(range(256)) * 16
        (data / "store.sqlite3").write_bytes(raw)
    with pytest.raises(HeadwayError):
        make_backup(data, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_the_commands_say_what_they_did(backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.toml"
    text = 'device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "opencv"\nindex = 0\n'
    site.write_text(text)
    made = headway(capsys, "agent", "backup", site, tmp_path / "second")
    assert (made.code, f"{LABELS} labelled samples" in made.out) == (0, True)
    assert "no release: none has come to this device" in made.out
    site.write_text(text.replace('"data"', '"elsewhere"') + '[mqtt]\nhost = "broker.plant"\n')
    restored = headway(capsys, "agent", "restore", site, backup)
    assert (restored.code, "heard from its fleet" in restored.out) == (0, True)
    assert "no release: the backup has none" in restored.out
    assert headway(capsys, "agent", "restore", site, backup).code == 2
