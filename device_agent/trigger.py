"""Triggers: one part stands before the cameras now. From the page's HTTP interface, over MQTT, or from a program.

With triggers a frame is taken for each part and no other is looked at. A trigger is never dropped silently: where
inspection cannot follow, its queue fills, which `depth` shows, and the next trigger is refused. One that cannot be
read, or is refused, stands for a part all the same, which is rejected.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sdk.errors import NoRelease, RemoteWireError, TriggerRefused
from sdk.mqtt import Message, MqttSession, MqttSettings
from sdk.shown import shown

_log = logging.getLogger(__name__)

MAX_PART_CHARS: Final = 150
"""A part id; with the device's it is a group, of at most 200."""
MAX_LOT_CHARS: Final = 64
"""A lot, batch or heat number."""
DOWN_S: Final = 2.0
"""So long a connection may be lost before it is a fault: a broker that is restarted takes less."""
UNREADABLE_S: Final = 180.0
"""A trigger that could not be read is told of for so long, as a picture is (`device_agent.report`)."""


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


def as_text(said: object) -> object:
    """Return a part id or lot as text where JSON says it as a whole number, or as null: nobody said.

    >>> as_text(4711), as_text(None), as_text("B7"), as_text(1.5)
    ('4711', '', 'B7', 1.5)
    """
    if said is None:
        return ""
    return str(said) if isinstance(said, int) and not isinstance(said, bool) else said


def part_of(payload: bytes) -> PartLot:
    """Return the part that a trigger's message names: plain text, or JSON with members `part` and `lot`.

    Both may be numbers and both may be missing; other members are passed over where there is a `part`.

    Raises:
        RemoteWireError: it is neither, or too long.

    >>> part_of(b"4711"), part_of(b'{"part": 4711, "lot": "B7", "shift": 2}'), part_of(b"").part
    (PartLot(part='4711', lot=''), PartLot(part='4711', lot='B7'), '')
    """
    try:
        said: list[object] = [payload[: 64 * MAX_PART_CHARS].decode("utf-8").strip(), ""]
        named = _json(str(said[0]))
        if named is not None:
            if not isinstance(named, dict):
                raise ValueError("it is a JSON array")
            if "part" not in named and (strange := sorted(named.keys() - {"lot"})):
                raise ValueError(f"it has no part, but {', '.join(strange)}")
            said = [as_text(named.get("part")), as_text(named.get("lot"))]
        part, lot = (_checked(*each) for each in zip(said, (MAX_PART_CHARS, MAX_LOT_CHARS), strict=True))
    except (ValueError, RecursionError) as error:
        raise RemoteWireError(
            f"a trigger of {len(payload)} bytes names no part: {shown(str(error))[:80]}",
            hint='Send the part id as text, or as JSON: {"part": "4711"}.',
        ) from error
    return PartLot(part, lot)


def _json(text: str) -> object | None:
    """Return the object or array that a text is; None where it is plain text, which a bracket may begin."""
    if not text.startswith(("{", "[")):
        return None
    try:
        named: object = json.loads(text)
    except ValueError:
        if text.startswith("{"):
            raise
        return None
    return named


def _checked(said: object, longest: int) -> str:
    if not isinstance(said, str) or len(said) > longest or not said.isprintable():
        raise ValueError(f"a part id or lot is up to {longest} printable characters")
    return said


def trigger_session(
    settings: MqttSettings, device: str, topic: str, on_message: Callable[[Message], None]
) -> MqttSession:
    """Return the connection that brings a device's triggers, not started yet."""
    session = MqttSession(
        replace(settings, session_expiry_s=0, cert_file=settings.trigger_cert_file or settings.cert_file),
        f"{device}-trigger",
        on_message=on_message,
    )
    session.subscribe([topic], live=True)
    return session


class MqttTrigger:
    """Fires for each message on a topic, for as long as it runs; a connection of its own, so that labels and
    releases hold no part up.

    What was sent while the connection was down is gone: that part has passed, and its station's own fail-safe has
    rejected it. What the broker has retained is not fetched for the same reason, and an empty message that clears
    it is no trigger.

    Args:
        settings: The broker.
        device: This device's id.
        topic: Where the triggers come.
        fire: Takes the part.
        refuse: Takes why a part is rejected that a message does not name.
    """

    def __init__(
        self,
        settings: MqttSettings,
        device: str,
        topic: str,
        fire: Callable[[PartLot], object],
        refuse: Callable[[str], object],
    ) -> None:
        self.topic, self._fire, self._refuse = topic, fire, refuse
        self._session = trigger_session(settings, device, topic, self._arrive)
        self._unreadable, self._unreadable_s = "", -UNREADABLE_S

    @property
    def connected(self) -> bool:
        """Whether triggers can come: the broker is there and lets this device hear the topic."""
        return self._session.hears

    @property
    def deaf(self) -> str | None:
        """Why no trigger can come, in words; None where one can, or a connection has only just been lost."""
        why = self._session.trouble
        if why is None and self._session.deaf is not None:
            why = f"the broker does not let this device hear {self.topic} ({self._session.deaf})"
        if why is None and self._session.down_s > DOWN_S:
            why = f"no connection to the broker at {self._session.settings.address}"
        return None if why is None else f"no trigger can come over MQTT: {why}"

    @property
    def fault(self) -> str | None:
        """What is wrong with the triggers that come, or why none can; None where nothing is."""
        if (deaf := self.deaf) is not None:
            return deaf
        if time.monotonic() - self._unreadable_s < UNREADABLE_S:
            return f"a trigger could not be read, so a part was rejected: {self._unreadable}"
        return None

    def start(self) -> None:
        """Begin; returns at once."""
        self._session.start()

    def stop(self) -> None:
        """End the connection."""
        self._session.close()

    def _arrive(self, message: Message) -> None:
        if message.retained and not message.payload:
            return
        try:
            try:
                named = part_of(message.payload)
            except RemoteWireError as error:
                self._unreadable, self._unreadable_s = str(error), time.monotonic()
                self._refuse(self._unreadable)
                raise
            self._fire(named)
        except (RemoteWireError, TriggerRefused, NoRelease) as error:
            _log.warning("%s: %s (%s)", self.topic, error, error.hint)
