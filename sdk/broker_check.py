"""Whether a broker is there, lets somebody in, and is set up as Headway needs it (docs/protocol.md)."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Final

from sdk.errors import HeadwayError
from sdk.finding import Finding, Level
from sdk.mqtt import BrokerOffer, MqttSession
from sdk.wire import MAX_MESSAGE_BYTES

BROKER_WAIT_S: Final = 10.0
BURST: Final = 8
BURST_TRIES: Final = 8
LUCKY: Final = 2
NAGLE_S: Final = 0.025
"""A burst of acknowledgements from a broker without `set_tcp_nodelay` waits for our delayed one, 40 ms; measured
with Mosquitto on loopback: 43 to 45 ms a burst without, 1 to 3 ms with."""


def look(session: MqttSession, topic: str, *, who: str, if_refused: str) -> Generator[Finding, None, bool]:
    """Connect, publish a little where nobody listens, and yield what was found; return whether it let us in.

    Args:
        session: Not started yet; it is closed at the end.
        topic: Where nobody listens, and this client may write.
        who: It, for people.
        if_refused: What to do where the broker takes nothing from it.
    """
    settings = session.settings
    try:
        began_s = time.perf_counter()
        with session:
            session.connect(BROKER_WAIT_S)
            connected_ms = (time.perf_counter() - began_s) * 1e3
            offer = session.offer
            single_s, burst_s = _round_trips(session, topic)
            refusal, lost = session.refusal, not session.connected
    except HeadwayError as error:
        yield Finding.of("broker", error)
        return False
    secure = "TLS" if settings.ca_file is not None else "no TLS"
    yield Finding(
        "broker", Level.GOOD, f"{settings.address}: MQTT 5, {secure}, connected in {connected_ms:.0f} ms"
    )
    yield from _limits(offer)
    if burst_s is None and lost:
        yield Finding(
            "broker",
            Level.FAULT,
            f"the broker ended the session of {who} at once: something else comes there under its name",
            "Find what runs elsewhere under that name, as from a copy of its folder, and stop it.",
        )
    elif burst_s is None:
        yield Finding(
            "broker",
            Level.FAULT,
            f"it accepts {who} and takes nothing from it on {topic}" + (f": {refusal}" if refusal else ""),
            if_refused,
        )
    elif burst_s - single_s > NAGLE_S:
        yield Finding(
            "broker",
            Level.FAULT,
            f"{BURST} small messages take {burst_s * 1e3:.0f} ms, one takes {single_s * 1e3:.0f}",
            "Set set_tcp_nodelay true in mosquitto.conf: without it releases take 70 times as long.",
        )
    else:
        yield Finding(
            "broker",
            Level.GOOD,
            f"a message is taken after {single_s * 1e3:.0f} ms, {BURST} after {burst_s * 1e3:.0f} ms",
        )
    return True


def _limits(offer: BrokerOffer) -> Generator[Finding, None, None]:
    if not offer.retain or offer.max_qos < 1:
        yield Finding(
            "broker",
            Level.FAULT,
            f"it offers {'no retained messages' if not offer.retain else 'QoS 0 only'}",
            "Releases travel as retained messages of QoS 1: set retain_available true and max_qos 1 or more.",
        )
    if offer.max_packet_bytes is not None and offer.max_packet_bytes < MAX_MESSAGE_BYTES:
        yield Finding(
            "broker",
            Level.FAULT,
            f"it takes packets of {offer.max_packet_bytes} bytes at most",
            f"Set max_packet_size {2 * MAX_MESSAGE_BYTES} in mosquitto.conf.",
        )


def _round_trips(session: MqttSession, topic: str) -> tuple[float, float | None]:
    """Return the time of one message and of a burst, short ones in seconds; None where they are not taken."""
    # Short ones: other work on this machine makes messages late. The very shortest burst may owe that to luck: an
    # acknowledgement that went along with a message of ours was not delayed.
    times: dict[int, list[float]] = {1: [], BURST: []}
    for _ in range(BURST_TRIES):
        for count, taken in times.items():
            began_s = time.perf_counter()
            for _ in range(count):
                session.publish(topic, b"{}", expiry_s=1)
            if not session.wait_taken(BROKER_WAIT_S) or session.refusal is not None:
                return 0.0, None
            taken.append(time.perf_counter() - began_s)
    return min(times[1]), sorted(times[BURST])[LUCKY]
