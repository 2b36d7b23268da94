"""A file is written whole or stays as it was."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk.durable import appearing_output, sync_path, write_output, write_whole
from tests.disks import mount
from tests.other_users import AGENT, as_user, device, needs_root

__all__ = ["device"]


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"old", b"newer and longer", b""):
        write_whole(file, content)
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "place" / "within").mkdir(parents=True)
    with pytest.raises(OSError, match="director"):
        write_whole(tmp_path / "place", b"a file")
    assert (tmp_path / "place" / "within").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_what_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", b"")


def test_what_was_asked_for_goes_through_a_link_and_into_a_pipe(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    file.write_bytes(b"old")
    link.symlink_to(file)
    write_output(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_output(pipe, b"through")
    reader.join(60)
    assert read == [b"through"]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link", "pipe"}


def test_what_was_asked_for_row_by_row_leaves_what_was_there_until_it_is_whole(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)

    def write(content: bytes, *, fail: bool) -> None:
        with appearing_output(link) as draft, draft.open("wb") as stream:
            stream.write(content)
            if fail:
                raise OSError("cut off")
            assert stat.S_IMODE(draft.stat().st_mode) == 0o640, "nobody else may read it meanwhile"
            assert file.read_bytes() == b"old"

    with pytest.raises(OSError, match="cut off"):
        write(b"half", fail=True)
    assert file.read_bytes() == b"old"
    write(b"new", fail=False)
    assert (file.read_bytes(), link.is_symlink()) == (b"new", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "who could read it still can"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_what_was_asked_for_row_by_row_goes_into_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with appearing_output(pipe) as draft, draft.open("wb") as stream:
        stream.write(b"through")
    reader.join(60)
    assert read == [b"through"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_was_asked_for_goes_into_a_pipe_that_is_open_already(tmp_path: Path) -> None:
    """`--csv /dev/stdout | wc -l`, `--csv >(gzip > p.gz)`: where its link in /proc leads to is no name."""
    reading, writing = os.pipe()
    write_output(Path(f"/dev/fd/{writing}"), b"through")
    with appearing_output(Path(f"/dev/fd/{writing}")) as draft, draft.open("wb") as stream:
        stream.write(b", and more")
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"through, and more"


def test_what_was_asked_for_goes_into_a_file_that_is_open_and_has_no_name(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w+b") as file:
        (tmp_path / "gone").unlink()
        write_output(Path(f"/dev/fd/{file.fileno()}"), b"there")
        assert file.read() == b"there"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file that is mounted by itself, as into a container."""
    (tmp_path / "outside").write_bytes(b"old and longer")
    (tmp_path / "within").mkdir()
    file = tmp_path / "within" / "file"
    file.touch()
    try:
        bound = mount("--bind", str(tmp_path / "outside"), str(file))
    except OSError:
        bound = False
    if not bound:
        pytest.skip("needs the right to mount a file")
    try:
        yield file
    finally:
        subprocess.run(["umount", "-l", str(file)], check=True)


def test_what_was_asked_for_goes_into_a_file_that_is_mounted_by_itself(mounted: Path, tmp_path: Path) -> None:
    def write(content: bytes) -> None:
        with appearing_output(mounted) as draft, draft.open("wb") as stream:
            stream.write(content)
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        write(b"half")
    assert mounted.read_bytes() == b"old and longer"
    write_output(mounted, b"new")
    assert (tmp_path / "outside").read_bytes() == mounted.read_bytes() == b"new"
    assert list(mounted.parent.iterdir()) == [mounted]


@needs_root
def test_what_was_asked_for_goes_into_a_file_whose_folder_takes_no_other(device: Path) -> None:
    file = device / "last_week.csv"
    file.write_bytes(b"old and longer")
    file.chmod(0o666)
    others = {*device.iterdir()}
    with as_user(AGENT + 1):
        write_output(file, b"new")
        with pytest.raises(PermissionError):
            write_output(device / "another", b"new")
    assert file.read_bytes() == b"new"
    assert {*device.iterdir()} == others
