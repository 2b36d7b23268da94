"""A file is written whole or stays as it was."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from sdk.durable import appearing_output, sync_path, write_output, write_whole


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
