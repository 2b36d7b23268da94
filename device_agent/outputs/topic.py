"""The fleet's result topic (docs/protocol.md): one `Result` for each part."""

from __future__ import annotations

from collections.abc import Callable

from device_agent.parts import Part
from sdk.wire import Result


class ResultTopic:
    """Verdicts over MQTT, QoS 0: for whoever listens now. What nobody hears is not repeated.

    Args:
        publish: Publishes, or drops while there is no broker.
    """

    name = "result topic"
    replays = False

    def __init__(self, publish: Callable[[Result], None]) -> None:
        self._publish = publish

    def send(self, part: Part) -> None:
        """Publish a verdict."""
        self._publish(part.result())

    def beat(self) -> None:
        """Nothing: the device's retained state says that it is alive."""

    def close(self) -> None:
        """Nothing: the device's last will says that it has gone."""
