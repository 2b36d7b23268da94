"""What the best head said of master parts, kept in the store: a restart does not forget what the line could do.

One value of the store holds the marks of the release that serves and of the one before, so that going back to that
one does not begin anew either. It is replaced whole: a power cut leaves the old marks or the new ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from device_agent.masters import Mark
from device_agent.store import Store
from sdk.damaged import DAMAGED

_log = logging.getLogger(__name__)

KEPT_AS: Final = "masters"
MAX_SPACES: Final = 2
"""Each is 35 bytes for each master part."""

_Marks = dict[str, dict[bytes, Mark]]  # by feature space, the newest first


class MasterMarks:
    """The marks of one release's master parts.

    Args:
        store: Where they are kept.
        space: The release's feature space id.
    """

    def __init__(self, store: Store, space: str) -> None:
        self._store = store
        self._space = space

    def load(self) -> dict[bytes, Mark]:
        """Return what is kept, by sample id; nothing where that is damaged."""
        return self._all().get(self._space, {})

    def keep(self, marks: Mapping[bytes, Mark]) -> None:
        """Keep these instead; on disk when this returns.

        Raises:
            StoreFull: no room; what was kept before still is.
        """
        others = [(space, each) for space, each in self._all().items() if space != self._space]
        kept: _Marks = {self._space: dict(marks), **dict(others[: MAX_SPACES - 1])}
        self._store.keep(KEPT_AS, msgspec.msgpack.encode(kept))

    def _all(self) -> _Marks:
        raw = self._store.kept(KEPT_AS)
        try:
            return {} if raw is None else msgspec.msgpack.decode(raw, type=_Marks)
        except DAMAGED as error:
            _log.error("what heads said of master parts is damaged and begins anew: %s", error)
            return {}
