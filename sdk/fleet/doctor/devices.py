"""Devices that are silent for long, lag behind the union, or say what is wrong; and unions that came back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sdk.finding import Finding, Level
from sdk.fleet.cli_devices import NAMED, ago, span, troubles_of
from sdk.fleet.doctor.seen import Seen
from sdk.mqtt import MqttSettings
from sdk.owners import quote

SILENT_S: Final = float(MqttSettings().session_expiry_s)
"""After a week the broker forgets what waits for a device: no weekend, no short week is so long."""
LAG_S: Final = 900.0
"""A device that is there reads the union within seconds; through the slowest link in minutes."""


def judged(directory: Path, seen: Seen, now_utc: float, *, served: bool) -> Iterator[Finding]:
    """Yield how a fleet's devices are, by channel.

    Args:
        directory: The fleet's.
        seen: What the database says.
        now_utc: Seconds since 1970.
        served: A service runs: else nobody brings them anything, and nobody knows who is there.
    """
    for channel, since in sorted(seen.older.items()):
        yield Finding(
            "database",
            Level.NOTE,
            f"channel {channel}: its log came back from an older copy, and is what it was up to entry {since}",
            "Start the service, and devices offer again what is missing: headway fleet serve --dir "
            f"{quote(directory)}",
        )
    for one in seen.overview["channels"]:
        channel = one["channel"]
        own = [device for device in seen.devices if device["channel"] == channel]
        yield from _of_channel(directory, channel, own, seen, now_utc, served)


def _of_channel(
    directory: Path, channel: str, own: Sequence[dict[str, Any]], seen: Seen, now_utc: float, served: bool
) -> Iterator[Finding]:
    there = [device for device in own if device["presence"] == "online"]
    many = "1 device" if len(own) == 1 else f"{len(own)} devices"
    online = f"{len(there)} online" if served else "as they were when the service last heard them"
    silent = {
        device["device"]: f"for {span(now_utc - device['last_seen_utc'])}"
        for device in sorted(own, key=lambda device: float(device["last_seen_utc"]))
        if device["presence"] != "online" and device["last_seen_utc"] < now_utc - SILENT_S
    }
    lags = {
        device["device"]: f"since {ago(now_utc - utc)}"
        for device in there
        if served and (utc := seen.lacks_since.get(device["device"])) is not None and utc < now_utc - LAG_S
    }
    troubles = {device["device"]: "; ".join(found) for device in own if (found := troubles_of(device))}
    yield Finding("devices", Level.GOOD, f"channel {channel}: {many}, {online}")
    if silent:
        yield Finding(
            "devices",
            Level.NOTE,
            f"channel {channel}: silent: {_named(silent)}",
            "Are they switched off, or is their network down? A scrapped one: headway fleet forget DEVICE --dir "
            f"{quote(directory)}, after revoke where it has certificates.",
        )
    if lags:
        yield Finding(
            "devices",
            Level.FAULT,
            f"channel {channel}: online, and without what the others learned: {_named(lags)}",
            "On each: headway doctor SITE.TOML, and its log (journalctl -u headway). Does its access list let it "
            "read its channel's topics?",
        )
    if troubles:
        yield Finding(
            "devices",
            Level.NOTE,
            f"channel {channel}: {_named(troubles)}",
            f"headway fleet devices --dir {quote(directory)} --look",
        )


def _named(found: dict[str, str]) -> str:
    """Return the first devices with what is said of each, and how many more there are."""
    said = ", ".join(f"{device} ({words})" for device, words in list(found.items())[:NAMED])
    return said + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
