"""What the fleet's page shows, read from the fleet's directory: plain values, for templates and for JSON alike."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from sdk.errors import FleetError
from sdk.fleet.cli import fleet_overview
from sdk.fleet.cli_classes import classes_of
from sdk.fleet.cli_devices import (
    ago,
    builds,
    learned_words,
    release_words,
    troubles_of,
    wants_a_look,
    without_effect,
)
from sdk.fleet.cli_quarantine import suspicion_of
from sdk.fleet.cli_rollout import overview as rollout_overview
from sdk.fleet.store import FleetStore
from sdk.labels import Label
from sdk.wire import HeadState

RECENT: Final = 30
"""Labels whose way is shown."""
PAGE_ROWS: Final = 100
"""Devices shown at a time: more are slow to draw anew every three seconds, and nobody reads them."""
MOST_TEACHERS: Final = 10
"""Devices with a column of their own: so many fit beside each other."""
RELEASE: Final = "release"
"""Who labelled the samples that a release brings (docs/labels.md)."""


class FleetView:
    """Reads a fleet for its page.

    Args:
        store: The fleet's directory.
        clock: Seconds since 1970.
    """

    def __init__(self, store: FleetStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._made: dict[tuple[str, str], tuple[object, dict[str, Any]]] = {}  # what it rests on, and it
        self._making = {"classes": threading.Lock(), "suspects": threading.Lock()}

    def fleet(self) -> dict[str, Any]:
        """Return channels with their rollouts, and devices with what they say and what needs a look."""
        found = fleet_overview(self._store)
        for channel in found["channels"]:
            own = [device for device in found["devices"] if device["channel"] == channel["channel"]]
            channel["revoked"] = sum(device["revoked_utc"] is not None for device in own)
            channel["devices"] = len(own) - channel["revoked"]
            channel["online"] = sum(device["presence"] == "online" for device in own)
            channel["running"] = sum(
                device["release_id"] == channel["release_id"]
                for device in own
                if device["revoked_utc"] is None and not device["other_precision"]
            )
            channel["rollout"] = self._rollout(channel["channel"])
            channel["builds"] = builds(own)
            channel["without_effect"] = without_effect(channel)
        for device in found["devices"]:
            device["troubles"] = troubles_of(device)
            if device["head_state"] == HeadState.PROVISIONAL.value and device["revoked_utc"] is None:
                device["troubles"].append("its newest head is on trial")
            device["learned"] = learned_words(device)
            device["runs"] = release_words(device)
            device["ago"] = ago(self._clock() - device["last_seen_utc"])
        away = found["broker_away"]
        away_words = ""
        if away is not None:
            went = ago(self._clock() - away["since_utc"])
            away_words = f"The broker at {away['address']} went away {went}"
            if away["contested"]:
                away_words = f"Another fleet service came to the broker at {away['address']} {went}"
        if (refusal := found["refusal"]) is not None:
            refusal["ago"] = ago(self._clock() - refusal["since_utc"])
        return {**found, "away": away_words, "service": self._store.served(), "utc": self._clock()}

    def devices(self, find: str = "", only: str = "", page: int = 1) -> dict[str, Any]:
        """Return the fleet, and of each channel's devices one page of those that are looked for.

        Args:
            find: They have this in their names.
            only: `look` for those that are away, behind or in trouble.
            page: From 1 on; the last where there are less.
        """
        found = self.fleet()
        for channel in found["channels"]:
            own = [device for device in found["devices"] if device["channel"] == channel["channel"]]
            rows = [device for device in own if find in device["device"] and (not only or wants_a_look(device))]
            pages = max(1, -(-len(rows) // PAGE_ROWS))
            at = min(page, pages)
            channel["rows"] = rows[(at - 1) * PAGE_ROWS : at * PAGE_ROWS]
            channel["first"], channel["matching"] = (at - 1) * PAGE_ROWS + 1, len(rows)
            channel["page"], channel["pages"] = at, pages
            channel["wanting"] = sum(map(wants_a_look, own))
        large = any(channel["devices"] > PAGE_ROWS for channel in found["channels"])
        return {**found, "find": find, "only": only, "large": large or bool(find or only)}

    def classes(self, channel: str) -> dict[str, Any]:
        """Return a channel's classes, the pairs that may be one, and what was decided about them.

        Cost: a comparison of the labelled codes after each change of the union; else none.

        Raises:
            FleetError: there is no such channel, or it has no release.
        """
        return self._kept("classes", channel, classes_of)

    def suspects(self, channel: str) -> dict[str, Any]:
        """Return whose labels of a channel fit nobody else's, and who is quarantined.

        Cost: seconds after each change of the union; else none.

        Raises:
            FleetError: there is no such channel, or it has no release.
        """
        found = self._kept("suspects", channel, suspicion_of)
        holds = [{**hold, "ago": ago(self._clock() - hold["utc"])} for hold in found["quarantined"]]
        return {**found, "quarantined": holds}

    def _kept(self, what: str, channel: str, make: Callable[[FleetStore, str], dict[str, Any]]) -> dict[str, Any]:
        """Return what was made of a channel's union, made anew where it has changed: once for all who ask."""
        with self._making[what]:
            with self._store.read() as ledger:
                current = ledger.current(channel)
                rests_on = None if current is None else current.id, ledger.log_length(channel)
            known = self._made.get((what, channel))
            if known is None or known[0] != rests_on:
                known = rests_on, make(self._store, channel)
                self._made[what, channel] = known
            return known[1]

    def _rollout(self, channel: str) -> dict[str, Any] | None:
        try:
            return rollout_overview(self._store, channel)
        except FleetError:
            return None

    def rollout(self, channel: str) -> dict[str, Any]:
        """Return a channel's newest rollout, ready to be drawn.

        Raises:
            FleetError: there was none.
        """
        found = rollout_overview(self._store, channel)
        waves = []
        for number, wave in enumerate(found["waves"], 1):
            own = [device for device in found["devices"] if device["wave"] == number]
            waves.append(
                {
                    "number": number,
                    "reaches": wave,
                    "devices": len(own),
                    "runs_it": sum(device["runs_it"] for device in own),
                    "took": sum(device["runs_it"] and not device["trouble"] for device in own),
                    "failed": sum(bool(device["trouble"]) for device in own),
                    "now": number == found["wave"],
                }
            )
        return {**found, "wave_rows": waves}

    def learned(self, channel: str, *, most: int | None = None) -> dict[str, Any]:
        """Return who taught a channel what, and the way of its newest labels.

        Args:
            channel: Whose.
            most: Name so many devices, those that taught most, and the others together; all by default.

        Raises:
            FleetError: there is no such channel.
        """
        with self._store.read() as ledger:
            if channel not in ledger.channels():
                raise FleetError(f"there is no channel {channel}", hint="The fleet's page lists them.")
            devices = ledger.devices(channel)
            length = ledger.log_length(channel)
            records: list[tuple[int, Any]] = []
            position = max(1, length - 4 * RECENT)  # a label brings a code record, and sometimes a class
            while page := ledger.records(channel, position):
                records += list(enumerate(page, position))
                position += len(page)
        found = self._store.learned(channel)
        names = {} if found is None else found.names
        counts: Counter[tuple[bytes, str]] = Counter()
        if found is not None:
            counts.update(zip(found.live.class_ids, found.live.devices, strict=True))
        teachers = [RELEASE, *sorted({device for _, device in counts} - {RELEASE})]
        if most is not None and len(teachers) > most + 2:
            teachers, counts = _together(teachers, counts, most)
        classes = [
            {"name": name, "total": sum(row), "counts": row}
            for class_id, name in sorted(names.items(), key=lambda item: item[1])
            if (row := [counts[class_id, teacher] for teacher in teachers])
        ]
        labels = [
            {
                "position": position,
                "device": record.entry.device,
                "operator": record.entry.body.operator,
                "class": _name_of(record.entry.body, names, {} if found is None else found.live.merged),
                "utc": record.entry.wall_time_us / 1e6,
                "ago": ago(self._clock() - record.entry.wall_time_us / 1e6),
                "reached": sum(device.state.log_position >= position for device in devices),
            }
            for position, record in reversed(records)
            if isinstance(record.entry.body, Label)
        ]
        return {
            "channel": channel,
            "teachers": teachers,
            "classes": classes,
            "labels": labels[:RECENT],
            "alike": None if found is None else self.classes(channel),
            "devices": len(devices),
            "log_length": length,
            "live_set_digest": None if found is None else found.live.digest,
        }


def _together(
    teachers: list[str], counts: Counter[tuple[bytes, str]], most: int
) -> tuple[list[str], Counter[tuple[bytes, str]]]:
    """Return teachers and counts with those that taught least as one: nobody reads a thousand columns."""
    taught: Counter[str] = Counter()
    for (_, device), count in counts.items():
        taught[device] += count
    own = [teacher for teacher in teachers if teacher != RELEASE]
    named = sorted(sorted(own, key=lambda device: (-taught[device], device))[:most])
    others = f"{len(own) - most} others"
    joined: Counter[tuple[bytes, str]] = Counter()
    for (class_id, device), count in counts.items():
        joined[class_id, device if device == RELEASE or device in named else others] += count
    return [RELEASE, *named, others], joined


def _name_of(body: Label, names: dict[bytes, str], merged: Mapping[bytes, bytes]) -> str:
    if body.class_id is None:
        return "withdrawn"
    return names.get(merged.get(body.class_id, body.class_id), f"class {body.class_id.hex()[:6]}")
