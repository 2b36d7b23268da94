"""When something signed stops to count: how long that is, in words, and the command that renews it.

No files and no clock: `sdk.fleet.expiry` looks at a fleet's directory, `device_agent.expiry` at a device's files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

DAY_S: Final = 24 * 3600.0
NOTICE_DAYS: Final = 90.0
"""Renewing takes people who hold keys, or a visit to a line: a quarter of a year is time to plan it."""


class Standing(str, Enum):
    """How near an end is."""

    GOOD = "good"
    SOON = "soon"
    OVER = "over"


@dataclass(frozen=True)
class Expiry:
    """Something signed, and its end.

    Attributes:
        kind: root, targets, timestamp, authority, broker, service or device.
        what: What it is, for people.
        expires_utc: Its last second, since 1970.
        then: What no longer works from then on.
        renew: What renews it: a command, or a sentence with one.
        notice_days: It is told from so long before the end.
        device: Whose it is; empty for what is everybody's.
        damaged: Why it cannot be read; empty where it can. Then its end is not known, and 0.
    """

    kind: str
    what: str
    expires_utc: float
    then: str
    renew: str
    notice_days: float = NOTICE_DAYS
    device: str = ""
    damaged: str = ""

    def days_left(self, now_utc: float) -> float:
        """Return for how many days it still counts; negative since its end."""
        return (self.expires_utc - now_utc) / DAY_S

    def standing(self, now_utc: float) -> Standing:
        """Return how near its end is."""
        left = self.days_left(now_utc)
        return Standing.OVER if left <= 0 else Standing.SOON if left < self.notice_days else Standing.GOOD

    def words(self, now_utc: float) -> str:
        """Return when it ends, for people.

        >>> root = Expiry("root", "the root", 1_767_225_600.0, "no new release is taken", "headway ...")
        >>> root.words(1_767_225_600.0 - 8 * DAY_S)
        'the root ends on 2026-01-01, in 8 days; then no new release is taken'
        >>> root.words(1_767_225_600.0 + 3 * DAY_S)
        'the root has ended on 2026-01-01, 3 days ago: no new release is taken'
        """
        if self.damaged:
            return f"{self.what} cannot be read ({self.damaged}): {self.then}"
        left = self.days_left(now_utc)
        day, whole = time.strftime("%Y-%m-%d", time.gmtime(self.expires_utc)), abs(int(left))
        days = "less than a day" if whole == 0 else "1 day" if whole == 1 else f"{whole} days"
        if left <= 0:
            return f"{self.what} has ended on {day}, {days} ago: {self.then}"
        return f"{self.what} ends on {day}, in {days}; then {self.then}"
