"""A device that knows more of a channel's union than there is: the fleet's database came back from an older copy.

As a rule the store notices that by itself when it is opened (`sdk.fleet.restoring`); not so where its whole
directory came back, as with a machine's snapshot. Then the first device that is up to date tells.
"""

from __future__ import annotations

from collections.abc import Iterable

from sdk.fleet.reports import Happened
from sdk.fleet.store import Ledger


class Ahead:
    """What one run of a service knows of that.

    It says so once for each channel: what this run has written since it began is then read again by all, and no
    more, whatever a device claims.

    Args:
        said: Channels of which the store has noticed it by itself.
    """

    def __init__(self, said: Iterable[str] = ()) -> None:
        self._began: dict[str, int] = {}
        self._said = set(said)

    def begin(self, channel: str, length: int) -> None:
        """Note how long a channel's union was when this service began; later calls change nothing."""
        self._began.setdefault(channel, length)

    def may_be(self, channel: str) -> bool:
        """Return whether it was not said yet."""
        return channel not in self._said

    def look(self, ledger: Ledger, device: str, channel: str, position: int, now_utc: float) -> Happened | None:
        """Note it in the database where a device is ahead; return what to report.

        Args:
            ledger: A write transaction.
            device: Who says so.
            channel: Its channel, which is served here.
            position: How much of the union it has.
            now_utc: For the record.
        """
        if not self.may_be(channel) or position <= ledger.log_length(channel):
            return None
        self._said.add(channel)
        since = self._began[channel]
        ledger.note_restored(channel, since, now_utc)
        return "restored", {"channel": channel, "since": since, "device": device}
