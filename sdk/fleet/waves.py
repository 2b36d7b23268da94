"""The rollouts under way, step by step, and what the devices of their channels are told of it.

Whether a wave has done well is decided in `sdk.fleet.rollout`, and written down by the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdk.fleet.notices import Notices
from sdk.fleet.reports import Report
from sdk.fleet.rollout import CLOCK_STEP_S, Rollout
from sdk.fleet.seeding import Seeding
from sdk.fleet.store import FleetStore
from sdk.mqtt import Publication


class Waves:
    """Takes each channel's rollout further.

    Args:
        store: The fleet.
        seeding: Publishes a release's chunks before anybody is told to fetch it.
        notices: What devices are told.
        channels: Those that are served.
        report: Told what happened.
    """

    def __init__(
        self, store: FleetStore, seeding: Seeding, notices: Notices, channels: Sequence[str], report: Report
    ) -> None:
        self._store = store
        self._seeding = seeding
        self._notices = notices
        self._channels = tuple(channels)
        self._report = report
        self._acted_on: dict[str, tuple[int, int]] = {}  # channel -> its rollout and the version last acted on
        self._looked: tuple[float, float] | None = None  # what both clocks said last time

    def advance(self, now: float, now_utc: float) -> list[Publication]:
        """Take each channel's rollout a step further, and tell its devices where anything is new.

        What a person did with another process is news too: the version says so.

        Args:
            now: Seconds of a clock that never goes back.
            now_utc: Seconds since 1970. Where it was set since the last call, waves began and did well as long ago
                as before.
        """
        stepped_s = self._stepped_s(now, now_utc)
        under_way: list[str] = []
        with self._store.read() as ledger:
            for channel in self._channels:
                found = ledger.rollout(channel)
                if found is not None and (found[1].open or self._is_news(found[1], channel)):
                    under_way.append(channel)
        out: list[Publication] = []
        reports: list[dict[str, Any]] = []
        for channel in under_way:
            with self._store.write() as ledger:
                ledger.set_clock(channel, stepped_s, now_utc)
                ledger.advance(channel, now_utc)
                found = ledger.rollout(channel)
                assert found is not None
                publication, rollout = found
                if rollout.open and not publication.announced:
                    if not self._seeding.announces(publication):
                        self._seeding.announce(publication)
                    continue
                if not self._is_news(rollout, channel):
                    continue
                out += self._notices.notice(ledger, channel)
            # Committed. Should the broker not get it: notices go out again on every connect.
            self._acted_on[channel] = rollout.publication_id, rollout.version
            self._seeding.look_again()
            reports.append(
                {
                    "channel": channel,
                    "name": publication.ref.name,
                    "state": rollout.state.value,
                    "wave": f"{rollout.wave} of {len(rollout.plan.waves)}",
                    "reason": rollout.reason,
                }
            )
        for more in reports:
            self._report("rollout", more)
        return out

    def _stepped_s(self, now: float, now_utc: float) -> float:
        """Return how far the clock was set since the last call; 0 at first, and for less than `CLOCK_STEP_S`."""
        then, self._looked = self._looked, (now, now_utc)
        if then is None:
            return 0.0
        stepped_s = (now_utc - then[1]) - (now - then[0])
        if abs(stepped_s) < CLOCK_STEP_S:
            return 0.0
        self._report("clock", {"stepped_s": round(stepped_s)})
        return stepped_s

    def _is_news(self, rollout: Rollout, channel: str) -> bool:
        return self._acted_on.get(channel) != (rollout.publication_id, rollout.version)
