"""Chunks written at their places: in any order, cut off anywhere, torn on disk, or from a publisher that lies."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sdk.errors import BadFormat, BadSignature
from sdk.intake import Intake
from sdk.landing import Landing
from sdk.release import Release, describe
from sdk.wire import DEFAULT_CHUNK_BYTES, ReleaseDescriptor, ReleaseFile, encode_json
from tests.simulators import leave_landed, make_release, same_files

SIZES = {
    "backbone.onnx": 5 * DEFAULT_CHUNK_BYTES + 1,
    "whole.bin": 2 * DEFAULT_CHUNK_BYTES,
    "card.md": 17,
    "empty": 0,
}
BIG = "backbone.onnx"


def unfinished(folder: Path, name: str = BIG) -> Path:
    """Return the file that a landing writes to."""
    (found,) = folder.glob(f"*.landing/files/{name}")
    return found


def landed(release: Release, chunks: dict[str, bytes], folder: Path) -> Landing:
    """Return a landing that has every chunk, in the release's order."""
    landing = Landing(release, folder)
    for digest in release.digests()[1:]:
        landing.put(digest, chunks[digest])
    return landing


@pytest.mark.parametrize("order", [1, -1, 0], ids=["in order", "backwards", "shuffled"])
def test_files_are_the_same_in_whatever_order_chunks_come(tmp_path: Path, order: int) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    digests = release.digests()[1:]
    if order == 0:
        random.Random(7).shuffle(digests)
    landing = Landing(release, tmp_path / "chunks")
    for digest in digests[:: order or 1]:
        landing.put(digest, chunks[digest])
    landing.finish(tmp_path / "slots" / "one")
    assert same_files(source, tmp_path / "slots" / "one")
    assert list((tmp_path / "chunks").iterdir()) == []


def test_a_chunk_that_a_release_has_often_is_written_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "zeros").write_bytes(bytes(3 * DEFAULT_CHUNK_BYTES + 5))
    (source / "more").write_bytes(bytes(2 * DEFAULT_CHUNK_BYTES))
    chunks: dict[str, bytes] = {}
    release = describe(source, "zeros", ["zeros", "more"], put=chunks.__setitem__)
    assert len(chunks) == 3  # the descriptor, the whole chunk, the last one
    landed(release, chunks, tmp_path / "chunks").finish(tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


def test_what_came_is_on_disk_once(tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, SIZES)
    landed(release, chunks, tmp_path / "chunks").close()
    sizes = [path.stat().st_size for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
    assert sum(sizes) == release.ref.size_bytes


@pytest.mark.parametrize("first", range(1, 9))
def test_a_landing_goes_on_with_what_is_on_disk(tmp_path: Path, first: int) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    came = release.digests()[1:][::-1][:first]  # the last chunk first: it tells the size of the others as well
    before = Landing(release, tmp_path / "chunks")
    for digest in came:
        before.put(digest, chunks[digest])
    before.close()
    again = Landing(release, tmp_path / "chunks")
    assert again.resume() == set(came)
    for digest in release.digests()[1:]:
        again.put(digest, chunks[digest])
    again.finish(tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


@pytest.mark.parametrize("torn", ["first byte", "last byte", "a hole"])
def test_what_a_power_cut_tore_is_found_and_asked_for_again(tmp_path: Path, torn: str) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    landed(release, chunks, tmp_path / "chunks").close()
    was = chunks[release.descriptor.files[0].chunks[3]]
    start, now = {
        "first byte": (0, bytes([was[0] ^ 1])),
        "last byte": (len(was) - 1, bytes([was[-1] ^ 1])),
        "a hole": (0, bytes(len(was))),
    }[torn]
    with unfinished(tmp_path / "chunks").open("r+b") as stream:
        stream.seek(3 * DEFAULT_CHUNK_BYTES + start)
        stream.write(now)
    again = Landing(release, tmp_path / "chunks")
    (missing,) = set(release.digests()[1:]) - again.resume()
    assert missing == release.descriptor.files[0].chunks[3]
    again.put(missing, chunks[missing])
    again.finish(tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


@pytest.mark.parametrize("wreck", ["cut short", "too long", "gone", "no size", "many sizes", "silly size"])
def test_no_wreck_of_an_earlier_attempt_harms_the_next(tmp_path: Path, wreck: str) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    landed(release, chunks, tmp_path / "chunks").close()
    file = unfinished(tmp_path / "chunks")
    note = file.parent.parent / f"{BIG}@{DEFAULT_CHUNK_BYTES}"
    if wreck == "cut short":
        os.truncate(file, DEFAULT_CHUNK_BYTES + 9)
    elif wreck == "too long":
        with file.open("ab") as stream:
            stream.write(b"and more")
    elif wreck == "gone":
        file.unlink()
    elif wreck == "no size":
        note.unlink()
    elif wreck == "many sizes":
        (note.parent / f"{BIG}@{DEFAULT_CHUNK_BYTES - 1}").touch()
    else:
        note.rename(note.parent / f"{BIG}@99999999999999")
    again = Landing(release, tmp_path / "chunks")
    kept = again.resume()
    assert set(release.descriptor.files[1].chunks) <= kept  # the other files are not touched by it
    for digest in set(release.digests()[1:]) - kept:
        again.put(digest, chunks[digest])
    again.finish(tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


def test_right_chunks_that_make_a_wrong_file_are_refused_and_removed(tmp_path: Path) -> None:
    release, chunks, _ = make_release(tmp_path, {"a": 10})
    lie = msgspec.structs.replace(release.descriptor.files[0], sha256="0" * 64)
    wrong = Release(msgspec.structs.replace(release.descriptor, files=[lie]), b"")
    with pytest.raises(BadSignature, match="not what its descriptor says") as caught:
        landed(wrong, chunks, tmp_path / "chunks").finish(tmp_path / "slot")
    assert "publish the bundle again" in caught.value.hint
    assert not (tmp_path / "slot").exists()
    assert list((tmp_path / "chunks").iterdir()) == []


@pytest.mark.parametrize("cut", [(4, 3, 3), (3, 4, 3), (3, 3, 4), (1, 1, 8)], ids=str)
def test_a_file_that_is_cut_unevenly_is_refused(tmp_path: Path, cut: tuple[int, ...]) -> None:
    parts = [os.urandom(size) for size in cut]
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    file = ReleaseFile(
        name="a", size_bytes=sum(cut), sha256=hashlib.sha256(b"".join(parts)).hexdigest(), chunks=digests
    )
    descriptor = ReleaseDescriptor(name="uneven", files=[file])
    landing = Landing(Release(descriptor, encode_json(descriptor)), tmp_path / "chunks")
    pieces = dict(zip(digests, parts, strict=True))

    def put_all() -> None:
        for digest, part in pieces.items():
            landing.put(digest, part)

    with pytest.raises(BadFormat, match="chunks of one size"):
        put_all()
    landing.close()


def test_a_new_assignment_takes_the_place_of_what_came_of_another(tmp_path: Path) -> None:
    old, old_chunks, _ = make_release(tmp_path / "old", SIZES, seed=1)
    new, new_chunks, source = make_release(tmp_path / "new", SIZES, seed=2)
    leave_landed(tmp_path / "chunks", old, old_chunks, old.digests()[:4])
    intake = Intake(new.ref, tmp_path / "chunks", tmp_path / "slot")
    for digest in new.digests():
        intake.brought(digest, new_chunks[digest])
    assert [path.name for path in (tmp_path / "chunks").glob("*.landing")] == [f"{new.ref.release_id}.landing"]
    assert intake.finished()
    assert same_files(source, tmp_path / "slot")
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == [new.ref.release_id]


def test_a_target_that_is_there_needs_nothing(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    shutil.copytree(source, tmp_path / "slot")
    leave_landed(tmp_path / "chunks", release, chunks, release.digests()[:1])
    assert Intake(release.ref, tmp_path / "chunks", tmp_path / "slot").finished()


def test_a_wreck_where_the_target_shall_be_is_replaced(tmp_path: Path) -> None:
    release, chunks, source = make_release(tmp_path, SIZES)
    shutil.copytree(source, tmp_path / "slot")
    (tmp_path / "slot" / "card.md").write_bytes(b"x" * 17)
    landed(release, chunks, tmp_path / "chunks").finish(tmp_path / "slot")
    assert same_files(source, tmp_path / "slot")


FILLING = """
import resource, sys
from pathlib import Path
from sdk.errors import StoreCorrupt
from sdk.landing import Landing
from sdk.release import Release, describe
encoded, chunk, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
release = Release.parse(encoded)
allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
try:
    Landing(release, folder).put(release.digests()[1], chunk)
except StoreCorrupt as error:
    print(error.hint)
resource.setrlimit(resource.RLIMIT_FSIZE, allowed)  # what coverage writes at the exit is whole
"""


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    release, _, source = make_release(tmp_path, {"a": 5000})
    (tmp_path / "encoded").write_bytes(release.encoded)
    told = subprocess.run(
        [sys.executable, "-c", FILLING, tmp_path / "encoded", source / "a", tmp_path / "chunks"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Check the disk" in told.stdout
    again = Landing(release, tmp_path / "chunks")  # half a chunk is no chunk
    assert again.resume() == set()
    again.close()
