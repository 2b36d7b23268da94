"""What the ends of a client's sessions at a broker say: another came under its name, or the broker wants it not.

A broker need not give the reason: Mosquitto 2.0 closes the older of two sessions of one name without a word, and
one whose certificate it refuses after the handshake, as TLS 1.3 has it. So what tells is how the sessions end.

Nothing here asks the time; seconds come in, of any clock that never goes back.
"""

from __future__ import annotations

from typing import Final

SHORT_S: Final = 2.0
"""A session that two machines fight for lasts as long as the other waits to come back: half a second, as
`sdk.mqtt.RECONNECT_MIN_S` has it."""
MANY_SHORT: Final = 5
"""So many in a row: a broker that is started anew a few times ends one each time, and not within seconds."""
FEW_SHORT: Final = 3
"""So many in a row are enough to trust nothing that came meanwhile, and too few to accuse anybody."""
ANOTHER_MACHINE: Final = "another machine has this name"


class SessionEnds:
    """Counts them.

    Args:
        name: The client's, at the broker.
        namesake: What ends its sessions then, in words.

    >>> ends = SessionEnds("line-2")
    >>> for second in range(5):
    ...     ends.began(second)
    ...     _ = ends.ended(second + 0.5)
    >>> ends.words(5.0)
    "the broker has ended 5 sessions of 'line-2' within seconds: most likely another machine has this name"
    """

    def __init__(self, name: str, namesake: str = ANOTHER_MACHINE) -> None:
        self._name = name
        self._namesake = namesake
        self._began: float | None = None
        self._short = 0
        self.longest_s = 0.0
        """Of the sessions that are over. Who had a long one was there first: who comes later never has one, the
        first being back in half a second each time."""

    def began(self, now: float) -> None:
        """The broker has accepted a session."""
        self._began = now

    def ended(self, now: float, unexplained: bool = True) -> bool:
        """A session is over, not by our doing; return whether this is the one that makes them too many.

        Args:
            now: Seconds.
            unexplained: The broker gave no reason that is not this one, such as a packet that is too large.
        """
        began, self._began = self._began, None
        if began is None:
            return False
        self._short = self._short + 1 if unexplained and now - began < SHORT_S else 0
        self.longest_s = max(self.longest_s, now - began)
        return self._short == MANY_SHORT

    def nobody_there(self) -> None:
        """No broker answered: it ended, which is why sessions did."""
        self._short = 0

    def contested(self, now: float) -> bool:
        """Return whether sessions end as if another came under this name just now."""
        return self._many(FEW_SHORT, now)

    def _many(self, least: int, now: float) -> bool:
        return self._short >= least and (self._began is None or now - self._began < SHORT_S)

    def words(self, now: float) -> str | None:
        """Return what is wrong; None where nothing is, or a session has lasted since."""
        if not self._many(MANY_SHORT, now):
            return None
        return (
            f"the broker has ended {self._short} sessions of {self._name!r} within seconds: most likely "
            f"{self._namesake}"
        )
