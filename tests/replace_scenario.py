"""A bundle that takes another's place, by processes killed after their k-th write; `test_replace` runs it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

import msgspec

from sdk.bundle import MANIFEST_NAME, Bundle, write_bundle
from tests.tiny import tiny_bundle

MOST = 300
"""Things that one replacement can do to the disk at most; the loop ends by itself long before."""


def once(folder: Path, no_exchange: bool) -> None:
    """Write a bundle and replace it, undisturbed."""
    ctypes.CDLL(None).disk_kills(-1, no_exchange)
    old = tiny_bundle(folder / "bundle", name="old")
    write_bundle(old.path, files_of(old), msgspec.structs.replace(old.manifest, name="new"), replace=True)


def killed(folder: Path, no_exchange: bool) -> None:
    """Replace a bundle with the process killed after every single thing it does; print what each left.

    One line each: what lay there after the kill, what the name then opens as, and what lay there when somebody
    had replaced it again undisturbed.
    """
    disk_kills = ctypes.CDLL(None).disk_kills
    out = folder / "bundle"
    old = Bundle.open(out)
    files = files_of(old)
    for after in range(1, MOST):
        child = os.fork()
        if child == 0:
            disk_kills(after, no_exchange)
            write_bundle(out, files, msgspec.structs.replace(old.manifest, name="new"), replace=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        dead = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert dead or os.WEXITSTATUS(status) == 0
        seen = names_in(folder)
        now = Bundle.open(out).manifest.name
        write_bundle(out, files, old.manifest, replace=True)
        print(json.dumps({"killed": dead, "seen": seen, "now": now, "left": names_in(folder)}))
        if not dead:
            return
    raise AssertionError("it never got through")


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """Return a bundle's files, without its manifest."""
    return {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}


def names_in(folder: Path) -> list[str]:
    """Return what lies in a folder, without the numbers of processes."""
    return sorted(re.sub(r"\d+", "N", path.name) for path in folder.iterdir())


if __name__ == "__main__":
    {"once": once, "killed": killed}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3] == "1")
