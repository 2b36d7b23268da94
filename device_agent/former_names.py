"""What the classes of earlier releases were called: what was labelled under these is told by names, not by ids.

A release that was exported anew may have other class ids. The label log has no names of the classes that a release
brought, so without these every label and score of before would be of a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import msgspec

from device_agent.store import Store
from sdk.damaged import DAMAGED
from sdk.errors import StoreFull

KEPT_AS: Final = "class-names"
"""Name under which a store keeps them."""
MAX_NAMES: Final = 2_000
"""Kept at once; those of the oldest releases go first."""


def former_names(kept: bytes | None) -> dict[bytes, str]:
    """Return the names that a store keeps as `KEPT_AS`; none where that says none."""
    # A store may come from a backup, which says what whoever may write to it wrote there.
    with contextlib.suppress(*DAMAGED):
        return {} if kept is None else msgspec.msgpack.decode(kept, type=dict[bytes, str])
    return {}


class FormerNames:
    """Names of all classes that releases brought here.

    Args:
        store: Keeps them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names = former_names(store.kept(KEPT_AS))

    def note(self, names: Mapping[bytes, str]) -> None:
        """Keep the names that a release brings; on disk when it returns, where there is room."""
        known = {**{class_id: name for class_id, name in self._names.items() if class_id not in names}, **names}
        known = dict(list(known.items())[-MAX_NAMES:])
        if known != self._names:
            self._names = known
            with contextlib.suppress(StoreFull):  # the next start tries again
                self._store.keep(KEPT_AS, msgspec.msgpack.encode(known))

    @property
    def names(self) -> Mapping[bytes, str]:
        """Name of each class, as the newest release that had it called it."""
        return self._names
