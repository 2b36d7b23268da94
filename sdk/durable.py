"""Files that are on disk when a call returns: whole, or as they were before.

A power cut may lose what was written and not synced, and a name that was made or renamed in a folder that was not.
What a failure means is the caller's to say; here it is `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PARTIAL: Final = ".partial"
"""Ends the hidden name of an unfinished file, after the number of the process that writes it."""
_STAYS: Final = frozenset({errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS})
"""Why a file that is there cannot be replaced by another, and yet it may be one that can be written."""
_ACCESS: Final = "system.posix_acl_access"
"""Where Linux keeps what setfacl(1) says of a file (acl(5))."""


def write_whole(file: Path, content: bytes, *, keep_owner: bool = False, mode: int = 0o666) -> None:
    """Write a file beside and rename it, synced; a failure leaves what was there before.

    Args:
        file: Where.
        content: All of it.
        keep_owner: Whoever may read the file that is there may read the new one, and nobody else: owner, group,
            mode and POSIX access list are taken over.
        mode: Of a file that was not there, before the process's umask.

    Raises:
        OSError: the disk did not take it, or this user may not give it to the owner of the file that is there.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    keeps = keep_owner and file.exists()
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if keeps else mode), "wb") as stream:
            if keeps:
                _take_over(file, stream.fileno())
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
        sync_path(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _take_over(file: Path, handle: int) -> None:
    """Let an open file be read by whoever may read another one."""
    before, now = file.stat(), os.fstat(handle)
    if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
        try:
            os.fchown(handle, before.st_uid, before.st_gid)
        except PermissionError as error:
            owner = f"user {before.st_uid} and group {before.st_gid}"
            raise PermissionError(error.errno, f"its new content cannot be given to its owner, {owner}") from error
    os.fchmod(handle, stat.S_IMODE(before.st_mode))
    if hasattr(os, "getxattr"):  # Linux
        try:
            entries = os.getxattr(file, _ACCESS)
        except OSError:
            return  # none, or a file system without
        os.setxattr(handle, _ACCESS, entries)


@contextlib.contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """Give the name to write to; the file appears under its own name, on disk, when the block ends well.

    For what is too long to be in memory at once, as `write_whole` wants it.

    Raises:
        OSError: it was not taken; the file is as it was before.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        yield draft
        sync_path(draft)
        draft.replace(file)
        sync_path(file.resolve().parent)
    finally:
        _discard(draft)


def write_output(file: Path, content: bytes) -> None:
    """Write what somebody asked for under a name, as `appearing_output` does.

    Raises:
        OSError: it was not taken; a file is as it was before.
    """
    with appearing_output(file) as draft:
        draft.write_bytes(content)


@contextlib.contextmanager
def appearing_output(file: Path) -> Iterator[Path]:
    """Give the name to write to, of what somebody asked for and is too long for `write_output`.

    A pipe or device is written as it is, also one that is open already and named by `/dev/stdout` or `/dev/fd/N`.
    A link is followed. A file that is there stays whole until the new one is; who may read it may read that too,
    where this user can say so. Where it must keep its place, being mounted by itself or in a folder that this user
    may not change, the finished new one is copied into it.

    Raises:
        OSError: it was not taken; a file is as it was before, but for one that was being copied into.
    """
    target = file.resolve()
    # A pipe's link in /proc leads to no name, nor does that of a file that was deleted.
    if file.exists() and not (target.is_file() and target.samefile(file)):
        yield file
        return
    with contextlib.ExitStack() as ends:
        draft = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
        if target.exists():
            try:
                _prepare(draft, target)
            except OSError as error:
                if error.errno not in _STAYS:
                    raise
                draft = Path(ends.enter_context(tempfile.TemporaryDirectory())) / target.name
        ends.callback(_discard, draft)
        yield draft
        sync_path(draft)
        try:
            draft.replace(target)
        except OSError as error:
            if error.errno not in _STAYS or not target.is_file():
                raise
            _copy_into(draft, target)
        else:
            sync_path(target.parent)


def _copy_into(draft: Path, target: Path) -> None:
    with draft.open("rb") as source, target.open("r+b") as stream:
        shutil.copyfileobj(source, stream)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())


def _discard(draft: Path) -> None:
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)


def _prepare(draft: Path, target: Path) -> None:
    """Make an empty draft that whoever may read the target may read; none where this user cannot."""
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _take_over(target, handle)
    except PermissionError:
        draft.unlink()
    finally:
        os.close(handle)


def give_to_owner(path: Path, of: Path) -> None:
    """Let what root made belong to whom a file or folder beside or above it belongs; others change nothing.

    Raises:
        OSError: one of them is not there, or the file system has no owners.
    """
    if os.geteuid() == 0:
        owner = of.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def sync_path(path: Path) -> None:
    """Return when a file's contents, or a folder's names, are on disk.

    Raises:
        OSError: the disk did not take them.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
