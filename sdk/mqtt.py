"""One MQTT 5 session that reconnects for ever. The only module that imports paho.

Rules this module keeps (docs/protocol.md):

- A session opens with `clean_start` false and an expiry, so the broker keeps our subscriptions and queued
  messages while we are away; with `session_expiry_s` 0 it opens clean and leaves nothing behind.
- All topics are subscribed again on every connect, whatever the broker says it remembers.
- No call waits for the network. Outgoing messages are bounded in number and bytes and refused beyond that.
- A callback that raises is logged and counted; the network thread lives on.

Left to others: what the messages mean (`sdk.wire`), and durability. A message handed to `publish` is lost when
this process ends before the broker has it, and an acknowledgement by the broker is no proof of a commit.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from sdk.broker_way import ALERT, no_answer, no_files, no_handshake, nobody
from sdk.errors import BrokerError, ConfigError, LocalWireError
from sdk.session_ends import ANOTHER_MACHINE, MANY_SHORT, SessionEnds
from sdk.wire import DEFAULT_PREFIX, MAX_MESSAGE_BYTES, Topics

MAX_PENDING_MESSAGES: Final = 4096
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024
"""What may wait for the broker in memory. Labels wait on disk and chunks on the server's, so this stays small."""
MAX_INCOMING_BYTES: Final = 256 * 1024
"""The broker may send no larger packet: twice our own limit, so that a wrong one is seen and reported."""
MAX_INFLIGHT: Final = 64
TOPICS_PER_PACKET: Final = 256
LENT_EXPIRY_S: Final = 60
"""How long a session is kept that was lent to a process which was killed."""
RECONNECT_MIN_S: Final = 0.5
RECONNECT_MAX_S: Final = 30.0
_TAKEN_OVER: Final = 0x8E
_UNEXPLAINED: Final = (0x80, _TAKEN_OVER)
"""Ends of sessions that may be another's doing: paho says "unspecified error" of one without a word."""

RELEASE_KINDS: Final = frozenset({"chunk", "meta", "trust", "down/desired", "up/want", "up/event"})
HEAD_KINDS: Final = frozenset({"log", "down/log", "down/ack", "up/label"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MqttSettings:
    """Where the broker is and how to speak with it.

    Attributes:
        host: Name or address of the broker.
        port: TCP port; 1883 without TLS, 8883 with, by custom.
        prefix: First part of every topic.
        keepalive_s: After one and a half times this without a sign of life a connection counts as lost.
        session_expiry_s: How long the broker keeps our session while we are away; 0 opens clean sessions.
        ca_file: PEM file of the authority that signed the broker's certificate. Turns TLS on.
        cert_file: Our own certificate, PEM.
        key_file: Its private key, PEM.
        chunks_cert_file: Certificate of the connection that fetches chunks, for the same key, where a broker takes
            the names of sessions from certificates: two sessions need two names.
        trigger_cert_file: The same for the connection that brings triggers.
        username: User name, where the broker wants one.
        password_file: File whose first line is the password.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    prefix: str = DEFAULT_PREFIX
    keepalive_s: int = 30
    session_expiry_s: int = 7 * 24 * 3600
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    chunks_cert_file: Path | None = None
    trigger_cert_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None

    def __post_init__(self) -> None:
        Topics(self.prefix)
        try:
            self.host.encode("idna")
        except UnicodeError as error:
            raise ConfigError(
                f"broker host {self.host[:80]!r} is no host name", hint="Give a name or address."
            ) from error
        if not self.host:
            raise ConfigError("the broker's host is empty", hint="Give a name or address, such as 127.0.0.1.")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"broker port {self.port} is not in 1..65535", hint="MQTT's usual port is 1883.")
        if not 5 <= self.keepalive_s <= 3600:
            raise ConfigError(f"keepalive_s {self.keepalive_s} is not in 5..3600", hint="30 suits most networks.")
        if not 0 <= self.session_expiry_s < 2**32 - 1:
            raise ConfigError(f"session_expiry_s {self.session_expiry_s} is out of range", hint="Use 604800.")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError(
                "a client certificate needs its key", hint="Give cert_file and key_file, or neither."
            )
        if self.cert_file is not None and self.ca_file is None:
            raise ConfigError("a client certificate needs TLS", hint="Give ca_file too.")

    @classmethod
    def at(cls, address: str, prefix: str = DEFAULT_PREFIX) -> MqttSettings:
        """Return settings for a `host:port`, `host` or `[ipv6]:port`.

        >>> MqttSettings.at("broker.plant:8883").port, MqttSettings.at("[::1]").host
        (8883, '::1')

        Raises:
            ConfigError: it is none of these.
        """
        host, colon, port = address.rpartition(":")
        if not colon or address.endswith("]"):
            host, port = address, "1883"
        if not port.isascii() or not port.isdigit():
            raise ConfigError(f"{address!r} is no broker address", hint="Write host:port, such as 127.0.0.1:1883.")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port), prefix=prefix)

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Message:
    """A message that arrived. `retained` says that the broker kept it from earlier, or, on a topic of which only
    what is live comes, that its sender wants it kept."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True)
class Publication:
    """A message to send. `expiry_s` lets the broker drop it when nobody fetched it in time."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None


@dataclass(frozen=True)
class Traffic:
    """Bytes of topic and payload by kind of topic (`Topics.kind_of`), since the session was made."""

    received: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)

    def total(self, kinds: Iterable[str]) -> int:
        """Return the bytes of these kinds, both ways."""
        return sum(self.received.get(kind, 0) + self.sent.get(kind, 0) for kind in kinds)

    @property
    def release_bytes(self) -> int:
        """What releases cost: chunks, channel metadata, assignments, wants, update events."""
        return self.total(RELEASE_KINDS)

    @property
    def head_bytes(self) -> int:
        """What learning cost: label batches, their acknowledgements, the union's records."""
        return self.total(HEAD_KINDS)

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of two sessions' traffic."""
        return Traffic(
            dict(Counter(self.received) + Counter(other.received)), dict(Counter(self.sent) + Counter(other.sent))
        )


@dataclass(frozen=True)
class BrokerOffer:
    """What the broker allowed at the connect; what it does not mention it allows (MQTT 5, 3.2.2.3).

    Attributes:
        max_packet_bytes: Largest packet it takes; None for no limit of its own.
        retain: Whether it keeps retained messages, which releases travel in.
        wildcards: Whether topics may be subscribed by pattern.
        max_qos: 0, 1 or 2.
    """

    max_packet_bytes: int | None = None
    retain: bool = True
    wildcards: bool = True
    max_qos: int = 2


class MqttSession:
    """A connection to the broker that comes back by itself.

    Callbacks run on the network thread: they should hand over and return. Use `connect` where a missing broker
    is an error to report, `start` where it is weather.

    Args:
        settings: Where and how.
        client_id: Names the session at the broker; two sessions with one id throw each other off.
        on_message: Called with each `Message`.
        on_connect: Called on every connect, after our topics were subscribed again, with whether the broker
            remembered the session. Where it did not, it may have lost everything else too.
        last_will: What the broker publishes for us when we vanish.
        namesake: Who it is that comes under our name, in words, should somebody.
        yields_within_s: Leave the broker to another client of our name instead of fighting for it, as long as no
            session of ours has lasted so long: then the other was there before. None: never.
        lent: Only look in on the session of this name, which is another's: what waits in it is not taken, it is
            kept as long as before, and one that was not there leaves none behind. A connection that ends stays so.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        *,
        on_message: Callable[[Message], None],
        on_connect: Callable[[bool], None] | None = None,
        last_will: Publication | None = None,
        namesake: str = ANOTHER_MACHINE,
        yields_within_s: float | None = None,
        lent: bool = False,
    ) -> None:
        self.settings = settings
        self._lent = lent
        self._present = False  # the broker knew the session
        self.client_id = client_id
        self.callback_errors = 0
        self._on_message = on_message
        self._on_connect = on_connect
        self._topics = Topics(settings.prefix)
        # Guards everything below. Never held while calling paho: paho calls back with its own locks held.
        self._changed = threading.Condition()
        self._connected = False
        self._offer = BrokerOffer()
        self._failure: BrokerError | None = None
        self._refused_whole: BrokerError | None = None  # the broker's doing, not the network's
        self._answered = False  # on the connection that is up, or was last
        self._unanswered = 0  # such connections in a row that the broker closed
        self._alert = ""  # of TLS, in OpenSSL's words
        self._namesake = namesake
        self._ends = SessionEnds(client_id, namesake)
        self._yields_within_s = 0.0 if yields_within_s is None else yields_within_s
        self._gave_way = False
        self._started = False
        self._closed = False
        self._down_since_s: float | None = None  # monotonic; None while connected, and before the start
        self._wanted: dict[str, SubscribeOptions] = {}
        self._asked = 0  # subscriptions that the broker has not answered yet
        self._deaf: str | None = None
        self._pending: dict[int, tuple[int, int]] = {}  # message id -> (bytes, qos)
        self._refusal: str | None = None
        self._early: set[int] = set()  # acknowledged before `publish` could note them as pending
        self._entering_bytes = 0  # of publishes that are inside paho just now
        self._pending_bytes = 0
        self._received: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._client = self._make_client(last_will)

    def _make_client(self, last_will: Publication | None) -> paho.Client:
        settings = self.settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=not self._lent,
            manual_ack=self._lent,  # what is not acknowledged waits on
        )
        client.suppress_exceptions = True
        client.connect_timeout = 10.0
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_PENDING_MESSAGES)
        # A factor per client spreads a plant's devices when a broker comes back to all of them at once.
        # paho's types say int; it only adds and doubles.
        spread = random.uniform(0.7, 1.3)
        client.reconnect_delay_set(RECONNECT_MIN_S * spread, RECONNECT_MAX_S * spread)  # type: ignore[arg-type]
        client.on_connect = self._connect_came
        client.on_connect_fail = self._connect_failed
        client.on_disconnect = self._disconnect_came
        client.on_message = self._message_came
        client.on_publish = self._publish_done
        client.on_subscribe = self._subscribe_done
        client.on_socket_open = self._socket_came
        client.on_log = self._logged
        if last_will is not None:
            client.will_set(last_will.topic, last_will.payload, last_will.qos, last_will.retain)
        if settings.ca_file is not None:
            try:
                client.tls_set(
                    str(settings.ca_file),
                    certfile=None if settings.cert_file is None else str(settings.cert_file),
                    keyfile=None if settings.key_file is None else str(settings.key_file),
                )
            except (OSError, ValueError) as error:
                raise no_files(error) from error
        if settings.username is not None:
            client.username_pw_set(settings.username, _read_password(settings.password_file))
        return client

    def start(self) -> None:
        """Begin connecting in the background and keep at it for ever; never fails for an absent broker."""
        with self._changed:
            if self._started:
                return
            self._started = True
            self._down_since_s = time.monotonic()
        settings = self.settings
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = LENT_EXPIRY_S if self._lent else settings.session_expiry_s
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        if self._lent:
            properties.ReceiveMaximum = 1
        self._client.connect_async(
            settings.host,
            settings.port,
            keepalive=settings.keepalive_s,
            clean_start=settings.session_expiry_s == 0,
            properties=properties,
        )
        self._client.loop_start()

    def connect(self, timeout_s: float = 5.0) -> None:
        """Connect, or say why not. Afterwards the session reconnects by itself as after `start`.

        Raises:
            BrokerError: nobody there, refused, or no answer in time. The session is closed then.
        """
        self.start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._failure is not None, timeout_s)
            if self._connected:
                return
            failure = self._failure
        self.close(flush_s=0.0)
        raise failure or BrokerError(
            f"{self.settings.address} did not answer as an MQTT 5 broker within {timeout_s:g} s",
            hint="Check host, port and TLS settings; the broker must speak MQTT 5.",
        )

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the connection was not seen to break."""
        return self._connected

    @property
    def down_s(self) -> float:
        """Seconds for which there has been no connection; 0 while there is one, and before the start."""
        since_s = self._down_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def deaf(self) -> str | None:
        """Why the broker refuses us a topic on this connection, in MQTT's words; None where it refuses none."""
        return self._deaf

    @property
    def hears(self) -> bool:
        """Whether messages come on all topics: the broker has granted them on this connection."""
        return self._connected and not self._asked and self._deaf is None

    @property
    def refusal(self) -> str | None:
        """Why the broker did not take the newest message that it answered for, in MQTT's words; None if it did."""
        return self._refusal

    @property
    def trouble(self) -> str | None:
        """Why the broker does not let this client in, or not stay; None where it does, or is not there."""
        with self._changed:
            refused = (
                None if self._refused_whole is None else f"{self._refused_whole} ({self._refused_whole.hint})"
            )
            return refused or self._ends.words(time.monotonic())

    @property
    def contested(self) -> bool:
        """Whether another client comes under our name, again and again: each throws the other off."""
        with self._changed:
            return self._ends.contested(time.monotonic())

    @property
    def gave_way(self) -> bool:
        """Whether we have left the broker for good to another client of our name, which was there before."""
        return self._gave_way

    @property
    def offer(self) -> BrokerOffer:
        """What the broker allowed at the last connect."""
        return self._offer

    def wait_taken(self, timeout_s: float) -> bool:
        """Wait until the broker has taken all that was published; return whether it has."""
        with self._changed:
            # A session that is lent does not come back.
            self._changed.wait_for(lambda: not self._left or (self._lent and not self._connected), timeout_s)
            return not self._left

    @property
    def pending_bytes(self) -> int:
        """Bytes handed to `publish` that the broker has not taken yet."""
        with self._changed:
            return self._left

    @property
    def _left(self) -> int:
        return self._pending_bytes + self._entering_bytes

    def traffic(self) -> Traffic:
        """Return the bytes moved so far."""
        with self._changed:
            return Traffic(dict(self._received), dict(self._sent))

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until connected; return whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._connected, timeout_s)

    def wait_answered(self, timeout_s: float) -> bool:
        """Wait until connected and all topics were granted or refused; return whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._connected and not self._asked, timeout_s)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None
    ) -> None:
        """Hand a message to the network thread and return at once.

        While there is no connection, QoS 1 messages wait in memory and QoS 0 messages are dropped.

        Raises:
            LocalWireError: the payload is over the wire's limit.
            BrokerError: too much is waiting for the broker already; retryable.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise LocalWireError(
                f"a message of {len(payload)} bytes for {topic} is over {MAX_MESSAGE_BYTES}",
                hint="Send it in smaller parts.",
            )
        size = len(payload) + len(topic)
        full = BrokerError(
            f"too much is waiting for the broker at {self.settings.address}", hint="Wait for it to come back."
        )
        with self._changed:
            if self._pending_bytes + self._entering_bytes + size > MAX_PENDING_BYTES:
                raise full
            self._entering_bytes += size
        properties = _properties(PacketTypes.PUBLISH)
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        try:
            sent = self._client.publish(topic, payload, qos, retain, properties)
        finally:
            with self._changed:
                self._entering_bytes -= size
        if sent.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise full
        if qos == 0 and sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return
        with self._changed:
            self._sent[self._topics.kind_of(topic)] += size
            if sent.mid in self._early:
                self._early.discard(sent.mid)
            else:
                self._pending[sent.mid] = (size, qos)
                self._pending_bytes += size

    def send(self, publication: Publication) -> None:
        """`publish` for a value."""
        p = publication
        self.publish(p.topic, p.payload, qos=p.qos, retain=p.retain, expiry_s=p.expiry_s)

    def subscribe(self, topics: Iterable[str], qos: int = 1, *, live: bool = False) -> None:
        """Subscribe to topics, now and on every later connect.

        Args:
            topics: Their names or patterns.
            qos: The highest that messages come with.
            live: Only what is published from now on comes, and `Message.retained` says whether its sender wants it
                kept. Else what the broker has retained comes too, with each connect.
        """
        options = SubscribeOptions(
            qos=qos,
            retainAsPublished=live,
            retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
            if live
            else SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
        )
        wanted = dict.fromkeys(topics, options)
        with self._changed:
            self._wanted |= wanted
        # Without a connection this comes to nothing; the next connect makes up for it.
        self._send_subscribe(wanted)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Take topics back, now and for later connects."""
        names = list(topics)
        with self._changed:
            for name in names:
                self._wanted.pop(name, None)
        for i in range(0, len(names), TOPICS_PER_PACKET):
            self._client.unsubscribe(names[i : i + TOPICS_PER_PACKET])

    def _send_subscribe(self, wanted: Mapping[str, SubscribeOptions]) -> None:
        pairs = list(wanted.items())
        for i in range(0, len(pairs), TOPICS_PER_PACKET):
            with self._changed:
                self._asked += 1
            code, _ = self._client.subscribe(pairs[i : i + TOPICS_PER_PACKET])
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._answered_subscription()

    def _answered_subscription(self, refused: str | None = None) -> None:
        with self._changed:
            self._asked = max(0, self._asked - 1)  # one of a connection before may be answered late
            self._deaf = refused or self._deaf
            self._changed.notify_all()

    def close(self, flush_s: float = 2.0) -> None:
        """Say goodbye (no last will) after waiting at most `flush_s` for the broker to take what is pending."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if not self._started:
                return
            self._changed.wait_for(lambda: not self._pending_bytes or not self._connected, flush_s)
        self._client.disconnect(properties=self._farewell())
        with self._changed:
            # A broker that stopped reading would keep the network thread until the keepalive runs out.
            gone = self._changed.wait_for(lambda: not self._connected, max(flush_s, 0.5))
        stuck = self._client.socket()
        if not gone and isinstance(stuck, socket.socket):
            try:
                stuck.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("socket was closed meanwhile")
        self._client.loop_stop()

    def _farewell(self) -> Properties | None:
        if not self._lent:
            return None
        properties = _properties(PacketTypes.DISCONNECT)
        properties.SessionExpiryInterval = self.settings.session_expiry_s if self._present else 0
        return properties

    def __enter__(self) -> MqttSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # From here on: called by paho, on its thread.

    def _connect_came(
        self,
        _client: paho.Client,
        _data: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._answered, self._unanswered = True, 0
        if reason.is_failure:
            with self._changed:
                self._failure = self._refused_whole = BrokerError(
                    f"the broker at {self.settings.address} refuses {self.client_id!r}: {reason}",
                    hint="Check user name, password file, certificates and the broker's access list.",
                )
                self._changed.notify_all()
            log.warning("%s", self._failure)
            return
        with self._changed:
            wanted = dict(self._wanted)
            self._asked, self._deaf = 0, None
        self._send_subscribe(wanted)
        with self._changed:
            self._connected, self._down_since_s = True, None
            self._present = bool(flags.session_present)
            self._ends.began(time.monotonic())
            self._failure = self._refused_whole = None
            self._offer = _offer(properties)
            self._changed.notify_all()
        log.info(
            "%s connected to %s, session present: %s", self.client_id, self.settings.address, flags.session_present
        )
        if self._on_connect is not None:
            self._guarded(self._on_connect, bool(flags.session_present))

    def _connect_failed(self, _client: paho.Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles the error, and does not pass it
        failure = no_handshake(self.settings, error) if isinstance(error, ssl.SSLError) else None
        with self._changed:
            if failure is None:
                self._unanswered = 0  # nobody there: a broker that is stopped closes what waits for it first
                self._ends.nobody_there()
            self._refused_whole = failure
            self._failure = failure or nobody(self.settings, error)
            self._changed.notify_all()
        log.debug("%s", self._failure)

    def _disconnect_came(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _p: Properties | None
    ) -> None:
        with self._changed:
            if self._down_since_s is None:
                self._down_since_s = time.monotonic()
            self._connected = False
            many_short = not self._closed and self._ends.ended(time.monotonic(), reason.value in _UNEXPLAINED)
            self._gave_way |= many_short and self._ends.longest_s < self._yields_within_s
            refused = None
            if not (self._answered or self._closed):
                self._unanswered += 1
                if self._alert or self._unanswered > 1:  # once it may be a broker that is stopped just now
                    refused = self._failure = self._refused_whole = no_answer(self.settings, self._alert)
            for mid in [mid for mid, (_, qos) in self._pending.items() if qos == 0]:
                self._pending_bytes -= self._pending.pop(mid)[0]  # lost with the connection
            self._early.clear()
            closed = self._closed
            self._changed.notify_all()
        if self._gave_way:
            self._client.loop_stop()  # before it comes back; on its own thread this does not wait for the thread
        if reason.value == _TAKEN_OVER:
            log.warning("another client connected as %r and took its session: %s", self.client_id, self._namesake)
        elif many_short:
            log.warning(
                "the broker has ended %d sessions of %r within seconds: most likely %s",
                MANY_SHORT,
                self.client_id,
                self._namesake,
            )
        elif refused is not None:
            log.warning("%s", refused)
        elif not closed:
            log.info("%s lost its connection to %s: %s", self.client_id, self.settings.address, reason)

    def _socket_came(self, _client: paho.Client, _data: Any, sock: Any) -> None:
        # Without it small messages wait for the delayed acknowledgement of the one before: 40 ms each.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answered, self._alert = False, ""

    def _logged(self, _client: paho.Client, _data: Any, level: int, text: str) -> None:
        # The only place where paho says what OpenSSL said of a connection that was up already.
        if level == paho.MQTT_LOG_ERR and (alert := ALERT.search(text)):
            self._alert = alert[1].replace("_", " ").lower()

    def _message_came(self, _client: paho.Client, _data: Any, raw: paho.MQTTMessage) -> None:
        self._guarded(self._deliver, raw)

    def _deliver(self, raw: paho.MQTTMessage) -> None:
        message = Message(raw.topic, bytes(raw.payload), bool(raw.retain))
        with self._changed:
            self._received[self._topics.kind_of(message.topic)] += len(message.topic) + len(message.payload)
        self._on_message(message)

    def _publish_done(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _p: Properties | None
    ) -> None:
        with self._changed:
            entry = self._pending.pop(mid, None)
            if entry is None:
                self._early.add(mid)
            else:
                self._pending_bytes -= entry[0]
            if reason.is_failure:
                self._refusal = str(reason)
            elif entry is not None and entry[1]:  # paho is done with QoS 0 whatever the broker does with it
                self._refusal = None
            self._changed.notify_all()
        if reason.is_failure:
            log.warning("the broker refused a message of %s: %s", self.client_id, reason)

    def _subscribe_done(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _p: Properties | None
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        self._answered_subscription(refused[0] if refused else None)
        if refused:
            log.warning("the broker refused %d topics to %s: %s", len(refused), self.client_id, refused[0])

    def _guarded(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception:  # the outermost loop of the network thread, which must not die of one message
            self.callback_errors += 1
            log.exception("a callback of MQTT session %s failed", self.client_id)


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def _offer(properties: Properties | None) -> BrokerOffer:
    return BrokerOffer(
        max_packet_bytes=getattr(properties, "MaximumPacketSize", None),
        retain=bool(getattr(properties, "RetainAvailable", 1)),
        wildcards=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
        max_qos=int(getattr(properties, "MaximumQoS", 2)),
    )


def _read_password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").split("\n", 1)[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"password file {file} cannot be read", hint="Check the path; this process must be able to read it."
        ) from error
