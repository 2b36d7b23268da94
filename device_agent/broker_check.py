"""Whether a broker is there, lets this device in, and is set up as Headway needs it (docs/protocol.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from device_agent.config import MqttTable, Site
from device_agent.expiry import of_another
from device_agent.finding import Finding, Level
from device_agent.trigger import trigger_session
from sdk.errors import HeadwayError
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import MAX_MESSAGE_BYTES, Topics

BROKER_WAIT_S: Final = 10.0
BURST: Final = 8
BURST_TRIES: Final = 8
LUCKY: Final = 2
OTHERS_FIX: Final = (
    "Name that one as `device` in site.toml, or bring this device's own files: headway fleet enroll."
)
_READ_ACCESS: Final = (
    "Stop the agent and run this again for the reason. The broker must let this device, under its id and "
    "`-trigger`, read that topic; with certificates, under the name in trigger_cert_file."
)
NAGLE_S: Final = 0.025
"""A burst of acknowledgements from a broker without `set_tcp_nodelay` waits for our delayed one, 40 ms; measured
with Mosquitto on loopback: 43 to 45 ms a burst without, 1 to 3 ms with."""


def check_broker(site: Site, table: MqttTable) -> Iterator[Finding]:
    """Connect as this device, publish a little where nobody listens, listen as for triggers where they come over
    MQTT, and yield what was found.

    Call it only while the device's agent does not run: two sessions of one name throw each other off.
    """
    if (other := of_another(site.device, table)) is not None:
        yield Finding("broker", Level.FAULT, other, OTHERS_FIX)
        return
    try:
        settings = replace(MqttSettings(**msgspec.structs.asdict(table)), session_expiry_s=0)
        topic = Topics(settings.prefix).up_tele(site.device)
        began_s = time.perf_counter()
        # The agent does not run, so its own name is free; brokers may admit no other.
        with MqttSession(settings, site.device, on_message=lambda _message: None) as session:
            session.connect(BROKER_WAIT_S)
            connected_ms = (time.perf_counter() - began_s) * 1e3
            offer = session.offer
            single_s, burst_s = _round_trips(session, topic)
            refusal = session.refusal
    except HeadwayError as error:
        yield Finding.of("broker", error)
        return
    secure = "TLS" if table.ca_file is not None else "no TLS"
    yield Finding(
        "broker", Level.GOOD, f"{settings.address}: MQTT 5, {secure}, connected in {connected_ms:.0f} ms"
    )
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
    if burst_s is None:
        yield Finding(
            "broker",
            Level.FAULT,
            f"it accepts this device and takes nothing from it on {topic}" + (f": {refusal}" if refusal else ""),
            f"Was {site.device} revoked? Then, on the fleet's server: headway fleet enroll {site.device}. Else "
            "give it write access to that topic in the broker's access list.",
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
    yield from check_trigger(site, settings)


def check_trigger(site: Site, settings: MqttSettings) -> Iterator[Finding]:
    """Listen for triggers as the agent does, where they come over MQTT: by a connection and a certificate of their
    own."""
    if site.trigger is None or site.trigger.topic is None:
        return
    topic = site.trigger.topic
    try:
        with trigger_session(settings, site.device, topic, lambda _message: None) as session:
            session.connect(BROKER_WAIT_S)
            answered, deaf = session.wait_answered(BROKER_WAIT_S), session.deaf
    except HeadwayError as error:
        yield Finding.of("trigger", error)
        return
    if answered and deaf is None:
        yield Finding("trigger", Level.GOOD, f"{topic}: the broker lets this device hear it")
        return
    why = f"the broker does not let this device hear it ({deaf or 'no answer'})"
    yield Finding("trigger", Level.FAULT, f"{topic}: {why}", _READ_ACCESS)


def trigger_told(trigger: Mapping[str, Any]) -> Finding:
    """Return what a running agent's state says of its triggers over MQTT."""
    if trigger["connected"]:
        return Finding("trigger", Level.GOOD, f"{trigger['topic']}: connected, as the agent says")
    what = trigger["fault"] or "just now not connected"
    return Finding("trigger", Level.FAULT, f"{trigger['topic']}: {what}", _READ_ACCESS)


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
