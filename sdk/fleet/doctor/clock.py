"""The server's clock, beside what it wrote when it was right and what the devices' clocks say."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sdk.clock_state import SET_CLOCK
from sdk.errors import KeyRefused
from sdk.finding import Finding, Level
from sdk.fleet.cli_devices import span
from sdk.fleet.doctor.seen import Seen

SLACK_S: Final = 300.0
"""Devices and server are not set by one clock, and a clock is corrected by less."""
FRESH_S: Final = 24 * 3600.0
"""Only of entries that came within this does a difference say something of the clock as it is now."""
SEVERAL: Final = 2
"""So many devices with the same difference, and it is not theirs."""
_THEN: Final = "Signatures count until a wrong day, rollouts and retention go by a wrong age."


def signed_utc(directory: Path) -> float:
    """Return when the fleet's metadata was last signed, seconds since 1970; 0 where it is not, or nothing says."""
    from sdk.trust.metadata import signed_utc as of_signed
    from sdk.trust.repository import TRUST_FOLDER, Repository, exists

    if not exists(directory / TRUST_FOLDER):
        return 0.0
    try:
        return of_signed(Repository(directory / TRUST_FOLDER).timestamp().signed)
    except KeyRefused:  # which is told of what ends
        return 0.0


def judged(seen: Seen | None, signed: float, now_utc: float) -> Iterator[Finding]:
    """Yield what is wrong with the clock by the newest that was written; nothing where all fits.

    Args:
        seen: What the database says; None where it cannot be read.
        signed: When metadata was last signed, seconds since 1970; 0 where nothing says so.
        now_utc: What the clock says.
    """
    written = {"the fleet's signature that nothing newer exists": signed}
    if seen is not None and (wrote_utc := seen.wrote_utc) is not None:
        written["the newest entry of the database"] = wrote_utc
    what, newest = max(written.items(), key=lambda item: item[1])
    if newest > now_utc + SLACK_S:
        yield Finding(
            "clock",
            Level.FAULT,
            f"{what} is of {_utc(newest)}, {span(newest - now_utc)} ahead of the clock: that was set back, or was "
            "ahead",
            f"{SET_CLOCK}. If it is right now, it was ahead then: the service signs anew, times in the log stay. "
            f"{_THEN}",
        )
    if seen is None:
        return
    # By device, the entry that waited least: labels wait on a device, never here.
    waited: dict[str, float] = {}
    for arrivals in seen.arrivals.values():
        for one in arrivals:
            if now_utc - FRESH_S < one.received_utc <= now_utc + SLACK_S:
                late_s = one.received_utc - one.said_utc
                waited[one.device] = min(late_s, waited.get(one.device, late_s))
    early = {device: -late_s for device, late_s in waited.items() if late_s < -SLACK_S}
    if len(early) >= SEVERAL and 2 * len(early) > len(waited):
        behind_s = statistics.median(early.values())
        yield Finding(
            "clock",
            Level.FAULT,
            f"labels of {len(early)} devices came {span(behind_s)} before they were made: this clock is behind",
            f"{SET_CLOCK}. {_THEN}",
        )
    else:
        for device, ahead_s in sorted(early.items()):
            yield Finding(
                "clock",
                Level.NOTE,
                f"labels of {device} came {span(ahead_s)} before they were made: its clock is ahead",
                f"On {device}: {SET_CLOCK}",
            )
    if len(waited) > SEVERAL and min(waited.values()) > FRESH_S:
        yield Finding(
            "clock",
            Level.NOTE,
            f"no label of {len(waited)} devices came within {span(min(waited.values()))} of when it was made: "
            "this clock is ahead of theirs, unless all of them were away",
            f"{SET_CLOCK}. {_THEN}",
        )


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
