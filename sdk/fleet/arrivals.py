"""What came in since a service's last turn, by kind. What no device may send is reported and left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdk.errors import RemoteWireError
from sdk.fleet.reports import Report
from sdk.labels import FLEET_LOG_PREFIX
from sdk.mqtt import Message
from sdk.wire import DeviceState, LabelBatch, Topics, UpdateEvent, Want, decode_json, decode_msgpack


@dataclass(frozen=True)
class Arrivals:
    """Messages of devices, each kind in its order, with the device whose topic it came on.

    Attributes:
        states: And whether the broker had kept it: then nobody knows how old it is.
        labels: Of devices' logs.
        events: Of updates.
        wants: What devices ask for.
    """

    states: list[tuple[DeviceState, bool]] = field(default_factory=list)
    labels: list[tuple[str, LabelBatch]] = field(default_factory=list)
    events: list[tuple[str, UpdateEvent]] = field(default_factory=list)
    wants: list[tuple[str, Want]] = field(default_factory=list)

    def add(self, message: Message, topics: Topics) -> None:
        """Take in one message.

        Raises:
            RemoteWireError: it is none that a device may send there.
        """
        device = topics.device_of(message.topic)
        if device.startswith(FLEET_LOG_PREFIX):
            raise RemoteWireError(f"{device} is no device", hint="That name is the service's own.")
        kind = topics.kind_of(message.topic)
        if kind == "state" and message.payload:
            self.states.append((_state(device, message), message.retained))
        elif message.retained:
            raise RemoteWireError(f"a retained message on {message.topic}", hint="Only states are retained.")
        elif kind == "up/label":
            self.labels.append((device, decode_msgpack(message.payload, LabelBatch)))
        elif kind == "up/event":
            self.events.append((device, decode_json(message.payload, UpdateEvent)))
        elif kind == "up/want":
            self.wants.append((device, decode_json(message.payload, Want)))

    @property
    def to_commit(self) -> bool:
        """Whether there is anything that devices say, not only ask."""
        return bool(self.states or self.labels or self.events)


def arrivals_of(messages: Sequence[Message], topics: Topics, report: Report) -> Arrivals:
    """Return what these messages say; `report` is told of each that says nothing."""
    arrived = Arrivals()
    for message in messages:
        try:
            arrived.add(message, topics)
        except RemoteWireError as error:
            report("bad_message", {"topic": message.topic[:200], "error": str(error)})
    return arrived


def _state(device: str, message: Message) -> DeviceState:
    state = decode_json(message.payload, DeviceState)
    if state.device != device:
        raise RemoteWireError(f"{device} sends the state of {state.device}", hint="Two devices are mixed up.")
    return state
