"""Whether the broker lets this device in, by its own name, and brings it the triggers; see `sdk.broker_check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from device_agent.config import MqttTable, Site
from device_agent.expiry import of_another
from device_agent.trigger import trigger_session
from sdk.broker_check import BROKER_WAIT_S, look
from sdk.errors import HeadwayError
from sdk.finding import Finding, Level
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import Topics

OTHERS_FIX: Final = (
    "Name that one as `device` in site.toml, or bring this device's own files: headway fleet enroll."
)
_READ_ACCESS: Final = (
    "Stop the agent and run this again for the reason. The broker must let this device, under its id and "
    "`-trigger`, read that topic; with certificates, under the name in trigger_cert_file."
)


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
        # The agent does not run, so its own name is free; brokers may admit no other.
        session = MqttSession(settings, site.device, on_message=lambda _message: None)
    except HeadwayError as error:
        yield Finding.of("broker", error)
        return
    topic = Topics(settings.prefix).up_tele(site.device)
    let_in = yield from look(
        session,
        topic,
        who="this device",
        if_refused=f"Was {site.device} revoked? Then, on the fleet's server: headway fleet enroll {site.device}. "
        "Else give it write access to that topic in the broker's access list.",
    )
    if let_in:
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
