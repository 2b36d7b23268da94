"""Which releases a fleet's broker still needs, and whose chunks nobody needs any more."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

from sdk.fleet.channel_ledger import Publication
from sdk.fleet.store import Ledger

GONE_S: Final = 30 * 24 * 3600.0
"""A device unseen for this long no longer keeps old chunks on the broker. They stay in the fleet's directory: it
gets them again when it asks."""
WANTED_S: Final = 3600.0
"""Chunks of a release that nobody needs, asked for all the same, stay on the broker so long after the last want:
who still waits for them asks again within half a minute."""


def in_use(ledger: Ledger, channel: str) -> list[Publication]:
    """Return a channel's current release and what a rollout brings it, as far as there are such."""
    current, under_way = ledger.current(channel), ledger.rollout(channel)
    found = [] if current is None else [current]
    if under_way is not None and under_way[1].open:
        found.append(under_way[0])
    return found


def garbage(
    ledger: Ledger, channels: Sequence[str], now_utc: float, wanted: Container[int] = ()
) -> list[tuple[Publication, list[str]]]:
    """Return older publications of these channels whose chunks no device needs any more, with those chunks.

    Args:
        ledger: A transaction.
        channels: Those that are served.
        now_utc: Seconds since 1970.
        wanted: Publications that were asked for lately, and stay.
    """
    found: list[tuple[Publication, list[str]]] = []
    current = {channel: ledger.current(channel) for channel in ledger.channels()}
    needed = {
        digest
        for channel in current
        for publication in in_use(ledger, channel)
        for digest in publication.release.digests()
    }
    older = {channel: ledger.publications(channel, cleared=False) for channel in channels}
    for channel in channels:
        now_running = current.get(channel)
        devices = [d for d in ledger.devices(channel) if d.last_seen_utc > now_utc - GONE_S]
        behind = now_running is not None and any(d.state.release_id != now_running.ref.release_id for d in devices)
        needed.update(
            digest
            for publication in older[channel]
            if behind or publication.id in wanted
            for digest in publication.release.digests()
        )
    for channel in channels:
        for publication in older[channel]:
            digests = [digest for digest in publication.release.digests() if digest not in needed]
            if digests:
                found.append((publication, digests))
    return found
