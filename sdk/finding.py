"""What a doctor found, of a device or of a fleet: one thing that was looked at, how it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sdk.errors import HeadwayError


class Level(str, Enum):
    """How a finding is meant."""

    GOOD = "good"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: Of a device settings, machine, runtime, release, masters, camera, broker, clock, disk, permissions,
            store, trust or page; of a fleet machine, permissions, database, service, broker, disk, clock, trust,
            chunks or devices.
        level: A fault keeps the agent, or the fleet, from working, or from working safely.
        what: What is so, in one line.
        fix: What to do; empty where nothing is wrong.
    """

    area: str
    level: Level
    what: str
    fix: str = ""

    @classmethod
    def of(cls, area: str, error: HeadwayError) -> Finding:
        """Return a fault in the words of an error."""
        return cls(area, Level.FAULT, str(error), error.hint)
