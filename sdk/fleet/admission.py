"""Which devices a service listens to: those of the channels that it serves, on the channel of their enrolment.

Devices of other channels are left to whoever serves those: acknowledging their labels here would lose them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sdk.fleet.channel_ledger import Device
from sdk.fleet.reports import Happened


class Admission:
    """Says so, and complains once of each that it does not listen to.

    Args:
        channels: Those that are served.
        enrolled: Returns the channel of each device that was enrolled on one. Such a device has no other, whatever
            it says: the broker's access list lets it say anything of itself.
    """

    def __init__(self, channels: Sequence[str], enrolled: Callable[[], Mapping[str, str]]) -> None:
        self.channels = tuple(channels)
        self._enrolled = enrolled
        self._strangers: set[str] = set()

    def elsewhere(self, device: str, channel: str) -> str | None:
        """Return what is wrong, after the device's name, where it was enrolled on another channel than this."""
        enrolled = self._enrolled().get(device, channel)
        return None if enrolled == channel else f"is on channel {channel}, and was enrolled on {enrolled}"

    def may_speak(self, device: Device | None) -> bool:
        """Return whether a device's channel is served here, and its own; True for one that is not registered."""
        if device is None:
            return True
        return device.channel in self.channels and not self.elsewhere(device.device, device.channel)

    def complaint(self, device: str, what: str) -> list[Happened]:
        """Return what to report of a device; nothing where something was said of it before."""
        if device in self._strangers:
            return []
        self._strangers.add(device)
        return [("stranger", {"device": device, "error": f"{device} {what}"})]
