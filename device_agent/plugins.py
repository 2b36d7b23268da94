"""Cameras and outputs that other packages bring, by entry point: `headway.cameras` and `headway.outputs`.

The entry point's name is the `kind` in site.toml; the other keys of that table are the plug-in's own, and it
refuses what it does not know. docs/agent.md says what each kind of plug-in gives.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from sdk.errors import ConfigError

CAMERAS: Final = "headway.cameras"
OUTPUTS: Final = "headway.outputs"


def installed(group: str) -> dict[str, EntryPoint]:
    """Return the plug-ins of a group, by name; nothing of them is imported."""
    return {point.name: point for point in entry_points(group=group)}


def load(group: str, kind: str) -> Callable[..., Any]:
    """Return what a plug-in's entry point names.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    point = installed(group).get(kind)
    if point is None:
        raise ConfigError(
            f"kind {kind!r} is not installed here", hint=f"Install the package that brings it ({group})."
        )
    try:
        loaded: object = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plug-in {kind!r} ({point.value}): {error}", hint="Reinstall its package.") from error
    if not callable(loaded):
        raise ConfigError(f"plug-in {kind!r}: {point.value} cannot be called", hint="Ask whoever wrote it.")
    return loaded
