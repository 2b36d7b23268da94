"""Labels up, the fleet's labels down, over MQTT: what moves between the store and the wire.

`SyncCore` decides what to send, turn by turn, from the store and what arrived; it neither waits nor asks the
time. `Sync` is the rim: the MQTT session, one queue, one thread.

Rules this module keeps (docs/protocol.md):

- An entry leaves the outbox when the fleet's own commit is acknowledged, never when the broker has it. What is not
  acknowledged is sent again, by a timer that grows while nothing comes back.
- A fleet that came back from an older copy acknowledges less than it did, and is offered again what it lacks.
  Positions of the union that mean something else now are read again.
- The union of logs is read in order of position. What is known is skipped; after a gap, a connect or a long
  silence the device asks from where its copy ends.
- What arrives is stored before anybody is told of it.
- No broker is weather, not an error: nothing here ever keeps the line waiting.

Releases are `update`'s, with a connection of their own.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from device_agent.store import Store
from sdk.errors import BrokerError, HeadwayError, LabelError, RemoteWireError, StoreFull
from sdk.labels import Record
from sdk.mqtt import Message, MqttSession, MqttSettings, Publication, Traffic
from sdk.wire import (
    WIRE_VERSION,
    Ack,
    ChannelMeta,
    Desired,
    DeviceState,
    LabelBatch,
    LogSegment,
    Result,
    Topics,
    UpdateEvent,
    Want,
    batches,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
    last_will,
)

MAX_QUEUED_MESSAGES: Final = 1024
"""Messages waiting for the store; more are dropped and come again by a timer."""

IDLE_S: Final = 1.0
"""The longest the thread sleeps, so that it sees a lost connection."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncLimits:
    """Timers and windows.

    Attributes:
        window_records: Own records on their way without an acknowledgement.
        resend_s: They are sent again after this long without one.
        resend_max_s: That grows up to this.
        again_records: Own records on their way that the fleet has acknowledged and lost: all devices send at once.
        again_spread_s: And each begins at its own moment of so many seconds.
        ask_every_s: The union's end is asked for after this much silence.
        ask_gap_s: It is asked for no more often than this.
        state_every_s: The device's state is published no more often than this.
        state_refresh_s: It is looked at again after this long, for what changes with every frame.
        event_again_s: Where an update stands is told again after this long, since nobody acknowledges that.
        event_again_max_s: That doubles up to this.
    """

    window_records: int = 1024
    resend_s: float = 5.0
    resend_max_s: float = 60.0
    again_records: int = 64
    again_spread_s: float = 60.0
    ask_every_s: float = 30.0
    ask_gap_s: float = 2.0
    state_every_s: float = 1.0
    state_refresh_s: float = 60.0
    event_again_s: float = 60.0
    event_again_max_s: float = 3600.0


@dataclass(frozen=True)
class SyncStatus:
    """How the device stands with its fleet.

    Attributes:
        connected: Whether the broker is there.
        outbox: Own entries the fleet has not committed yet.
        log_position: How much of the union is here.
        fault: What keeps entries from moving, in words for the page; None if nothing does.
    """

    connected: bool
    outbox: int
    log_position: int
    fault: str | None


class SyncCore:
    """Decides what to say to the fleet. Time is any clock that never goes back, in seconds.

    Args:
        topics: Names of topics.
        store: Outbox, inbox, position.
        channel: Whose union this device reads.
        on_records: Told of records from the fleet, after they were stored.
        on_desired: Told of the assignment, each time it comes.
        on_trust: Given the fleet's signed metadata, each time it comes.
        check_signed: Raises `RemoteWireError` for labels and acknowledgements that the fleet has not signed.
        state: What the device is doing now.
        limits: Timers and windows.
        run: Which start of the agent this is: goes with every state.
    """

    def __init__(
        self,
        topics: Topics,
        store: Store,
        channel: str,
        *,
        on_records: Callable[[list[Record]], None],
        on_desired: Callable[[Desired], None],
        state: Callable[[], DeviceState],
        on_trust: Callable[[bytes], None] = lambda _payload: None,
        check_signed: Callable[[LogSegment | Ack], None] = lambda _message: None,
        limits: SyncLimits | None = None,
        run: str = "",
    ) -> None:
        self._topics = topics
        self._store = store
        self._channel = channel
        self._on_records = on_records
        self._on_desired = on_desired
        self._on_trust = on_trust
        self._check_signed = check_signed
        self._state = state
        self._limits = limits or SyncLimits()
        self._run = run
        self._online = False
        self._sent_through = 0
        self._resend_due = 0.0
        self._waits = 0  # resends without an acknowledgement
        self._told = store.log.acknowledged()  # by the last acknowledgement
        self._lacks_from: int | None = None  # the fleet lacks own entries after this that it has acknowledged
        self._again_due = 0.0
        self._offers_again = False
        self._turn = zlib.crc32(store.device.encode()) / 2**32
        self._refused: str | None = None
        self._ask_due = 0.0
        self._asked_at = float("-inf")
        self._length = 0  # of the union, as last heard of
        self._heard = False  # so in this connection
        self._unreadable = False  # what comes next in the union was refused
        self._state_sent: DeviceState | None = None
        self._state_due = 0.0
        self._state_wanted = True
        self._state_again = 0.0
        self._log_fault: str | None = None
        self._event: UpdateEvent | None = None  # the last that was told, by whichever thread
        self._event_timed: UpdateEvent | None = None  # and the one that these are of
        self._event_due = 0.0
        self._event_again_s = 0.0

    def subscriptions(self) -> list[str]:
        """Return the topics to listen to."""
        t, device = self._topics, self._store.device
        down = [t.ack(device), t.down_log(device), t.desired(device)]
        return [*down, t.trust(), t.log(self._channel), t.meta(self._channel)]

    def farewell(self) -> Publication:
        """Return the state to leave at the broker when the connection ends, or is lost."""
        state = last_will(self._store.device, self._channel, self._run)
        return Publication(self._topics.state(self._store.device), encode_json(state), retain=True)

    def state(self) -> DeviceState:
        """Return what the device is doing now, as it is published."""
        return msgspec.structs.replace(self._state(), run=self._run)

    @property
    def fault(self) -> str | None:
        """What keeps entries from moving; None if nothing does."""
        held = self._store.log
        if held.lacking():
            lacks = f"the fleet holds {held.unconfirmed()} entries of this device, its store only {held.length()}"
            return f"{lacks}: {self._log_fault}" if self._log_fault else lacks
        return self._refused or self._log_fault

    def caught_up(self) -> bool | None:
        """Return whether the store has all of the union that is known of.

        None where that may have grown unheard: without a connection, and until it has told the length.

        What comes next may be refused, as an entry that contradicts one held is: then it has all that it can have.
        """
        if self._store.log.position(self._channel) < self._length and not self._unreadable:
            return False
        return True if self._heard else None

    def connected(self, now: float) -> None:
        """The session is up, and our topics are subscribed."""
        self._online = True
        self._heard = False
        self._sent_through = self._store.log.acknowledged()
        self._lacks_from, self._offers_again = None, False
        self._waits = 0
        self._ask_due = now
        self._asked_at = float("-inf")
        self._state_sent = None
        self.state_changed()
        self._state_due = now

    def disconnected(self) -> None:
        """The session is down: timers rest, labels wait on disk."""
        self._online = self._heard = False

    def state_changed(self) -> None:
        """The device's state may be another now."""
        self._state_wanted = True

    def event_told(self, event: UpdateEvent) -> None:
        """This was published of an update: it is due again now and then, until there is news of one."""
        self._event = event

    def receive(self, message: Message, now: float) -> None:
        """Take in what arrived.

        Raises:
            RemoteWireError: it is not what belongs on its topic.
        """
        t, device = self._topics, self._store.device
        kept = message.topic in {t.desired(device), t.meta(self._channel), t.trust()}
        if not message.payload and kept:
            return  # an assignment or announcement was taken off the broker
        if message.retained and not kept:
            raise RemoteWireError(f"a retained message on {message.topic}", hint="Somebody else publishes there.")
        if message.topic == t.ack(device):
            ack = decode_json(message.payload, Ack)
            self._check_signed(ack)
            self._take_ack(ack, now)
        elif message.topic in {t.log(self._channel), t.down_log(device)}:
            self._take_segment(decode_msgpack(message.payload, LogSegment), now)
        elif message.topic == t.meta(self._channel):
            self._take_meta(decode_json(message.payload, ChannelMeta), now)
        elif message.topic == t.trust():
            self._on_trust(message.payload)
            self.state_changed()
        elif message.topic == t.desired(device):
            self._on_desired(decode_json(message.payload, Desired))
            self.state_changed()

    def _take_meta(self, meta: ChannelMeta, now: float) -> None:
        self._length, self._heard = meta.log_length, True
        if not isinstance(meta.restored, msgspec.UnsetType):
            log, since = self._store.log, {one.id: one.since for one in meta.restored}
            try:
                if log.union_restored(self._channel, since) and log.acknowledged() and self._lacks_from is None:
                    # Does the fleet still have the last of our entries? Its answer says from where on it does not.
                    self._offer_again(log.acknowledged() - 1, now)
            except StoreFull as error:
                self._log_fault = str(error)
                return
        self._ask_if_behind(now)

    def _offer_again(self, after: int, now: float) -> None:
        """Send own entries after this one again, though they were acknowledged: each device at its own moment."""
        if self._lacks_from is None:
            self._again_due = now + self._limits.resend_s + self._turn * self._limits.again_spread_s
        self._lacks_from = after

    def _take_ack(self, ack: Ack, now: float) -> None:
        if not self._store.log.heard(ack.through):
            # A replaced device: the union brings its earlier entries, and the store takes them in.
            self._ask_soon(now, 0.0)
            return
        if ack.through >= self._store.log.acknowledged():
            self._lacks_from, self._offers_again = None, False
        else:
            # It has acknowledged more before. Either this comes late, and a later one follows or has come. Or the
            # fleet came back from an older copy.
            self._offer_again(ack.through, now)
        if ack.refused is not None:
            self._refused = f"the fleet refuses entry {ack.refused.seq}: {ack.refused.reason}"
            self._resend_due = now + self._limits.resend_max_s
        else:
            self._refused = None
        further, self._told = ack.through > self._told, ack.through
        if further:
            self._waits = 0
            if ack.refused is None:
                self._resend_due = now + self._limits.resend_s
        self.state_changed()

    def _take_segment(self, segment: LogSegment, now: float) -> None:
        if segment.channel != self._channel:
            raise RemoteWireError(
                f"a log segment of channel {segment.channel}", hint=f"This device reads {self._channel}."
            )
        self._check_signed(segment)
        position = self._store.log.position(self._channel)
        last = segment.first + len(segment.records) - 1
        self._length = max(self._length, last)
        if segment.first > position + 1:
            self._ask_soon(now, 0.0)
            return
        fresh = segment.records[position + 1 - segment.first :]
        if not fresh:
            return
        try:
            new = self._store.log.receive(fresh, last, self._channel)
        except (LabelError, StoreFull) as error:
            self._log_fault, self._unreadable = str(error), isinstance(error, LabelError)
            return
        self._log_fault, self._unreadable = None, False
        self._ask_due = now + self._limits.ask_every_s
        self._ask_if_behind(now)
        self.state_changed()
        if new:
            self._on_records(new)

    def _ask_if_behind(self, now: float) -> None:
        # What is missing is most likely on its way: give it time.
        if self._length > self._store.log.position(self._channel):
            self._ask_soon(now, self._limits.ask_gap_s)

    def _ask_soon(self, now: float, delay_s: float) -> None:
        due = max(now + delay_s, self._asked_at + self._limits.ask_gap_s)
        self._ask_due = min(self._ask_due, due)

    def poll(self, now: float) -> list[Publication]:
        """Return what to publish now. Call it after every change and whenever `wake_at` has come."""
        if not self._online:
            return []
        device = self._store.device
        out: list[Publication] = []
        try:
            if again := self._store.log.write_again():
                self._on_records(again)
        except StoreFull as error:
            self._log_fault = str(error)
        if now >= self._state_again:
            self._state_wanted = True
        if self._state_wanted and now >= self._state_due:
            self._state_wanted = False
            self._state_due = now + self._limits.state_every_s
            self._state_again = now + self._limits.state_refresh_s
            state = self.state()
            if state != self._state_sent:
                self._state_sent = state
                out.append(Publication(self._topics.state(device), encode_json(state), retain=True))
        for batch in batches(self._to_send(now)):
            payload = encode_msgpack(LabelBatch(WIRE_VERSION, batch))
            out.append(Publication(self._topics.up_label(device), payload))
        if now >= self._ask_due:
            self._asked_at = now
            self._ask_due = now + self._limits.ask_every_s
            want = Want(channel=self._channel, log_from=self._store.log.position(self._channel) + 1)
            out.append(Publication(self._topics.up_want(device), encode_json(want)))
        return out

    def event_due(self, now: float) -> bool:
        """Return whether where an update stands should be told once more now; true once each time."""
        event = self._event
        if not self._online or event is None:
            return False
        news = event != self._event_timed
        if not news and now < self._event_due:
            return False
        self._event_timed = event
        self._event_again_s = (
            self._limits.event_again_s if news else min(2 * self._event_again_s, self._limits.event_again_max_s)
        )
        self._event_due = now + self._event_again_s
        return not news

    def _to_send(self, now: float) -> list[Record]:
        limits, acknowledged = self._limits, self._store.log.acknowledged()
        window = limits.window_records
        if self._store.log.unconfirmed():
            return []  # what we wrote without our earlier entries contradicts them
        if self._lacks_from is not None and now >= self._again_due:
            acknowledged, window = self._lacks_from, limits.again_records
            if not self._offers_again:
                self._offers_again, self._sent_through = True, acknowledged
        waiting = self._sent_through > acknowledged
        if (waiting or self._refused is not None) and now >= self._resend_due:
            self._sent_through = acknowledged
            self._waits += 1
        elif self._refused is not None:
            return []
        self._sent_through = max(self._sent_through, acknowledged)
        room = window - (self._sent_through - acknowledged)
        records = self._store.log.outbox(max(0, room), after=self._sent_through)
        if records:
            self._sent_through = records[-1].entry.seq
            patience_s = limits.resend_s * 2 ** min(self._waits, 16)
            least_s = limits.resend_max_s if self._refused is not None else 0.0
            self._resend_due = now + max(least_s, min(limits.resend_max_s, patience_s))
        return records

    def wake_at(self) -> float | None:
        """Return when `poll` has something to do again if nothing happens; None for never."""
        if not self._online:
            return None
        due = [self._ask_due, self._state_again]
        if self._state_wanted:
            due.append(self._state_due)
        held = self._store.log
        if self._lacks_from is not None:
            due.append(self._resend_due if self._offers_again else self._again_due)
        if held.outbox_depth() and not held.unconfirmed():  # else `_to_send` sends nothing
            due.append(self._resend_due)
        if self._event_timed is not None:
            due.append(self._event_due)
        return min(due)


class Sync:
    """Keeps a device and its fleet together, in the background, for as long as it runs.

    Args:
        settings: The broker.
        store: Outbox, inbox, position; it knows the device's id.
        channel: Whose union this device reads.
        on_records: Told of records from the fleet, after they were stored.
        on_desired: Told of the assignment, each time it comes; it should hand over and return.
        on_trust: Given the fleet's signed metadata, each time it comes.
        check_signed: Raises `RemoteWireError` for labels and acknowledgements that the fleet has not signed.
        state: What the device is doing now.
        on_online: Called on each connect, and now and then after an event, so that others can say again what the
            broker may have lost.
        limits: Timers and windows.
    """

    def __init__(
        self,
        settings: MqttSettings,
        store: Store,
        channel: str,
        *,
        on_records: Callable[[list[Record]], None],
        on_desired: Callable[[Desired], None],
        state: Callable[[], DeviceState],
        on_online: Callable[[], None] | None = None,
        on_trust: Callable[[bytes], None] = lambda _payload: None,
        check_signed: Callable[[LogSegment | Ack], None] = lambda _message: None,
        limits: SyncLimits | None = None,
    ) -> None:
        self._topics = Topics(settings.prefix)
        self._store = store
        self._channel = channel
        self._on_online = on_online or (lambda: None)
        self._core = SyncCore(
            self._topics,
            store,
            channel,
            on_records=on_records,
            on_desired=on_desired,
            state=state,
            on_trust=on_trust,
            check_signed=check_signed,
            limits=limits,
            run=secrets.token_hex(8),
        )
        self._arrivals: queue.Queue[Message | None] = queue.Queue(MAX_QUEUED_MESSAGES)
        self._stopping = threading.Event()
        self._came_online = threading.Event()
        self._poked = threading.Event()  # there is a None in the queue: one is enough
        self._fault: str | None = None
        self._session = MqttSession(
            settings,
            store.device,
            on_message=self._arrive,
            on_connect=self._connected,
            last_will=self._core.farewell(),
        )
        self._session.subscribe(self._core.subscriptions())
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)

    def start(self) -> None:
        """Begin; returns at once, whether or not there is a broker."""
        self._session.start()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Say goodbye and end the thread."""
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._session.connected:
            with contextlib.suppress(BrokerError):
                farewell = msgspec.structs.replace(self._core.state(), online=False)
                self._session.publish(self._topics.state(self._store.device), encode_json(farewell), retain=True)
        self._session.close()

    def notify_outbox(self) -> None:
        """Labels were stored: send them."""
        self._core.state_changed()
        self._wake()

    def notify_state(self) -> None:
        """The device's state has changed: publish it."""
        self._core.state_changed()
        self._wake()

    def publish_result(self, result: Result) -> None:
        """Publish a decision; dropped while there is no broker."""
        self._publish(self._topics.up_result(self._store.device), encode_json(result), qos=0)

    def publish_event(self, event: UpdateEvent) -> None:
        """Publish where an update stands; it waits in memory while there is no broker."""
        self._publish(self._topics.up_event(self._store.device), encode_json(event), qos=1)
        self._core.event_told(event)

    def _publish(self, topic: str, payload: bytes, qos: int) -> None:
        if qos == 0 and not self._session.connected:
            return
        try:
            self._session.publish(topic, payload, qos=qos)
        except BrokerError as error:
            log.debug("not sent to %s: %s", topic, error)

    def traffic(self) -> Traffic:
        """Return the bytes this connection has moved; `release_bytes` and `head_bytes` tell what for."""
        return self._session.traffic()

    def status(self) -> SyncStatus:
        """Return how the device stands with its fleet."""
        return SyncStatus(
            connected=self._session.connected,
            outbox=self._store.log.outbox_depth(),
            log_position=self._store.log.position(self._channel),
            fault=self._core.fault or self._fault or self._refused() or self._session.trouble,
        )

    def caught_up(self) -> bool | None:
        """Return what `SyncCore.caught_up` does; any thread may ask."""
        return self._core.caught_up()

    def _refused(self) -> str | None:
        """A connection that is open and takes nothing, as of a device that was revoked meanwhile, looks well."""
        if not self._session.connected:
            return None
        if (deaf := self._session.deaf) is not None:
            return (
                f"the broker does not let this device hear all its topics ({deaf}): what is missing of labels and "
                "releases does not come; correct the broker's access list"
            )
        if (reason := self._session.refusal) is None:
            return None
        return (
            f"the broker takes nothing from this device ({reason}): it was revoked, or the broker's access list "
            "does not name it"
        )

    def _connected(self, _remembered: bool) -> None:
        self._came_online.set()
        self._wake()

    def _wake(self) -> None:
        if not self._poked.is_set():
            self._poked.set()
            with contextlib.suppress(queue.Full):  # then the thread is awake anyway
                self._arrivals.put_nowait(None)

    def _arrive(self, message: Message) -> None:
        # Called on the network thread, which must not wait for a slow disk.
        try:
            self._arrivals.put_nowait(message)
        except queue.Full:
            log.warning("the store cannot keep up; a message was dropped and will come again")

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._take_turn()
            except HeadwayError as error:
                self._fault = str(error)
                log.warning("%s", error)
                self._stopping.wait(IDLE_S)
            except Exception as error:  # the thread's outermost loop: labels must go on moving
                self._fault = f"{type(error).__name__}: {error}"
                log.exception("sync failed")
                self._stopping.wait(IDLE_S)

    def _take_turn(self) -> None:
        wake_at = self._core.wake_at()
        patience_s = IDLE_S if wake_at is None else min(IDLE_S, max(0.0, wake_at - time.monotonic()))
        message = None
        with contextlib.suppress(queue.Empty):
            message = self._arrivals.get(timeout=patience_s)
        self._poked.clear()
        now = time.monotonic()
        if not self._session.connected:
            self._core.disconnected()
        elif self._came_online.is_set():
            self._came_online.clear()
            self._core.connected(now)
            self._on_online()
        try:
            if message is not None:
                self._core.receive(message, now)
        except RemoteWireError as error:
            log.warning("ignored a message on %s: %s", message.topic if message else "", error)
        self._send(self._core.poll(now))
        if self._core.event_due(now):
            self._on_online()
        self._fault = None

    def _send(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            try:
                self._session.send(publication)
            except BrokerError as error:
                log.debug("not sent, a timer will repeat it: %s", error)
                return
