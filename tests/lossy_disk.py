"""A file system that forgets: what was written and not synced is gone when its process is killed.

    python -m tests.lossy_disk BACKING MOUNT [--lie]

FUSE hands every write to this process, which keeps it in memory; a sync of the file takes it to the folder BACKING
below. Names are kept at once, as a journal keeps them. With `--lie` a sync is answered and does nothing: a disk
that the same checks must find out. Run in a process of its own (`LossyDisk`), since FUSE calls back into it. That
process unmounts when its standard input ends: when whoever made the disk is gone, however it went.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

UNMOUNT: Final = "fusermount3"
DEADLINE_S: Final = 60.0


def missing() -> str | None:
    """Return what is missing to mount one here; None where nothing is."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse"
    if shutil.which(UNMOUNT) is None:
        return "needs fuse3 (apt-get install fuse3)"
    try:
        import mfusepy  # noqa: F401 - whether it and libfuse are there
    except (ImportError, OSError) as error:
        return f"needs mfusepy, of the dev extra, and libfuse: {error}"
    return None


class LossyDisk:
    """A mounted lossy disk; `cut` takes its power. Use it in a `with` block.

    Args:
        backing: What it holds after a power cut; a folder that exists.
        mount: Where it appears; made where it is missing.
        lie: Say that files are synced, and keep nothing.
    """

    def __init__(self, backing: Path, mount: Path, *, lie: bool = False) -> None:
        self._mount = mount
        mount.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.lossy_disk", str(backing), str(mount)]
        # A session of its own: what kills a whole test run leaves it the moment that it takes to unmount.
        self._process = subprocess.Popen(
            [*command, "--lie"] if lie else command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + DEADLINE_S
        while not os.path.ismount(mount):
            if self._process.poll() is not None or time.monotonic() > deadline:
                assert self._process.stderr is not None
                raise RuntimeError(f"the lossy disk does not mount: {self._process.stderr.read()[-300:]!r}")
            time.sleep(0.01)  # between looks, until it is there

    def cut(self) -> None:
        """Take the power: whatever was not synced is gone, and the place is an empty folder again."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stderr):
            assert pipe is not None
            pipe.close()
        _unmount(self._mount)

    def __enter__(self) -> LossyDisk:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.cut()


def _unmount(mount: Path) -> None:
    subprocess.run([UNMOUNT, "-u", "-z", str(mount)], check=True, timeout=DEADLINE_S)


class _File:
    """A file's bytes as they are, and which of them are on the disk below only in an earlier state."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now = bytearray(Path(path).read_bytes())
        self._dirty: list[tuple[int, int]] = []
        self.opened = 0

    def write(self, data: bytes, offset: int) -> int:
        end = offset + len(data)
        if offset > len(self.now):
            self._dirty.append((len(self.now), offset))
            self.now.extend(bytes(offset - len(self.now)))
        self.now[offset:end] = data
        self._dirty.append((offset, end))
        return len(data)

    def truncate(self, length: int) -> None:
        if length > len(self.now):
            self._dirty.append((len(self.now), length))
        self.now.extend(bytes(max(0, length - len(self.now))))
        del self.now[length:]

    def sync(self) -> None:
        with open(self.path, "r+b") as below:
            for start, end in self._dirty:
                below.seek(start)
                below.write(self.now[start:end])
            below.truncate(len(self.now))
        self._dirty.clear()


class _Operations:
    """What FUSE asks for: `mfusepy.Operations` by their names. One call at a time."""

    use_ns = True

    def __init__(self, backing: Path, lie: bool) -> None:
        self._root, self._lie = str(backing), lie
        self._files: dict[str, _File] = {}  # by path below, while anything of them is open or not synced
        self._handles: dict[int, _File] = {}
        self._numbers = itertools.count(1)

    def _below(self, path: str) -> str:
        return self._root + path

    def _file(self, path: str) -> _File:
        below = self._below(path)
        if below not in self._files:
            self._files[below] = _File(below)
        return self._files[below]

    def _handle(self, file: _File) -> int:
        number = next(self._numbers)
        self._handles[number] = file
        file.opened += 1
        return number

    # -- files

    def create(self, path: str, mode: int, _info: object = None) -> int:
        os.close(os.open(self._below(path), os.O_CREAT | os.O_RDWR, mode))
        return self.open(path, os.O_RDWR)

    def open(self, path: str, flags: int) -> int:
        file = self._file(path)
        if flags & os.O_TRUNC:
            file.truncate(0)
        return self._handle(file)

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        return bytes(self._handles[handle].now[offset : offset + size])

    def write(self, _path: str, data: bytes, offset: int, handle: int) -> int:
        return self._handles[handle].write(data, offset)

    def truncate(self, path: str, length: int, handle: int | None = None) -> int:
        (self._file(path) if handle is None else self._handles[handle]).truncate(length)
        return 0

    def fsync(self, _path: str, _data_only: int, handle: int) -> int:
        if not self._lie:
            with contextlib.suppress(FileNotFoundError):  # a file without a name any more
                self._handles[handle].sync()
        return 0

    def flush(self, _path: str, _handle: int) -> int:
        return 0  # closing a file is no promise

    def release(self, _path: str, handle: int) -> int:
        self._handles.pop(handle).opened -= 1
        return 0

    # -- names

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, Any]:
        below = self._below(path)
        try:
            found = os.lstat(below)
        except FileNotFoundError:
            raise _error(errno.ENOENT) from None
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_ino")
        said: dict[str, Any] = {name: getattr(found, name) for name in names}
        said |= {f"st_{which}time": getattr(found, f"st_{which}time_ns") for which in "amc"}
        said["st_size"] = len(self._files[below].now) if below in self._files else found.st_size
        return said

    def readdir(self, path: str, _handle: int) -> Iterator[str]:
        yield from (".", "..", *os.listdir(self._below(path)))

    def rename(self, old: str, new: str) -> int:
        one, two = self._below(old), self._below(new)
        os.rename(one, two)
        self._files.pop(two, None)
        for path in [each for each in self._files if each == one or each.startswith(f"{one}/")]:
            file = self._files.pop(path)
            file.path = two + path.removeprefix(one)
            self._files[file.path] = file
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._below(path))
        self._files.pop(self._below(path), None)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._below(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._below(path))
        return 0

    def symlink(self, path: str, target: str) -> int:
        os.symlink(target, self._below(path))
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self._below(path))

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._below(path), mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if times is None:
            os.utime(self._below(path))
        else:
            os.utime(self._below(path), ns=times)
        return 0

    def fsyncdir(self, _path: str, _data_only: int, _handle: int) -> int:
        return 0

    def statfs(self, _path: str) -> dict[str, int]:
        found = os.statvfs(self._root)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}


def _error(number: int) -> OSError:
    import mfusepy

    return mfusepy.FuseOSError(number)  # type: ignore[no-any-return]


def _unmount_without_owner(mount: Path) -> None:
    sys.stdin.buffer.read()
    _unmount(mount)  # which ends `mfusepy.FUSE` too


def main(arguments: list[str]) -> None:
    """Mount one and serve it until it is killed, or standard input ends."""
    import mfusepy

    class Disk(_Operations, mfusepy.Operations):  # type: ignore[misc]
        """Ours before FUSE's own, which do nothing."""

    backing, mount, *more = arguments
    threading.Thread(target=_unmount_without_owner, args=(Path(mount),), daemon=True).start()
    mfusepy.FUSE(Disk(Path(backing), "--lie" in more), mount, foreground=True, nothreads=True)


if __name__ == "__main__":
    main(sys.argv[1:])
