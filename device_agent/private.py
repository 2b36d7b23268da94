"""What an agent writes is its own user's to read: pictures, people's names, labels, however it was started.

The systemd unit says so with UMask=0077; whoever starts a command by hand has the machine's mask, which lets
everybody read. Modes of folders that are there are left alone: somebody may have given them to a group.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

OWN_MASK: Final = 0o077


@contextmanager
def private_files() -> Iterator[None]:
    """Let what this process makes in the block, on all its threads, be for its own user."""
    before = os.umask(OWN_MASK)
    try:
        yield
    finally:
        os.umask(before)


def open_to_all(folder: Path) -> bool:
    """Return whether every user of this machine may look into a folder."""
    return bool(stat.S_IMODE(folder.stat().st_mode) & (stat.S_IROTH | stat.S_IXOTH))
