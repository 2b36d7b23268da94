"""An MQTT session: comes back by itself, keeps its topics, bounds what it holds, survives its callbacks."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import BrokerError, ConfigError, HeadwayError, LocalWireError
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import MAX_PENDING_BYTES, Message, MqttSession, MqttSettings, Publication, Traffic
from sdk.wire import MAX_MESSAGE_BYTES, Topics
from tests.simulators import TcpRelay, refusing, wait_for

TOPIC = Topics().up_event("line-1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Listener:
    """Collects what a session hears."""

    def __init__(self, settings: MqttSettings, name: str = "listener", **more: Any) -> None:
        self.messages: list[Message] = []
        self.connects: list[bool] = []
        self.session = MqttSession(
            settings, name, on_message=self.messages.append, on_connect=self.connects.append, **more
        )

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


@contextmanager
def listening(settings: MqttSettings, name: str = "listener", **more: Any) -> Iterator[Listener]:
    listener = Listener(settings, name, **more)
    with listener.session:
        listener.session.subscribe([TOPIC])
        listener.session.connect()
        yield listener


# Connecting


def test_a_missing_broker_is_told_at_once() -> None:
    settings, began = MqttSettings(port=free_port()), time.monotonic()
    with pytest.raises(BrokerError, match=r"no MQTT broker at 127\.0\.0\.1:\d+: Connection refused") as caught:
        Listener(settings).session.connect(timeout_s=30)
    assert time.monotonic() - began < 5
    assert "apt-get install mosquitto" in caught.value.hint
    assert caught.value.retryable


def test_a_server_that_is_no_broker_is_told_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        session = Listener(MqttSettings(port=mute.getsockname()[1])).session
        with pytest.raises(BrokerError, match="did not answer as an MQTT 5 broker"):
            session.connect(timeout_s=0.3)


@pytest.mark.broker
def test_started_without_a_broker_it_connects_when_one_comes() -> None:
    broker = Mosquitto(free_port())
    with broker:
        pass
    listener = Listener(broker.settings)
    listener.session.subscribe([TOPIC])
    listener.session.start()
    listener.session.publish(TOPIC, b"made offline")
    assert not listener.session.connected
    with broker, listener.session:
        wait_for(lambda: listener.payloads() == [b"made offline"])


@pytest.mark.broker
def test_after_the_broker_was_killed_all_topics_are_subscribed_again(mosquitto: Mosquitto) -> None:
    with listening(mosquitto.settings) as listener:
        mosquitto.restart()
        wait_for(lambda: len(listener.connects) == 2)
        assert listener.connects == [False, False]
        listener.session.publish(TOPIC, b"again")
        wait_for(lambda: listener.payloads() == [b"again"])


@pytest.mark.broker
def test_the_broker_keeps_messages_for_a_session_that_is_away(mosquitto: Mosquitto) -> None:
    with listening(mosquitto.settings):
        pass
    with listening(mosquitto.settings, "sender") as sender:
        sender.session.publish(TOPIC, b"while away")
        wait_for(lambda: sender.session.pending_bytes == 0)
        with listening(mosquitto.settings) as back:
            assert back.connects == [True]
            wait_for(lambda: back.payloads() == [b"while away"])


@pytest.mark.broker
def test_a_session_without_expiry_leaves_nothing_behind(mosquitto: Mosquitto) -> None:
    settings = replace(mosquitto.settings, session_expiry_s=0)
    with listening(settings):
        pass
    with listening(settings) as back:
        assert back.connects == [False]


@pytest.mark.broker
def test_messages_in_flight_when_the_line_breaks_arrive_after_all(mosquitto: Mosquitto) -> None:
    sent = [b"%d" % i for i in range(300)]
    with TcpRelay(mosquitto.port) as relay, listening(mosquitto.settings) as listener:
        sender = Listener(replace(mosquitto.settings, port=relay.port), "sender")
        with sender.session:
            sender.session.connect()
            for i, payload in enumerate(sent):
                sender.session.publish(TOPIC, payload)
                if i == 150:
                    relay.cut()
            wait_for(lambda: set(listener.payloads()) == set(sent))
            assert len(sender.connects) == 2


@pytest.mark.broker
def test_the_broker_speaks_the_last_will_of_a_session_that_vanishes(mosquitto: Mosquitto) -> None:
    will = Publication(TOPIC, b"offline", retain=True)
    with TcpRelay(mosquitto.port) as relay, listening(mosquitto.settings) as listener:
        doomed = Listener(replace(mosquitto.settings, port=relay.port), "doomed", last_will=will)
        with doomed.session:
            doomed.session.connect()
            relay.cut()
            wait_for(lambda: b"offline" in listener.payloads())


@pytest.mark.broker
def test_a_session_that_says_goodbye_has_no_last_will(mosquitto: Mosquitto) -> None:
    will = Publication(TOPIC, b"offline")
    with listening(mosquitto.settings) as listener:
        with listening(mosquitto.settings, "leaver", last_will=will) as leaver:
            leaver.session.publish(TOPIC, b"bye")
        wait_for(lambda: b"bye" in listener.payloads())
        listener.session.publish(TOPIC, b"later")
        wait_for(lambda: b"later" in listener.payloads())
        assert b"offline" not in listener.payloads()


@pytest.mark.broker
def test_what_was_published_just_before_close_is_sent(mosquitto: Mosquitto) -> None:
    with listening(mosquitto.settings) as listener:
        with listening(mosquitto.settings, "sender") as sender:
            for i in range(200):
                sender.session.publish(TOPIC, b"%d" % i)
        wait_for(lambda: len(listener.messages) == 200)


@pytest.mark.broker
def test_closing_does_not_wait_for_a_broker_that_hangs(mosquitto: Mosquitto) -> None:
    listener = Listener(mosquitto.settings)
    listener.session.connect()
    os.kill(mosquitto.pid, signal.SIGSTOP)
    try:
        listener.session.publish(TOPIC, b"stuck")
        began = time.monotonic()
        listener.session.close(flush_s=0.2)
        assert time.monotonic() - began < 3
    finally:
        os.kill(mosquitto.pid, signal.SIGCONT)


# Callbacks


@pytest.mark.broker
def test_a_callback_that_raises_does_not_end_the_session(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def deliver(message: Message) -> None:
        heard.append(message.payload)
        raise RuntimeError("a bug in a callback")

    def connected(_present: bool) -> None:
        raise RuntimeError("another")

    with MqttSession(mosquitto.settings, "raiser", on_message=deliver, on_connect=connected) as session:
        session.subscribe([TOPIC])
        session.connect()
        with caplog.at_level(logging.CRITICAL):
            session.publish(TOPIC, b"one")
            session.publish(TOPIC, b"two")
            wait_for(lambda: heard == [b"one", b"two"])
        wait_for(lambda: session.callback_errors == 3)
        assert session.connected


def test_a_broker_that_sends_nonsense_does_not_end_the_session() -> None:
    nonsense = [
        b"\xff" * 40,
        b"\x20\x03\x00\x00\x00\x30\x05ab",
        b"\x20\x03\x00\x00\x00\x40\x02\x00\x00\xf0\x00",
        b"",
    ]
    seen = threading.Semaphore(0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for reply in nonsense:
                line, _ = server.accept()
                with line:
                    line.recv(1000)
                    line.sendall(reply)
                seen.release()

        threading.Thread(target=answer, daemon=True).start()
        listener = Listener(MqttSettings(port=server.getsockname()[1]))
        with listener.session:
            listener.session.start()
            assert all(seen.acquire(timeout=60) for _ in nonsense)


def test_a_topic_that_the_broker_refuses_is_told_until_the_next_connection(mosquitto: Mosquitto) -> None:
    with refusing() as settings, listening(settings) as deaf:
        assert deaf.session.wait_answered(60.0)
        assert (deaf.session.connected, deaf.session.hears) == (True, False)
        assert deaf.session.deaf == "Not authorized"
    with listening(mosquitto.settings) as listener:
        assert listener.session.wait_answered(60.0)
        assert (listener.session.hears, listener.session.deaf, listener.session.down_s) == (True, None, 0.0)
        mosquitto.kill()
        wait_for(lambda: listener.session.down_s > 0)
        assert not listener.session.hears
        mosquitto.start()
        wait_for(lambda: listener.session.hears)


# Bounds


@pytest.mark.parametrize(
    ("size", "count", "error", "what"),
    [
        (MAX_MESSAGE_BYTES + 1, 1, LocalWireError, "over"),
        (MAX_MESSAGE_BYTES, MAX_PENDING_BYTES // MAX_MESSAGE_BYTES + 1, BrokerError, "too much is waiting"),
        (1, 5000, BrokerError, "too much is waiting"),
    ],
    ids=["one message", "bytes", "messages"],
)
def test_more_than_may_wait_for_the_broker_is_refused(
    size: int, count: int, error: type[HeadwayError], what: str
) -> None:
    session = Listener(MqttSettings(port=free_port())).session
    payload = bytes(size)

    def publish_all() -> None:
        for _ in range(count):
            session.publish(TOPIC, payload)

    with pytest.raises(error, match=what):
        publish_all()
    assert session.pending_bytes <= MAX_PENDING_BYTES


@pytest.mark.broker
def test_a_quality_0_message_without_a_connection_is_dropped(mosquitto: Mosquitto) -> None:
    listener = Listener(mosquitto.settings)
    listener.session.subscribe([TOPIC])
    listener.session.publish(TOPIC, b"decision", qos=0)
    assert listener.session.pending_bytes == 0
    with listener.session:
        listener.session.connect()
        listener.session.publish(TOPIC, b"label")
        wait_for(lambda: listener.messages)
    assert listener.payloads() == [b"label"]


@pytest.mark.broker
def test_many_topics_are_taken_back_at_once(mosquitto: Mosquitto) -> None:
    topics = [Topics().chunk(f"{i:064x}") for i in range(600)]
    with listening(mosquitto.settings) as listener:
        listener.session.subscribe(topics)
        listener.session.publish(topics[599], b"one")
        wait_for(lambda: listener.payloads() == [b"one"])
        listener.session.unsubscribe(topics)
        listener.session.publish(topics[599], b"two")
        listener.session.publish(TOPIC, b"three")
        wait_for(lambda: listener.payloads() == [b"one", b"three"])


@pytest.mark.broker
def test_bytes_are_counted_by_kind_of_topic(mosquitto: Mosquitto) -> None:
    topics, chunk = Topics(), Topics().chunk("0" * 64)
    with listening(mosquitto.settings) as listener:
        listener.session.subscribe([chunk])
        listener.session.publish(chunk, bytes(1000))
        listener.session.publish(topics.up_label("line-1"), bytes(100))
        wait_for(lambda: listener.messages)
        traffic = listener.session.traffic()
    assert traffic.received == {"chunk": 1000 + len(chunk)}
    assert traffic.release_bytes == 2 * (1000 + len(chunk))
    assert traffic.head_bytes == 100 + len(topics.up_label("line-1"))
    assert traffic.plus(Traffic({"chunk": 1}, {})).received["chunk"] == 1001 + len(chunk)


# Settings


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda: MqttSettings.at("broker:no"), ConfigError, "no broker address"),
        (lambda: MqttSettings.at("broker:"), ConfigError, "no broker address"),
        (lambda: MqttSettings.at("broker:99999"), ConfigError, "1..65535"),
        (lambda: MqttSettings.at(":1883"), ConfigError, "host is empty"),
        (lambda: MqttSettings(host="a" * 300), ConfigError, "no host name"),
        (lambda: MqttSettings(keepalive_s=0), ConfigError, "keepalive_s"),
        (lambda: MqttSettings(session_expiry_s=-1), ConfigError, "session_expiry_s"),
        (lambda: MqttSettings(prefix="a/+/b"), LocalWireError, "not a plain topic"),
        (lambda: MqttSettings(cert_file=Path("c")), ConfigError, "needs its key"),
        (lambda: MqttSettings(cert_file=Path("c"), key_file=Path("k")), ConfigError, "needs TLS"),
        (lambda: Listener(MqttSettings(ca_file=Path("/none"))), ConfigError, "TLS files"),
        (lambda: Listener(MqttSettings(username="u", password_file=Path("/none"))), ConfigError, "password file"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, error: type[HeadwayError], what: str) -> None:
    with pytest.raises(error, match=what) as caught:
        make()
    assert caught.value.hint


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("plant", "plant", 1883), ("plant:8883", "plant", 8883), ("[::1]:1", "::1", 1), ("[::1]", "::1", 1883)],
)
def test_an_address_is_read(address: str, host: str, port: int) -> None:
    settings = MqttSettings.at(address)
    assert (settings.host, settings.port) == (host, port)
