"""The exact moments of what a device has learned, kept up change by change.

Those of the rows that operators labelled here are kept apart only while a head counts them otherwise
(`sdk.adaptation`): on nearly all stations none does, and the matrix is 20 MB at d = 1584. Codes are read from the
store, which may fail in the middle of a change: then everything is summed up anew. No lock: one thread at a time
ever learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from device_agent.provisional import Changes, real
from sdk.liveset import LiveRow, codes_of
from sdk.moments import UNADAPTED, Adaptation, Moments


def labelled_by(device: str) -> Callable[[LiveRow], bool]:
    """Return whether a row was labelled by a station's own operators, as a function of the row."""
    return lambda row: row.device == device


class LearnedMoments:
    """Moments of a live set, class ids before merges.

    Args:
        rest: Of a release's summed samples, which are always among them.
        is_own: Whether a row was labelled by this station's operators.

    Attributes:
        everything: Of all rows and of the summed samples.
        own: Of the rows that operators labelled here; None while no head needs them.
    """

    def __init__(self, rest: Moments, is_own: Callable[[LiveRow], bool]) -> None:
        self._rest = rest
        self._is_own = is_own
        self._whole = False  # false: a change was begun and not ended
        self.everything = rest
        self.own: Moments | None = None

    def serve(self, adaptation: Adaptation) -> bool:
        """Return whether changes can be applied and a head so adapted solved; false: sum up first."""
        return self._whole and (self.own is None) == (adaptation == UNADAPTED)

    def bring_up(self, changes: Changes, rows: Sequence[LiveRow] | None, adaptation: Adaptation) -> None:
        """Apply changes; or sum up, where the rows are given that these led to.

        Raises:
            StoreFull, StoreCorrupt: a code could not be read.
        """
        if rows is None:
            self.apply(changes)
        else:
            self.sum_up(rows, adaptation)

    def sum_up(self, rows: Sequence[LiveRow], adaptation: Adaptation) -> None:
        """Make them anew from all rows. Cost: O(n d^2).

        Raises:
            StoreFull, StoreCorrupt: a code could not be read.
        """
        self._whole = False
        self.everything = self._rest.copy()
        self.own = None if adaptation == UNADAPTED else Moments(self._rest.feature_size)
        self._change(Moments.add, rows)
        self._whole = True

    def apply(self, changes: Changes) -> None:
        """Bring them up to these changes of rows. Cost: O(d^2) for each.

        Raises:
            StoreFull, StoreCorrupt: a code could not be read.
        """
        some = real(changes)
        self._whole = False
        self._change(Moments.add, [after for _, after in some if after is not None])
        self._change(Moments.subtract, [before for before, _ in some if before is not None])
        self._whole = True

    def _change(self, change: Callable[..., None], rows: Sequence[LiveRow]) -> None:
        if rows:
            change(self.everything, codes_of(rows), [row.class_id for row in rows])
        own = [] if self.own is None else list(filter(self._is_own, rows))
        if own:
            change(self.own, codes_of(own), [row.class_id for row in own])
