"""The fleet service's rim: the MQTT session, one queue, one thread that takes turns.

What a turn does stands in `sdk.fleet.core`: labels are committed, acknowledged and shared, releases announced.

Rules this module keeps (docs/protocol.md):

- A database that is away is waited for. What was remembered may be ahead of a transaction that was taken back, so
  the core begins anew then, with the messages of the turn that failed.
- What leaves for the broker is paced, so that acknowledgements never wait behind a release. What finds no room is
  sent when there is some, in its order; nothing of it is left out while the connection stands.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from sdk.errors import BrokerError, DatabaseAway, FleetError
from sdk.fleet.core import BUSY_TURN_S, FleetCore
from sdk.fleet.enrolment import Enrolled
from sdk.fleet.hearing import NAMESAKE, Hearing
from sdk.fleet.reports import Report
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message, MqttSession, MqttSettings, Publication
from sdk.trust.repository import OnlineTrust
from sdk.wire import Topics

PACE_BYTES: Final = 4 * 1024 * 1024
"""Bulk (chunks, log pages) waits while more than this is on its way to the broker."""
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
"""What may wait for room on the way to the broker: the assignments of 80,000 devices. The session itself takes
4,096 messages at once."""
IDLE_S: Final = 0.25
"""The longest the service sleeps, so that it sees a request to stop."""
SETTLED_S: Final = 60.0
"""A service that was heard for so long does not leave the broker to another of its name: the other came later."""
STAY_EVERY_S: Final = 1.0
"""A database's server that was started anew has let go of the one service's lock, maybe without failing a turn."""
DATABASE_AGAIN_S: Final = 1.0
MAX_TRIES: Final = 10
"""A turn that fails so often at a database that answers is given up: its messages come again by their senders'
timers, and may be what it fails at."""
MAX_TURN_MESSAGES: Final = 256
MAX_QUEUED_MESSAGES: Final = 1024

log = logging.getLogger(__name__)


def session_name(prefix: str, channels: Sequence[str]) -> str:
    """Return what the session of the service of these channels is called at the broker."""
    return ".".join(["headway-fleet", *prefix.split("/"), *sorted(channels)])


class FleetService:
    """Serves a fleet's directory over a broker until told to stop.

    Args:
        store: The fleet's directory.
        settings: The broker.
        channels: The channels it serves.
        report: Told what happened, on the serving thread.
        trust: Signs with the fleet's online key; None where the fleet has no keys.
    """

    def __init__(
        self,
        store: FleetStore,
        settings: MqttSettings,
        channels: Sequence[str] = ("default",),
        report: Report = lambda _kind, _more: None,
        trust: OnlineTrust | None = None,
    ) -> None:
        self._store = store
        self._report = report
        self.every_turn: Callable[[float], None] = lambda _utc: None
        """Called with the time at each turn: for what is looked at now and then."""
        topics, enrolled = Topics(settings.prefix), Enrolled(store.directory)
        self._new_core = functools.partial(FleetCore, store, topics, channels, report, trust, enrolled)
        self._core = self._new_core()
        self._turn: list[Message] = []  # what the turn under way is about
        self._tries = 0
        self._fault: str | None = None  # of the database, complained about once
        self._hearing = Hearing(store, settings.address, report)
        self._arrivals: queue.Queue[Message | None] = queue.Queue(MAX_QUEUED_MESSAGES)
        self._connects: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting: deque[Publication] = deque()  # for room on the way to the broker
        self._waiting_bytes = 0
        self._session = MqttSession(
            settings,
            session_name(settings.prefix, channels),
            on_message=self._arrive,
            on_connect=self._connected,
            namesake=NAMESAKE,
            yields_within_s=SETTLED_S,
        )
        self._session.subscribe(self._core.subscriptions())

    @property
    def queued(self) -> int:
        """How many messages wait for the next turn."""
        return self._arrivals.qsize()

    @property
    def hears_broker(self) -> bool:
        """Whether the broker is there, and this service's alone."""
        return self._session.connected and not self._session.contested

    def run(
        self,
        stop: threading.Event,
        *,
        connect_timeout_s: float = 5.0,
        database_again_s: float = DATABASE_AGAIN_S,
    ) -> None:
        """Serve until `stop` is set; a broker or database that goes away later is waited for.

        Args:
            stop: Ends it.
            connect_timeout_s: How long the broker may take at the start.
            database_again_s: How long to wait before a database that failed is asked again.

        Raises:
            BrokerError: there is none at the start.
            FleetError: another service holds the directory, or was at the broker before this one under its name,
                or the database is away at the start, or damaged.
        """
        with self._store.serving() as stay:
            self._session.connect(connect_timeout_s)
            self._report("ready", {"broker": self._session.settings.address})
            stay_due = 0.0
            try:
                while not stop.is_set():
                    if self._session.gave_way:
                        raise FleetError(
                            f"the broker at {self._session.settings.address} ends every session of this service "
                            f"at once: most likely {NAMESAKE}, and was there before",
                            hint="One service serves a fleet, and two take each other's labels: let the other one "
                            "go on, or stop it and start this one. Is this directory a copy of the fleet's?",
                        )
                    try:
                        if time.monotonic() >= stay_due:
                            stay()
                            stay_due = time.monotonic() + STAY_EVERY_S
                        self._take_turn()
                    except DatabaseAway as error:
                        self._wait_for_database(error, stay, stop, database_again_s)
            finally:
                self._session.close()

    def _wait_for_database(
        self, error: DatabaseAway, stay: Callable[[], None], stop: threading.Event, again_s: float
    ) -> None:
        """Return when the database answers and this is the one service again, with a core that begins anew."""
        if str(error) != self._fault:
            self._fault = str(error)
            self._report("database", {"error": str(error), "hint": error.hint})
        while not stop.wait(again_s):
            try:
                stay()
                core = self._new_core()
                # As after the broker's coming back: what the failed turn was about to say is said, or asked for.
                out = core.broker_connected(remembered=True) if self._session.connected else []
            except DatabaseAway:
                continue
            self._core = core
            self._send(out)
            self._tries += 1
            if self._tries >= MAX_TRIES:
                self._turn, self._tries = [], 0
            return

    def _connected(self, remembered: bool) -> None:
        self._connects.put(remembered)
        with contextlib.suppress(queue.Full):
            self._arrivals.put_nowait(None)  # wakes the serving thread

    def _arrive(self, message: Message) -> None:
        # Called on the network thread. Waiting here stops reading from the broker, which then queues for us: the
        # brake when the disk is slow. Beyond that messages are dropped, and come again by their senders' timers.
        try:
            self._arrivals.put(message, timeout=5.0)
        except queue.Full:
            log.warning("the service cannot keep up; a message was dropped")

    def _take_turn(self) -> None:
        self.every_turn(time.time())
        self._hearing.look(connected=self._session.connected, contested=self._session.contested)
        idle_s = self._core.idle_s(time.monotonic()) if self._session.connected else IDLE_S
        idle_s = BUSY_TURN_S if self._waiting else idle_s
        self._turn = self._turn or list(self._next_messages(min(IDLE_S, idle_s)))
        with contextlib.suppress(queue.Empty):
            while True:
                remembered = self._connects.get_nowait()
                self._report("connected", {"remembered": remembered})
                self._drop_waiting()  # all of it is said again, as it is now
                try:
                    self._send(self._core.broker_connected(remembered=remembered))
                except DatabaseAway:
                    self._connects.put(remembered)
                    raise
        self._send(())
        free = self._session.connected and not self._waiting
        room_bytes = PACE_BYTES - self._session.pending_bytes if free else 0
        now, now_utc = time.monotonic(), time.time()
        self._send(self._core.turn(self._turn, now=now, now_utc=now_utc, room_bytes=max(0, room_bytes)))
        self._turn, self._tries = [], 0
        if self._fault is not None:
            self._fault = None
            self._report("database", {"state": "answers again"})

    def _next_messages(self, patience_s: float) -> Iterator[Message]:
        with contextlib.suppress(queue.Empty):
            item = self._arrivals.get(timeout=patience_s)
            for left in reversed(range(MAX_TURN_MESSAGES)):
                if item is not None:
                    yield item
                if left:
                    item = self._arrivals.get_nowait()

    def _send(self, publications: Sequence[Publication]) -> None:
        """Hand these over after what waits already; what finds no room waits until there is some."""
        for publication in publications:
            if self._waiting_bytes > MAX_WAITING_BYTES:
                # Not lost for good: retained messages go out again on the next connect, and for all others there
                # is a device with a timer.
                log.warning("not sent to %s: too much is waiting for the broker", publication.topic)
                break
            self._waiting.append(publication)
            self._waiting_bytes += len(publication.payload)
        while self._waiting:
            try:
                self._session.send(self._waiting[0])
            except BrokerError as error:
                if not self._session.connected:
                    log.warning("not sent to %s and others: %s", self._waiting[0].topic, error)
                    self._drop_waiting()
                return
            self._waiting_bytes -= len(self._waiting.popleft().payload)

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
