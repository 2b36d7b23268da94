"""Chunks in another place: whole or not at all, wherever a writer dies, and served from a copy on this disk."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from sdk.bundle import Bundle
from sdk.chunks import ChunkStore
from sdk.errors import BadSignature, FleetError, StoreCorrupt, StoreFull
from sdk.fleet.blobs import URL_NAME, UrlChunks, name_place, place_at
from sdk.fleet.core import FleetCore
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message
from sdk.wire import Want, encode_json
from tests.builders import make_bundle
from tests.commands import headway
from tests.simulators import TOPICS, SimDevice

CHUNK = b"a chunk"
DIGEST = hashlib.sha256(CHUNK).hexdigest()


class PowerCut(BaseException):
    """The process is gone: nothing after this runs, no handler either."""


class FlakyFiles(MemoryFileSystem):  # type: ignore[misc] # fsspec ships no types
    """A file system in memory that writes piece by piece, and whose power fails in the middle of a write."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    writes_left: ClassVar[int | None] = None
    error: ClassVar[OSError | None] = None
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("flaky://", "memory://")))

    def _step(self) -> bool:
        """Return whether the power fails in this write."""
        if FlakyFiles.error is not None:
            raise FlakyFiles.error
        if FlakyFiles.writes_left is None:
            return False
        FlakyFiles.writes_left -= 1
        return FlakyFiles.writes_left < 0

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        if self._step():
            super().pipe_file(path, value[: len(value) // 2], **more)
            raise PowerCut
        super().pipe_file(path, value, **more)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        if self._step():
            raise PowerCut
        super().mv(path1, path2, **more)

    def rm_file(self, path: str) -> None:
        if FlakyFiles.writes_left is not None and FlakyFiles.writes_left < 0:
            return  # nobody is there to tidy up
        super().rm_file(path)


@pytest.fixture
def flaky() -> Iterator[str]:
    fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
    FlakyFiles.store.clear()
    FlakyFiles.writes_left, FlakyFiles.error = None, None
    yield "flaky://fleet"
    FlakyFiles.store.clear()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Run an object store that speaks S3 on this machine; return its address."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def use_s3_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a store that is not Amazon's as an operator does: in the environment."""
    found = {
        "AWS_ENDPOINT_URL_S3": address,
        "AWS_ACCESS_KEY_ID": "fleet",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["memory", "file", "flaky", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, flaky: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in memory that is whole by itself, a folder, one where whole is our own doing, and S3 over HTTP."""
    if request.param == "s3":
        use_s3_at(request.getfixturevalue("s3"), monkeypatch)
    bucket = f"fleet-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    return {
        "memory": f"memory://{tmp_path.name}",
        "file": f"file://{tmp_path}/place",
        "flaky": flaky,
        "s3": f"s3://{bucket}/chunks",
    }[request.param]


def is_whole(store: FleetStore, bundle: Bundle) -> bool:
    """Return whether every file of the channel's release can be read."""
    with store.read() as ledger:
        publication = ledger.current("default")
    assert publication is not None
    files = {file.name: store.chunks.read(file) for file in publication.release.descriptor.files}
    return files == {name: (bundle.path / name).read_bytes() for name in bundle.file_names()}


def test_a_chunk_is_kept_and_found_again(url: str) -> None:
    place = place_at(url)
    assert DIGEST not in place
    assert place.get(DIGEST) is None
    place.put(DIGEST, CHUNK)
    place.put(DIGEST, CHUNK)
    place.sync()
    again = place_at(url)
    assert DIGEST in again
    assert again.get(DIGEST) == CHUNK


def test_bytes_that_are_not_the_chunk_are_refused(url: str) -> None:
    place = place_at(url)
    with pytest.raises(BadSignature):
        place.put(DIGEST, b"other bytes")
    assert DIGEST not in place


def test_a_damaged_chunk_is_forgotten_and_kept_anew(flaky: str) -> None:
    place = UrlChunks(flaky)
    place.put(DIGEST, CHUNK)
    MemoryFileSystem.pipe_file(FlakyFiles(), f"/fleet/{DIGEST}", b"A chunk")
    assert place.get(DIGEST) is None
    place.put(DIGEST, CHUNK)
    assert place.get(DIGEST) == CHUNK


def test_a_fleet_in_another_place_serves_what_it_published(url: str, tmp_path: Path, bundle: Bundle) -> None:
    fleet = tmp_path / "fleet"
    name_place(fleet, url)
    with FleetStore(fleet) as store:
        store.publish(bundle, channel="default")
    shutil.rmtree(fleet / "chunks")  # another machine, with the same database
    with FleetStore(fleet) as store:
        assert is_whole(store, bundle)
        live = store.live_set("default")
        assert live is not None
        assert live.digest == bundle.precision().head.live_set_digest
    assert any((fleet / "chunks").iterdir())


def test_the_writer_dies_in_every_write_and_the_next_start_makes_it_good(
    flaky: str, tmp_path: Path, bundle: Bundle
) -> None:
    """No release without all its chunks, no half chunk under a chunk's name, whichever write was the last."""
    deaths = 0
    for last in range(200):
        fleet = tmp_path / str(last)
        FlakyFiles.store.clear()
        name_place(fleet, flaky)
        FlakyFiles.writes_left = last
        try:
            with FleetStore(fleet) as store:
                store.publish(bundle, channel="default")
        except PowerCut:
            deaths += 1
            died = True
        else:
            died = False
        FlakyFiles.writes_left = None
        shutil.rmtree(fleet / "chunks")
        for path, file in FlakyFiles.store.items():
            name = path.rpartition("/")[2]
            assert name.startswith(".") or hashlib.sha256(file.getvalue()).hexdigest() == name
        with FleetStore(fleet) as store:
            with store.read() as ledger:
                assert (ledger.current("default") is None) == died
            if died:
                store.publish(bundle, channel="default")
            assert is_whole(store, bundle)
        if not died:
            break
    assert deaths == last
    assert deaths >= 2 * len(bundle.file_names())


def test_what_the_folder_has_is_copied_when_a_place_is_named(url: str, tmp_path: Path, bundle: Bundle) -> None:
    fleet = tmp_path / "fleet"
    with FleetStore(fleet) as store:
        store.publish(bundle, channel="default")
    name_place(fleet, url)
    shutil.rmtree(fleet / "chunks")
    with FleetStore(fleet) as store:
        assert is_whole(store, bundle)


def test_a_copy_that_the_disk_cannot_read_is_made_anew(url: str, tmp_path: Path, bundle: Bundle) -> None:
    fleet = tmp_path / "fleet"
    name_place(fleet, url)
    with FleetStore(fleet) as store:
        publication = store.publish(bundle, channel="default")
        for chunk in (fleet / "chunks").iterdir():
            chunk.unlink()
            chunk.symlink_to("/proc/self/mem")  # which the kernel refuses to read as a bad disk: EIO
        assert is_whole(store, bundle)
        not_asked_for = [chunk.name for chunk in (fleet / "chunks").iterdir() if chunk.is_symlink()]
        assert not_asked_for == [publication.ref.release_id]


def test_a_damaged_chunk_of_the_folder_keeps_no_other_from_being_copied(
    url: str, tmp_path: Path, bundle: Bundle
) -> None:
    fleet = tmp_path / "fleet"
    with FleetStore(fleet) as store:
        store.publish(bundle, channel="default")
    first, second, *others = sorted((fleet / "chunks").iterdir())
    first.write_bytes(b"flipped")
    second.unlink()
    second.symlink_to("/proc/self/mem")  # which the kernel refuses to read as a bad disk: EIO
    (fleet / "chunks" / "lost+found").mkdir()
    name_place(fleet, url)
    place = place_at(url)
    assert [path.name for path in (first, second, *others) if path.name in place] == [path.name for path in others]
    (fleet / "chunks" / "lost+found").rmdir()
    with FleetStore(fleet) as store:
        store.publish(bundle, channel="default")
        assert is_whole(store, bundle)


def test_a_place_that_is_away_costs_devices_a_wait_and_the_service_nothing(
    flaky: str, tmp_path: Path, bundle: Bundle
) -> None:
    fleet = tmp_path / "fleet"
    name_place(fleet, flaky)
    reports: list[str] = []
    with FleetStore(fleet) as store:
        publication = store.publish(bundle, channel="default")
        core = FleetCore(store, TOPICS, ("default",), lambda kind, _more: reports.append(kind))
        shutil.rmtree(fleet / "chunks")
        (fleet / "chunks").mkdir()
        held, FlakyFiles.store = FlakyFiles.store, {"": None}
        device = SimDevice("a")
        want = Want(channel="default", chunks=[publication.ref.release_id])
        messages = [
            Message(TOPICS.state("a"), device.state().payload),
            Message(TOPICS.up_want("a"), encode_json(want)),
        ]
        core.turn(messages[:1], now=0.0, now_utc=0.0, room_bytes=1 << 30)
        core.turn(messages[1:], now=1.0, now_utc=1.0, room_bytes=1 << 30)
        assert "damaged_chunk" in reports
        FlakyFiles.store = held
        out = core.turn(messages[1:], now=9.0, now_utc=9.0, room_bytes=1 << 30)
        assert TOPICS.chunk(publication.ref.release_id) in {p.topic for p in out}


@pytest.mark.parametrize(
    ("number", "expected"), [(28, StoreFull), (122, StoreFull), (13, StoreCorrupt), (110, StoreCorrupt)]
)
def test_a_place_that_takes_nothing_is_told_as_what_it_is(
    flaky: str, number: int, expected: type[Exception]
) -> None:
    place = UrlChunks(flaky)
    FlakyFiles.error = OSError(number, "no")
    with pytest.raises(expected, match="flaky://fleet cannot be used"):
        place.put(DIGEST, CHUNK)
    FlakyFiles.error = None
    assert DIGEST not in place
    assert all("." not in path for path in FlakyFiles.store)


def test_an_object_store_that_is_away_is_a_place_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its library raises then is no `OSError`."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    use_s3_at(f"http://127.0.0.1:{port}", monkeypatch)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one that has connected elsewhere
    with pytest.raises(StoreCorrupt, match="cannot be used"):
        place_at("s3://away/chunks")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "message"),
    [("bucket/fleet", "is no URL"), ("nowhere://x", "cannot be used"), ("gs://bucket/fleet", "gcsfs")],
)
def test_what_is_no_place_is_refused(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=message):
        name_place(tmp_path / "fleet", url)
    assert not (tmp_path / "fleet" / URL_NAME).exists()


def test_another_place_than_the_remembered_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name_place(tmp_path / "fleet", "memory://one")
    with pytest.raises(FleetError, match="names another place"):
        name_place(tmp_path / "fleet", "memory://other")
    ended = headway(capsys, "fleet", "serve", "--dir", tmp_path / "fleet", "--chunks-at", "memory://other")
    assert (ended.code, "names another place" in ended.err) == (2, True)


def test_by_default_the_directory_is_the_place(tmp_path: Path) -> None:
    with FleetStore(tmp_path / "fleet") as store:
        assert isinstance(store.chunks, ChunkStore)
