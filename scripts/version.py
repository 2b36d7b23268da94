"""Headway's version, for the build: the release, and which commit it was built from.

`0.1.0+20261127101905.g461e062ab` was built from commit 461e062ab of that time (UTC), so that two builds are never
one to pip, to whom the later commit is the newer version, and a fleet sees who runs which. `.changed` at the end:
with changes that were not committed. Needs neither tags nor history: a shallow clone will do. An sdist has it in
its PKG-INFO; other sources without git are `0.1.0`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

RELEASE = "0.1.0"


def built_version(root: Path, release: str = RELEASE) -> str:
    """Return the version of what is built from these sources."""
    if not (root / ".git").exists():  # unpacked inside somebody's repository they are none of its commits
        return release
    try:
        when, commit = _git(root, "log", "-1", "--format=%cd %H", "--date=format-local:%Y%m%d%H%M%S").split()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return release
    return f"{release}+{when}.g{commit[:9]}" + (".changed" if changed else "")


def _git(root: Path, *words: str) -> str:
    # Whoever builds may be another user than the sources' owner: root in a container, for one.
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"TZ": "UTC"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True).stdout.strip()


__version__ = built_version(Path(__file__).resolve().parents[1])
