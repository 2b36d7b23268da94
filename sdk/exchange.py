"""A folder takes another's place, and whoever is killed in between loses neither.

Linux exchanges two names at once (renameat2, RENAME_EXCHANGE). Before that call the name has the old folder, after
it the new one; nothing else can be found. Where the system or the file system cannot do that (NFS, some of FUSE)
the old folder is set aside for a moment, and whoever comes next to the name puts it back (`put_back`):

    .NAME.NUMBER.partial   being written by the process of that number, or the old one after an exchange
    .NAME.NUMBER.old       set aside

Who writes holds a lock on what it makes (flock, let go by the system when a process ends), so that nobody takes it
for what a killed one left. Where the file system knows no locks nothing is put back or removed by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sdk.durable import PARTIAL, sync_path

ASIDE: Final = ".old"
_RENAME_EXCHANGE: Final = 2
"""renameat2(2); Python has no name for it."""
_AT_FDCWD: Final = -100

log = logging.getLogger(__name__)


@contextlib.contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Make an empty folder beside a target, for the block; what is in it then is removed.

    What killed processes left of earlier drafts of the same target is removed first.

    Raises:
        OSError: the disk does not take it.
    """
    for wreck in _left(target, PARTIAL if not target.exists() else f"{PARTIAL}|{ASIDE}"):
        with _held(wreck) as held:
            if held:
                _remove(wreck)
    draft = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    _remove(draft)
    draft.mkdir()
    try:
        with _held(draft):
            yield draft
    finally:
        _remove(draft)


def take_place(draft: Path, target: Path) -> None:
    """Give a folder the target's name, and what had that name the draft's; on disk when it returns.

    Args:
        draft: Of `draft_of(target)`, synced.
        target: There or not.

    Raises:
        OSError: the disk did not take it; the target has what it had.
    """
    if not target.exists():
        draft.rename(target)
    elif not _exchange(draft, target):
        aside = target.with_name(f".{target.name}.{os.getpid()}{ASIDE}")
        _remove(aside)
        with _held(target):
            target.rename(aside)
            try:
                draft.rename(target)
            except OSError:
                aside.rename(target)
                raise
            sync_path(target.parent)
            _remove(aside)
    # Before anybody removes the old one: a power cut must not bring back its name without its files.
    sync_path(target.parent)


def put_back(target: Path) -> None:
    """Give a target its folder again where a process was killed while it replaced it; say so in the log.

    Where that cannot be done, on a disk that is only read, the log has the command.
    """
    if target.exists():
        return
    for aside in _left(target, ASIDE):
        with _held(aside) as held:
            if not held or target.exists():
                continue
            try:
                aside.rename(target)
                sync_path(target.parent)
            except OSError as error:
                log.warning("%s cannot be put back (%s): mv %s %s", target, error.strerror, aside, target)
                return
        log.warning("%s: the process that replaced it was killed; what was there before is back", target)
        return


def _left(target: Path, endings: str) -> list[Path]:
    """Return what processes made beside a target for it, the newest first."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.\d+({endings.replace('.', '[.]')})")
    try:
        found = [path for path in target.parent.iterdir() if target.name and pattern.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder against others for the block; yield whether nobody else does, and it is there."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one and not what it leads to: a target may have been a link."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; return whether that was possible here."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or a C library before glibc 2.28
        return False
    # Whatever the reason is: two renames come next, and say it where it hits them too.
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
