"""A folder of another user's, and what that user may do there. Only root can make either."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT = 12345
"""A user of no machine: only its number counts."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who makes what is not the agent's")


@pytest.fixture
def device() -> Iterator[Path]:
    """The folder of an agent's user, where every user may pass."""
    folder = Path(tempfile.mkdtemp(prefix="headway owners "))
    os.chown(folder, AGENT, AGENT)
    folder.chmod(0o755)
    site = folder / "site.toml"
    site.write_text('device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "opencv"\nindex = 0\n')
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_user(user_id: int) -> Iterator[None]:
    os.setegid(user_id)
    os.seteuid(user_id)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
