"""When the next label may be expected: a trial that it would end need not begin.

Whoever labels one part after the other would end every trial in vain. What they computed until then slowed the
frames all the same: with a label every half second on two busy cores, the 99th percentile of frame latency was 2.2
times that without labels.
"""

from __future__ import annotations

from typing import Final

QUIET_S: Final = 0.3
"""A trial begins when no label has come for this long: about as long as one solve."""
MAX_QUIET_S: Final = 3.0
"""And no sooner than the next label may be expected, of somebody who labels one after the other: the one that came
meanwhile would end it, in vain. It does not wait longer than this."""


class Rhythm:
    """How quickly one label follows the other.

    >>> rhythm = Rhythm()
    >>> rhythm.beat(10.0); rhythm.pause_s()
    0.3
    >>> rhythm.beat(11.0); rhythm.pause_s()
    1.5
    """

    def __init__(self) -> None:
        self._last_s = self._gap_s = 0.0

    def beat(self, now_s: float) -> None:
        """A label came."""
        self._gap_s, self._last_s = now_s - self._last_s, now_s

    def pause_s(self) -> float:
        """Return for how long no label must have come before the next is not to be expected any more."""
        expected_s = 1.5 * self._gap_s
        return max(QUIET_S, expected_s) if expected_s <= MAX_QUIET_S else QUIET_S
