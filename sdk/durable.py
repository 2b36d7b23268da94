"""Files that are on disk when a call returns: whole, or as they were before.

A power cut may lose what was written and not synced, and a name that was made or renamed in a folder that was not.
What a failure means is the caller's to say; here it is `OSError`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

PARTIAL: Final = ".partial"
"""Ends the hidden name of an unfinished file, after the number of the process that writes it."""


def write_whole(file: Path, content: bytes) -> None:
    """Write a file beside and rename it, synced; a failure leaves what was there before.

    Raises:
        OSError: the disk did not take it.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
        sync_path(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def write_output(file: Path, content: bytes) -> None:
    """Write what somebody asked for under a name: a file whole, through a link, and a pipe or device as it is.

    Raises:
        OSError: it was not taken; a file is as it was before.
    """
    target = file.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            stream.write(content)
    else:
        write_whole(target, content)


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
