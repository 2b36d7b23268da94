"""Whose the files of a data folder, or of a fleet's directory, are: its user's, whoever made them.

With `sudo` a restore, a first account or a publish makes files that are root's, and for root alone: the agent or
the service, which runs as another user, would not start. So what root makes there is given to whom the folder
belongs; and what somebody else's is there is named, with the command that mends it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

_FREE_TO_ALL: Final = stat.S_IROTH | stat.S_IWOTH
_FREE_TO_GROUP: Final = stat.S_IRGRP | stat.S_IWGRP


class Stranger(NamedTuple):
    """Something in a data folder that the agent's user may not use."""

    path: Path
    owner: str
    user: str

    def __str__(self) -> str:
        return f"{self.path} belongs to {self.owner}, and {self.user} may not use it"


def user_name(user_id: int) -> str:
    """Return a user's name; the number where it has none."""
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)


@contextlib.contextmanager
def given_to_owner(data_dir: Path) -> Iterator[None]:
    """Let what root makes in a data folder in the block belong to the folder's owner; others change nothing.

    Of a folder that is missing the owner is that of the folder above it. Where that is root, so is the agent, as
    in a container, or somebody has yet to say who is.
    """
    existing = next((each for each in (data_dir, *data_dir.absolute().parents) if each.exists()), Path("/"))
    owner = existing.stat()
    try:
        yield
    finally:
        if os.geteuid() == 0 and owner.st_uid != 0:
            inner = data_dir.absolute()
            for each in (inner, *inner.parents):
                if each == existing.absolute():
                    break
                _give(each, owner)
            for folder, _, files, handle in os.fwalk(data_dir):
                _give(Path(folder), owner)
                for name in files:
                    _give(Path(name), owner, handle)


def give_to_owner_of(folder: Path, *patterns: str) -> None:
    """As root, give what is root's of these names in a folder, and all in it, to the folder's owner."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for found in chain.from_iterable(map(folder.glob, patterns)):
        _give(found, owner)
        if found.is_dir() and not found.is_symlink():
            for inner, _, files, handle in os.fwalk(found):
                _give(Path(inner), owner)
                for name in files:
                    _give(Path(name), owner, handle)


def _give(path: Path, owner: os.stat_result, folder: int | None = None) -> None:
    """Give what is root's away, and nothing that lies elsewhere too: the folder is somebody's who is not root."""
    with contextlib.suppress(OSError):  # a link, or gone meanwhile
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            facts = os.fstat(handle)
            alone = stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)
            if facts.st_uid == 0 and alone:
                os.fchown(handle, owner.st_uid, owner.st_gid)
        finally:
            os.close(handle)


def strangers(folder: Path, *, deep: bool = True) -> Iterator[Stranger]:
    """Yield what in a data folder is somebody else's and closed to the agent's user.

    That is this process's user; where it is root, whom the folder belongs to.

    Args:
        folder: The data folder, or one in it.
        deep: All that is in it, too; else what lies in it directly.

    Raises:
        OSError: it is not there, or may not be looked into.
    """
    me = os.geteuid() or folder.stat().st_uid
    for path in _all_in(folder) if deep else chain([folder], _in(folder)):
        with contextlib.suppress(FileNotFoundError):
            facts = path.lstat()
            if facts.st_uid != me and not stat.S_ISLNK(facts.st_mode) and _is_closed(path, facts, me):
                yield Stranger(path, user_name(facts.st_uid), user_name(me))


def _in(folder: Path) -> Iterator[Path]:
    yield from folder.iterdir()


def _all_in(folder: Path) -> Iterator[Path]:
    yield folder
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _is_closed(path: Path, facts: os.stat_result, me: int) -> bool:
    if me == os.geteuid():
        wanted = os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(facts.st_mode) else 0)
        return not os.access(path, wanted, effective_ids=True)
    return not any(facts.st_mode & each == each for each in (_FREE_TO_GROUP, _FREE_TO_ALL))


def quote(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def denied(folder: Path, *names: str) -> Stranger | None:
    """Return what of another user's keeps us from using a folder, or what has such a name directly in it."""
    with contextlib.suppress(OSError):
        for found in strangers(folder, deep=False):
            if not names or found.path == folder or found.path.name in names:
                return found
    return None


def mending(user: str, folder: Path) -> str:
    """Return the command that gives a folder and all in it to a user."""
    return f"sudo chown -R {user} {quote(folder)}"
