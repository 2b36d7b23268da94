"""Which releases a fleet's broker still needs, and whose chunks nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sdk.fleet.channel_ledger import Publication
from sdk.fleet.store import Ledger

GONE_S: Final = 30 * 24 * 3600.0
"""A device unseen for this long no longer keeps old chunks on the broker. They stay in the fleet's directory: it
gets them again when it asks."""


def in_use(ledger: Ledger, channel: str) -> list[Publication]:
    """Return a channel's current release and what a rollout brings it, as far as there are such."""
    current, under_way = ledger.current(channel), ledger.rollout(channel)
    found = [] if current is None else [current]
    if under_way is not None and under_way[1].open:
        found.append(under_way[0])
    return found


def garbage(ledger: Ledger, channels: Sequence[str], now_utc: float) -> list[tuple[Publication, list[str]]]:
    """Return older publications of these channels whose chunks no device needs any more, with those chunks."""
    found: list[tuple[Publication, list[str]]] = []
    current = {channel: ledger.current(channel) for channel in ledger.channels()}
    needed = {
        digest
        for channel in current
        for publication in in_use(ledger, channel)
        for digest in publication.release.digests()
    }
    for channel in channels:
        now_running = current.get(channel)
        if now_running is None:
            continue
        devices = [d for d in ledger.devices(channel) if d.last_seen_utc > now_utc - GONE_S]
        if any(d.state.release_id != now_running.ref.release_id for d in devices):
            needed.update(
                digest
                for publication in ledger.publications(channel, cleared=False)
                for digest in publication.release.digests()
            )
    for channel in channels:
        for publication in ledger.publications(channel, cleared=False):
            digests = [digest for digest in publication.release.digests() if digest not in needed]
            if digests:
                found.append((publication, digests))
    return found
