"""What a disk holds after a power cut: a real process's writes, written down in order and played back.

`traced` runs a process under `disk_trace.c`, which notes every write, sync, rename, ... below one folder. `Disk`
takes these one by one and tells, at any point, what a power cut would leave, by four rules that real file systems
follow at their worst (SQLite's own assumptions are no weaker: sqlite.org/atomiccommit.html):

- KEPT: all that was written. A process killed, the machine going on.
- LOST: only what was synced. A file's bytes by a sync of the file, a name by a sync of its folder.
- HOLLOW: all names, and of each file's bytes only the synced ones, at the size that it had. Names reach the disk
  before data, as they do without a sync before a rename.
- TORN: all, but the last write that was not synced stopped in the middle of a sector.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("disk_trace.c")
_RECORD: Final = struct.Struct("=c3xiqII")
_TIMEOUT_S: Final = 240.0


class Cut(Enum):
    """What a power cut leaves of what was not synced."""

    KEPT = "kept"
    LOST = "lost"
    HOLLOW = "hollow"
    TORN = "torn"


class Lie(Enum):
    """Of what a disk says that it is synced when it is not."""

    NOTHING = "nothing"
    FILES = "files"
    NAMES = "names"


Left = dict[str, "bytes | tuple[bytes] | None"]
"""What a power cut leaves, by path: a file's bytes, None for a folder, (where it leads,) for a link."""


class Step(NamedTuple):
    """One thing done to the disk.

    Attributes:
        kind: o open, c close, w write, t truncate, s sync, r rename, x exchange, u unlink, m mkdir, l symlink.
        file: File descriptor; -1 where there is none.
        offset: Of a write; size of a truncate; for an open 1 made, 2 emptied, 3 both.
        one, two: Bytes written, or paths.
    """

    kind: str
    file: int
    offset: int
    one: bytes
    two: bytes


def build_tracer(folder: Path) -> Path | None:
    """Return the tracer, compiled; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    built = folder / "disk_trace.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return built


def traced(tracer: Path, root: Path, log: Path, module: str, *arguments: str) -> list[Step]:
    """Run a module of ours and return what it did to the files below `root`."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={
            **os.environ,
            "LD_PRELOAD": str(tracer),
            "TRACE_ROOT": str(root),
            "TRACE_LOG": str(log),
            "OMP_NUM_THREADS": "1",
        },
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return steps_in(log)


def steps_in(log: Path) -> list[Step]:
    """Return the steps that a traced process noted."""
    return list(_steps(log.read_bytes()))


def _steps(raw: bytes) -> Iterator[Step]:
    at = 0
    while at < len(raw):
        kind, file, offset, size_one, size_two = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        one, two = raw[at : at + size_one], raw[at + size_one : at + size_one + size_two]
        at += size_one + size_two
        yield Step(kind.decode(), file, offset, one, two)


@dataclass
class _File:
    """A file's bytes as they are, and what of them is on the disk for sure."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    last: tuple[int, int] | None = None  # the newest write that was not synced: offset, size

    def write(self, offset: int, data: bytes) -> None:
        self.now.extend(bytes(max(0, offset - len(self.now))))
        self.now[offset : offset + len(data)] = data
        self.last = offset, len(data)

    def truncate(self, size: int) -> None:
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))
        self.last = None

    def after(self, cut: Cut, newest: bool) -> bytes:
        if cut is Cut.LOST:
            return self.synced
        if cut is Cut.HOLLOW:
            return self.synced[: len(self.now)].ljust(len(self.now), b"\0")
        if cut is Cut.TORN and newest and self.last is not None:
            offset, size = self.last
            torn = bytearray(self.now)
            half = offset + size // 2
            old = self.synced[half : offset + size].ljust(offset + size - half, b"\0")
            torn[half : offset + size] = old
            return bytes(torn)
        return bytes(self.now)


_Node = _File | None | bytes
"""A file, a folder (None), or a link (where it leads)."""


class Disk:
    """What is on the disk, step by step. A disk that lies answers a sync and does nothing.

    Args:
        root: The folder; its parent is on the disk.
        lies_about: The sabotage: these syncs have no effect.
    """

    def __init__(self, root: str, lies_about: Lie = Lie.NOTHING) -> None:
        self._names: dict[str, _Node] = {root: None}
        self._durable: dict[str, _Node] = {root: None}
        self._waiting: list[tuple[str, str, _Node | None, bool]] = []  # folder, path, node, whether it is there
        self._open: dict[int, tuple[str, _File | None]] = {}
        self._newest: _File | None = None
        self._lies_about = lies_about
        self._root = root

    def do(self, step: Step) -> None:
        """Take one step."""
        kind, path = step.kind, step.one.decode("utf-8", "replace") if step.kind in "orxlmu" else ""
        if kind == "o":
            self._opens(step, path)
        elif kind == "c":
            self._open.pop(step.file, None)
        elif kind in "wts":
            self._touches(step)
        elif kind == "r":
            self._moves(path, step.two.decode())
        elif kind == "x":
            self._exchanges(path, step.two.decode())
        elif kind == "u":
            self._name(path, None, there=False)
        elif kind == "m":
            self._name(path, None, there=True)
        elif kind == "l":
            self._name(path, step.two, there=True)

    def _opens(self, step: Step, path: str) -> None:
        made, emptied = bool(step.offset & 1), bool(step.offset & 2)
        if made:
            self._name(path, _File(), there=True)
        node = self._names.get(path)
        if isinstance(node, _File) and emptied:
            node.truncate(0)
        self._open[step.file] = path, node if isinstance(node, _File) else None

    def _touches(self, step: Step) -> None:
        path, file = self._open.get(step.file, ("", None))
        if step.kind == "s":
            if file is None and self._lies_about is not Lie.NAMES:
                self._sync_names(path)
            elif file is not None and self._lies_about is not Lie.FILES:
                file.synced, file.last = bytes(file.now), None
        elif file is not None and step.kind == "w":
            file.write(step.offset, step.one)
            self._newest = file
        elif file is not None and step.kind == "t":
            file.truncate(step.offset)

    def _moves(self, source: str, target: str) -> None:
        _move(self._names, source, target)
        self._waiting.append((_folder(target), f"{source}\n{target}", None, True))

    def _exchanges(self, one: str, two: str) -> None:
        _exchange(self._names, one, two)
        self._waiting.append((_folder(two), f"{one}\n{two}", None, False))

    def _name(self, path: str, node: _Node, *, there: bool) -> None:
        if there:
            self._names[path] = node
        else:
            self._names.pop(path, None)
        self._waiting.append((_folder(path), path, node, there))

    def _sync_names(self, folder: str) -> None:
        rest = []
        for change in self._waiting:
            where, path, node, there = change
            if where != folder:
                rest.append(change)
            elif "\n" in path:
                (_move if there else _exchange)(self._durable, *path.split("\n"))
            elif there:
                self._durable[path] = node
            else:
                self._durable.pop(path, None)
        self._waiting = rest

    def after(self, cut: Cut) -> Left:
        """Return what a power cut leaves below the root."""
        names = self._durable if cut is Cut.LOST else self._names
        left: Left = {}
        for path, node in names.items():
            if not all(parent in names for parent in _parents(path, self._root)):
                continue
            below = path[len(self._root) :].lstrip("/")
            if isinstance(node, _File):
                left[below] = node.after(cut, node is self._newest)
            else:
                left[below] = None if node is None else (node,)
        return left


def _move(names: dict[str, _Node], source: str, target: str) -> None:
    # A name that replaces another does it at once; what lies below a folder moves with it.
    for path in [path for path in names if path == source or path.startswith(f"{source}/")]:
        names[target + path[len(source) :]] = names.pop(path)


def _exchange(names: dict[str, _Node], one: str, two: str) -> None:
    aside = f"{one}\0"
    for source, target in ((one, aside), (two, one), (aside, two)):
        _move(names, source, target)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _parents(path: str, root: str) -> Iterator[str]:
    while path != root:
        path = _folder(path)
        yield path


def digest_of(left: Left) -> bytes:
    """Return a digest of a state, so that equal ones are looked at once."""
    digest = hashlib.sha256()
    for path in sorted(left):
        content = left[path]
        kind = "f" if isinstance(content, bytes) else "d" if content is None else "l"
        data = content[0] if isinstance(content, tuple) else content or b""
        digest.update(f"{kind}{path}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.digest()


def write_out(left: Left, target: Path) -> None:
    """Make a folder hold what a power cut left."""
    target.mkdir(parents=True)
    for path in sorted(left):
        content = left[path]
        if path and content is None:
            (target / path).mkdir()
        elif isinstance(content, bytes):
            (target / path).write_bytes(content)
        elif content is not None:
            (target / path).symlink_to(content[0].decode())
