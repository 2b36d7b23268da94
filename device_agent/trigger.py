"""Triggers: one part stands before the cameras now. From the page's HTTP interface, over MQTT, or from a program.

With triggers a frame is taken for each part and no other is looked at. A trigger is never dropped silently: where
inspection cannot follow, its queue fills, which `depth` shows, and the next trigger is refused.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sdk.errors import NoRelease, RemoteWireError, TriggerRefused
from sdk.mqtt import Message, MqttSession, MqttSettings

_log = logging.getLogger(__name__)

MAX_PART_CHARS: Final = 150
"""A part id; with the device's it is a group, of at most 200."""
MAX_LOT_CHARS: Final = 64
"""A lot, batch or heat number."""


@dataclass(frozen=True, eq=False)
class Trigger:
    """A part that stands before the cameras. Two are never equal, not even of one part: each asks for a verdict.

    Attributes:
        part: Its id.
        at_utc: Seconds since 1970.
        at_s: Monotonic time.
        lot: The lot that it is of; empty where nobody said.
    """

    part: str
    at_utc: float
    at_s: float
    lot: str = ""


class Triggers:
    """Triggers that wait for their frames, for each camera in order.

    Args:
        cameras: How many take frames of each part.
        limit: Triggers that may wait.
        replayed: Cameras whose frames are of no time: each takes its triggers one by one, however old.
    """

    def __init__(self, cameras: int, limit: int, replayed: Collection[int] = ()) -> None:
        self._waiting: list[deque[Trigger]] = [deque() for _ in range(cameras)]
        self._passing = [waiting for i, waiting in enumerate(self._waiting) if i not in replayed]
        self._limit = limit
        self._changed = threading.Condition()
        self.fired = 0
        self.refused = 0

    @property
    def depth(self) -> int:
        """Triggers that the slowest camera has not taken yet."""
        return max(map(len, self._waiting))

    def let_go(self, after_s: float) -> None:
        """Let those wait no more that are not younger than this: their time is over, and their parts rejected."""
        with self._changed:
            for waiting in self._passing:
                while waiting and waiting[0].at_s <= after_s:
                    waiting.popleft()

    def fire(self, trigger: Trigger) -> None:
        """Ask every camera for this part.

        Raises:
            TriggerRefused: as many as may wait are waiting.
        """
        with self._changed:
            if self.depth >= self._limit:
                self.refused += 1
                raise TriggerRefused(
                    f"part {trigger.part!r} is rejected unseen: {self._limit} parts wait for their frames",
                    hint="Inspection is slower than the line, or a camera gives no frames: see the state.",
                )
            self.fired += 1
            for waiting in self._waiting:
                waiting.append(trigger)
            self._changed.notify_all()

    def take(self, camera: int, timeout_s: float = 0.0) -> Trigger | None:
        """Return the next part that this camera is asked for; None where there is none in time."""
        with self._changed:
            waiting = self._waiting[camera]
            if not waiting and timeout_s > 0:
                self._changed.wait(timeout_s)
            return waiting.popleft() if waiting else None

    def take_named(self, camera: int, part: str, after_s: float) -> Trigger | None:
        """Return the oldest trigger of this part that this camera is asked for; None where there is none.

        Those that are not younger than `after_s`, of any part, are given up.
        """
        self.let_go(after_s)
        with self._changed:
            waiting = self._waiting[camera]
            found = next((trigger for trigger in waiting if trigger.part == part), None)
            if found is not None:
                waiting.remove(found)
            return found


class PartLot(NamedTuple):
    """A part id and the lot that it is of; each empty where nobody said."""

    part: str
    lot: str


def part_of(payload: bytes) -> PartLot:
    """Return the part that a trigger's message names: plain text, or JSON with a member `part` and maybe `lot`.

    Raises:
        RemoteWireError: it is neither, or too long.

    >>> part_of(b"4711"), part_of(b'{"part": "4711", "lot": "B7", "shift": 2}').lot, part_of(b"").part
    (PartLot(part='4711', lot=''), 'B7', '')
    """
    try:
        text, lot = payload[: 64 * MAX_PART_CHARS].decode("utf-8").strip(), ""
        if text.startswith("{"):
            named = json.loads(text)
            text, lot = named["part"], named.get("lot", "")
        for each, longest in ((text, MAX_PART_CHARS), (lot, MAX_LOT_CHARS)):
            if not isinstance(each, str) or len(each) > longest or not each.isprintable():
                raise ValueError(f"a part id or lot is up to {longest} printable characters")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RemoteWireError(
            f"a trigger of {len(payload)} bytes names no part: {str(error)[:80]}",
            hint='Send the part id as text, or as JSON: {"part": "4711"}.',
        ) from error
    return PartLot(text, lot)


class MqttTrigger:
    """Fires for each message on a topic, for as long as it runs; a connection of its own, so that labels and
    releases hold no part up.

    What was sent while the connection was down is gone: that part has passed, and its station's own fail-safe has
    rejected it. Retained messages are refused for the same reason.

    Args:
        settings: The broker.
        device: This device's id.
        topic: Where the triggers come.
        fire: Takes the part.
    """

    def __init__(self, settings: MqttSettings, device: str, topic: str, fire: Callable[[PartLot], object]) -> None:
        self._topic, self._fire = topic, fire
        cert_file = settings.trigger_cert_file or settings.cert_file
        self._session = MqttSession(
            replace(settings, session_expiry_s=0, cert_file=cert_file),
            f"{device}-trigger",
            on_message=self._arrive,
        )
        self._session.subscribe([topic])
        self.refused = 0

    @property
    def connected(self) -> bool:
        """Whether triggers can come."""
        return self._session.connected

    def start(self) -> None:
        """Begin; returns at once."""
        self._session.start()

    def stop(self) -> None:
        """End the connection."""
        self._session.close()

    def _arrive(self, message: Message) -> None:
        try:
            if message.retained:
                raise RemoteWireError("a retained trigger is of the past", hint="Publish triggers without retain.")
            self._fire(part_of(message.payload))
        except (RemoteWireError, TriggerRefused, NoRelease) as error:
            self.refused += 1
            _log.warning("%s: %s (%s)", self._topic, error, error.hint)
