"""Which Headway this is. `scripts/version.py` says how it comes about when it is built."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

DISTRIBUTION: Final = "headway-edge"


def headway_version() -> str:
    """Return the version that was installed, of which each build has its own."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+uninstalled"
