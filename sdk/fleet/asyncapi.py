"""All topics and messages as an AsyncAPI 3 document, made from `sdk.wire`: what is on the wire is what it says.

    python -m sdk.fleet.asyncapi > docs/asyncapi.yaml

A test fails when a topic or a field of `sdk.wire` is not in that file. docs/protocol.md is the prose, which also
says what the document cannot: who must answer what, and when.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sdk import wire
from sdk.fleet.access import trigger_topic
from sdk.labels import DEVICE_ID_PATTERN
from sdk.wire import Topics

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
BYTES: Final = "application/octet-stream"


@dataclass(frozen=True)
class Channel:
    """One kind of topic.

    Attributes:
        topic: Its method of `Topics`, or a function of `Topics` and the argument.
        parameter: What its argument is; None where it has none.
        message: What it carries; None for raw bytes.
        sender: Who publishes: `service`, `device`, or a line's `controller`.
        qos: MQTT's.
        retain: Whether the broker keeps the last one.
    """

    topic: Callable[..., str]
    parameter: str | None
    message: type[msgspec.Struct] | None
    sender: str
    qos: int = 1
    retain: bool = False

    @property
    def name(self) -> str:
        """What the document calls it."""
        return self.topic.__name__.removesuffix("_topic")

    @property
    def parties(self) -> tuple[str, str]:
        """Who publishes, and who listens."""
        return self.sender, "service" if self.sender == "device" else "device"

    @property
    def address(self) -> str:
        """The topic with its parameters in braces."""
        arguments = [] if self.parameter is None else [f"{{{self.parameter}}}"]
        return self.topic(Topics("PREFIX"), *arguments).replace("PREFIX", "{prefix}")


CHANNELS: Final = (
    Channel(Topics.chunk, "sha256", None, "service", retain=True),
    Channel(Topics.meta, "channel", wire.ChannelMeta, "service", retain=True),
    Channel(Topics.trust, None, wire.TrustFiles, "service", retain=True),
    Channel(Topics.log, "channel", wire.LogSegment, "service"),
    Channel(Topics.desired, "device", wire.Desired, "service", retain=True),
    Channel(Topics.ack, "device", wire.Ack, "service"),
    Channel(Topics.down_log, "device", wire.LogSegment, "service"),
    Channel(Topics.up_label, "device", wire.LabelBatch, "device"),
    Channel(Topics.up_want, "device", wire.Want, "device"),
    Channel(Topics.up_event, "device", wire.UpdateEvent, "device"),
    Channel(Topics.up_result, "device", wire.Result, "device", qos=0),
    Channel(Topics.up_tele, "device", None, "device", qos=0),
    Channel(Topics.state, "device", wire.DeviceState, "device", retain=True),
    Channel(trigger_topic, "device", None, "controller"),
)
"""Every topic of `sdk.wire.Topics`, and where an enrolled device may be triggered."""

PARAMETERS: Final[dict[str, str]] = {
    "prefix": "Configurable first part of every topic.",
    "sha256": "SHA-256 of the chunk, 64 hex digits.",
    "channel": r"A product on like hardware: 1 to 64 of a-z 0-9 . _ -",
    "device": f"A device's id: {DEVICE_ID_PATTERN}",
}
_RAW: Final = {
    "chunk": ("Chunk", f"A piece of a release, at most {wire.MAX_CHUNK_BYTES} bytes; its name is its digest."),
    "up_tele": ("Telemetry", "Signs of life that nobody must read."),
    "trigger": (
        "Trigger",
        'A part is in place: its id as text, as JSON `{"part": ...}`, or nothing (docs/agent.md).',
    ),
}
_PACKED: Final = (wire.LabelBatch, wire.LogSegment)


def document() -> dict[str, Any]:
    """Return the document as plain values."""
    kinds = list(dict.fromkeys(c.message for c in CHANNELS if c.message is not None))
    _, schemas = msgspec.json.schema_components(
        [*kinds, wire.ReleaseDescriptor], ref_template="#/components/schemas/{name}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Headway over MQTT",
            "version": str(wire.WIRE_VERSION),
            "description": (
                "What a fleet service and its devices say. docs/protocol.md is the prose; this file is made from "
                "sdk/wire.py by `python -m sdk.fleet.asyncapi`. Every message is at most "
                f"{wire.MAX_MESSAGE_BYTES} bytes. Unknown members, other versions and wrong types are refused, "
                "but for unknown members of a DeviceState. "
                "MessagePack messages are arrays, packed or not (docs/protocol.md, section 2): their schemas "
                "list the items in order, and what is base64 there is binary on the wire."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "plant": {
                "host": "broker.plant.example:8883",
                "protocol": "secure-mqtt",
                "protocolVersion": "5.0",
                "security": [{"$ref": "#/components/securitySchemes/certificate"}],
                "bindings": {"mqtt": {"cleanSession": False, "bindingVersion": "0.2.0"}},
            }
        },
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {
            f"{who}{_title(channel.name)}": _operation(channel, who)
            for channel in CHANNELS
            for who in channel.parties
        },
        "components": {
            "securitySchemes": {
                "certificate": {"type": "X509", "description": "Who speaks is who the certificate says."}
            },
            "messages": {_message_name(channel): _message(channel) for channel in CHANNELS},
            "schemas": schemas,
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    name = _message_name(channel)
    named = ["prefix", *([] if channel.parameter is None else [channel.parameter])]
    return {
        "address": channel.address,
        "description": inspect.getdoc(channel.topic),
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "parameters": {each: {"description": PARAMETERS[each]} for each in named},
    }


def _operation(channel: Channel, who: str) -> dict[str, Any]:
    sends = who == channel.sender
    retained = "; the broker keeps the last one" if channel.retain else ""
    return {
        "action": "send" if sends else "receive",
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": f"The {who} {'publishes' if sends else 'may receive'}, QoS {channel.qos}{retained}.",
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retain, "bindingVersion": "0.2.0"}},
    }


def _message_name(channel: Channel) -> str:
    return _RAW[channel.name][0] if channel.message is None else channel.message.__name__


def _message(channel: Channel) -> dict[str, Any]:
    name = _message_name(channel)
    if channel.message is None:
        payload = {"type": "string", "format": "binary"}
        return {"name": name, "contentType": BYTES, "summary": _RAW[channel.name][1], "payload": payload}
    about = (inspect.getdoc(channel.message) or "").partition("\n\n")[0].replace("\n", " ")
    return {
        "name": name,
        "contentType": MSGPACK if channel.message in _PACKED else JSON,
        "summary": about,
        "payload": {"$ref": f"#/components/schemas/{channel.message.__name__}"},
    }


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def main() -> None:
    """Write the document to standard output, as YAML."""
    import yaml

    yaml.safe_dump(document(), sys.stdout, sort_keys=False, allow_unicode=True, width=115)


if __name__ == "__main__":
    main()
