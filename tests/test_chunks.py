"""Releases: cut, kept by digest, fetched by a window through a broker that misbehaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sdk.chunks import ChunkStore, assemble
from sdk.download import Download, FetchLimits, Receipt
from sdk.errors import BadFormat, BadSignature, RemoteWireError, StoreCorrupt
from sdk.fetch import ChunkFetcher, Fetched
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import MqttSession, Publication
from sdk.release import Release, describe
from sdk.wire import DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, ReleaseDescriptor, ReleaseFile, Topics, encode_json
from tests.simulators import (
    Faults,
    SimBroker,
    SimDownload,
    TcpRelay,
    leave_landed,
    make_release,
    same_files,
    wait_for,
)
from tests.soak import SOAK, tell, times

TOPICS = Topics()
SIZES = {"backbone.int8.onnx": 3_000_000, "samples.int8.safetensors": 200_001, "card.md": 17, "empty": 0}
WINDOW = FetchLimits().window_bytes
KILLED_BYTES = 10_000_017
QUICK = FetchLimits(stall_s=0.3, stall_max_s=2.0)


# Cutting


def test_a_release_id_vouches_for_every_byte(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    assert release.ref.size_bytes == sum(SIZES.values())
    assert all(hashlib.sha256(chunk).hexdigest() == digest for digest, chunk in chunks.items())
    assert hashlib.sha256(chunks[release.ref.release_id]).hexdigest() == release.ref.release_id
    assert Release.parse(release.encoded) == release
    again = describe(source, "test release", SIZES)
    assert again.ref == release.ref
    (source / "card.md").write_bytes(b"changed, one file")
    assert describe(source, "test release", SIZES).ref.release_id != release.ref.release_id


def test_the_same_chunk_twice_is_one_chunk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * DEFAULT_CHUNK_BYTES))
    release = describe(tmp_path, "zeros", ["a"])
    assert len(release.descriptor.files[0].chunks) == 3
    assert len(release.digests()) == 2


def hollow(file: Path, size_bytes: int) -> None:
    """Write a file of zeros that takes no space."""
    with file.open("wb") as stream:
        stream.truncate(size_bytes)


def test_a_large_release_is_cut_into_larger_chunks(tmp_path: Path) -> None:
    hollow(tmp_path / "a", 1800 * DEFAULT_CHUNK_BYTES)
    chunks: dict[str, bytes] = {}
    release = describe(tmp_path, "large", ["a"], put=chunks.__setitem__)
    assert len(release.encoded) <= MAX_CHUNK_BYTES
    assert max(map(len, chunks.values())) == MAX_CHUNK_BYTES


def test_a_release_too_large_for_one_descriptor_is_refused_before_it_is_read(tmp_path: Path) -> None:
    hollow(tmp_path / "a", 400 * 1024 * 1024)
    with pytest.raises(BadFormat, match="too many to publish"):
        describe(tmp_path, "too large", ["a"])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFormat, match="cannot be read"):
        describe(tmp_path, "none", ["a"])


def _file(**changes: object) -> ReleaseFile:
    file = ReleaseFile(name="a", size_bytes=5, sha256="0" * 64, chunks=["1" * 64])
    return msgspec.structs.replace(file, **changes)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ([_file(), _file()], "twice"),
        ([_file(name="..")], "folder"),
        ([_file(name=".")], "folder"),
        ([_file(chunks=[])], "cannot be 0 chunks"),
        ([_file(size_bytes=0)], "cannot be 1 chunks"),
        ([_file(size_bytes=MAX_CHUNK_BYTES + 1)], "cannot be 1 chunks"),
        ([_file(size_bytes=1, chunks=["1" * 64, "2" * 64])], "cannot be 2 chunks"),
    ],
)
def test_a_descriptor_that_contradicts_itself_is_refused(files: list[ReleaseFile], what: str) -> None:
    with pytest.raises(BadFormat, match=what):
        Release.parse(encode_json(ReleaseDescriptor(name="bad", files=files)))


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/b", "A", "ä", "", "a" * 65, "a\x00", "a\n"],
    ids=lambda name: repr(name)[:12],
)
def test_a_file_name_that_leaves_the_directory_is_refused(name: str) -> None:
    raw = {"v": 1, "name": "bad", "files": [{"name": name, "size_bytes": 0, "sha256": "0" * 64, "chunks": []}]}
    with pytest.raises(RemoteWireError):
        Release.parse(json.dumps(raw).encode())


# Keeping


def test_a_store_refuses_bytes_under_another_name(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    with pytest.raises(BadSignature):
        store.put("0" * 64, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_chunk_is_forgotten(tmp_path: Path) -> None:
    store, digest = ChunkStore(tmp_path), hashlib.sha256(b"chunk").hexdigest()
    store.put(digest, b"chunk")
    assert store.get(digest) == b"chunk"
    (tmp_path / digest).write_bytes(b"chun")
    assert store.get(digest) is None
    assert digest not in store


def test_drafts_of_a_killed_writer_are_cleared_away(tmp_path: Path) -> None:
    store, digest = ChunkStore(tmp_path), hashlib.sha256(b"chunk").hexdigest()
    store.put(digest, b"chunk")
    (tmp_path / f".{digest}.1.1").write_bytes(b"chu")
    store.keep_only({digest})
    assert [p.name for p in tmp_path.iterdir()] == [digest]


FILLING = """
import hashlib, resource, sys
from pathlib import Path
from sdk.chunks import ChunkStore
from sdk.errors import StoreCorrupt
store = ChunkStore(Path(sys.argv[1]))
allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
try:
    store.put(hashlib.sha256(bytes(5000)).hexdigest(), bytes(5000))
except StoreCorrupt as error:
    print(error.hint)
resource.setrlimit(resource.RLIMIT_FSIZE, allowed)  # what coverage writes at the exit is whole
"""


def test_a_disk_that_takes_no_more_is_told_and_left_clean(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FILLING, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Check the disk" in told.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_store_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="cannot be written"):
        ChunkStore(tmp_path / "file")


def test_a_file_whose_chunk_is_gone_cannot_be_read(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    with pytest.raises(StoreCorrupt):
        ChunkStore(tmp_path / "store").read(release.descriptor.files[0])


def filled(folder: Path, chunks: dict[str, bytes]) -> ChunkStore:
    store = ChunkStore(folder)
    for digest, chunk in chunks.items():
        store.put(digest, chunk)
    return store


def test_a_target_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    store, target = filled(tmp_path / "store", chunks), tmp_path / "slots" / "one"
    torn = release.descriptor.files[0].chunks[3]
    (tmp_path / "store" / torn).write_bytes(b"torn")
    assert assemble(release, store, target) == {torn}
    assert not target.exists()
    store.put(torn, chunks[torn])
    assert assemble(release, store, target) == set()
    assert same_files(source, target)
    assert [p.name for p in target.parent.iterdir()] == ["one"]


def test_a_wrecked_target_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    store, target = filled(tmp_path / "store", chunks), tmp_path / "one"
    assemble(release, store, target)
    inode = target.stat().st_ino
    assemble(release, store, target)
    assert target.stat().st_ino == inode
    (target / "card.md").write_bytes(b"x" * 17)
    (target / "other").write_bytes(b"")
    assemble(release, store, target)
    assert same_files(source, target)


def test_right_chunks_that_make_a_wrong_file_are_refused(tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, {"a": 10})
    lie = msgspec.structs.replace(release.descriptor.files[0], sha256="0" * 64)
    wrong = Release(msgspec.structs.replace(release.descriptor, files=[lie]), b"")
    with pytest.raises(BadSignature, match="not what its descriptor says") as caught:
        assemble(wrong, filled(tmp_path / "store", chunks), tmp_path / "one")
    assert "publish the bundle again" in caught.value.hint
    assert not (tmp_path / "one").exists()


# Fetching, in virtual time


def simulate(tmp_path: Path, faults: Faults, seed: int = 0) -> SimDownload:
    release, chunks, _ = make_release(tmp_path, SIZES)
    broker = SimBroker(seed, faults, {TOPICS.chunk(digest): chunk for digest, chunk in chunks.items()})
    return SimDownload(Download(release.ref), broker, chunks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(drop=0.3),
        Faults(repeat=0.5),
        Faults(delay_s=3.0),
        Faults(corrupt=0.3),
        Faults(drop=0.2, repeat=0.2, corrupt=0.2, delay_s=1.0),
    ],
    ids=["perfect", "drop", "repeat", "reorder", "corrupt", "all"],
)
def test_a_download_completes_whatever_the_broker_does(tmp_path: Path, faults: Faults, seed: int) -> None:
    sim = simulate(tmp_path, faults, seed)
    sim.run()
    assert sim.on_disk == sim.chunks
    assert sim.download.bytes_done == sum(SIZES.values())
    assert sim.most_in_flight <= WINDOW
    if faults == Faults():
        assert sim.download.received_bytes == sum(map(len, sim.chunks.values()))
        assert sim.download.wanted == 0


def test_a_download_completes_over_a_line_that_breaks_all_the_time(tmp_path: Path) -> None:
    sim = simulate(tmp_path, Faults(delay_s=0.5))
    sim.cut_every_s = 0.4
    sim.run()
    assert sim.on_disk == sim.chunks


def test_chunks_that_the_broker_lost_are_named_to_the_server(tmp_path: Path) -> None:
    sim = simulate(tmp_path, Faults())
    sim.broker.retained.clear()
    sim.run(limit_s=30.0)
    assert sim.on_disk == sim.chunks
    assert sim.download.wanted >= len(sim.chunks)


def test_wants_grow_rarer_while_nobody_answers(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    download = Download(release.ref, FetchLimits(stall_s=1.0, stall_max_s=8.0))
    download.connected(0.0)
    times = []
    for tick in range(1000):
        if download.poll(tick / 10).want:
            times.append(tick / 10)
    gaps = [round(b - a) for a, b in zip([0.0, *times], times, strict=False)]
    assert gaps[:5] == [1, 2, 4, 8, 8]


def test_nothing_is_asked_while_offline(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    download = Download(release.ref)
    assert download.poll(0.0).subscribe == ()
    download.connected(0.0)
    assert download.poll(0.0).subscribe == (release.ref.release_id,)
    download.disconnected()
    step = download.poll(1000.0)
    assert (step.want, step.wake_at) == ((), None)


def test_what_is_on_disk_is_not_asked_for(tmp_path: Path) -> None:
    sim = simulate(tmp_path, Faults())
    half = {d: sim.chunks[d] for d in [sim.download.ref.release_id, *list(sim.chunks)[: len(sim.chunks) // 2]]}
    sim.download.learn(sim.chunks[sim.download.ref.release_id])
    sim.download.found(half)
    sim.on_disk.update(half)
    sim.run()
    assert sim.on_disk == sim.chunks
    asked_bytes = sum(len(chunk) for digest, chunk in sim.chunks.items() if digest not in half)
    assert sim.download.received_bytes <= asked_bytes


@pytest.mark.parametrize("chunk", [b"", b"wrong", bytes(MAX_CHUNK_BYTES + 1)], ids=["empty", "wrong", "large"])
def test_a_chunk_that_is_not_what_its_topic_says_is_dropped(tmp_path: Path, chunk: bytes) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    download = Download(release.ref)
    download.connected(0.0)
    download.poll(0.0)
    assert download.receive(release.ref.release_id, chunk, 0.0) is Receipt.CORRUPT
    assert download.corrupt == 1
    assert download.poll(0.0).want == (release.ref.release_id,)
    assert download.poll(0.1).want == ()


def test_a_chunk_nobody_asked_for_is_dropped(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    stray = b"stray"
    assert Download(release.ref).receive(hashlib.sha256(stray).hexdigest(), stray, 0.0) is Receipt.UNASKED


def test_a_descriptor_of_another_size_than_assigned_is_refused(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    with pytest.raises(BadFormat, match="as assigned"):
        Download(msgspec.structs.replace(release.ref, size_bytes=11)).learn(release.encoded)


def test_bytes_that_are_no_descriptor_are_refused(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    with pytest.raises(BadFormat, match="not a ReleaseDescriptor"):
        Download(release.ref).learn(b"{}")


# Fetching through a real broker


def seed(broker: Mosquitto, chunks: dict[str, bytes]) -> None:
    """Put chunks on the broker, retained."""
    with MqttSession(broker.settings, "seeder", on_message=lambda _message: None) as session:
        session.connect()
        for digest, chunk in chunks.items():
            session.send(Publication(TOPICS.chunk(digest), chunk, retain=True))
        wait_for(lambda: session.pending_bytes == 0)


@pytest.mark.broker
def test_a_release_arrives_byte_for_byte_and_only_once(mosquitto: Mosquitto, tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    seed(mosquitto, chunks)
    fetcher = ChunkFetcher(mosquitto.settings, "device", "default", tmp_path / "chunks")
    seen: list[tuple[int, int]] = []
    fetched = fetcher.fetch(release.ref, tmp_path / "slot", progress=lambda *done: seen.append(done))
    assert same_files(source, tmp_path / "slot")
    assert fetched is not None
    assert fetched.received_bytes == sum(map(len, chunks.values()))
    assert seen == sorted(seen)
    assert seen[-1] == (release.ref.size_bytes, release.ref.size_bytes)
    assert fetched.traffic.release_bytes >= fetched.received_bytes

    again = fetcher.fetch(release.ref, tmp_path / "slot")
    assert again is not None
    assert again.traffic.release_bytes == 0
    assert [p.name for p in (tmp_path / "chunks").iterdir()] == [release.ref.release_id]


@pytest.mark.broker
def test_a_flipped_chunk_on_the_broker_is_never_used(mosquitto: Mosquitto, tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    digest = release.descriptor.files[0].chunks[7]
    bad = bytes([chunks[digest][0] ^ 1]) + chunks[digest][1:]
    seed(mosquitto, chunks | {digest: bad})
    wants: list[bytes] = []
    with MqttSession(mosquitto.settings, "server", on_message=lambda m: wants.append(m.payload)) as server:
        server.subscribe([TOPICS.up_want("device")])
        server.connect()
        done: list[Fetched | None] = []
        fetcher = ChunkFetcher(mosquitto.settings, "device", "default", tmp_path / "chunks", limits=QUICK)
        thread = threading.Thread(target=lambda: done.append(fetcher.fetch(release.ref, tmp_path / "slot")))
        thread.start()
        wait_for(lambda: wants, what="a want")
        assert digest.encode() in wants[0]
        assert not (tmp_path / "slot").exists()
        server.publish(TOPICS.chunk(digest), chunks[digest], retain=True)
        thread.join(60)
    assert same_files(source, tmp_path / "slot")
    assert done[0] is not None
    assert done[0].corrupt >= 1


@pytest.mark.broker
def test_a_chunk_torn_on_disk_is_found_and_fetched_anew(mosquitto: Mosquitto, tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    seed(mosquitto, chunks)
    torn = release.descriptor.files[0].chunks[3]
    leave_landed(tmp_path / "chunks", release, chunks, release.digests())
    (unfinished,) = (tmp_path / "chunks").glob("*.landing/files/backbone.int8.onnx")
    with unfinished.open("r+b") as stream:
        stream.seek(3 * DEFAULT_CHUNK_BYTES + 100)
        stream.write(b"torn")
    fetched = ChunkFetcher(mosquitto.settings, "device", "default", tmp_path / "chunks").fetch(
        release.ref, tmp_path / "slot"
    )
    assert same_files(source, tmp_path / "slot")
    assert fetched is not None
    assert fetched.received_bytes == len(chunks[torn])


def test_a_download_without_a_broker_waits_and_can_be_stopped(tmp_path: Path) -> None:
    release, _, _ = make_release(tmp_path, {"a": 10})
    with Mosquitto() as gone:
        settings = gone.settings
    stop, beats = threading.Event(), []

    def progress(done: int, total: int) -> None:
        beats.append((done, total))
        stop.set()

    fetcher = ChunkFetcher(settings, "device", "default", tmp_path / "chunks")
    assert fetcher.fetch(release.ref, tmp_path / "slot", progress=progress, stop=stop) is None
    assert beats == [(0, 10)]


CHILD = """
import sys
from pathlib import Path
from sdk.fetch import ChunkFetcher
from sdk.mqtt import MqttSettings
from sdk.wire import ReleaseRef

port, release_id, size, folder, pause_at = sys.argv[1:]
ref = ReleaseRef(release_id=release_id, name="test release", size_bytes=int(size))

def progress(done, total):
    if done >= int(pause_at):
        print(done, flush=True)
        sys.stdin.read()  # stays here, messages pouring in behind, until it is killed

ChunkFetcher(MqttSettings(port=int(port)), "device", "default", Path(folder) / "chunks").fetch(
    ref, Path(folder) / "slot", progress=progress)
"""


@pytest.mark.broker
def test_a_download_killed_again_and_again_costs_at_most_its_window_each_time(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    kills = times(3, 100)
    assert killed_and_fetched(mosquitto, tmp_path, kills) <= 1.02 * KILLED_BYTES + kills * WINDOW
    tell("T7", kills, 0)


@pytest.mark.broker
@pytest.mark.skipif(not SOAK, reason="the long run: HEADWAY_SOAK=1")
def test_a_download_that_forgets_what_it_has_costs_more(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """The control: what is on disk is thrown away after each kill."""
    assert killed_and_fetched(mosquitto, tmp_path, 3, forget=True) > 1.02 * KILLED_BYTES + 3 * WINDOW


def killed_and_fetched(mosquitto: Mosquitto, tmp_path: Path, kills: int, *, forget: bool = False) -> int:
    """Kill a download so often, each time further on, and let it end; return the bytes that came in all."""
    release, chunks, source = make_release(tmp_path, {"backbone.int8.onnx": KILLED_BYTES - 17, "card.md": 17})
    seed(mosquitto, chunks)
    size = release.ref.size_bytes
    with TcpRelay(mosquitto.port) as relay:
        for kill in range(kills):
            arguments = [relay.port, release.ref.release_id, size, tmp_path, size * (kill + 1) // (kills + 1)]
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            child.communicate()
            if forget:
                shutil.rmtree(tmp_path / "chunks")
        settings = replace(mosquitto.settings, port=relay.port)
        fetched = ChunkFetcher(settings, "device", "default", tmp_path / "chunks").fetch(
            release.ref, tmp_path / "slot"
        )
        assert fetched is not None
        assert forget or fetched.received_bytes < size / 2
        down_bytes = relay.down_bytes
    assert same_files(source, tmp_path / "slot")
    return down_bytes
