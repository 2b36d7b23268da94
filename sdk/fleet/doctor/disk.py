"""The disks that a fleet lies on: is there room for labels and the next release, and do they take a write?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from sdk.disk_check import MEMORY_FILESYSTEMS, NETWORK_FILESYSTEMS, filesystem, freeing, mib, sync_speed
from sdk.errors import FleetError
from sdk.finding import Finding, Level
from sdk.fleet.blobs import FOLDER_NAME, folder_at, named_place
from sdk.fleet.database import DATABASE_NAME, URL_NAME
from sdk.fleet.garbage import in_use
from sdk.fleet.store import FleetStore
from sdk.owners import quote

RESERVE_BYTES: Final = 256 * 1024**2
"""Below this labels are near their end: SQLite's log alone grows by tens of MiB while a long read goes on."""
SPARE_FILES: Final = 10_000
"""A release is a file for each chunk of it, and each needs an inode."""


def release_bytes(store: FleetStore) -> int:
    """Return the size of the largest release that a channel has or is getting; 0 without any."""
    with store.read() as ledger:
        found = [each.ref.size_bytes for channel in ledger.channels() for each in in_use(ledger, channel)]
    return max(found, default=0)


def examine(directory: Path, next_bytes: int, free_bytes: Callable[[Path], int]) -> Iterator[Finding]:
    """Yield how the disks are that a fleet's directory and its chunks lie on.

    Args:
        directory: The fleet's.
        next_bytes: What the next release takes: as much as the largest that is in use; 0 where that is not known.
        free_bytes: Says what is free on a folder's disk.
    """
    sqlite = not (directory / URL_NAME).is_file()
    url: str | None = None
    try:
        url = named_place(directory)
    except FleetError as error:
        yield Finding.of("disk", error)
    needs: dict[Path, dict[str, int]] = {directory: {}}
    if sqlite and (directory / DATABASE_NAME).is_file():
        # A newer Headway copies the database before it changes its schema (`sdk.fleet.schema`).
        needs[directory]["a copy of the database"] = (directory / DATABASE_NAME).stat().st_size
    chunks = directory / FOLDER_NAME if url is None else folder_at(url)
    if chunks is not None:
        apart = chunks.is_dir() and chunks.stat().st_dev != directory.stat().st_dev
        needs.setdefault(chunks if apart else directory, {})["the next release"] = next_bytes
    for folder, wanted in needs.items():
        yield _room(folder, wanted, free_bytes)
        yield from _kind(folder, sqlite=sqlite and folder == directory)
        if os.access(folder, os.W_OK, effective_ids=True):
            yield sync_speed(folder)
    if url is not None and chunks is None:
        yield Finding("disk", Level.GOOD, f"chunks are at {url}: only that place can say what is free there")


def _room(folder: Path, wanted: Mapping[str, int], free_bytes: Callable[[Path], int]) -> Finding:
    free = free_bytes(folder)
    has = f"{mib(free)} MiB free on {folder} ({filesystem(folder)})"
    counts = os.statvfs(folder)
    if counts.f_files and counts.f_favail < SPARE_FILES:
        what = f"only {counts.f_favail} more files fit on the disk of {folder}"
        return Finding("disk", Level.FAULT, what, f"Find where they are: sudo du --inodes -xd2 {quote(folder)}")
    if free < RESERVE_BYTES:
        what = f"{has}: below {mib(RESERVE_BYTES)} MiB labels may be refused at any time"
        return Finding("disk", Level.FAULT, what, freeing(folder))
    parts = " and ".join(f"{what} ({-(-size // 1024**2)} MiB)" for what, size in wanted.items() if size)
    if free < RESERVE_BYTES + sum(wanted.values()):
        return Finding("disk", Level.FAULT, f"{has}: not enough for {parts}", freeing(folder))
    return Finding("disk", Level.GOOD, has + (f", enough for {parts}" if parts else ""))


def _kind(folder: Path, *, sqlite: bool) -> Iterator[Finding]:
    kind = filesystem(folder)
    if kind in NETWORK_FILESYSTEMS and sqlite:
        yield Finding(
            "disk",
            Level.FAULT,
            f"{folder} is on {kind}, a network file system: SQLite's log is not safe there, and a second service "
            "on another machine is not kept away",
            "Move the directory to a local disk, or the fleet to PostgreSQL: headway fleet move-store --dir "
            f"{quote(folder)} --database URL",
        )
    elif kind in MEMORY_FILESYSTEMS:
        yield Finding(
            "disk",
            Level.NOTE,
            f"{folder} is on {kind}: what is written there may be gone after a power cut",
            "Move the directory to a disk, in a container to a volume.",
        )
