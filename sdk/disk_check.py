"""A disk as a doctor sees it: what is free, what kind of file system it is, and whether it takes a write now.

Nothing stays there: what is written to try it has no name, and is gone with its handle.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from sdk.finding import Finding, Level
from sdk.owners import quote

MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs", "overlay", "squashfs"})
NETWORK_FILESYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph"})
SLOW_SYNC_MS: Final = 100.0
"""A label waits for one sync; a click that takes longer feels stuck."""
_TRIES: Final = 5


def free_bytes(folder: Path) -> int:
    """Return what is free for this user on a folder's disk."""
    return shutil.disk_usage(folder).free


def mib(size_bytes: int) -> int:
    """Return whole MiB, for people."""
    return size_bytes // 1024**2


def filesystem(folder: Path) -> str:
    """Return the kind of file system that a folder is on; "unknown" where the kernel does not say."""
    best, kind = "", "unknown"
    real = str(folder.resolve())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, where, this, *_ = line.split(" ")
            where = where.replace("\\040", " ")
            if len(where) >= len(best) and (real == where or real.startswith(where.rstrip("/") + "/")):
                best, kind = where, this
    return kind


def freeing(folder: Path) -> str:
    """Return what finds and frees space on a folder's disk."""
    return (
        f"Free some: sudo du -xh --max-depth=2 {quote(folder)} | sort -h | tail; "
        "sudo journalctl --vacuum-size=100M"
    )


def sync_speed(folder: Path) -> Finding:
    """Time what a label waits for, by writing some bytes that are gone when this returns."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times = []
            for _ in range(_TRIES):
                began_s = time.perf_counter()
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
                times.append((time.perf_counter() - began_s) * 1e3)
    except OSError as error:
        return Finding(
            "disk",
            Level.FAULT,
            f"nothing can be written in {folder}: {error.strerror}",
            "Free space there, or check the disk and how it is mounted: dmesg | tail; findmnt --target "
            + quote(folder),
        )
    median_ms = statistics.median(times)
    level = Level.NOTE if median_ms > SLOW_SYNC_MS else Level.GOOD
    fix = (
        "Use NVMe or eMMC instead of an SD card, or look what else writes: iotop -o" if level is Level.NOTE else ""
    )
    return Finding("disk", level, f"a write is on the disk after {median_ms:.1f} ms (median of {_TRIES})", fix)
